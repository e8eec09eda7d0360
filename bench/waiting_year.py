"""A year of batch jobs that may wait, hour by hour: what waiting saves, and whether a job is late.

    python -m bench.waiting_year eia_ciso_2022.csv neso_gb_2021_actual.csv:neso_gb_2021_forecast.csv

A trace is a CSV of hourly intensities; after a colon, the forecasts that were issued of its hours a day ahead.  Work:

    daily     a job of four hours a day, at a random time of it, that may wait a day
    mixed     some fifty jobs a day at random, of 1 s to an hour, that may wait for 10 minutes to a week

Each is played at once, as the server plans it, and with all intensities known.  `idle`: the part of the power that a
machine without rows does not draw, because it sleeps then; to wake it takes a second.  `late` counts jobs that are late
and would not be if all started at once.  All of it is modelled; the five weeks before the first job are known.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from bench.common import show, write_json
from clover.carbon.trace import TraceSource
from clover.planning.budget.forecast import DAY, HOUR_S, WEEK, Floats
from clover.research.simulate.waiting import PAST_H, Arrival, HourlyGrid, Outcome, hourly, play, play_at_once

_WAKE_S = 1.0
_WORK_S = (1.0, 3600.0)
_WINDOW_S = (600.0, 7 * 86_400.0)


@dataclass(frozen=True)
class Question:
    trace: str
    work: Literal["daily", "mixed"]
    idle: float
    jobs_a_day: float
    room: bool
    seed: int


@dataclass(frozen=True)
class Year:
    """What came of a zone's year: grams as parts of those at once, `captured` as part of perfect foresight's saving.

    `worst_week`: the least that a week's jobs saved."""

    zone: str
    work: str
    idle: float
    jobs: int
    saved: float
    foresight: float
    captured: float
    worst_week: float
    late: int
    late_at_once: int
    starts: int
    starts_at_once: int


def main(argv: Sequence[str] | None = None) -> int:
    """Play every year; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.waiting_year", description=__doc__.split("\n")[0])
    parser.add_argument("traces", nargs="+", help="carbon traces (CSV), each with :FILE of the forecasts issued")
    parser.add_argument("--work", nargs="+", choices=("daily", "mixed"), default=["daily", "mixed"])
    parser.add_argument("--idle", type=float, nargs="+", default=[0.0], help="part of the power, once or more [0]")
    parser.add_argument("--jobs-a-day", type=float, default=50.0, help="of mixed work [50]")
    parser.add_argument("--no-room", action="store_true", help="plan without room for what may still come")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes [1]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    asked = [
        Question(trace, work, idle, given.jobs_a_day, not given.no_room, given.seed)
        for work, idle, trace in itertools.product(given.work, given.idle, given.traces)
    ]
    with ProcessPoolExecutor(given.jobs) as pool:
        years = list(pool.map(answer, asked))
    columns = ("zone", "work", "idle", "jobs", "saved %", "foresight %", "captured", "worst week %", "late",
               "late at once", "starts", "at once")  # fmt: skip
    rows = [
        (y.zone, y.work, f"{y.idle:g}", y.jobs, f"{100 * y.saved:.1f}", f"{100 * y.foresight:.1f}",
         f"{y.captured:.2f}", f"{100 * y.worst_week:.1f}", y.late, y.late_at_once, y.starts, y.starts_at_once)
        for y in years
    ]  # fmt: skip
    show("a year of jobs that may wait, of the grams at once", columns, rows)
    write_json(given.json, {"arguments": vars(given), "years": [asdict(year) for year in years]})
    return 0


def answer(question: Question) -> Year:
    """Play one year."""
    actual, _, issued = question.trace.partition(":")
    first, values = asyncio.run(_read(actual))
    grid = HourlyGrid(first, values)
    if issued:
        begin, foretold = asyncio.run(_read(issued))
        by_hour = dict(enumerate(foretold.tolist(), begin))
        grid = replace(grid, issued=np.array([by_hour.get(first + at, value) for at, value in enumerate(values)]))
    rng = np.random.default_rng(question.seed)
    jobs = _daily(grid, rng) if question.work == "daily" else _mixed(grid, rng, question.jobs_a_day)
    wake_s = _WAKE_S if question.idle else 0.0
    both = functools.partial(play, jobs, grid, idle=question.idle, wake_s=wake_s)
    at_once = play_at_once(jobs, grid, wake_s=wake_s)
    planned = both(grid.expected, room=question.room)
    known = both(grid.known, careful=False)
    return Year(
        zone=Path(actual).stem + (f", {Path(issued).stem}" if issued else ""),
        work=question.work,
        idle=question.idle,
        jobs=len(jobs),
        saved=1.0 - planned.grams / at_once.grams,
        foresight=1.0 - known.grams / at_once.grams,
        captured=(at_once.grams - planned.grams) / (at_once.grams - known.grams),
        worst_week=_worst_week(jobs, planned, at_once),
        late=len(planned.late(jobs) - at_once.late(jobs)),
        late_at_once=len(at_once.late(jobs)),
        starts=planned.starts,
        starts_at_once=at_once.starts,
    )


async def _read(path: str) -> tuple[int, Floats]:
    source = TraceSource(Path(path))
    return await hourly(source, source.start_s, source.end_s)


def _daily(grid: HourlyGrid, rng: np.random.Generator) -> list[Arrival]:
    days = np.arange(grid.first + PAST_H, grid.first + len(grid.g_per_kwh) - 3 * DAY, DAY) * HOUR_S
    return [Arrival(at_s, 4 * HOUR_S, at_s + DAY * HOUR_S) for at_s in (days + rng.uniform(0.0, 86_400.0, len(days)))]


def _mixed(grid: HourlyGrid, rng: np.random.Generator, jobs_a_day: float) -> list[Arrival]:
    """Return jobs whose work and windows are uniform by their logarithm."""
    begin, end = grid.first + PAST_H, grid.first + len(grid.g_per_kwh) - 9 * DAY
    count = rng.poisson(jobs_a_day * (end - begin) / DAY)
    at_s = np.sort(rng.uniform(begin * HOUR_S, end * HOUR_S, count))
    work_s = np.exp(rng.uniform(math.log(_WORK_S[0]), math.log(_WORK_S[1]), count))
    due_s = at_s + np.exp(rng.uniform(math.log(_WINDOW_S[0]), math.log(_WINDOW_S[1]), count))
    return [Arrival(*job) for job in zip(at_s.tolist(), work_s.tolist(), due_s.tolist(), strict=True)]


def _worst_week(jobs: Sequence[Arrival], planned: Outcome, at_once: Outcome) -> float:
    weeks = np.array([int(job.at_s // (WEEK * HOUR_S)) for job in jobs])
    weeks -= weeks.min()
    ours, theirs = (np.bincount(weeks, outcome.job_grams) for outcome in (planned, at_once))
    whole = np.bincount(weeks) >= 0.5 * np.bincount(weeks).max()
    return float((1.0 - ours[whole] / theirs[whole]).min())


if __name__ == "__main__":
    raise SystemExit(main())
