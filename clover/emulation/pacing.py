"""Time, power and memory of an emulated slice, kept by the worker that plays it.

The answers of an emulated slice are real and computed on the CPU.  Its latency is that of the pace, not of this
machine.  Each lane's `run` is wrapped (`PacedRun`): called with b rows at time t, it returns their answers at t +
pace(b).  That is an absolute deadline, so neither computing nor scheduling delays add up.  Meanwhile it sets the power
that the emulated board draws, and resets it when the batch is done.  The board may lose its GPU as a real one would;
the worker then ends without completing its batch.

If the CPU is slower than the slice that it emulates, or wakes a worker late, a batch is answered late.  That is an
*overrun*: it is counted, logged and reported to the server, because figures taken meanwhile are those of this machine
and not of the slice.

**Memory.**  This process stands for the slice, so its address space may grow by the slice's memory and no further.  The
limit is set once everything that the process only shares is mapped.  Stacks and allocator reserves count too, which
makes the limit a little tighter than the slice.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from clover.emulation.emulated import Attachment
from clover.errors import DeviceError, WorkerError, out_of_memory
from clover.worker.frames import WorkerOrder

if TYPE_CHECKING:
    from clover.worker.loop import ResidentLane, Run

_log = logging.getLogger("clover.worker")

TOLERANCE = 0.02
TOLERANCE_MS = 0.5
"""A batch handed back later than its pace by more than this share, and more than these milliseconds, is an overrun."""

REPORT_EVERY_NS = 10_000_000_000
FIRST_REPORT_NS = 1_000_000_000
"""The shortest time between two reports of overruns, and before the first one."""

_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1_000
"""By default the kernel may wake a sleeper 50 us late, to save wake-ups; a short pace would be off by percents."""


LanePace = tuple[tuple[float, ...], tuple[float, ...]]
"""Milliseconds and watts of batches of 1 .. `max_batch` rows, as `clover.profiles.Pace.table` gives them."""


# --- time -------------------------------------------------------------------------------------------------------------


class Pacer:
    """Holds batches until they are due, and counts those that were late already."""

    def __init__(
        self,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.now_ns = now_ns
        self._sleep = sleep
        self.batches = 0
        self.overruns = 0
        self.worst_ms = 0.0
        """By how much the most overdue batch since the last report was late."""
        self._reported_ns = now_ns() + FIRST_REPORT_NS - REPORT_EVERY_NS
        self._reported = (0, 0)

    def hold(self, start_ns: int, pace_ns: int) -> None:
        """Sleep until a batch that began at `start_ns` and takes `pace_ns` is due."""
        due_ns = start_ns + pace_ns
        now_ns = self.now_ns()
        while now_ns < due_ns:
            self._sleep((due_ns - now_ns) / 1e9)
            now_ns = self.now_ns()
        self.batches += 1
        late_ns = now_ns - due_ns
        if late_ns > TOLERANCE_MS * 1e6 and late_ns > TOLERANCE * pace_ns:
            self.overruns += 1
            self.worst_ms = max(self.worst_ms, late_ns / 1e6)

    def report(self) -> str:
        """Return a text about new overruns, after FIRST_REPORT_NS and once every REPORT_EVERY_NS; "" if there is
        nothing to report."""
        batches, overruns = self._reported
        now_ns = self.now_ns()
        if self.overruns == overruns or now_ns - self._reported_ns < REPORT_EVERY_NS:
            return ""
        late, of = self.overruns - overruns, self.batches - batches
        text = (
            f"{late} of the last {of} batches took longer than the slice would, by up to {self.worst_ms:.1f} ms: this "
            "machine is too slow or too busy for what it emulates"
        )
        self._reported, self._reported_ns, self.worst_ms = (self.batches, self.overruns), now_ns, 0.0
        return text


# --- the slice as its worker holds it ---------------------------------------------------------------------------------


class HeldSlice:
    """An emulated slice that this process is attached to, from before it loads until it exits.  `lanes` are the
    milliseconds and the watts of each of its variants, by batch size from 1.  `report` is called now and then with the
    counts of batches and overruns so far, if there are new overruns.

    `begin` and `end` enclose a batch; both raise DeviceError once the GPU is lost.  If another process works on the
    slice as well (during a swap, or a standby worker), batches take turns, and waiting for a turn counts to its
    batch, as on a GPU.
    """

    def __init__(
        self, board: Attachment, pacer: Pacer, lanes: Sequence[LanePace], report: Callable[[int, int], None]
    ) -> None:
        for pace_ms, _ in lanes:
            if not pace_ms or not all(math.isfinite(ms) and ms > 0 for ms in pace_ms):
                raise WorkerError("a pace needs milliseconds above zero for every batch size")
        self._lanes = lanes
        self._board = board
        self._pacer = pacer
        self._report = report

    @classmethod
    def attach(cls, order: WorkerOrder, report: Callable[[int, int], None]) -> HeldSlice:
        """Attach this process to the slice of `order`.  Raises DeviceError if there is no such slice, WorkerError if
        the order does not pace every batch size of every variant."""
        ordered = order.emulated
        assert ordered is not None
        lanes = [(ordered.pace_ms, ordered.watts), *((resident.pace_ms, resident.watts) for resident in order.also)]
        for pace_ms, watts in lanes:
            if not len(pace_ms) == len(watts) == order.max_batch:
                raise WorkerError(f"the pace has {len(pace_ms)} batch sizes, the worker takes {order.max_batch}")
        held = cls(Attachment(ordered.library, ordered.state, ordered.uuid), Pacer(), lanes, report)
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
        return held

    def paced(self, lanes: Sequence[ResidentLane | None]) -> list[ResidentLane | None]:
        """Return the worker's lanes, each at its own pace and power."""
        return [
            None if lane is None else replace(lane, run=PacedRun(lane.run, self, *pace))
            for lane, pace in zip(lanes, self._lanes, strict=True)
        ]

    def begin(self, watts: float) -> int:
        """Wait until no other batch runs on the slice, begin one that draws `watts`, and return the time then."""
        self._board.enter()
        self._board.draw(watts)
        return self._pacer.now_ns()

    def end(self, start_ns: int, pace_ns: int) -> None:
        """Wait until a computed batch is due, `pace_ns` after `start_ns`, and end it."""
        self._pacer.hold(start_ns, pace_ns)
        self._board.draw(0.0)
        self._board.leave()
        if late := self._pacer.report():
            _log.warning("%s", late)
            self._report(self._pacer.batches, self._pacer.overruns)


