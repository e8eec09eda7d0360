"""From one deployment to another without dropping a row: the ordered steps.

    create   make the instance at a placement
    spawn    start a worker there: load, warm, wait until it is ready
    route    from now on exactly `routed` receive rows
    drain    stop routing to a worker, wait for its rows, let it exit
    destroy  remove the instance

Workers in both deployments are kept and never touched, unless they share a process that has to go because memory does
not hold what comes beside it.  The rest is cut into jobs, which are done in rounds.  A round is a route step to all
that is ready and stays, then one stage each of: drain what leaves, destroy its instances, create new ones, spawn
workers.  The last round only routes, drains and destroys.  So each job costs the steps that it needs, and route steps
(which take no time) are one a round and one at the end.  Destroying everything and building anew never takes fewer
steps of the other kinds.

**Jobs** are the smallest parts of a transition that can be done one at a time.  A job replaces some workers of one
device by others.  It is done in one of two ways:

 - *beside*: new workers are spawned first, one route step switches to them, then the old ones leave.  Nothing is
   missing at any time.  Three changes are made beside: workers come on free slices; another variant follows on an
   instance that stays (if it is resident there, or both fit into its memory); core-sets change, which may overlap.
 - *exchange*: what is there has to leave before what comes can be made, because new instances cover old ones, or
   memory does not hold both.  All of the old is missing from the first drain until the new is routed to.  On a shared
   placement that is every variant there, also those that stay: they come back with the new process.

An exchange is as small as the geometry allows: old and new instances connected by overlap.  Its parts go together
because the first instance of a large profile cannot be made before the last small one in its place is gone, and the
other way round.  Instances of different jobs do not overlap, but a device may have further rules (caps, compute
slices).  If some order of the exchanges of a device would lead through instances that no layout of it has, all that
changes there is one exchange.  With the plain profiles of the GPUs known today that does not happen: there an exchange
is one only for want of memory.

**The floor.**  `floor` is the capacity (rows/s) that shall receive rows at any time.  It cannot exceed what runs
before or what is to run, so the least of these three holds (`Transition.capacity_floor`).  A job that gains
capacity without an interruption comes first; a job that only loses comes last.  In between come the exchanges.  Each
needs its old capacity to spare while it lasts, and changes the capacity for those after it.  Exchanges that gain go
first, by what they need, least first; then those that lose, by what they leave, most first.  No order of the jobs keeps
the lowest capacity higher (exchanging two neighbours that break the rule never lowers it): that is **exact**, and so is
the statement that the floor cannot be held.

As many exchanges as the floor allows share a round, over all GPUs, in that order (a **heuristic** for the shortest
time: packing them best is a bin-packing problem).  If the floor cannot be held, the lowest capacity is as high as some
order can make it; jobs that have to go below the floor anyway share a round if that makes nothing lower.  If any worker
can be kept serving, the capacity never reaches zero, even without a floor.

What is not tried: helping out with instances that belong to neither deployment.  Deployments fill maximal layouts, so
there is no free slice to put one on, and each would cost four steps more.  What the second GPU can do for the first is
in the order: what it gains comes first, and what it gives up stays until the last round.

On core-sets, which all workers share, the workers of a round load one after another, each in a stage of its own, so
that one at a time disturbs those that serve.  At a first start all load at once.  Of the variants that share a
placement, the first brings the process and the others follow in a stage after it.

`lost_capacity` is the largest share of the smaller deployment's slices that receives no rows at any time.  If no worker
is left to route to, rows wait in the queue, and the route step is left out (a drain stops routing by itself).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from clover.errors import PlanError
from clover.planning.transition.layout import Capacity, slices
from clover.planning.transition.stages import (
    UNITS,
    Resident,
    StageView,
    StepSeconds,
    at_once,
    capacity_by_placement,
    measured,
    order,
    views,
)
from clover.types import Assignment, DeviceShape, Placement, Step, StepKind, Transition

Beside = Callable[[Assignment, Assignment], bool]
"""Whether the second worker may load on the instance of the first while that still runs."""
_MOST_EXCHANGES = 10  # of one device whose orders are all tried


def plan_transition(
    running: Sequence[Assignment],
    target: Sequence[Assignment],
    devices: Sequence[DeviceShape],
    *,
    capacity: Capacity | None = None,
    floor: float = 0.0,
    durations: StepSeconds | None = None,
    beside: Beside | None = None,
    resident: Resident | None = None,
) -> Transition:
    """Return the steps from `running` to `target`; none if they are the same multiset.

    `capacity` gives the rows/s of a worker (compute slices if it is left out) and `floor` what shall be held; infinity
    asks for as much as can be.  `beside` says whether a worker may load on the instance of another (always, if it is
    left out), `resident` whether the process there holds its variant already, so that it comes at once (never, if it is
    left out).  Workers on devices that are not among `devices`, or have no layouts, are lost: they count for nothing
    and are cleared away first.  PlanError if `target` cannot exist on `devices`.
    """
    present = {device.device for device in devices if device.layouts}
    given = capacity or slices

    def counted(item: Assignment) -> float:
        return given(item) if item.placement.device in present else 0.0

    held = resident or (lambda item: False)
    allowed = beside or (lambda one, other: True)
    alone = {device.device for device in devices if device.one_process}
    jobs = jobs_of(
        running,
        target,
        devices,
        lambda one, other: held(other) or (other.placement.device not in alone and allowed(one, other)),
    )
    before, after = (capacity_by_placement(items, counted) for items in (running, target))
    limit = _limit(floor, sum(before.values()), sum(after.values()))
    rounds = _Rounds(jobs, before, after, limit).plan_rounds()
    gentle = {device.device for device in devices if device.overlap} if running else set()
    steps = _Steps(running, gentle).written(rounds)
    return transition_of(
        steps, running, target, devices, capacity=given, floor=floor, durations=durations, resident=held
    )


def transition_of(
    steps: Sequence[Step],
    running: Sequence[Assignment],
    target: Sequence[Assignment],
    devices: Sequence[DeviceShape],
    *,
    capacity: Capacity,
    floor: float,
    durations: StepSeconds | None = None,
    resident: Resident | None = None,
) -> Transition:
    """Return the transition that `steps` from `running` to `target` are, with what it does to capacity; the other
    arguments are those of `plan_transition`."""
    present = {device.device for device in devices if device.layouts}

    def counted(item: Assignment) -> float:
        return capacity(item) if item.placement.device in present else 0.0

    limit = _limit(floor, *(sum(capacity_by_placement(items, counted).values()) for items in (running, target)))
    seconds = durations or StepSeconds()
    free = at_once(steps, running, resident or (lambda item: False))
    seen = views(steps, running, capacity=counted, durations=seconds, free=free)
    capacities = [round(view.capacity * UNITS) for view in seen]
    again = _workers(steps, "drain") & _workers(steps, "spawn")
    spawns = [(index, step.assignment) for index, step in enumerate(steps) if step.kind == "spawn" and step.assignment]
    return Transition(
        steps=tuple(steps),
        kept=tuple(sorted(((Counter(running) & Counter(target)) - again).elements(), key=order)),
        lost_capacity=_lost(seen, target, present),
        capacity_floor=limit / UNITS,
        lowest_capacity=min(capacities) / UNITS,
        loses_s=sum(view.seconds for view, now in zip(seen, capacities, strict=True) if now < limit),
        loses_how="measured" if measured(steps, free, seconds) else "estimated",
        resident=tuple(item for index, item in spawns if index in free),
    )


def _workers(steps: Iterable[Step], kind: StepKind) -> Counter[Assignment]:
    return Counter(step.assignment for step in steps if step.kind == kind and step.assignment is not None)


def _limit(floor: float, start: int, end: int) -> int:
    """Return the capacity (`UNITS`) that `floor` asks to be kept between `start` and `end`."""
    return min(start, end) if math.isinf(floor) else min(start, end, round(floor * UNITS))


def _lost(seen: Sequence[StageView], target: Sequence[Assignment], present: set[str]) -> float:
    counts = [
        sum({item.placement.id: item.placement.slices for item in items if item.placement.device in present}.values())
        for items in (*(view.routed for view in seen), target)
    ]
    smaller = min(counts[0], counts[-1])
    return max(0.0, 1.0 - min(counts) / smaller) if smaller else 0.0


# --- the jobs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Part of a transition on one device.  `lost` jobs clear up after a device that is gone."""

    device: str
    leaving: tuple[Assignment, ...] = ()
    coming: tuple[Assignment, ...] = ()
    destroyed: tuple[Placement, ...] = ()
    created: tuple[Placement, ...] = ()
    exchange: bool = False
    lost: bool = False

    @property
    def places(self) -> set[str]:
        """The ids of the placements whose workers it replaces."""
        return {item.placement.id for item in (*self.leaving, *self.coming)}


