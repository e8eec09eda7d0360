"""The planning problem of one family: its variants with their accuracy, their services on each profile, and the load.

A `Problem` is derived from a `State` once and never changes, so that it can be the key of a memo.

**Services** are those of each variant's chosen backend.  A family that owns `share` < 1 of the machine is served that
much slower.  If profiles may err, services are planned at the slow end of the error (`profile_error`).  Rows that take
no longer than that wait no longer than planned.  Accuracy does not depend on times, because quotas decide it.

**Energies** are active energy, the part that a plan can change while every device stays awake.  Idle power is the same
for all plans and drops out of every comparison, unless devices or cores without workers spare `spared_w`
(`planning.search.best`).

**Rows that ask for an accuracy of their own** (`clover_min_accuracy`) are a constraint on plans.  `Problem.demand` says
how many rows a second need at least which accuracy.  They go straight to a variant that reaches it, whatever the shares
or the cascade of all other rows are (`direct`).  A configuration serves them if it has workers for them.  The most
demanding rows come first, and each goes to the variant of the fewest joules that is accurate enough, as far as the
utilisation limit leaves room.  A configuration without such workers, or with too few, is not feasible; nothing else
about a plan changes.  While a plan is searched, shares are of all rows, so these rows are a least share of their
variant (`planning.packing.evaluation`).  The router deals only the other rows by quota, and gets the shares of those
(`of_the_others`).  `planning.cascade.evaluation` says where they enter a cascade.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import msgspec

from clover.errors import PlanError
from clover.planning.model.cores import sleeping_row
from clover.planning.model.queueing import TURNS, WAKE_S, Service, cold
from clover.types import (
    Assignment,
    ChainPoint,
    Configuration,
    Demand,
    DeviceShape,
    FamilyProfile,
    GroupCount,
    LatencyMeasurement,
    ObjectiveConfig,
    Placement,
    State,
)

SAME_ANSWERS = 0.999
SAME_ACCURACY = 0.05
CHEAPER = 0.97
"""Of the chosen backend's joules: what another has to cost at most to be taken on a profile."""
LEAST_RATE = 0.1
"""Rows a second that are planned for at least, so that an idle family still has a defined plan."""
_ASLEEP_STEP = 0.5 * math.log(2.0)  # of the logarithm of a rate
_EPSILON = 1e-9


