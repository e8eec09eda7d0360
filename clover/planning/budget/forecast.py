"""Forecasts the grid and the load: from their own past, or from a provider.

The unit is the hour, counted in grid time since 1970.  Readings come at any time and are averaged within their hour.
An hour without a reading is a gap.  A gap is filled with the same hour of the day before, of the day after, of the week
before or after, else with its nearest neighbour (`hourly`).

 - *persistence*: it stays as it is now; used while less than a day is known.
 - *seasonal*: the next week repeats a typical day.  Each hour of that day is the mean of the last days, in which a day
   weighs a part of the one after it, blended with the same hour of the week before.  How far the present is from it is
   added to the hours to come, and fades.  Farther away nothing is blended: week k from now is the k-th last week as it
   was, round and round.  An average of weeks would be the better guess of one hour, but a budget needs to know how much
   clean and how much dirty time there will be, and averages hide that.
 - *provider*: values for the hours that a provider covers, the seasonal forecast (or persistence) for the others.

A horizon of a year has 8,760 hours and a policy gets at most `LIMIT` parts (`outlook`).  The next two days stay as they
are.  Later hours are sorted by rate and then by intensity, and each run of neighbours becomes one part.  If they were
averaged over time instead, noon and night would cancel, and nothing would be left to choose between.

No clock, no I/O, and no NaN in what comes out, whatever went in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clover.types import Ahead, Record

HOUR_S = 3600.0
DAY, WEEK = 24, 168
LIMIT = 200
"""Parts of a horizon at most: a state travels to the solver as one frame."""
KEPT = 53 * WEEK
"""Hours of history that are of use at most."""
_NEAR = 48  # hours that keep their place
_DAYS = 14  # that make the typical day ...
_DAY_KEEPS = 0.8  # ... and what one weighs of the one after it
_WEEK_WEIGHT = 0.1  # of the same hour of the week before
_ERROR_FADES_H = 24.0
_RATE_STEP = math.log(1.15)  # hours whose rates differ by less are alike

Floats = NDArray[np.float64]


class Sample(Record, frozen=True, kw_only=True):
    """What a provider expects from a grid time on (Unix seconds), in gCO2e/kWh."""

    at_s: float
    g_per_kwh: float


class SavedHistory(Record, frozen=True, kw_only=True):
    """What a file keeps of a `History`: hours with their means."""

    hours: tuple[int, ...]
    means: tuple[float, ...]


class History:
    """Readings by the hour of grid time, at most the last `KEPT` hours: their means, gaps and all."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}  # hour: sum and number

    def record(self, at_s: float, value: float) -> None:
        """Record that `value` held at `at_s`; a value that is not finite is ignored."""
        if not (math.isfinite(at_s) and math.isfinite(value)):
            return
        hour = math.floor(at_s / HOUR_S)
        own = self._sums.setdefault(hour, [0.0, 0.0])
        own[0] += value
        own[1] += 1.0
        while len(self._sums) > KEPT:
            del self._sums[next(iter(self._sums))]

    def saved(self, weeks: int = 5) -> SavedHistory:
        """Return the last `weeks` for a file."""
        last = max(self._sums, default=0)
        kept = {hour: total / number for hour, (total, number) in self._sums.items() if hour > last - weeks * WEEK}
        return SavedHistory(hours=tuple(kept), means=tuple(kept.values()))

    def restore(self, saved: SavedHistory) -> None:
        """Take up what a file kept; ValueError if it is no history."""
        if len(saved.hours) != len(saved.means) or not all(map(math.isfinite, saved.means)):
            raise ValueError("hours and their means do not fit")
        for hour, mean in zip(saved.hours[-KEPT:], saved.means[-KEPT:], strict=True):
            self._sums.setdefault(hour, [mean, 1.0])

    def __len__(self) -> int:
        return len(self._sums)

    def mean(self, hour: int) -> float | None:
        """Return the mean of one hour; None if nothing is known of it."""
        total, number = self._sums.get(hour, (0.0, 0.0))
        return total / number if number else None

    def means(self) -> Floats:
        """Return the means of all hours of which something is known, in the order in which they were recorded."""
        return np.array([total / number for total, number in self._sums.values()])

    def plain(self, hour: int, count: int) -> Floats:
        """Return `count` hours from `hour` on, gaps left as NaN."""
        means = np.full(count, np.nan)
        for at, (total, number) in self._sums.items():
            if hour <= at < hour + count:
                means[at - hour] = total / number
        return means

    def hourly(self, hour: int) -> Floats:
        """Return hour by hour from the first known one up to `hour` (which may be under way), gaps filled; empty if
        nothing is known.  What was recorded for later hours is not used: the clock was set back."""
        hours = [at for at in self._sums if hour - KEPT < at <= hour]
        if not hours:
            return np.empty(0)
        first = min(hours)
        return _filled(self.plain(first, hour - first + 1))


