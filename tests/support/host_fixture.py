"""A machine whose CPU clocks the test moves."""

from __future__ import annotations

from collections.abc import Iterable

from clover.accounting import Account, HostCpu
from clover.types import CpuTimes


class FakeClocks:
    """CPU nanoseconds by pid, of the server itself (of which `looking_ns` its controller), of all else that it started,
    and of other programs."""

    def __init__(self) -> None:
        self.processes: dict[int, int] = {}
        self.server_ns = 0
        self.looking_ns = 0
        self.control_ns = 0
        self.dead_ns = 0
        self.others_ns = 0

    def spawn(self, start_ns: int = 0) -> int:
        """Return the pid of a process that has used `start_ns`."""
        pid = 100 + len(self.processes)
        self.processes[pid] = start_ns
        return pid

    def end(self, pid: int) -> None:
        """End a process; its pid is not used again."""
        self.dead_ns += self.processes[pid]
        self.processes[pid] = -1

    def of(self, pid: int) -> int | None:
        """Return what `clover.process_clock.process_ns` would."""
        used_ns = self.processes.get(pid, -1)
        return used_ns if used_ns >= 0 else None

    def read(self, workers: Iterable[int] = ()) -> CpuTimes:
        """Return what `clover.energy.cpu_time.ProcessTree.read` would."""
        living_ns = sum(max(used_ns, 0) for used_ns in self.processes.values())
        tree_ns = self.server_ns + self.control_ns + self.dead_ns + living_ns
        machine_ns = tree_ns + self.others_ns
        return CpuTimes(tree_ns=tree_ns, server_ns=self.server_ns, control_ns=self.looking_ns, machine_ns=machine_ns)


def hosted(
    clocks: FakeClocks,
    *,
    slices: int = 2,
    foreign: int = 0,
    emulated: frozenset[str] = frozenset(),
) -> Account:
    """Return an account of the machine "cpu0" (its cores, and those of others), with those clocks."""
    account = Account(pue=1.5)
    account.add_device("cpu0", slices, foreign)
    account.add_host("cpu0", HostCpu(clocks.read, clocks.of, emulated.__contains__))
    return account
