"""The NVIDIA GPUs of this machine as devices.

    nvidia            every GPU; nvidia:0-3,6 for those with these numbers
    nvidia:mig        the same, but only with MIG mode on; also nvidia:mig:0,2
    mig:MIG-...,...   these MIG instances by their UUIDs (or what these begin with), as they are

A scheduler such as Slurm gives a job GPUs or MIG instances by CUDA_VISIBLE_DEVICES.  If the variable has their UUIDs
(or what these begin with), `nvidia` is exactly these.  If it has numbers of GPUs, `nvidia` is refused, because they are
not the driver's numbers.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from clover.config import WorkersConfig
from clover.devices import DeviceChoice, numbers
from clover.devices.cpu import CpuDevice
from clover.devices.driver import check_driver, torch_build
from clover.devices.fixed import NAMED, FixedGpu
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml, NvmlError
from clover.devices.ownership import boot_of
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.interfaces import Device
from clover.settings.check import parse_cores

log = logging.getLogger("clover.devices")

_NEED_MIG = "mig"
_MIG_UUID = re.compile(r"MIG-[A-Za-z0-9/-]+")
_GPU_UUID = re.compile(r"GPU-[A-Za-z0-9-]+")


def parse(text: str, rest: str | None) -> DeviceChoice:
    """Return which GPUs or instances `text` asks for; ConfigError if it is malformed."""
    if text.partition(":")[0] == _NEED_MIG:
        return DeviceChoice(kind="mig", uuids=_uuids(text, rest or ""))
    word, colon, numbers = (rest or "").partition(":")
    if word == _NEED_MIG:
        return DeviceChoice(kind="nvidia", need_mig=True, indices=_indices(text, numbers) if colon else ())
    return DeviceChoice(kind="nvidia", indices=() if rest is None else _indices(text, rest))


def build(
    choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
) -> dict[str, Device]:
    """Return the GPUs chosen, by name; see `clover.devices.build`."""
    cores = CpuDevice(parse_cores(config.cores)).worker_cores
    uuids = choice.uuids
    if session is None and not choice.indices and not uuids:
        uuids = _assigned(os.environ.get("CUDA_VISIBLE_DEVICES"))
    opened = session or Nvml()
    try:
        check_driver(opened, torch_build())
        options = {"boot": boot_of(), "exclusive": exclusive, "cores": cores}
        indices = choice.indices
        if all(map(_GPU_UUID.fullmatch, uuids)):
            indices, uuids = indices or _numbers(opened, uuids), ()
        if uuids:
            return _open_named(opened, uuids, cache / "mig", **options)
        devices = dict[str, Device](open_gpus(opened, indices, cache / "mig", **options))
        _check_modes(devices, need_mig=choice.need_mig)
        return devices
    except BaseException:
        if session is None:
            opened.close()
        raise


def open_gpus(session: Nvml, indices: tuple[int, ...], folder: Path, **options: Any) -> dict[str, MigDevice]:
    """Return the GPUs of these numbers, all if none is given, by name; `options` are those of `MigDevice.open`.

    GPUs that are lost are left out, unless they were named or none is left.
    """
    opened: dict[str, MigDevice] = {}
    lost: DeviceLost | None = None
    try:
        for index in _present(session, indices):
            try:
                device = MigDevice.open(session, index, folder, **options)
                opened[device.name] = device
            except DeviceLost as error:
                lost = DeviceLost(f"gpu{index}: {error}")
                if indices:
                    raise lost from error
                log.error("gpu%d is left out until the next start: %s", index, error)
            except NvmlError as error:
                raise NvmlError(f"gpu{index}: {error}", error.code) from error
        if lost is not None and not opened:
            raise lost
    except BaseException:
        for device in opened.values():
            device.close()
        raise
    return opened


def _open_named(session: Nvml, uuids: tuple[str, ...], folder: Path, **options: Any) -> dict[str, Device]:
    """Return the GPUs on which the instances named by `uuids` stand, with these instances alone.  Raises ConfigError if
    a name fits no instance, or several."""

    def find() -> dict[int, list[str]]:
        places: dict[int, list[str]] = {}
        for index in _every(session.library):
            gpu = FixedGpu(session.library, index, NAMED, uuids)
            places[index] = [found.uuid for found in gpu.walk()]
        return places

    found = session.call_sync(find)
    every = [uuid for there in found.values() for uuid in there]
    for given in uuids:
        _only(given, every, "MIG instance")
    gpus: dict[str, Device] = {}
    try:
        for index in [index for index, there in found.items() if there]:
            device = MigDevice.open(session, index, folder, named=uuids, **options)
            gpus[device.name] = device
    except BaseException:
        _close(gpus)
        raise
    return gpus


def _only(given: str, every: list[str], what: str) -> int:
    """Return which of `every` begins with `given`, by its place; ConfigError if that is not exactly one."""
    fits = [at for at, uuid in enumerate(every) if uuid.startswith(given)]
    if len(fits) == 1:
        return fits[0]
    why = f"fits {len(fits)} of them ({', '.join(every[at] for at in fits)})" if fits else "is none of them"
    raise ConfigError(f"{given} names one {what} of this machine, and {why}: see `nvidia-smi -L`")


def _numbers(session: Nvml, uuids: tuple[str, ...]) -> tuple[int, ...]:
    """Return the driver's numbers of the GPUs with these UUIDs, or UUIDs that begin so."""

    def find() -> list[str]:
        library, found = session.library, []
        for index in range(int(library.nvmlDeviceGetCount())):
            try:
                found.append(str(library.nvmlDeviceGetUUID(library.nvmlDeviceGetHandleByIndex(index))))
            except library.NVMLError:
                found.append("")  # it is lost, and if it was meant, none fits
        return found

    every = session.call_sync(find)
    return tuple(sorted({_only(given, every, "GPU") for given in uuids}))


