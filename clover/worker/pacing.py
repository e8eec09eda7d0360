"""Time, power and memory of an emulated slice, kept by the worker that plays it.

What an emulated slice answers is real, computed on the CPU; how long it takes is not this machine's business.  A batch
of b rows that the worker takes off its ring at t is handed back at t + pace(b), to an absolute deadline, so that
neither the computing nor the scheduler's whims add up.  Meanwhile the worker tells the emulated board what it draws,
and nothing once the batch is done; the board loses its GPU under the worker just as a real one would, and the worker
ends then, without handing over what it computed.

A CPU may be slower than the slice it plays, and a crowded one may wake a worker late.  Such a batch is handed back late
(there is nothing to be done about it), and it is an *overrun*: counted, logged, and told to the server, because figures
taken meanwhile are those of this machine and not of the slice.

**Pace.**  A table gives milliseconds and watts at some batch sizes.  Between them time and energy of a batch are taken
as linear in its rows, as the planner takes them; below the smallest a batch costs what the smallest costs; beyond the
largest both grow in proportion.

**Memory.**  A slice has its own memory and this process stands for it, so its address space may grow by that much and
no further.  The limit is set once everything the process only shares is mapped; stacks and allocator reserves count
too, which makes it a little tighter than the slice.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from clover.errors import DeviceError, WorkerError
from clover.types import FamilyProfile, Record
from clover.worker.frames import EmulatedSlice

_log = logging.getLogger("clover.worker")

TOLERANCE = 0.02
TOLERANCE_MS = 0.5
"""A batch handed back later than its pace by more than this share, and more than these milliseconds, is an overrun."""

REPORT_EVERY_NS = 10_000_000_000
FIRST_REPORT_NS = 1_000_000_000
"""How often a worker complains of overruns, at most, and how soon."""

_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1_000
"""The kernel may wake a sleeper 50 us late by default, to save wake-ups; a short pace would be off by percents."""


# --- tables -----------------------------------------------------------------------------------------------------------


class Pace(Record, frozen=True, kw_only=True):
    """How a variant runs on a slice: milliseconds and watts (above idle) of a batch at each of `batches`, ascending."""

    batches: tuple[int, ...]
    ms: tuple[float, ...]
    watts: tuple[float, ...]

    def table(self, max_batch: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return milliseconds and watts of batches of 1 .. `max_batch` rows."""
        joules = tuple(ms * watts for ms, watts in zip(self.ms, self.watts, strict=True))
        ms_of = [_at(self.batches, self.ms, rows) for rows in range(1, max_batch + 1)]
        joules_of = [_at(self.batches, joules, rows) for rows in range(1, max_batch + 1)]
        return tuple(ms_of), tuple(joule / ms for joule, ms in zip(joules_of, ms_of, strict=True))


def _at(batches: tuple[int, ...], values: tuple[float, ...], rows: int) -> float:
    if rows <= batches[0]:
        return values[0]
    if rows >= batches[-1]:
        return values[-1] * rows / batches[-1]
    above = next(index for index, batch in enumerate(batches) if batch >= rows)
    part = (rows - batches[above - 1]) / (batches[above] - batches[above - 1])
    return values[above - 1] + part * (values[above] - values[above - 1])


Paces = Mapping[tuple[str, str], Pace]
"""By variant and profile of the slice."""


def pace_of(profile: FamilyProfile | None, variant: str, shape: str, backend: str) -> Pace | None:
    """Return the pace that `profile` expects of this worker; None where it does not know it."""
    if profile is None:
        return None
    rows = {m.batch: m for m in profile.latency if (m.variant, m.profile, m.backend) == (variant, shape, backend)}
    if not rows:
        return None
    found = [rows[batch] for batch in sorted(rows)]
    return Pace(
        batches=tuple(m.batch for m in found),
        ms=tuple(m.mean_ms for m in found),
        watts=tuple(m.energy_j_per_row * m.batch / (m.mean_ms / 1e3) for m in found),
    )


# --- time -------------------------------------------------------------------------------------------------------------


