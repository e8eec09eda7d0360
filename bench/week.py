"""A week of the production controller that is wrong about its world, judged by what is true of it.

    python -m bench.week [--family efficientnet] [--gpus 2] [--days 7] [--look-s 60] [--seeds 1] [--trace FILE]
                         [--only load+device ...]

The controller, its planner and its gate run in virtual time (`clover.research.simulate.replay`) on simulated GPUs,
under every combination of

    profile    times and joules of each variant differ from the profile by up to 50 %, drawn by the seed
    forecast   each hour of the intensity is foretold with a normal error of 50 %
    load       2.5 times the load in every third hour, and Poisson noise in what is counted
    device     one of the GPUs is lost for three hours on each day

A judge looks on who knows the truth.  What a look changed is *worse* if what ran before it met the targets and what
runs after it does not, or if it costs more joules at no more accuracy (by more than `SLACK`).  A step is *late* if its
p95 is above the SLO although the best plan of the truth meets it on the devices that are left.  A late step is said to
be *on the way* if workers were exchanged during it, and *barred* if the capacity floor forbade the way out (an operator
may lift it, or a change may pay for itself: `PAYBACK_S` of the planner): these count like any other.

No controller foresees that the load rises, a device is lost, or the run begins.  The step in which that happens is
*unforeseen* if it is above the SLO: whoever looks a second later and needs ten seconds to start a worker has served a
fifth of its rows with what ran.  Those that follow within `RECOVER_S` are *recovering*, for which a controller may need
a second count of the load, or a second change.  Both are counted, and are no reason to fail.

Every figure is simulated; the emulated devices' paces are a table's.  Exits with 1 if a run has a worse change or a
late step after `LEARNT_S`, in which the controller may learn what its profile does not say.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.common import show, write_json
from clover.config import FamilyConfig
from clover.control.state.family import default_targets
from clover.planning.model.objective import HYSTERESIS
from clover.policies.objective import ObjectivePolicy
from clover.research.simulate import families, forecasts, loads, replay, world
from clover.research.simulate.fleet import Serving
from clover.research.simulate.flow import Flow
from clover.research.simulate.records import ReplayStep, Run
from clover.research.simulate.surprises import LostDevice, Surprises
from clover.research.simulate.world import Case, Rules, World
from clover.types import ObjectiveConfig, Reading, State

SLACK = HYSTERESIS
RECOVER_S = 120.0
LEARNT_S = 900.0
_LEAST_POINTS = 5e-3
_WRONG = 0.5
_FORECAST = 0.5
_DAY_S = 86_400.0
KINDS = ("worse", "late", "on the way", "barred")
EXCUSED = ("unforeseen", "recovering")
SITUATIONS = ("profile", "forecast", "load", "device")


@dataclass
class Finding:
    """One thing that the judge minds, `at_s` seconds after the start."""

    at_s: float
    kind: str
    words: str


@dataclass
class Judge:
    """Implements `clover.research.simulate.replay.Judge`: knows how workers really serve, and minds what is worse or
    late."""

    case: Case
    found: list[Finding] = field(default_factory=list)
    unforeseen: list[Finding] = field(default_factory=list)
    """Steps above the SLO in which something happened that no controller foresees, or soon after."""
    changes: int = 0
    _before: Serving | None = None
    _after: Serving | None = None
    _barred: bool = False
    _risen_s: float = 0.0
    _rate: float = 0.0
    _lost: tuple[str, ...] = ()
    _feasible: dict[tuple[float, tuple[str, ...]], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = self.case.world
        config = FamilyConfig(family=world.known.profile.family, slo_ms=self.case.slo_ms, resident="off")
        self.targets = default_targets(world.known.profile, config, self.case.settings)
        self.model = world.model(self.targets.slo_ms, self.case.seed)
        self.truth = world.truth(self.case.seed)

    def record_routing(self, at_s: float, before: Serving, after: Serving) -> None:
        """Note what the look under way changes."""
        self._before, self._after = self._before or before, after

    def _compare(self, at_s: float, before: Serving, after: Serving) -> None:
        """Compare what serves now with what served."""
        self.changes += 1
        if not before.configuration or not after.configuration:
            return
        was = self.model.flow(before.configuration, before.routing, before.rate)
        now = self.model.flow(after.configuration, after.routing, after.rate)
        words = f"{_words(before)} -> {_words(after)} at {after.rate:.0f} rows/s"
        if self._meets(was) and not self._meets(now):
            figures = f"p95 {was.p95_ms:.1f} -> {now.p95_ms:.1f} ms, accuracy {was.accuracy:.2f} -> {now.accuracy:.2f}"
            self.found.append(Finding(at_s, "worse", f"{words}: breaks a target ({figures})"))
        elif self._meets(was) and now.active_w > was.active_w * (1.0 + SLACK) and now.accuracy <= was.accuracy:
            figures = f"{was.active_w:.1f} -> {now.active_w:.1f} W at {was.accuracy:.2f} -> {now.accuracy:.2f} %"
            self.found.append(Finding(at_s, "worse", f"{words}: costs more for nothing ({figures})"))

    def record_step(self, at_s: float, step: ReplayStep, serving: Serving, lost: Sequence[str]) -> None:
        """Compare what the step changed, and mind a step above the SLO if a plan would have met it."""
        before, after, self._before, self._after = self._before, self._after, None, None
        if (
            before is not None
            and after is not None
            and (before.configuration, before.routing)
            != (
                after.configuration,
                after.routing,
            )
        ):
            self._compare(at_s - step.seconds, before, after)
        if step.reason:
            self._barred = "below the capacity floor" in step.reason
        if step.rate > 1.1 * self._rate or set(lost) - set(self._lost):
            self._risen_s = at_s - step.seconds
        self._rate, self._lost = step.rate, tuple(lost)
        if step.p95_ms <= self.targets.slo_ms or not self._possible(step.rate, self._lost):
            return
        words = f"p95 {step.p95_ms:.1f} of {self.targets.slo_ms:.1f} ms at {step.rate:.0f} rows/s, {_words(serving)}"
        since_s = at_s - self._risen_s
        if since_s <= RECOVER_S + step.seconds:
            kind = "unforeseen" if since_s < 1.5 * step.seconds else "recovering"
            self.unforeseen.append(Finding(at_s, kind, words))
            return
        kind = "on the way" if step.changes else "barred" if self._barred else "late"
        self.found.append(Finding(at_s, kind, words))

    def _meets(self, flow: Flow) -> bool:
        served = flow.late < 1.0 and flow.p95_ms <= self.targets.slo_ms
        return served and flow.accuracy >= self.targets.accuracy_floor - _LEAST_POINTS

    def _possible(self, rate: float, lost: tuple[str, ...]) -> bool:
        """Return whether the best plan of the truth meets the targets at `rate` on the devices that are left."""
        if (rate, lost) not in self._feasible:
            world = self.case.world
            shapes = tuple(shape for shape in world.machine.shapes if shape.device not in lost)
            objective = ObjectiveConfig(
                form="floor",
                slo_ms=self.targets.slo_ms,
                accuracy_floor=self.targets.accuracy_floor,
                lam=None,
                reference_g_per_kwh=250.0,
            )
            state = State(
                family=world.known.profile.family,
                grid_s=0.0,
                intensity=Reading(g_per_kwh=250.0, at_s=0.0, provider="none"),
                arrival_rate=rate,
                p95_ms=None,
                queue_rows=0,
                objective=objective,
                profile=self.truth,
                devices=shapes,
                running=(),
                routing=None,
            )
            plan = ObjectivePolicy().propose(state)
            self._feasible[rate, lost] = plan.feasible
        return self._feasible[rate, lost]


def _words(serving: Serving) -> str:
    named = " + ".join(group.words for group in serving.configuration)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in sorted(serving.routing.shares.items()))
    return f"{named} ({' > '.join(serving.routing.chain) or shares})"


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is played."""

    family: str
    gpus: int
    days: float
    look_s: float
    policy: str
    seed: int
    level: float = 0.35
    trace: str = "synthetic"


