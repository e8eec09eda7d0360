"""What an emulated box can be made to show beyond faults: compute modes, other drivers, critical errors (Xid).

Faults, lost boards and resets are `clover.devices.emulated`'s, clients that hold instances `clover.devices.clients`'.
"""

from __future__ import annotations

from pathlib import Path

from clover.devices.emulated import _act
from clover.errors import DeviceError

COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive": 3}
"""Compute modes by the names that commands have for them; "exclusive" is EXCLUSIVE_PROCESS."""

NO_INSTANCE = 0xFFFFFFFF
"""NVML's number of a GPU or compute instance if there is none."""


def set_compute_mode(path: Path, gpu: int, mode: str) -> None:
    """Set the compute mode of a board: "default", "prohibited" or "exclusive".  With MIG on it has no effect, as on
    real ones; a reboot resets it."""
    if mode not in COMPUTE_MODES:
        raise DeviceError(f"there is no compute mode {mode!r}; known: {', '.join(COMPUTE_MODES)}")
    _act(path, f"set the compute mode of gpu {gpu}", "set_compute_mode", gpu, COMPUTE_MODES[mode])


def set_driver(path: Path, version: str, cuda: tuple[int, int]) -> None:
    """Set which driver the box has, and the CUDA version that it supports."""
    _act(path, f"set the driver {version}", "set_driver", version.encode(), cuda[0] * 1000 + cuda[1] * 10)


def report_xid(path: Path, gpu: int, xid: int, *, gi: int = NO_INSTANCE, ci: int = NO_INSTANCE) -> None:
    """Report a critical error of a board, or of one of its instances, to whoever waits for NVML's events."""
    _act(path, f"report Xid {xid} of gpu {gpu}", "xid", gpu, xid, gi, ci)
