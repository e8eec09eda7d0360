"""A family without a profile: nothing to plan by, so it runs its one deployment, as long as its devices are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from clover.control.context import Context
from clover.errors import DeviceError, StartError
from clover.runtime.served import Served
from clover.types import Assignment, Routing

log = logging.getLogger("clover.server")


class Unplanned:
    """The deployment of one family that the controller does not steer, on the devices that it leaves to it."""

    def __init__(self, served: Served, context: Context) -> None:
        self._served = served
        self._context = context
        self._wanted: tuple[Assignment, ...] = ()
        self._standing: list[Assignment] = []

    async def deploy(self) -> None:
        """Start its workers; raises what went wrong."""
        served, device_pool = self._served, self._context.device_pool
        shapes = None
        while shapes != device_pool.shapes():  # what an earlier run left may not go, and leaves room for less then
            shapes = device_pool.shapes()
            own = {shape.device for shape in self._context.devices_of(served.name)}
            self._wanted = tuple(item for item in served.default_deployment() if item.placement.device in own)
            if not self._wanted:
                raise StartError(f"no device is left for {served.name}{self._context.lost_suffix()}")
            for name in sorted(own):
                gpu = device_pool.gpu(name)
                if gpu is not None:
                    await gpu.reconcile([item.placement for item in self._wanted])
        for item in self._wanted:
            await self._context.instances.hold(served.name, item.placement)
        await asyncio.gather(*(served.fleet.spawn(item) for item in self._wanted))
        self._standing = list(self._wanted)
        self._route()

    async def follow(self) -> None:
        """Give up workers on devices that are lost, leave those that are another family's by now, and start workers
        again where a device is back."""
        device_pool = self._context.device_pool
        lost = device_pool.lost()
        for item in [item for item in self._standing if item.placement.device in lost]:
            self._standing.remove(item)
            self._route()
            self._served.fleet.forget(item, f"{item.placement.device} is lost")
            with contextlib.suppress(DeviceError):  # the device removes it when it is back
                await self._context.instances.release(self._served.name, item.placement)
        own = set(device_pool.assigned(self._served.name)) if device_pool.exclusive else set(device_pool.shapes())
        moved = [item for item in self._standing if item.placement.device not in own]
        self._standing = [item for item in self._standing if item not in moved]
        if moved:
            await asyncio.gather(*(self._served.fleet.drain(item) for item in moved))
            for item in moved:
                await self._release(item)
            self._route()
            for name in {device_pool.owner(item.placement.device) for item in moved} & self._context.families.keys():
                self._context.families[name].triggers.again(self._context.monotonic())
        for item in self._wanted:
            if item in self._standing or item.placement.device in lost or item.placement.device not in own:
                continue
            await self._context.instances.hold(self._served.name, item.placement)
            await self._served.fleet.spawn(item)
            self._standing.append(item)
            self._route()

    async def clear(self) -> None:
        """Unmake its instances, once its workers are gone; what cannot be is its device's to report."""
        for item in self._wanted:  # all of them: a start that failed half way holds some without a worker
            await self._release(item)
        self._standing.clear()
        self._wanted = ()
        self._context.unplanned.pop(self._served.name, None)

    async def _release(self, item: Assignment) -> None:
        try:
            await self._context.instances.release(self._served.name, item.placement)
        except DeviceError as error:
            log.warning("%s: %s", self._served.name, error)

    def _route(self) -> None:
        self._context.unplanned[self._served.name] = {item.placement.device for item in self._standing}
        if self._standing:
            self._served.fleet.route(tuple(self._standing), Routing(shares={self._standing[0].variant: 1.0}))
