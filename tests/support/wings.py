"""The folders of `clover/` that a server does without."""

WINGS = ("cluster", "emulation", "importing", "report", "research")