@dataclass(frozen=True)
class Problem:
    """One family's planning problem at one moment; immutable and hashable.

    `services[variant, profile]`; `backend` of each variant, `own` of each (variant, profile); `variants` from the least
    to the most accurate; accuracy in percent, rate in rows a second."""

    family: str
    variants: tuple[str, ...]
    accuracy: Mapping[str, float]
    backend: Mapping[str, str]
    own: Mapping[tuple[str, str], str]
    services: Mapping[tuple[str, str], Service]
    rate: float
    objective: ObjectiveConfig
    devices: tuple[DeviceShape, ...]
    points: tuple[ChainPoint, ...] = ()
    """Cascades that may be planned, from the profile."""
    demand: tuple[Demand, ...] = ()
    """Rows that ask for an accuracy of their own."""
    resident: int = 1
    """The most variants that a worker holds."""
    held_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """What a variant takes of its worker's memory on a profile, as far as it is known."""
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    """What a worker has for its variants together, by profile; absent: not known."""
    apart: frozenset[tuple[str, str, str]] = frozenset()
    """Profiles, each with two variants, in the order of their names, that one worker did not hold together there."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # What mostly tells problems apart; devices and cascades, which are long and seldom change, are left to `==`.
        services = tuple(self.services.values())
        return hash((self.family, self.variants, self.rate, self.objective, self.demand, services))

    @property
    def spared_w(self) -> float | None:
        """By how many watts a device without workers (of a row of cores: a core) idles below one with workers; None:
        all have workers."""
        row = sleeping_row(self.devices)
        return row.core_sleep_w if row is not None else self.objective.spared_w

    @property
    def best(self) -> str:
        """The most accurate variant; the most frugal of equals."""
        top = max(self.accuracy[variant] for variant in self.variants)
        equals = [variant for variant in self.variants if self.accuracy[variant] == top]
        return min(equals, key=lambda variant: min(self.energies(variant), default=0.0))

    @property
    def gathers(self) -> bool:
        """Whether batches may be longer than the load of their own variant makes them, because rows may wait for fuller
        batches, or for the batches of other variants in the same worker."""
        return self.objective.waits or self.resident > 1

    def energies(self, variant: str) -> list[float]:
        """Return least joules a row of the variant on each profile it was measured on."""
        return [service.least_energy_j for (name, _), service in self.services.items() if name == variant]


def whole(device: DeviceShape) -> tuple[Placement, ...]:
    """Return the device in the fewest parts, with most compute slices among equals: how BASE uses it; nothing if it
    has no layout (lost, or full of what others own)."""
    layouts = [layout for layout in device.layouts if layout]
    return min(layouts, key=lambda layout: (len(layout), -sum(item.slices for item in layout)), default=())


def best_whole(problem: Problem, devices: Sequence[DeviceShape]) -> Configuration:
    """Return BASE on `devices`: the best variant on each of them as a whole; PlanError if it was not measured so."""
    counts = Counter(placement.profile for device in devices for placement in whole(device))
    for profile in counts:
        if (problem.best, profile) not in problem.services:
            raise PlanError(f"{problem.best} was not measured on {profile}: profile it again")
    return tuple(GroupCount(variant=problem.best, profile=name, count=n) for name, n in sorted(counts.items()))


def base_capacity(profile: FamilyProfile, devices: Sequence[DeviceShape], share: float = 1.0) -> float:
    """Return rows a second of BASE on these devices: its variant on each of them as a whole."""
    services = services_of(profile, share)
    serving = [services.get((profile.base.variant, item.profile)) for device in devices for item in whole(device)]
    return sum(service.capacity() for service in serving if service is not None)


def _asleep(rate: float) -> float:
    """Return how cold a front end is between its turns, at `rate` rows a second or a rate near it: remembered results
    depend on it."""
    near = math.exp(_ASLEEP_STEP * round(math.log(max(rate, LEAST_RATE)) / _ASLEEP_STEP))
    return cold(1.0 / (TURNS * near), WAKE_S)


@lru_cache(maxsize=4096)
def _with_turns(service: Service, turn_j: float) -> Service:
    """Return the service whose batches pay for turns of the front end: the same one each time, for memos."""
    return replace(service, turn_j=turn_j) if turn_j else service


def problem_of(state: State) -> Problem:
    """Return the problem that `state` poses; PlanError if no device can be used, or if the profile covers no variant on
    these devices."""
    profile = state.profile
    turn_j = profile.turn_j * _asleep(state.arrival_rate)
    services = {key: _with_turns(own, turn_j) for key, own in services_of(profile, state.share).items()}
    accuracy = accuracies(profile)
    if not any(shape.layouts for shape in state.devices):
        devices = ", ".join(shape.device for shape in state.devices) or "none"
        raise PlanError(f"{state.family} has no device that can be used ({devices})")
    known = {placement.profile for shape in state.devices for layout in shape.layouts for placement in layout}
    worst = 1.0 / (1.0 + state.objective.profile_error)
    services = {
        key: service.derate(worst) for key, service in services.items() if key[0] in accuracy and key[1] in known
    }
    variants = sorted({variant for variant, _ in services}, key=lambda variant: (accuracy[variant], variant))
    if not variants:
        raise PlanError(f"the profile of {state.family} covers none of {', '.join(sorted(known))}: profile it again")
    return Problem(
        family=state.family,
        variants=tuple(variants),
        accuracy={variant: accuracy[variant] for variant in variants},
        backend={variant: profile.backend[variant] for variant in variants},
        own=backends_of(profile),
        services=services,
        rate=max(state.arrival_rate, LEAST_RATE),
        # No solution depends on the reference, which follows the grid: solved problems are remembered by the rest.
        objective=msgspec.structs.replace(state.objective, reference_g_per_kwh=1.0),
        devices=state.devices,
        points=profile.cascade.points if state.objective.cascade and profile.cascade is not None else (),
        demand=state.demand,
        resident=state.resident,
        held_bytes={
            (item.variant, item.profile): item.weights_bytes + item.peak_bytes
            for item in profile.memory
            if profile.backend.get(item.variant) == item.backend
        },
        resident_bytes={
            name: max(1, room - profile.context_bytes.get(name, 0))
            for name, room in state.resident_bytes.items()
            if room
        },
        apart=frozenset(state.apart),
    )


def fitting(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return which variants were measured on each profile."""
    found: dict[str, list[str]] = {}
    for variant, profile in sorted(problem.services):
        found.setdefault(profile, []).append(variant)
    return {profile: tuple(variants) for profile, variants in found.items()}


