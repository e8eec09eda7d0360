"""The planning problem as the kernel takes it: families on devices, some of which may sleep.

A *member* is a family with its problem and objective.  Several members share the devices: any slice may serve any of
them.  Their joint objective is the sum of theirs, each weighted with its part of the emissions that BASE would have, so
that a gram counts alike in all of them.  A family that is alone keeps its own objective.

**Asleep.**  If `Sleep` states are given, the number of devices awake is chosen as well.  An awake device draws
`awake_w` idle, a sleeping one less.  A state that wakes in time counts for the *peak*: the rows a second that may come
before the next plan (rate x `peak`).  What awake workers cannot serve of the peak at full capacity must be left to
devices that wake in time, each at the best that one whole device serves.  The others may be released altogether.

**What a lane does** at a load is given by two tables, for lanes of 1, 2, 4, ... equal workers at loads up to the
utilisation limit: the joules of a row (`_joules`, from the expected batch) and the part of the rows that miss the SLO
(`_late`, simulated).  The tables are remembered: they depend on service, SLO and limit, neither on load nor on
intensity.  A lane of unlike workers counts as the mean of its workers.  The noise of the simulation stays in the
tables, so the plan that is chosen is simulated by itself afterwards.

**Switching.**  If something runs already (`running`), what a plan costs to reach is part of what it is worth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service, expected_batch, late
from clover.planning.packing.candidates import Profiles, kinds_of, multisets_of
from clover.planning.packing.evaluation import LEAST_PART
from clover.types import Assignment, Configuration, DeviceShape, GroupCount, Record, configuration_of

LOADS = 8
"""Steps of the tables of energy over load."""
SWITCH_S = 5.0
"""Seconds for which a slice serves nothing while its worker is exchanged: instance removed and made, worker loaded and
warmed.  Its energy, and the rows that others serve meanwhile, are taken as what it would use at full load."""
DWELL_S = 300.0
"""Seconds that a plan is expected to last: grids report every five minutes at best."""
MISS = 0.05
"""The part of a family's rows that may miss the SLO."""

Counts = NDArray[np.int64]


class Sleep(Record, frozen=True, kw_only=True):
    """A state in which a device serves nothing and draws `watts`.  `wakes` says whether it can be awake again before
    the peak comes."""

    name: str
    watts: float
    wakes: bool


@dataclass(frozen=True)
class PackingMember:
    """A family that shares the devices.  `peak`: the highest rate before the next plan over the rate that is planned
    for; at least 1, or 0 if no peak counts."""

    problem: Problem
    objective: Objective
    peak: float = 0.0


@dataclass(frozen=True)
class WorkerGroup:
    """Workers of one variant of one member on one profile."""

    member: int
    variant: str
    profile: str
    service: Service


@dataclass(frozen=True)
class Cut:
    """A way to use a device of a kind: so many slices of each profile, or asleep in a state."""

    kind: int
    profiles: Profiles
    watts: float = 0.0
    state: str = ""
    spare: float = 0.0


def late_alone(service: Service, slo_ms: float) -> float:
    """Return the part of the rows that take longer than `slo_ms` although they never wait.

    If service times do not vary and equal the SLO, none does: the SLO may be BASE's p95, which at a low load is its
    service time.
    """
    left_ms = slo_ms - service.front_ms
    if service.cv <= 0.0:
        return float(service.mean_ms[0] > left_ms)
    return 0.5 * math.erfc((left_ms / service.mean_ms[0] - 1.0) / service.cv / math.sqrt(2.0))


@lru_cache(maxsize=65536)
def _late(service: Service, workers: int, slo_ms: float, limit: float) -> tuple[float, ...]:
    """Return the part of the rows that take longer than `slo_ms`, at `LOADS` + 1 loads from 0 to `limit`, in a lane of
    so many equal workers.  Once no row is late for having waited, lower loads are not simulated."""
    alone = late_alone(service, slo_ms)
    found = [alone] * (LOADS + 1)
    for step in range(LOADS, 0, -1):
        rate = step / LOADS * limit * workers * service.capacity()
        found[step] = max(alone, late((service,) * workers, rate, slo_ms))
        if found[step] <= alone:
            break
    return tuple(found)


