"""Feeds workers directly, as the router does, from a thread that blocks.

While it runs, the thread owns the server side of the rings and the pool's completions.  It sleeps in `select`, whose
time-outs are precise to microseconds.  An event loop rounds to milliseconds, and arrivals of an open loop must not be
late by as much as is to be measured.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clover.errors import ProfileError
from clover.profiling.duty import NO_PAUSES, Pauses
from clover.profiling.rows import SampleRows
from clover.profiling.score import Rights, answers, as_array
from clover.runtime.memory.rows import read_rows
from clover.runtime.memory.slab import ROWS_REFUSED, Slab
from clover.runtime.workers.completions import Completions
from clover.runtime.workers.handle import WorkerProcess

CREDITS = 2
"""Batches that a worker may hold at a time, in the open loop."""
PATIENCE = 10
"""How many times as long as on a quiet machine a pass over the rows may take on one that has no core left for it."""
_LOOK_S = 0.1
"""Seconds between checks that a worker still lives."""


class SilentWorker(ProfileError):
    """A batch was not answered within `silent_s`, after which a server would restart its worker."""


@dataclass
class Cell:
    """Timing of batches of one size: milliseconds of each, CPU seconds and wall seconds of all; and the seconds of the
    batch before them, which is not counted."""

    batch: int
    ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    lead_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds in which the worker was at work."""
        return sum(self.ms) / 1e3

    @property
    def rows(self) -> int:
        """Rows served."""
        return self.batch * len(self.ms)


@dataclass
class Scored:
    """A pass over the rows: the answer to each row seen, whether it is right (empty without labels), its score (if the
    family has a confidence), and the timing of the full batches."""

    answers: NDArray[np.generic]
    right: Rights
    scores: NDArray[np.float32]
    cell: Cell


@dataclass
class OpenLoop:
    """An open-loop run: milliseconds from arrival to the end of the batch, CPU seconds of the workers, rows and
    batches."""

    ms: NDArray[np.float64]
    cpu_s: float
    wall_s: float
    rows: int
    batches: int


