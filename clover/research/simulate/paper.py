"""`--scenario paper`: the SC'23 evaluation again, twice over.

Three families on ten A100s, 48 hours of each trace that is given, BASE at 0.6 of its capacity; BASE, CO2OPT, BLOVER,
CLOVER, ORACLE and our objective, under the paper's f with L = 0.1 (the artifact's default), no accuracy floor.  The SLO
is BASE's p95.  The rate is known exactly, as in the paper.  Policies that draw at random are played once for each seed.

**Equal load.**  Every policy serves the same rows on the same ten GPUs, all of them awake.

**The artifact's accounting.**  There BASE is measured at a fifth of the load per GPU that the others then serve.  Its
idle power falls on a fifth of the requests, so that every scheme seems to save what is really consolidation; and its
p95, the SLO, is that of nearly idle GPUs.

**At the accuracy of another** (named in brackets) stand beside them

 - `budget`: our accuracy budget over the 48 hours, at the loss that CLOVER or our objective realised.  It draws
   nothing, so that "the same seeds" means: for each seed of CLOVER one run at the loss of that very run;
 - `budget, parked` and `budget, released`: the same at CLOVER's mean loss, where a GPU without workers draws
   `PARKED_W` or nothing;
 - `budget+cascade`: the same budget at CLOVER's mean loss with cascades, by a confidence that is modelled, not measured
   (`parametric`); no limit is known for it;
 - `static >= A`: the best fixed mix that reaches the accuracy, which saves without a carbon-aware controller; at
   CLOVER's also with GPUs released;
 - `base, right-sized`: BASE on only as many GPUs as its load needs under the same SLO, the others released.  It is the
   baseline for operators who would switch off idle GPUs anyway.

Cells (a family on a trace) are independent, so `jobs` processes may share them.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from clover.errors import ConfigError
from clover.planning.model.problem import base_capacity, services_of
from clover.planning.model.queueing import estimate
from clover.research.simulate import families, world
from clover.research.simulate.loads import Load
from clover.research.simulate.parametric import Confidence
from clover.research.simulate.records import Accounting, Run, RunInput, merged
from clover.research.simulate.work import OnProgress, execute
from clover.research.simulate.world import Case, Rules, Scheme, Trace, World

POLICIES = ("base", "co2opt", "blover", "clover", "oracle", "objective")
LAMBDA = 0.1
LAMBDAS = (0.02, 0.05)
PART = 0.2
"""The part of the load per GPU at which the artifact measures BASE."""
SEEDS = 20
PARKED_W = 45.0
FITTED = "base, right-sized"
_DRAWING = ("blover", "clover")
_MATCHED = ("clover", "objective")
_GPUS, _HOURS, _LOOK_S = 10, 48.0, 900.0


@dataclass(frozen=True)
class PaperOptions:
    """What the command line asks of the scenario; None and empty values take the scenario's own."""

    names: Sequence[str]
    traces: Sequence[str]
    lam: float | None
    gpus: int | None
    hours: float | None
    start: str
    seeds: int
    load: Load
    rules: Rules
    quick: bool
    confidence: Confidence | None = None


