"""Partitionable devices: which layouts exist, and instances made and unmade.

`build` turns one word of configuration into devices: `cpu` (core-sets), `nvidia` or `nvidia:0,2` (the GPUs of this
machine, split by MIG if that is on), `emulated:a100-40gb:2` (GPUs that are not there, behind the same driver calls).
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from clover.config import WorkersConfig
from clover.devices import emulated, tables
from clover.devices.cpu import CpuDevice
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml, NvmlError
from clover.devices.ownership import boot_of
from clover.errors import ConfigError, DeviceError, DeviceLost
from clover.interfaces import Device
from clover.settings.check import parse_cores
from clover.types import Record

log = logging.getLogger("clover.devices")

_FORMS = "cpu, nvidia, nvidia:0,2 or emulated:a100-40gb:2"
_NUMBER = re.compile(r"[0-9]{1,4}")


class DeviceChoice(Record, frozen=True, kw_only=True):
    """What `workers.device` asks for.  `indices` empty: every GPU.  `name` and `count` are those of emulated GPUs."""

    kind: Literal["cpu", "nvidia", "emulated"]
    indices: tuple[int, ...] = ()
    name: str = ""
    count: int = 0

    @property
    def box(self) -> str:
        """The name of a set of emulated GPUs: "a100-40gb-2"."""
        return f"{self.name}-{self.count}"


def parse(text: str) -> DeviceChoice:
    """Return what `text` asks for, without looking at any hardware.  Raises ConfigError."""
    kind, given, rest = text.strip().partition(":")
    if kind == "cpu" and not given:
        return DeviceChoice(kind="cpu")
    if kind == "nvidia":
        return DeviceChoice(kind="nvidia", indices=_indices(text, rest) if given else ())
    if kind == "emulated":
        name, _, count = rest.partition(":")
        if not name or not _NUMBER.fullmatch(count):
            raise ConfigError(f"device {text!r} must read as emulated:NAME:COUNT, as in emulated:a100-40gb:2")
        return _emulated(name, int(count))
    raise ConfigError(f"device {text!r} is no device: give {_FORMS}")


def _indices(text: str, given: str) -> tuple[int, ...]:
    parts = [part.strip() for part in given.split(",")]
    if not all(map(_NUMBER.fullmatch, parts)):
        raise ConfigError(f"device {text!r} must read as nvidia, or as nvidia:0,2 with the numbers of GPUs")
    indices = tuple(int(part) for part in parts)
    if len(set(indices)) != len(indices):
        raise ConfigError(f"device {text!r} names a GPU twice")
    return tuple(sorted(indices))


def _emulated(name: str, count: int) -> DeviceChoice:
    if name not in tables.names():
        raise ConfigError(f"there is no table of a GPU {name!r}; known: {', '.join(tables.names())}")
    if not 1 <= count <= emulated.GPUS_MAX:
        raise ConfigError(f"an emulated box has 1 to {emulated.GPUS_MAX} GPUs, not {count}")
    return DeviceChoice(kind="emulated", name=name, count=count)


def build(
    config: WorkersConfig, cache: Path, *, exclusive: bool = True, session: Nvml | None = None
) -> dict[str, Device]:
    """Return the devices of `config`, by name.  GPUs share one NVML session, which `close` ends, also if it was given.

    `exclusive` false only looks: nothing is locked, and nothing can be changed.  Emulated GPUs keep their state in
    `cache`, so that their instances outlive the process, as real ones do.  Raises ConfigError if the setting is
    malformed or names what is not there, DeviceError if a device cannot be used.
    """
    choice = parse(config.device)
    cpu = CpuDevice(parse_cores(config.cores))
    if choice.kind == "cpu":
        return {cpu.name: cpu}
    is_emulated = choice.kind == "emulated"
    if is_emulated:
        _enter(choice, cache)
    elif session is None and not choice.indices:
        _check_environment(os.environ.get("CUDA_VISIBLE_DEVICES"))
    given, session = session, session or Nvml()
    try:
        if is_emulated:
            _is_box(session, choice, box_path(choice, cache))
        found: dict[str, Device] = {
            device.name: device
            for device in _open(
                session,
                _present(session, choice),
                cache / "mig",
                named=bool(choice.indices),
                boot="" if is_emulated else boot_of(),
                exclusive=exclusive,
                cores=cpu.worker_cores,
                emulated=is_emulated,
            )
        }
    except BaseException:
        if given is None:
            session.close()
        raise
    return found


def close(devices: Mapping[str, Device]) -> None:
    """Release the devices of `build` for other processes; instances stay as they are."""
    gpus = [device for device in devices.values() if isinstance(device, MigDevice)]
    for device in gpus:
        device.close()
    for session in {id(device.session): device.session for device in gpus}.values():
        session.close()


def box_path(choice: DeviceChoice, cache: Path) -> Path:
    """Return the state file of emulated GPUs."""
    return cache / "emulated" / f"{choice.box}.nvml"


def _check_environment(visible: str | None) -> None:
    """Raise ConfigError if the environment assigns GPUs by numbers that are not the driver's."""
    if visible is not None:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is set ({visible!r}) and device nvidia would use every GPU the driver sees: name "
            "those to use by their numbers in nvidia-smi, as nvidia:0,1, or unset the variable"
        )


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
    if found != [tables.table(choice.name).product] * choice.count:
        raise DeviceError(f"{path} holds another emulated box than {choice.count} x {choice.name}: remove it")


def _present(session: Nvml, choice: DeviceChoice) -> tuple[int, ...]:
    """Return the numbers of the GPUs that are asked for."""
    count: int = session.call_sync("nvmlDeviceGetCount")
    if count == 0:
        raise ConfigError("the NVIDIA driver sees no GPU here: pass one in, or choose cpu or emulated:a100-40gb:1")
    missing = [index for index in choice.indices if index >= count]
    if missing:
        raise ConfigError(f"there is no GPU {', '.join(map(str, missing))}: the driver sees 0 to {count - 1}")
    return choice.indices or tuple(range(count))


def _open(session: Nvml, indices: Iterable[int], folder: Path, *, named: bool, **options: Any) -> list[MigDevice]:
    """Return the GPUs, without those that are lost unless they were `named` or none is left."""
    opened: list[MigDevice] = []
    lost: DeviceLost | None = None
    try:
        for index in indices:
            try:
                opened.append(MigDevice.open(session, index, folder, **options))
            except DeviceLost as error:
                lost = DeviceLost(f"gpu{index}: {error}")
                if named:
                    raise lost from error
                log.error("gpu%d is left out until the next start: %s", index, error)
            except NvmlError as error:
                raise NvmlError(f"gpu{index}: {error}", error.code) from error
        if lost is not None and not opened:
            raise lost
    except BaseException:
        for device in opened:
            device.close()
        raise
    return opened
