"""Rows in shared memory: written once by the server, read in place by the workers."""
