"""What is known of each family: targets, figures, the plan in force and its workers, and what was learned.

`family` keeps it for one family; `context` for all of them, and for the devices.  Nothing here plans.
"""
