"""What tests make an emulated box show beyond faults: compute modes, critical errors (Xid), monitors.

    python -m tests.support.disturb STATE NAME     a process of that name which holds the box's instances

`EmulatedMonitor` is a client that holds instances.  It holds a lock of the kernel on the box's state file, which ends
with its process, and a file that stands for the nodes under /dev/nvidia-caps.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
from pathlib import Path

from clover.emulation.emulated import GPUS_MAX, _act, nodes_of
from clover.errors import DeviceError

COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive": 3}
"""Compute modes by name; "exclusive" is EXCLUSIVE_PROCESS."""

NO_INSTANCE = 0xFFFFFFFF
"""NVML's number of a GPU or compute instance if there is none."""

_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_MONITORS = 1 << 33  # the first of the bytes that monitors lock; csrc/nvml_emulator/attach.c


def set_compute_mode(path: Path, gpu: int, mode: str) -> None:
    """Set the compute mode of a board: "default", "prohibited" or "exclusive".  With MIG on it has no effect, as on
    real ones; a reboot resets it."""
    if mode not in COMPUTE_MODES:
        raise DeviceError(f"there is no compute mode {mode!r}; known: {', '.join(COMPUTE_MODES)}")
    _act(path, f"set the compute mode of gpu {gpu}", "set_compute_mode", gpu, COMPUTE_MODES[mode])


def report_xid(path: Path, gpu: int, xid: int, *, gi: int = NO_INSTANCE, ci: int = NO_INSTANCE) -> None:
    """Report a critical error of a board, or of one of its instances, to whoever waits for NVML's events."""
    _act(path, f"report Xid {xid} of gpu {gpu}", "xid", gpu, xid, gi, ci)


class EmulatedMonitor:
    """A client that holds the instances of an emulated box, until `close` or the end of its process: meanwhile removing
    one, and turning MIG off, is refused as in use.

    `gpu` None holds those of every board.  DeviceError if `state` cannot be opened.
    """

    def __init__(self, state: Path, gpu: int | None = None) -> None:
        first, count = (0, GPUS_MAX) if gpu is None else (gpu, 1)
        self._files: list[int] = []
        try:
            os.makedirs(nodes_of(state), exist_ok=True)
            self._files.append(os.open(state, os.O_RDWR | os.O_CLOEXEC))
            self._files.append(os.open(f"{nodes_of(state)}nvidia-cap1", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _MONITORS + first, count, 0)
            fcntl.fcntl(self._files[0], _OFD_SETLK, lock)
        except OSError as error:
            self.close()
            raise DeviceError(f"{state} cannot be held: {error.strerror}") from error

    def __enter__(self) -> EmulatedMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the instances go."""
        while self._files:
            os.close(self._files.pop())


def call_this_process(name: str) -> None:
    """Give this process the name by which others see it."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as comm:
        comm.write(name[:15])


def main(state: str, name: str) -> None:
    """Hold the instances of the GPUs of `state` as the monitor `name` would, until this process is stopped."""
    call_this_process(name)
    with EmulatedMonitor(Path(state)):
        print(f"{name} (process {os.getpid()}) holds the instances of {state} until it is stopped", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
