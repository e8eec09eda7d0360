"""Which devices a family may use, and what changed about them.

**Cores** are shared: every family plans with all core-sets, slowed to its share of the time.

**GPUs** belong to one family each, as long as there are enough: slices of one GPU under two controllers would have to
be planned by both.  They are assigned in proportion to the families' shares, at least one to each.  A family that is
unloaded keeps its GPUs and finds them again.  When a GPU is lost or comes back, GPUs are assigned anew; as many as
possible stay with the family that has them.

**Fewer GPUs than families.**  GPUs that can be split are divided: each family has one part of one GPU and plans with
that alone.  If one family's load is more than its part can serve and another's leaves room, the GPU is divided anew,
every `DIVIDE_S` at most.  A GPU without MIG is never shared: of two processes that compute on it in turn, each would be
late by what the other has in hand, and one fault would end both.

**Parts.**  A part is a run of memory slices, and a family may use every placement that lies within its part.  A part
has to hold at least one placement of the layouts that the GPU offers.  So an A100 has seven parts at most, and a GPU
without MIG is one part.  Of all divisions the one is taken whose worst-off family has most compute slices for its
share, then the next worst-off; among equals the one with the largest single instances.

**Layouts.**  What one family runs never limits where another's instances lie, but it may limit which layouts go with
them.  So a family plans with the layouts that contain what the others have at the moment.

A family plans with what it was assigned, except places on which another family still has workers: that family moves
first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import msgspec

from clover.devices.books import WHOLE
from clover.interfaces import Device
from clover.types import DeviceShape, Placement

Occupied = Mapping[str, Iterable[Placement]]
"""The places on which each family has workers."""

DIVIDE_S = 300.0
"""Seconds between two divisions of GPUs by load: each interrupts workers of the families there."""
LACKS = 1.1
GAINS = 1.25
Part = tuple[int, int]
"""Memory slices of a GPU, from the first to behind the last."""
Layouts = tuple[tuple[Placement, ...], ...]


@runtime_checkable
class LosableGpu(Protocol):
    """A device that may be lost, and that an earlier run may have left instances on
    (`clover.devices.mig.MigDevice`)."""

    lost: bool

    def report(self) -> dict[str, Any]:
        """Return what an operator should know: quarantined places and instances of others."""

    async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
        """Remove our instances that are not among `keep`; return those that were kept."""


class DevicePool:
    """The devices of a server, and which family each GPU is assigned to."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self.exclusive = any(not device.shape().overlap for device in devices.values())
        """Whether a device belongs to one family: it does unless all of them can be shared."""
        self._shares: dict[str, float] = {}
        self._seen = self.shapes()
        self._lost, self._losses = self.lost(), self.losses()
        self._assigned: dict[str, dict[str, Part]] = {}
        """By family, the parts of GPUs that are its own."""
        self._divided_s = -math.inf

    def shapes(self) -> dict[str, DeviceShape]:
        """Return what each device allows now."""
        return {name: device.shape() for name, device in self._devices.items()}

    def lost(self) -> frozenset[str]:
        """Return the devices that do not answer."""
        return frozenset(name for name, device in self._devices.items() if getattr(device, "lost", False))

    def losses(self) -> dict[str, int]:
        """Return how often each device was lost: one may be back before the next poll, without what was on it."""
        return {name: getattr(device, "losses", 0) for name, device in self._devices.items()}

    def gpu(self, name: str) -> LosableGpu | None:
        """Return the GPU of that name; None for another device."""
        device = self._devices.get(name)
        return device if isinstance(device, LosableGpu) else None

    # --- who may use what ---------------------------------------------------------------------------------------------

    def name(self, family: str, share: float) -> None:
        """Enter `family` with its share of the devices; GPUs are given by `assign`."""
        self._shares[family] = share

    def short(self) -> str:
        """Return why there are too few GPUs for the families; empty if there are enough."""
        usable = self._usable()
        room = sum(map(most_parts, usable.values()))
        if not self.exclusive or room >= len(self._shares):
            return ""
        whole = [name for name, shape in usable.items() if shape.layouts[0][0].profile == WHOLE]
        remedies = ["serve fewer families", "add GPUs"]
        if any(getattr(self._devices[name], "can_mig", False) for name in whole):
            remedies.append("switch MIG on")
        return (
            f"{len(self._shares)} families ({', '.join(self._shares)}) need a GPU each, or a part of one that MIG "
            f"splits, but there {'is' if len(usable) == 1 else 'are'} {len(usable)} ({', '.join(usable) or 'none'}) "
            f"with room for {room}: {', '.join(remedies)}, or set workers.device = cpu, which families share"
        )

    def assign(self, occupied: Occupied) -> None:
        """Assign the GPUs anew; `occupied`: the places on which each family has workers."""
        usable = self._usable()
        before = {
            family: {*(place.device for place in occupied.get(family, ())), *self._assigned.get(family, ())}
            for family in self._shares
        }
        if len(usable) >= len(self._shares):
            whole = assign(tuple(usable), self._shares, before)
            self._assigned = {
                family: {name: whole_part(usable[name]) for name in names} for family, names in whole.items()
            }
            return
        together = gather({name: most_parts(shape) for name, shape in usable.items()}, self._shares, before)
        parts: dict[str, dict[str, Part]] = {family: {} for family in self._shares}
        for name, families in together.items():
            # Those that were there keep their order, so that as few as possible have to move.
            whole_gpu = whole_part(usable[name])
            had = {family: self._assigned.get(family, {}).get(name, whole_gpu) for family in families}
            order = {family: self._shares[family] for family in sorted(families, key=had.__getitem__)}
            for family, part in divide(usable[name], order).items():
                parts[family][name] = part
        self._assigned = parts

    @property
    def shared(self) -> bool:
        """Whether some GPU belongs to several families."""
        return any(len(self.owners(name)) > 1 for name in self._devices)

    def divide(self, needs: Mapping[str, float], now_s: float) -> bool:
        """If a family `needs` more compute slices than it has and another has some to spare, divide their GPUs anew.
        Return whether any GPU was divided.  If `needs` lacks a family of a GPU, that GPU stays as it is."""
        if now_s < self._divided_s + DIVIDE_S:
            return False
        changed = False
        for name, shape in self._usable().items():
            owners = self.owners(name)
            if len(owners) < 2 or not needs.keys() >= set(owners):
                continue
            parts = divide_by_need(shape, {owner: self._assigned[owner][name] for owner in owners}, self._shares, needs)
            for owner, part in (parts or {}).items():
                changed = changed or self._assigned[owner][name] != part
                self._assigned[owner][name] = part
        if changed:
            self._divided_s = now_s
        return changed

    def devices_for(self, family: str, occupied: Occupied) -> tuple[DeviceShape, ...]:
        """Return the devices that `family` may plan with now."""
        shapes = self.shapes()
        if not self.exclusive:
            return tuple(shapes.values())
        own, usable = {place.device for place in occupied.get(family, ())}, []
        for name, part in self._assigned.get(family, {}).items():
            shape = shapes[name]
            others = [
                place
                for other, places in occupied.items()
                for place in places
                if other != family and place.device == name
            ]
            in_the_way = any(place.start < part[1] and part[0] < place.start + place.size for place in others)
            if in_the_way and name not in own:
                continue  # they move first
            if others or part != whole_part(shape):
                there = {place for layout in shape.layouts for place in layout}
                shape = limit(shape, part, there.intersection(others))
            if shape.layouts:
                usable.append(shape)
        return tuple(sorted(usable, key=lambda shape: list(shapes).index(shape.device)))

    def usable_by(self, family: str) -> tuple[DeviceShape, ...]:
        """Return the devices that the family may use, whole, even if other families have a part of them."""
        own = self._assigned.get(family, {})
        return tuple(shape for name, shape in self.shapes().items() if not self.exclusive or name in own)

    def share(self, family: str) -> float:
        """Return the part of the devices' time that is the family's."""
        total = sum(self._shares.values())
        return 1.0 if self.exclusive or total <= 0.0 else self._shares[family] / total

    def assigned(self, family: str) -> Mapping[str, Part]:
        """Return the GPUs that are assigned to the family with its part of each, lost ones left out."""
        return self._assigned.get(family, {})

    def owners(self, device: str) -> tuple[str, ...]:
        """Return the families that a GPU is assigned to, in the order of their parts; none of core-sets."""
        parts = [(names[device], family) for family, names in self._assigned.items() if device in names]
        return tuple(family for _, family in sorted(parts))

    def part(self, family: str, device: str) -> float:
        """Return the part of a device that is the family's: of its compute slices; of its time if it is a core-set."""
        if not self.exclusive:
            return self.share(family)
        owners = self.owners(device)
        if len(owners) < 2 or family not in owners:
            return float(family in owners)
        shape = self.shapes()[device]
        slices = {owner: part_slices(shape, self._assigned[owner][device]) for owner in owners}
        return slices[family] / max(sum(slices.values()), 1)

    def outside(self, family: str, places: Iterable[Placement]) -> bool:
        """Return whether any of `places`, on which the family has workers, lies outside what is assigned to it."""
        own = self.assigned(family)
        return self.exclusive and any(
            place.device not in own or not within(place, own[place.device]) for place in places
        )

    def _usable(self) -> dict[str, DeviceShape]:
        return {name: shape for name, shape in self.shapes().items() if shape.layouts and not shape.overlap}

    # --- what happened ------------------------------------------------------------------------------------------------

    def changes(self) -> dict[str, str]:
        """Return what changed about each device since the last call, in words."""
        shapes, lost, losses = self.shapes(), self.lost(), self.losses()
        changes = {}
        for name, shape in shapes.items():
            if (name in lost) != (name in self._lost):
                changes[name] = f"{name} is lost" if name in lost else f"{name} is back"
            elif losses[name] != self._losses[name]:
                changes[name] = f"{name} is lost" if name in lost else f"{name} was lost and is back"
            elif shape.layouts != self._seen[name].layouts:
                changes[name] = f"what fits on {name} changed{self._blocked(name)}"
        self._seen, self._lost, self._losses = shapes, lost, losses
        return changes

    def _blocked(self, name: str) -> str:
        gpu = self.gpu(name)
        places = [item["placement"] for item in gpu.report()["quarantined"]] if gpu is not None else []
        return f": {', '.join(places)} quarantined" if places else ""


