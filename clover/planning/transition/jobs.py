"""The jobs of a transition: the smallest parts of it that can be done one at a time.

A job replaces some workers of one device by others.  It is done in one of two ways:

 - *beside*: new workers are spawned first, one route step switches to them, then the old ones leave.  Nothing is
   missing at any time.  That is how workers come on free slices, how another variant follows on an instance that stays
   (if it is resident there, or both fit into its memory), and how core-sets change, which may overlap.
 - *exchange*: what is there has to leave before what comes can be made, because new instances cover old ones, or
   memory does not hold both.  All of the old is missing from the first drain until the new is routed to.  On a shared
   placement that is every variant there, also those that stay: they come back with the new process.

An exchange is as small as the geometry allows: old and new instances connected by overlap.  Its parts go together
because the first instance of a large profile cannot be made before the last small one in its place is gone, and the
other way round.

Instances of different jobs do not overlap, but a device may have further rules (caps, compute slices).  If some
order of the exchanges of a device would lead through instances that no layout of it has, all that changes there is one
exchange.  With the plain profiles of the GPUs known today that does not happen: memory decides alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from clover.errors import PlanError
from clover.types import Assignment, DeviceShape, Placement

Beside = Callable[[Assignment, Assignment], bool]
"""Whether the second worker may load on the instance of the first while that still runs."""

_MOST_EXCHANGES = 10  # of one device whose orders are all looked at


@dataclass(frozen=True)
class Job:
    """Part of a transition on one device: see the module.  `lost` jobs clear up after a device that is gone."""

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
    found: list[Job] = []
    for name in names:
        old = [item for item in running if item.placement.device == name]
        new = [item for item in target if item.placement.device == name]
        shape = shapes.get(name)
        if shape is None:
            if new:
                raise PlanError(f"there is no device {name} to run {new[0].variant} on")
            destroyed = tuple(_places(old).values())
            found.append(Job(name, leaving=_sorted(old), destroyed=destroyed, lost=True))
        else:
            found.extend(_Device(shape, old, new, beside).jobs())
    return found


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
        found: list[tuple[set[str], set[str]]] = []
        for item in self._coming:
            here = [other for other in self._leaving if _overlap(other.placement, item.placement)]
            here += [other for other in self._common if other.placement == item.placement]
            if all(self._beside(other, item) for other in here):
                continue
            old, new = {other.placement.id for other in here}, {item.placement.id}
            for joined in [part for part in found if part[0] & old or part[1] & new]:
                found.remove(joined)
                old, new = old | joined[0], new | joined[1]
            found.append((old, new))
        return found

    def _instances(self) -> Iterator[Job]:
        """Yield the jobs that make and unmake instances."""
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


def order(item: Assignment) -> tuple[str, int, int, str, str]:
    """Return the order in which workers are listed."""
    place = item.placement
    return (place.device, place.start, place.size, item.variant, item.backend)


def _sorted(items: Iterable[Assignment]) -> tuple[Assignment, ...]:
    return tuple(sorted(items, key=order))


def _places(items: Iterable[Assignment]) -> dict[str, Placement]:
    return {item.placement.id: item.placement for item in sorted(items, key=order)}


def _overlap(left: Placement, right: Placement) -> bool:
    return left.start < right.start + right.size and right.start < left.start + left.size
