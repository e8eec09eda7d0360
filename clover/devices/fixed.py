"""A GPU whose MIG instances are fixed: Clover serves on those that it was given, and changes none.

MIG is used that way where somebody else cut the GPU: in a Kubernetes pod with `nvidia.com/mig-1g.10gb`, in a Slurm job,
for any user without root or the driver's capability mig/config.  The driver then refuses to describe the GPU as a
whole: its memory, the possible placements, the GPU instances (nvml.h: "requires privileged user").  It still lists the
*MIG devices* that the process may use, by number, each with a name, an identity and its attributes.  From these alone a
device is made that has exactly one layout.

The list does not show where an instance stands on the memory axis, and so how many memory slices it has.  `start` then
counts compute slices in the driver's order, which is enough to tell instances apart.  A compute instance that is only a
part of its GPU instance (`1c.3g.20gb`) is served as any other; memory that it shares is counted by its part.

An instance that is taken away leaves the layout.  One that is added is not used before the next start.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clover.devices import nvml
from clover.devices.gpu import GpuInstance, GpuProfile, MigGpu
from clover.devices.instances import InstanceInventory, OwnedInstances
from clover.devices.nvml import NvmlError
from clover.devices.ownership import Ownership
from clover.errors import DeviceError

log = logging.getLogger("clover.devices")

NOT_PERMITTED = "fixed: not permitted to change instances"
NAMED = "fixed: named by UUID"

_NOTHING_GIVEN = (
    "not permitted to change MIG instances, and there is none that this process may use: have one made and given to it "
    "(in Kubernetes a resource as nvidia.com/mig-1g.10gb), or run as root, or with the driver's capability mig/config"
)

_MIB = 1 << 20
_PROFILE = re.compile(r"\bMIG (\d+[cg]\.\S+)$")


class FixedGpu(MigGpu):
    """GPU number `index` with the MIG devices that this process sees on it, or those whose UUID begins with one of
    `named`; `why` they are fixed.  Its methods that change instances are never called (`FixedInstances`)."""

    def __init__(self, library: Any, index: int, why: str, named: tuple[str, ...] = ()) -> None:
        self.fixed = why
        self._named = named
        self._found: tuple[GpuInstance, ...] = ()
        super().__init__(library, index)
        self.others = max(int(library.nvmlDeviceGetMaxMigDeviceCount(self._handle)) - self.slices, 0)

    @property
    def slices(self) -> int:
        """Compute slices of the fixed instances together."""
        return sum(self.profiles[found.profile].slices for found in self._found)

    def walk(self) -> tuple[GpuInstance, ...]:
        """Return those of the instances found at first that still exist, by start."""
        present = {self._nvml.nvmlDeviceGetUUID(device) for device in self._devices()}
        return tuple(found for found in self._found if found.uuid in present)

    def _profiles(self) -> list[GpuProfile]:
        """Find the instances, and return their profiles with the places at which they stand."""
        profiles: dict[str, GpuProfile] = {}
        instances: list[GpuInstance] = []
        start = 0
        for device in self._devices():
            uuid = self._nvml.nvmlDeviceGetUUID(device)
            if self._named and not any(map(uuid.startswith, self._named)):
                continue
            about = self._nvml.nvmlDeviceGetAttributes_v2(device)
            name, slices = self._name(device, about), int(about.computeInstanceSliceCount)
            of = max(int(about.gpuInstanceSliceCount), slices)
            starts = (*(profiles[name].starts if name in profiles else ()), start)
            profiles[name] = GpuProfile(
                id=-1,
                name=name,
                slices=slices,
                size=slices,
                starts=starts,
                most=len(starts),
                memory_bytes=int(about.memorySizeMB) * _MIB * slices // of,
                base=True,
                media="+me" in name,
            )
            gi = int(self._nvml.nvmlDeviceGetGpuInstanceId(device))
            instances.append(GpuInstance(gi=gi, profile=name, start=start, size=slices, parts=1, uuid=uuid))
            start += slices
        self._found = tuple(instances)
        return list(profiles.values())

    def _name(self, device: Any, about: Any) -> str:
        """Return the profile of a MIG device: the end of its name, or made of its attributes if that has none."""
        if named := _PROFILE.search(self._nvml.nvmlDeviceGetName(device)):
            return named[1]
        slices, of = int(about.computeInstanceSliceCount), int(about.gpuInstanceSliceCount)
        part = f"{slices}c." if slices < of else ""
        return f"{part}{of}g.{-(-int(about.memorySizeMB) // 1024)}gb"

    def _devices(self) -> Iterator[Any]:
        """Yield handles of the MIG devices that this process sees.  A number may lead to none in the middle."""
        for number in range(int(self._nvml.nvmlDeviceGetMaxMigDeviceCount(self._handle))):
            symbol = "nvmlDeviceGetMigDeviceHandleByIndex"
            device = self._if_supported(symbol, self._handle, number, also=nvml.NOT_FOUND)
            if device is not None:
                yield device


class FixedInstances:
    """The instances of a `FixedGpu`, in place of `OwnedInstances`: all count as ours, and none can be changed.

    Each is locked for one server at a time, by a file in `folder`, if `exclusive`.  Raises DeviceError if another
    process holds a lock.
    """

    def __init__(self, gpu: MigGpu, folder: Path, *, exclusive: bool) -> None:
        self._gpu = gpu
        self._locks: list[Ownership] = []
        try:
            for found in gpu.walk() if exclusive else ():
                self._locks.append(Ownership(folder, found.uuid.replace("/", "_")))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the locks."""
        for lock in self._locks:
            lock.close()

    def inspect(self) -> InstanceInventory:
        """Return the instances that still exist."""
        return InstanceInventory(ours=self._gpu.walk(), foreign=())

    def make(self, profile: str, start: int) -> GpuInstance:
        """Refuse to make an instance."""
        raise DeviceError(f"{profile}@{start} cannot be made ({self._gpu.fixed})")

    def complete(self, found: GpuInstance) -> GpuInstance:
        """Refuse to make a compute instance."""
        raise DeviceError(f"{found.profile}@{found.start} cannot be completed ({self._gpu.fixed})")

    def provide(self, found: GpuInstance) -> None:
        """Do nothing: this process was given the device nodes with the instance."""

    def unmake(self, found: GpuInstance) -> None:
        """Refuse to remove an instance."""
        raise DeviceError(f"{found.profile}@{found.start} cannot be removed ({self._gpu.fixed})")

    def claim(self, found: GpuInstance) -> None:
        """Refuse to record an instance as ours to change."""
        raise DeviceError(f"{found.profile}@{found.start} cannot be claimed ({self._gpu.fixed})")


