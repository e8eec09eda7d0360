"""What waiting knows of the hours to come, and how far forecasts of the last weeks can be believed.

    issued.record(hour, expected)                    # once an hour: the forecast as it was issued
    margin = issued.margin(history.hourly(hour), hour)
    schedule = plan(now_s, jobs, hours_ahead(now_s, expected), margin_gco2e_kwh=margin)

**Trust.**  Had a job of `_WORK_H` hours that may wait a day come in each hour of the last weeks, and had it waited
for the hours that its first forecast called the cleanest: what would that have saved, of what the forecast promised?
This part is the *trust*.  In five zones it was .7 to 1.1 for most of a year, and waiting does better than that, since
its forecasts are made anew.  From `_ENOUGH` on nothing changes.  Below, hours to come count as dearer by the forecasts'
mean error times (1 - w) / w, w being trust / `_ENOUGH`: only what promises more than that is left to wait, and nothing
is once trust is 0.

An hour of which no forecast was kept (the server was off) is judged by the pattern of its past
(`planning.budget.forecast.forecast`), which is what a grid without a provider's forecast has anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from clover.planning.budget.forecast import DAY, HOUR_S, WEEK, Floats, forecast
from clover.waiting.schedule import Hour

_WEEKS = 3
_WORK_H = 4
_ENOUGH = 0.5
_MOST_G_PER_KWH = 1e6
_LEAST_HOURS = WEEK
"""Hours with an outcome, before trust is judged; until then it is full."""


class IssuedForecasts:
    """The forecasts of the last weeks, of a day each, as they were issued: to judge by them, and to tell regret."""

    def __init__(self) -> None:
        self._issued: dict[int, Floats] = {}
        self._judged: dict[int, tuple[float, float, float]] = {}

    def record(self, hour: int, expected: Floats) -> None:
        """Keep what is `expected` (gCO2e/kWh) of the running `hour` (since 1970) and those after it, the first forecast
        of an hour."""
        if hour not in self._issued:
            self._issued[hour] = np.array(expected[:DAY])
            oldest = hour - (_WEEKS + 1) * WEEK
            self._issued = {at: values for at, values in self._issued.items() if at > oldest}
            self._judged = {at: values for at, values in self._judged.items() if at > oldest}

    def issued(self, hour: int) -> Floats | None:
        """Return the forecast that was issued in an hour, from that hour on; None if none was kept."""
        return self._issued.get(hour)

    def margin(self, past: Floats, hour: int) -> float:
        """Return by how much (gCO2e/kWh) hours to come count as dearer: 0 if forecasts can be believed, more than any
        intensity if they mislead.  `past`: the intensities of all hours known, up to the running `hour`."""
        trust, error = self.trust(past, hour)
        part = trust / _ENOUGH
        if part >= 1.0:
            return 0.0
        return min(_MOST_G_PER_KWH, error * (1.0 - part) / part) if part > 0.0 else _MOST_G_PER_KWH

    def trust(self, past: Floats, hour: int) -> tuple[float, float]:
        """Return the part of what forecasts promised that came, and their mean error (gCO2e/kWh)."""
        first = hour - len(past) + 1
        begin = max(first + DAY + 1, hour - DAY - _WEEKS * WEEK)
        outcomes = [self._judge(past, at, first) for at in range(begin, hour - DAY + 1)]
        if len(outcomes) < _LEAST_HOURS:
            return 1.0, 0.0
        promised, came, error = (sum(column) for column in zip(*outcomes, strict=True))
        return (came / promised if promised > 0.0 else 1.0), error / len(outcomes)

    def _judge(self, past: Floats, hour: int, first: int) -> tuple[float, float, float]:
        """Return what the forecast of `hour` promised to those who wait, what came of it, and its mean error."""
        if hour not in self._judged:
            at = hour - first
            expected = self._issued.get(hour)
            if expected is None or len(expected) < DAY:
                expected = forecast(past[: at + 1], float(past[at]), DAY)
            came = past[at : at + DAY]
            cleanest = np.argsort(expected, kind="stable")[:_WORK_H]
            self._judged[hour] = (
                float(expected[:_WORK_H].mean() - expected[cleanest].mean()),
                float(came[:_WORK_H].mean() - came[cleanest].mean()),
                float(np.abs(expected[1:] - came[1:]).mean()),
            )
        return self._judged[hour]


def hours_ahead(now_s: float, expected: Sequence[float] | Floats) -> tuple[Hour, ...]:
    """Return what is `expected` (gCO2e/kWh) of the hour of `now_s` and of those after it."""
    hour = math.floor(now_s / HOUR_S)
    return tuple(Hour(at * HOUR_S, (at + 1) * HOUR_S, float(value)) for at, value in enumerate(expected, hour))


def spare_ahead(past: Floats, hour: int, now: float, count: int) -> Callable[[float], float]:
    """Return which part of the machine will be free (0 to 1) in the hour that begins at a time, for `count` hours: as
    `now` in the running `hour`, then as on the days before.  `past`: the parts of the hours known, up to that one."""
    parts = np.clip(forecast(past, now, count), 0.0, 1.0)
    return lambda start_s: float(parts[min(max(0, math.floor(start_s / HOUR_S) - hour), count - 1)])
