"""The loop of a worker whose batches overlap on a GPU: the next one begins while the one before computes.

A lane that can (`ResidentLane.overlap`) has its batches begun and finished apart.  At most two are in flight, as many
as the server gives a worker, and they complete in the order in which they were taken.  A lane that cannot runs its
batch alone, once nothing is in flight.

Each batch is accounted from its own start, or from the end of the one before if that is later: service times and CPU
times of overlapping batches add up to what the device and this process were busy, and nothing is counted twice.

While one batch computes and the ring is empty, the loop waits for whichever comes first: the next batch, whose rows are
then copied in at once, or the end of this one, which a thread waits for in CUDA (`BatchWaiter`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clover._native import wakeups
from clover.errors import DeviceError, WorkerError
from clover.worker.batches import Batches
from clover.worker.loop import MODEL_FAILED, ResidentLane, Scores, ServerChannel, WorkerLoop, status_of


class DoneEvent(Protocol):
    """The end of a batch on the device (`clover.backends.overlap.StreamEvent`)."""

    def synchronize(self) -> None:
        """Wait for it."""


class BatchWaiter:
    """Waits for ends of batches in a thread of its own, and makes the eventfd `fd` readable at each."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._events: queue.SimpleQueue[DoneEvent | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait, name="clover-batches", daemon=True)
        self._thread.start()

    def watch(self, event: DoneEvent) -> None:
        """Make `fd` readable once `event` is reached, or if waiting for it fails."""
        self._events.put(event)

    def close(self) -> None:
        """End the thread."""
        self._events.put(None)
        self._thread.join()
        os.close(self.fd)

    def _wait(self) -> None:
        while (event := self._events.get()) is not None:
            with contextlib.suppress(RuntimeError):  # finishing the batch raises it again, where it is dealt with
                event.synchronize()
            wakeups.signal(self.fd)


class BegunBatch:
    """A batch that was begun, or failed to: then `flight` is None, and `failed` is its status."""

    def __init__(self, batch: int, count: int, lane: Any, batches: Batches, slots: NDArray[np.uint32]) -> None:
        self.batch = batch
        self.count = count
        self.overlap = lane
        self.batches = batches
        self.slots = slots
        self.flight: Any = None
        self.failed = MODEL_FAILED
        self.watched = False
        self.start_ns = time.monotonic_ns()
        self.cpu_ns = time.process_time_ns()


class PipelinedLoop(WorkerLoop):
    """Serves batches as `WorkerLoop` does, two at a time where their lanes allow it.  `sides` are two gatherers over
    the same slab: the rows of a batch stay in the arrays of its side until it is finished."""

    def __init__(
        self,
        channel: ServerChannel,
        sides: Sequence[Batches],
        lanes: Sequence[ResidentLane | None],
        max_batch: int,
        scores: Scores | None,
    ) -> None:
        super().__init__(channel, sides[0], lanes, max_batch, scores)
        self._sides = list(sides)
        self._side = 0
        self._older: BegunBatch | None = None
        self._newer: BegunBatch | None = None
        self._last_ns = 0
        self._last_cpu_ns = 0

    def run(self) -> None:
        """Serve until the server says EXIT; raises ParentGone if the server ends first."""
        waiter = BatchWaiter()
        try:
            self._serve_all(waiter)
        finally:
            waiter.close()

    def _serve_all(self, waiter: Any) -> None:
        """Serve until the server says EXIT, with `waiter` (a `BatchWaiter`) to say when batches end."""
        control = self._control.fileno()
        while True:
            if self._step():
                continue
            if not self._ring.sleep():
                continue
            older = self._older
            if older is not None and not older.watched:
                older.watched = True
                waiter.watch(older.flight.done)
            came = wakeups.wait(self._doorbell, control, waiter.fd)
            self._ring.wake()
            if came & wakeups.CONTROL and self._exit_requested():
                self._finish_all()
                return

    def _step(self) -> bool:
        """Take a batch, or complete one that is done or that the next waits for; return whether there was either."""
        if self._newer is None and self._take():
            return True
        older = self._older
        if older is None:
            return False
        if self._newer is not None or older.flight is None or older.flight.ready():
            self._complete()
            return True
        return False

    def _take(self) -> bool:
        """Begin the next batch of the ring, or serve it alone if its lane cannot overlap; return whether there was
        one."""
        taken = self._ring.take(self._slots)
        if taken is None:
            return False
        batch, count, lane = taken
        held = self._lanes[lane] if 0 <= lane < len(self._lanes) else None
        if held is None or held.overlap is None:
            self._complete_all()
            self._serve(batch, count, lane)
        else:
            if lane != self._lane:
                self._turn_to(lane)
            self._begin(batch, count, held.overlap)
        return True

    def _begin(self, batch: int, count: int, overlap: Any) -> None:
        """Begin a batch of `count` rows; one that fails is completed, as failed, in its turn."""
        self._side = 1 - self._side
        slots = self._slots[:count].copy()  # the next batch is taken into the same array
        begun = BegunBatch(batch, count, overlap, self._sides[self._side], slots)
        try:
            begun.flight = overlap.begin(begun.batches.gather(slots))
        except (WorkerError, DeviceError):
            raise  # this process can compute nothing any more
        except Exception as error:
            begun.failed = status_of(error)
            self._log_failure()
        if self._older is None:
            self._older = begun
        else:
            self._newer = begun

    def _complete(self) -> None:
        """Wait for the older batch, scatter its answers and complete it."""
        done = self._older
        assert done is not None
        status = done.failed
        if done.flight is not None:
            try:
                answers = done.overlap.finish(done.flight)
                if self._scores is None:
                    done.batches.scatter(done.slots, answers)
                else:
                    done.batches.scatter(done.slots, answers, partial(self._scores.write, done.slots, answers))
                status = 0
            except (WorkerError, DeviceError):
                raise
            except Exception as error:
                status = status_of(error)
                self._log_failure()
        self._older, self._newer = self._newer, None
        start_ns, cpu_ns = max(done.start_ns, self._last_ns), max(done.cpu_ns, self._last_cpu_ns)
        self._last_ns, self._last_cpu_ns = time.monotonic_ns(), time.process_time_ns()
        used_ns = self._last_cpu_ns - cpu_ns
        if not self._ring.complete(done.batch, status, done.count, start_ns, self._last_ns, used_ns):
            raise RuntimeError("the completion ring is full")  # see `WorkerLoop._serve`
        wakeups.signal(self._completions)

    def _complete_all(self) -> None:
        """Complete the batches in flight."""
        while self._older is not None:
            self._complete()

    def _finish_all(self) -> None:
        """Serve the batches that are in the ring still."""
        while True:
            if self._newer is None and self._take():
                continue
            if self._older is None:
                return
            self._complete()