def accuracies(profile: FamilyProfile) -> dict[str, float]:
    """Return accuracy (percent) of each variant on its chosen backend."""
    return {item.variant: item.value for item in profile.accuracy if profile.backend.get(item.variant) == item.backend}


def backends_of(profile: FamilyProfile) -> dict[tuple[str, str], str]:
    """Return the backend of each (variant, profile): the variant's chosen one, unless another that gives the same
    answers (`SAME_ANSWERS` of the rows, accuracy within `SAME_ACCURACY` points) costs clearly less there and is no
    slower, by itself and in its largest batch."""
    alike = {
        (item.variant, item.backend)
        for item in profile.accuracy
        for chosen in profile.accuracy
        if chosen.variant == item.variant and chosen.backend == profile.backend.get(item.variant)
        if item.agreement >= SAME_ANSWERS and abs(item.value - chosen.value) <= SAME_ACCURACY
    }
    backends: dict[tuple[str, str], str] = {}
    measured = _measured(profile.latency, profile.front_ms)
    for (variant, name, backend), service in measured.items():
        chosen = profile.backend.get(variant, "")
        if backend == chosen:
            backends.setdefault((variant, name), backend)
        elif (variant, backend) in alike and (variant, name, chosen) in measured:
            now = measured[variant, name, backends.get((variant, name), chosen)]
            cheaper = service.least_energy_j < CHEAPER * now.least_energy_j
            if cheaper and service.mean_ms[0] <= now.mean_ms[0] and service.capacity() >= now.capacity():
                backends[variant, name] = backend
    return backends


def services_of(profile: FamilyProfile, share: float = 1.0) -> dict[tuple[str, str], Service]:
    """Return how each (variant, profile) serves on its backend (`backends_of`), slowed to `share` of the machine's
    time."""
    measured = _measured(profile.latency, profile.front_ms)
    return {
        (variant, name): measured[variant, name, backend].derate(min(1.0, share))
        for (variant, name), backend in backends_of(profile).items()
    }


@lru_cache(maxsize=64)
def _measured(measurements: tuple[LatencyMeasurement, ...], front_ms: float) -> Mapping[tuple[str, str, str], Service]:
    """Return how each (variant, profile, backend) serves; of several thread counts the fastest at a batch size
    counts.  One answer for all who ask, and the same services, so that memos know them at a glance."""
    fastest: dict[tuple[str, str, str], dict[int, LatencyMeasurement]] = defaultdict(dict)
    for item in measurements:
        rows = fastest[item.variant, item.profile, item.backend]
        if item.batch not in rows or item.mean_ms < rows[item.batch].mean_ms:
            rows[item.batch] = item
    services = {}
    for key, rows in fastest.items():
        ordered = [rows[batch] for batch in sorted(rows)]
        services[key] = Service(
            tuple(item.batch for item in ordered),
            tuple(max(item.mean_ms, 1e-6) for item in ordered),
            tuple(item.energy_j_per_row for item in ordered),
            sum(item.cv for item in ordered) / len(ordered),
            max(item.rested_j for item in ordered),
            front_ms,
            max(item.wake_j for item in ordered),
        )
    return services


def is_shared(configuration: Configuration) -> bool:
    """Return whether some worker shares its time between variants."""
    return any(group.beside for group in configuration)


