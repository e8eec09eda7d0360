"""What each mechanism of the controller is for: days without one of them, beside the same days with all of them.

    python -m bench.ablation [--trace FILE] [--profile FILE] [--only "tie band" ...] [--seeds 3] [--json FILE]

The production controller runs in virtual time, as in `bench.week`, through six scenarios (`SCENARIOS`).  `MECHANISMS`
names what is replaced by nothing, one at a time and in this process only; the product has no such switches.

The rows that arrive are noisy, and so a run without a mechanism differs from the run with it by chance as well.  Each
figure therefore stands beside its spread, the highest of the seeds less the lowest, of the runs with every mechanism.

*Grams* are active grams a row at equal accuracy, in percent more than with the mechanism.  A point of accuracy is worth
what the same scenario says of it: it is played with two accuracy budgets, `BUDGETS`.  *Worst ten minutes* are those in
which most rows are late, in percent of them.  *Above* counts the steps in which more than 5 % of the rows are late.
*Minded* counts what the judge of `bench.week` minds: changes for the worse, and steps above the SLO that a plan would
have met.

A mechanism is *identical* in a scenario if no digit differs: by the first seed, if seeds differ by noise alone, which
is then the only one that is played without it.  It *shows* if one of the figures is worse
by more than its spread.  Simulated workers neither die nor fail to start, so what answers that cannot show here.

Every figure is simulated.  Exits with 0 whatever comes out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from bench import week
from bench.common import show, write_json
from clover.control import controller
from clover.control.plan import executor, gate
from clover.control.plan.ways import Way, WayFinder
from clover.control.state import arrivals
from clover.control.state.learning import Learning
from clover.control.state.slo.pressure import SloPressure
from clover.control.state.triggers import Triggers
from clover.devices.cpu import CpuDevice
from clover.planning.budget import forecast
from clover.planning.model.margin import AccuracySample
from clover.planning.search import configurations
from clover.research.simulate import families, forecasts, loads, replay, world
from clover.research.simulate.records import ReplayStep, RunInput
from clover.research.simulate.surprises import NONE, LostDevice, Surprises
from clover.research.simulate.world import Case, Rules, World
from clover.types import Reading

BUDGETS = (0.5, 0.6)
"""Points below the best variant: the two, the first of them the default, that say what a point of accuracy is worth."""
PROCESSES = 2
_LEAST_POINTS = 0.02
_DUST = 1e-9
_WORST_S = 600.0


# --- the scenarios ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What is played.  `gpus`: 0 for two cores; `square`: the grid is a square wave instead of the trace."""

    name: str
    load: str
    gpus: int = 2
    hours: float = 24.0
    look_s: float = 60.0
    policy: str = "budget"
    surprises: Surprises = NONE
    square: bool = False

    @property
    def worlds(self) -> Sequence[int]:
        """The seeds that differ by more than noise: each draws a wrong profile of its own."""
        return range(100) if self.surprises.misprofiled > 0.0 else (0,)


_LOST = (LostDevice(0, 3600.0, 3600.0), LostDevice(1, 3600.0, 3600.0))
SCENARIOS = (
    Scenario("cores", "diurnal:0.6", gpus=0, look_s=300.0),
    Scenario("GPUs", "diurnal:0.5", hours=30.0, look_s=300.0),
    Scenario("bursts", "bursts:0.45", hours=1.0, look_s=10.0),
    Scenario("lost GPUs", "constant:0.7", gpus=3, hours=2.5, surprises=Surprises(lost=_LOST)),
    Scenario("wrong profile", "constant:0.6", hours=1.0, look_s=10.0, surprises=Surprises(misprofiled=0.5)),
    Scenario("square wave", "constant:0.5", hours=5.0, policy="objective", square=True),
)


