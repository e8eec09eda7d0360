"""How many rows a second a family can be served with: what autoscalers that count servers or pods read.

Two figures, both by the corrected profile and both within `max_utilisation`:

running    what the workers that run serve together.  A plan may change that within seconds.
floor      what the devices that the family may use would serve at most above the accuracy floor: on each device the
           layout, and on each slice the variant of that accuracy or more, that serves most.  Mixes and cascades with
           variants below the floor may serve somewhat more.  Load near it asks for a second server.

Neither knows the SLO: at this load rows wait, so an autoscaler should act at a part of it (0.7 is a good begin).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from clover.control.context import Context
from clover.control.family import Family
from clover.planning.model.problem import accuracies, services_of
from clover.planning.transition.stages import served
from clover.types import DeviceShape, FamilyProfile


def capacity_gauges(context: Context, family: Family) -> dict[str, float]:
    """Return rows a second as said above, by `running` and `floor`."""
    share, most = context.share_of(family), context.config.max_utilisation
    return {
        "running": most * served(family.desired, family.capacity(share)),
        "floor": most
        * floor_capacity(family.corrected, context.devices_of(family.name), share, family.targets.accuracy_floor),
    }


def floor_capacity(
    profile: FamilyProfile, devices: Sequence[DeviceShape], share: float, accuracy_floor: float
) -> float:
    """Return the rows a second that `devices` serve at most with variants of at least `accuracy_floor` percent, at full
    utilisation; 0 if none was measured on a slice of theirs."""
    accuracy = accuracies(profile)
    fastest: dict[str, float] = {}
    for (variant, shape), service in services_of(profile, share).items():
        if accuracy.get(variant, 0.0) >= accuracy_floor:
            fastest[shape] = max(fastest.get(shape, 0.0), service.capacity())
    return sum(_best_layout(device, tuple(sorted(fastest.items()))) for device in devices)


@lru_cache(maxsize=256)
def _best_layout(device: DeviceShape, fastest: tuple[tuple[str, float], ...]) -> float:
    """Return the most that any layout of a device serves, by the rows a second of each profile of a slice.  Kept, as a
    GPU has hundreds of layouts and this is asked every second."""
    rates: Mapping[str, float] = dict(fastest)
    return max((sum(rates.get(place.profile, 0.0) for place in layout) for layout in device.layouts), default=0.0)