@dataclass(frozen=True)
class Outlook:
    """The parts until the end of a horizon, and what they were made from, in words."""

    steps: tuple[Ahead, ...]
    label: str


@dataclass(frozen=True)
class ForecastInput:
    """What is known of the grid and the load: the past hours, `g_per_kwh` and `rate` (rows/s) of now, and `provider`,
    what a provider called `name` says of each hour from the running one on (see `values`; NaN: nothing)."""

    intensities: History
    rates: History
    g_per_kwh: float
    rate: float
    provider: Floats | None = None
    name: str = "provider"


def outlook(known: ForecastInput, *, now_s: float, until_s: float, seasons: bool = True, limit: int = LIMIT) -> Outlook:
    """Return what to expect from `now_s` until `until_s` (grid time).

    Without `seasons`, hours of which no provider says anything are persistence.  The first part lasts until the end of
    the running hour; there are at most `limit` (at least 4) of them.  Empty if the horizon is over.
    """
    if not until_s > now_s:
        return Outlook((), "")
    rate = known.rate
    hour, count = hours_of(now_s, until_s)
    seconds = np.full(count, HOUR_S)
    seconds[0] -= now_s - hour * HOUR_S
    seconds[-1] -= (hour + count) * HOUR_S - until_s
    expected, label = expect(known, hour, count, seasons=seasons)
    load = load_forecast(known.rates, hour, rate, count)[1:] if seasons else np.full(count, rate)
    load[0] = rate
    return Outlook(group_hours(seconds, expected, load * seconds, limit), label)


def expect(known: ForecastInput, hour: int, count: int, *, seasons: bool = True) -> tuple[Floats, str]:
    """Return the intensities (gCO2e/kWh) of `count` hours from the running one (`hour`) on, and in words what they were
    made from."""
    past = known.intensities.hourly(hour) if seasons else np.empty(0)
    expected = forecast(past, known.g_per_kwh, count)
    label = f"seasonal, {len(past) / DAY:.0f} days known" if len(past) > DAY else "persistence"
    provider = known.provider
    if provider is not None and np.isfinite(provider[1:count]).any():
        given = np.full(count, np.nan)
        given[: min(count, len(provider))] = provider[:count]
        there = np.isfinite(given)
        expected = np.where(there, given, expected)
        label = known.name if there[1:].all() else f"{known.name} for {int(there.sum())} h, then {label}"
    expected[0] = known.g_per_kwh
    return expected, label


def hours_of(now_s: float, until_s: float) -> tuple[int, int]:
    """Return the running hour, and how many are begun until the end of the horizon, this one first."""
    hour = math.floor(now_s / HOUR_S)
    return hour, math.ceil(until_s / HOUR_S) - hour


