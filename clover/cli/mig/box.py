"""The GPUs of this machine, or emulated ones: looked at without a lock, changed as a server would change them.

Looking never interferes with a server that runs on the same GPUs.  Changing goes through the same devices that a server
uses: it takes the lock of each GPU it touches (and is refused if a server holds it), records what it makes as Clover's,
so that a server started later may adopt or move it, and waits for each instance to be released.

MIG mode is the one thing a server never changes.  NVML answers "success" also if the change only takes effect at the
next reset of the GPU, so the mode is read again afterwards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clover import devices
from clover.cli.mig.state import GpuState, Instance
from clover.devices import nvml
from clover.devices.fixed import open_visible
from clover.devices.gpu import GpuInstance, MigGpu
from clover.devices.instances import is_ours
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.devices.ownership import Ownership, boot_of
from clover.errors import ConfigError
from clover.hints import program
from clover.types import Placement

_AMPERE = 7
"""NVML's number of the architecture whose GPUs change MIG mode only in a reset."""

_MIB = 1 << 20


class GpuBox:
    """The GPUs that NVML shows, with the records of what is Clover's in `folder`.  Raises DeviceError."""

    def __init__(self, session: Nvml, folder: Path, *, emulated: bool) -> None:
        self.emulated = emulated
        self._session = session
        self._folder = folder
        self._boot = "" if emulated else boot_of()

    def look(self) -> tuple[GpuState, ...]:
        """Return every GPU, as it is now."""
        return self._session.call_sync(self._look)

    @contextlib.contextmanager
    def device(self, gpu: GpuState) -> Iterator[MigDevice]:
        """Yield the GPU, locked, for changes of its instances."""
        options: dict[str, Any] = {"cores": (), "emulated": self.emulated}
        device = MigDevice.open(self._session, gpu.index, self._folder, boot=self._boot, **options)
        try:
            yield device
        finally:
            device.close()

    def set_mode(self, gpu: GpuState, on: bool) -> bool:
        """Turn MIG mode on or off; return whether it took effect now, rather than after a reset."""
        owned = Ownership(self._folder, gpu.uuid, boot=self._boot)
        try:
            return self._session.call_sync(self._set_mode, gpu.index, on)
        finally:
            owned.close()

    # --- in the session's thread --------------------------------------------------------------------------------------

    def _look(self) -> tuple[GpuState, ...]:
        count = int(self._session.library.nvmlDeviceGetCount())
        return tuple(self._gpu(index) for index in range(count))

    def _gpu(self, index: int) -> GpuState:
        library = self._session.library
        device = f"gpu{index}"
        uuid = product = ""
        try:
            handle = nvml.look_up(library, lambda: library.nvmlDeviceGetHandleByIndex(index))
            uuid, product = library.nvmlDeviceGetUUID(handle), library.nvmlDeviceGetName(handle)
            return self._state(open_visible(library, index), handle)
        except library.NVMLError as error:
            # What one GPU refuses must not hide the others.
            lost = error.value in nvml.LOST_CODES
            said = "" if lost else nvml.describe_refusal(error.value, str(error))
            return GpuState(device=device, index=index, uuid=uuid, product=product or "GPU", lost=lost, error=said)

    def _state(self, gpu: MigGpu, handle: Any) -> GpuState:
        library, device = self._session.library, f"gpu{gpu.index}"
        gpu.alive()
        standing = gpu.walk()
        locked = [found.uuid for found in standing] if gpu.fixed else [gpu.uuid]
        return GpuState(
            device=device,
            index=gpu.index,
            uuid=gpu.uuid,
            product=gpu.product,
            memory_mib=gpu.memory_bytes // _MIB,
            hidden=bool(gpu.fixed),
            fixed=gpu.fixed,
            holder=next((holder for uuid in locked if (holder := self._holder(uuid)) is not None), None),
            supported=gpu.can_mig,
            enabled=gpu.mig,
            pending=gpu.mig_pending,
            needs_reset=library.nvmlDeviceGetArchitecture(handle) == _AMPERE,
            compute_slices=gpu.slices if gpu.mig else 0,
            memory_slices=max((max(item.starts) + item.size for item in gpu.profiles.values()), default=0),
            profiles={name: item.shape for name, item in gpu.profiles.items()},
            instances=tuple(self._instance(gpu, device, found) for found in standing),
        )

    def _instance(self, gpu: MigGpu, device: str, found: GpuInstance) -> Instance:
        owned = Ownership(self._folder, gpu.uuid, boot=self._boot, exclusive=False)
        return Instance(
            placement=Placement(device=device, profile=found.profile, start=found.start, size=found.size),
            uuid=found.uuid,
            ours=not gpu.fixed and is_ours(found, owned),
            fixed=bool(gpu.fixed),
            whole=bool(found.uuid),
            pids=gpu.holders(found),
            memory_mib=gpu.profiles[found.profile].memory_bytes // _MIB,
        )

    def _holder(self, uuid: str) -> int | None:
        """Return the process that holds the lock of a GPU, without touching the lock; None if none is visible."""
        try:
            file = (self._folder / f"{uuid}.lock").stat()
            locks = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return None
        place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
        for line in locks:
            fields = line.split()
            if fields[1:2] == ["FLOCK"] and place in fields:
                return max(0, int(fields[4]))
        return None

    def _set_mode(self, index: int, on: bool) -> bool:
        library = self._session.library
        handle = library.nvmlDeviceGetHandleByIndex(index)
        library.nvmlDeviceSetMigMode(handle, int(on))
        current, _ = library.nvmlDeviceGetMigMode(handle)
        return bool(current) == on


@contextlib.contextmanager
def opened(state: str, cache: Path) -> Iterator[GpuBox]:
    """Yield the GPUs of the state file `state`, or this machine's if that is empty.  Raises ConfigError or
    DeviceError."""
    if state:
        if not Path(state).is_file():
            raise ConfigError(
                f"there is no emulated box {state}: make one with `{program()} mig emulate a100-40gb:2 --state {state}`"
            )
        devices.emulation("emulated").use_box(Path(state))
    session = Nvml()
    try:
        yield GpuBox(session, cache / "mig", emulated=bool(state))
    finally:
        session.close()