class PacedRun:
    """The `run` of a lane, which takes as long and draws as much as on the slice, by batch size from 1: `pace_ms` and
    `watts`.  A batch that fails does so when it is due."""

    def __init__(self, run: Run, held: HeldSlice, pace_ms: Sequence[float], watts: Sequence[float]) -> None:
        self._run = run
        self._held = held
        self._pace_ns = [round(ms * 1e6) for ms in pace_ms]
        self._watts = watts

    def __call__(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the answers of the lane; raises what it raises, and DeviceError once the GPU is lost."""
        rows = len(inputs[0])
        start_ns = self._held.begin(self._watts[rows - 1])
        try:
            return self._run(inputs)
        finally:
            self._held.end(start_ns, self._pace_ns[rows - 1])


# --- memory -----------------------------------------------------------------------------------------------------------


def limit_memory(memory_bytes: int) -> int:
    """Let the address space of this process grow by `memory_bytes` and no further; return the limit set."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = held + memory_bytes if hard == resource.RLIM_INFINITY else min(held + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


@contextlib.contextmanager
def within_its_memory(order: WorkerOrder) -> Iterator[None]:
    """Bound this process by the memory of its emulated slice; raises DeviceError if the model does not fit."""
    assert order.emulated is not None
    limit_memory(order.emulated.memory_bytes)
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise misfit(order.variant, order.place, order.emulated.memory_bytes) from error
        raise


def misfit(variant: str, place: str, memory_bytes: int) -> DeviceError:
    """Return the error of a model that is too large for its slice."""
    return DeviceError(
        f"{variant} does not fit into {place or 'its slice'}, which has {memory_bytes / 2**20:.0f} MiB of memory: give "
        "it a larger slice, or keep it off this one (no row of the pace file for this profile)"
    )
