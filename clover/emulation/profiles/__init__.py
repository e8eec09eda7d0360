"""Profiles of GPUs that are not there: calculated from the one on CPU cores, or taken from a pace file."""
