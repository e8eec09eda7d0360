"""Plans the hours in which waiting rows run: the cleanest ones in which no job can become late.

    hours = hours_ahead(now_s, [210, 150, 61, 58, 90])          # gCO2e/kWh from the running hour on
    job = PendingJob("batch_1", rows=200_000, deadline_s=now_s + 5 * 3600, carbon="wait", row_s=0.036, row_j=0.1)
    schedule = plan(now_s, [job], hours)
    schedule.running(now_s)        # (): nothing runs now
    schedule.reason("batch_1")     # "runs 02:00 to 04:00 UTC: 60 g/kWh instead of 210 now"

**The problem.**  The machine has `spare` seconds in each hour, and a second in an hour costs that hour's intensity
times the watts that waiting rows draw there.  A job needs `rows x row_s` of these seconds before its deadline.  All
watts being alike, it does not matter which job gets which second: only how many seconds each hour gives.  Let y(h) be
those, C(t) the spare seconds until t, and D(d) the seconds that jobs with deadlines up to d need.  Jobs can be in
time if and only if the seconds until each deadline d sum to D(d) or more, because then the earliest deadline first is
in time.  Wanted are the cheapest y with

    y(h) <= spare seconds of h,    sum of y until t  >=  R(t)  for every t

**The reserve.**  R(t) asks for more than deadlines do: what is left at t must be answerable at `1 - reserve` of the
spare seconds that remain, by `CUSHION_S` before the deadline, together with what may still come
(`waiting.arrivals`): up to A(t, d) seconds between t and d.  So, for all d from t to the last hour,

    R(t) = max over d of  D(d) + min(A(t, d), r(t, d)) - r(t, d),    r(t, d) = (1 - reserve) (C(d) - C(t))

If R(now) is above 0, the jobs up to the last d for which that is so are *urgent*: they start now.

**Why the greedy is optimal.**  Walk through the hours, and whenever R(t) asks for more seconds than were taken, take
the cheapest of those until t that are left.  The first time, it takes the cheapest set S of seconds until t1.  An
optimal plan that lacks a second of S has another one until t1 in its place, which costs no less.  Exchanging them
changes no sum at t1 or later, and all that R asks for is at t1 or later.  So some optimal plan contains S, and what
is left to choose is the same problem without S.

**Waking.**  A machine that would sleep stays on for waiting rows: `kept_on_w` more watts in such hours, and `wake_j`
for each run of hours.  A run is given up while others, or hours beside them, can take its work for less (a local
search: with this fixed charge the problem is no linear program any more).

**Errors of forecasts.**  Hours to come count as `margin_gco2e_kwh` dearer (`waiting.forecasts`), so that where
forecasts mislead less is left to wait.

A plan knows nothing of the one before it: make a new one with each forecast, each job, and every few minutes.  It has
no clock and does no I/O.  Times are Unix seconds of grid time.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from clover.waiting.arrivals import ToCome

RESERVE = 0.1
"""The part of the spare seconds that plans do not rely on to be in time."""
CUSHION_S = 600.0
"""Seconds before its deadline at which a job is planned to be done: two plans, and a worker that has to start."""
_LEAST_S = 1e-9
_MOST_TRIALS = 8
_MANY_JOBS = 256
"""Jobs from which on deadlines are moved to whole multiples of `CUSHION_S`: work grows with the square of their number.
"""


@dataclass(frozen=True)
class Hour:
    """The intensity that is expected between two times; of any length."""

    start_s: float
    end_s: float
    gco2e_kwh: float


@dataclass(frozen=True)
class PendingJob:
    """What is left of a batch job: `rows` without an answer, wanted by `deadline_s`.

    A row takes `row_s` seconds of the machine if it is given all that is spare, and `row_j` joules above idle.  With
    `carbon` "now" it does not wait."""

    id: str
    rows: float
    deadline_s: float
    carbon: Literal["wait", "now"]
    row_s: float
    row_j: float


@dataclass(frozen=True)
class PlannedHour:
    """The rows that run in an hour, by job, in the order in which they run."""

    start_s: float
    end_s: float
    rows: Mapping[str, float]
    gco2e_kwh: float


@dataclass(frozen=True)
class Schedule:
    """The plan of `now_s`: the hours in which rows run.  `urgent`: jobs that have to start now to be in time."""

    now_s: float
    hours: tuple[PlannedHour, ...]
    urgent: tuple[str, ...]
    jobs: Mapping[str, PendingJob]
    gco2e_kwh: float
    """The intensity of now, NaN if no hours are known."""

    def running(self, now_s: float) -> tuple[str, ...]:
        """Return the jobs that run at `now_s`, the one to answer first in front."""
        if math.isnan(self.gco2e_kwh):
            return tuple(self.jobs)
        return next((tuple(hour.rows) for hour in self.hours if hour.start_s <= now_s < hour.end_s), ())

    def grams(self) -> float:
        """Return the grams of CO2e of the planned rows, without idle power."""
        return sum(
            rows * self.jobs[job].row_j * hour.gco2e_kwh / 3.6e6
            for hour in self.hours
            for job, rows in hour.rows.items()
        )

    def reason(self, job_id: str) -> str:
        """Return in a few words when a job runs, and why then; KeyError for a job that was not planned."""
        job = self.jobs[job_id]
        hours = [hour for hour in self.hours if job_id in hour.rows]
        if job.carbon == "now":
            return "runs now, as asked"
        if math.isnan(self.gco2e_kwh):
            return "runs now: no forecast is known"
        if job_id in self.urgent:
            return "runs now: it may not be answered in time if it waits"
        if not hours:
            return "nothing is left to run"
        rows = sum(hour.rows[job_id] for hour in hours)
        then = sum(hour.rows[job_id] * hour.gco2e_kwh for hour in hours) / rows
        spans = _spans(hours)
        if spans[0][0] <= self.now_s and len(spans) == 1:
            return f"runs now: {self.gco2e_kwh:.0f} g/kWh, and no hour before its deadline is cleaner by enough"
        times = _times(spans, self.now_s)
        if then >= self.gco2e_kwh:
            return f"runs {times}: {then:.0f} g/kWh, after jobs that are due earlier"
        return f"runs {times}: {then:.0f} g/kWh instead of {self.gco2e_kwh:.0f} now"


@dataclass(frozen=True)
class _Parts:
    """Stretches of time in order, none across a deadline: spare seconds, the cost of one of them, R at the end, and
    what a run costs that begins there (0 if the machine is awake anyway)."""

    seconds: list[float]
    cost: list[float]
    least: list[float]
    wake: list[float]


def plan(
    now_s: float,
    jobs: Sequence[PendingJob],
    intensity: Sequence[Hour],
    *,
    spare: float | Callable[[float], float] = 1.0,
    reserve: float = RESERVE,
    to_come: ToCome | None = None,
    margin_gco2e_kwh: float = 0.0,
    kept_on_w: float | Callable[[float], float] = 0.0,
    wake_j: float = 0.0,
    awake: bool = False,
) -> Schedule:
    """Return when the rows of `jobs` run.

    `intensity`: hours in order.  A job whose deadline lies beyond the last one is planned to be done by then.  Without
    any hours all jobs run now.
    `spare`, `kept_on_w`: for the hour that begins at a time, the part of the machine that is free (0 to 1), and the
    watts that stay on because waiting rows run (0 if the machine does not sleep then).
    `to_come`: the most work that may still come between times.
    `reserve` is 0 to below 1.  `margin_gco2e_kwh` is added to hours to come.
    `awake`: waiting rows run already, so that to go on wakes nothing.
    """
    if not 0.0 <= reserve < 1.0:
        raise ValueError(f"a reserve is a part of what is spare, from 0 to below 1, not {reserve}")
    if any(later.start_s < hour.end_s for hour, later in itertools.pairwise(intensity)):
        raise ValueError("hours must be in order, and not overlap")
    hours = [hour for hour in intensity if hour.end_s > now_s]
    known = [job for job in jobs if job.rows > 0.0]
    g_now = hours[0].gco2e_kwh if hours else math.nan
    if not known or not hours:
        known.sort(key=lambda job: (job.carbon != "now", job.deadline_s))
        urgent = tuple(job.id for job in known if job.carbon == "wait")
        return Schedule(now_s, (), urgent, {job.id: job for job in known}, g_now)
    free = [min(1.0, max(0.0, spare(hour.start_s) if callable(spare) else spare)) for hour in hours]
    starts = [max(now_s, hour.start_s) for hour in hours]
    edges = np.array([time for start, hour in zip(starts, hours, strict=True) for time in (start, hour.end_s)])
    given = [part * (hour.end_s - start) for part, start, hour in zip(free, starts, hours, strict=True)]
    until = np.repeat(np.cumsum([0.0, *given]), 2)[1:-1]  # spare seconds from now until each edge

    # A job that does not wait is due when all of them can be done.
    now_done_s = float(np.interp(sum(job.rows * job.row_s for job in known if job.carbon == "now"), until, edges))
    due = {job.id: max(now_s, job.deadline_s - CUSHION_S) for job in known}
    if len(known) > _MANY_JOBS:  # fewer deadlines, none of them later
        due = {name: max(now_s, due_s // CUSHION_S * CUSHION_S) for name, due_s in due.items()}
    due |= {job.id: min(due[job.id], now_done_s) for job in known if job.carbon == "now"}
    ordered = sorted(known, key=lambda job: (due[job.id], job.deadline_s, job.id))
    due_s = np.minimum([due[job.id] for job in ordered], hours[-1].end_s)
    work = np.array([max(job.rows * job.row_s, 10.0 * _LEAST_S) for job in ordered])
    needed = np.cumsum(work)
    by_then = np.interp(due_s, edges, until)
    late = needed > by_then + _LEAST_S
    at_once = needed[late | np.array([job.carbon == "now" for job in ordered])].max(initial=0.0)

    # Stretches of time between hours and deadlines, and what has to be done by the end of each (a cut).
    ends = np.unique(np.concatenate((edges, due_s)))
    cuts = ends[ends <= (hours[-1].end_s if late.any() else due_s[-1])]
    done = np.interp(cuts, edges, until)
    remain = (1.0 - reserve) * np.maximum(0.0, np.interp(ends, edges, until) - done[:, None])  # from a cut to an end
    asked = np.append(0.0, needed)[np.searchsorted(due_s, ends, "right")] - remain
    if to_come is not None:
        asked += np.minimum(to_come(cuts, ends), remain)
    asked[ends < cuts[:, None]] = -math.inf
    urgent_until_s = ends[asked[0] > _LEAST_S].max(initial=-math.inf)
    urgent = tuple(
        job.id for job, at_s in zip(ordered, due_s, strict=True) if job.carbon == "wait" and at_s <= urgent_until_s
    )
    least = asked.max(axis=1)
    least = np.minimum(done, np.maximum(least, at_once))
    least[-1] = min(done[-1], needed[-1])
    places = np.searchsorted([hour.end_s for hour in hours], cuts[1:]).tolist()
    active_w = sum(job.rows * job.row_j for job in ordered) / float(needed[-1])
    kept = [kept_on_w(hour.start_s) if callable(kept_on_w) else kept_on_w for hour in hours]
    g_per_kwh = [hour.gco2e_kwh + (margin_gco2e_kwh if hour.start_s > now_s else 0.0) for hour in hours]
    parts = _Parts(
        seconds=np.diff(done).tolist(),
        cost=[g_per_kwh[at] * ((active_w + kept[at]) or 1.0) for at in places],
        least=least[1:].tolist(),
        wake=[g_per_kwh[at] * wake_j if kept[at] > 0.0 else 0.0 for at in places],
    )
    taken = _fill(parts, parts.cost)
    if any(parts.wake):
        taken = _merge_runs(parts, taken, awake)
    planned = _assign(zip(places, taken, strict=True), ordered, work.tolist())
    return Schedule(
        now_s,
        tuple(PlannedHour(starts[at], hours[at].end_s, rows, hours[at].gco2e_kwh) for at, rows in planned.items()),
        urgent,
        {job.id: job for job in ordered},
        g_now,
    )


def _fill(parts: _Parts, cost: Sequence[float]) -> list[float]:
    """Return the seconds taken of each part: the cheapest ones that reach what is asked for, the earlier of equals."""
    taken = [0.0] * len(cost)
    heap: list[tuple[float, int]] = []
    total = 0.0
    for at, least in enumerate(parts.least):
        if parts.seconds[at] > 0.0:
            heapq.heappush(heap, (cost[at], at))
        while total < least - _LEAST_S and heap:
            cheapest = heap[0][1]
            seconds = min(least - total, parts.seconds[cheapest] - taken[cheapest])
            taken[cheapest] += seconds
            total += seconds
            if taken[cheapest] >= parts.seconds[cheapest] - _LEAST_S:
                heapq.heappop(heap)
    return taken


def _merge_runs(parts: _Parts, taken: list[float], awake: bool) -> list[float]:
    """Return the seconds taken if runs are given up, the shortest first, as long as the others do their work for
    less."""
    least, left = _cost(parts, taken, awake), _MOST_TRIALS
    improved = True
    while improved and left > 0:
        runs = _runs(parts, taken)
        improved = False
        for run in sorted(runs, key=lambda run: sum(taken[run.start : run.stop]))[:left]:
            left -= 1
            trial = _without(parts, run, [other for other in runs if other != run], awake)
            if (cost := _cost(parts, trial, awake)) < least * (1.0 - 1e-9):
                taken, least, improved = trial, cost, True
                break
    return taken


def _without(parts: _Parts, run: range, others: list[range], awake: bool) -> list[float]:
    """Return the seconds taken if the work of `run` goes to the other runs and the parts beside them, the nearest
    first; parts further away are the last resort.  While `awake`, going on from now is such a run."""
    far = max(parts.cost) + 1.0
    cost = [own + far for own in parts.cost]
    for other in [*others, range(0)] if awake else others:
        for at in other:
            cost[at] = parts.cost[at]
        for beside in (
            range(other.stop, other.stop + len(run)),
            range(other.start - 1, other.start - 1 - len(run), -1),
        ):
            later = 1.0 if beside.step > 0 else 1.0 + 1e-6  # of equals the later, which does not wake any earlier
            dearest = 0.0
            for at in beside:
                if 0 <= at < len(cost):
                    dearest = max(dearest * (1.0 + 1e-9), later * parts.cost[at])  # nothing before what lies between
                    cost[at] = min(cost[at], dearest)
    return _fill(parts, cost)


def _runs(parts: _Parts, taken: Sequence[float]) -> list[range]:
    """Return the runs of neighbouring parts that are used and would otherwise be slept through."""
    runs: list[range] = []
    for at, seconds in enumerate(taken):
        if seconds > 0.0 and parts.wake[at] > 0.0:
            if runs and runs[-1].stop == at:
                runs[-1] = range(runs[-1].start, at + 1)
            else:
                runs.append(range(at, at + 1))
    return runs


def _cost(parts: _Parts, taken: Sequence[float], awake: bool) -> float:
    begun = sum(parts.wake[run.start] for run in _runs(parts, taken) if not (awake and run.start == 0))
    return begun + sum(cost * seconds for cost, seconds in zip(parts.cost, taken, strict=True))


def _assign(
    taken: Iterable[tuple[int, float]], ordered: Sequence[PendingJob], work: Sequence[float]
) -> dict[int, dict[str, float]]:
    """Return the rows of each hour by job, if seconds are `taken` of hours (by their place) in their order.

    The earliest deadline comes first.  `work`: the seconds that each job needs."""
    planned: dict[int, dict[str, float]] = {}
    left = iter(zip(ordered, work, strict=True))
    job, missing = next(left)
    whole = missing
    for place, seconds in taken:
        while seconds > _LEAST_S:
            done = min(missing, seconds)
            seconds, missing = seconds - done, missing - done
            done += missing if missing <= _LEAST_S else 0.0  # what rounding left
            rows = planned.setdefault(place, {})
            rows[job.id] = rows.get(job.id, 0.0) + done / whole * job.rows
            if missing <= _LEAST_S:
                following = next(left, None)
                if following is None:
                    return planned
                job, missing = following
                whole = missing
    return planned


def _spans(hours: Sequence[PlannedHour]) -> list[tuple[float, float]]:
    """Return begin and end of each run of hours that follow each other."""
    spans: list[tuple[float, float]] = []
    for hour in hours:
        start_s = spans.pop()[0] if spans and spans[-1][1] == hour.start_s else hour.start_s
        spans.append((start_s, hour.end_s))
    return spans


def _times(spans: Sequence[tuple[float, float]], now_s: float) -> str:
    """Return spans as "02:00 to 05:00 and Fri 01:00 to 02:00 UTC"."""
    today = datetime.fromtimestamp(now_s, UTC).date()
    words = []
    for start_s, end_s in spans[:3]:
        start, end = datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC)
        day = "" if start.date() == today else f"{start:%a} "
        words.append(f"{day}{start:%H:%M} to {end:%H:%M}")
    if len(spans) > len(words):
        words.append(f"{len(spans) - len(words)} more")
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) + " UTC"
