"""Partitionable devices: which layouts exist, and instances made and removed.

`build` turns one word of configuration into devices:

    cpu                      the cores of this machine as core-sets
    nvidia, nvidia:0-3,6     the GPUs of this machine, split by MIG if that is on
    mig:MIG-...              MIG instances by their UUIDs, as they are
    emulated:a100-40gb:2     GPUs that are not there, behind the same driver calls

`DEVICES` maps the first part of the word to the module that knows the rest.  A new kind is a line there and a line in
`DEVICE_FORMS` of `clover/settings/check.py`.  Emulated GPUs are a wing, which an installation may lack.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from clover.config import WorkersConfig
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.errors import ConfigError
from clover.interfaces import Device
from clover.settings.check import device_forms
from clover.types import Record

DEVICES = {
    "cpu": "clover.devices.cpu",
    "nvidia": "clover.devices.nvidia",
    "mig": "clover.devices.nvidia",
    "emulated": "clover.emulation.boxes",
}
"""The module of each kind of device, which has what `DeviceKind` says; imported when it is asked for."""

EMULATED_STATE = "CLOVER_NVML_STATE"
"""The environment variable that names the state file of emulated GPUs to their NVML."""

_NUMBERS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


class DeviceChoice(Record, frozen=True, kw_only=True):
    """What `workers.device` asks for.  `indices` empty: every GPU.  `need_mig`: only with MIG mode on.  `uuids`: these
    MIG instances and no others.  `name` and `count` are those of emulated GPUs, of which the server has those of
    `indices`.  With a `pod`, it has that many instances of that profile on one of them, as a user without
    privileges."""

    kind: str
    indices: tuple[int, ...] = ()
    need_mig: bool = False
    uuids: tuple[str, ...] = ()
    name: str = ""
    count: int = 0
    pod: str = ""

    @property
    def box(self) -> str:
        """The name of a set of emulated GPUs: "a100-40gb-2", "pod-1g.10gb-1"."""
        if self.pod:
            return f"pod-{self.pod}-{self.count}"
        return f"{self.name}-{self.count}"


class DeviceKind(Protocol):
    """A module of `DEVICES`."""

    def parse(self, text: str, rest: str | None) -> DeviceChoice:
        """Return what `text` asks for, without looking at hardware; `rest` is what follows its first colon, None
        without one.  Raises ConfigError."""

    def build(
        self, choice: DeviceChoice, config: WorkersConfig, cache: Path, *, exclusive: bool, session: Nvml | None
    ) -> dict[str, Device]:
        """Return the devices chosen, by name; see `build`."""


def parse(text: str) -> DeviceChoice:
    """Return what `text` asks for, without looking at any hardware.  Raises ConfigError."""
    kind, colon, rest = text.strip().partition(":")
    if kind not in DEVICES:
        raise ConfigError(f"device {text!r} is no device: give {device_forms()}")
    return _module(kind).parse(text, rest if colon else None)


def build(
    config: WorkersConfig, cache: Path, *, exclusive: bool = True, session: Nvml | None = None
) -> dict[str, Device]:
    """Return the devices of `config`, by name.  GPUs share one NVML session, which `close` ends, even if it was given.
    If not `exclusive`, devices are only read: nothing is locked, and nothing can be changed.  Emulated GPUs keep their
    state in `cache`, so that their instances outlive the process, as real ones do.  Raises ConfigError if the setting
    is malformed or names what is not there, DeviceError if a device cannot be used."""
    choice = parse(config.device)
    return _module(choice.kind).build(choice, config, cache, exclusive=exclusive, session=session)


def close(devices: Mapping[str, Device]) -> None:
    """Release the devices of `build` for other processes; instances stay as they are."""
    gpus = [device for device in devices.values() if isinstance(device, MigDevice)]
    for device in gpus:
        device.close()
    for device in gpus:
        device.session.close()


def numbers(text: str, given: str, form: str) -> tuple[int, ...]:
    """Return the numbers of GPUs that `given` names, as 0-3,6, ascending; ConfigError, which says how `text` should
    read (`form`), if it names none or one twice."""
    indices: list[int] = []
    for part in given.split(","):
        match = _NUMBERS.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"device {text!r} must read as {form} with the numbers of GPUs")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"device {text!r}: {part.strip()} must read from the lower number to the higher")
        indices += range(first, last + 1)
    if len(set(indices)) != len(indices):
        raise ConfigError(f"device {text!r} names a GPU twice")
    return tuple(sorted(indices))


def box_path(choice: DeviceChoice, cache: Path) -> Path:
    """Return the state file of emulated GPUs."""
    return cache / "emulated" / f"{choice.box}.nvml"


def emulation(name: str) -> Any:
    """Return the module `name` of the wing that emulates GPUs; ConfigError where this installation is without it."""
    return _import(f"{DEVICES['emulated'].rpartition('.')[0]}.{name}")


def _module(kind: str) -> DeviceKind:
    return cast("DeviceKind", _import(DEVICES[kind]))


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"this installation is without {error.name}, which has emulated GPUs") from None
