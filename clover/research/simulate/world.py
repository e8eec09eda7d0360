"""What a simulation runs in: devices, a family's profile, a trace, a load, targets, and the policies to compare."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from clover import devices
from clover.cache import cache_folder
from clover.carbon import build_source
from clover.carbon.layouts import parse_time
from clover.carbon.trace import TraceSource
from clover.config import ControllerConfig, EnergyConfig, WorkersConfig
from clover.devices import tables
from clover.devices.cpu import CpuDevice
from clover.energy import cpu_power
from clover.errors import ConfigError
from clover.interfaces import CarbonSource
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import base_capacity, problem_of
from clover.policies import BUDGETED, build
from clover.research.simulate import families
from clover.research.simulate.families import Known
from clover.research.simulate.flow import FleetModel
from clover.research.simulate.forecasts import PERFECT, Forecast
from clover.research.simulate.horizon_bound import CostBound, cost_bound
from clover.research.simulate.loads import Load
from clover.research.simulate.peers import PEERS
from clover.research.simulate.records import Accounting, RunInput
from clover.research.simulate.solver import Memory
from clover.research.simulate.surprises import NONE, Surprises, factors, truth
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig, Reading, State

CHAINING = frozenset({"objective", *BUDGETED})
"""Policies whose plans may have a chain."""
_CHAINS = {"cascade": True, "mix": False}
SHARED = "shared"
"""The word of schemes whose workers hold all variants."""
SYNTHETIC_START_S = parse_time("2024-06-05T00:00:00Z")
"""Where the synthetic curve starts by default: a Wednesday, always the same one."""


@dataclass(frozen=True)
class SimulatedMachine:
    """Devices by their shapes, with the idle watts of each."""

    shapes: tuple[DeviceShape, ...]
    idle_w: float
    about: str


@dataclass(frozen=True)
class Trace:
    """A source of intensities and the hours of it that are played: from `start_s` (grid time) for `hours`."""

    name: str
    source: CarbonSource
    start_s: float
    hours: float
    about: RunInput


@dataclass(frozen=True)
class Scheme:
    """One entry of the comparison: a policy under a name.  Its other fields, if given, override those of the whole
    simulation; a fixed mix is the objective `floor` with a floor of its own."""

    name: str
    policy: str
    lam: float | None = None
    form: Literal["paper", "floor"] | None = None
    accuracy_floor: float | None = None
    accuracy_budget: float | None = None
    asleep_w: float | None = None
    beside: str = ""
    """The scheme whose accuracy it was given."""
    cascade: bool | None = False
    """Whether its plans may have a chain; None: as in a server, if the family has a confidence."""
    resident: bool = False
    """Whether a worker holds all variants, so that plans may share its time between them."""


@dataclass(frozen=True)
class Rules:
    """What holds for every policy: targets (None: the server's defaults), how often the controller looks, what a device
    without workers draws (`asleep_w`; None: as much as any), and which forecast it has and what it does
    not know."""

    form: Literal["paper", "floor"] = "paper"
    lam: float | None = None
    reference_g_per_kwh: float | None = None
    waits: bool | None = None
    slo_ms: float | None = None
    accuracy_floor: float | None = None
    accuracy_margin: float | None = None
    look_s: float = 300.0
    verify_s: float = 5.0
    sleep_after_s: float = 300.0
    load_s: float = 0.0
    create_s: float = 0.0
    destroy_s: float = 0.0
    pue: float = 1.5
    noise: bool = True
    capacity_loss: bool = False
    accuracy_budget: float | None = None
    budget_horizon_s: float = 86_400.0
    asleep_w: float | None = None
    forecast: Forecast = PERFECT
    surprises: Surprises = NONE


@dataclass
class World:
    """One family on one machine; what was computed for it is kept for the next run."""

    machine: SimulatedMachine
    known: Known
    rules: Rules
    models: dict[tuple[float, int], FleetModel] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    fronts: dict[tuple[float, float, float | None], CostBound] = field(default_factory=dict)

    @property
    def capacity(self) -> float:
        """Rows a second of BASE."""
        return base_capacity(self.known.profile, self.machine.shapes)

    @property
    def input(self) -> RunInput:
        """What a report says about the family."""
        known, base = self.known, self.known.profile.base
        about = (
            f"{known.method} profile ({known.source}); "
            + (f"one row is {known.request}, " if known.request != "1 row" else "")
            + f"accuracy is {known.metric}; "
            f"{self.machine.about}; BASE is {base.variant} on {base.count} x {base.profile}"
            + (f"; {known.confidence}" if known.confidence else "")
        )
        return RunInput(name=known.profile.family, kind="family", sha256=known.digest, about=about)

    def truth(self, seed: int) -> FamilyProfile:
        """Return how workers really serve in the runs of `seed`: as profiled, or as `Rules.surprises` has it."""
        profile, part = self.known.profile, self.rules.surprises.misprofiled
        return truth(profile, factors(profile, part, seed)) if part > 0.0 else profile

    def model(self, slo_ms: float, seed: int = 0) -> FleetModel:
        """Return the queueing model of the runs of `seed`, which counts rows later than `slo_ms`."""
        key = (slo_ms, seed if self.rules.surprises.misprofiled > 0.0 else 0)
        if key not in self.models:
            self.models[key] = FleetModel(self.truth(seed), slo_ms, self.known.profile)
        return self.models[key]

    def front(self, slo_ms: float, rate: float, spared_w: float | None) -> CostBound:
        """Return what no plan can undercut at `rate` rows a second, if a device without workers draws
        `spared_w` less."""
        key = (slo_ms, rate, spared_w)
        if key not in self.fronts:
            now = State(
                family=self.known.profile.family,
                grid_s=0.0,
                intensity=Reading(g_per_kwh=1.0, at_s=0.0, provider="none"),
                arrival_rate=rate,
                p95_ms=None,
                queue_rows=0,
                objective=ObjectiveConfig(
                    form="paper",
                    slo_ms=slo_ms,
                    accuracy_floor=0.0,
                    lam=None,
                    reference_g_per_kwh=1.0,
                    spared_w=spared_w,
                ),
                profile=self.known.profile,
                devices=self.machine.shapes,
                running=(),
                routing=None,
            )
            self.fronts[key] = cost_bound(problem_of(now), objective_of(now))
        return self.fronts[key]


@dataclass(frozen=True)
class Case:
    """One run that is to be played."""

    world: World
    trace: Trace
    load: Load
    scheme: Scheme
    seed: int
    accounting: Accounting = "equal"
    slo_ms: float | None = None

    @property
    def asleep_w(self) -> float | None:
        """Watts of a device without workers; None if none sleeps."""
        return self.scheme.asleep_w if self.scheme.asleep_w is not None else self.world.rules.asleep_w

    @property
    def spared_w(self) -> float | None:
        """Watts that a device without workers draws less than one with; None if none sleeps."""
        return None if self.asleep_w is None else self.world.machine.idle_w - self.asleep_w

    @property
    def cascades(self) -> bool:
        """Whether its plans may have a chain."""
        wanted = self.scheme.cascade
        if wanted is None:
            return self.scheme.policy in CHAINING and self.world.known.profile.cascade is not None
        return wanted

    @property
    def settings(self) -> ControllerConfig:
        """The controller's settings, as far as the case has them."""
        rules = self.world.rules
        return ControllerConfig(
            policy=self.scheme.policy,
            objective=self.scheme.form or rules.form,
            lam=self.scheme.lam if self.scheme.lam is not None else rules.lam,
            verify_s=rules.verify_s,
            sleep_after_s=rules.sleep_after_s,
            allow_capacity_loss=rules.capacity_loss,
            cascade=self.cascades,
            reference_g_per_kwh=rules.reference_g_per_kwh,
            waits=rules.waits,
        )


def gpus(count: int, *, whole: bool = False) -> SimulatedMachine:
    """Return `count` of the paper's GPUs, with MIG or each as a `whole`; ConfigError beyond 1 to 64."""
    if not 1 <= count <= 64:
        raise ConfigError(f"--gpus is 1 to 64, not {count}")
    paper = families.paper()
    about = f"{paper.idle_w_per_gpu:g} W idle each" + (", without MIG" if whole else "")
    shapes = families.gpus(count)
    if whole:
        shapes = tuple(
            msgspec.structs.replace(
                shape,
                layouts=(max(shape.layouts, key=lambda layout: (-len(layout), layout[0].slices if layout else 0)),),
            )
            for shape in shapes
        )
    return SimulatedMachine(shapes, paper.idle_w_per_gpu, f"{count} x {paper.board} (simulated, {about})")


def cpu(energy: EnergyConfig | None = None) -> SimulatedMachine:
    """Return the cores of this machine, with the modelled idle power of its processor, or as `energy` sets it."""
    device = CpuDevice(tuple(sorted(os.sched_getaffinity(0))))
    shape = device.shape()
    idle_w = cpu_power(energy or EnergyConfig()).idle_w * shape.slices
    return SimulatedMachine((shape,), idle_w, f"{shape.slices} CPU cores for workers ({idle_w:g} W idle, modelled)")


def emulated(text: str) -> SimulatedMachine:
    """Return the GPUs that `text` names as `--device` of a server does (emulated:a100-40gb:2), each with a process on
    it; ConfigError if it names none that are emulated."""
    choice = devices.parse(text)
    if choice.kind != "emulated":
        raise ConfigError(f"--device is cpu or emulated:NAME[:COUNT], not {text}")
    box = devices.build(WorkersConfig(device=text), cache_folder(""), exclusive=False)
    try:
        shapes = tuple(device.shape() for device in box.values())
    finally:
        devices.close(box)
    board = tables.board(choice.name)
    idle_w = board.idle_w + board.context_w
    return SimulatedMachine(shapes, idle_w, f"{choice.box} ({idle_w:g} W idle each with a process on it, analytical)")


def scheme(text: str) -> Scheme:
    """Return the scheme of POLICY, whose plans may have a chain as in a server, of POLICY+cascade (they may) and
    POLICY+mix (they may not), of each +shared (workers hold all variants and may share their time), and of each with a
    lambda of its own as POLICY@L; ConfigError if there is no such policy."""
    policy, at, lam = text.partition("@")
    policy, *words = policy.split("+")
    policy = PEERS.get(policy, policy)
    build(policy)  # refuse an unknown policy before anything runs
    unknown = [word for word in words if word not in (*_CHAINS, SHARED)]
    if unknown or sum(word in _CHAINS for word in words) > 1:
        raise ConfigError(f"{text}: a policy may have +{SHARED}, and +cascade or +mix, not +{(unknown or words)[-1]}")
    cascade = next((_CHAINS[word] for word in words if word in _CHAINS), None)
    resident = SHARED in words
    if resident and policy not in CHAINING:
        raise ConfigError(f"{text}: the plans of {policy} do not share workers: leave out +{SHARED}")
    if not at:
        return Scheme(text, policy, cascade=cascade, resident=resident)
    try:
        value = float(lam)
    except ValueError as error:
        raise ConfigError(f"{text}: POLICY@L takes a weight of carbon, as objective@0.1, not {lam!r}") from error
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{text}: L, the weight of carbon, is 0 to 1")
    return Scheme(text, policy, lam=value, cascade=cascade, resident=resident)


def traces(names: Sequence[str], start: str, hours: float) -> list[Trace]:
    """Return the traces of files, folders of them, or sources by name (synthetic, static:G); synthetic if none is
    named."""
    if not 0.0 < hours <= 24.0 * 366.0:
        raise ConfigError(f"--hours is above 0 and up to a year, not {hours:g}")
    try:
        start_s = parse_time(start) if start else None
    except ValueError as error:
        raise ConfigError(f"--start takes an ISO 8601 time, as 2021-03-26T21:00Z, not {start!r}") from error
    all_traces = [trace for name in (names or ("synthetic",)) for trace in _traces(name, start_s, hours)]
    for trace in all_traces:
        if [other.name for other in all_traces].count(trace.name) > 1:
            raise ConfigError(f"two traces are called {trace.name}: give each once, and no two files the same name")
    return all_traces


def _traces(name: str, start_s: float | None, hours: float) -> list[Trace]:
    path = Path(name)
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.suffix in (".csv", ".json") and item.is_file())
        if not files:
            raise ConfigError(f"{path} holds no traces (.csv or .json)")
        return [_of_file(item, start_s, hours) for item in files]
    if name == "synthetic" or name.startswith("static:"):
        about = "a duck curve by formula: no grid's" if name == "synthetic" else "a constant"
        source = build_source(name)
        return [
            Trace(
                name=name,
                source=source,
                start_s=SYNTHETIC_START_S if start_s is None else start_s,
                hours=hours,
                about=RunInput(name=name, kind="trace", sha256="", about=f"synthetic: {about}"),
            )
        ]
    return [_of_file(path, start_s, hours)]


