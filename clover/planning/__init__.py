"""Planning, pure: what could run, how well it would serve, which is best, and how to get there.

No clock, no I/O, no torch: the same input gives the same answer, live and in simulation.
"""
