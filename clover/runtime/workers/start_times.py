"""How long the starts of workers took so far, from the order to ready."""

from __future__ import annotations

from clover.planning.transition.stages import start_key
from clover.types import Assignment

_WEIGHT = 0.3  # of the newest start in a running mean


class StartTimes:
    """Running means by variant, backend and profile of the slice."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str], float] = {}

    def note(self, item: Assignment, seconds: float) -> None:
        """Take note of a worker that was ready after `seconds`; nothing if no time passed."""
        if seconds > 0.0:
            key = start_key(item)
            known = self.seconds.get(key, seconds)
            self.seconds[key] = known + _WEIGHT * (seconds - known)
