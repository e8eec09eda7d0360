"""Launch failures of CUDA (error 719): ends of workers that do not say whether rows or the GPU caused them.

A row that makes them ends one worker after the other; a GPU that fails ends its workers together, and rows that were
with two of them must not pass for the cause.  So the first launch failure within a minute is held against no row, and
those that follow are.
"""

from __future__ import annotations

from clover.errors import says_launch_failed

FORGIVEN_NS = 60_000_000_000


class LaunchFailures:
    """When launch failures began."""

    def __init__(self) -> None:
        self._until_ns = 0

    def forgives(self, reason: str, now_ns: int) -> bool:
        """Return whether a death for `reason` is a launch failure that no row is blamed for: the first in a minute."""
        if not says_launch_failed(reason):
            return False
        first = now_ns >= self._until_ns
        self._until_ns = now_ns + FORGIVEN_NS
        return first