def variants_of(configuration: Configuration) -> set[str]:
    """Return all variants that have a worker."""
    return {variant for group in configuration for variant in group.variants}


def measured(problem: Problem, configuration: Configuration) -> bool:
    """Return whether every variant was measured on the profiles it is on."""
    return all((variant, group.profile) in problem.services for group in configuration for variant in group.variants)


def may_share(problem: Problem, variants: Sequence[str], profile: str) -> bool:
    """Return whether a worker on `profile` may hold these variants together: as many as may be resident, measured
    there, as far as is known within its memory, and none of which was found not to be held with another."""
    if len(variants) > problem.resident or any((variant, profile) not in problem.services for variant in variants):
        return False
    if any((profile, one, other) in problem.apart for one, other in itertools.combinations(sorted(variants), 2)):
        return False
    room = problem.resident_bytes.get(profile, 0)
    held = [problem.held_bytes.get((variant, profile)) for variant in variants]
    return not room or sum(own for own in held if own is not None) <= room


# --- rows that ask for an accuracy of their own -----------------------------------------------------------------------


@dataclass(frozen=True)
class Direct:
    """Rows a second that go straight to each variant, and in words what cannot be served (empty: nothing)."""

    rates: dict[str, float]
    why: str = ""


NONE = Direct({})


def direct(problem: Problem, configuration: Configuration, max_utilisation: float, chain: Sequence[str] = ()) -> Direct:
    """Return which variants of `configuration` serve the rows that ask for an accuracy, as far as they can.  The
    variants of the `chain` that all other rows follow come first, as in the router: the others have no share there.

    Shares and rates are of all rows of the problem."""
    if not problem.demand:
        return NONE
    capacities: dict[str, float] = {}
    joules: dict[str, float] = {}
    beside: dict[str, set[str]] = {}
    for group in configuration:
        for variant in group.variants:
            service = problem.services[variant, group.profile]
            capacities[variant] = capacities.get(variant, 0.0) + group.count * service.capacity()
            joules[variant] = min(joules.get(variant, math.inf), service.least_energy_j)
            beside.setdefault(variant, set()).update(other for other in group.variants if other != variant)
    rates: dict[str, float] = {}
    why = ""
    for asked in sorted(problem.demand, key=lambda item: -item.accuracy):
        able = [variant for variant in capacities if problem.accuracy[variant] >= asked.accuracy - _EPSILON]
        left = min(asked.rate, problem.rate - sum(rates.values()))
        for variant in sorted(able, key=lambda name: (name not in chain, joules[name], name)):
            taken = sum(rates.get(other, 0.0) / capacities[other] for other in beside[variant])
            room = (max_utilisation - taken) * capacities[variant] - rates.get(variant, 0.0)
            part = max(0.0, min(left, room))
            if part > 0.0:
                rates[variant] = rates.get(variant, 0.0) + part
                left -= part
        if not able:
            why = why or f"no worker reaches the {asked.accuracy:.2f} % that {asked.rate:.3g} rows/s ask for"
        elif left > _EPSILON * problem.rate:
            why = why or f"too few workers reach the {asked.accuracy:.2f} % that {asked.rate:.3g} rows/s ask for"
    return Direct(rates, why)


def of_the_others(problem: Problem, shares: dict[str, float], asked: Direct) -> dict[str, float]:
    """Return the shares of the rows that ask for no accuracy, from the `shares` of all rows."""
    if not asked.rates:
        return shares
    left = {name: max(0.0, share - asked.rates.get(name, 0.0) / problem.rate) for name, share in shares.items()}
    total = sum(left.values())
    return {name: round(share / total, 6) for name, share in left.items()} if total > 1e-6 else shares


def met_by(
    demand: Sequence[Demand], running: Sequence[Assignment], accuracy: Mapping[str, float]
) -> tuple[Demand, ...]:
    """Return those of `demand` for which some worker of `running` is accurate enough."""
    best = max((accuracy.get(item.variant, 0.0) for item in running), default=-math.inf)
    return tuple(item for item in demand if item.accuracy <= best + _EPSILON)
