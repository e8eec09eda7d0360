"""The kernel's clock of one process: the CPU time that it has used."""

from __future__ import annotations

import time

_CPU_CLOCK = 2  # CPUCLOCK_SCHED: the scheduler's count, in nanoseconds


def process_ns(pid: int) -> int | None:
    """Return the CPU nanoseconds that process `pid` has used; None if there is no such process."""
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPU_CLOCK)
    except OSError:
        return None
