"""`python -m clover simulate`: families x traces x policies x loads on a virtual clock.

Nothing here decides anything.  The controller is the production one (`clover.control.Controller`) with its triggers,
dwell, verification and transitions; policies, planner and queueing model are those a server uses.  What is simulated is
the world around them: the grid's intensity, the rows that arrive, devices, and workers that serve as their profile says
(`fleet`).  Time is an event loop's that never waits (`clock`).
"""
