"""The planning problem as the kernel takes it: families on devices, some of which may sleep.

A *member* is a family with its problem and objective.  Several members share the devices: any slice may serve any of
them.  Their joint objective is the sum of theirs, each weighted with its part of the emissions that BASE would have, so
that a gram counts alike in all of them; alone, a family keeps its own objective.

**Asleep.**  Where `Sleep` states are given, the number of devices awake is chosen as well.  An awake device draws
`awake_w` idle, a sleeping one less.  A state that wakes in time counts for the *peak*: the rows a second that may come
before the next plan (rate x `peak`).  What awake workers do not serve of it at full capacity must be left to devices
that wake in time, each at the best that one whole device serves.  The others may be released altogether.

**What a lane does** at a load is told by two tables, for lanes of 1, 2, 4, ... equal workers at loads up to the
utilisation limit: the joules of a row (`_joules`, from the expected batch) and the part of the rows that miss the SLO
(`_late`, played by the simulator).  They are remembered: they depend on service, SLO and limit, neither on load nor on
intensity.  A lane of unlike workers is taken as their mean, and noise is left in; what a plan is committed to is
simulated as it is afterwards.

**The bound.**  y_k is the share of the rows that the workers of group k serve; no share is above what n_k workers serve
at the utilisation limit, and no row costs less than at the most frugal batch.  So f is at most the optimum of a linear
program over shares and partitions.  With multipliers tau (of "the shares sum to 1") and mu >= 0 (of the floor) of each
member, the program falls apart into devices: each takes its best partition, each slice its best group.  Any multipliers
give a valid bound.  The dual is convex; one member's is minimised by nested sections, several members' in turns.
p95, minimum shares and the peak are left out, which can only raise it.
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
from clover.planning.enumerate import Profiles, kinds_of, multisets_of
from clover.planning.objective import Objective
from clover.planning.problem import Problem
from clover.planning.queueing import Service, expected_batch, late
from clover.planning.search import LEAST_PART
from clover.types import Assignment, Configuration, DeviceShape, GroupCount, Record

LOADS = 8
"""Steps of the tables of energy over load."""
MISS = 0.05
"""The part of a family's rows that may miss the SLO."""
_SECTIONS = 24
_ZOOMS = 4
_PRICES = 16
_TURNS = 6
_WIDE = 60.0

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


class Sleep(Record, frozen=True, kw_only=True):
    """A state in which a device serves nothing and draws `watts`.  `wakes` says whether it can be awake again before
    the peak comes."""

    name: str
    watts: float
    wakes: bool


@dataclass(frozen=True)
class Member:
    """A family of the fleet.  `peak` over the rate it is planned for, at least 1 where it counts."""

    problem: Problem
    objective: Objective
    peak: float = 0.0


@dataclass(frozen=True)
class Group:
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


@lru_cache(maxsize=65536)
def _late(service: Service, workers: int, slo_ms: float, limit: float) -> tuple[float, ...]:
    """The part of the rows that take longer than `slo_ms`, at `LOADS` + 1 loads from 0 to `limit`, in a lane of so many
    equal workers.  Rows that are late at no load are not played at lower ones."""
    alone = 0.5 * math.erfc((slo_ms / service.mean_ms[0] - 1.0) / max(service.cv, 1e-9) / math.sqrt(2.0))
    found = [alone] * (LOADS + 1)
    for step in range(LOADS, 0, -1):
        rate = step / LOADS * limit * workers * service.capacity()
        found[step] = max(alone, late((service,) * workers, rate, slo_ms))
        if found[step] <= alone:
            break
    return tuple(found)


@lru_cache(maxsize=65536)
def _joules(service: Service, workers: int, limit: float) -> tuple[float, ...]:
    """Joules of a row at `LOADS` + 1 loads from 0 to `limit` in a lane of so many equal workers."""
    rates = (step / LOADS * limit * service.capacity() for step in range(LOADS + 1))
    return tuple(service.energy_j(expected_batch(service, rate, workers)) for rate in rates)


