"""From a configuration to a deployment: which placements its workers take, so that as much as possible stays as it is.

Devices are walked in order; each takes the layout that keeps most of what runs on it, among those that leave the rest
of the configuration placeable (checked against what the remaining devices allow).  Then workers that already run stay
where they are, further workers go where an instance of their profile exists, and the rest fills up in order.  Greedy
over devices: exact for one device, and never worse than a fresh deployment for several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clover.errors import PlanError
from clover.planning.enumerate import profile_sets
from clover.types import Assignment, Configuration, DeviceShape, Placement


def lay_out(
    configuration: Configuration,
    *,
    family: str,
    backend: dict[str, str],
    devices: Sequence[DeviceShape],
    running: Sequence[Assignment] = (),
) -> tuple[Assignment, ...]:
    """A deployment that realises `configuration`, sorted by placement; PlanError where no layouts of the devices
    together have exactly its profiles."""
    wanted = Counter({(group.variant, group.profile): group.count for group in configuration})
    profiles = Counter[str]()
    for (_, profile), number in wanted.items():
        profiles[profile] += number
    placements = _place(devices, profiles, wanted, backend, running)
    if placements is None:
        have = ", ".join(f"{number} x {profile}" for profile, number in sorted(profiles.items()))
        raise PlanError(f"no layout of {', '.join(device.device for device in devices)} consists of {have}")
    return _deal(placements, wanted, family, backend, running)


def _place(
    devices: Sequence[DeviceShape],
    profiles: Counter[str],
    wanted: Counter[tuple[str, str]],
    backend: dict[str, str],
    running: Sequence[Assignment],
) -> list[Placement] | None:
    if not devices:
        return [] if not +profiles else None
    first, rest = devices[0], devices[1:]
    allowed = {frozenset(item) for item in profile_sets(rest)}

    def kept(layout: tuple[Placement, ...]) -> tuple[int, int]:
        places = {placement.id for placement in layout}
        left = Counter(wanted)
        same = 0
        for item in running:
            key = (item.variant, item.placement.profile)
            if item.placement.id in places and left[key] > 0 and backend.get(item.variant) == item.backend:
                left[key] -= 1
                same += 1
        return same, len(places & {item.placement.id for item in running})

    for layout in sorted(first.layouts, key=kept, reverse=True):
        remaining = Counter(profiles)
        remaining.subtract(placement.profile for placement in layout)
        if any(number < 0 for number in remaining.values()) or frozenset((+remaining).items()) not in allowed:
            continue
        others = _place(rest, +remaining, wanted, backend, running)
        if others is not None:
            return [*layout, *others]
    return None


def _deal(
    placements: list[Placement],
    wanted: Counter[tuple[str, str]],
    family: str,
    backend: dict[str, str],
    running: Sequence[Assignment],
) -> tuple[Assignment, ...]:
    left = Counter(wanted)
    chosen: dict[str, str] = {}
    places = {placement.id: placement for placement in placements}
    for item in running:
        place, key = item.placement.id, (item.variant, item.placement.profile)
        if place in places and place not in chosen and left[key] > 0 and backend.get(item.variant) == item.backend:
            chosen[place] = item.variant
            left[key] -= 1
    for placement in placements:
        if placement.id in chosen:
            continue
        variant = min(v for (v, profile), number in left.items() if profile == placement.profile and number > 0)
        chosen[placement.id] = variant
        left[variant, placement.profile] -= 1
    return tuple(
        Assignment(placement=placement, family=family, variant=chosen[placement.id], backend=backend[variant])
        for placement in sorted(placements, key=lambda p: (p.device, p.start, p.size))
        for variant in (chosen[placement.id],)
    )
