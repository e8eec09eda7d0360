"""The CPU time of the machine, split by what it was spent on: each worker, the front end, control, other programs.

The kernel's clocks of workers and of the process tree are read together, once a window.  So what a worker uses between
batches is its variant's too, and no worker can say that it used less.  What a process of several variants used is split
among them by the CPU time that it reports for their batches; evenly, if there were no batches.

`control` is what the tree used beyond the workers that serve and the server's own process: the planner, profiling,
starts, loading and warming up, standby workers, the zygote.  What the controller took in the server's process is
`control` too (`clover.control_time`).

Workers on emulated GPUs compute what a GPU would have computed.  Their CPU time is counted apart (`emulator`), since
the emulated GPU is billed for that work.
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
    """A worker process, with the meter of each variant that it serves and the CPU time of its batches, by its own word,
    when the last window was closed.  Its clock stood at `closed_ns` then, and at `level_ns` when it was last read.
    `left`: meters whose variant it does not serve any more."""

    meters: dict[WorkerMeter, int]
    closed_ns: int
    level_ns: int
    left: set[WorkerMeter]

    @property
    def ended(self) -> bool:
        """Whether it serves nothing any more: its process may be gone."""
        return len(self.left) == len(self.meters)

    def batches_ns(self) -> list[int]:
        """Return the CPU time of the batches of each meter since the last window was closed."""
        return [meter.cpu_ns - closed_ns for meter, closed_ns in self.meters.items()]


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
        self._watched: dict[int | WorkerMeter, _Watched] = {}
        """By pid, or by meter if there is none."""
        self._closed = self._now = times(())
        self._closed_own_ns = 0
        self._parts = HostParts([], 0, 0, 0, 0)

    def add(self, meter: WorkerMeter) -> None:
        """Watch a worker that begins to serve, or serves one more variant.  What it used before belongs to control, or
        to the variants before."""
        known = self._watched.get(meter.pid or meter)
        if known is not None:
            known.meters[meter] = meter.cpu_ns
            return
        level_ns = self._level(meter.pid, 0)
        self._watched[meter.pid or meter] = _Watched({meter: meter.cpu_ns}, level_ns, level_ns, set())

    def leave(self, meter: WorkerMeter) -> None:
        """Record that a worker has ended or dropped the variant of `meter`, which counts until the window closes."""
        watched = self._watched.get(meter.pid or meter)
        if watched is not None and meter in watched.meters:
            watched.left.add(meter)

    def poll(self) -> None:
        """Read the clocks."""
        # The workers first: what they use before the tree is read falls to control until the next time, and what
        # remains for control is never negative by that.
        workers: list[tuple[WorkerMeter, int]] = []
        emulator_ns = 0
        for watched in self._watched.values():
            used_ns = self._used(watched)
            if self._emulated(next(iter(watched.meters)).device):
                emulator_ns += used_ns
            else:
                workers += self._split(watched, used_ns)
        self._now = self._times([pid for pid in self._watched if isinstance(pid, int)])
        tree_ns = self._now.tree_ns - self._closed.tree_ns
        control_ns = self._now.control_ns - self._closed.control_ns
        front_end_ns = max(self._now.server_ns - self._closed.server_ns - control_ns, 0)
        rest_ns = tree_ns - front_end_ns - emulator_ns - sum(ns for _, ns in workers)
        machine_ns = self._now.machine_ns - self._closed.machine_ns if self._now.machine_ns else 0
        self._parts = HostParts(workers, front_end_ns, max(rest_ns, 0), emulator_ns, max(machine_ns - tree_ns, 0))

    @property
    def parts(self) -> HostParts:
        """What was used since the last window was closed, as of the last reading."""
        return self._parts

    def own_seconds(self) -> float:
        """Return CPU seconds of the server so far, as of the last reading: what a modelled meter integrates."""
        return (self._closed_own_ns + self._parts.own_ns) / 1e9

    def close(self) -> None:
        """Begin a new window at the last reading."""
        self._closed_own_ns += self._parts.own_ns
        self._closed = self._now
        for key, watched in list(self._watched.items()):
            watched.closed_ns = watched.level_ns
            watched.meters = {meter: meter.cpu_ns for meter in watched.meters if meter not in watched.left}
            watched.left = set()
            if not watched.meters:
                del self._watched[key]
        self._parts = HostParts([], 0, 0, 0, 0)

    def _used(self, watched: _Watched) -> int:
        pid = next(iter(watched.meters)).pid
        level_ns = self._level(pid, watched.level_ns) if not watched.ended else watched.level_ns
        if watched.ended or not pid:
            # Its clock is gone, and with it what it used since the last reading, except what its batches took.
            level_ns = max(level_ns, watched.closed_ns + sum(watched.batches_ns()))
        watched.level_ns = level_ns
        return level_ns - watched.closed_ns

    @staticmethod
    def _split(watched: _Watched, used_ns: int) -> list[tuple[WorkerMeter, int]]:
        """Return each meter's part of the nanoseconds that a process used; the parts sum up to these."""
        batches_ns = watched.batches_ns()
        total_ns, count, left_ns = sum(batches_ns), len(batches_ns), used_ns
        parts = []
        for at, (meter, own_ns) in enumerate(zip(watched.meters, batches_ns, strict=True)):
            part_ns = used_ns * own_ns // total_ns if total_ns else used_ns // count
            part_ns = part_ns if at + 1 < count else left_ns
            left_ns -= part_ns
            parts.append((meter, part_ns))
        return parts

    def _level(self, pid: int, least_ns: int) -> int:
        return max(self._clock_of(pid) or 0, least_ns) if pid else least_ns