def case_of(options: Options, situations: Sequence[str]) -> Case:
    """Return the week under `situations`."""
    machine = world.gpus(options.gpus)
    lost = tuple(LostDevice(0, (day + 0.4) * _DAY_S, 3.0 * 3600.0) for day in range(math.ceil(options.days)))
    surprises = Surprises(
        misprofiled=_WRONG if "profile" in situations else 0.0, lost=lost if "device" in situations else ()
    )
    rules = Rules(
        look_s=options.look_s,
        load_s=10.0,
        forecast=forecasts.Forecast("error", _FORECAST) if "forecast" in situations else forecasts.PERFECT,
        noise="load" in situations,
        surprises=surprises,
    )
    load = f"{'surges' if 'load' in situations else 'constant'}:{options.level}"
    own = World(machine, families.load(options.family, machine.shapes), rules)
    trace = world.traces((options.trace,), "", 24.0 * options.days)[0]
    return Case(own, trace, loads.parse(load), world.scheme(options.policy), options.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Play every combination, print a table of what the judge found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.week", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--family", default="efficientnet", help="one of the paper's families [efficientnet]")
    add("--policy", default="budget", help="as in simulate --policies [budget]")
    add("--gpus", type=int, default=2, help="A100s with MIG, simulated [2]")
    add("--days", type=float, default=7.0, help="days that are played [7]")
    add("--trace", default="synthetic", help="a file of intensities, or synthetic: a duck curve by formula [synthetic]")
    add("--look-s", type=float, default=60.0, help="grid seconds between looks of the controller [60]")
    add("--seeds", type=int, default=1, help="other draws of profile, forecast and noise [1]")
    only = "play only these combinations, as load+device; none is what is wrong about nothing [all]"
    add("--only", nargs="+", metavar="A+B", type=parsed, help=only)
    add("--show", type=int, default=3, help="findings that are printed of each run [3]")
    add("--json", metavar="FILE", default="", help="write figures there")
    given = parser.parse_args(argv)
    rows, documents, failed = [], [], False
    for situations in given.only or _combinations():
        for seed in range(given.seeds):
            began = time.perf_counter()
            options = Options(given.family, given.gpus, given.days, given.look_s, given.policy, seed, trace=given.trace)
            case = case_of(options, situations)
            judge = Judge(case)
            run = replay.play(case, judge)
            learnt = [item for item in judge.found if item.at_s > LEARNT_S or "profile" not in situations]
            failed = failed or bool(learnt)
            name = " + ".join(situations) or "none"
            count = {kind: sum(item.kind == kind for item in judge.found) for kind in KINDS}
            sums = run.sums
            served = (100.0 * sums.late, _hourly(run), sums.active_j / 1e6, sums.active_grams, sums.accuracy)
            excused = tuple(sum(item.kind == kind for item in judge.unforeseen) for kind in EXCUSED)
            rows.append((name, seed, judge.changes, run.rollbacks, *count.values(), len(learnt), *excused, *served))
            documents.append(
                {
                    "situations": situations,
                    "seed": seed,
                    "found": [vars(item) for item in judge.found],
                    "unforeseen": [vars(item) for item in judge.unforeseen],
                    "active_j": sums.active_j,
                    "active_grams": sums.active_grams,
                    "accuracy": sums.accuracy,
                    "rows": sums.rows,
                }
            )
            print(f"{name}, seed {seed}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
            for item in learnt[: given.show]:
                print(f"    {item.at_s / 3600.0:.2f} h, {item.kind}: {item.words}", file=sys.stderr)
    columns = (
        *("wrong about", "seed", "changes", "rolled back", *KINDS, "once learnt", *EXCUSED),
        *("late rows, %", "conf./h", "active MJ", "active g", "accuracy, %"),
    )
    show(f"{given.days:g} days of {given.family} on {given.gpus} x A100, simulated", columns, rows)
    write_json(given.json, {"runs": documents})
    return int(failed)


def _combinations() -> list[tuple[str, ...]]:
    return [names for count in range(len(SITUATIONS) + 1) for names in itertools.combinations(SITUATIONS, count)]


def parsed(text: str) -> tuple[str, ...]:
    """Return the situations that `text` names; ArgumentTypeError if it names another."""
    names = [] if text == "none" else text.split("+")
    unknown = sorted(set(names) - set(SITUATIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(SITUATIONS)}")
    return tuple(name for name in SITUATIONS if name in names)


def _hourly(run: Run) -> float:
    return run.sums.changes / max(sum(step.seconds for step in run.steps) / 3600.0, 1e-9)


if __name__ == "__main__":
    sys.exit(main())
