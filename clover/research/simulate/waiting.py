"""Plays batch jobs through the hours of a grid: at once, as planned, and with the intensity of all hours known.

    jobs = [Arrival(at_s=0.0, work_s=4 * 3600.0, deadline_s=24 * 3600.0)]
    grid = HourlyGrid(first=0, g_per_kwh=np.array([300.0] * 12 + [100.0] * 24))
    play(jobs, grid, grid.known).grams / play_at_once(jobs, grid).grams       # 0.33...

What decides is the server's own code: `clover.waiting.schedule` plans with each job and each hour, by forecasts as they
were issued, as far as `clover.waiting.forecasts` believes them, with room for what may still come
(`clover.waiting.arrivals`).  A job's work is in seconds of the whole machine, of which live rows leave a part.  Grams
are those of a machine that draws a watt while rows of jobs run.  All of it is modelled.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clover.errors import CarbonError
from clover.interfaces import CarbonSource
from clover.planning.budget.forecast import DAY, HOUR_S, WEEK, Floats, History, forecast
from clover.research.simulate.loads import Load
from clover.waiting.arrivals import WorkToCome
from clover.waiting.forecasts import IssuedForecasts, hours_ahead
from clover.waiting.schedule import CUSHION_S, RESERVE, PendingJob, plan

JOULES_PER_KWH = 3.6e6
PAST_H = 5 * WEEK
"""Hours of the past that forecasts are made of."""
_LEAST_S = 1e-6
_AHEAD_H = 8 * DAY

Spare = Callable[[float], float]
"""Returns which part of the machine is free (above 0, to 1) in the hour that begins at a time (Unix seconds)."""


@dataclass(frozen=True)
class Arrival:
    """A job that comes at `at_s`, takes `work_s` seconds of the whole machine, and is wanted by `deadline_s`."""

    at_s: float
    work_s: float
    deadline_s: float


@dataclass(frozen=True)
class HourlyGrid:
    """The intensity (gCO2e/kWh) of the hours from `first` (since 1970) on.  `issued`: what a provider expected of each
    hour a day ahead; None: forecasts are the pattern of the past, as a server makes them."""

    first: int
    g_per_kwh: Floats
    issued: Floats | None = None

    def known(self, hour: int) -> Floats:
        """Return what the hours from `hour` on turn out to be."""
        return self.g_per_kwh[hour - self.first : hour - self.first + _AHEAD_H]

    def expected(self, hour: int) -> Floats:
        """Return what is expected in `hour` of the hours from it on; the running one is known."""
        at = hour - self.first
        found = forecast(self.g_per_kwh[max(0, at - PAST_H) : at + 1], float(self.g_per_kwh[at]), _AHEAD_H)
        if self.issued is not None:
            issued = self.issued[at + 1 : at + DAY]
            found[1 : 1 + len(issued)] = issued
        return found


@dataclass(frozen=True)
class Outcome:
    """What became of jobs: for each its grams and when it was done (Unix seconds, infinite if it was not), and how
    often rows began to run."""

    job_grams: list[float]
    done_s: list[float]
    starts: int

    @property
    def grams(self) -> float:
        return sum(self.job_grams)

    def late(self, jobs: Sequence[Arrival]) -> set[int]:
        """Return which of the jobs were late, by their place."""
        return {at for at, (job, done_s) in enumerate(zip(jobs, self.done_s, strict=True)) if done_s > job.deadline_s}


async def hourly(source: CarbonSource, begin_s: float, end_s: float) -> tuple[int, Floats]:
    """Return the first full hour from `begin_s` on of which `source` has a value, and the mean intensity of each hour
    from it to `end_s` (Unix seconds), gaps filled as a server fills them."""
    history = History()
    for at_s in np.arange(HOUR_S * math.ceil(begin_s / HOUR_S), end_s - _LEAST_S, min(source.step_s, HOUR_S)).tolist():
        with contextlib.suppress(CarbonError):
            history.record(at_s, (await source.read(at_s)).g_per_kwh)
    found = history.hourly(math.ceil(end_s / HOUR_S) - 1)
    return math.ceil(end_s / HOUR_S) - len(found), found


def waiting_rows(load: Load, share: float, window_s: float, start_s: float, hours: int) -> tuple[list[Arrival], Spare]:
    """Return jobs that are the `share` of a load's rows that may wait for `window_s`, one an hour, and what the others
    leave of the machine.  The load is a part of its capacity; at least a hundredth stays free."""
    parts = load.rates(1.0, start_s, HOUR_S, hours, seed=0)
    jobs = [
        Arrival(at_s, share * part * HOUR_S, at_s + window_s)
        for at_s, part in zip(start_s + HOUR_S * np.arange(1, hours + 1), parts, strict=True)
    ]
    first = math.floor(start_s / HOUR_S)
    live = [(1.0 - share) * part for part in parts]

    def spare(at_s: float) -> float:
        return max(0.01, 1.0 - live[(math.floor(at_s / HOUR_S) - first) % len(live)])

    return jobs, spare


def play_at_once(
    jobs: Sequence[Arrival], grid: HourlyGrid, *, spare: Spare = lambda start_s: 1.0, wake_s: float = 0.0
) -> Outcome:
    """Return what becomes of `jobs` if each starts as soon as it comes, the earliest deadline first."""
    return _Machine(jobs, grid, spare, wake_s).play(lambda now_s, left: [(job, math.inf) for job in left])


def play(
    jobs: Sequence[Arrival],
    grid: HourlyGrid,
    expected: Callable[[int], Floats],
    *,
    spare: Spare = lambda start_s: 1.0,
    careful: bool = True,
    room: bool = True,
    idle: float = 0.0,
    wake_s: float = 0.0,
) -> Outcome:
    """Return what becomes of `jobs` if they run as planned by what is `expected` in an hour.

    `careful`: hold a reserve and doubt forecasts, as the server does.  `room`: so does what may still come.
    `idle`: the part of a running machine's power that one asleep does not draw; `wake_s`: seconds of a running machine
    that each beginning takes then.
    """
    issued, to_come = IssuedForecasts(), WorkToCome()
    machine = _Machine(jobs, grid, spare, wake_s)
    margin, of_hour, ahead = 0.0, -1, np.zeros(0)

    def choose(now_s: float, left: Sequence[int]) -> Iterable[tuple[int, float]]:
        nonlocal margin, of_hour, ahead
        hour = math.floor(now_s / HOUR_S)
        if hour != of_hour:
            of_hour, ahead = hour, expected(hour)
            if careful:
                issued.record(hour, ahead)
                at = hour - grid.first
                margin = issued.margin(grid.g_per_kwh[max(0, at - PAST_H) : at + 1], hour)
        more_s = 0.0 if careful else CUSHION_S  # one that knows all needs no cushion
        schedule = plan(
            now_s,
            [
                PendingJob(str(job), machine.left_s[job], jobs[job].deadline_s + more_s, "wait", 1.0, 1.0 - idle)
                for job in left
            ],
            hours_ahead(now_s, ahead),
            spare=spare,
            reserve=RESERVE if careful else 0.0,
            to_come=to_come.ahead(now_s) if careful and room else None,
            margin_gco2e_kwh=margin,
            kept_on_w=idle,
            wake_j=wake_s,
            awake=machine.running,
        )
        now = next((own.rows for own in schedule.hours if own.start_s <= now_s < own.end_s), {})
        return [(int(job), seconds) for job, seconds in now.items()]

    return machine.play(choose, lambda job: to_come.record(job.at_s, job.work_s, job.deadline_s))


@dataclass
class _Machine:
    """A machine while jobs are played on it."""

    jobs: Sequence[Arrival]
    grid: HourlyGrid
    spare: Spare
    wake_s: float
    running: bool = False
    left_s: list[float] = field(init=False)
    """The work that is left of each job."""

    def __post_init__(self) -> None:
        self.left_s = [job.work_s for job in self.jobs]

    def play(
        self,
        choose: Callable[[float, Sequence[int]], Iterable[tuple[int, float]]],
        came: Callable[[Arrival], None] = lambda job: None,
    ) -> Outcome:
        """Return what becomes of the jobs.

        `choose` is called with each job that comes and at each hour.  It gets the time and the jobs that are left, the
        earliest deadline first, and returns those that run until it is called again, in their order, each with the
        seconds that it may take."""
        grams, done_s = [0.0] * len(self.jobs), [math.inf] * len(self.jobs)
        coming = sorted(range(len(self.jobs)), key=lambda job: -self.jobs[job].at_s)
        end_s = (self.grid.first + len(self.grid.g_per_kwh) - 1) * HOUR_S
        left: list[int] = []
        starts, now_s = 0, -math.inf
        while left or coming:
            now_s = now_s if left else max(now_s, self.jobs[coming[-1]].at_s)
            if now_s >= end_s:
                break
            while coming and self.jobs[coming[-1]].at_s <= now_s:
                left.append(coming.pop())
                came(self.jobs[left[-1]])
            left.sort(key=lambda job: (self.jobs[job].deadline_s, job))
            hour = math.floor(now_s / HOUR_S)
            until_s = min((hour + 1) * HOUR_S, self.jobs[coming[-1]].at_s if coming else math.inf)
            part, g_per_j = self.spare(hour * HOUR_S), self.grid.known(hour)[0] / JOULES_PER_KWH
            at_s = now_s
            for job, most_s in choose(now_s, left):
                seconds = min(self.left_s[job], most_s, max(0.0, until_s - at_s) * part)
                if seconds <= 0.0:
                    continue
                if not self.running:
                    starts += 1
                    grams[job] += self.wake_s * g_per_j
                self.running = True
                self.left_s[job] -= seconds
                at_s += seconds / part
                grams[job] += seconds * g_per_j
                if self.left_s[job] <= _LEAST_S:
                    done_s[job] = at_s
            self.running = self.running and at_s >= until_s - _LEAST_S
            left = [job for job in left if self.left_s[job] > _LEAST_S]
            now_s = until_s
        return Outcome(grams, done_s, starts)
