"""CPU time of the whole host, every program included: what the counters of its energy are compared with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROC_STAT = Path("/proc/stat")

_BUSY_FIELDS = (0, 1, 2, 5, 6)
"""Of the line "cpu" of /proc/stat: user, nice, system, irq, softirq.  Guests are counted in user, stolen time is not
this machine's."""


class HostUse(NamedTuple):
    """CPU seconds that the host used since it was started, and how many CPUs it has."""

    busy_s: float
    cpus: int


ReadHost = Callable[[], HostUse | None]


def host_use(path: Path = PROC_STAT) -> HostUse | None:
    """Return what the kernel counted so far; None if it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        fields = [int(field) for field in lines[0].split()[1:]]
        busy = sum(fields[index] for index in _BUSY_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    cpus = sum(line.startswith("cpu") for line in lines) - 1
    return HostUse(busy / os.sysconf("SC_CLK_TCK"), max(cpus, 1))
