"""CPU time of the whole host, every program included: what the counters of its energy are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clover.proc_stat import PROC_STAT, TICKS_PER_S, cpu_times


class HostUse(NamedTuple):
    """CPU seconds that the host used since it was started, how many CPUs it has, and the CPU seconds of the server's
    own processes (None: unknown)."""

    busy_s: float
    cpus: int
    ours_s: float | None = None


ReadHost = Callable[[], HostUse | None]


def host_use(path: Path = PROC_STAT) -> HostUse | None:
    """Return what the kernel counted so far; None if it cannot be read."""
    try:
        counted = cpu_times(path.read_text(encoding="ascii"))
        host = counted.pop("cpu")
    except (OSError, ValueError, KeyError):
        return None
    # What the hypervisor gave to others is not this machine's.
    return HostUse((host.total - host.idle - host.stolen) / TICKS_PER_S, max(len(counted), 1))
