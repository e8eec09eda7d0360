"""The instances a measurement has made: exactly those it measures on stand at any time, so that none is in the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from clover import backends as registry
from clover.errors import CloverError
from clover.interfaces import Device
from clover.types import Placement

log = logging.getLogger("clover.profiling")


class Standing:
    """Makes and removes instances of `devices`.  On core-sets there is nothing to make."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._made: set[Placement] = set()

    def device(self, place: Placement) -> Device:
        """Return the device of `place`."""
        return self._devices[place.device]

    async def need(self, place: Placement) -> None:
        """Let `place` stand; alone, unless it stands already."""
        if place not in self._made:
            await self.only((place,))

    async def only(self, places: Sequence[Placement]) -> None:
        """Let exactly `places` stand, of what was made here.  Raises DeviceError where one cannot be made."""
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
        """Return what is compiled for on the profiles of `places`."""
        return {place.profile: registry.target_of(self.device(place), place.profile) for place in places}

    @contextlib.asynccontextmanager
    async def inside(self, place: Placement) -> AsyncIterator[registry.Target]:
        """The target that is `place`, standing: something can be compiled in it."""
        await self.need(place)
        device = self.device(place)
        yield registry.target_of(device, place.profile, device.visible(place))
