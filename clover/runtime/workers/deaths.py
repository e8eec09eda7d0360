"""Why workers died or must be killed: the kernel ran out of memory, the GPU failed, or they are stuck."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clover.errors import says_launch_failed
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.router import Router

_SELF = "proc/self/cgroup"
_MOUNT = "sys/fs/cgroup"
_WHOLE = "proc/vmstat"
_FIELD = "oom_kill"

FORGIVEN_NS = 60_000_000_000

_SECOND_NS = 1_000_000_000
MOST_BETWEEN_NS = 2 * _SECOND_NS
"""Twice the time between two looks at a server that gets the CPU it needs."""

_DOING = {
    "R": "it computes, or waits for a core",
    "S": "it sleeps, until a lock, a device or another thread wakes it",
    "D": "it waits for a disk or a driver",
    "T": "it was stopped by a signal",
    "t": "a debugger stopped it",
}


class OomKills:
    """The count of processes that were ended for want of memory, under `root`.

    The kernel counts for each control group (version 2) the processes in it that were ended for want of memory, and for
    the whole machine.  Which process it was is said in the kernel's log only, which needs rights; a SIGKILL that the
    server did not send, with the count higher than before, is taken for one.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [root / _WHOLE]
        if own := _own_group(root):
            self._files.insert(0, root / _MOUNT / own / "memory.events")
        self._count = self._read()

    def risen(self) -> bool:
        """Return whether the count is higher than when this was last asked, or at the beginning."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        for path in self._files:
            try:
                lines = path.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, count = line.partition(" ")
                if name == _FIELD and count.isdecimal():
                    return int(count)
        return 0


def _own_group(root: Path) -> str:
    """Return the path of this process's control group below the mount of version 2; empty if there is none."""
    try:
        lines = (root / _SELF).read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::").lstrip("/") or "." for line in lines if line.startswith("0::")), "")


class LaunchFailures:
    """Launch failures of CUDA (error 719): deaths of workers that either rows or the GPU may have caused.

    A row that causes them kills one worker after the other.  A GPU that fails kills its workers together, and rows that
    were with two of them must not be blamed.  So the first launch failure within a minute is blamed on no row, and
    later ones are.
    """

    def __init__(self) -> None:
        self._until_ns = 0

    def forgives(self, reason: str, now_ns: int) -> bool:
        """Return whether a death for `reason` is a launch failure that no row is blamed for: the first in a minute."""
        if not says_launch_failed(reason):
            return False
        first = now_ns >= self._until_ns
        self._until_ns = now_ns + FORGIVEN_NS
        return first


class Silence:
    """Looks for stuck workers of `router`: those that hold a batch and are silent for more than `limit_ns`.

    Only time in which the server could have seen a completion counts.  A server that is stopped (by a signal, in a
    frozen container, on a machine that sleeps) or gets no CPU takes no completions meanwhile, and its workers may have
    been stopped with it.  So at most `MOST_BETWEEN_NS` of the time between two polls counts, and completions are taken
    before any worker is judged.  Call `poll` in a task that awaits nothing slow in between: a delay of that task would
    count as a pause.

    A worker that alone gets no CPU, or is stopped, counts as stuck, although it would go on one day: its rows miss
    their deadlines meanwhile, another worker may answer them, and what takes milliseconds has not happened in half a
    minute.  What it was doing is part of the reason, so that an operator sees that other programs took its cores.
    """

    def __init__(self, router: Router, limit_ns: int, clock: Callable[[], int], root: Path = Path("/proc")) -> None:
        self._router = router
        self._limit_ns = limit_ns
        self._clock = clock
        self._root = root
        self._looked_ns = clock()

    def poll(self) -> list[tuple[WorkerHandle, str]]:
        """Return the workers that are stuck, each with the reason in words; to be called about once a second."""
        now_ns = self._clock()
        paused_ns = max(now_ns - self._looked_ns - MOST_BETWEEN_NS, 0)
        self._looked_ns = now_ns
        silent = self._router.silent(self._limit_ns, paused_ns)
        return [(worker, self._reason(worker.pid)) for worker in silent]

    def _reason(self, pid: int) -> str:
        silent = f"silent for more than {self._limit_ns / _SECOND_NS:g} s"
        try:
            state = (self._root / f"{pid}/stat").read_text().rpartition(") ")[2][:1]
        except OSError:
            return silent
        return f"{silent}: {_DOING[state]}" if state in _DOING else silent
