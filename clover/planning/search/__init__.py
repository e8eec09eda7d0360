"""Search over configurations that are too many to evaluate one by one."""
