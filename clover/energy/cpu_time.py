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
        self._proc = str(proc)
        self._pid = os.getpid()
        self._tree_ns = 0

    def read(self) -> CpuTimes:
        """Return the CPU times of now; that of the tree never falls."""
        server_ns = time.process_time_ns()
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        total_ns = server_ns + round((dead.ru_utime + dead.ru_stime) * 1e9)
        pids = self._children(self._pid, self._threads(self._pid))
        for pid in pids:
            # The second field is the command, which may hold spaces and brackets of its own.
            fields = self._text(f"{pid}/stat").rpartition(b") ")[2].split()
            if not fields:
                continue  # it ended meanwhile
            own_ns = process_ns(pid)
            user, system, dead_user, dead_system = map(int, fields[11:15])
            total_ns += own_ns if own_ns is not None else (user + system) * _TICK_NS
            total_ns += (dead_user + dead_system) * _TICK_NS
            pids += self._children(pid, [pid] if fields[17] == b"1" else self._threads(pid))
        # A child that ends between two of these reads is missed, or seen twice, for this once.
        self._tree_ns = max(self._tree_ns, total_ns)
        use = host_use(Path(self._proc) / "stat")
        machine_ns = round(use.busy_s * 1e9) if use is not None else 0
        return CpuTimes(tree_ns=self._tree_ns, server_ns=server_ns, machine_ns=machine_ns)

    def _threads(self, pid: int) -> Iterable[int]:
        try:
            return map(int, os.listdir(f"{self._proc}/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return ()  # it ended meanwhile

    def _children(self, pid: int, threads: Iterable[int]) -> list[int]:
        """Return the living children of some threads of `pid`: the one that forked a child is its parent there."""
        return [int(child) for thread in threads for child in self._text(f"{pid}/task/{thread}/children").split()]

    def _text(self, name: str) -> bytes:
        """Return what a file of /proc holds; nothing if what it is about has ended."""
        try:
            with open(f"{self._proc}/{name}", "rb", 0) as file:
                return file.read()
        except (FileNotFoundError, ProcessLookupError):
            return b""


def process_ns(pid: int) -> int | None:
    """Return the CPU nanoseconds that process `pid` has used; None if there is no such process."""
    try:
        return time.clock_gettime_ns(~pid << 3 | _CPU_CLOCK)
    except OSError:
        return None
