"""CPU time of the server's whole process tree, and of the machine: what a CPU's energy is modelled from and split by.

The kernel keeps a clock of each process; reading one costs under a microsecond and no permission.  A process that has
ended and was waited for is in its parent's `cutime`, which counts in clock ticks (10 ms).  So the tree's CPU time is
the clocks of the living and the `cutime` of their dead children.  A control group's `cpu.stat` would say the same only
if nothing else were in the group, which a shell, a container with a sidecar or a systemd scope do not grant.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from clover.energy.host import host_use
from clover.types import CpuTimes

PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_CPU_CLOCK = 2  # CPUCLOCK_SCHED: the scheduler's count, in nanoseconds


class ProcessTree:
    """This process and all that descend from it, living or dead."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._pid = os.getpid()
        self._tree_ns = 0

    def read(self) -> CpuTimes:
        """Return the CPU times of now; that of the tree never falls."""
        server_ns = time.process_time_ns()
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        total_ns = server_ns + round((dead.ru_utime + dead.ru_stime) * 1e9)
        for pid in self._descendants():
            own_ns = process_ns(pid)
            fields = self._stat(pid)
            if fields:
                total_ns += own_ns if own_ns is not None else (int(fields[11]) + int(fields[12])) * _TICK_NS
                total_ns += (int(fields[13]) + int(fields[14])) * _TICK_NS
        # A child that ends between two of these reads is missed, or seen twice, for this once.
        self._tree_ns = max(self._tree_ns, total_ns)
        return CpuTimes(tree_ns=self._tree_ns, server_ns=server_ns, machine_ns=self._machine_ns())

    def _descendants(self) -> Iterable[int]:
        found = self._children(self._pid)
        for pid in found:
            found += self._children(pid)
        return found

    def _children(self, pid: int) -> list[int]:
        """Return the living children of all threads of `pid`; none if it has ended."""
        children: list[int] = []
        try:
            for thread in os.listdir(self._proc / str(pid) / "task"):
                children += map(int, (self._proc / str(pid) / "task" / thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended meanwhile
        return children

    def _stat(self, pid: int) -> list[str]:
        """Return the fields of `pid`'s stat file from the third (its state) on; none if it has ended."""
        try:
            # The second field is the command, which may hold spaces and brackets of its own.
            return (self._proc / str(pid) / "stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return []

    def _machine_ns(self) -> int:
        use = host_use(self._proc / "stat")
        return round(use.busy_s * 1e9) if use is not None else 0


def process_ns(pid: int) -> int | None:
    """Return the CPU nanoseconds that process `pid` has used; None if there is no such process."""
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPU_CLOCK)
    except OSError:
        return None
