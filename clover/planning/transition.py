"""From one deployment to another without dropping a row: the ordered steps.

    create   make the instance at a placement
    spawn    start a worker there: load, warm, wait until it is ready
    route    from now on exactly `routed` receive rows
    drain    stop routing to a worker, wait for its rows, let it exit
    destroy  remove the instance

Workers in both deployments are kept and never touched.  The rest depends on the device:

 - *Overlapping instances* (core-sets): everything new is created and spawned beside the old, one route step flips all,
   then the old drain and leave.  No capacity is lost.
 - *Same placement, other variant*, on any device: the second worker is spawned on the instance that exists, and no
   instance is made or unmade.
 - *Other placements of a device without overlap* (MIG): what is free is created first.  Where new instances cover old
   ones, both fall into groups (connected by overlap); group after group the old workers of a group are routed around
   and drained, their instances destroyed, the new ones created, spawned and routed to.  A group is as small as the
   geometry allows, so that no more than its slices are missing at a time.  If the layouts of the device forbid the
   instances that would stand in between, the device is one group.

`lost_capacity` is the largest share of the smaller deployment's slices that receives no rows at any route step or
drain.  Where it would be 1 there is nobody to route to: rows wait in the queue meanwhile, and the route step is left
out (a drain stops routing by itself).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from clover.types import Assignment, DeviceShape, Placement, Step, Transition


def plan_transition(
    running: Sequence[Assignment], target: Sequence[Assignment], devices: Sequence[DeviceShape]
) -> Transition:
    """The steps from `running` to `target`; none where they are the same multiset."""
    return _Planner(running, target, devices).planned()


@dataclass
class _Group:
    """Old workers and instances that have to go before new ones can come."""

    leaving: list[Assignment] = field(default_factory=list)
    old: dict[str, Placement] = field(default_factory=dict)
    new: dict[str, Placement] = field(default_factory=dict)


class _Planner:
    def __init__(
        self, running: Sequence[Assignment], target: Sequence[Assignment], devices: Sequence[DeviceShape]
    ) -> None:
        self._shapes = {device.device: device for device in devices}
        self._running = list(running)
        common = Counter(running) & Counter(target)
        self.kept = sorted(common.elements(), key=_order)
        self._coming = sorted((Counter(target) - common).elements(), key=_order)
        self._leaving = sorted((Counter(running) - common).elements(), key=_order)
        self._target_places = {item.placement.id for item in target}
        self._instances = {item.placement.id: item.placement for item in running}
        self._routed = list(running)
        self._ready: list[Assignment] = []
        self._steps: list[Step] = []
        self._smaller = min(_slices(running), _slices(target))
        self._least = self._smaller

    def planned(self) -> Transition:
        if self._coming or self._leaving:
            groups = self._groups()
            grouped = {item.id for group in groups for item in group.new.values()}
            self._arrive([item for item in self._coming if item.placement.id not in grouped])
            self._flip(stay=[item for group in groups for item in group.leaving])
            for group in groups:
                self._exchange(group)
            assert Counter(self._routed) == Counter(self.kept) + Counter(self._coming)
        lost = 1.0 - self._least / self._smaller if self._smaller else 0.0
        return Transition(steps=tuple(self._steps), kept=tuple(self.kept), lost_capacity=max(0.0, lost))

    # --- what stands in whose way -----------------------------------------------------------------------------------

    def _groups(self) -> list[_Group]:
        groups: list[_Group] = []
        for name, shape in sorted(self._shapes.items()):
            if not shape.overlap:
                groups.extend(self._groups_of(shape, name))
        return groups

    def _groups_of(self, shape: DeviceShape, name: str) -> list[_Group]:
        old = {key: p for key, p in self._instances.items() if p.device == name}
        coming = {item.placement.id: item.placement for item in self._coming if item.placement.device == name}
        new = {key: placement for key, placement in coming.items() if key not in old}
        blocked = {key for key, p in new.items() if any(_overlap(p, other) for other in old.values())}
        groups = self._connected(old, {key: new[key] for key in sorted(blocked)})
        if self._possible(shape, old, new, blocked, groups):
            return groups
        going = {key: p for key, p in old.items() if key not in self._target_places}
        return [self._group(going, new)] if new else []

    def _connected(self, old: dict[str, Placement], new: dict[str, Placement]) -> list[_Group]:
        groups: list[tuple[dict[str, Placement], dict[str, Placement]]] = []
        for key, placement in new.items():
            mine = {other: p for other, p in old.items() if _overlap(p, placement)}
            joined = [group for group in groups if group[0].keys() & mine.keys()]
            groups = [group for group in groups if group not in joined]
            merged_old, merged_new = dict(mine), {key: placement}
            for before_old, before_new in joined:
                merged_old.update(before_old)
                merged_new.update(before_new)
            groups.append((merged_old, merged_new))
        return [self._group(*group) for group in groups]

    def _group(self, old: dict[str, Placement], new: dict[str, Placement]) -> _Group:
        return _Group([item for item in self._leaving if item.placement.id in old], dict(sorted(old.items())), new)

    def _possible(
        self,
        shape: DeviceShape,
        old: dict[str, Placement],
        new: dict[str, Placement],
        blocked: set[str],
        groups: list[_Group],
    ) -> bool:
        """Whether every set of instances on the way fits into some layout."""
        layouts = [{placement.id for placement in layout} for layout in shape.layouts]

        def fits(instances: Iterable[str]) -> bool:
            return any(set(instances) <= layout for layout in layouts)

        standing = set(old) | (new.keys() - blocked)
        if not fits(standing):
            return False
        standing -= {key for key in old if key not in self._target_places and not any(key in g.old for g in groups)}
        for group in groups:
            standing = (standing - group.old.keys()) | group.new.keys()
            if not fits(standing):
                return False
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    def _arrive(self, coming: Sequence[Assignment]) -> None:
        for item in coming:
            if item.placement.id not in self._instances:
                self._instances[item.placement.id] = item.placement
                self._steps.append(Step(kind="create", placement=item.placement))
        self._steps.extend(Step(kind="spawn", assignment=item) for item in coming)
        self._ready.extend(coming)

    def _flip(self, stay: Sequence[Assignment]) -> None:
        """Route to what is ready of the target and to what of the old has to stay a while; drain and clear the rest."""
        kept_for_now = Counter(stay)
        going = list((Counter(self._leaving) - kept_for_now).elements())
        self._route([*self.kept, *self._ready, *stay])
        self._leave(going)

    def _exchange(self, group: _Group) -> None:
        gone = Counter(group.leaving)
        self._route(list((Counter(self._routed) - gone).elements()))
        self._leave(group.leaving)
        coming = [item for item in self._coming if item.placement.id in group.new]
        self._arrive(coming)
        self._route([*self._routed, *coming])

    def _leave(self, going: Sequence[Assignment]) -> None:
        going = sorted(going, key=_order)
        self._steps.extend(Step(kind="drain", assignment=item) for item in going)
        occupied = {item.placement.id for item in self._routed}
        for placement in {item.placement.id: item.placement for item in going}.values():
            if placement.id not in occupied and placement.id not in self._target_places:
                del self._instances[placement.id]
                self._steps.append(Step(kind="destroy", placement=placement))

    def _route(self, to: Sequence[Assignment]) -> None:
        if Counter(to) == Counter(self._routed):
            return
        self._routed = sorted(to, key=_order)
        self._least = min(self._least, _slices(self._routed))
        if self._routed:
            self._steps.append(Step(kind="route", routed=tuple(self._routed)))


def _order(item: Assignment) -> tuple[str, int, int, str, str]:
    place = item.placement
    return (place.device, place.start, place.size, item.variant, item.backend)


def _overlap(left: Placement, right: Placement) -> bool:
    return left.start < right.start + right.size and right.start < left.start + left.size


def _slices(deployment: Iterable[Assignment]) -> int:
    """Slices that hold a worker; those under two overlapping core-sets count once."""
    return len(
        {
            (item.placement.device, index)
            for item in deployment
            for index in range(item.placement.start, item.placement.start + item.placement.size)
        }
    )