def assign(
    gpus: Sequence[str], shares: Mapping[str, float], before: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each family: at least one, in proportion to its share (highest averages), keeping as many as
    that allows of those it had.  If there are fewer GPUs than families, those that had one come first."""
    held = {family: [gpu for gpu in gpus if gpu in set(before.get(family, ()))] for family in shares}
    first = sorted(shares, key=lambda family: not held[family])
    counts = dict.fromkeys(shares, 0)
    for family in first[: len(gpus)]:
        counts[family] = 1
    for _ in range(len(gpus) - sum(counts.values())):
        if not shares:
            break
        counts[max(shares, key=lambda family: shares[family] / (2 * counts[family] + 1))] += 1
    free = list(gpus)
    assigned: dict[str, list[str]] = {family: [] for family in shares}
    for keep in (True, False):
        for family in shares:
            wanted = [gpu for gpu in free if gpu in held[family]] if keep else list(free)
            taken = wanted[: counts[family] - len(assigned[family])]
            assigned[family] += taken
            free = [gpu for gpu in free if gpu not in taken]
    return {family: tuple(sorted(names, key=list(gpus).index)) for family, names in assigned.items()}


def gather(
    room: Mapping[str, int], shares: Mapping[str, float], before: Mapping[str, Iterable[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the families of each GPU, if there are fewer GPUs than families.  Each family is on one GPU; the largest
    share comes first and goes where least is taken, or where it was before if that is no worse by more than the
    smallest share.  `room`: how many families a GPU has place for; families beyond all room are on none."""
    taken: dict[str, list[str]] = {name: [] for name in room}
    slack = min(shares.values(), default=0.0)
    # Those that had no GPU come last: they take what is left.
    order = sorted(shares, key=lambda family: (not set(before.get(family, ())).intersection(room), -shares[family]))
    for family in order:
        free = [name for name in room if len(taken[name]) < room[name]]
        if not free:
            break
        load = {name: sum(shares[other] for other in taken[name]) for name in free}
        least = min(load.values())
        had = [name for name in free if name in set(before.get(family, ())) and load[name] <= least + slack]
        taken[min(had or free, key=lambda name: load[name])].append(family)
    return {name: tuple(families) for name, families in taken.items()}


# --- parts of a GPU ---------------------------------------------------------------------------------------------------


def whole_part(shape: DeviceShape) -> Part:
    """Return all memory slices of a GPU."""
    return 0, max((place.start + place.size for layout in shape.layouts for place in layout), default=0)


def within(placement: Placement, part: Part) -> bool:
    """Return whether an instance at `placement` lies in `part`."""
    return part[0] <= placement.start and placement.start + placement.size <= part[1]


def most_parts(shape: DeviceShape) -> int:
    """Return how many families may share a GPU."""
    return max((len(layout) for layout in shape.layouts), default=0)


def part_slices(shape: DeviceShape, part: Part) -> int:
    """Return the most compute slices that instances within `part` have together."""
    return max((_compute(layout, part) for layout in shape.layouts), default=0)


def divide(shape: DeviceShape, shares: Mapping[str, float]) -> dict[str, Part]:
    """Return the part of each family of `shares`, which stand in the order of their parts; there must not be more than
    `most_parts`."""
    parts = _divided(shape.layouts, tuple(shares.values()))
    return dict(zip(shares, parts, strict=True))


@lru_cache(maxsize=256)
def _divided(layouts: Layouts, shares: Sequence[float]) -> tuple[Part, ...]:
    end = max(place.start + place.size for layout in layouts for place in layout)
    if len(shares) == 1:
        return ((0, end),)
    every = list(itertools.combinations(range(end + 1), 2))
    compute = {part: max(_compute(layout, part) for layout in layouts) for part in every}
    largest = {
        part: max((place.slices for layout in layouts for place in layout if within(place, part)), default=0)
        for part in every
    }

    def worth(parts: Sequence[Part]) -> tuple[list[float], int]:
        each = sorted(compute[part] / share for part, share in zip(parts, shares, strict=True))
        return each, sum(largest[part] for part in parts)

    cuts = itertools.combinations(range(1, end), len(shares) - 1)
    ways = (tuple(itertools.pairwise((0, *cut, end))) for cut in cuts)
    return max((way for way in ways if all(compute[part] for part in way)), key=worth)


def limit(shape: DeviceShape, part: Part, others: Collection[Placement]) -> DeviceShape:
    """Return a GPU as a family may plan with it: the placements within `part` that go with `others`, what the other
    families have there now; without layouts if there are none."""
    return msgspec.structs.replace(
        shape,
        layouts=_limited(shape.layouts, part, frozenset(others)),
        slices=part_slices(shape, part),
    )


def divide_by_need(
    shape: DeviceShape, parts: Mapping[str, Part], shares: Mapping[str, float], needs: Mapping[str, float]
) -> dict[str, Part] | None:
    """Return the parts of a GPU that fit what its families need, in compute slices.  None if `parts`, which they have,
    do well enough: no family lacks a tenth, or the one that lacks most would have less than a quarter more.  What is
    left beyond the needs goes by share."""
    slices = {family: part_slices(shape, part) for family, part in parts.items()}
    if all(needs[family] <= LACKS * slices[family] for family in parts):
        return None
    total = sum(slices.values())
    left = max(0.0, total - sum(needs[family] for family in parts))
    whole = sum(shares[family] for family in parts)
    wanted = {family: needs[family] + left * shares[family] / whole for family in parts}
    divided = divide(shape, {family: round(max(number, 0.1), 1) for family, number in wanted.items()})
    gain = min(part_slices(shape, part) / wanted[family] for family, part in divided.items())
    return divided if gain >= GAINS * min(slices[family] / wanted[family] for family in parts) else None


@lru_cache(maxsize=256)
def _limited(layouts: Layouts, part: Part, others: frozenset[Placement]) -> Layouts:
    found = dict.fromkeys(
        tuple(place for place in layout if within(place, part) and place not in others)
        for layout in layouts
        if others.issubset(layout)
    )
    sets = {layout: frozenset(layout) for layout in found if layout}
    return tuple(layout for layout, own in sets.items() if not any(own < other for other in sets.values()))


def _compute(layout: Sequence[Placement], part: Part) -> int:
    return sum(place.slices for place in layout if within(place, part))