def _every(library: Any) -> list[int]:
    """Return the numbers of the GPUs with MIG on; in the session's thread."""
    gpus = []
    for index in range(int(library.nvmlDeviceGetCount())):
        try:
            current, _ = library.nvmlDeviceGetMigMode(library.nvmlDeviceGetHandleByIndex(index))
        except library.NVMLError:
            continue  # without MIG, or lost: no instance that could be meant is on it
        if current:
            gpus.append(index)
    return gpus


def _check_modes(gpus: dict[str, Device], *, need_mig: bool) -> None:
    """Warn of GPUs that could be split and are not, or refuse them if MIG is needed: DeviceError, with all closed."""
    for device in gpus.values():
        if not isinstance(device, MigDevice) or device.mig:
            continue
        turn_on = f"nvidia-smi -i {device.name.removeprefix('gpu')} -mig 1 as root (an A100 or A30 then needs a reset)"
        if need_mig:
            _close(gpus)
            why = f"MIG mode is off; turn it on with {turn_on}" if device.can_mig else f"{device.product} has no MIG"
            raise DeviceError(f"{device.name}: {why}, or leave `mig` out of the device to serve on the whole GPU")
        if device.can_mig:
            log.warning(
                "%s: MIG mode is off, so it is served whole. If it was on before a reboot: from Hopper on the driver "
                "forgets it. To split it: %s; device nvidia:mig refuses to start without",
                device.name,
                turn_on,
            )


def _close(gpus: dict[str, Device]) -> None:
    for device in gpus.values():
        if isinstance(device, MigDevice):
            device.close()


def _indices(text: str, given: str) -> tuple[int, ...]:
    return numbers(text, given, "nvidia, or as nvidia:0-3,6")


def _uuids(text: str, given: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in given.split(","))
    if not all(map(_MIG_UUID.fullmatch, parts)):
        raise ConfigError(f"device {text!r} must read as mig:MIG-..., with UUIDs of MIG instances as in nvidia-smi -L")
    if len(set(parts)) != len(parts):
        raise ConfigError(f"device {text!r} names an instance twice")
    return parts


def _assigned(visible: str | None) -> tuple[str, ...]:
    """Return the UUIDs of MIG instances or of GPUs that the environment assigns, none if it says nothing; ConfigError
    if it assigns GPUs by numbers that are not the driver's."""
    parts = [part.strip() for part in (visible or "").split(",")]
    if visible is not None and any(all(map(uuid.fullmatch, parts)) for uuid in (_MIG_UUID, _GPU_UUID)):
        log.info("CUDA_VISIBLE_DEVICES assigns %s: only these are used", visible)
        return tuple(dict.fromkeys(parts))
    if visible is not None:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is set ({visible!r}) and device nvidia would use every GPU the driver sees: name "
            "those to use by their numbers in nvidia-smi, as nvidia:0,1, or unset the variable"
        )
    return ()


def _present(session: Nvml, indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of the GPUs that are asked for."""
    count: int = session.call_sync("nvmlDeviceGetCount")
    if count == 0:
        raise ConfigError("the NVIDIA driver sees no GPU here: pass one in, or choose cpu or emulated:a100-40gb:1")
    missing = [index for index in indices if index >= count]
    if missing:
        raise ConfigError(f"there is no GPU {', '.join(map(str, missing))}: the driver sees 0 to {count - 1}")
    return indices or tuple(range(count))
