"""What is not needed to serve: kept to check the planner, and to compare policies.

    simulate    families, traces, policies and loads on a virtual clock
    problem     one optimisation problem in a file, solved
"""
