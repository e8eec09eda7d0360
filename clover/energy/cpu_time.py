"""CPU time of the server's whole process tree, and of the machine: what a CPU's energy is modelled from and split by.

The kernel keeps a clock of each process; reading one costs under a microsecond and needs no permission.  If a process
has ended and was waited for, its time is in its parent's `cutime`, which counts in clock ticks (10 ms).  So the tree's
CPU time is the clocks of the living and the `cutime` of their dead children.  A control group's `cpu.stat` would say
the same only if nothing else were in the group, which a shell, a container with a sidecar or a systemd scope do not
guarantee.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from clover.control_time import CONTROL
from clover.energy.host import HostUse, host_use
from clover.process_clock import process_ns
from clover.types import CpuTimes

log = logging.getLogger("clover.energy")

PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ProcessTree:
    """This process and all its descendants, living or dead.  New processes are searched for every `walk_s` seconds of
    `monotonic`; what they used until then is counted then."""

    def __init__(
        self,
        proc: Path = PROC,
        *,
        walk_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
        control_ns: Callable[[], int] = lambda: CONTROL.used_ns,
    ) -> None:
        self._proc = str(proc)
        self._pid = os.getpid()
        self._walk_s = walk_s
        self._monotonic = monotonic
        self._control_ns = control_ns
        self._walked_s = -math.inf
        self._descendants: list[int] = []
        self._orphans: dict[int, int] = {}
        """CPU nanoseconds by pid of workers whose parent has ended: when they end, it is in the `cutime` of none."""
        self._lost_ns = 0
        self._tree_ns = 0
        self._listed = os.path.exists(f"{proc}/{self._pid}/task/{self._pid}/children")
        if not self._listed and os.path.exists(f"{proc}/{self._pid}"):
            log.info("this kernel does not list children (CONFIG_PROC_CHILDREN): all processes are searched")

    def read(self, workers: Iterable[int] = ()) -> CpuTimes:
        """Return the present CPU times; the tree's never falls.  `workers`: pids that are in the tree, whichever
        process their parent is now."""
        now_s = self._monotonic()
        if now_s >= self._walked_s + self._walk_s:
            self._walked_s, self._descendants = now_s, self._walk()
        server_ns = time.process_time_ns()
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        total_ns = server_ns + round((dead.ru_utime + dead.ru_stime) * 1e9)
        total_ns += sum(map(self._used, self._descendants))
        total_ns += self._used_beside({*workers} - {*self._descendants})
        # A child that ends between two of these reads is missed, or seen twice, for this once.
        self._tree_ns = max(self._tree_ns, total_ns)
        use = host_use(Path(self._proc) / "stat")
        machine_ns = round(use.busy_s * 1e9) if use is not None else 0
        control_ns = self._control_ns()
        return CpuTimes(tree_ns=self._tree_ns, server_ns=server_ns, control_ns=control_ns, machine_ns=machine_ns)

    def host_use(self) -> HostUse | None:
        """Return the CPU time of the whole host with that of this tree; None if the kernel does not show it."""
        use = host_use(Path(self._proc) / "stat")
        return None if use is None else use._replace(ours_s=self.read().tree_ns / 1e9)

    def _used(self, pid: int) -> int:
        """Return the nanoseconds that `pid` used, with its children that are dead; 0 if it has ended."""
        fields = self._fields(pid)
        if not fields:
            return 0
        own_ns = process_ns(pid)
        user, system, dead_user, dead_system = map(int, fields[11:15])
        if own_ns is None:
            own_ns = (user + system) * _TICK_NS
        return own_ns + (dead_user + dead_system) * _TICK_NS

    def _used_beside(self, pids: set[int]) -> int:
        """Return what workers used that are not among the known descendants: new ones, and orphans, including dead
        ones."""
        new_ns = 0
        for pid in pids | self._orphans.keys():
            fields = self._fields(pid)
            if fields and int(fields[1]) in {self._pid, *self._descendants}:
                new_ns += self._used(pid)
            elif fields:
                self._orphans[pid] = self._used(pid)
            else:
                self._lost_ns += self._orphans.pop(pid, 0)
        return new_ns + sum(self._orphans.values()) + self._lost_ns

    def _walk(self) -> list[int]:
        pids = self._children_of(self._pid)
        for pid in pids:
            pids += self._children_of(pid)
        return pids

    def _children_of(self, pid: int) -> list[int]:
        """Return the living children of `pid`."""
        if self._listed:
            fields = self._fields(pid)
            threads = [pid] if fields and fields[17] == b"1" else self._threads(pid)
            # The thread that forked a child is its parent there.
            return [int(child) for thread in threads for child in self._text(f"{pid}/task/{thread}/children").split()]
        try:
            every = [int(name) for name in os.listdir(self._proc) if name.isdecimal()]
        except OSError:
            return []
        return [other for other in every if (fields := self._fields(other)) and int(fields[1]) == pid]

    def _fields(self, pid: int) -> list[bytes]:
        """Return the fields of the stat file of `pid` from the third (its state) on; none if it has ended."""
        # The second field is the command, which may hold spaces and brackets of its own.
        return self._text(f"{pid}/stat").rpartition(b") ")[2].split()

    def _threads(self, pid: int) -> Iterable[int]:
        try:
            return map(int, os.listdir(f"{self._proc}/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return ()  # it ended meanwhile

    def _text(self, name: str) -> bytes:
        """Return what a file of /proc holds; nothing if what it is about has ended."""
        try:
            with open(f"{self._proc}/{name}", "rb", 0) as file:
                return file.read()
        except (FileNotFoundError, ProcessLookupError):
            return b""
