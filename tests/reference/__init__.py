"""The kernels once more in plain Python: slow, short, and obviously right.  Every kernel test runs through both."""
