"""What befalls an emulated box: faults, lost boards, resets, compute modes, critical errors (Xid), monitors.

    python -m tests.support.disturb STATE NAME     a process of that name which holds the box's instances

`EmulatedMonitor` is a client that holds instances.  It holds a lock of the kernel on the box's state file, which ends
with its process, and a file that stands for the nodes under /dev/nvidia-caps.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
import sys
from pathlib import Path

from clover.emulation.emulated import ERRORS, GPUS_MAX, _act, _borrow_library, nodes_of
from clover.errors import DeviceError
from clover.types import Record

COMPUTE_MODES = {"default": 0, "prohibited": 2, "exclusive": 3}
"""Compute modes by name; "exclusive" is EXCLUSIVE_PROCESS."""

NO_INSTANCE = 0xFFFFFFFF
"""NVML's number of a GPU or compute instance if there is none."""

LOSSES = ("GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND", "UNKNOWN")
"""What a lost board may answer."""

_CANNOT_FAIL = {"nvmlErrorString", "clover_nvml_detach", "clover_nvml_use_memory", "clover_nvml_slice_energy"}
_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_MONITORS = 1 << 33  # the first of the bytes that monitors lock; csrc/nvml_emulator/attach.c


class Fault(Record, frozen=True, kw_only=True):
    """A fault of the box.

    Calls of `symbol` ("nvmlGpuInstanceDestroy", with or without the version at its end; a trailing "*" stands for any
    ending) on `gpu` (-1: any) are counted; from the `nth` on, `count` of them (0: all) fail with `error`, each with
    `probability`, for `seconds` from now (0: without end).  `delay_s` is slept first; with `error` "" the call is only
    slow.  `error` "STUCK" on nvmlDeviceGetPowerUsage or nvmlDeviceGetTotalEnergyConsumption freezes the reading from
    now on, whichever function it is read by; the other numbers but `seconds` mean nothing to it.
    """

    symbol: str
    gpu: int = -1
    error: str = ""
    nth: int = 1
    count: int = 1
    probability: float = 1.0
    seconds: float = 0.0
    delay_s: float = 0.0


def inject(path: Path, *faults: Fault) -> None:
    """Add faults to the box, for every process that uses it; DeviceError if one makes no sense."""
    for fault in faults:
        if fault.error not in ERRORS:
            raise DeviceError(f"a fault cannot answer {fault.error!r}; known: {', '.join(filter(None, ERRORS))}")
        if fault.nth < 1 or min(fault.count, fault.seconds, fault.delay_s) < 0 or not 0 <= fault.probability <= 1:
            raise DeviceError(f"a number of this fault is out of range: {fault}")
        with _borrow_library() as handle:
            known = fault.symbol.endswith("*") or any(
                hasattr(handle, fault.symbol + version) for version in ("", "V", "_v2", "_v3")
            )
        if not known or fault.symbol in _CANNOT_FAIL:
            raise DeviceError(f"the emulated NVML has no function {fault.symbol!r} that could fail")
        _act(
            path,
            f"inject into {fault.symbol} (gpu {fault.gpu})",
            "inject",
            fault.symbol.encode(),
            fault.gpu,
            ERRORS[fault.error],
            fault.nth,
            fault.count,
            fault.probability,
            round(fault.seconds * 1e9),
            round(fault.delay_s * 1e9),
        )


def clear_faults(path: Path) -> None:
    """End all faults of the box."""
    _act(path, "clear faults", "clear_faults")


def faults_fired(path: Path) -> int:
    """Return how often the faults in force have acted so far."""
    fired = ctypes.c_uint()
    _act(path, "read faults", "faults_fired", ctypes.byref(fired))
    return fired.value


def lose(path: Path, gpu: int, error: str = "GPU_IS_LOST") -> None:
    """Let a board fall off the bus: every call on it answers `error` (of `LOSSES`), and nothing draws power there."""
    if error not in LOSSES:
        raise DeviceError(f"a lost GPU cannot answer {error!r}; known: {', '.join(LOSSES)}")
    _act(path, f"lose gpu {gpu}", "set_lost", gpu, ERRORS[error])


def restore(path: Path, gpu: int) -> None:
    """Bring a lost board back, as after a reset: MIG mode kept, instances gone."""
    _act(path, f"restore gpu {gpu}", "set_lost", gpu, 0)


def reset(path: Path, gpu: int) -> None:
    """Reset a board: its pending MIG mode comes into force, instances go.  DeviceError (IN_USE) if processes use it."""
    _act(path, f"reset gpu {gpu}", "reset", gpu)


def reboot(path: Path) -> None:
    """Restart the machine: as a reset of every board, whoever uses it.  Processes that outlive this have lost their
    slices and draw no more."""
    _act(path, "reboot", "reboot")


def set_driver(path: Path, version: str, cuda: tuple[int, int]) -> None:
    """Set which driver the box has, and the CUDA version that it supports."""
    _act(path, f"set the driver {version}", "set_driver", version.encode(), cuda[0] * 1000 + cuda[1] * 10)


def advance(path: Path, seconds: float) -> None:
    """Move the clock of the box ahead: power drawn now counts for so much longer.  For tests that do not wait."""
    _act(path, "advance the clock", "advance", round(seconds * 1e9))


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
