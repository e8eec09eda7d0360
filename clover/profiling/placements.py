"""Where a family is measured: one placement of each profile, and the whole of every device for BASE.

Devices are one device or several by name, as a server has them.  A profile is measured once.  So GPUs on which one name
means different things are refused.  A device without layouts (a lost GPU) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from clover.errors import ProfileError
from clover.interfaces import Device
from clover.planning.model.problem import whole
from clover.types import DeviceShape, Placement

Devices = Device | Mapping[str, Device]


def devices_of(devices: Devices) -> dict[str, Device]:
    """Return the usable devices by name.  Raises ProfileError if there are none."""
    given = list(devices.values()) if isinstance(devices, Mapping) else [devices]
    found = {device.shape().device: device for device in given if device.shape().layouts}
    if not found:
        raise ProfileError("no device has room for a worker: every GPU is lost, or full of instances of others")
    _alike([device.shape() for device in found.values()])
    return found


def _alike(shapes: Iterable[DeviceShape]) -> None:
    """Raise ProfileError if one name of a profile stands for parts of different GPUs."""
    first: dict[str, DeviceShape] = {}
    for shape in shapes:
        for name in {place.profile for layout in shape.layouts for place in layout}:
            other = first.setdefault(name, shape)
            if other.label != shape.label:
                raise ProfileError(
                    f"{name} of {other.device} ({other.label}) is not that of {shape.device} ({shape.label}), and one "
                    "server measures a profile once: give each kind of GPU a server of its own, as --device nvidia:0"
                )


def shapes_of(devices: Devices) -> tuple[DeviceShape, ...]:
    """Return the shapes of the usable devices."""
    return tuple(device.shape() for device in devices_of(devices).values())


def on_cores(devices: Devices) -> bool:
    """Return whether workers run on core-sets, of which a larger one can run more threads."""
    return all(shape.kind == "cpu" for shape in shapes_of(devices))


def emulated(devices: Devices) -> bool:
    """Return whether the devices are emulated.  Raises ProfileError for a mix, which no profile fits."""
    kinds = {shape.emulated for shape in shapes_of(devices)}
    if len(kinds) > 1:
        raise ProfileError("emulated and real devices cannot serve one family: use one kind")
    return kinds.pop()


def places_of(devices: Devices) -> list[Placement]:
    """Return the first placement of each profile, smallest profile first."""
    places: dict[str, Placement] = {}
    for shape in shapes_of(devices):
        for layout in shape.layouts:
            for place in layout:
                kept = places.setdefault(place.profile, place)
                if place.device == kept.device and place.start < kept.start:
                    places[place.profile] = place
    return sorted(places.values(), key=lambda place: (place.slices, place.size))


def whole_layout(devices: Devices) -> tuple[Placement, ...]:
    """Return the placements that cover all devices in the fewest parts."""
    return tuple(place for shape in shapes_of(devices) for place in whole(shape))


def device_cores(devices: Devices) -> tuple[int, ...]:
    """Return all cores that workers of `devices` may use."""
    usable = devices_of(devices)
    return tuple(sorted({core for place in whole_layout(usable) for core in usable[place.device].cores(place)}))
