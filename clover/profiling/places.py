"""Where on a device is measured: one placement a profile, and the whole of it for BASE."""

from __future__ import annotations

from clover.interfaces import Device
from clover.types import Placement


def places_of(device: Device) -> list[Placement]:
    """The first placement of each profile, smallest profile first."""
    found: dict[str, Placement] = {}
    for layout in device.shape().layouts:
        for place in layout:
            kept = found.setdefault(place.profile, place)
            if place.start < kept.start:
                found[place.profile] = place
    return sorted(found.values(), key=lambda place: place.size)


def whole_layout(device: Device) -> tuple[Placement, ...]:
    """The layout of the device in the fewest parts."""
    return min(device.shape().layouts, key=len)


def device_cores(device: Device) -> tuple[int, ...]:
    """All cores workers of `device` may use."""
    return tuple(sorted({core for placement in whole_layout(device) for core in device.cores(placement)}))
