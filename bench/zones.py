"""What a server without any flag would save in each grid zone, hour by hour through half a year, simulated.

    python -m bench.zones TRACE.csv... [--formulas] [--family fashion] [--gpus 0] [--start ISO] [--hours 4032]
                          [--load constant:0.6] [--forecasts seasonal] [--horizons day week] [--jobs 1] [--json FILE]

A trace is a CSV of hourly intensities, as `--carbon trace:FILE` reads it.  Through each of them the production
controller plays its default policy at a constant load, on all cores of this machine (`clover.research.simulate`;
run it under `taskset -c 0,1` for two of them) or on `--gpus` A100s.  The first `WARM_H` hours only make a history, and
do not count.  Beside it, at the same rows, the same hours and the accuracy that the default reached in each horizon:

`BASE`         the best variant on whole devices
`fixed`        the most frugal fixed mix of plans, whatever the grid does
`clairvoyant`  the most frugal schedule of plans if the future were known (`bench.horizon`)

Both are made of the frontier of the same planner, each point played, cascades included where the family has a
confidence.  `saved` is of active carbon, without idle power, which is the same for all.  `captured` is the part of what
lies between fixed and clairvoyant that the default has.  The daily floor of a week is the accuracy floor, which no plan
of any of them goes below.  `lowest day` is the least accuracy that a day had on average.  Forecasts: see
`clover simulate --help`;
`seasonal` is what a server makes of a grid that tells nothing of the hours to come.

`--formulas` adds zones for which there need be no file: a daily and a yearly wave with weather of some days, drawn once
from a fixed seed around the mean of such grids.  They are formulas, and nobody's data.

All of it is modelled: joules and p95 by the planner's queueing model on the profile of this machine, accuracy by the
profile's held-out rows.  Nothing is measured.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.common import show, write_json
from bench.horizon import Hour, spend
from clover.carbon.trace import TraceSource
from clover.config import ControllerConfig, FamilyConfig
from clover.control.state.family import default_targets
from clover.planning.budget.forecast import DAY, HOUR_S, WEEK
from clover.planning.budget.frontiers import frontier
from clover.planning.model.frontier import FrontierPoint
from clover.planning.model.objective import PlanningInput
from clover.research.simulate import families, forecasts, loads, world
from clover.research.simulate.records import JOULES_PER_KWH, ReplayStep
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Rules, Scheme, Trace, World
from clover.types import ObjectiveConfig, Reading, State

FORMULAS = {
    "clean-formula": (35.0, 0.35, 0.25),
    "nuclear-formula": (60.0, 0.15, 0.30),
    "coal-formula": (390.0, 0.08, 0.05),
    "coal-solar-formula": (680.0, 0.12, 0.04),
    "wind-formula": (150.0, 0.12, 0.45),
}
"""Mean (gCO2e/kWh), daily swing and spread of the weather, both as parts of the mean."""
_WEATHER_H = 30.0
_FIRST_S = datetime(2023, 1, 1, tzinfo=UTC).timestamp()
_LEAST_G = 5.0
_HORIZONS = {"day": DAY, "week": WEEK}


WARM_H = 2 * WEEK


@dataclass(frozen=True)
class Question:
    """One zone under one forecast and horizon."""

    trace: str
    family: str
    gpus: int
    start: str
    hours: float
    load: str
    forecast: str
    horizon: str


@dataclass(frozen=True)
class Answer:
    """What came of it: parts of BASE's active carbon, accuracies in percent."""

    zone: str
    forecast: str
    horizon: str
    fixed_saved: float
    saved: float
    clairvoyant_saved: float
    captured: float
    accuracy: float
    lowest_day: float
    above_slo: float
    changes: int
    turned: int


