"""The NVIDIA GPUs of this machine as devices: `nvidia`, or `nvidia:0,2` by their numbers."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from clover.config import WorkersConfig
from clover.devices import DeviceChoice
from clover.devices.cpu import CpuDevice
from clover.devices.driver import check_driver, torch_build
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml, NvmlError
from clover.devices.ownership import boot_of
from clover.errors import ConfigError, DeviceLost
from clover.interfaces import Device
from clover.settings.check import parse_cores

log = logging.getLogger("clover.devices")

_NUMBER = re.compile(r"[0-9]{1,4}")


def parse(text: str, rest: str | None) -> DeviceChoice:
    """Return which GPUs `text` asks for; ConfigError if it is malformed."""
    return DeviceChoice(kind="nvidia", indices=() if rest is None else _indices(text, rest))


def build(
    choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
) -> dict[str, Device]:
    """Return the GPUs chosen, by name; see `clover.devices.build`."""
    cores = CpuDevice(parse_cores(config.cores)).worker_cores
    if session is None and not choice.indices:
        _check_environment(os.environ.get("CUDA_VISIBLE_DEVICES"))
    opened = session or Nvml()
    try:
        check_driver(opened, torch_build())
        options = {"boot": boot_of(), "exclusive": exclusive, "cores": cores}
        return dict(open_gpus(opened, choice.indices, cache / "mig", **options))
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


def _indices(text: str, given: str) -> tuple[int, ...]:
    parts = [part.strip() for part in given.split(",")]
    if not all(map(_NUMBER.fullmatch, parts)):
        raise ConfigError(f"device {text!r} must read as nvidia, or as nvidia:0,2 with the numbers of GPUs")
    indices = tuple(int(part) for part in parts)
    if len(set(indices)) != len(indices):
        raise ConfigError(f"device {text!r} names a GPU twice")
    return tuple(sorted(indices))


def _check_environment(visible: str | None) -> None:
    """Raise ConfigError if the environment assigns GPUs by numbers that are not the driver's."""
    if visible is not None:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is set ({visible!r}) and device nvidia would use every GPU the driver sees: name "
            "those to use by their numbers in nvidia-smi, as nvidia:0,1, or unset the variable"
        )


def _present(session: Nvml, indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of the GPUs that are asked for."""
    count: int = session.call_sync("nvmlDeviceGetCount")
    if count == 0:
        raise ConfigError("the NVIDIA driver sees no GPU here: pass one in, or choose cpu or emulated:a100-40gb:1")
    missing = [index for index in indices if index >= count]
    if missing:
        raise ConfigError(f"there is no GPU {', '.join(map(str, missing))}: the driver sees 0 to {count - 1}")
    return indices or tuple(range(count))
