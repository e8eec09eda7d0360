"""`--scenario paper`: the SC'23 evaluation again, twice over.

Three families on ten A100s, 48 hours of the three traces of the public artifact, BASE at 0.6 of its capacity; BASE,
CO2OPT, BLOVER, CLOVER, ORACLE and our objective, under the paper's f with L = 0.1 (the artifact's default), no accuracy
floor.  The SLO is BASE's p95.  The rate is known exactly, as in the paper.

**Equal load.**  Everybody serves the same rows on the same ten GPUs, all of them awake.

**The artifact's accounting.**  There BASE is measured at a fifth of the load per GPU that the others then serve.  Its
idle power falls on a fifth of the requests, so that every scheme seems to save what is really consolidation; and its
p95, the SLO, is that of nearly idle GPUs.

**Beside them** stand, at equal load, our objective at other lambdas, and for CLOVER and our objective the best *static*
mix at the accuracy that each of them reached: what it takes no carbon-aware controller to save.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clover.errors import ConfigError
from clover.planning.problem import base_capacity, services_of
from clover.planning.queueing import estimate
from clover.simulate import families, world
from clover.simulate.loads import Load
from clover.simulate.records import Accounting, Input, Run, totals
from clover.simulate.work import Told, execute
from clover.simulate.world import Case, Rules, Scheme, Trace, World

TRACES = ("artifact_ciso_march", "artifact_ciso_sep", "artifact_eso_march")
POLICIES = ("base", "co2opt", "blover", "clover", "oracle", "objective")
LAMBDA = 0.1
LAMBDAS = (0.02, 0.05)
PART = 0.2
"""Of the load per GPU: at what the artifact measures BASE."""
_DRAWING = ("blover", "clover")
_MATCHED = ("clover", "objective")
_GPUS, _HOURS, _LOOK_S = 10, 48.0, 900.0


class Paper:
    """The scenario: what is to be played, and what to say of it."""

    def __init__(
        self,
        *,
        names: Sequence[str],
        traces: Sequence[str],
        lam: float | None,
        gpus: int | None,
        hours: float | None,
        start: str,
        seeds: int,
        load: Load,
        rules: Rules,
        quick: bool,
    ) -> None:
        if load.kind != "constant":
            raise ConfigError("--scenario paper plays a constant load, as constant:0.6")
        unknown = [name for name in names if name not in families.names()]
        if unknown:
            raise ConfigError(f"--scenario paper knows {', '.join(families.names())}, not {', '.join(unknown)}")
        machine = world.gpus(gpus if gpus is not None else 2 if quick else _GPUS)
        self._rules = replace(
            rules,
            form="paper",
            lam=LAMBDA if lam is None else lam,
            accuracy_floor=0.0 if rules.accuracy_floor is None else rules.accuracy_floor,
            accuracy_margin=0.0,
            look_s=_LOOK_S if rules.look_s == Rules.look_s else rules.look_s,
            noise=False,
        )
        self._load = load
        self._seeds = seeds
        hours = hours if hours is not None else 6.0 if quick else _HOURS
        found = artifact_traces(traces)
        self._traces = world.traces([str(path) for path in (found[:1] if quick else found)], start, hours)
        known = [families.load(name, machine.shapes) for name in (names or families.names())]
        self._worlds = [World(machine, item, self._rules) for item in known]
        self.inputs: list[Input] = world.inputs(self._worlds, self._traces, load)
        one = len(POLICIES) + len(_DRAWING) * (seeds - 1)
        self.count = len(self._worlds) * len(self._traces) * (2 * one + len(LAMBDAS) + len(_MATCHED))
        idle_w = machine.idle_w
        self.labels = (
            f"scenario paper: {len(machine.shapes)} GPUs, all awake, {idle_w:g} W idle each; L = {self._rules.lam:g}",
            f"equal load: everybody at {load.level:g} of BASE's capacity; SLO = BASE's p95 there",
            f"artifact's accounting: BASE at {PART * load.level:g} of its capacity, the others at {load.level:g}",
            "the artifact's SLO is BASE's p95 at that lower load; most of what is saved by it is consolidation",
            "static >= A: the best fixed mix found that reaches A, the accuracy of the policy named beside it",
            "policy@L: the same policy at that lambda",
        )

    def play(self, told: Told) -> list[Run]:
        """Play it all, family by family."""
        return [run for own in self._worlds for trace in self._traces for run in self._case(own, trace, told)]

    def _case(self, own: World, trace: Trace, told: Told) -> list[Run]:
        slo_ms = self._slo_ms(own, self._load)
        equal = [Scheme(name, name) for name in POLICIES]
        runs = execute(self._cases(own, trace, equal, "equal", slo_ms), told)
        further = [Scheme(f"objective@{lam:g}", "objective", lam=lam) for lam in LAMBDAS]
        further += [matched([run for run in runs if run.policy == name]) for name in _MATCHED]
        runs += execute(self._cases(own, trace, further, "equal", slo_ms), told)
        light = self._load.scaled(PART)
        slo_ms = self._slo_ms(own, light)
        runs += execute([Case(own, trace, light, Scheme("base", "base"), 0, "artifact", slo_ms)], told)
        rest = [scheme for scheme in equal if scheme.name != "base"]
        return runs + execute(self._cases(own, trace, rest, "artifact", slo_ms), told)

    def _cases(
        self, own: World, trace: Trace, schemes: Sequence[Scheme], accounting: Accounting, slo_ms: float
    ) -> list[Case]:
        """Once each, and once a seed for what draws at random."""
        return [
            Case(own, trace, self._load, scheme, seed, accounting, slo_ms)
            for scheme in schemes
            for seed in range(self._seeds if scheme.policy in _DRAWING else 1)
        ]

    def _slo_ms(self, own: World, load: Load) -> float:
        """BASE's p95 at that load, unless one is given."""
        if self._rules.slo_ms is not None:
            return self._rules.slo_ms
        profile = own.known.profile
        worker = services_of(profile)[profile.base.variant, profile.base.profile]
        rate = load.level * base_capacity(profile, own.machine.shapes)
        return estimate((worker,) * profile.base.count, rate).p95_ms


def matched(runs: Sequence[Run]) -> Scheme:
    """The best static mix at the accuracy that `runs` of a policy reached.

    Energy alone is minimised under that floor, which no intensity enters; so it stays for the whole trace.
    """
    sums = [totals(run) for run in runs]
    accuracy = sum(item.accuracy for item in sums) / len(sums)
    floor = math.floor(accuracy * 100.0) / 100.0
    return Scheme(f"static >= {floor:.2f} ({runs[0].policy})", "objective", form="floor", accuracy_floor=floor)


def artifact_traces(given: Sequence[str]) -> list[Path]:
    """The artifact's traces in the folders (or as the files) that are given; ConfigError names those missing."""
    if not given:
        raise ConfigError(f"--scenario paper needs --traces DIR with {', '.join(f'{name}.csv' for name in TRACES)}")
    for name in given:
        if not Path(name).exists():
            raise ConfigError(f"--traces {name}: there is no such file or folder (families stand before --traces)")
    files = [path for name in given for path in (Path(name).iterdir() if Path(name).is_dir() else [Path(name)])]
    found = {path.stem: path for path in files if path.suffix == ".csv"}
    missing = [name for name in TRACES if name not in found]
    if missing:
        raise ConfigError(f"--scenario paper misses {', '.join(f'{name}.csv' for name in missing)} in --traces")
    return [found[name] for name in TRACES]
