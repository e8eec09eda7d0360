"""`python -m clover simulate`: families x traces x policies x loads on a virtual clock.

Nothing here decides anything.  The controller is the production one (`clover.control.Controller`) with its triggers,
verification and transitions; policies, planner and queueing model are those that a server uses.  What is
simulated is the world around them: the grid's intensity, the rows that arrive, devices, and workers that take as long
as their profile says (`fleet`).  Time is that of an event loop that never waits (`clock`).

Reading order: `world` (what is simulated), `replay` (one run), `work` (many runs), `records` (results); `paper` and
`day` are the two scenarios, `minutes` plays rows one by one, `tables` and `page` show results.
"""