class SquareWave:
    """A carbon source (`clover.interfaces.CarbonSource`): a quarter of an hour of 150 g/kWh, one of 400, and so on."""

    name = "square wave"
    step_s = 900.0
    remote = False

    async def read(self, grid_s: float) -> Reading:
        """Return the intensity at `grid_s`."""
        step = grid_s // self.step_s
        g_per_kwh = 400.0 if step % 2 else 150.0
        return Reading(g_per_kwh=g_per_kwh, at_s=step * self.step_s, provider=self.name, method="synthetic")

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return no forecast."""
        return []


@dataclass(frozen=True)
class Job:
    """One run.  `without`: a mechanism, "" for none; `budget`: an accuracy budget to hold to instead of the policy."""

    scenario: Scenario
    seed: int
    without: str = ""
    budget: float | None = None


def case_of(job: Job, trace_name: str, profile: str) -> Case:
    """Return the run of `job` on the intensities of `trace_name`; `profile` is the family of the two cores."""
    scenario = job.scenario
    if scenario.gpus:
        machine = world.gpus(scenario.gpus)
        known = families.load("efficientnet", machine.shapes)
    else:
        shape = CpuDevice((0, 1)).shape()
        machine = world.SimulatedMachine((shape,), 10.0, "2 CPU cores")
        known = families.load(profile, machine.shapes)
    kind = forecasts.Forecast("seasonal")
    rules = Rules(look_s=scenario.look_s, load_s=10.0, forecast=kind, surprises=scenario.surprises)
    trace = world.traces((trace_name,), "", scenario.hours)[0]
    if scenario.square:
        about = RunInput(name=SquareWave.name, kind="trace", sha256="", about="synthetic: a square wave")
        trace = replace(trace, name=SquareWave.name, source=SquareWave(), about=about)
    scheme = world.scheme(scenario.policy if job.budget is None else "budget")
    scheme = replace(scheme, accuracy_budget=job.budget)
    return Case(World(machine, known, rules), trace, loads.parse(scenario.load), scheme, job.seed)


# --- the mechanisms ---------------------------------------------------------------------------------------------------


async def _quickest(self: WayFinder, target: Any) -> Way:
    """Stand in for `WayFinder.best`: the way of the fewest steps, unjudged."""
    ways = self._ways(target)
    return Way(transition=ways.quick(), shapes=tuple(ways.devices), routing={})


_check = Triggers.check


def _blind(self: Triggers, seen: Any, *, follows_grid: bool = True) -> str:
    """Stand in for `Triggers.check`: the intensity is no reason to plan."""
    return _check(self, seen, follows_grid=False)


async def _unverified(*_: object) -> bool:
    """Stand in for `verify`: nothing is rolled back."""
    return False


_LEARNING = (Learning, "observe", lambda *_: False)
_PRESSURE = (SloPressure, "observe", lambda *_: "")
MECHANISMS: Mapping[str, Sequence[tuple[Any, str, Any]]] = {
    "rate margin": ((arrivals, "SURE", 0.0),),
    "ways": ((WayFinder, "best", _quickest),),
    "capacity floor": ((gate, "below_floor", lambda *_: None), (executor, "below_floor", lambda *_: None)),
    "pay-back": ((gate, "pays_for_loss", lambda *_, **__: False),),
    "tie band": ((configurations, "HYSTERESIS", 0.0),),
    "intensity trigger": ((Triggers, "check", _blind),),
    "seasonal forecast": ((forecast, "forecast", lambda _, now, count: np.full(count, now)),),
    "accuracy margin": (
        (AccuracySample, "margin", lambda *_, **__: 0.0),
        (AccuracySample, "keep_certain", lambda _, profile, *__, **___: profile),
    ),
    "learning": (_LEARNING,),
    "SLO pressure": (_PRESSURE,),
    "learning, SLO pressure": (_LEARNING, _PRESSURE),
    "verification": ((controller, "verify", _unverified),),
    "noise margin": ((gate, "within_noise", lambda *_: None),),
}
"""By name, what is replaced by what."""


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one run came to.  `grams`: active micrograms a row; `worst`: percent late in the worst ten minutes."""

    grams: float
    accuracy: float
    worst: float
    above: int
    minded: int
    changes: int