@lru_cache(maxsize=65536)
def _joules(service: Service, workers: int, limit: float) -> tuple[float, ...]:
    """Return joules of a row at `LOADS` + 1 loads from 0 to `limit` in a lane of so many equal workers."""
    rates = [step / LOADS * limit * service.capacity() for step in range(LOADS + 1)]
    sizes = [expected_batch(service, rate, workers) for rate in rates]
    return tuple(service.energy_j(b) + service.resting_j(b, rate) for b, rate in zip(sizes, rates, strict=True))


class Formulation:
    """Members on devices, ready for the kernel.

    `running` (a configuration a member) is what need not be started: every other worker costs `SWITCH_S` seconds of
    the watts it draws at full load, spread over the `DWELL_S` that a plan is expected to last.  `slow` keeps groups of
    which a single row misses the SLO.  Raises PlanError if nothing can run at all.
    """

    def __init__(
        self,
        members: Sequence[PackingMember],
        devices: Sequence[DeviceShape],
        *,
        sleep: Sequence[Sleep] = (),
        awake_w: float = 0.0,
        running: Sequence[Configuration] | None = None,
        slow: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.kinds = kinds_of(devices)
        ways = [kind for kind, _ in self.kinds]
        self._devices = [(d.device, ways.index(own)) for d in devices if (own := multisets_of(d))]
        known = {profile for kind, _ in self.kinds for profiles in kind for profile, _ in profiles}
        self.groups = tuple(
            WorkerGroup(at, variant, profile, service)
            for at, member in enumerate(self.members)
            for (variant, profile), service in sorted(member.problem.services.items())
            if profile in known and (slow or self._keeps(member, service))
        )
        hosted = {group.profile for group in self.groups}
        self.profiles = tuple(sorted(hosted))
        self.cuts = (
            *(
                Cut(kind, profiles, awake_w)
                for kind, (ways, _) in enumerate(self.kinds)
                for profiles in ways
                if all(profile in hosted for profile, _ in profiles)
            ),
            *(
                Cut(kind, (), state.watts, state.name, float(state.wakes))
                for kind in range(len(self.kinds))
                for state in sleep
            ),
        )
        served = {cut.kind for cut in self.cuts if cut.profiles}
        self.lanes = tuple(
            (at, variant)
            for at, member in enumerate(self.members)
            for variant in member.problem.variants
            if any((g.member, g.variant) == (at, variant) for g in self.groups)
        )
        if len(served) < len(self.kinds) or {at for at, _ in self.lanes} != set(range(len(self.members))):
            raise PlanError("however the devices are cut, no variant keeps the SLO on some slice")
        self._at = {(g.member, g.variant, g.profile): at for at, g in enumerate(self.groups)}
        self._rows = {(cut.kind, cut.profiles): at for at, cut in enumerate(self.cuts) if cut.profiles}
        emissions = [m.problem.rate * m.objective.base_energy_j for m in self.members]
        self.weights = tuple(part / sum(emissions) for part in emissions)
        self.watt = sum(
            weight * self._price(m) / m.problem.rate for weight, m in zip(self.weights, self.members, strict=True)
        ) / len(self.members)
        self._running = running

    @staticmethod
    def _keeps(member: PackingMember, service: Service) -> bool:
        return service.mean_ms[0] * (1.0 + 1.645 * service.cv) + service.front_ms <= member.objective.slo_ms

    @staticmethod
    def _price(member: PackingMember) -> float:
        """Return what a joule of every row costs the member's own objective."""
        return member.objective.score(0.0, 0.0) - member.objective.score(0.0, 1.0)

    # --- the kernel's arrays ------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> Counts:
        """Slices [cut, profile]."""
        return np.array([[dict(cut.profiles).get(name, 0) for name in self.profiles] for cut in self.cuts], np.int64)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Lane sizes of the tables: powers of two up to all slices there can be."""
        per_kind = [
            number * max(sum(n for _, n in profiles) for profiles in ways) for ways, number in self.kinds
        ]
        return tuple(1 << power for power in range(max(1, math.ceil(math.log2(max(2, sum(per_kind)))) + 1)))

    def kernel(self, part: float = 1.0, module: Any = lanes) -> Any:
        """Return the problem, as `clover._native.lanes` (or its twin) takes it, with `part` of the late rows there may
        be."""
        most = [member.objective.max_utilisation for member in self.members]
        place = {lane: at for at, lane in enumerate(self.lanes)}
        names = {name: at for at, name in enumerate(self.profiles)}
        switching = None
        running = None
        if self._running is not None:
            running = self.counts(self._running)
            watts = np.array([g.service.least_energy_j * g.service.capacity() for g in self.groups])
            switching = self.watt * watts * SWITCH_S / DWELL_S
        return module.Problem(
            devices=[number for _, number in self.kinds],
            kind_of=np.array([cut.kind for cut in self.cuts]),
            partitions=self.table,
            idle_w=[cut.watts for cut in self.cuts],
            spare=[cut.spare for cut in self.cuts],
            slice_of=np.array([names[group.profile] for group in self.groups]),
            lane_of=np.array([place[group.member, group.variant] for group in self.groups]),
            capacity=[group.service.capacity() for group in self.groups],
            energy_j=[[_joules(g.service, size, most[g.member]) for size in self.sizes] for g in self.groups],
            late=[
                [_late(g.service, size, self.members[g.member].objective.slo_ms, most[g.member]) for size in self.sizes]
                for g in self.groups
            ],
            family_of=np.array([member for member, _ in self.lanes]),
            accuracy=[self.members[m].problem.accuracy[variant] for m, variant in self.lanes],
            quality=[
                self.weights[m] * self.members[m].objective.score(self.members[m].problem.accuracy[variant], 0.0)
                for m, variant in self.lanes
            ],
            rate=[member.problem.rate for member in self.members],
            peak=[member.problem.rate * member.peak for member in self.members],
            wake=[self._wake(at) for at in range(len(self.members))],
            floor=[member.objective.planned_floor for member in self.members],
            miss=[part * MISS] * len(self.members),
            limit=most,
            price=[weight * self._price(m) for weight, m in zip(self.weights, self.members, strict=True)],
            watt=self.watt,
            least=LEAST_PART,
            running=running,
            switching=switching,
        )

    def _wake(self, member: int) -> float:
        """Return rows a second that a device brings which is woken for the member: its best cut, the least of any
        kind."""
        fastest = {
            name: max([0.0, *(g.service.capacity() for g in self.groups if (g.member, g.profile) == (member, name))])
            for name in self.profiles
        }
        best: dict[int, float] = {}
        for cut in self.cuts:
            rows = sum(n * fastest[name] for name, n in cut.profiles)
            best[cut.kind] = max(best.get(cut.kind, 0.0), rows)
        return max(min(best.values()), 1e-9)

    # --- configurations and counts ------------------------------------------------------------------------------------

    def counts(self, configurations: Sequence[Configuration]) -> Counts:
        """Return workers of each group in one configuration a member; those of unknown groups are left out."""
        counts = np.zeros(len(self.groups), np.int64)
        for at, configuration in enumerate(configurations):
            for group in configuration:
                place = self._at.get((at, group.variant, group.profile))
                if place is not None:
                    counts[place] += group.count
        return counts

    def configuration(self, counts: Iterable[int], member: int = 0) -> Configuration:
        """Return what `counts` is for a member."""
        return tuple(
            GroupCount(variant=g.variant, profile=g.profile, count=int(n))
            for g, n in sorted(
                zip(self.groups, counts, strict=True), key=lambda item: (item[0].variant, item[0].profile)
            )
            if g.member == member and n
        )

    def standing(self, running: Sequence[Assignment], member: int = 0) -> tuple[Counts, Counts] | None:
        """Return what runs, as counts and cuts; None if the devices are not cut so, or some of it is not on them."""
        counts = self.counts([*[()] * member, configuration_of(tuple(running))])
        places = {item.placement.id: item.placement for item in running}
        used = np.zeros(len(self.cuts), np.int64)
        for device, kind in self._devices:
            here = Counter(place.profile for place in places.values() if place.device == device)
            at = self._rows.get((kind, tuple(sorted(here.items()))))
            if at is None:
                return None
            used[at] += 1
        stands = np.zeros(len(self.profiles), np.int64)
        np.add.at(stands, [self.profiles.index(group.profile) for group in self.groups], counts)
        return (counts, used) if int(counts.sum()) == len(running) and (stands == used @ self.table).all() else None

    def alike(self) -> list[tuple[Counts, Counts]]:
        """Return configurations to start from: all devices of a kind cut alike, one variant a member on all of its
        slices, the members taking slices in turn."""
        variants = [[variant for at, variant in self.lanes if at == member] for member in range(len(self.members))]
        starts: list[tuple[Counts, Counts]] = []
        by_kind = [
            [at for at, cut in enumerate(self.cuts) if cut.kind == kind and cut.profiles]
            for kind in range(len(self.kinds))
        ]
        for step in range(max(map(len, by_kind))):
            chosen = [rows[min(step, len(rows) - 1)] for rows in by_kind]
            used = np.zeros(len(self.cuts), np.int64)
            for at, (_, number) in zip(chosen, self.kinds, strict=True):
                used[at] += number
            slices = used @ self.table
            for rank in range(max(map(len, variants))):
                counts = self._dealt(slices, [names[min(rank, len(names) - 1)] for names in variants])
                if counts is not None:
                    starts.append((counts, used))
        return starts

    def loaded(self, most: int = 8) -> list[tuple[Counts, Counts]]:
        """Return configurations to start from if members need unlike parts of the devices (of one kind, members of
        one variant each): some devices whole, the others cut alike, and slices dealt, the largest first, to the
        busiest member then.  At most so many, those of the least power first, with every member below its limit."""
        if len(self.kinds) != 1:
            return []
        cuts = [at for at, cut in enumerate(self.cuts) if cut.profiles]
        whole = min(cuts, key=lambda at: (sum(number for _, number in self.cuts[at].profiles), at))
        starts: list[tuple[float, Counts, Counts]] = []
        for at in cuts:
            for number in range(self.kinds[0][1] + 1):
                used = np.zeros(len(self.cuts), np.int64)
                used[whole] += number
                used[at] += self.kinds[0][1] - number
                counts, watts = self._busiest(used @ self.table)
                if counts is not None and not any((used == other).all() for _, _, other in starts):
                    starts.append((watts, counts, used))
        return [(counts, used) for _, counts, used in sorted(starts, key=lambda item: item[0])[:most]]

    def _busiest(self, slices: Counts) -> tuple[Counts | None, float]:
        """Return slices dealt one by one to the member with most left to serve, and the watts of that; nothing if a
        member has more than its limit in the end, or a slice cannot serve any member."""
        counts = np.zeros(len(self.groups), np.int64)
        served = [0.0] * len(self.members)
        fastest = [max(g.service.capacity() for g in self.groups if g.member == at) for at in range(len(self.members))]
        best = {
            (group.member, group.profile): at
            for at, group in sorted(enumerate(self.groups), key=lambda item: -item[1].service.least_energy_j)
        }
        watts = 0.0
        size = {name: max(g.service.capacity() for g in self.groups if g.profile == name) for name in self.profiles}
        for name in sorted(self.profiles, key=lambda name: -size[name]):
            for _ in range(int(slices[self.profiles.index(name)])):
                able = [member for member in range(len(self.members)) if (member, name) in best]
                if not able:
                    return None, 0.0
                # A member without a slice counts as having a tenth of its best one, so that it comes first.
                busy = {m: self.members[m].problem.rate / (served[m] or 0.1 * fastest[m]) for m in able}
                chosen = max(able, key=lambda m: busy[m])
                counts[best[chosen, name]] += 1
                served[chosen] += self.groups[best[chosen, name]].service.capacity()
        for at, member in enumerate(self.members):
            if served[at] <= 0.0 or member.problem.rate > member.objective.max_utilisation * served[at]:
                return None, 0.0
            own = [g.service for g, n in zip(self.groups, counts, strict=True) if n and g.member == at]
            watts += member.problem.rate * sum(service.least_energy_j for service in own) / len(own)
        return counts, watts

    def _dealt(self, slices: Counts, variants: Sequence[str]) -> Counts | None:
        counts = np.zeros(len(self.groups), np.int64)
        turn = 0
        for name, number in zip(self.profiles, slices.tolist(), strict=True):
            able = [
                at for member, variant in enumerate(variants)
                if (at := self._at.get((member, variant, name))) is not None
            ]
            if number and not able:
                return None
            for _ in range(number):
                counts[able[turn % len(able)]] += 1
                turn += 1
        return counts
