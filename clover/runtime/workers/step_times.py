"""How long workers took so far to start, from the order to ready, and to end once they were drained."""

from __future__ import annotations

from clover.planning.transition.stages import start_key
from clover.types import Assignment

_WEIGHT = 0.3  # of the newest start in a running mean


class StepTimes:
    """Running means: `starts` by variant, backend and profile of the slice, and `drain` of all (s; None before the
    first)."""

    def __init__(self) -> None:
        self.starts: dict[tuple[str, str, str], float] = {}
        self.drain: float | None = None

    def started(self, item: Assignment, seconds: float) -> None:
        """Take note of a worker that was ready after `seconds`; nothing if no time passed."""
        if seconds > 0.0:
            key = start_key(item)
            known = self.starts.get(key, seconds)
            self.starts[key] = known + _WEIGHT * (seconds - known)

    def drained(self, seconds: float) -> None:
        """Take note of a worker that was gone `seconds` after it got no more rows; nothing if no time passed."""
        if seconds > 0.0:
            known = self.drain if self.drain is not None else seconds
            self.drain = known + _WEIGHT * (seconds - known)
