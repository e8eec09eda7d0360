"""A GPU without MIG in parts, by NVIDIA's Multi-Process Service: opt-in, `nvidia:0/mps`.

A GPU has four parts, and profiles of one to four of them: `1of4`, `2of4`, `3of4`, `4of4`.  Planning, transitions and
the books are those of MIG (`clover.devices.mig`).  What differs:

 - **Compute.**  With static partitions (CUDA 13.1, Ampere and later) each part has multiprocessors of its own, made by
   the control daemon as an instance is by NVML.  Otherwise a part is a bound (CUDA_MPS_ACTIVE_THREAD_PERCENTAGE): it
   uses so many at most, and shares them with whoever the hardware puts there.
 - **Memory.**  One memory, with a bound a worker (CUDA_MPS_PINNED_DEVICE_MEM_LIMIT).  Bandwidth and caches are shared:
   how fast a part is depends on its neighbours, beside which it is measured.
 - **Faults.**  A fatal error of one worker ends all of the GPU (`clover.runtime.workers.board_faults`).

Each GPU has a daemon of its own, so that a fault stays on its GPU, with folders below the cache; it is started when the
GPU is opened and ended when that is closed.  One that runs already, where CUDA_MPS_PIPE_DIRECTORY says or at the usual
place, is used and left alone.  One in our own folder is what a killed server left: it may be in any state, so it is
ended and started anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from clover.ancestry import descends_from
from clover.devices import nvml
from clover.devices.gpu import GpuInstance, GpuProfile, MigGpu
from clover.devices.instances import OwnedInstances
from clover.devices.mig import MigDevice
from clover.devices.mps_control import DEFAULT_PIPE, LOG, PIPE, PROGRAM, MpsControl
from clover.devices.nvml import Nvml, NvmlError
from clover.devices.ownership import Ownership
from clover.errors import DeviceError
from clover.types import Method, Placement, Record

log = logging.getLogger("clover.devices")

T = TypeVar("T")

PARTS = 4
"""Parts of a GPU.  More make plans finer, and each profile costs a measurement beside busy neighbours."""

PARTITION, PERCENTAGE = "CUDA_MPS_SM_PARTITION", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
MEMORY = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"

_STATIC_CUDA = 13010
_STATIC_CAPABILITY = (8, 0)
_STUCK_POLLS = 15
"""Looks, a second apart, after which a daemon of ours that takes no clients is started anew."""


class MpsProgram(Record, frozen=True, kw_only=True):
    """How daemons are asked and started: `program` with `environment` beside this process's; `shared`: the pipe
    directory of a daemon that somebody else may have started."""

    program: tuple[str, ...] = PROGRAM
    environment: dict[str, str] = {}
    shared: str = ""

    @property
    def found_at(self) -> Path:
        """Where to look for a daemon that runs already."""
        return Path(self.shared or os.environ.get(PIPE) or DEFAULT_PIPE)


class MpsGpu(MigGpu):
    """GPU number `index` in parts, as MigDevice drives it; `open_control` gives it the daemon.

    `static`: parts are static partitions; `why`: what says so.
    """

    def __init__(self, library: Any, index: int) -> None:
        super().__init__(library, index)
        if self.mig or self.mig_pending:
            raise DeviceError(
                f"gpu{index}: MIG mode is on, and MPS parts whole GPUs only: leave /mps out of the device, or turn MIG "
                f"off with nvidia-smi -i {index} -mig 0"
            )
        self.mig = True  # of whoever keeps its books: it has profiles, and instances are made and removed
        self.why = self._no_static()
        self.static = not self.why
        self.control: MpsControl | None = None
        self._chunks = 0
        self._known: dict[str, GpuInstance] = {}
        self.profiles = {
            f"{parts}of{PARTS}": GpuProfile(
                id=parts,
                name=f"{parts}of{PARTS}",
                slices=parts,
                size=parts,
                starts=tuple(range(0, PARTS - parts + 1, parts if parts < 3 else 1)),
                most=PARTS // parts,
                memory_bytes=self.memory_bytes * parts // PARTS,
                base=True,
                media=False,
            )
            for parts in range(1, PARTS + 1)
        }

    @property
    def one_process(self) -> bool:
        """False: in the compute mode EXCLUSIVE_PROCESS the daemon's server is the one process, whatever clients it
        has."""
        return False

    def open_control(self, control: MpsControl, owned: Ownership) -> None:
        """Use the daemon `control`, on which `owned` may know partitions of ours.  Raises DeviceError."""
        self.control = control
        table = control.table(self.uuid) if self.static else None
        if self.static and table is None:
            self.static, self.why = False, f"the daemon at {control.pipe} has no static partitions: it runs without -S"
        if table is None:
            return
        self._chunks = table.chunks
        if self._chunks < PARTS:
            raise DeviceError(f"gpu{self.index} has {self._chunks} partitions at most, too few for {PARTS} parts")
        for own in owned.places:
            self._know(own.uuid, own.profile, own.start)

    def walk(self) -> tuple[GpuInstance, ...]:
        """Return the parts that stand: partitions of the daemon; of bounds, those that were given out.

        A partition that is not ours has no place; it is put where ours leave room, so that it blocks as much."""
        if not self.static:
            return tuple(sorted(self._known.values(), key=lambda found: found.start))
        assert self.control is not None
        table = self.control.table(self.uuid)
        found = [] if table is None else list(table.partitions)
        standing = [self._known[one.name] for one in found if one.name in self._known]
        taken = {part for one in standing for part in range(one.start, one.start + one.size)}
        for other in (one for one in found if one.name not in self._known):
            parts = min(-(-other.chunks // (self._chunks // PARTS)), PARTS)
            free = [part for part in range(PARTS) if part not in taken][-parts:]
            taken.update(free)
            standing += [self._instance(f"1of{PARTS}", part, other.name) for part in free]
        return tuple(sorted(standing, key=lambda one: one.start))

    def find(self, profile: str, start: int) -> GpuInstance | None:
        """Return the part of `profile` at `start`, if it stands."""
        return next((found for found in self.walk() if found.place == (profile, start)), None)

    def make(self, profile: str, start: int) -> GpuInstance:
        """Make a part; `complete` names it.  Raises NvmlError."""
        parts = self.profiles[profile].slices
        name = f"{profile}@{start}"
        if self.static:
            assert self.control is not None
            unit = self._chunks // PARTS
            name = self.control.add(self.uuid, self._chunks if parts == PARTS else unit * parts)
        self._know(name, profile, start)
        return self._instance(profile, start, "")

    def complete(self, found: GpuInstance) -> GpuInstance:
        """Return a part that was made with its name."""
        return next(known for known in self._known.values() if known.place == found.place)

    def unmake(self, found: GpuInstance) -> None:
        """Remove a part.  Raises NvmlError (IN_USE) while clients use its partition."""
        if self.static and found.uuid:
            assert self.control is not None
            self.control.remove(self.uuid, found.uuid)
        self._known = {name: known for name, known in self._known.items() if known.place != found.place}

    def holders(self, found: GpuInstance) -> tuple[int, ...]:
        """Return none: the daemon does not say which client uses which partition."""
        return ()

    def forget(self) -> None:
        """Forget all parts: the daemon that had them is gone."""
        self._known.clear()

    def _know(self, name: str, profile: str, start: int) -> None:
        if name and profile in self.profiles:
            self._known[name] = self._instance(profile, start, name)

    def _instance(self, profile: str, start: int, name: str) -> GpuInstance:
        return GpuInstance(
            gi=start, profile=profile, start=start, size=self.profiles[profile].size, parts=int(bool(name)), uuid=name
        )

    def _no_static(self) -> str:
        """Return why the GPU can have no static partitions; empty if it can."""
        version = int(self._supported("nvmlSystemGetCudaDriverVersion_v2", also=nvml.FUNCTION_NOT_FOUND) or 0)
        if version < _STATIC_CUDA:
            have = f"{version // 1000}.{version % 1000 // 10}"
            return f"static partitions need a driver for CUDA 13.1, and this one is for {have}"
        capability = tuple(self._supported("nvmlDeviceGetCudaComputeCapability", self._handle) or (0, 0))
        if capability < _STATIC_CAPABILITY:
            have = ".".join(map(str, capability))
            return f"static partitions need Ampere or later, and this GPU has compute capability {have}"
        return ""


class MpsDevice(MigDevice):
    """A GPU in parts by MPS; `open_parts` makes one.  `parts_share`: how fast one is depends on what others do."""

    parts_share = True

    def __init__(
        self, session: Nvml, gpu: MpsGpu, instances: OwnedInstances, program: MpsProgram, **options: Any
    ) -> None:
        super().__init__(session, gpu, instances, **options)
        self.program = program
        self.control = gpu.control
        """The daemon; None while the GPU is only looked at."""
        self.found = False
        """Whether somebody else started the daemon."""
        self._parts = gpu
        self._faults = 0
        self._last_fault = ""
        self._faulted_polls = -1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clover-mps")
        self.nodes = ()

    @classmethod
    def open_parts(
        cls,
        session: Nvml,
        index: int,
        folder: Path,
        *,
        mps: MpsProgram,
        boot: str = "",
        exclusive: bool = True,
        **options: Any,
    ) -> MpsDevice:
        """Return GPU number `index` in parts; blocks.  `folder` keeps the record of what is ours, the daemon's folders
        are beside it.  `exclusive` false only looks, and starts no daemon.  Raises DeviceError."""
        session = session.of_gpu(index)
        gpu = session.call_sync(MpsGpu, session.library, index)
        if gpu.prohibited:
            gpu.check_modes()
        owned = Ownership(folder, gpu.uuid, boot=boot, exclusive=exclusive)
        control, found = None, False
        try:
            if exclusive:
                control, found = _daemon(gpu, folder.parent / "mps" / gpu.uuid[4:12], mps)
                gpu.open_control(control, owned)
            instances = OwnedInstances(session.library, gpu, owned)
            device = cls(session, gpu, instances, mps, **options)
            device.found = found
            if control is not None:
                device._books.sort(instances.look())
                whose = f"the one that runs at {control.pipe}" if found else "one of its own"
                log.info("%s: %s, asked of %s", device.name, device.kind_of_parts, whose)
        except BaseException:
            owned.close()
            if control is not None and not found:
                control.quit()
            raise
        return device

    def close(self) -> None:
        """End the daemon if it is ours, and release the GPU for another server.  Workers must have ended."""
        self._thread.shutdown(wait=True)
        if self.control is not None and not self.found and not self.control.quit():
            log.error("%s: the MPS daemon at %s does not end", self.name, self.control.pipe)
        self.control = None
        super().close()

    @property
    def kind_of_parts(self) -> str:
        """How parts are bounded, in words."""
        if self._parts.static:
            return "parts are static partitions of MPS"
        return f"parts are thread percentages of MPS, bounds and no reservations ({self._parts.why})"

    @property
    def _label(self) -> str:
        how = "static partitions" if self._parts.static else "thread percentages"
        return f"{self.product}{', emulated' if self.emulated else ''}, parts by MPS ({how})"

    def visible(self, placement: Placement) -> str:
        """Return the GPU's name for CUDA, which all parts share; DeviceError if the part does not stand."""
        super().visible(placement)
        return self.uuid

    def environment(self, placement: Placement) -> dict[str, str]:
        """Return the variables by which a worker at `placement` is a client with that part; DeviceError if it does not
        stand."""
        name = super().visible(placement)
        assert self.control is not None
        parts = self._parts.profiles[placement.profile].slices
        found = {PIPE: str(self.control.pipe), LOG: str(self.control.log)}
        if self._parts.static:
            found[PARTITION] = f"{self.uuid}/{name}"
        else:
            found[PERCENTAGE] = str(100 * parts // PARTS)
        if memory := self.memory_bytes(placement):
            found[MEMORY] = f"0={memory >> 20}M"
        return found

    def spare(self, watts: float | None, method: Method) -> None:
        """Keep the GPU awake whatever a context costs: the daemon's server has one of its own, with workers or without,
        so that nothing is spared."""

    def report(self) -> dict[str, Any]:
        """Return what an operator should know, as JSON."""
        control = self.control
        about = {
            "parts": "static" if self._parts.static else "percentages",
            "why": self.kind_of_parts,
            "daemon": "found" if self.found else "ours",
            "pipe": str(control.pipe) if control is not None else "",
            "faults": self._faults,
            "last_fault": self._last_fault,
        }
        return {**super().report(), "mig": False, "mps": about}

    def serves_us(self, pid: int) -> bool:
        """Return whether a process is the daemon or its server, by which NVML names our clients."""
        control = self.control
        if control is None:
            return False
        with contextlib.suppress(OSError, ValueError):
            return descends_from(pid, int((control.pipe / f"{PROGRAM[0]}.pid").read_text()))
        return False

    # --- faults -------------------------------------------------------------------------------------------------------

    def note_fault(self, why: str) -> None:
        """Keep that a fault of a client ended all workers of the GPU."""
        self._faults += 1
        self._last_fault = why
        self._faulted_polls = 0

    async def poll(self) -> bool:
        """See `MigDevice.poll`; also start a daemon of ours anew that is gone, or stays in a fault."""
        control = self.control
        if self.lost and control is not None and not self.found and not await self._in_thread(control.runs):
            await self._work.finish(self._restart(control))  # it went with the GPU, whose return asks it
        there = await super().poll()
        if there and self._faulted_polls >= 0 and control is not None:
            await self._recover(control)
        return there

    async def _recover(self, control: MpsControl) -> None:
        """Look whether the daemon is well after a fault, and start one of ours anew that is not."""
        try:
            if not await self._in_thread(control.faulted):
                self._faulted_polls = -1
                return
            self._faulted_polls += 1
            if self._faulted_polls < _STUCK_POLLS or len(await self._in_thread(control.clients)):
                return
        except DeviceError as error:
            self._faulted_polls += 1
            log.warning("%s: %s", self.name, error)
            if self._faulted_polls < _STUCK_POLLS and await self._in_thread(control.runs):
                return
        self._faulted_polls = 0
        if self.found:
            log.error("%s: the MPS daemon at %s takes no clients after a fault: restart it", self.name, control.pipe)
            return
        log.error("%s: its MPS daemon takes no clients after a fault and is started anew", self.name)
        await self._work.finish(self._restart(control))

    async def _restart(self, control: MpsControl) -> None:
        """Start the daemon anew, with the parts that stood; none if the GPU is lost."""
        places = list(self._books.ours)
        try:
            await self._in_thread(control.quit)
            await self._in_thread(lambda: control.start(self.uuid, static=self._parts.static))
        except DeviceError as error:
            log.error("%s: %s", self.name, error)
            return
        self._parts.forget()
        if not self.lost:
            await self._look()
            for place in places:
                await self._create(place, seen=True)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        if getattr(function, "__self__", None) is self._instances:
            return await self._in_thread(function, *arguments)  # of the daemon, which NVML need not wait for
        return await super()._ask(function, *arguments)


def _daemon(gpu: MpsGpu, folder: Path, mps: MpsProgram) -> tuple[MpsControl, bool]:
    """Return the daemon for `gpu`, and whether it was found; else it is started, with its folders in `folder`."""

    def control(pipe: Path, logs: Path) -> MpsControl:
        return MpsControl(pipe, logs, program=mps.program, environment=mps.environment)

    found = control(mps.found_at, mps.found_at)
    if found.runs():
        return found, True
    ours = control(folder / "pipe", folder / "log")
    if ours.runs():
        log.warning("gpu%d: the MPS daemon that a killed server left at %s is ended", gpu.index, ours.pipe)
        if not ours.quit():
            raise DeviceError(f"gpu{gpu.index}: the MPS daemon that a killed server left at {ours.pipe} does not end")
    if gpu.static:
        try:
            ours.start(gpu.uuid, static=True)
            if ours.table(gpu.uuid) is not None:
                return ours, False
            gpu.why = "the daemon lists no static partitions"
        except NvmlError as error:
            if error.code == nvml.LIBRARY_NOT_FOUND:
                raise
            gpu.why = str(error)
        except DeviceError as error:
            gpu.why = str(error)
        gpu.static = False
        ours.quit()
        log.warning("gpu%d: no static partitions of MPS: %s", gpu.index, gpu.why)
    ours.start(gpu.uuid, static=False)
    return ours, False