def forecast(past: Floats, now: float, count: int) -> Floats:
    """Return `count` hours from the running one on, whose value is `now`; `past` ends with the running hour."""
    if len(past) <= DAY:
        return np.full(count, now)
    last = len(past) - 1
    lead = np.arange(count)  # 0: the running hour itself
    days = min(last // DAY, _DAYS)
    weights = _DAY_KEEPS ** np.arange(days)[::-1]
    typical = weights @ past[last - days * DAY : last].reshape(days, DAY) / weights.sum()
    found = typical[lead % DAY]
    if len(past) > WEEK:
        found += np.where(lead < WEEK, _WEEK_WEIGHT, 1.0) * (_weeks(past, last, lead) - found)
    error = now - found[0]
    faded: Floats = found + error * np.exp(-lead / _ERROR_FADES_H)
    return np.clip(faded, min(float(past.min()), now), max(float(past.max()), now))


def load_forecast(rates: History, hour: int, now: float, count: int) -> Floats:
    """Return the rows/s of `count` + 1 hours: of the hour before the running one (`hour`), and from the running one on;
    all `now` if no more than a day is known.  The last whole hour says how far this day is from those before.  The
    running hour cannot: when it begins, what was counted is of the hour before, and a rise that comes every day at this
    time would look like its absence."""
    past = rates.hourly(hour - 1)
    return forecast(past, float(past[-1]), count + 1) if len(past) > DAY else np.full(count + 1, now)


def values(samples: Sequence[Sample], hour: int, count: int) -> Floats:
    """Return a provider's values for `count` hours from `hour` on, as means of an hour; NaN for hours without any."""
    own = History()
    for sample in samples:
        if hour * HOUR_S <= sample.at_s < (hour + count) * HOUR_S:
            own.record(sample.at_s, sample.g_per_kwh)
    return own.plain(hour, count)


def group_hours(seconds: Floats, intensity: Floats, rows: Floats, limit: int = LIMIT) -> tuple[Ahead, ...]:
    """Return hours as at most `limit` parts: the first ones in their order, the others grouped with similar ones.
    Seconds, rows, and rows x intensity keep their sums."""
    count = len(seconds)
    near = count if count <= limit else min(_NEAR, limit // 2)
    order, starts = np.arange(count), list(range(near))
    if near < count:
        classes = np.round(np.log(np.maximum(rows / seconds, 1e-3)) / _RATE_STEP)[near:]
        classes -= classes.min()  # from 0 on, so that halving ends in one
        while len(kinds := np.unique(classes)) > max(1, (limit - near) // 8):
            classes = np.floor(classes / 2.0)  # rates of too many kinds: coarser ones
        room = limit - near - len(kinds)
        order[near:] = near + np.lexsort((intensity[near:], classes))
        at = near
        for kind in kinds:
            own = int((classes == kind).sum())
            parts = min(own, 1 + room * own // (count - near))
            starts += [at + own * part // parts for part in range(parts)]
            at += own
    seconds, intensity, rows = seconds[order], intensity[order], rows[order]
    weights = np.maximum(rows, 1e-9 * seconds)  # hours without rows, or next to none, have an intensity too
    columns = [np.add.reduceat(column, starts) for column in (seconds, weights * intensity, weights, rows)]
    return tuple(
        Ahead(seconds=s, g_per_kwh=g / w, rows=r) for s, g, w, r in zip(*(c.tolist() for c in columns), strict=True)
    )


def _weeks(past: Floats, last: int, lead: NDArray[np.int_]) -> Floats:
    """Return the value of a week before, of the one that lies as far back as the hour lies ahead (and round again)."""
    ahead = np.maximum(lead - 1, 0) // WEEK  # whole weeks until then
    back = WEEK * (1 + ahead + ahead % (last // WEEK))
    values: Floats = past[last + lead - back]
    return values


def _filled(means: Floats) -> Floats:
    for lag in (DAY, -DAY, WEEK, -WEEK):
        gaps = np.flatnonzero(np.isnan(means))
        source = gaps - lag
        inside = (source >= 0) & (source < len(means))
        for at, there in zip(gaps[inside], source[inside], strict=True):  # in order: a gap of days fills day by day
            means[at] = means[there]
    gaps = np.flatnonzero(np.isnan(means))
    if len(gaps):
        known = np.flatnonzero(np.isfinite(means))
        means[gaps] = np.interp(gaps, known, means[known])
    return means
