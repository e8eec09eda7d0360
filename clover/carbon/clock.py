"""Grid time: the time carbon intensities are looked up at.

Scheduling runs on monotonic time; carbon runs on its own clock, so that a trace of last year can be replayed, faster
if wished, under live traffic.  Grid time is anchored once and then follows CLOCK_BOOTTIME, which counts suspended time
and is not moved when somebody steps the wall clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from clover.errors import ConfigError


def boot_seconds() -> float:
    """Return seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class GridClock:
    """Unix seconds of grid time: `start_s` (now by default) plus `speed` grid seconds per real second."""

    def __init__(
        self, start_s: float | None = None, speed: float = 1.0, monotonic: Callable[[], float] = boot_seconds
    ) -> None:
        if not (math.isfinite(speed) and speed > 0):
            raise ConfigError(f"trace_speed must be a positive number of grid seconds per second, not {speed}")
        if start_s is not None and not math.isfinite(start_s):
            raise ConfigError(f"grid time must start at a finite Unix time, not {start_s}")
        self.start_s = time.time() if start_s is None else start_s
        self.speed = speed
        self._monotonic = monotonic
        self._anchor = monotonic()

    def now(self) -> float:
        """Return Unix seconds of grid time."""
        return self.start_s + self.speed * (self._monotonic() - self._anchor)