class Formulation:
    """Members on devices, ready for the kernel.

    `switch_j` is what a worker that has to be started costs, spread over the `dwell_s` seconds a plan is expected to
    last, and `running` (a configuration a member) what need not be started.  `slow` keeps groups of which a single row
    misses the SLO.  Raises PlanError where nothing can run at all.
    """

    def __init__(
        self,
        members: Sequence[Member],
        devices: Sequence[DeviceShape],
        *,
        sleep: Sequence[Sleep] = (),
        awake_w: float = 0.0,
        switch_j: float = 0.0,
        dwell_s: float = 300.0,
        running: Sequence[Configuration] | None = None,
        slow: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.kinds = kinds_of(devices)
        known = {profile for kind, _ in self.kinds for profiles in kind for profile, _ in profiles}
        self.groups = tuple(
            Group(at, variant, profile, service)
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
            raise PlanError("there is no way to cut the devices of which every slice keeps the SLO with some variant")
        self._at = {(g.member, g.variant, g.profile): at for at, g in enumerate(self.groups)}
        self._rows = {(cut.kind, cut.profiles): at for at, cut in enumerate(self.cuts) if cut.profiles}
        emissions = [m.problem.rate * m.objective.base_energy_j for m in self.members]
        self.weights = tuple(part / sum(emissions) for part in emissions)
        self.watt = sum(
            weight * self._price(m) / m.problem.rate for weight, m in zip(self.weights, self.members, strict=True)
        ) / len(self.members)
        self._switch = self.watt * switch_j / dwell_s
        self._running = running

    @staticmethod
    def _keeps(member: Member, service: Service) -> bool:
        return service.mean_ms[0] * (1.0 + 1.645 * service.cv) <= member.objective.slo_ms

    @staticmethod
    def _price(member: Member) -> float:
        """What a joule of every row costs the member's own objective."""
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
        """The problem, as `clover._native.lanes` (or its twin) takes it, with `part` of the late rows there may be."""
        most = [member.objective.max_utilisation for member in self.members]
        place = {lane: at for at, lane in enumerate(self.lanes)}
        names = {name: at for at, name in enumerate(self.profiles)}
        switching = None
        running = None
        if self._running is not None:
            running = self.counts(self._running)
            switching = np.full(len(self.groups), self._switch)
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
        """Rows a second that a device brings which is woken for the member: its best cut, the least of any kind."""
        fastest = {
            name: max((g.service.capacity() for g in self.groups if (g.member, g.profile) == (member, name)), default=0.0)
            for name in self.profiles
        }
        best: dict[int, float] = {}
        for cut in self.cuts:
            rows = sum(n * fastest[name] for name, n in cut.profiles)
            best[cut.kind] = max(best.get(cut.kind, 0.0), rows)
        return max(min(best.values()), 1e-9)

    # --- configurations and counts ------------------------------------------------------------------------------------

    def counts(self, configurations: Sequence[Configuration]) -> Counts:
        """Workers of each group in one configuration a member; those of unknown groups are left out."""
        found = np.zeros(len(self.groups), np.int64)
        for at, configuration in enumerate(configurations):
            for group in configuration:
                place = self._at.get((at, group.variant, group.profile))
                if place is not None:
                    found[place] += group.count
        return found

    def configuration(self, counts: Iterable[int], member: int = 0) -> Configuration:
        """What `counts` is for a member."""
        return tuple(
            GroupCount(variant=g.variant, profile=g.profile, count=int(n))
            for g, n in sorted(
                zip(self.groups, counts, strict=True), key=lambda item: (item[0].variant, item[0].profile)
            )
            if g.member == member and n
        )

    def asleep(self, used: Iterable[int]) -> dict[str, int]:
        """Devices in each state of sleep."""
        found: dict[str, int] = {}
        for cut, number in zip(self.cuts, used, strict=True):
            if not cut.profiles and number:
                found[cut.state] = found.get(cut.state, 0) + int(number)
        return found

    def cut_as(self, layouts: Iterable[tuple[int, Profiles]]) -> Counts | None:
        """Devices of each cut where they are cut as `layouts` says (`cut_now`); None where one of these is no cut of
        the formulation, or not all devices are named."""
        used = np.zeros(len(self.cuts), np.int64)
        for key in layouts:
            at = self._rows.get(key)
            if at is None:
                return None
            used[at] += 1
        per_kind = [sum(int(used[i]) for i, cut in enumerate(self.cuts) if cut.kind == k) for k in range(len(self.kinds))]
        return used if per_kind == [number for _, number in self.kinds] else None

    def alike(self) -> list[tuple[Counts, Counts]]:
        """Configurations to start from: all devices of a kind cut alike, one variant a member on all of its slices,
        the members taking slices in turn."""
        variants = [[variant for at, variant in self.lanes if at == member] for member in range(len(self.members))]
        found: list[tuple[Counts, Counts]] = []
        by_kind = [[at for at, cut in enumerate(self.cuts) if cut.kind == kind and cut.profiles] for kind in range(len(self.kinds))]
        for step in range(max(map(len, by_kind))):
            chosen = [rows[min(step, len(rows) - 1)] for rows in by_kind]
            used = np.zeros(len(self.cuts), np.int64)
            for at, (_, number) in zip(chosen, self.kinds, strict=True):
                used[at] += number
            slices = used @ self.table
            for rank in range(max(map(len, variants))):
                counts = self._dealt(slices, [names[min(rank, len(names) - 1)] for names in variants])
                if counts is not None:
                    found.append((counts, used))
        return found

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

    # --- the bound ----------------------------------------------------------------------------------------------------

    def bound(self) -> float:
        """What the joint objective cannot exceed; minus infinity where the devices cannot serve the rates at all."""
        return _Dual(self).least()


class _Dual:
    """The dual of a formulation's relaxation."""

    def __init__(self, of: Formulation) -> None:
        self.of = of
        gains, rows = [], []
        for group in of.groups:
            member = of.members[group.member]
            weight = of.weights[group.member]
            accuracy = member.problem.accuracy[group.variant]
            busiest = member.objective.max_utilisation * group.service.capacity()
            longest = expected_batch(group.service, busiest)  # no lane has longer batches at that load
            gains.append(weight * member.objective.score(accuracy, group.service.least_energy_to(longest)))
            rows.append(busiest / member.problem.rate)
        self.gain, self.rows = np.array(gains), np.array(rows)
        self.member = np.array([group.member for group in of.groups])
        self.accuracy = np.array([of.members[g.member].problem.accuracy[g.variant] for g in of.groups])
        self.floor = np.array([member.objective.planned_floor for member in of.members])
        self.idle = of.watt * np.array([cut.watts for cut in of.cuts])
        self.slices = [np.flatnonzero([g.profile == name for g in of.groups]) for name in of.profiles]
        self.best = np.array([max(self.gain[self.member == m]) for m in range(len(of.members))])

    def value(self, total: Floats, price: Floats) -> Floats:
        """The dual at `total` [points, members] and `price` [members]."""
        worth = self.gain + price[self.member] * self.accuracy - total[:, self.member]
        worth = np.maximum(worth, 0.0) * self.rows
        slices = np.stack([worth[:, groups].max(axis=1) for groups in self.slices], axis=1)
        cuts = slices @ self.of.table.T - self.idle
        found = total.sum(axis=1) - float(price @ self.floor)
        for kind, (_, number) in enumerate(self.of.kinds):
            own = [at for at, cut in enumerate(self.of.cuts) if cut.kind == kind]
            found = found + number * cuts[:, own].max(axis=1)
        return np.asarray(found)

    def least(self) -> float:
        members = len(self.of.members)
        total, price = self.best.copy(), np.zeros(members)
        value = float(self.value(total[None, :], price)[0])
        for _ in range(1 if members == 1 else _TURNS):
            for member in range(members):
                total, price, value = self._turn(member, total, price, value)
        return value

    def _turn(self, member: int, total: Floats, price: Floats, value: float) -> tuple[Floats, Floats, float]:
        """The best multipliers of one member, the others' held."""
        own = self.member == member
        spread = max(float(np.ptp(self.gain[own])), 1e-9)
        reach = max(float(np.ptp(self.accuracy[own])), 1e-9)
        golden = 0.5 * (math.sqrt(5.0) - 1.0)

        def inner(mu: float) -> tuple[float, float]:
            prices = price.copy()
            prices[member] = mu
            worth = self.gain[own] + mu * self.accuracy[own]
            low, high = float(worth.min()) - _WIDE * spread, float(worth.max())
            best = (math.inf, 0.0)
            for _ in range(_ZOOMS):
                points = np.tile(total, (_SECTIONS, 1))
                points[:, member] = np.linspace(low, high, _SECTIONS)
                found = self.value(points, prices)
                at = int(np.argmin(found))
                best = min(best, (float(found[at]), float(points[at, member])))
                low, high = float(points[max(at - 1, 0), member]), float(points[min(at + 1, _SECTIONS - 1), member])
            return best

        low, high = 0.0, 4.0 * spread / reach
        best, at = inner(0.0)
        chosen = (best, at, 0.0)
        a, b = high - golden * (high - low), low + golden * (high - low)
        fa, fb = inner(a), inner(b)
        for _ in range(_PRICES):
            chosen = min(chosen, (*fa, a), (*fb, b))
            if fa[0] <= fb[0]:
                high, b, fb = b, a, fa
                a = high - golden * (high - low)
                fa = inner(a)
            else:
                low, a, fa = a, b, fb
                b = low + golden * (high - low)
                fb = inner(b)
        if chosen[0] < value:
            total, price = total.copy(), price.copy()
            total[member], price[member] = chosen[1], chosen[2]
            return total, price, chosen[0]
        return total, price, value


def cut_now(running: Iterable[Assignment], devices: Sequence[DeviceShape]) -> list[tuple[int, Profiles]]:
    """How each device that has a layout is cut by the instances `running` stands on, as (kind, profiles)."""
    order = [kind for kind, _ in kinds_of(devices)]
    places = {item.placement.id: item.placement for item in running}.values()
    found = []
    for device in devices:
        if ways := multisets_of(device):
            here = Counter(place.profile for place in places if place.device == device.device)
            found.append((order.index(ways), tuple(sorted(here.items()))))
    return found