def play(job: Job, trace: str, profile: str) -> Outcome:
    """Play `job` without its mechanism, which is gone from this process for good."""
    for owner, name, nothing in MECHANISMS.get(job.without, ()):
        setattr(owner, name, nothing)
    case = case_of(job, trace, profile)
    judge = week.Judge(case)
    run = replay.play(case, judge)
    sums, look_s = run.sums, case.world.rules.look_s
    return Outcome(
        grams=1e6 * sums.active_grams / sums.rows,
        accuracy=sums.accuracy,
        worst=worst_late(run.steps, round(_WORST_S / look_s)),
        above=round(sums.above * len(run.steps)),
        minded=len(judge.found),
        changes=sums.changes,
    )


def worst_late(steps: Sequence[ReplayStep], width: int) -> float:
    """Return the percentage of late rows in the worst `width` steps in a row."""
    rows = np.array([step.rows for step in steps])
    late = np.array([step.rows * step.late for step in steps])
    window = np.ones(min(width, len(steps)))
    found = np.convolve(late, window, "valid") / np.maximum(np.convolve(rows, window, "valid"), 1e-12)
    return 100.0 * float(found.max())


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One figure without a mechanism, less the same with it: the mean over the seeds, and the `spread` with it."""

    change: float
    spread: float
    scenario: str

    @property
    def beyond(self) -> float:
        """By how much it is worse than the spread explains; 0 or less: it is not."""
        return self.change - self.spread

    @property
    def words(self) -> str:
        """The figure for a table."""
        return f"{self.change:+.2f} (spread {self.spread:.2f}, {self.scenario})"


FIGURES = ("grams", "worst", "above", "minded")


def figures(
    scenario: str, base: Sequence[Outcome], without: Sequence[Outcome], slopes: Sequence[float]
) -> dict[str, Figure]:
    """Return the figures of one scenario, of runs of the same seeds.  `slopes`: by which part of its grams a row is
    dearer for a point of accuracy, by seed."""
    even = [
        100.0 * (own.grams / was.grams - 1.0 - slope * (own.accuracy - was.accuracy))
        for own, was, slope in zip(without, base, slopes, strict=True)
    ]
    grams, accuracy = mean(was.grams for was in base), mean(was.accuracy for was in base)
    level = [
        100.0 * (was.grams / grams - slope * (was.accuracy - accuracy)) for was, slope in zip(base, slopes, strict=True)
    ]
    found = {"grams": Figure(mean(even), max(level) - min(level), scenario)}
    for name in FIGURES[1:]:
        was, own = ([float(getattr(item, name)) for item in items] for items in (base, without))
        found[name] = Figure(mean(own) - mean(was), max(was) - min(was), scenario)
    return found


def slope_of(dear: Outcome, cheap: Outcome) -> float:
    """Return by which part of its grams a row is dearer for a point of accuracy; 0 if both are as accurate."""
    points = dear.accuracy - cheap.accuracy
    return (dear.grams / cheap.grams - 1.0) / points if points > _LEAST_POINTS else 0.0


def worst_of(found: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Return each figure of the scenario in which it is worst, of those beyond their spread if any is."""

    def key(figure: Figure) -> tuple[bool, float]:
        return figure.beyond > _DUST, figure.change

    return {name: max((item[name] for item in found), key=key) for name in FIGURES}


def verdict(identical: int, worst: Mapping[str, Figure]) -> str:
    """Return what a mechanism's worst figures say; `identical` scenarios show no difference in any digit."""
    if identical == len(SCENARIOS):
        return "identical"
    shown = [name for name in FIGURES if worst[name].beyond > _DUST]
    return f"shows: {', '.join(shown)}" if shown else "within the spread"


# --- all of it --------------------------------------------------------------------------------------------------------


