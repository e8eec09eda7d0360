"""A GPU as a partitionable device: MIG instances made and removed under a running server.

**Making**: record it; make the GPU instance at an explicit place (the driver's own choice runs into dead ends); make
the compute instance over all of it.  **Removing**: remove the compute instance, then the GPU instance; strike out the
record.

If removing is refused because the instance is in use, it is tried again with growing waits, because a process that ends
takes a moment.  If it still cannot be removed, the instance is quarantined: its slices leave the layouts, the reason is
reported, and removing is tried again from time to time (`retry_quarantined`).  A quarantined instance can still be
*used*.  So `create` of exactly that place takes it back: the way back to the last deployment stays open.

Foreign instances are never touched; an operator may hand one over (`claim`).  If this user may not change instances at
all, those that exist are *fixed* (`clover.devices.fixed`): one layout, and making or removing does nothing.  A GPU that
is lost has no layouts and refuses everything; what should have been removed meanwhile is removed when it comes back.
MIG mode is never changed.

The books are kept on the event loop; the session's thread for the GPU only asks the driver and keeps the record
(`OwnedInstances`).  A change that has begun is finished even if its caller is cancelled.  Changes of one place wait for
each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clover.devices import clients, nvml
from clover.devices.books import Books, Place, place_of
from clover.devices.fixed import FixedInstances, instances_of, open_visible
from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.instances import OwnedInstances
from clover.devices.nvml import DriverWork, Nvml, NvmlError
from clover.devices.xids import GpuReports
from clover.errors import DeviceError, DeviceLost
from clover.hints import program
from clover.planning.packing.geometry import SliceProfile
from clover.types import DeviceShape, Method, Placement

log = logging.getLogger("clover.devices")

T = TypeVar("T")

BACK_OFF_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0)
"""Waits before an instance in use is tried again: about six seconds together, as long as a killed worker may take."""


class MigDevice:
    """Implements `clover.interfaces.Device`; `open` makes one.

    `lost`: the GPU does not answer, or an error made it useless; `losses` counts how often.  `mig`: it can be split.
    `can_mig`: it could, if MIG mode were on.  `fixed`: why its instances are used as they are; empty if they
    may be changed.  `others`: compute slices of the GPU that are not for this process, though its meter covers them.
    `emulated`: the GPU is not real.  `nodes`: folders in which clients that hold instances have files open.
    """

    def __init__(
        self,
        session: Nvml,
        gpu: MigGpu,
        instances: OwnedInstances | FixedInstances,
        *,
        cores: tuple[int, ...],
        emulated: bool = False,
        back_off_s: Sequence[float] = BACK_OFF_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = f"gpu{gpu.index}"
        self.index = gpu.index
        self.uuid = gpu.uuid
        self.product = gpu.product
        self.mig, self.can_mig = gpu.mig, gpu.can_mig
        self.fixed = gpu.fixed
        self.others = gpu.others
        self.emulated = emulated
        self.session = session.of_gpu(gpu.index)
        self.lost, self.losses = False, 0
        self.nodes: tuple[str, ...] = (clients.CAPABILITIES,)
        self._reports = GpuReports()
        self._gpu = gpu
        self._changes = gpu.mig and not gpu.fixed
        self._instances = instances
        self._books = Books(gpu, self.name)
        self._cores = gpu.near(cores)
        self._work = DriverWork(back_off_s, sleep)
        self._at: defaultdict[Place, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._doomed: set[Place] = set()
        self._said = ""
        self._shape: DeviceShape | None = None
        self._spares: tuple[float | None, Method] = None, "modelled"

    @classmethod
    def open(
        cls,
        session: Nvml,
        index: int,
        folder: Path,
        *,
        boot: str = "",
        exclusive: bool = True,
        named: tuple[str, ...] = (),
        **options: Any,
    ) -> MigDevice:
        """Return GPU number `index`, with the record of what is ours on it in `folder`; blocks.

        `exclusive` false only reads: no lock is taken, and nothing can be changed.  `named`: beginnings of UUIDs; those
        instances are used, and as they are.  `options` as of the constructor.  Raises DeviceError: no such GPU, another
        Clover has it, or the record is damaged.
        """
        session = session.of_gpu(index)
        gpu = session.call_sync(open_visible, session.library, index, named)
        gpu.check_modes()
        root = None if options.get("emulated") else Path("/")
        instances = session.call_sync(
            lambda: instances_of(session.library, gpu, folder, boot=boot, exclusive=exclusive, root=root)
        )
        try:
            device = cls(session, gpu, instances, **options)
            device._books.sort(session.call_sync(instances.inspect))
        except BaseException:
            instances.close()
            raise
        return device

    def close(self) -> None:
        """Release the GPU for another server.  Instances stay, and so does the session."""
        self._instances.close()

    # --- what it is ---------------------------------------------------------------------------------------------------

    def shape(self) -> DeviceShape:
        """Return the layouts possible beside foreign and quarantined instances; none if the GPU is lost or full."""
        if self._shape is None:
            self._shape = DeviceShape(
                device=self.name,
                kind="mig",
                layouts=() if self.lost else self._books.layouts(),
                slices=self._gpu.slices,
                overlap=False,
                emulated=self.emulated,
                label=self._label,
                one_process=self._gpu.one_process,
                sleep_w=self._spares[0],
                sleep_method=self._spares[1],
            )
        return self._shape

    def spare(self, watts: float | None, method: Method) -> None:
        """Take the GPU to draw `watts` less while it has no workers, known by `method`; None: it always has workers."""
        if self._spares != (watts, method):
            self._spares, self._shape = (watts, method), None

    def instances(self) -> tuple[Placement, ...]:
        """Return our instances that exist and are not quarantined, by start."""
        return () if self.lost else self._books.usable()

    def profiles(self) -> tuple[SliceProfile, ...]:
        """Return every profile that the GPU offers, also those that layouts do not use."""
        return tuple(profile.shape for profile in self._gpu.profiles.values())

    def report(self) -> dict[str, Any]:
        """Return what an operator should know, as JSON."""
        return {
            "device": self.name,
            "product": self.product,
            "uuid": self.uuid,
            "mig": self.mig,
            "emulated": self.emulated,
            "lost": self.lost,
            "errors": self._reports.errors(),
            "fixed": self.fixed,
            **self._books.report(),
        }

    def cores(self, placement: Placement) -> tuple[int, ...]:
        """Return the CPU cores for workers that are near the GPU, which all of its workers share."""
        self._books.check(placement, self._label)
        return self._cores

    def threads(self, placement: Placement) -> int:
        """Return 1: the work is the GPU's."""
        self._books.check(placement, self._label)
        return 1

    def visible(self, placement: Placement) -> str:
        """Return the instance's name for CUDA; DeviceError if it does not exist."""
        self._ready(placement)
        if not self.mig:
            return self.uuid
        instance = self._books.ours.get(place_of(placement))
        if instance is None or not instance.uuid:
            raise DeviceError(f"{placement.id} does not stand: it must be made first")
        return instance.uuid

    def memory_bytes(self, placement: Placement) -> int:
        """Return the memory of an instance at `placement`, as the driver gives it."""
        self._books.check(placement, self._label)
        return self._gpu.profiles[placement.profile].memory_bytes if self.mig else self._gpu.memory_bytes

    @property
    def _label(self) -> str:
        kind = "emulated" if self.emulated else "MIG" if self.mig else "without MIG"
        return f"{self.product}, {kind}{', fixed instances' if self.fixed else ''}"

    def _ready(self, placement: Placement | None = None) -> None:
        if placement is not None:
            self._books.check(placement, self._label)
        if self.lost:
            raise DeviceLost(f"{self.name}: {nvml.LOST}")

    # --- changes ------------------------------------------------------------------------------------------------------

    async def create(self, placement: Placement) -> None:
        """Make the instance; nothing happens if it exists and is ours, or fixed.  If that raises DeviceError, the
        instance does not exist, or is quarantined."""
        self._ready(placement)
        if self.fixed and place_of(placement) not in self._books.ours:
            raise DeviceError(f"{placement.id} was taken away and cannot be made again ({self.fixed})")
        if self._changes:
            await self._work.finish(self._create(place_of(placement), seen=False))

    async def destroy(self, placement: Placement) -> None:
        """Remove the instance; nothing happens if it does not exist, or is fixed.  Raises DeviceError if it is not
        ours, or if it stays.  An instance that stays is quarantined; on a lost GPU it is removed when the GPU comes
        back."""
        place = place_of(placement)
        self._books.check(placement, self._label)
        if self.lost:
            self._doomed.add(place)
        self._ready()
        if place in self._books.foreign:
            raise DeviceError(f"{placement.id} was not made by Clover and is left alone; see `{program()} mig list`")
        if self._changes:
            await self._work.finish(self._destroy(place))

    async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
        """Sort out what an earlier run left.  Of the instances that are ours, those among `keep` are adopted (and
        completed); the others are removed, or quarantined if they cannot be.  Returns what was adopted; nothing if all
        is fixed.  Waits for changes that are under way after their caller was cancelled, because it would not see
        them."""
        await self._work.wait_for_all()
        self._ready()
        if self.fixed:
            return ()
        wanted = {place_of(placement) for placement in keep if placement.device == self.name}
        return await self._work.finish(self._reconcile(wanted)) if self._changes else self.instances()

    def bar(self, placement: Placement, why: str) -> None:
        """Leave `placement` out of the layouts until the driver makes an instance there, because making one failed
        although the place was free."""
        place = place_of(placement)
        if self._changes and not self.lost and not self._books.obstacle(place):
            self._books.barred[place] = why
            self._shape = None
            log.error("%s is quarantined: %s", placement.id, why)

    async def retry_quarantined(self) -> tuple[Placement, ...]:
        """Try once more to remove what is quarantined, and to make what is barred; return the places that
        are free now."""
        if not (self._books.quarantined or self._books.barred_empty()) or self.lost:
            return ()
        return await self._work.finish(self._retry())

    async def claim(self, placement: Placement) -> None:
        """Record an instance that somebody else made as ours, because an operator says so."""
        self._ready(placement)
        if self.fixed:
            raise DeviceError(f"{placement.id} cannot be claimed ({self.fixed})")
        await self._work.finish(self._claim(place_of(placement)))

    async def poll(self) -> bool:
        """Return whether the GPU answers, at the cost of one reading; `lost` and the layouts follow.  Once it is back,
        what it lost is forgotten, and what should have been removed meanwhile is removed."""
        return await self._work.finish(self._poll())

    def take_xid(self, number: int, gi: int | None) -> None:
        """Draw the consequences of a critical error of the GPU, or of its instance `gi`, that the driver reported."""
        verdict, why = self._reports.take(number, gi)
        place = next((place for place, found in self._books.ours.items() if found.gi == gi), None)
        log.log(logging.ERROR if verdict else logging.WARNING, "%s: %s", self.name, why)
        if verdict == "lost":
            self._lose()
        elif verdict == "slice" and place is not None and self._changes:  # a fixed one cannot be made anew
            self._books.quarantined[place] = why
            self._shape = None

    # --- changes, each within a task that is not cancelled ------------------------------------------------------------

    async def _create(self, place: Place, *, seen: bool) -> None:
        """Make the instance; `seen`: the books were just compared with what exists."""
        async with self._at[place]:
            try:
                if place in self._books.ours and not seen:
                    await self._look()  # a reset of the GPU, or an operator, may have removed it
                instance = await self._stand(place)
            except DeviceLost:
                self._doomed.add(place)  # it will not be used: what exists of it is removed when the GPU is back
                raise
            if place in self._books.quarantined:
                log.warning("%s is used again, though it could not be removed", self._books.id_of(place))
            self._books.ours[place] = instance
            self._free(place)

    async def _stand(self, place: Place) -> GpuInstance:
        instance = self._books.ours.get(place)
        if instance is not None and instance.parts and not instance.uuid:
            await self._remove(place)  # split by hand: it has no identity to give a worker
            instance = None
        if instance is None:
            instance = await self._make(place)
        if not instance.uuid:
            instance = await self._complete(instance)
        try:
            await self._ask(self._instances.provide, instance)
        except DeviceLost:
            raise
        except DeviceError as error:
            await self._remove(place)
            raise DeviceError(f"{self._books.id_of(place)} cannot be used: {error}") from error
        return instance

    async def _make(self, place: Place) -> GpuInstance:
        try:
            instance = await self._work.retry(lambda: self._ask(self._instances.make, *place))
        except NvmlError as error:
            await self._look()
            what = self._books.obstacle(place) or error
            raise DeviceError(f"{self._books.id_of(place)} cannot be made: {what}") from error
        self._books.ours[place] = instance
        return instance

    async def _complete(self, found: GpuInstance) -> GpuInstance:
        try:
            return await self._work.retry(lambda: self._ask(self._instances.complete, found))
        except NvmlError as error:
            await self._remove(found.place)
            name = self._books.id_of(found.place)
            raise DeviceError(f"{name} cannot be made: its compute instance was refused: {error}") from error

    async def _destroy(self, place: Place) -> None:
        async with self._at[place]:
            await self._remove(place)

    async def _remove(self, place: Place) -> None:
        instance = self._books.ours.get(place)
        if instance is not None:
            try:
                await self._work.retry(lambda: self._ask(self._instances.unmake, instance), anything=True)
            except DeviceLost:
                self._doomed.add(place)
                raise
            except NvmlError as error:
                await self._quarantine(place, str(error))
                name, why = self._books.id_of(place), self._books.quarantined[place]
                raise DeviceError(f"{name} cannot be removed and is left out until it can: {why}") from error
            self._books.ours.pop(place, None)
        self._free(place)

    async def _quarantine(self, place: Place, why: str) -> None:
        pids = await self._ask(self._gpu.holders, self._books.ours[place])
        others = await asyncio.to_thread(clients.find, self.nodes, without=pids)
        self._books.quarantined[place] = f"{why} ({clients.holders(pids, others)})"
        self._shape = None
        log.error("%s is quarantined: %s", self._books.id_of(place), self._books.quarantined[place])

    def _free(self, place: Place) -> None:
        self._books.quarantined.pop(place, None)
        self._books.barred.pop(place, None)
        self._shape = None

    async def _reconcile(self, wanted: set[Place]) -> tuple[Placement, ...]:
        await self._look()
        adopted, stale = [], []
        for place, found in list(self._books.ours.items()):
            if place not in wanted or (found.parts and not found.uuid):
                stale.append(place)
                continue
            try:
                await self._create(place, seen=True)
                adopted.append(place)
            except DeviceLost:
                raise
            except DeviceError as error:
                log.warning("not adopted: %s", error)
        await self._clear(stale)
        return self._books.placements(self._books.ours[place] for place in adopted)

    async def _clear(self, places: Iterable[Place]) -> None:
        """Remove all of `places` at once; those that stay are quarantined."""
        for result in await asyncio.gather(*map(self._destroy, places), return_exceptions=True):
            if isinstance(result, DeviceError) and not isinstance(result, DeviceLost):
                log.warning("%s", result)
            elif isinstance(result, BaseException):
                raise result

    async def _retry(self) -> tuple[Placement, ...]:
        return (*await self._unmake_quarantined(), *await self._probe())

    async def _unmake_quarantined(self) -> tuple[Placement, ...]:
        freed = []
        for place in list(self._books.quarantined):
            async with self._at[place]:
                if place not in self._books.quarantined:
                    continue
                instance = self._books.ours[place]
                try:
                    await self._ask(self._instances.unmake, instance)
                except NvmlError as error:
                    log.info("%s stays quarantined: %s", self._books.id_of(place), error)
                    continue
                self._books.ours.pop(place, None)
                self._free(place)
            freed.append(instance)
            log.warning("%s is free again", self._books.id_of(place))
        return self._books.placements(freed)

    async def _probe(self) -> tuple[Placement, ...]:
        """Make and remove an instance at each barred place that is empty; return the places free now."""
        freed = []
        for place in self._books.barred_empty():
            async with self._at[place]:
                try:
                    instance = await self._ask(self._instances.make, *place)
                    await self._ask(self._instances.unmake, instance)
                except NvmlError as error:
                    log.info("%s stays quarantined: %s", self._books.id_of(place), error)
                    continue
                self._free(place)
            freed.append(instance)
            log.warning("%s can be made again", self._books.id_of(place))
        return self._books.placements(freed)

    async def _claim(self, place: Place) -> None:
        await self._look()
        instance = self._books.foreign.get(place)
        if instance is None:
            raise DeviceError(f"no instance of somebody else stands at {self._books.id_of(place)}")
        await self._ask(self._instances.claim, instance)
        await self._look()

    async def _poll(self) -> bool:
        try:
            if self.lost:
                await self._ask(self._gpu.reopen)
            await self._ask(self._gpu.alive)
            self._reports.record_answer()
            if self.lost and not self._reports.condemned:
                await self._return()
            elif self.fixed:
                await self._look()
        except DeviceLost:
            self._reports.record_loss()
        except NvmlError as error:
            if self._reports.record_failure(unknown=error.code == nvml.UNKNOWN and await self._ask(self._gpu.unknown)):
                self._lose()
            # A reading that fails is not a GPU that is gone; one that was gone is not back before it answers.
            said, self._said = self._said, str(error)
            log.log(logging.WARNING if self._said != said else logging.DEBUG, "%s: %s", self.name, error)
        else:
            self._said = ""
        return not self.lost

    def _lose(self) -> None:
        if not self.lost:
            log.error("%s: %s", self.name, nvml.LOST)
            self.losses += 1
        self.lost = True
        self._shape = None

    async def _return(self) -> None:
        await self._look()
        await self._clear([place for place in self._doomed if place in self._books.ours])
        self._doomed.clear()
        self.lost = False
        self._shape = None
        log.warning("%s answers again: %d instances of ours stand", self.name, len(self._books.ours))

    # --- the driver, asked --------------------------------------------------------------------------------------------

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self.session.call(function, *arguments)
        except DeviceLost:
            self._lose()
            raise DeviceLost(f"{self.name}: {nvml.LOST}") from None

    async def _look(self) -> None:
        """Find what exists, and whose it is; forget what does not exist."""
        before = set(self._books.ours)
        self._books.sort(await self._ask(self._instances.inspect))
        if self.fixed and (gone := before - set(self._books.ours)):
            log.warning("%s was taken away from this process", ", ".join(map(self._books.id_of, sorted(gone))))
        self._shape = None