def _of_file(path: Path, start_s: float | None, hours: float) -> Trace:
    source = TraceSource(path)
    source.replayed = True
    begin_s = source.start_s if start_s is None else start_s
    if not (source.covers(begin_s) and begin_s + hours * 3600.0 <= source.end_s):
        have = (source.end_s - source.start_s) / 3600.0
        raise ConfigError(
            f"{path} holds {have:g} hours from its first value, which {hours:g} hours "
            f"{'from --start ' if start_s is not None else ''}go beyond: fewer --hours, or another --start"
        )
    gaps = f", {source.gaps} gaps in the file (the chain goes on with the last value)" if source.gaps else ""
    about = f"{source.signal} intensity, scope {source.scope}{gaps}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trace(
        name=path.stem,
        source=source,
        start_s=begin_s,
        hours=hours,
        about=RunInput(name=path.name, kind="trace", sha256=digest, about=about),
    )


def inputs(worlds: Sequence[World], played: Sequence[Trace], load: Load) -> list[RunInput]:
    """Return what the simulation was made from, for a report."""
    abouts = [own.about for own in played]
    abouts += [own.input for own in worlds]
    if load.digest:
        abouts.append(RunInput(name=load.name, kind="load", sha256=load.digest, about="arrival times, counted by step"))
    return abouts
