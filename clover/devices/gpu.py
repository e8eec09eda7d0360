"""One GPU as NVML describes it: which instances it could have, which it has, and how one is made and removed.

Nothing is assumed: memory sizes, names and placements differ by driver and even by die, so NVML is asked for all of
them.  Profiles are found by NVML's numbers.  "Not supported" means that this GPU lacks a profile, "invalid argument"
that this driver does not know it.  Drivers leave out numbers in the middle, so neither ends the search.

What Clover calls an instance is two things to NVML: a *GPU instance* (memory slices and engines) and inside it a
*compute instance* (compute slices).  Only the compute instance has an identity that a process can be given.  Making it
can fail after the GPU instance was made.  The GPU instance that remains takes its slices but does not appear among the
MIG devices.  So existing instances are always found by listing GPU instances, never MIG devices.

Everything here blocks and is called in the thread of the NVML session.  It raises what the bindings raise.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import msgspec

from clover.devices import nvml
from clover.errors import DeviceError
from clover.planning.packing.geometry import SliceProfile
from clover.types import Record

log = logging.getLogger("clover.devices")

# nvml.h: profiles of GPU instances 0..0x11, of which the first seven are plain (1, 2, 3, 4, 7, 8 and 6 slices);
# compute-instance profiles 0..8, of the shared engine profile 0.
_PROFILES = 0x12
_PLAIN = 7
_COMPUTE_PROFILES = 0x9
_SHARED_ENGINES = 0
_MIB = 1 << 20
_CORES = 4096  # of a machine, that the mask of those near a GPU has room for

# nvml.h: compute modes other than the default, in which processes share the GPU.
_EXCLUSIVE_THREAD, _PROHIBITED, _EXCLUSIVE_PROCESS = 1, 2, 3


class GpuProfile(Record, frozen=True, kw_only=True):
    """A shape of instance that this GPU offers.  `id` is the driver's number of it; `base`: neither media engines nor
    graphics nor double memory."""

    id: int
    name: str
    slices: int
    size: int
    starts: tuple[int, ...]
    most: int
    memory_bytes: int
    base: bool
    media: bool

    @property
    def shape(self) -> SliceProfile:
        """The profile as the planner's geometry wants it."""
        return SliceProfile(
            name=self.name, slices=self.slices, size=self.size, starts=self.starts, most=self.most, media=self.media
        )


def _room(profile: GpuProfile) -> int:
    """Return how many handles an array for all instances of a profile must have room for."""
    return max(profile.most, len(profile.starts), 1)


class GpuInstance(Record, frozen=True, kw_only=True):
    """A GPU instance that exists.  `uuid` names its compute instance if there is exactly one with all compute slices
    ("MIG-..."), and is empty otherwise; `parts` counts its compute instances."""

    gi: int
    profile: str
    start: int
    size: int
    parts: int
    uuid: str

    @property
    def place(self) -> tuple[str, int]:
        """Profile and start, which identify an instance on its GPU."""
        return self.profile, self.start