def jobs_of(
    running: Sequence[Assignment], target: Sequence[Assignment], devices: Sequence[DeviceShape], beside: Beside
) -> list[Job]:
    """Return the jobs that lead from `running` to `target`, by device.  A device without layouts counts as lost.
    PlanError if `target` is on a device that is not there or cannot exist on one."""
    shapes = {device.device: device for device in devices if device.layouts}
    names = sorted({item.placement.device for item in (*running, *target)})
    jobs: list[Job] = []
    for name in names:
        old = [item for item in running if item.placement.device == name]
        new = [item for item in target if item.placement.device == name]
        shape = shapes.get(name)
        if shape is None:
            if new:
                raise PlanError(f"there is no device {name} to run {new[0].variant} on")
            destroyed = tuple(_places(old).values())
            jobs.append(Job(name, leaving=_sorted(old), destroyed=destroyed, lost=True))
        else:
            jobs.extend(_Device(shape, old, new, beside).jobs())
    return jobs


class _Device:
    def __init__(
        self, shape: DeviceShape, old: Sequence[Assignment], new: Sequence[Assignment], beside: Beside
    ) -> None:
        self._shape = shape
        self._beside = beside
        common = Counter(old) & Counter(new)
        self._common = _sorted(common.elements())
        self._leaving = _sorted((Counter(old) - common).elements())
        self._coming = _sorted((Counter(new) - common).elements())
        before, after = _places(old), _places(new)
        self._staying = {key: place for key, place in before.items() if key in after}
        self._going = {key: place for key, place in before.items() if key not in after}
        self._new = {key: place for key, place in after.items() if key not in before}

    def jobs(self) -> Iterator[Job]:
        if not self._leaving and not self._coming:
            return
        if self._shape.overlap:
            yield from self._overlapping()
            return
        if not self._legal({**self._staying, **self._new}):
            names = ", ".join(sorted({**self._staying, **self._new}))
            raise PlanError(f"{names} cannot exist together on {self._shape.device} as it is now")
        for key, place in sorted(self._staying.items()):
            before, after = self._at(self._leaving, [key]), self._at(self._coming, [key])
            if before or after:
                there = (*before, *self._at(self._common, [key]))
                fits = all(self._beside(one, other) for one in there for other in after)
                yield self._job({key: place}, {key: place}, exchange=not fits)
        yield from self._instances()

    def _overlapping(self) -> Iterator[Job]:
        """Yield one job for all that may load beside what is there, and one for each part that may not."""
        before, after = {**self._staying, **self._going}, {**self._staying, **self._new}
        for old, new in self._tied():
            yield self._job({key: before[key] for key in old}, {key: after[key] for key in new}, exchange=True)
            before = {key: place for key, place in before.items() if key not in old}
            after = {key: place for key, place in after.items() if key not in new}
        if self._at(self._leaving, before) or self._at(self._coming, after):
            yield self._job(before, after, exchange=False)

    def _tied(self) -> list[tuple[set[str], set[str]]]:
        """Return the ids of placements whose workers have to leave before others come, with those of these, connected
        by overlap."""
        tied: list[tuple[set[str], set[str]]] = []
        for item in self._coming:
            here = [other for other in self._leaving if _overlap(other.placement, item.placement)]
            here += [other for other in self._common if other.placement == item.placement]
            if all(self._beside(other, item) for other in here):
                continue
            old, new = {other.placement.id for other in here}, {item.placement.id}
            for joined in [part for part in tied if part[0] & old or part[1] & new]:
                tied.remove(joined)
                old, new = old | joined[0], new | joined[1]
            tied.append((old, new))
        return tied

    def _instances(self) -> Iterator[Job]:
        """Yield the jobs that make and remove instances."""
        groups = self._groups()
        tied_old = {key for old, _ in groups for key in old}
        tied_new = {key for _, new in groups for key in new}
        freed = {key: place for key, place in self._going.items() if key not in tied_old}
        added = {key: place for key, place in self._new.items() if key not in tied_new}
        if not self._any_order(groups, {**self._staying, **freed, **added}):
            groups, freed, added = [(self._going, self._new)], {}, {}
        if added:
            yield self._job({}, added, exchange=False)
        for old, new in groups:
            yield self._job(old, new, exchange=True)
        if freed:
            yield self._job(freed, {}, exchange=False)

    def _groups(self) -> list[tuple[dict[str, Placement], dict[str, Placement]]]:
        """Return new instances that cover old ones, with those, connected by overlap."""
        groups: list[tuple[dict[str, Placement], dict[str, Placement]]] = []
        for key, place in sorted(self._new.items(), key=lambda item: item[1].start):
            old = {other: p for other, p in self._going.items() if _overlap(p, place)}
            if not old:
                continue
            new = {key: place}
            for joined in [group for group in groups if group[0].keys() & old.keys()]:
                groups.remove(joined)
                old, new = {**joined[0], **old}, {**joined[1], **new}
            groups.append((old, new))
        return groups

    def _any_order(
        self, groups: Sequence[tuple[dict[str, Placement], dict[str, Placement]]], always: Iterable[str]
    ) -> bool:
        """Return whether the device allows the instances on the way in whatever order `groups` are exchanged."""
        if len(groups) > _MOST_EXCHANGES:
            return False
        return all(self._legal({*always, *itertools.chain(*states)}) for states in itertools.product(*groups))

    def _legal(self, instances: Iterable[str]) -> bool:
        standing = set(instances)
        return any(standing <= layout for layout in self._layouts)

    @cached_property
    def _layouts(self) -> list[set[str]]:
        return [{place.id for place in layout} for layout in self._shape.layouts]

    def _job(self, old: dict[str, Placement], new: dict[str, Placement], *, exchange: bool) -> Job:
        stays = {key for key in old if key in self._staying} if exchange else set()
        again = self._at(self._common, stays)
        return Job(
            self._shape.device,
            leaving=_sorted((*self._at(self._leaving, old), *again)),
            coming=_sorted((*self._at(self._coming, new), *again)),
            destroyed=tuple(place for key, place in old.items() if key in self._going),
            created=tuple(place for key, place in new.items() if key in self._new),
            exchange=exchange,
        )

    def _at(self, items: Iterable[Assignment], places: Iterable[str]) -> tuple[Assignment, ...]:
        wanted = set(places)
        return tuple(item for item in items if item.placement.id in wanted)


