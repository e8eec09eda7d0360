"""What the first source of the chain lets expect while it has no value: its last forecast, then its own past.

The forecast of before the outage holds for as long as it reaches.  After it, the intensity is taken to be what it was
at the same hour of the last `DAYS` days, on average.  Both say that they are forecasts, and neither becomes history.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import msgspec

from clover.carbon.layouts import MAX_G_PER_KWH
from clover.planning.budget.forecast import DAY, HOUR_S, History
from clover.types import Reading

DAYS = 7


class Bridge:
    """The past (`history`, hourly means) and the newest forecast of one source."""

    def __init__(self, step_s: float) -> None:
        self.history = History()
        self._step_s = step_s
        self._last: Reading | None = None
        self._foreseen: list[Reading] = []
        self._times: list[float] = []

    def note(self, reading: Reading, grid_s: float) -> None:
        """Note a value of the source that was in force at `grid_s`."""
        self.history.note(grid_s, reading.g_per_kwh)
        self._last = reading

    def foresee(self, readings: Sequence[Reading]) -> None:
        """Take a new forecast in place of the one before."""
        possible = (reading for reading in readings if 0.0 <= reading.g_per_kwh <= MAX_G_PER_KWH)
        self._foreseen = sorted(possible, key=lambda reading: reading.at_s)
        self._times = [reading.at_s for reading in self._foreseen]

    def expected(self, grid_s: float) -> Reading | None:
        """Return what to expect at `grid_s`; None if neither forecast nor history says anything."""
        return self._by_forecast(grid_s) or self._by_season(grid_s)

    def _by_forecast(self, grid_s: float) -> Reading | None:
        index = bisect.bisect_right(self._times, grid_s) - 1
        if index < 0:
            return None
        found = self._foreseen[index]
        if grid_s >= found.at_s + (found.step_s or self._step_s):
            return None
        age_s = grid_s - found.at_s
        return msgspec.structs.replace(found, method="forecast", estimated=True, age_s=age_s, state="forecast")

    def _by_season(self, grid_s: float) -> Reading | None:
        hour = math.floor(grid_s / HOUR_S)
        means = [mean for day in range(1, DAYS + 1) if (mean := self.history.mean(hour - day * DAY)) is not None]
        if self._last is None or not means:
            return None
        return msgspec.structs.replace(
            self._last,
            g_per_kwh=sum(means) / len(means),
            at_s=hour * HOUR_S,
            method="forecast",
            estimated=True,
            age_s=grid_s - hour * HOUR_S,
            step_s=HOUR_S,
            state="seasonal",
        )