class MigGpu:
    """GPU number `index` of this machine.  `fixed`: why its instances are not changed; empty if they may be.  `others`:
    compute slices beside fixed instances, which this process can never use.  `memory_bytes`: the GPU's own memory, 0 if
    it has none for itself (it shares the machine's), or is partitioned and this user may not read its total.
    `near_cores`: the cores of the machine that are nearest to it, empty if the driver does not say."""

    fixed: str = ""
    others: int = 0

    def __init__(self, library: Any, index: int) -> None:
        self._nvml = library
        self._handle = nvml.look_up(library, lambda: library.nvmlDeviceGetHandleByIndex(index))
        self.index = index
        self.uuid: str = library.nvmlDeviceGetUUID(self._handle)
        self.product: str = library.nvmlDeviceGetName(self._handle)
        mode = self._mode()
        self.can_mig = mode is not None
        """Whether it can be split, be MIG on or off."""
        self.mig, self.mig_pending = mode or (False, False)
        self.compute_mode = self._compute_mode()
        memory = self._if_supported("nvmlDeviceGetMemoryInfo", self._handle, also=nvml.NO_PERMISSION)
        self.memory_bytes = 0 if memory is None else int(memory.total)
        self.near_cores = self._near_cores()
        self._compute_profiles: dict[int, list[tuple[int, int, int]]] = {}
        self.profiles: dict[str, GpuProfile] = {item.name: item for item in self._profiles()} if self.mig else {}
        if self.mig and not self.profiles and not self.fixed:
            raise DeviceError(f"MIG is on, but the driver offers no profile of instances on GPU {index}")

    def near(self, cores: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of `cores` that are near the GPU; all of them if none is, or none is known to be."""
        return tuple(core for core in cores if core in self.near_cores) or cores

    @property
    def slices(self) -> int:
        """Compute slices of the whole GPU; 1 if it cannot be split."""
        return max((profile.slices for profile in self.profiles.values()), default=1)

    @property
    def one_process(self) -> bool:
        """Whether only one process at a time may have a CUDA context on it."""
        return self.compute_mode in (_EXCLUSIVE_THREAD, _EXCLUSIVE_PROCESS)

    @property
    def prohibited(self) -> bool:
        """Whether no process may have a CUDA context on it."""
        return self.compute_mode == _PROHIBITED

    @property
    def minor(self) -> int:
        """The number in the name of the GPU's device node."""
        return int(self._nvml.nvmlDeviceGetMinorNumber(self._handle))

    def unknown(self) -> bool:
        """Return whether even looking up the handle fails without a reason."""
        try:
            self.reopen()
        except self._nvml.NVMLError as error:
            return bool(error.value == nvml.UNKNOWN)
        return False

    def check_modes(self) -> None:
        """Warn of a MIG mode that is to change; raises DeviceError if no program may use the GPU."""
        if self.mig != self.mig_pending:
            now, then = ("on" if mode else "off" for mode in (self.mig, self.mig_pending))
            log.warning("gpu%d: MIG is %s, and %s once the GPU was reset", self.index, now, then)
        if self.prohibited:
            raise DeviceError(
                f"gpu{self.index} is in compute mode PROHIBITED, in which no program may use it: "
                f"nvidia-smi -i {self.index} -c DEFAULT changes that"
            )

    def alive(self) -> None:
        """Check that the GPU answers, at the cost of one reading; raises what NVML raises if the GPU is lost."""
        self._if_supported("nvmlDeviceGetPowerUsage", self._handle, also=nvml.NO_PERMISSION)

    def check_permission(self) -> None:
        """Raise what NVML raises for a user who may not see or change the instances; change nothing."""
        for profile in [*self.profiles.values()][:1]:
            self._if_supported("nvmlDeviceGetGpuInstanceRemainingCapacity", self._handle, profile.id)
            self._list("nvmlDeviceGetGpuInstances", "c_nvmlGpuInstance_t", self._handle, profile.id, _room(profile))

    def reopen(self) -> None:
        """Find the GPU again after it was lost."""
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        self._compute_profiles.clear()

    def walk(self) -> tuple[GpuInstance, ...]:
        """Return the GPU instances that exist, by start."""
        instances = [item for profile in self.profiles.values() for item in self._standing(profile)]
        return tuple(sorted(instances, key=lambda item: (item.start, item.profile)))

    def find(self, profile: str, start: int) -> GpuInstance | None:
        """Return the instance of `profile` at `start`, if it exists."""
        return next((item for item in self._standing(self.profiles[profile]) if item.start == start), None)

    def make(self, profile: str, start: int) -> GpuInstance:
        """Make a GPU instance at exactly this place, still without a compute instance: `complete` makes that."""
        kind = self.profiles[profile]
        place = self._nvml.c_nvmlGpuInstancePlacement_t(start, kind.size)
        handle = self._nvml.nvmlDeviceCreateGpuInstanceWithPlacement(self._handle, kind.id, ctypes.byref(place))
        gi = int(self._nvml.nvmlGpuInstanceGetInfo(handle).id)
        return GpuInstance(gi=gi, profile=profile, start=start, size=kind.size, parts=0, uuid="")

    def complete(self, found: GpuInstance) -> GpuInstance:
        """Make the compute instance of a GPU instance that has none, with all compute slices, and so with
        an identity."""
        handle = self._nvml.nvmlDeviceGetGpuInstanceById(self._handle, found.gi)
        kinds = self._whole(handle, self.profiles[found.profile])
        if not kinds:
            raise DeviceError(f"the driver offers no compute instance that fills {found.profile}")
        part = self._nvml.nvmlGpuInstanceCreateComputeInstance(handle, kinds[0])
        uuid = self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlComputeInstanceGetInfo_v2(part).device)
        return msgspec.structs.replace(found, parts=1, uuid=uuid)

    def unmake(self, found: GpuInstance) -> None:
        """Remove the compute instances of an instance, then itself.  Nothing happens if it is gone already."""
        try:
            handle = self._nvml.nvmlDeviceGetGpuInstanceById(self._handle, found.gi)
        except self._nvml.NVMLError as error:
            if error.value == nvml.NOT_FOUND:
                return
            raise
        for _, part in self._parts(handle, self.profiles[found.profile]):
            self._nvml.nvmlComputeInstanceDestroy(part)
        self._nvml.nvmlGpuInstanceDestroy(handle)

    def holders(self, found: GpuInstance) -> tuple[int, ...]:
        """Return ids of the processes that NVML sees on an instance; none if it sees none, or cannot tell.  The GPU is
        asked and not the instance.  To ask an instance, the session would have to subscribe to it, and would itself
        keep it from being removed."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
        except self._nvml.NVMLError:
            return ()
        return tuple(sorted({int(item.pid) for item in running if int(item.gpuInstanceId) == found.gi}))

    def _standing(self, profile: GpuProfile) -> list[GpuInstance]:
        instances = []
        symbol, room = "nvmlDeviceGetGpuInstances", _room(profile)
        for handle in self._list(symbol, "c_nvmlGpuInstance_t", self._handle, profile.id, room):
            info = self._nvml.nvmlGpuInstanceGetInfo(handle)
            parts = self._parts(handle, profile)
            uuid = ""
            if len(parts) == 1 and parts[0][0] in self._whole(handle, profile):
                uuid = self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlComputeInstanceGetInfo_v2(parts[0][1]).device)
            instances.append(
                GpuInstance(
                    gi=int(info.id),
                    profile=profile.name,
                    start=int(info.placement.start),
                    size=int(info.placement.size),
                    parts=len(parts),
                    uuid=uuid,
                )
            )
        return instances

    # --- the bindings, asked ------------------------------------------------------------------------------------------

    def _mode(self) -> tuple[bool, bool] | None:
        """Return MIG mode now and after a reset; None if the GPU has no MIG."""
        current_pending = self._if_supported("nvmlDeviceGetMigMode", self._handle)
        if current_pending is None:
            return None
        current, pending = current_pending
        return bool(current), bool(pending)

    def _compute_mode(self) -> int:
        """Return the compute mode; the default where the driver does not say."""
        return int(self._if_supported("nvmlDeviceGetComputeMode", self._handle) or 0)

    def _near_cores(self) -> frozenset[int]:
        """Return the cores of the GPU's NUMA node: what they write is copied to it without crossing sockets."""
        words = _CORES // (8 * ctypes.sizeof(ctypes.c_ulong))
        try:
            mask = self._nvml.nvmlDeviceGetCpuAffinity(self._handle, words)
        except (self._nvml.NVMLError, AttributeError) as error:  # only speed depends on it
            log.debug("gpu%d: the cores near it are unknown: %s", self.index, error)
            return frozenset()
        bits = 8 * ctypes.sizeof(ctypes.c_ulong)
        return frozenset(at * bits + bit for at, word in enumerate(mask) for bit in range(bits) if word >> bit & 1)

    def _if_supported(self, symbol: str, *arguments: Any, also: int = nvml.NOT_SUPPORTED) -> Any:
        """Return the answer of `symbol`, or None if this GPU does not support it, or the answer is the code `also`."""
        try:
            return getattr(self._nvml, symbol)(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in (nvml.NOT_SUPPORTED, also):
                return None
            raise

    def _profiles(self) -> list[GpuProfile]:
        profiles = []
        for number in range(_PROFILES):
            symbol = "nvmlDeviceGetGpuInstanceProfileInfo"
            info = self._if_supported(symbol, self._handle, number, also=nvml.INVALID_ARGUMENT)
            places = [] if info is None else self._places(info.id)
            if info is None or not places:
                continue
            text = info.name  # the bindings decode it, where they wrap the structure
            name = (text if isinstance(text, str) else text.decode()).removeprefix("MIG ").strip()
            sizes = {size for _, size in places}
            if len(sizes) != 1:
                raise DeviceError(f"the driver places {name} with several sizes ({sorted(sizes)}): not understood")
            profiles.append(
                GpuProfile(
                    id=int(info.id),
                    name=name,
                    slices=int(info.sliceCount),
                    size=sizes.pop(),
                    starts=tuple(sorted(start for start, _ in places)),
                    most=int(info.instanceCount),
                    memory_bytes=int(info.memorySizeMB) * _MIB,
                    base=number < _PLAIN,
                    media="+me" in name,
                )
            )
        return profiles

    def _places(self, profile: int) -> list[tuple[int, int]]:
        """Return where a profile may stand; nothing if the driver lists the profile and does not place it here."""
        count = ctypes.c_uint(0)
        ask = self._nvml.nvmlDeviceGetGpuInstancePossiblePlacements
        try:
            ask(self._handle, profile, None, ctypes.byref(count))
            places = (self._nvml.c_nvmlGpuInstancePlacement_t * count.value)()
            if count.value:
                ask(self._handle, profile, places, ctypes.byref(count))
        except self._nvml.NVMLError as error:
            if error.value in (nvml.NOT_SUPPORTED, nvml.INVALID_ARGUMENT, nvml.NOT_FOUND):
                return []
            raise
        return [(int(place.start), int(place.size)) for place in places[: count.value]]

    def _list(self, symbol: str, kind: str, parent: Any, profile: int, room: int) -> list[Any]:
        """Return handles of what exists of one profile: NVML fills an array that must have room for the
        profile's most."""
        handles = (getattr(self._nvml, kind) * room)()
        count = ctypes.c_uint(room)
        if self._if_supported(symbol, parent, profile, handles, ctypes.byref(count)) is None:
            return []
        return [handles[index] for index in range(min(count.value, room))]

    def _kinds(self, handle: Any, profile: GpuProfile) -> list[tuple[int, int, int]]:
        """Return the compute-instance profiles of a GPU-instance profile, as (id, compute slices, most)."""
        if profile.id not in self._compute_profiles:
            kinds = []
            for number in range(_COMPUTE_PROFILES):
                symbol = "nvmlGpuInstanceGetComputeInstanceProfileInfo"
                info = self._if_supported(symbol, handle, number, _SHARED_ENGINES, also=nvml.INVALID_ARGUMENT)
                if info is not None:
                    kinds.append((int(info.id), int(info.sliceCount), int(info.instanceCount)))
            self._compute_profiles[profile.id] = kinds
        return self._compute_profiles[profile.id]

    def _whole(self, handle: Any, profile: GpuProfile) -> list[int]:
        """Return the ids of the compute-instance profiles that take all compute slices: 7 slices, and one slice, have
        two on some GPUs."""
        return [kind for kind, slices, _ in self._kinds(handle, profile) if slices == profile.slices]

    def _parts(self, handle: Any, profile: GpuProfile) -> list[tuple[int, Any]]:
        """Return the compute instances of a GPU instance, each with the id of its profile."""
        parts = []
        for kind, _, most in self._kinds(handle, profile):
            room = max(most, profile.slices, 1)
            symbol = "nvmlGpuInstanceGetComputeInstances"
            parts += [(kind, part) for part in self._list(symbol, "c_nvmlComputeInstance_t", handle, kind, room)]
        return parts
