"""Tools to check the planner and to compare policies; serving does not need them.

simulate    families, traces, policies and loads on a virtual clock
problem     one optimisation problem in a file, solved
"""