def ranges(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the least and the most of each figure, for a table."""
    each = zip(*(vars(outcome).values() for outcome in outcomes), strict=True)
    return [f"{min(values):.5g} to {max(values):.5g}" for values in each]


def main(argv: Sequence[str] | None = None) -> int:
    """Play every scenario with and without each mechanism, and print what each is for."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--trace", default="synthetic", help="a file of intensities, or synthetic: a duck curve by formula [synthetic]")
    add("--profile", default="fashion", help="the family of the two cores: measured here, or a profile [fashion]")
    add("--only", nargs="*", choices=tuple(MECHANISMS), default=tuple(MECHANISMS), help="these mechanisms only [all]")
    add("--seeds", type=int, default=3, help="draws of the noise and of the wrong profile [3]")
    add("--json", metavar="FILE", default="", help="write figures there")
    given = parser.parse_args(argv)
    began, seeds, done = time.perf_counter(), range(given.seeds), dict[Job, Outcome]()
    plain = [Job(scenario, seed) for scenario in SCENARIOS for seed in seeds]
    bought = [replace(job, budget=budget) for budget in BUDGETS for job in plain if job.seed in job.scenario.worlds]
    first = [replace(job, without=name) for name in given.only for job in plain if job.seed in job.scenario.worlds]
    with multiprocessing.get_context("fork").Pool(PROCESSES, maxtasksperchild=1) as pool:

        def finish(jobs: Sequence[Job]) -> None:
            pending = [(job, pool.apply_async(play, (job, given.trace, given.profile))) for job in jobs]
            for job, outcome in pending:
                done[job] = outcome.get()
                what = job.without or ("all" if job.budget is None else f"budget {job.budget:g}")
                print(f"{job.scenario.name}, seed {job.seed}, {what}: {done[job]}", file=sys.stderr)

        finish([*plain, *bought, *first])
        differs = {(job.without, job.scenario) for job in first if done[job] != done[replace(job, without="")]}
        every = [replace(job, without=name) for name in given.only for job in plain]
        finish([job for job in every if job not in done and (job.without, job.scenario) in differs])
    for job in every:  # what chance alone sets apart is not played again where the mechanism changes nothing
        done.setdefault(job, done[replace(job, without="")])

    def played(scenario: Scenario, without: str = "", budget: float | None = None) -> list[Outcome]:
        alone = budget is not None and len(scenario.worlds) == 1
        return [done[Job(scenario, 0 if alone else seed, without, budget)] for seed in seeds]

    slopes = {
        scenario.name: [slope_of(*pair) for pair in zip(*(played(scenario, "", b) for b in BUDGETS), strict=True)]
        for scenario in SCENARIOS
    }
    with_all = [
        (scenario.name, *ranges(played(scenario)), 100.0 * mean(slopes[scenario.name])) for scenario in SCENARIOS
    ]
    columns = ["scenario", "active ug a row", "accuracy, %", "worst 10 min, % late", "above", "minded", "changes"]
    show(f"with every mechanism, {given.seeds} seeds, simulated", [*columns, "a point, %"], with_all)
    without_one = []
    for name in given.only:
        pairs = [(scenario.name, played(scenario), played(scenario, name)) for scenario in SCENARIOS]
        same = sum(base == without for _, base, without in pairs)
        worst = worst_of([figures(where, base, without, slopes[where]) for where, base, without in pairs])
        without_one.append((name, same, *(worst[figure].words for figure in FIGURES), verdict(same, worst)))
    columns = ["without", "identical", "grams, %", "worst 10 min, points", "above, steps", "minded", "verdict"]
    show(f"without one, where it is worst: {time.perf_counter() - began:.0f} s, simulated", columns, without_one)
    runs = [{**asdict(job), "scenario": job.scenario.name, **asdict(outcome)} for job, outcome in done.items()]
    write_json(given.json, {"runs": runs, "slopes": slopes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