def _sorted(items: Iterable[Assignment]) -> tuple[Assignment, ...]:
    return tuple(sorted(items, key=order))


def _places(items: Iterable[Assignment]) -> dict[str, Placement]:
    return {item.placement.id: item.placement for item in sorted(items, key=order)}


def _overlap(left: Placement, right: Placement) -> bool:
    return left.start < right.start + right.size and right.start < left.start + left.size


# --- which job in which round -----------------------------------------------------------------------------------------


@dataclass
class _Round:
    """What leaves at the beginning of a round and what has come at the end of it."""

    leaving: list[Assignment] = field(default_factory=list)
    destroyed: list[Placement] = field(default_factory=list)
    created: list[Placement] = field(default_factory=list)
    coming: list[Assignment] = field(default_factory=list)

    def leave(self, job: Job) -> None:
        self.leaving.extend(job.leaving)
        self.destroyed.extend(job.destroyed)

    def come(self, job: Job) -> None:
        self.created.extend(job.created)
        self.coming.extend(job.coming)


@dataclass(frozen=True)
class _Exchange:
    job: Job
    need: int
    leaves: int

    @property
    def rank(self) -> tuple[int, int]:
        return (0, self.need) if self.leaves >= self.need else (1, -self.leaves)


class _Rounds:
    """Deals jobs to rounds.  Capacities are whole `UNITS`."""

    def __init__(self, jobs: Sequence[Job], before: Mapping[str, int], after: Mapping[str, int], limit: int) -> None:
        # `before` and `after`: the capacity of each placement, with what stays there.
        def total(at: Mapping[str, int], job: Job) -> int:
            return sum(at.get(place, 0) for place in job.places)

        self._start = sum(before.values())
        self._limit = limit
        self._lost = [job for job in jobs if job.lost]
        beside = [(job, total(after, job) - total(before, job)) for job in jobs if not job.lost and not job.exchange]
        self._first = [job for job, gain in beside if gain >= 0]
        self._last = [job for job, gain in beside if gain < 0]
        self._gain = sum(gain for _, gain in beside if gain >= 0)
        self._exchanges = sorted(
            (_Exchange(job, total(before, job), total(after, job)) for job in jobs if job.exchange),
            key=lambda item: item.rank,
        )
        self._low = self._lowest()

    def plan_rounds(self) -> list[_Round]:
        """Return the rounds; the last is for what leaves at the end."""
        if not (self._lost or self._first or self._last or self._exchanges):
            return []
        now, left = self._start, list(self._exchanges)
        first = _Round()
        for job in self._lost:
            first.leave(job)
        for job in self._first:
            first.come(job)
        # Before what comes first has come, only what holds the floor without it.
        now = self._exchange(first, left, now, forced=not self._first) + self._gain
        rounds = [first, _Round()]
        for job in self._first:
            rounds[-1].leave(job)
        while left:
            now = self._exchange(rounds[-1], left, now, forced=True)
            rounds.append(_Round())
        for job in self._last:
            rounds[-2].come(job)
            rounds[-1].leave(job)
        return rounds

    def _exchange(self, into: _Round, left: list[_Exchange], now: int, *, forced: bool) -> int:
        """Move exchanges from `left` into a round; the capacity when it is over."""
        taken: list[_Exchange] = []
        room = now
        while left and self._holds(room - left[0].need):
            taken.append(left.pop(0))
            room -= taken[-1].need
        if not taken and left and forced:
            taken.append(left.pop(0))
            room -= taken[0].need
            alone = now - taken[0].need + taken[0].leaves
            while left and not self._holds(alone - left[0].need) and room - left[0].need >= self._low:
                taken.append(left.pop(0))
                room -= taken[-1].need
                alone += taken[-1].leaves - taken[-1].need
        for item in taken:
            into.leave(item.job)
            into.come(item.job)
        return room + sum(item.leaves for item in taken)

    def _holds(self, capacity: int) -> bool:
        return capacity >= self._limit and (capacity > 0 or self._low <= 0)

    def _lowest(self) -> int:
        """Return the lowest capacity if each exchange has a round of its own: no order and no other dealing has
        more."""
        low, now = self._start, self._start + self._gain
        for item in self._exchanges:
            low = min(low, now - item.need)
            now += item.leaves - item.need
        return low


