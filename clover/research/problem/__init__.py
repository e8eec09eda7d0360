"""Solve one optimisation problem in a file (`clover plan`), with the router of the paper."""
