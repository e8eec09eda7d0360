"""Which workers are stuck: they hold a batch, and have completed none for too long.

Only time in which the server could have seen a completion counts.  A server that is stopped (by a signal, in a frozen
container, on a machine that sleeps) or gets no CPU takes no completions meanwhile, and its workers may have been
stopped with it: of the time between two looks no more than `MOST_BETWEEN_NS` counts, and what was completed is taken
before anybody is judged.  So `Silence.look` is to be called in a task that awaits nothing slow in between: what keeps
that task would count as a pause.

A worker that alone gets no CPU, or is stopped, counts as stuck, although it would go on one day: its rows miss their
deadlines meanwhile, another worker may answer them, and what takes milliseconds has not happened in half a minute.
What it was doing is part of the reason, so that an operator sees that other programs took its cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.router import Router

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


class Silence:
    """Looks for stuck workers of `router`: those that are silent for more than `limit_ns`."""

    def __init__(self, router: Router, limit_ns: int, clock: Callable[[], int], root: Path = Path("/proc")) -> None:
        self._router = router
        self._limit_ns = limit_ns
        self._clock = clock
        self._root = root
        self._looked_ns = clock()

    def look(self) -> list[tuple[WorkerHandle, str]]:
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
