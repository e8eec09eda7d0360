"""The kernel's counters of CPU time in `/proc/stat`: of all CPUs and of each, in ticks of 10 ms since the start.

counted = cpu_times(PROC_STAT.read_text(encoding="ascii"))
counted["cpu"].idle, counted["cpu0"].total
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PROC_STAT = Path("/proc/stat")
TICKS_PER_S = 100.0
"""USER_HZ, in which the kernel counts on every Linux."""


class CpuTicks(NamedTuple):
    """Ticks of one CPU, or of all, by what they went to.  Time of guests is counted in `user` and `nice` already."""

    user: int
    nice: int
    system: int
    waiting: int
    waiting_io: int
    irq: int
    softirq: int
    stolen: int

    @property
    def idle(self) -> int:
        """Ticks without work, those of waiting for I/O included."""
        return self.waiting + self.waiting_io

    @property
    def total(self) -> int:
        """All ticks, those that the hypervisor gave to others included."""
        return sum(self)


def cpu_times(text: str) -> dict[str, CpuTicks]:
    """Return what `/proc/stat` has of `cpu` (all of them) and of `cpu0`, `cpu1` and so on; raises ValueError."""
    found, fields = {}, len(CpuTicks._fields)
    for line in text.splitlines():
        if line.startswith("cpu"):
            name, *values = line.split()
            if len(values) < fields:
                raise ValueError(f"{line!r} has less than {fields} counters")
            found[name] = CpuTicks(*map(int, values[:fields]))
    return found
