"""A family without a profile: nothing to plan by, so it runs its one deployment, as long as its devices are there."""

from __future__ import annotations

import asyncio
import contextlib

from clover.control import Controller
from clover.errors import DeviceError, StartError
from clover.runtime.served import Served
from clover.types import Assignment


class Unplanned:
    """The deployment of one family that the controller does not steer, on the devices that it leaves to it."""

    def __init__(self, served: Served, controller: Controller) -> None:
        self._served = served
        self._controller = controller
        self._wanted: tuple[Assignment, ...] = ()
        self._standing: list[Assignment] = []

    async def deploy(self) -> None:
        """Start its workers; raises what went wrong."""
        served, yard = self._served, self._controller.yard
        own = {shape.device for shape in self._controller.devices_for(served.name)}
        self._wanted = tuple(item for item in served.default_deployment() if item.placement.device in own)
        if not self._wanted:
            raise StartError(f"no device is left for {served.name}{self._controller.why_none()}")
        for name in sorted(own):
            gpu = yard.gpu(name)
            if gpu is not None:  # what an earlier run left there
                await gpu.reconcile([item.placement for item in self._wanted])
        for item in self._wanted:
            await self._controller.instances.hold(served.name, item.placement)
        await asyncio.gather(*(served.fleet.spawn(item) for item in self._wanted))
        self._standing = list(self._wanted)
        self._route()

    async def follow(self) -> None:
        """Give up workers on devices that are lost, and start them again where one is back."""
        lost = self._controller.yard.lost()
        for item in [item for item in self._standing if item.placement.device in lost]:
            self._standing.remove(item)
            if self._standing:
                self._route()
            self._served.fleet.forget(item, f"{item.placement.device} is lost")
            with contextlib.suppress(DeviceError):  # the device removes it when it is back
                await self._controller.instances.release(self._served.name, item.placement)
        back = [item for item in self._wanted if item not in self._standing and item.placement.device not in lost]
        for item in back:
            await self._controller.instances.hold(self._served.name, item.placement)
            await self._served.fleet.spawn(item)
            self._standing.append(item)
            self._route()

    async def clear(self) -> None:
        """Unmake its instances, once its workers are gone."""
        for item in self._standing:
            await self._controller.instances.release(self._served.name, item.placement)
        self._standing.clear()
        self._wanted = ()

    def _route(self) -> None:
        self._served.fleet.route(tuple(self._standing), {self._standing[0].variant: 1.0})