class Pacer:
    """Holds batches back until their time is up, and counts those for which it came too late."""

    def __init__(
        self,
        pace_ms: tuple[float, ...],
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not pace_ms or not all(math.isfinite(ms) and ms > 0 for ms in pace_ms):
            raise WorkerError("a pace needs milliseconds above zero for every batch size")
        self._pace_ns = [round(ms * 1e6) for ms in pace_ms]
        self.now_ns = now_ns
        self._sleep = sleep
        self.batches = 0
        self.overruns = 0
        self.worst_ms = 0.0
        """By how much the latest batch of the current report was late."""
        self._reported_ns = now_ns() + FIRST_REPORT_NS - REPORT_EVERY_NS
        self._reported = (0, 0)

    def hold(self, start_ns: int, rows: int) -> int:
        """Sleep until a batch of `rows` that began at `start_ns` is due; the time it is then."""
        due_ns = start_ns + self._pace_ns[rows - 1]
        now_ns = self.now_ns()
        while now_ns < due_ns:
            self._sleep((due_ns - now_ns) / 1e9)
            now_ns = self.now_ns()
        self.batches += 1
        late_ns = now_ns - due_ns
        if late_ns > TOLERANCE_MS * 1e6 and late_ns > TOLERANCE * (due_ns - start_ns):
            self.overruns += 1
            self.worst_ms = max(self.worst_ms, late_ns / 1e6)
        return now_ns

    def report(self) -> str:
        """Return what to complain of, after FIRST_REPORT_NS and once every REPORT_EVERY_NS; "" where there is nothing
        new."""
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


class PacingBoard(Protocol):
    """What a worker needs of `clover.devices.emulated.Attachment`."""

    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def draw(self, watts: float) -> None: ...
    def close(self) -> None: ...


class HeldSlice:
    """An emulated slice that this process is attached to, from before it loads until it exits.

    `begin` and `end` stand around a batch; both raise DeviceError once the GPU is lost.  Where another process works on
    the slice as well (during a swap, or one that stands by), batches take turns.
    """

    def __init__(self, order: EmulatedSlice, board: PacingBoard, pacer: Pacer) -> None:
        self._watts = order.watts
        self._board = board
        self.pacer = pacer

    @classmethod
    def attach(cls, order: EmulatedSlice, max_batch: int) -> HeldSlice:
        """Attach this process.  Raises DeviceError where the slice is not there, WorkerError for an order that does not
        pace every batch size."""
        if not len(order.pace_ms) == len(order.watts) == max_batch:
            raise WorkerError(f"the pace has {len(order.pace_ms)} batch sizes, the worker takes {max_batch}")
        from clover.devices.emulated import Attachment

        pacer = Pacer(order.pace_ms)
        board = Attachment(order.library, order.state, order.uuid)
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
        return cls(order, board, pacer)

    def begin(self, rows: int) -> int:
        """Return a batch of `rows` starts to run, now that nobody else's does.  The time it is then."""
        self._board.enter()
        self._board.draw(self._watts[rows - 1])
        return self.pacer.now_ns()

    def end(self, start_ns: int, rows: int) -> int:
        """Return the batch is computed: wait until it is due.  The time it is then."""
        end_ns = self.pacer.hold(start_ns, rows)
        self._board.draw(0.0)
        self._board.leave()
        return end_ns


# --- memory -----------------------------------------------------------------------------------------------------------


def limit_memory(memory_bytes: int, statm: Path = Path("/proc/self/statm")) -> int:
    """Let the address space of this process grow by `memory_bytes` and no further; the limit set."""
    held = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = held + memory_bytes if hard == resource.RLIM_INFINITY else min(held + memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


_OUT_OF_MEMORY = ("out of memory", "can't allocate", "cannot allocate", "not enough memory", "bad_alloc", "bad alloc")


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error`, or what it came from, says that memory ran out.  Frameworks say so in words only."""
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
        seen += 1
    return False


def misfit(variant: str, place: str, memory_bytes: int) -> DeviceError:
    """Return the error of a model that is too large for its slice."""
    return DeviceError(
        f"{variant} does not fit into {place or 'its slice'}, which has {memory_bytes / 2**20:.0f} MiB of memory: give "
        "it a larger slice, or keep it off this one (no row of the pace file for this profile)"
    )