def main(argv: Sequence[str] | None = None) -> int:
    """Play every zone; print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.zones", description=__doc__.split("\n")[0])
    parser.add_argument("traces", nargs="*", help="carbon traces (CSV)")
    parser.add_argument("--formulas", action="store_true", help="add zones by formula")
    parser.add_argument("--family", default="fashion", help="a family profiled here, or a profile.json [fashion]")
    parser.add_argument("--gpus", type=int, default=0, help="A100s to play on; 0: this machine's cores [0]")
    parser.add_argument("--start", default="", help="where each trace starts [its second half]")
    parser.add_argument("--hours", type=float, default=4032.0, help="hours that count, whole weeks [4032]")
    parser.add_argument("--load", default="constant:0.6", help="constant:U (part of BASE's capacity) or R/s")
    parser.add_argument("--forecasts", nargs="+", default=["seasonal"], help="[seasonal]")
    parser.add_argument("--horizons", nargs="+", choices=tuple(_HORIZONS), default=["day", "week"], help="[day week]")
    parser.add_argument("--jobs", type=int, default=1, help="processes [1]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        traces = [*given.traces, *(formula_files(Path(folder)) if given.formulas else ())]
        asked = itertools.product(traces, given.forecasts, given.horizons)
        questions = [
            Question(trace, given.family, given.gpus, given.start, given.hours, given.load, forecast, horizon)
            for trace, forecast, horizon in asked
        ]
        with ProcessPoolExecutor(given.jobs) as pool:
            answers = []
            for answer in pool.map(answered, questions):
                answers.append(answer)
                print(answer, flush=True)
    columns = ("zone", "forecast", "horizon", "fixed %", "saved %", "clairvoyant %", "captured", "accuracy",
               "lowest day", "above SLO %", "changes", "turned")  # fmt: skip
    rows = [
        (a.zone, a.forecast, a.horizon, f"{100 * a.fixed_saved:.2f}", f"{100 * a.saved:.2f}",
         f"{100 * a.clairvoyant_saved:.2f}", f"{a.captured:.2f}", f"{a.accuracy:.3f}", f"{a.lowest_day:.3f}",
         f"{100 * a.above_slo:.1f}", a.changes, a.turned)
        for a in answers
    ]  # fmt: skip
    show(f"{given.family}, {given.load}: active carbon saved of BASE's by the default", columns, rows)
    write_json(given.json, {"arguments": vars(given), "zones": [asdict(answer) for answer in answers]})
    return 0


def formula_files(folder: Path) -> list[str]:
    """Write the zones by formula as traces of a year into `folder`; return their paths."""
    found = []
    for seed, (name, (mean, daily, weather)) in enumerate(FORMULAS.items()):
        rng, drift, lines = np.random.default_rng(seed), 0.0, []
        for hour in range(366 * DAY):
            keep = math.exp(-1.0 / _WEATHER_H)
            drift = keep * drift + math.sqrt(1.0 - keep * keep) * float(rng.standard_normal())
            wave = daily * math.cos(2.0 * math.pi * (hour % DAY - 19) / DAY)
            season = 0.05 * math.cos(2.0 * math.pi * hour / (365.0 * DAY))
            value = max(_LEAST_G, mean * (1.0 + wave + season + weather * drift))
            at = datetime.fromtimestamp(_FIRST_S + hour * HOUR_S, UTC)
            lines.append(f"{at:%Y-%m-%dT%H:%M:%SZ},{value:.1f}")
        path = folder / f"{name}.csv"
        path.write_text("datetime_utc,carbon_intensity_gco2_per_kwh\n" + "\n".join(lines) + "\n")
        found.append(str(path))
    return found


def answered(question: Question) -> Answer:
    """Play one zone under the default, and what it is held against."""
    machine = world.gpus(question.gpus) if question.gpus else world.cpu()
    horizon = _HORIZONS[question.horizon]
    rules = Rules(
        look_s=HOUR_S, noise=False, forecast=forecasts.parse(question.forecast), budget_horizon_s=horizon * HOUR_S
    )
    own = World(machine, families.load(question.family, machine.shapes), rules)
    (trace,) = world.traces([question.trace], question.start or _second_half(question), WARM_H + question.hours)
    load = loads.parse(question.load)
    run = play(Case(own, trace, load, Scheme("default", ControllerConfig().policy, cascade=None), 0))
    base = play(Case(own, replace(trace, hours=2.0), load, Scheme("base", "base"), 0)).steps[-1]
    steps = run.steps[WARM_H:]
    points = _points(own, trace, load, run.slo_ms)
    mine = fixed = clairvoyant = whole = 0.0
    for at in range(0, len(steps), horizon):
        part = steps[at : at + horizon]
        rows = sum(step.rows for step in part)
        accuracy = sum(step.rows * step.accuracy for step in part) / rows
        grams = [step.rows * step.g_per_kwh * rules.pue / JOULES_PER_KWH for step in part]
        mine += sum(step.active_grams for step in part)
        whole += sum(grams) * base.active_j / base.rows
        fixed += sum(grams) * spend([Hour(rows=1.0, points=points)], accuracy - 1e-9).grams
        hours = [
            Hour(rows=step.rows, points=tuple(_in_grams(point, g / step.rows) for point in points))
            for step, g in zip(part, grams, strict=True)
        ]
        clairvoyant += spend(hours, accuracy - 1e-9).grams
    return Answer(
        zone=trace.name,
        forecast=question.forecast,
        horizon=question.horizon,
        fixed_saved=1.0 - fixed / whole,
        saved=1.0 - mine / whole,
        clairvoyant_saved=1.0 - clairvoyant / whole,
        captured=(fixed - mine) / (fixed - clairvoyant),
        accuracy=_accuracy(steps),
        lowest_day=min(_accuracy(steps[at : at + DAY]) for at in range(0, len(steps), DAY)),
        above_slo=sum(step.late > 0.05 for step in steps) / len(steps),
        changes=sum(step.changes for step in steps),
        turned=sum(step.turned for step in steps),
    )


def _second_half(question: Question) -> str:
    """Return where the second half of a trace begins, less the hours that only make a history."""
    source = TraceSource(Path(question.trace))
    half = source.start_s + math.floor((source.end_s - source.start_s) / 2.0 / HOUR_S) * HOUR_S
    return datetime.fromtimestamp(half - WARM_H * HOUR_S, UTC).isoformat()


def _points(own: World, trace: Trace, load: loads.Load, slo_ms: float) -> tuple[FrontierPoint, ...]:
    """Return accuracy and joules a row of the plans of the planner's frontier, each played for an hour."""
    config, profile = ControllerConfig(), own.known.profile
    targets = default_targets(profile, FamilyConfig(family=profile.family), config)
    state = State(
        family=profile.family,
        grid_s=0.0,
        intensity=Reading(g_per_kwh=1.0, at_s=0.0, provider="none"),
        arrival_rate=load.mean(own.capacity),
        p95_ms=None,
        queue_rows=0,
        objective=ObjectiveConfig(
            form="paper",
            slo_ms=slo_ms,
            accuracy_floor=targets.accuracy_floor,
            lam=None,
            reference_g_per_kwh=250.0,
            cascade=profile.cascade is not None,
        ),
        profile=profile,
        devices=own.machine.shapes,
        running=(),
        routing=None,
    )
    given, found = PlanningInput.from_state(state), []
    for plan in frontier(given.problem, given.objective, state.arrival_rate):
        floor = plan.point.accuracy - 1e-3
        fixed = Scheme("fixed", "objective", form="floor", accuracy_floor=floor, cascade=None)
        step = play(Case(own, replace(trace, hours=2.0), load, fixed, 0)).steps[-1]
        found.append(FrontierPoint(accuracy=step.accuracy, grams=step.active_j / step.rows))
    return tuple(found)


def _in_grams(point: FrontierPoint, grams_per_j: float) -> FrontierPoint:
    """Return a point in grams that is given in joules."""
    return FrontierPoint(accuracy=point.accuracy, grams=point.grams * grams_per_j)


def _accuracy(steps: Sequence[ReplayStep]) -> float:
    """Return the mean accuracy (percent) of the rows of `steps`."""
    return sum(step.rows * step.accuracy for step in steps) / sum(step.rows for step in steps)


if __name__ == "__main__":
    raise SystemExit(main())
