"""From a configuration to a deployment: which placements its workers take, so that as much as possible is kept.

A device offers layouts.  The configuration says how many instances of each profile there shall be over all devices.  So
each device takes one layout, the profiles must add up exactly, and of all ways to do that the one that keeps most is
wanted.  What a layout keeps is a sum over what runs on that device alone, therefore

 - if layouts of one device are the same multiset of profiles, only the best of them matters (exact), and
 - over several devices the best sum is found by dynamic programming over the profiles placed so far.  The sums of the
   first half of the devices and of the second half are listed with their best values, and joined if they make up the
   configuration (exact as well).  Equal devices are interchangeable; which of them takes which layout follows from the
   values.  Ten A100s have over 200 000 sums of profiles, five of them a few thousand.

**What is kept.**  If instances may not overlap (MIG), the capacity that need not go down comes first: a worker whose
instance stays counts with its capacity, or with that of the best variant which may follow it there if that is less.
The workers that may stay as they are come second.  If instances may overlap (core-sets), no capacity goes down, so the
workers come first and the instances second.  No more workers of a kind may stay than the configuration has.  That limit
is applied to each device by itself, so with several devices the second criterion is an estimate.

Then workers that already run stay where they are, and the others fill up in order.

Workers may share their time between variants: a placement then has several assignments (`lay_out_shared`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from clover.errors import PlanError
from clover.types import Assignment, Configuration, DeviceShape, GroupCount, Placement

Capacity = Callable[[Assignment], float]
"""Rows/s that a worker serves; by default compute slices stand for them."""
Backend = Callable[[str, str], str]
"""The backend of a variant on a profile."""

_Wanted = Counter[tuple[str, str]]
_Layout = tuple[Placement, ...]
_MAJOR = 1 << 20  # one unit of the first criterion outweighs any sum of the second
_MILLI = 1000.0
_BITS = 16  # of a profile's count in a packed sum of profiles; the top one is a guard
_AND = "\0"  # between the names of variants that are laid out as one


def lay_out(
    configuration: Configuration,
    *,
    family: str,
    backend: Mapping[str, str],
    devices: Sequence[DeviceShape],
    running: Sequence[Assignment] = (),
    capacity: Capacity | None = None,
    own: Mapping[tuple[str, str], str] | None = None,
) -> tuple[Assignment, ...]:
    """Return a deployment that realises `configuration`, sorted by placement.  `backend` is that of each variant, `own`
    that of each (variant, profile) that has another.  PlanError if no layouts of the devices together have exactly
    its profiles.  Devices without layouts (lost, or full of what others own) take nothing."""
    wanted = Counter({(group.variant, group.profile): group.count for group in configuration})
    profiles = Counter[str]()
    for (_, profile), number in wanted.items():
        profiles[profile] += number
    def named(variant: str, profile: str) -> str:
        return (own or {}).get((variant, profile)) or backend.get(variant, "")

    values = _Values(+wanted, named, running, capacity or slices)
    placements = _place([device for device in devices if device.layouts], +profiles, values)
    if placements is None:
        have = ", ".join(f"{number} x {profile}" for profile, number in sorted(profiles.items()))
        names = ", ".join(device.device for device in devices)
        raise PlanError(f"no layout of {names} consists of {have}; layouts leave no room for a further instance")
    return _deal(placements, wanted, family, named, running)


def slices(item: Assignment) -> float:
    """Return the compute slices under a worker: its capacity, if no measured one is given."""
    return float(item.placement.slices)


# --- what a layout keeps ----------------------------------------------------------------------------------------------


class _Values:
    """What layouts keep of what runs, as whole numbers that may be added."""

    def __init__(
        self, wanted: _Wanted, backend: Backend, running: Sequence[Assignment], capacity: Capacity
    ) -> None:
        self._wanted = wanted
        self._backend = backend
        self._capacity = capacity
        self._running: dict[str, list[Assignment]] = {}
        for item in running:
            self._running.setdefault(item.placement.device, []).append(item)
        self._variants: dict[str, list[str]] = {}
        for variant, profile in sorted(wanted):
            self._variants.setdefault(profile, []).append(variant)

    def of(self, device: DeviceShape) -> Callable[[_Layout], int]:
        """Return the value of a layout of `device`."""
        here = self._running.get(device.device, [])
        staying = {item.placement.id: 0 for item in here}
        for item in here:  # two workers share an instance only while one replaces the other: the better one counts
            if not device.overlap:
                staying[item.placement.id] = max(staying[item.placement.id], self._stays(item))

        def value(layout: _Layout) -> int:
            places = {placement.id for placement in layout}
            left = Counter(self._wanted)
            same: set[str] = set()
            for item in here:
                key = (item.variant, item.placement.profile)
                place = item.placement.id
                if place in places and place not in same and left[key] > 0 and self._unchanged(item):
                    left[key] -= 1
                    same.add(place)
            stay = places & staying.keys()
            if device.overlap:
                return len(same) * _MAJOR + len(stay)
            return sum(staying[place] for place in stay) * _MAJOR + len(same)

        return value if here else lambda layout: 0

    def _stays(self, item: Assignment) -> int:
        """Return thousandths of the capacity that need not go down if the instance of `item` stays."""
        profile = item.placement.profile
        own = self._capacity(item)
        if (item.variant, profile) in self._wanted and self._unchanged(item):
            return round(own * _MILLI)
        followers = [
            Assignment(
                placement=item.placement, family=item.family, variant=variant, backend=self._backend(variant, profile)
            )
            for variant in self._variants.get(profile, ())
        ]
        return round(min(own, max(map(self._capacity, followers), default=0.0)) * _MILLI)

    def _unchanged(self, item: Assignment) -> bool:
        return self._backend(item.variant, item.placement.profile) == item.backend


# --- which layout each device takes -----------------------------------------------------------------------------------


_Sums = dict[int, tuple[int, int, _Layout]]
"""Packed sum of profiles -> (best value, the sum without the last device, the last device's layout)."""


def _place(devices: Sequence[DeviceShape], profiles: Counter[str], values: _Values) -> list[Placement] | None:
    """Return placements that are exactly `profiles` and keep most; None if there are none."""
    shift = {profile: position * _BITS for position, profile in enumerate(sorted(profiles))}
    if max(profiles.values(), default=0) >= 1 << (_BITS - 1):
        return None
    whole = _pack(profiles.elements(), shift)
    assert whole is not None
    options = [_options(device, shift, values) for device in devices]
    half = len(devices) // 2
    front, back = _sums(options[:half], whole, shift), _sums(options[half:], whole, shift)
    best: tuple[int, int] | None = None
    for left, (value, _, _) in front[-1].items():
        right = back[-1].get(whole - left)
        if right is not None and (best is None or value + right[0] > best[0]):
            best = value + right[0], left
    if best is None:
        return None
    return [*_trace_back(front, best[1]), *_trace_back(back, whole - best[1])]


def _options(device: DeviceShape, shift: dict[str, int], values: _Values) -> list[tuple[int, int, _Layout]]:
    """Return the best layout of `device` for each multiset of profiles, as (packed profiles, value, layout)."""
    value = values.of(device)
    best: dict[int, tuple[int, _Layout]] = {}
    for layout in device.layouts:
        packed = _pack((placement.profile for placement in layout), shift)
        if packed is not None:
            worth = value(layout)
            if packed not in best or worth > best[packed][0]:
                best[packed] = worth, layout
    return [(packed, worth, layout) for packed, (worth, layout) in best.items()]


def _sums(options: Sequence[list[tuple[int, int, _Layout]]], whole: int, shift: dict[str, int]) -> list[_Sums]:
    """Return, after each device in turn, every sum of profiles within `whole`, with its best value and the way to
    it."""
    guards = sum(1 << (low + _BITS - 1) for low in shift.values())
    room = whole | guards
    steps: list[_Sums] = [{0: (0, 0, ())}]
    for offers in options:
        sums: _Sums = {}
        for before, (value, _, _) in steps[-1].items():
            for packed, worth, layout in offers:
                total = before + packed
                if (room - total) & guards != guards:  # a borrow reached a guard: more of a profile than wanted
                    continue
                known = sums.get(total)
                if known is None or value + worth > known[0]:
                    sums[total] = value + worth, before, layout
        steps.append(sums)
    return steps


def _trace_back(steps: Sequence[_Sums], total: int) -> list[Placement]:
    layouts: list[_Layout] = []
    for sums in reversed(steps[1:]):
        _, total, layout = sums[total]
        layouts.append(layout)
    return [placement for layout in reversed(layouts) for placement in layout]


def _pack(profiles: Iterable[str], shift: dict[str, int]) -> int | None:
    """Return the counts of `profiles` in one number; None if one of them is not wanted at all."""
    total = 0
    for profile in profiles:
        low = shift.get(profile)
        if low is None:
            return None
        total += 1 << low
    return total


# --- which worker each placement takes --------------------------------------------------------------------------------


def _deal(
    placements: list[Placement],
    wanted: _Wanted,
    family: str,
    backend: Backend,
    running: Sequence[Assignment],
) -> tuple[Assignment, ...]:
    left = Counter(wanted)
    chosen: dict[str, str] = {}
    places = {placement.id: placement for placement in placements}
    for item in running:
        place, key = item.placement.id, (item.variant, item.placement.profile)
        if place in places and place not in chosen and left[key] > 0 and backend(*key) == item.backend:
            chosen[place] = item.variant
            left[key] -= 1
    for placement in placements:
        if placement.id in chosen:
            continue
        variant = min(v for (v, profile), number in left.items() if profile == placement.profile and number > 0)
        chosen[placement.id] = variant
        left[variant, placement.profile] -= 1
    return tuple(
        Assignment(
            placement=placement, family=family, variant=variant, backend=backend(variant, placement.profile)
        )
        for placement in sorted(placements, key=lambda p: (p.device, p.start, p.size))
        for variant in (chosen[placement.id],)
    )


# --- workers that share their time ------------------------------------------------------------------------------------


def lay_out_shared(
    configuration: Configuration,
    *,
    family: str,
    backend: Mapping[str, str],
    devices: Sequence[DeviceShape],
    running: Sequence[Assignment] = (),
    capacity: Capacity | None = None,
    own: Mapping[tuple[str, str], str] | None = None,
) -> tuple[Assignment, ...]:
    """Return what `lay_out` does, with an assignment for each variant of workers that share their time: those that hold
    the same variants are laid out as if these were one variant."""
    if not any(group.beside for group in configuration):
        return lay_out(
            configuration, family=family, backend=backend, devices=devices, running=running, capacity=capacity, own=own
        )
    backends = {
        (variant, group.profile): (own or {}).get((variant, group.profile)) or backend.get(variant, "")
        for group in configuration
        for variant in group.variants
    }
    joined = tuple(
        GroupCount(variant=_AND.join(group.variants), profile=group.profile, count=group.count)
        for group in configuration
    )
    held: dict[Placement, list[Assignment]] = {}
    for item in running:
        held.setdefault(item.placement, []).append(item)
    together = [_join(sorted(items, key=lambda item: item.variant)) for items in held.values() if len(items) > 1]
    found = lay_out(
        joined,
        family=family,
        backend={},
        devices=devices,
        running=[*together, *running],
        capacity=_mean(capacity) if capacity is not None else None,
        own={
            (_AND.join(group.variants), group.profile): _AND.join(backends[v, group.profile] for v in group.variants)
            for group in configuration
        },
    )
    return tuple(
        Assignment(placement=item.placement, family=family, variant=variant, backend=name)
        for item in found
        for variant, name in zip(item.variant.split(_AND), item.backend.split(_AND), strict=True)
    )


def _join(items: Sequence[Assignment]) -> Assignment:
    return Assignment(
        placement=items[0].placement,
        family=items[0].family,
        variant=_AND.join(item.variant for item in items),
        backend=_AND.join(item.backend for item in items),
    )


def _mean(capacity: Capacity) -> Capacity:
    """Return the capacity of a worker of several variants: the mean of theirs."""

    def of(item: Assignment) -> float:
        names = zip(item.variant.split(_AND), item.backend.split(_AND), strict=True)
        own = [
            capacity(Assignment(placement=item.placement, family=item.family, variant=variant, backend=backend))
            for variant, backend in names
        ]
        return sum(own) / len(own)

    return of