class Paper:
    """The scenario: its runs, and the notes that a report prints beside them."""

    def __init__(self, asked: PaperOptions) -> None:
        load, rules, names = asked.load, asked.rules, asked.names
        if load.kind != "constant":
            raise ConfigError("--scenario paper plays a constant load, as constant:0.6")
        unknown = [name for name in names if name not in families.names()]
        if unknown:
            raise ConfigError(f"--scenario paper knows {', '.join(families.names())}, not {', '.join(unknown)}")
        self._asked = asked
        machine = world.gpus(asked.gpus if asked.gpus is not None else 2 if asked.quick else _GPUS)
        hours = asked.hours if asked.hours is not None else 6.0 if asked.quick else _HOURS
        traces = world.traces(asked.traces, asked.start, hours)[: 1 if asked.quick else None]
        self._parked_w = PARKED_W if rules.asleep_w is None else rules.asleep_w
        look_s = rules.look_s
        if look_s == Rules.look_s:
            look_s = min(_LOOK_S, *(trace.source.step_s for trace in traces))
        self._rules = replace(
            rules,
            form="paper",
            lam=LAMBDA if asked.lam is None else asked.lam,
            accuracy_floor=0.0 if rules.accuracy_floor is None else rules.accuracy_floor,
            accuracy_margin=0.0,
            look_s=look_s,
            budget_horizon_s=hours * 3600.0,
            asleep_w=None,
            noise=False,
        )
        self._load = load
        self._seeds = asked.seeds
        known = [families.load(name, machine.shapes, asked.confidence) for name in (names or families.names())]
        worlds = [World(machine, item, self._rules) for item in known]
        self.cells = [(own, trace) for own in worlds for trace in traces]
        self.inputs: list[RunInput] = world.inputs(worlds, traces, load)
        drawn, once = len(_DRAWING) * asked.seeds, len(POLICIES) - len(_DRAWING)
        # In both accountings: what is drawn, the others, budgets, GPUs that sleep, cascades, BASE right-sized.  Then
        # what only equal load has.
        both = 2 * (drawn + once + asked.seeds + 1 + 2 + (asked.confidence is not None) + 1)
        self.count = len(self.cells) * (both + len(LAMBDAS) + len(_MATCHED) + 1)
        self.labels = (
            f"scenario paper: {len(machine.shapes)} GPUs, {machine.idle_w:g} W idle each; L = {self._rules.lam:g}",
            f"GPUs are awake; parked or released, one without workers draws {self._parked_w:g} W or nothing",
            f"equal load: every policy at {load.level:g} of BASE's capacity; SLO = BASE's p95 there",
            f"artifact's accounting: BASE at {PART * load.level:g} of its capacity, the others at {load.level:g}",
            "the artifact's SLO is BASE's p95 at that lower load; most of what is saved by it is consolidation",
            f"budget: over {hours:g} h, at the loss that the policy in brackets realised, seed by seed",
            f"parked, released: at its mean loss; forecast of all budgets: {rules.forecast.name}",
            "static >= A: the best fixed mix found that reaches A, the accuracy of the policy in brackets",
            f"{FITTED}: BASE on as few GPUs as keep the SLO and the utilisation limit, the others released",
            "policy@L: the same policy at that lambda",
            *((f"budget+cascade: {asked.confidence.about}",) if asked.confidence is not None else ()),
        )

    def play(self, on_progress: OnProgress, jobs: int = 1) -> list[Run]:
        """Play all runs, cell by cell, in `jobs` processes."""
        if jobs == 1:
            return [run for at in range(len(self.cells)) for run in self.cell(at, on_progress)]
        # Spawned, not forked: the calling process may have threads.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            all_runs = []
            for at, runs in enumerate(pool.map(partial(_cell, self._asked), range(len(self.cells)))):
                all_runs += runs
                on_progress(*self.cells[at], len(runs))
        return all_runs

    def cell(self, at: int, on_progress: OnProgress = lambda cell, trace, number: None) -> list[Run]:
        """Return the runs of one cell; only the first run of each policy keeps its steps, with equal ones merged."""
        cell, trace = self.cells[at]
        return [
            shortened(run)
            for accounting in ("equal", "artifact")
            for run in self._accounted(cell, trace, accounting, on_progress)
        ]

    def _accounted(self, world: World, trace: Trace, accounting: Accounting, on_progress: OnProgress) -> Iterator[Run]:
        equal = accounting == "equal"
        light = self._load if equal else self._load.scaled(PART)
        slo_ms = self.slo_ms(world, light)

        def played(schemes: Sequence[Scheme], load: Load = self._load, seeds: Sequence[int] | None = None) -> list[Run]:
            cases = [
                Case(world, trace, load, scheme, seed, accounting, slo_ms)
                for scheme in schemes
                for seed in (seeds or range(self._seeds if scheme.policy in _DRAWING else 1))
            ]
            return execute(cases, on_progress)

        base = played([Scheme("base", "base"), Scheme(FITTED, "base:fitted", asleep_w=0.0)], light)
        runs = played([Scheme(name, name) for name in POLICIES[1:]])
        yield from (*base, *runs)
        for name in _MATCHED:
            given = [run for run in runs if run.policy == name]
            losses = {run.seed: base[0].sums.accuracy - run.sums.accuracy for run in given}
            for seed, loss in losses.items():
                yield from played([budget(name, loss)], seeds=[seed])
            mean = sum(losses.values()) / len(losses)
            if name == "clover":
                yield from played([budget(name, mean, self._parked_w, "parked"), budget(name, mean, 0.0, "released")])
                if self._asked.confidence is not None:
                    yield from played([cascaded(name, mean)])
            if equal:
                yield from played([matched(name, base[0].sums.accuracy - mean)])
                if name == "clover":
                    yield from played([matched(name, base[0].sums.accuracy - mean, released=True)])
        if equal:
            yield from played([Scheme(f"objective@{lam:g}", "objective", lam=lam) for lam in LAMBDAS])

    def slo_ms(self, world: World, load: Load) -> float:
        """Return the SLO (ms): BASE's p95 at `load`, unless one is given."""
        if self._rules.slo_ms is not None:
            return self._rules.slo_ms
        profile = world.known.profile
        worker = services_of(profile)[profile.base.variant, profile.base.profile]
        rate = load.level * base_capacity(profile, world.machine.shapes)
        return estimate((worker,) * profile.base.count, rate).p95_ms


def _cell(asked: PaperOptions, at: int) -> list[Run]:
    """Return the runs of cell `at`: what each of several processes calls."""
    return Paper(asked).cell(at)


def shortened(run: Run) -> Run:
    """Return a run without its steps; its sums remain."""
    return msgspec.structs.replace(run, steps=merged(run.steps) if run.seed == 0 else ())


def budget(name: str, loss: float, asleep_w: float | None = None, words: str = "") -> Scheme:
    """Return the scheme of an accuracy budget of `loss` points, which the policy `name` realised."""
    name_shown = f"budget ({name})" + (f", {words}" if words else "")
    return Scheme(name_shown, "budget", accuracy_budget=max(0.0, loss), asleep_w=asleep_w, beside=name)


def cascaded(name: str, loss: float) -> Scheme:
    """Return the scheme of the same budget over cascades."""
    return Scheme(f"budget+cascade ({name})", "budget", accuracy_budget=max(0.0, loss), beside=name, cascade=True)


def matched(name: str, accuracy: float, *, released: bool = False) -> Scheme:
    """Return the scheme of the best fixed mix at the accuracy that the policy `name` reached.

    Only energy is minimised under that floor, which does not depend on intensity: the mix stays for the whole trace.
    """
    floor = math.floor(accuracy * 100.0) / 100.0
    return Scheme(
        f"static >= {floor:.2f} ({name})" + (", released" if released else ""),
        "objective",
        form="floor",
        accuracy_floor=floor,
        asleep_w=0.0 if released else None,
        beside=name,
    )