# --- the steps --------------------------------------------------------------------------------------------------------


class _Steps:
    def __init__(self, running: Sequence[Assignment], gentle: set[str]) -> None:
        self._gentle = gentle
        self._routed = sorted(running, key=order)
        self._ready: list[Assignment] = []
        self._steps: list[Step] = []
        self._stage = 0

    def written(self, rounds: Sequence[_Round]) -> list[Step]:
        for each in rounds:
            self._route(each.leaving)
            self._workers("drain", each.leaving)
            self._instances("destroy", each.destroyed)
            self._instances("create", each.created)
            for rank in _ranks(item for item in each.coming if item.placement.device not in self._gentle):
                self._workers("spawn", rank)
            for item in sorted(each.coming, key=order):
                if item.placement.device in self._gentle:
                    self._workers("spawn", [item])
            self._ready = each.coming
        return self._steps

    def _route(self, leaving: Sequence[Assignment]) -> None:
        """Route to all that is ready, except what leaves now."""
        stays = list((Counter(self._routed) - Counter(leaving)).elements())
        after = sorted((*stays, *self._ready), key=order)
        if after and after != self._routed:
            self._steps.append(Step(kind="route", routed=tuple(after), stage=self._stage))
            self._stage += 1
        self._routed = after

    def _workers(self, kind: StepKind, items: Sequence[Assignment]) -> None:
        self._steps.extend(Step(kind=kind, assignment=item, stage=self._stage) for item in sorted(items, key=order))
        self._stage += bool(items)

    def _instances(self, kind: StepKind, places: Sequence[Placement]) -> None:
        places = sorted(places, key=lambda place: (place.device, place.start, place.size))
        self._steps.extend(Step(kind=kind, placement=place, stage=self._stage) for place in places)
        self._stage += bool(places)


def _ranks(items: Iterable[Assignment]) -> list[list[Assignment]]:
    """Return the first of `items` at each placement, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    ranks: list[list[Assignment]] = []
    for item in sorted(items, key=order):
        rank = seen[item.placement.id]
        seen[item.placement.id] += 1
        if rank == len(ranks):
            ranks.append([])
        ranks[rank].append(item)
    return ranks
