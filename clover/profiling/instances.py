"""Makes GPU instances for a measurement: only those that are being measured exist, so that none is in the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from clover import backends as registry
from clover.errors import CloverError
from clover.interfaces import Device
from clover.profiling.placements import on_cores, whole_layout
from clover.types import DeviceShape, Placement

log = logging.getLogger("clover.profiling")


class TemporaryInstances:
    """Creates and destroys instances of `devices`.  On core-sets there is nothing to create.

    `on_cores`: whether `devices` are core-sets; `shapes`: what they offer; `whole`: all of them in the fewest parts.
    """

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self.on_cores = on_cores(devices)
        self.shapes: tuple[DeviceShape, ...] = tuple(device.shape() for device in devices.values())
        self.whole = whole_layout(devices)
        self.devices = devices
        self._made: set[Placement] = set()

    def device(self, place: Placement) -> Device:
        """Return the device of `place`."""
        return self.devices[place.device]

    async def need(self, place: Placement) -> None:
        """Create the instance of `place` and destroy all others, unless it exists already."""
        if place not in self._made:
            await self.only((place,))

    async def only(self, places: Sequence[Placement]) -> None:
        """Create the instances of `places` and destroy all others that were created here.

        Raises DeviceError if one cannot be created; one that cannot be destroyed is logged and left.
        """
        for place in self._made - set(places):
            self._made.discard(place)
            try:
                await self.device(place).destroy(place)
            except CloverError as error:
                log.warning("%s stays: %s", place.id, error)
        for place in places:
            if place not in self._made:
                await self.device(place).create(place)
                self._made.add(place)

    def targets(self, places: Sequence[Placement]) -> dict[str, registry.Target]:
        """Return the compile targets of the profiles of `places`, by profile."""
        return {place.profile: registry.target_of(self.device(place), place.profile) for place in places}

    @contextlib.asynccontextmanager
    async def inside(self, place: Placement) -> AsyncIterator[registry.Target]:
        """Create the instance of `place` and give the target to compile in it."""
        await self.need(place)
        device = self.device(place)
        yield registry.target_of(device, place.profile, device.visible(place))
