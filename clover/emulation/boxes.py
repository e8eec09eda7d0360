"""Emulated GPUs as devices, a box of them whose state is a file in the cache.

    emulated:NAME[:COUNT]          so many GPUs (1), for a user who may change their instances
    emulated:NAME:COUNT:NUMBERS    of a box of so many GPUs those with these numbers, as 0-3: servers share the box
    emulated:pod-PROFILE[:COUNT]   so many instances (1) of a profile, for a user who may not: as in a Kubernetes pod

Once opened they are GPUs like any other, behind Clover's own NVML library (`clover.emulation.emulated`).  A pod's
instances are made with an administrator's privileges, which the box then takes away.  The GPU is the first one in the
tables that has the profile as a plain one: an A100 with 80 GB for 1g.10gb.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from clover.config import WorkersConfig
from clover.devices import DeviceChoice, box_path, numbers, tables
from clover.devices.cpu import CpuDevice
from clover.devices.fixed import NOT_PERMITTED, FixedGpu
from clover.devices.gpu import MigGpu
from clover.devices.nvidia import open_gpus
from clover.devices.nvml import Nvml
from clover.emulation import emulated
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.interfaces import Device
from clover.settings.check import parse_cores
from clover.types import Placement
from clover.worker.frames import EmulatedSlice, Resident

_NUMBER = re.compile(r"[0-9]{1,4}")
_POD = "pod-"


def parse(text: str, rest: str | None) -> DeviceChoice:
    """Return which box `text` asks for; ConfigError if it is malformed or there is no table of that GPU."""
    name, colon, count = (rest or "").partition(":")
    if name.startswith(_POD):
        return _pod(text, name.removeprefix(_POD), count)
    count, of, chosen = (count if colon else "1").partition(":")
    if not name or not _NUMBER.fullmatch(count):
        raise ConfigError(
            f"device {text!r} must read as emulated:NAME:COUNT, as in emulated:a100-40gb:2 (without COUNT it is one), "
            "or as emulated:pod-PROFILE, as in emulated:pod-1g.10gb"
        )
    names = (*tables.names(), *tables.plain_names())
    if name not in names:
        raise ConfigError(f"there is no table of a GPU {name!r}; known: {', '.join(names)}")
    if not 1 <= int(count) <= emulated.GPUS_MAX:
        raise ConfigError(f"an emulated box has 1 to {emulated.GPUS_MAX} GPUs, not {int(count)}")
    indices = numbers(text, chosen, f"emulated:{name}:{count}:0-3") if of else ()
    if indices and indices[-1] >= int(count):
        raise ConfigError(f"device {text!r}: there is no GPU {indices[-1]}: the box has 0 to {int(count) - 1}")
    return DeviceChoice(kind="emulated", name=name, count=int(count), indices=indices)


def _pod(text: str, profile: str, count: str) -> DeviceChoice:
    """Return the box of a pod with `count` instances of `profile`; ConfigError if no GPU has so many."""
    matches = [(gpu, row) for gpu in map(tables.table, tables.names()) for row in gpu.profiles if row.name == profile]
    if not matches:
        profiles = sorted({row.name for gpu in map(tables.table, tables.names()) for row in gpu.profiles if row.base})
        raise ConfigError(f"device {text!r}: no GPU has a profile {profile!r}; known: {', '.join(profiles)}")
    gpu, row = next(((gpu, row) for gpu, row in matches if row.base), matches[0])
    if not _NUMBER.fullmatch(count or "1") or not 1 <= int(count or "1") <= row.most:
        raise ConfigError(f"device {text!r}: a pod has 1 to {row.most} instances of {profile} of {gpu.name}")
    return DeviceChoice(kind="emulated", name=gpu.name, count=int(count or "1"), pod=profile)


def build(
    choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
) -> dict[str, Device]:
    """Return the GPUs of the box, which is made if it is missing, by name; see `clover.devices.build`."""
    cores = CpuDevice(parse_cores(config.cores)).worker_cores
    _enter(choice, cache)
    opened = session or Nvml()
    try:
        path = box_path(choice, cache)
        check(opened, choice, path)
        if choice.pod:
            _hand_over(opened, choice, path)
        opened_gpus = open_gpus(opened, choice.indices, cache / "mig", exclusive=exclusive, cores=cores, emulated=True)
        for gpu in opened_gpus.values():
            gpu.nodes = (emulated.nodes_of(path),)
        return dict(opened_gpus)
    except BaseException:
        if session is None:
            opened.close()
        raise


def slice_of(first: Resident, device: Device, placement: Placement) -> EmulatedSlice:
    """Return the emulated slice at `placement` for a worker whose first variant is `first`."""
    return EmulatedSlice(
        library=str(emulated.library()),
        state=os.environ[emulated.STATE],
        uuid=device.visible(placement),
        pace_ms=first.pace_ms,
        watts=first.watts,
        memory_bytes=device.memory_bytes(placement),
    )


def is_pod(name: str) -> bool:
    """Return whether `name`, as it stands behind "emulated:", is that of a pod."""
    return name.startswith(_POD)


def make_pod(choice: DeviceChoice, path: Path, *, seed: int) -> None:
    """Make the state file of a pod's instances at `path`, or check the one that exists.  Raises DeviceError."""
    if not path.exists():
        emulated.create_box(path, choice.name, _gpus(choice), seed=seed)
    emulated.use_box(path)
    session = Nvml()
    try:
        check(session, choice, path)
        _hand_over(session, choice, path)
    finally:
        session.close()


def check(session: Nvml, choice: DeviceChoice, path: Path) -> None:
    """Raise DeviceError if an existing state file does not hold the GPUs that its name says."""

    def products() -> list[str]:
        nvml = session.library
        return [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]

    try:
        names = session.call_sync(products)
    except DeviceLost:
        return  # opening it reports which one is lost
    except DeviceError as error:
        raise DeviceError(f"{path} cannot be used as an emulated box; remove it: {error}") from error
    if names != [tables.board(choice.name).product] * _gpus(choice):
        raise DeviceError(f"{path} holds another emulated box than {_gpus(choice)} x {choice.name}: remove it")


def _enter(choice: DeviceChoice, cache: Path) -> None:
    """Let this process's driver calls reach the emulated GPUs, which are made if they are missing."""
    path = box_path(choice, cache)
    if not path.exists():
        # The records of all boxes lie in one folder, by UUID: GPUs of different boxes must not share one.
        seed = zlib.crc32(choice.box.encode())
        emulated.create_box(path, choice.name, _gpus(choice), seed=seed)
    emulated.use_box(path)


def _gpus(choice: DeviceChoice) -> int:
    """Return how many GPUs the box has."""
    return 1 if choice.pod else choice.count


def _hand_over(session: Nvml, choice: DeviceChoice, path: Path) -> None:
    """Make a pod's missing instances with an administrator's privileges, which are taken away then.  A reboot removes
    instances."""

    def make() -> None:
        gpu = MigGpu(session.library, 0)
        standing = {placed.start for placed in gpu.walk() if placed.profile == choice.pod}
        free = [start for start in gpu.profiles[choice.pod].starts if start not in standing]
        for start in free[: choice.count - len(standing)]:
            gpu.complete(gpu.make(choice.pod, start))

    if session.call_sync(lambda: len(FixedGpu(session.library, 0, NOT_PERMITTED).walk())) < choice.count:
        emulated.set_privileged(path, True)
        session.call_sync(make)
    emulated.set_privileged(path, False)