def open_visible(library: Any, index: int, named: tuple[str, ...] = ()) -> MigGpu:
    """Return GPU number `index` as this user may use it: with fixed instances if some are `named` by UUID, or if the
    driver refuses to show or change them.  Raises what the bindings raise."""
    if named:
        return FixedGpu(library, index, NAMED, named)
    try:
        gpu = MigGpu(library, index)
        gpu.check_permission()
    except library.NVMLError as error:
        if error.value != nvml.NO_PERMISSION:
            raise
        return FixedGpu(library, index, NOT_PERMITTED)
    return gpu


def instances_of(
    library: Any, gpu: MigGpu, folder: Path, *, boot: str, exclusive: bool, root: Path | None
) -> OwnedInstances | FixedInstances:
    """Return what keeps the instances of `gpu`, with the record of ours in `folder`; see `MigDevice.open`.  `root` as
    for `OwnedInstances`.  Raises DeviceError, also if instances are fixed and there is none."""
    if not gpu.fixed:
        owned = Ownership(folder, gpu.uuid, boot=boot, exclusive=exclusive)
        return OwnedInstances(library, gpu, owned, root)
    if not gpu.profiles:
        raise NvmlError(_NOTHING_GIVEN, nvml.NO_PERMISSION)
    text = "gpu%d: %s; it is served on as it stands, %d of %d compute slices, and energy is read of the whole GPU"
    log.info(text, gpu.index, gpu.fixed, gpu.slices, gpu.slices + gpu.others)
    return FixedInstances(gpu, folder, exclusive=exclusive)
