"""One GPU as NVML describes it: which instances it could have, which it has, and how one is made and removed.

Nothing is known beforehand: memory sizes, names and placements differ by driver and even by die, so all of it is asked
for.  Profiles are walked by NVML's enumeration, in which "not supported" means that this GPU lacks one and "invalid
argument" that the driver knows no more.

What Clover calls an instance is two things to NVML: a *GPU instance* (memory slices and engines) and inside it a
*compute instance* (compute slices), which alone has an identity that a process can be given.  Making the second can
fail after the first was made.  What remains then does not appear among the MIG devices, though it takes its slices; so
existing instances are always found by walking GPU instances, never MIG devices.

Everything here blocks and is called in the thread of the NVML session.  It raises what the bindings raise.
"""

from __future__ import annotations

import ctypes
from typing import Any

import msgspec

from clover.devices import nvml
from clover.errors import DeviceError
from clover.planning.packing.geometry import SliceProfile
from clover.types import Record

# nvml.h: profiles of GPU instances 0..0x11, of which the first seven are plain (1, 2, 3, 4, 7, 8 and 6 slices);
# compute-instance profiles 0..8, of the shared engine profile 0.
_PROFILES = 0x12
_PLAIN = 7
_COMPUTE_PROFILES = 0x9
_SHARED_ENGINES = 0
_MIB = 1 << 20

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
    """GPU number `index` of this machine."""

    def __init__(self, library: Any, index: int) -> None:
        self._nvml = library
        self._handle = nvml.look_up(library, lambda: library.nvmlDeviceGetHandleByIndex(index))
        self.index = index
        self.uuid: str = library.nvmlDeviceGetUUID(self._handle)
        self.product: str = library.nvmlDeviceGetName(self._handle)
        self.mig, self.mig_pending = self._mode()
        self.compute_mode = self._compute_mode()
        self.memory_bytes = int(library.nvmlDeviceGetMemoryInfo(self._handle).total)
        self._compute_profiles: dict[int, list[tuple[int, int, int]]] = {}
        self.profiles: dict[str, GpuProfile] = {item.name: item for item in self._profiles()} if self.mig else {}
        if self.mig and not self.profiles:
            raise DeviceError(f"MIG is on, but the driver offers no profile of instances on GPU {index}")

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

    def alive(self) -> None:
        """Check that the GPU answers, at the cost of one reading; raises what NVML raises if the GPU is lost."""
        self._supported("nvmlDeviceGetPowerUsage", self._handle)

    def reopen(self) -> None:
        """Find the GPU again after it was lost."""
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        self._compute_profiles.clear()

    def walk(self) -> tuple[GpuInstance, ...]:
        """Return the GPU instances that exist, by start."""
        found = [item for profile in self.profiles.values() for item in self._standing(profile)]
        return tuple(sorted(found, key=lambda item: (item.start, item.profile)))

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
        kind = self._full(handle, self.profiles[found.profile])
        part = self._nvml.nvmlGpuInstanceCreateComputeInstance(handle, kind)
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
        """Return ids of the processes that NVML sees on an instance; none if it sees none, or cannot look.

        The GPU is asked and not the instance: to be asked, an instance has to be subscribed to, and the session that is
        would itself keep it from being removed."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle)
        except self._nvml.NVMLError:
            return ()
        return tuple(sorted({int(item.pid) for item in running if int(item.gpuInstanceId) == found.gi}))

    def _standing(self, profile: GpuProfile) -> list[GpuInstance]:
        found = []
        room = max(profile.most, len(profile.starts), 1)
        for handle in self._list("nvmlDeviceGetGpuInstances", "c_nvmlGpuInstance_t", self._handle, profile.id, room):
            info = self._nvml.nvmlGpuInstanceGetInfo(handle)
            parts = self._parts(handle, profile)
            uuid = ""
            if len(parts) == 1 and parts[0][0] == self._full(handle, profile):
                uuid = self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlComputeInstanceGetInfo_v2(parts[0][1]).device)
            found.append(
                GpuInstance(
                    gi=int(info.id),
                    profile=profile.name,
                    start=int(info.placement.start),
                    size=int(info.placement.size),
                    parts=len(parts),
                    uuid=uuid,
                )
            )
        return found

    # --- the bindings, asked ------------------------------------------------------------------------------------------

    def _mode(self) -> tuple[bool, bool]:
        current_pending = self._supported("nvmlDeviceGetMigMode", self._handle)
        if current_pending is None:
            return False, False
        current, pending = current_pending
        return bool(current), bool(pending)

    def _compute_mode(self) -> int:
        """Return the compute mode; the default where the driver does not say."""
        return int(self._supported("nvmlDeviceGetComputeMode", self._handle) or 0)

    def _supported(self, symbol: str, *arguments: Any) -> Any:
        """Return the answer of `symbol`, or None if this GPU does not support it."""
        try:
            return getattr(self._nvml, symbol)(*arguments)
        except self._nvml.NVMLError as error:
            if error.value == nvml.NOT_SUPPORTED:
                return None
            raise

    def _profiles(self) -> list[GpuProfile]:
        found = []
        for number in range(_PROFILES):
            try:
                info = self._supported("nvmlDeviceGetGpuInstanceProfileInfo", self._handle, number)
            except self._nvml.NVMLError as error:
                if error.value == nvml.INVALID_ARGUMENT:
                    break
                raise
            places = [] if info is None else self._places(info.id)
            if info is None or not places:
                continue
            text = info.name  # the bindings decode it, where they wrap the structure
            name = (text if isinstance(text, str) else text.decode()).removeprefix("MIG ").strip()
            sizes = {size for _, size in places}
            if len(sizes) != 1:
                raise DeviceError(f"the driver places {name} with several sizes ({sorted(sizes)}): not understood")
            found.append(
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
        return found

    def _places(self, profile: int) -> list[tuple[int, int]]:
        count = ctypes.c_uint(0)
        ask = self._nvml.nvmlDeviceGetGpuInstancePossiblePlacements
        ask(self._handle, profile, None, ctypes.byref(count))
        if count.value == 0:
            return []
        places = (self._nvml.c_nvmlGpuInstancePlacement_t * count.value)()
        ask(self._handle, profile, places, ctypes.byref(count))
        return [(int(place.start), int(place.size)) for place in places[: count.value]]

    def _list(self, symbol: str, kind: str, parent: Any, profile: int, room: int) -> list[Any]:
        """Return handles of what exists of one profile: NVML fills an array that must have room for the
        profile's most."""
        handles = (getattr(self._nvml, kind) * room)()
        count = ctypes.c_uint(room)
        if self._supported(symbol, parent, profile, handles, ctypes.byref(count)) is None:
            return []
        return [handles[index] for index in range(min(count.value, room))]

    def _kinds(self, handle: Any, profile: GpuProfile) -> list[tuple[int, int, int]]:
        """Return the compute-instance profiles of a GPU-instance profile, as (id, compute slices, most)."""
        if profile.id not in self._compute_profiles:
            kinds = []
            for number in range(_COMPUTE_PROFILES):
                try:
                    info = self._supported(
                        "nvmlGpuInstanceGetComputeInstanceProfileInfo", handle, number, _SHARED_ENGINES
                    )
                except self._nvml.NVMLError as error:
                    if error.value == nvml.INVALID_ARGUMENT:
                        break
                    raise
                if info is not None:
                    kinds.append((int(info.id), int(info.sliceCount), int(info.instanceCount)))
            self._compute_profiles[profile.id] = kinds
        return self._compute_profiles[profile.id]

    def _full(self, handle: Any, profile: GpuProfile) -> int:
        """Return the id of the compute-instance profile that takes all compute slices."""
        for kind, slices, _ in self._kinds(handle, profile):
            if slices == profile.slices:
                return kind
        raise DeviceError(f"the driver offers no compute instance that fills {profile.name}")

    def _parts(self, handle: Any, profile: GpuProfile) -> list[tuple[int, Any]]:
        """Return the compute instances of a GPU instance, each with the id of its profile."""
        found = []
        for kind, _, most in self._kinds(handle, profile):
            room = max(most, profile.slices, 1)
            symbol = "nvmlGpuInstanceGetComputeInstances"
            found += [(kind, part) for part in self._list(symbol, "c_nvmlComputeInstance_t", handle, kind, room)]
        return found