class Driver:
    """Drives workers that share `slab`; `completions` are the pool's.  Every method blocks; one thread at a time.

    Rows lie in slots in no order, so a worker has to copy those of a batch together, which takes 15 us a row of 588 KiB
    (measured).  Live, most rows that came one after the other lie side by side and are read in place.  So a plan that
    lets rows wait for each other saves CPU even if all of its rows have to be copied, or if it costs the front end some
    microseconds that are in no profile: for such rows the difference was from 4 us less to 5 us more each (measured).
    """

    def __init__(self, completions: Completions, slab: Slab, rows: SampleRows, silent_s: float) -> None:
        self._completions = completions
        self._slab = slab
        self._rows = rows
        self._silent_s = silent_s
        self._order = np.random.default_rng(2)
        self._next_id = 0
        self._next_row = 0
        self._stopped = False

    def stop(self) -> None:
        """End the loop that runs in another thread: it raises ProfileError within a moment."""
        self._stopped = True

    # --- closed loop --------------------------------------------------------------------------------------------

    def cell(
        self, worker: WorkerProcess, batch: int, *, samples: int, least_s: float, most_s: float,
        pauses: Pauses = NO_PAUSES,
    ) -> Cell:  # fmt: skip
        """Run batches of `batch` rows one at a time, at least `samples` and for `least_s`, at most for `most_s`.

        The worker sleeps before each batch for as long as `pauses` says.
        """
        cell = Cell(batch)
        last_ns, _ = self._serve_batch(worker, batch)  # the first batch of a size is not like the others
        cell.lead_s = last_ns / 1e9
        began = time.monotonic()
        while cell.wall_s < most_s and (len(cell.ms) < samples or cell.wall_s < least_s):
            if (pause_s := pauses.before(last_ns / 1e9)) > 0.0:
                time.sleep(pause_s)
            timing = self._serve_batch(worker, batch)
            last_ns = timing[0]
            self._add(cell, timing)
            cell.wall_s = time.monotonic() - began
        return cell

    def score(
        self,
        worker: WorkerProcess,
        batch: int,
        *,
        most_s: float,
        most_rows: int | None = None,
        rows: SampleRows | None = None,
        patient: bool = False,
    ) -> Scored:
        """Pass over `rows` (by default the driver's) once in batches of `batch`, up to `most_rows` or `most_s`.  If it
        is `patient`, time in which a worker had no core in its batches does not count, up to `PATIENCE` times `most_s`:
        a profile is kept, and would lack these rows for good.  Raises ProfileError if the family's metric fails."""
        source = self._rows if rows is None else rows
        found: list[NDArray[np.generic]] = []
        right: list[Rights] = []
        scores: list[NDArray[np.float32]] = []
        cell = Cell(batch)
        self._serve_batch(worker, batch)
        self._next_row = 0
        began = time.monotonic()
        every = range(len(source.spec.outputs))
        total = source.count if most_rows is None else min(most_rows, source.count)
        lost_s = 0.0
        while self._next_row < total and (not found or cell.wall_s - lost_s < most_s):
            count = min(batch, total - self._next_row)
            slots = self._slots(count)
            timing = self._serve_batch(worker, count, source, slots)
            if patient:
                lost_s = min(lost_s + max(0, timing[0] - timing[1]) / 1e9, (PATIENCE - 1) * most_s)
            if count == batch:
                self._add(cell, timing)
            outputs = [read_rows(self._slab, source.spec, index, slots) for index in every]
            found.append(answers(outputs[0]))
            if source.labelled:
                of = zip(source.spec.outputs, outputs, strict=True)
                arrays = {tensor.name: as_array(tensor, rows) for tensor, rows in of}
                right.append(source.judge(arrays, source.labels[self._next_row - count : self._next_row]))
            scores.append(self._slab.score[slots])
            cell.wall_s = time.monotonic() - began
        return Scored(
            np.concatenate(found), np.concatenate(right) if right else np.empty(0), np.concatenate(scores), cell
        )

    def _add(self, cell: Cell, timing: tuple[int, int]) -> None:
        cell.ms.append(timing[0] / 1e6)
        cell.cpu_s += timing[1] / 1e9

    def _slots(self, count: int) -> list[int]:
        """Return the slots of the next `count` rows: among the first, as many as a batch or more has."""
        places: list[int] = self._order.permutation(max(count, self._rows.spec.max_batch))[:count].tolist()
        return places

    def _serve_batch(
        self, worker: WorkerProcess, batch: int, rows: SampleRows | None = None, slots: list[int] | None = None
    ) -> tuple[int, int]:
        """Serve the next `batch` of `rows` (by default the driver's), in `slots` if they are given; return service and
        CPU nanoseconds."""
        places = self._slots(batch) if slots is None else slots
        (self._rows if rows is None else rows).fill(self._slab, places, self._next_row)
        self._next_row += batch
        self._submit(worker, np.array(places, np.uint32))
        until = time.monotonic() + self._silent_s
        while (done := worker.ring.reap()) is None:
            self._wait((worker,), _LOOK_S, until)
        _, status, _, start_ns, end_ns, cpu_ns = done
        self._check(status, places)
        return end_ns - start_ns, cpu_ns

    # --- open loop ----------------------------------------------------------------------------------------------

    def open_loop(self, workers: Sequence[WorkerProcess], max_batch: int, rate: float, seconds: float) -> OpenLoop:
        """Serve Poisson arrivals of single rows at `rate` rows a second for `seconds`, first come first served.

        A batch takes all rows that wait, up to `max_batch`; a worker holds up to two batches.  The slab has a group of
        slots for each.
        """
        generator = np.random.default_rng(1)
        count = max(1, int(rate * seconds))
        places = np.array(self._slots(CREDITS * len(workers) * max_batch), np.uint32)
        self._rows.fill(self._slab, places.tolist(), 0)
        credits = [(w, i * CREDITS + c) for c in range(CREDITS) for i, w in enumerate(workers)]
        flying: dict[int, tuple[WorkerProcess, int, int, int]] = {}
        head, cpu_ns, batches = 0, 0, 0
        began_ns = time.monotonic_ns()
        arrivals = began_ns + np.cumsum(generator.exponential(1e9 / rate, count)).astype(np.int64)
        ms = np.zeros(count)
        until = time.monotonic() + seconds + self._silent_s
        while head < count or flying:
            now_ns = time.monotonic_ns()
            arrived = int(np.searchsorted(arrivals, now_ns, side="right"))
            while head < arrived and credits:
                worker, group = credits.pop(0)
                rows = min(arrived - head, max_batch)
                slots = places[group * max_batch : group * max_batch + rows]
                flying[self._submit(worker, slots)] = (worker, group, head, rows)
                batches += 1
                head += rows
            due_s = max(0.0, (int(arrivals[head]) - time.monotonic_ns()) / 1e9) if head < count else _LOOK_S
            self._wait(workers, min(due_s, _LOOK_S) if credits else _LOOK_S, until)
            for worker in workers:
                while (done := worker.ring.reap()) is not None:
                    number, status, _, _, end_ns, used_ns = done
                    _, group, first, rows = flying.pop(number)
                    self._check(status, places[group * max_batch : group * max_batch + rows].tolist())
                    ms[first : first + rows] = (end_ns - arrivals[first : first + rows]) / 1e6
                    cpu_ns += used_ns
                    credits.append((worker, group))
        return OpenLoop(ms, cpu_ns / 1e9, (time.monotonic_ns() - began_ns) / 1e9, count, batches)

    # --- both ---------------------------------------------------------------------------------------------------

    def _submit(self, worker: WorkerProcess, slots: NDArray[np.uint32]) -> int:
        if self._stopped:
            raise ProfileError("the measurement was stopped")
        self._next_id += 1
        outcome = worker.ring.submit(self._next_id, slots, len(slots))
        if outcome == 0:
            raise ProfileError("a worker's ring is full although it holds no batch: restart the measurement")
        if outcome == 2:
            worker.bell()
        return self._next_id

    def _wait(self, workers: Sequence[WorkerProcess], timeout_s: float, until: float) -> None:
        """Sleep until completions arrive or `timeout_s` passes.  Raises ProfileError if none can come any more."""
        ready, _, _ = select.select([self._completions.fd], [], [], timeout_s)
        if self._stopped:
            raise ProfileError("the measurement was stopped")
        if ready:
            self._completions.clear()
            return
        if any(worker.state == "dead" for worker in workers):
            raise ProfileError("a worker died while it was measured: see its last output in the log")
        if time.monotonic() > until:
            raise SilentWorker(f"a worker gave no answer for {self._silent_s:g} s: raise --silent-s for slow models")

    def _check(self, status: int, slots: list[int]) -> None:
        """Raise ProfileError if a batch failed, or a row of it was refused."""
        if status == ROWS_REFUSED and (refused := self._slab.refusals(slots)):
            raise ProfileError(f"a row that the family is measured with is refused: {next(iter(refused.values()))}")
        if status != 0:
            raise ProfileError("the model failed on the rows it is measured with: see the worker's message in the log")
