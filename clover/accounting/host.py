"""The CPU time of the machine, split by what it was spent on: each worker, the front end, control, other programs.

Each worker's clock is read from the kernel, once a window, together with those of the process tree.  So what a worker
uses between batches is its variant's too, and no worker can say that it used less.  What the tree used beyond the
workers that serve and the server's own process is `control`: the planner, profiling, starts, loading and warming up,
standby workers, the zygote.

Workers on emulated GPUs compute what a GPU would have computed: their CPU time is counted apart (`emulator`), since the
emulated GPU is billed for that work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from clover.accounting.meters import WorkerMeter
from clover.types import CpuTimes


class HostParts(NamedTuple):
    """CPU nanoseconds of a window."""

    workers: list[tuple[WorkerMeter, int]]
    front_end_ns: int
    control_ns: int
    emulator_ns: int
    others_ns: int
    """Of other programs on the machine; 0 if that is not known."""

    @property
    def own_ns(self) -> int:
        """What a model of the server's energy integrates."""
        return self.front_end_ns + self.control_ns + sum(ns for _, ns in self.workers)


@dataclass
class _Watched:
    """A worker: where its clock stood when the last window was closed, and when it was last read."""

    meter: WorkerMeter
    closed_ns: int
    level_ns: int
    batches_ns: int
    """CPU time of its batches, by its own word, when the last window was closed."""
    left: bool = False


class HostCpu:
    """The CPU time of the window under way.  `times` reads the machine's, given the pids of the workers; `clock_of` a
    process's (None: it ended); `emulated` says whether a device is."""

    def __init__(
        self,
        times: Callable[[Iterable[int]], CpuTimes],
        clock_of: Callable[[int], int | None],
        emulated: Callable[[str], bool] = lambda device: False,
    ) -> None:
        self._times = times
        self._clock_of = clock_of
        self._emulated = emulated
        self._watched: dict[WorkerMeter, _Watched] = {}
        self._closed = self._now = times(())
        self._closed_own_ns = 0
        self._parts = HostParts([], 0, 0, 0, 0)

    def add(self, meter: WorkerMeter) -> None:
        """Watch a worker that begins to serve: what it used before is control's."""
        level_ns = self._level(meter.pid, 0)
        self._watched[meter] = _Watched(meter, level_ns, level_ns, meter.cpu_ns)

    def leave(self, meter: WorkerMeter) -> None:
        """Note that a worker has ended; it counts until the window is closed."""
        watched = self._watched.get(meter)
        if watched is not None:
            watched.left = True

    def look(self) -> None:
        """Read the clocks."""
        # The workers first: what they use before the tree is read falls to control until the next time, and what
        # remains for control is never negative by that.
        workers: list[tuple[WorkerMeter, int]] = []
        emulator_ns = 0
        for watched in self._watched.values():
            used_ns = self._used(watched)
            if self._emulated(watched.meter.device):
                emulator_ns += used_ns
            else:
                workers.append((watched.meter, used_ns))
        self._now = self._times([meter.pid for meter in self._watched if meter.pid])
        tree_ns = self._now.tree_ns - self._closed.tree_ns
        front_end_ns = max(self._now.server_ns - self._closed.server_ns, 0)
        rest_ns = tree_ns - front_end_ns - emulator_ns - sum(ns for _, ns in workers)
        machine_ns = self._now.machine_ns - self._closed.machine_ns if self._now.machine_ns else 0
        self._parts = HostParts(workers, front_end_ns, max(rest_ns, 0), emulator_ns, max(machine_ns - tree_ns, 0))

    @property
    def parts(self) -> HostParts:
        """What was used since the last window was closed, as of the last look."""
        return self._parts

    def own_seconds(self) -> float:
        """Return CPU seconds of the server so far, as of the last look: what a modelled meter integrates."""
        return (self._closed_own_ns + self._parts.own_ns) / 1e9

    def close(self) -> None:
        """Begin a new window at the last look."""
        self._closed_own_ns += self._parts.own_ns
        self._closed = self._now
        for meter, watched in list(self._watched.items()):
            watched.closed_ns, watched.batches_ns = watched.level_ns, meter.cpu_ns
            if watched.left:
                del self._watched[meter]
        self._parts = HostParts([], 0, 0, 0, 0)

    def _used(self, watched: _Watched) -> int:
        meter = watched.meter
        level_ns = self._level(meter.pid, watched.level_ns) if not watched.left else watched.level_ns
        if watched.left or not meter.pid:
            # Its clock is gone, and with it what it used since the last look, but for what its batches took.
            level_ns = max(level_ns, watched.closed_ns + meter.cpu_ns - watched.batches_ns)
        watched.level_ns = level_ns
        return level_ns - watched.closed_ns

    def _level(self, pid: int, least_ns: int) -> int:
        return max(self._clock_of(pid) or 0, least_ns) if pid else least_ns
