"""What is known of each family: targets, figures, the plan in force and its workers, and what was learned.

`family` keeps it of one family, `context` of all of them and of the devices.  Nothing here plans.
"""
