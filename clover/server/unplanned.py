"""A family without a profile, which cannot be planned: its default deployment runs while its devices are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from clover.control.state.context import Context
from clover.errors import DeviceError, StartError
from clover.hints import named_wait
from clover.runtime.served import Served
from clover.types import Assignment, Routing

log = logging.getLogger("clover.server")


class Unplanned:
    """The deployment of one family that the controller does not plan, on the devices that it assigns to the family."""

    def __init__(self, served: Served, context: Context) -> None:
        self._served = served
        self._context = context
        self._desired: tuple[Assignment, ...] = ()  # what shall run if all its devices are there
        self._spawned: list[Assignment] = []  # those of it that have a worker now
        self._losses = context.device_pool.losses()

    async def deploy(self) -> None:
        """Start its workers; raises StartError if no device is left, DeviceError or WorkerError if a start fails."""
        served, device_pool = self._served, self._context.device_pool
        shapes = None
        # Instances of an earlier run that cannot be removed change what fits on a GPU: choose again then.
        while shapes != device_pool.shapes():
            shapes = device_pool.shapes()
            own = {shape.device: shape.layouts for shape in self._context.devices_of(served.name)}
            there = {place for layouts in own.values() for layout in layouts for place in layout}
            self._desired = tuple(item for item in served.default_deployment() if item.placement in there)
            if not self._desired:
                raise StartError(f"no device is left for {served.name}{self._context.lost_suffix()}")
            others = [place for places in self._context.occupied().values() for place in places]
            for name in sorted(own):
                gpu = device_pool.gpu(name)
                if gpu is not None:
                    await gpu.reconcile([*(item.placement for item in self._desired), *others])
        for item in self._desired:
            await self._context.instances.hold(served.name, item.placement)
        with named_wait(f"the workers of {served.name}", log.info):
            await asyncio.gather(*(served.fleet.spawn(item) for item in self._desired))
        self._spawned = list(self._desired)
        self._route()

    async def follow(self) -> None:
        """Follow the devices: give up workers on lost ones, drain those on devices that now are another family's, and
        start workers again on devices that are back."""
        device_pool = self._context.device_pool
        lost, before, self._losses = device_pool.lost(), self._losses, device_pool.losses()
        gone = lost.union(name for name, times in self._losses.items() if times != before[name])
        for item in [item for item in self._spawned if item.placement.device in gone]:
            self._spawned.remove(item)
            self._route()
            self._served.fleet.forget(item, f"{item.placement.device} is lost")
            with contextlib.suppress(DeviceError):  # the device removes the instance when it is back
                await self._context.instances.release(self._served.name, item.placement)
        name = self._served.name
        moved = [item for item in self._spawned if device_pool.outside(name, (item.placement,))]
        self._spawned = [item for item in self._spawned if item not in moved]
        if moved:
            await asyncio.gather(*(self._served.fleet.drain(item) for item in moved))
            for item in moved:
                await self._release(item)
            self._route()
            waiting = {owner for item in moved for owner in device_pool.owners(item.placement.device)}
            for other in waiting & self._context.families.keys():
                self._context.families[other].triggers.again(self._context.monotonic())
        for item in self._desired:
            away = item.placement.device in lost or device_pool.outside(name, (item.placement,))
            if item in self._spawned or away:
                continue
            await self._context.instances.hold(self._served.name, item.placement)
            await self._served.fleet.spawn(item)
            self._spawned.append(item)
            self._route()

    @property
    def running(self) -> tuple[Assignment, ...]:
        """The workers that it started."""
        return tuple(self._spawned)

    def hand_over(self) -> None:
        """Leave the workers and their instances to the controller."""
        self._spawned.clear()
        self._desired = ()
        self._context.unplanned.pop(self._served.name, None)

    async def clear(self) -> None:
        """Release its instances.  Call it once its workers are gone; instances that cannot be removed are logged."""
        for item in self._desired:  # not only spawned: a start that failed half way holds some without a worker
            await self._release(item)
        self._spawned.clear()
        self._desired = ()
        self._context.unplanned.pop(self._served.name, None)

    async def _release(self, item: Assignment) -> None:
        try:
            await self._context.instances.release(self._served.name, item.placement)
        except DeviceError as error:
            log.warning("%s: %s", self._served.name, error)

    def _route(self) -> None:
        self._context.unplanned[self._served.name] = {item.placement for item in self._spawned}
        if self._spawned:
            self._served.fleet.route(tuple(self._spawned), Routing(shares={self._spawned[0].variant: 1.0}))
