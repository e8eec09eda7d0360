"""Emulated GPUs for any program: the NVML that it loads answers from a state file instead of a driver.

A program finds NVML by asking the loader for `libnvidia-ml.so.1`.  A folder in which that name leads to Clover's
emulated library, put in front of LD_LIBRARY_PATH, is therefore all it takes; CLOVER_NVML_STATE names the state file to
the library.  Nothing of the program changes, and nothing outside it: another terminal sees other GPUs, or none.

The program runs under a small process of its own (`supervise`), which passes signals on and cleans up.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from clover.devices import clients, emulated
from clover.errors import ConfigError
from clover.hints import did_you_mean

_SUPERVISE = Path(__file__).with_name("supervise.py")

_BOX = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?::(?P<count>\d{1,2}))?")
_FAULT_FIELDS: dict[str, tuple[str, type]] = {
    "gpu": ("gpu", int),
    "nth": ("nth", int),
    "count": ("count", int),
    "probability": ("probability", float),
    "seconds": ("seconds", float),
    "delay": ("delay_s", float),
}


def parse_box(text: str) -> tuple[str, int]:
    """Return table and number of GPUs of NAME[:COUNT]; ConfigError if `text` is not of this form."""
    found = _BOX.fullmatch(text.lower())
    if found is None or (found["count"] and int(found["count"]) < 1):
        raise ConfigError(f"{text!r} must read NAME:COUNT, as a100-40gb:2")
    return found["name"], int(found["count"] or 1)


def parse_fault(text: str) -> emulated.Fault:
    """Return the fault of SYMBOL=ERROR[:KEY=VALUE]...; ConfigError if `text` is not of this form."""
    head, *rest = text.split(":")
    symbol, equals, error = head.partition("=")
    form = "must read SYMBOL=ERROR[:KEY=VALUE]..., as nvmlDeviceCreateGpuInstanceWithPlacement=IN_USE:gpu=0:count=3"
    if not equals or not symbol:
        raise ConfigError(f"{text!r} {form}")
    values: dict[str, int | float] = {}
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals or key not in _FAULT_FIELDS:
            known = ", ".join(_FAULT_FIELDS)
            raise ConfigError(f"{text!r} {form}; KEY is one of {known}{did_you_mean(key, _FAULT_FIELDS)}")
        name, kind = _FAULT_FIELDS[key]
        try:
            values[name] = kind(value)
        except ValueError:
            raise ConfigError(f"{text!r}: {key} takes a number, not {value!r}") from None
    return emulated.Fault(symbol=symbol, error=error, **values)  # type: ignore[arg-type]


def parse_loss(text: str) -> tuple[int, str]:
    """Return number and answer of a lost GPU of GPU[:ERROR]; ConfigError if `text` is not of this form."""
    gpu, _, error = text.partition(":")
    if not gpu.isdecimal() or (error or emulated.LOSSES[0]) not in emulated.LOSSES:
        raise ConfigError(f"{text!r} must read GPU[:ERROR], ERROR one of {', '.join(emulated.LOSSES)}, as 1:UNKNOWN")
    return int(gpu), error or emulated.LOSSES[0]


def parse_mode(text: str) -> tuple[int, str]:
    """Return GPU and compute mode of GPU:MODE; ConfigError if `text` is not of this form."""
    gpu, _, mode = text.partition(":")
    if not gpu.isdecimal() or mode not in emulated.COMPUTE_MODES:
        raise ConfigError(
            f"{text!r} must read GPU:MODE, MODE one of {', '.join(emulated.COMPUTE_MODES)}, as 0:exclusive"
        )
    return int(gpu), mode


def parse_xid(text: str) -> tuple[int, int, int]:
    """Return GPU, error and GPU instance of GPU:XID[:INSTANCE]; ConfigError if `text` is not of this form."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{text!r} must read GPU:XID[:INSTANCE], as 0:79, or 0:94:2 for the GPU instance of id 2")
    gpu, xid, gi = map(int, [*parts, str(emulated.NO_INSTANCE)][:3])
    return gpu, xid, gi


def parse_cuda(text: str) -> tuple[int, int]:
    """Return major and minor version of CUDA; ConfigError if `text` is no version."""
    major, _, minor = text.partition(".")
    if not major.isdecimal() or not (minor or "0").isdecimal():
        raise ConfigError(f"{text!r} is no version of CUDA, as 12.4")
    return int(major), int(minor or 0)


def hold(state: Path, name: str) -> None:
    """Hold the instances of the GPUs of `state` as the monitor `name` would, until this process is stopped."""
    clients.call_this_process(name)
    with clients.EmulatedMonitor(state):
        print(f"{name} (process {os.getpid()}) holds the instances of {state} until it is stopped", flush=True)
        signal.pause()


def run(command: Sequence[str], state: Path, environ: Mapping[str, str], *, remove: Sequence[Path] = ()) -> NoReturn:
    """Become `command` on the GPUs of `state`, and `remove` folders when it has ended.  Raises DeviceError."""
    library = emulated.library()
    folder = tempfile.mkdtemp(prefix="clover-nvml-")
    os.symlink(library, Path(folder, emulated.SONAME))
    paths = [folder, *filter(None, [environ.get("LD_LIBRARY_PATH", "")])]
    box = {emulated.STATE: str(state.resolve()), "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    python = [sys.executable, "-I", "-S", str(_SUPERVISE), folder, *map(str, remove), "--"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python[0], [*python, *command], {**environ, **box})
