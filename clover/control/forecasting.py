"""What an accuracy budget needs to know and a policy cannot remember: what was, what will be, and what was served.

One `Grid` for all families keeps the history of the intensity and asks the sources' forecast, at most once an hour of
grid time.  A `Ledger` a family keeps the history of its load and what it served since its horizon began.  A horizon
begins with the first look and the next one where it ends; a restart begins a new one, so that what was served before it
is forgotten, for better or worse.

Only the first source of the chain makes history: another one may mean something else by intensity, and the value of
last resort means nothing at all.  Hours without it are gaps, which the forecast fills.  For the same reason a forecast
counts only where it speaks of the same signal as the reading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from clover.planning.budget.forecast import (
    HOUR_S,
    ForecastInput,
    History,
    Outlook,
    Sample,
    hours_of,
    outlook,
    values,
)
from clover.types import Reading

TURN_S = 300.0
"""Grid seconds after which thresholds are looked at again: what costs nothing to turn follows what was served."""
FORESEEN_S = 7 * 86_400.0
"""How far ahead a source is asked; none foresees more, but for a file, which would foresee everything."""


class Foreseeing(Protocol):
    """Readings to come (`clover.carbon.Chain`)."""

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]: ...


class Ledger:
    """What one family served in the horizon under way, and its load by the hour."""

    def __init__(self) -> None:
        self.rates = History()
        self.since_s = math.nan
        """Grid time at which the horizon began; NaN before the first look."""
        self.rows = 0.0
        self.accuracy_rows = 0.0
        """Sum over the rows of the accuracy (percent) expected of the variant that answered."""
        self.planned_s = math.nan
        """Grid time of the last plan; NaN before the first."""
        self.label = ""
        """Where the last forecast came from."""
        self._before = (0.0, 0.0)

    def look(self, grid_s: float, observed: dict[str, float], horizon_s: float) -> None:
        """Book what was served since the last look.  `observed` counts from the start of the family's router."""
        accuracy = observed.get("accuracy_served")
        rows = observed.get("rows", 0.0) if accuracy is not None else self._before[0]  # unknown is not wrong
        total = rows * accuracy if accuracy is not None else self._before[1]
        before = self._before if rows >= self._before[0] else (0.0, 0.0)  # the router began anew
        first = math.isnan(self.since_s)
        if first or grid_s < self.since_s or grid_s >= self.since_s + horizon_s:
            over = 0.0 if first or grid_s < self.since_s else math.floor((grid_s - self.since_s) / horizon_s)
            self.since_s = self.since_s + over * horizon_s if over else grid_s
            self.rows = self.accuracy_rows = 0.0
        elif rows > before[0]:
            self.rows += rows - before[0]
            self.accuracy_rows += total - before[1]
        self._before = (rows, total)
        self.rates.note(grid_s, observed.get("arrival_rate", math.nan))

    def due(self, grid_s: float, step_s: float = HOUR_S) -> bool:
        """Return whether another hour (another step of `step_s`) began since the last plan."""
        return math.isnan(self.planned_s) or math.floor(self.planned_s / step_s) != math.floor(grid_s / step_s)


class Grid:
    """The intensity's past, and its future as sources see it."""

    def __init__(self, chain: Foreseeing) -> None:
        self.history = History()
        self._chain = chain
        self._asked: int | None = None
        self._readings: Sequence[Reading] = ()

    def note(self, reading: Reading, grid_s: float) -> None:
        """A reading that was in force at `grid_s`."""
        if reading.state in ("fresh", "stale"):
            self.history.note(grid_s, reading.g_per_kwh)

    async def outlook(
        self, ledger: Ledger, *, reading: Reading, grid_s: float, horizon_s: float, rate: float
    ) -> Outlook:
        """Return what to expect of the rest of the family's horizon."""
        until_s = (grid_s if math.isnan(ledger.since_s) else ledger.since_s) + horizon_s
        hour, count = hours_of(grid_s, max(until_s, grid_s))
        known = [item for item in await self._foreseen(grid_s) if _alike(item, reading)]
        given = values([Sample(at_s=item.at_s, g_per_kwh=item.g_per_kwh) for item in known], hour, count)
        name = f"provider {known[0].provider}" if known else ""
        made_from = ForecastInput(self.history, ledger.rates, reading.g_per_kwh, rate, provider=given, name=name)
        found = outlook(made_from, now_s=grid_s, until_s=until_s)
        ledger.label = found.label
        return found

    async def _foreseen(self, grid_s: float) -> Sequence[Reading]:
        hour = math.floor(grid_s / HOUR_S)
        if hour != self._asked:
            self._asked = hour
            # Where it fails what it said before still holds, as far as it reaches.
            self._readings = await self._chain.forecast(grid_s, FORESEEN_S) or self._readings
        return self._readings


def _alike(foreseen: Reading, reading: Reading) -> bool:
    return "unknown" in (foreseen.signal, reading.signal) or foreseen.signal == reading.signal
