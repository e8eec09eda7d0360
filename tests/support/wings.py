"""The folders of `clover/` that a server does without."""

WINGS = ("cluster", "importing", "report", "research")
