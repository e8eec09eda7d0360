"""What a server without any flag would save in each grid zone, hour by hour through a year, simulated.

    python -m bench.zones TRACE.csv... [--formulas] [--family fashion] [--hours 8736] [--load constant:0.6]
                          [--forecasts perfect seasonal] [--jobs 1] [--json FILE]

A trace is a CSV of hourly intensities, as `--carbon trace:FILE` reads it.  Through each of them the production
controller plays its default policy at a constant load, on all cores of this machine (`clover.research.simulate`;
run it under `taskset -c 0,1` for two of them).  Beside it, at the same rows and the same hours:

`BASE`      the best variant on whole devices
`mix`       the most frugal fixed mix of at least the accuracy that the default served over the year
`cascade`   the most frugal fixed cascade of at least that accuracy

A fixed deployment under a constant load takes the same joules a row in every hour, so that these are played for an hour
and priced with the hours of the trace.  `saved` is of active carbon, without idle power, which is the same for all;
`over mix` is what the default saves more of the mix's.  `lowest day` is the least accuracy that a day had on average:
days are the budget's horizons.  Forecasts: see `clover simulate --help`; `perfect` is what a server makes of a trace
file, `seasonal` what it would make of a grid that tells nothing of the hours to come.

`--formulas` adds zones for which there need be no file: a daily and a yearly wave with weather of some days, drawn once
from a fixed seed around the mean of such grids.  They are formulas, and nobody's data.

All of it is modelled: joules and p95 by the planner's queueing model on the profile of this machine, accuracy by the
profile's held-out rows.  Nothing is measured.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.common import show, write_json
from clover.carbon.trace import TraceSource
from clover.config import ControllerConfig, ServerConfig
from clover.planning.budget.forecast import DAY, HOUR_S
from clover.planning.model.problem import accuracies
from clover.research.simulate import families, forecasts, loads, world
from clover.research.simulate.records import JOULES_PER_KWH, Run
from clover.research.simulate.replay import play
from clover.research.simulate.world import Case, Rules, Scheme, Trace, World

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


@dataclass(frozen=True)
class Question:
    """One zone under one forecast."""

    trace: str
    family: str
    hours: float
    look_s: float
    load: str
    forecast: str


@dataclass(frozen=True)
class Answer:
    """What came of it: parts of BASE's active carbon (or of the mix's), accuracies in percent."""

    zone: str
    forecast: str
    mean_g_per_kwh: float
    saved: float
    mix_saved: float
    cascade_saved: float
    over_mix: float
    accuracy: float
    target: float
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
    parser.add_argument("--hours", type=float, default=8736.0, help="hours of each trace; less if it has less [8736]")
    parser.add_argument("--look-s", type=float, default=3600.0, help="seconds between looks of the controller [3600]")
    parser.add_argument("--load", default="constant:0.6", help="constant:U (part of BASE's capacity) or R/s")
    parser.add_argument("--forecasts", nargs="+", default=["perfect", "seasonal"], help="[perfect seasonal]")
    parser.add_argument("--jobs", type=int, default=1, help="processes [1]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        traces = [*given.traces, *(formula_files(Path(folder)) if given.formulas else ())]
        questions = [
            Question(trace, given.family, given.hours, given.look_s, given.load, forecast)
            for trace in traces
            for forecast in given.forecasts
        ]
        with ProcessPoolExecutor(given.jobs) as pool:
            answers = []
            for answer in pool.map(answered, questions):
                answers.append(answer)
                print(answer, flush=True)
    columns = ("zone", "g/kWh", "forecast", "saved %", "mix %", "cascade %", "over mix %", "accuracy", "target",
               "lowest day", "above SLO %", "changes", "turned")  # fmt: skip
    rows = [
        (a.zone, f"{a.mean_g_per_kwh:.0f}", a.forecast, f"{100 * a.saved:.1f}", f"{100 * a.mix_saved:.1f}",
         f"{100 * a.cascade_saved:.1f}", f"{100 * a.over_mix:+.1f}", f"{a.accuracy:.3f}", f"{a.target:.3f}",
         f"{a.lowest_day:.3f}", f"{100 * a.above_slo:.1f}", a.changes, a.turned)
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
    machine = world.cpu()
    rules = Rules(look_s=question.look_s, noise=False, forecast=forecasts.parse(question.forecast))
    own = World(machine, families.load(question.family, machine.shapes), rules)
    (trace,) = world.traces([question.trace], "", _fitting(question))
    load = loads.parse(question.load)
    policy = ControllerConfig().policy
    run = play(Case(own, trace, load, Scheme("default", policy, cascade=None), 0))
    accuracy = run.sums.accuracy
    g_per_kwh = sum(step.rows * step.g_per_kwh for step in run.steps) / run.sums.rows
    grams_per_j = g_per_kwh * rules.pue / JOULES_PER_KWH
    mine = run.sums.active_grams / run.sums.rows
    base = _joules(own, trace, load, Scheme("base", "base")) * grams_per_j
    mix = _joules(own, trace, load, _fixed(accuracy, cascade=False)) * grams_per_j
    cascade = _joules(own, trace, load, _fixed(accuracy, cascade=None)) * grams_per_j
    return Answer(
        zone=trace.name,
        forecast=question.forecast,
        mean_g_per_kwh=g_per_kwh,
        saved=1.0 - mine / base,
        mix_saved=1.0 - mix / base,
        cascade_saved=1.0 - cascade / base,
        over_mix=1.0 - mine / mix,
        accuracy=accuracy,
        target=max(accuracies(own.known.profile).values()) - ServerConfig().families[0].accuracy_budget,
        lowest_day=_lowest_day(run),
        above_slo=run.sums.above,
        changes=run.sums.changes,
        turned=run.sums.turned,
    )


def _fitting(question: Question) -> float:
    """Return the hours to play: those asked for, or as many whole ones as the trace has."""
    source = TraceSource(Path(question.trace))
    return min(question.hours, math.floor((source.end_s - source.start_s) / HOUR_S))


def _fixed(accuracy: float, *, cascade: bool | None) -> Scheme:
    """Return the most frugal deployment of at least `accuracy` percent, whatever the grid does."""
    return Scheme("fixed", "objective", form="floor", accuracy_floor=accuracy - 1e-3, cascade=cascade)


def _joules(own: World, trace: Trace, load: loads.Load, scheme: Scheme) -> float:
    """Return active joules a row of a deployment that does not change; its first hour is played."""
    run = play(Case(own, replace(trace, hours=2.0), load, scheme, 0))
    return run.steps[-1].active_j / run.steps[-1].rows


def _lowest_day(run: Run) -> float:
    """Return the least accuracy (percent) of a whole day, counted from the first step on."""
    each = round(DAY * HOUR_S / run.steps[0].seconds)
    days = [run.steps[at : at + each] for at in range(0, len(run.steps) - each + 1, each)]
    return min(
        (sum(s.rows * s.accuracy for s in day) / sum(s.rows for s in day) for day in days), default=run.sums.accuracy
    )


if __name__ == "__main__":
    raise SystemExit(main())
