"""Where is measured: one placement a profile, and the whole of every device for BASE.

Devices are one device or several by name, as a server has them.  Several GPUs are taken to be alike: a profile name
means the same on each, and is measured once.  A device without layouts (a lost GPU) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from clover.errors import ProfileError
from clover.interfaces import Device
from clover.types import DeviceShape, Placement

Devices = Device | Mapping[str, Device]


def devices_of(devices: Devices) -> dict[str, Device]:
    """The usable devices by name.  Raises ProfileError where there are none."""
    given = list(devices.values()) if isinstance(devices, Mapping) else [devices]
    found = {device.shape().device: device for device in given if device.shape().layouts}
    if not found:
        raise ProfileError("no device has room for a worker: every GPU is lost, or full of instances of others")
    return found


def shapes_of(devices: Devices) -> tuple[DeviceShape, ...]:
    """The shapes of the usable devices."""
    return tuple(device.shape() for device in devices_of(devices).values())


def on_cores(devices: Devices) -> bool:
    """Whether workers run on core-sets, of which a larger one can run more threads."""
    return all(shape.kind == "cpu" for shape in shapes_of(devices))


def emulated(devices: Devices) -> bool:
    """Whether the devices are emulated.  Raises ProfileError for a mix, which no profile fits."""
    kinds = {shape.emulated for shape in shapes_of(devices)}
    if len(kinds) > 1:
        raise ProfileError("emulated and real devices cannot serve one family: use one kind")
    return kinds.pop()


def places_of(devices: Devices) -> list[Placement]:
    """The first placement of each profile, smallest profile first."""
    found: dict[str, Placement] = {}
    for shape in shapes_of(devices):
        for layout in shape.layouts:
            for place in layout:
                kept = found.setdefault(place.profile, place)
                if place.device == kept.device and place.start < kept.start:
                    found[place.profile] = place
    return sorted(found.values(), key=lambda place: (place.slices, place.size))


def whole_of(shape: DeviceShape) -> tuple[Placement, ...]:
    """The layout of a device in the fewest parts, and of those the one with the most slices."""
    return min(shape.layouts, key=lambda layout: (len(layout), -sum(place.slices for place in layout)))


def whole_layout(devices: Devices) -> tuple[Placement, ...]:
    """All devices in the fewest parts."""
    return tuple(place for shape in shapes_of(devices) for place in whole_of(shape))


def device_cores(devices: Devices) -> tuple[int, ...]:
    """All cores workers of `devices` may use."""
    found = devices_of(devices)
    return tuple(sorted({core for place in whole_layout(found) for core in found[place.device].cores(place)}))
