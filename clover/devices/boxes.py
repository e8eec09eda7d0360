"""Emulated GPUs as devices: `emulated:NAME:COUNT`, a box of them whose state is a file in the cache.

From opening on they are GPUs like any other, behind an NVML library of our own (`clover.devices.emulated`).
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from clover.config import WorkersConfig
from clover.devices import DeviceChoice, box_path, emulated, tables
from clover.devices.clients import nodes_of
from clover.devices.cpu import CpuDevice
from clover.devices.nvidia import open_gpus
from clover.devices.nvml import Nvml
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.interfaces import Device
from clover.settings.check import parse_cores

_NUMBER = re.compile(r"[0-9]{1,4}")


def parse(text: str, rest: str | None) -> DeviceChoice:
    """Return which box `text` asks for; ConfigError if it is malformed or there is no table of that GPU."""
    name, _, count = (rest or "").partition(":")
    if not name or not _NUMBER.fullmatch(count):
        raise ConfigError(f"device {text!r} must read as emulated:NAME:COUNT, as in emulated:a100-40gb:2")
    known = (*tables.names(), *tables.plain_names())
    if name not in known:
        raise ConfigError(f"there is no table of a GPU {name!r}; known: {', '.join(known)}")
    if not 1 <= int(count) <= emulated.GPUS_MAX:
        raise ConfigError(f"an emulated box has 1 to {emulated.GPUS_MAX} GPUs, not {int(count)}")
    return DeviceChoice(kind="emulated", name=name, count=int(count))


def build(
    choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
) -> dict[str, Device]:
    """Return the GPUs of the box, which is made if it is missing, by name; see `clover.devices.build`."""
    cores = CpuDevice(parse_cores(config.cores)).worker_cores
    _enter(choice, cache)
    opened = session or Nvml()
    try:
        _is_box(opened, choice, box_path(choice, cache))
        opened_gpus = open_gpus(opened, (), cache / "mig", exclusive=exclusive, cores=cores, emulated=True)
        for gpu in opened_gpus.values():
            gpu.nodes = (nodes_of(box_path(choice, cache)),)
        return dict(opened_gpus)
    except BaseException:
        if session is None:
            opened.close()
        raise


def _enter(choice: DeviceChoice, cache: Path) -> None:
    """Let this process's driver calls reach the emulated GPUs, which are made if they are missing."""
    path = box_path(choice, cache)
    if not path.exists():
        # The records of all boxes lie in one folder, by UUID: GPUs of different boxes must not share one.
        emulated.create_box(path, choice.name, choice.count, seed=zlib.crc32(choice.box.encode()))
    emulated.use_box(path)


def _is_box(session: Nvml, choice: DeviceChoice, path: Path) -> None:
    """Raise DeviceError if an existing state file does not hold the GPUs that its name says."""

    def products() -> list[str]:
        nvml = session.library
        return [nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]

    try:
        found = session.call_sync(products)
    except DeviceLost:
        return  # opening it reports which one is lost
    except DeviceError as error:
        raise DeviceError(f"{path} cannot be used as an emulated box; remove it: {error}") from error
    if found != [tables.board(choice.name).product] * choice.count:
        raise DeviceError(f"{path} holds another emulated box than {choice.count} x {choice.name}: remove it")
