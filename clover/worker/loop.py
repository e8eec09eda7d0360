"""The loop of a worker: take a batch from the ring, gather its rows, run the model, scatter the answers, complete.

A worker may hold several variants; each batch names the lane of the one that answers it.  A model that raises or
answers in the wrong form fails its batch, not the process; a row that a step refuses fails alone
(`clover.worker.steps`).
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native import wakeups
from clover._native.ring import Ring
from clover.confidence import Writer, writer
from clover.errors import DeviceError, WorkerError, out_of_memory
from clover.runtime.memory.slab import NO_MEMORY, Slab
from clover.worker import frames
from clover.worker.batches import Batches
from clover.worker.steps import LaneSteps

_log = logging.getLogger("clover.worker")

MODEL_FAILED = 1
"""Status of a completion whose model raised or answered in the wrong form; 0 is success."""

_LOG_EVERY_NS = 1_000_000_000

Run = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class ResidentLane:
    """A variant as the loop runs it.  `enter`, if there is one, is called before its first batch after one of another
    lane: it sets what libraries keep for the whole process.  `steps`: what is done before and after it.  `overlap`, if
    there is one, begins and finishes batches apart (`clover.backends.overlap.Overlap`); a lane with steps has none."""

    run: Run
    enter: Callable[[], None] | None = None
    steps: LaneSteps | None = None
    overlap: Any = None


def status_of(error: Exception) -> int:
    """Return the status of a batch that `error` ended: the model's failure, unless it is this machine's, for want of
    memory."""
    return NO_MEMORY if out_of_memory(error) else MODEL_FAILED


def _no_run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Stand for the variant of a loop that has not served a batch yet; raises ValueError."""
    raise ValueError("no batch was taken yet")


class ParentGone(BaseException):
    """The server has ended."""


def send_state(control: socket.socket, state: frames.WorkerState) -> None:
    """Send the server the state of this worker; raises ParentGone if the server has ended."""
    try:
        frames.send(control, state)
    except OSError as error:
        raise ParentGone from error


class Scores:
    """Writes the confidence score of each answer of this worker beside it into the slab."""

    def __init__(self, write: Writer, into: NDArray[np.float32]) -> None:
        self._write = write
        self._into = into

    @classmethod
    def from_order(cls, order: frames.WorkerOrder, slab: Slab) -> Scores | None:
        """Return the scores of the family that `order` names; None if it has no confidence function."""
        write = writer(order.family)
        return cls(write, slab.score) if write is not None else None

    def write(self, slots: NDArray[np.uint32], answers: Sequence[Any]) -> None:
        """Score `answers` of the rows in `slots`; raises what the family's own function raises."""
        self._write(answers, slots, self._into)

    def try_out(self, answers: Sequence[Any]) -> None:
        """Score `answers` for nothing; raises what `write` raises."""
        rows = len(answers[0])
        self._write(answers, np.arange(rows, dtype=np.uint32), np.zeros(rows, np.float32))


@dataclass(frozen=True, slots=True)
class ServerChannel:
    """A worker's ends of what connects it with the server: the control socket, the ring of batches, the pipe that wakes
    the worker (`doorbell`), and the eventfd that it writes after each batch (`completions`)."""

    control: socket.socket
    ring: Ring
    doorbell: int
    completions: int


class WorkerLoop:
    """Serves batches until the server says EXIT, each with the variant of its lane; `lanes` has None for a variant that
    was left out, which the server does not ask.  `scores` is None if the family has no confidence function."""

    def __init__(
        self,
        channel: ServerChannel,
        batches: Batches,
        lanes: Sequence[ResidentLane | None],
        max_batch: int,
        scores: Scores | None,
    ) -> None:
        self._control = channel.control
        self._batches = batches
        self._ring = channel.ring
        self._lanes = tuple(lanes)
        self._lane = -1
        self._run: Run = _no_run
        self._steps: LaneSteps | None = None
        self._doorbell = channel.doorbell
        self._completions = channel.completions
        self._scores = scores
        self._slots = np.zeros(max_batch, np.uint32)
        self._logged_ns = 0
        self._unlogged = 0

    def run(self) -> None:
        """Serve until the server says EXIT; raises ParentGone if the server ends first."""
        control = self._control.fileno()
        while True:
            taken = self._ring.take(self._slots)
            if taken is not None:
                self._serve(*taken)
                continue
            if not self._ring.sleep():
                continue
            came = wakeups.wait(self._doorbell, control)
            self._ring.wake()
            if came & wakeups.CONTROL and self._exit_requested():
                self._finish()
                return

    def _finish(self) -> None:
        """Serve the batches that are in the ring still."""
        while (taken := self._ring.take(self._slots)) is not None:
            self._serve(*taken)

    def _exit_requested(self) -> bool:
        """Read a frame from the server; return whether it says EXIT."""
        try:
            frame = frames.receive(self._control)
        except OSError as error:
            raise ParentGone from error
        if frame is None:
            raise ParentGone
        return frame[0] is frames.Kind.EXIT

    def _turn_to(self, lane: int) -> None:
        """Run the batches that follow with the variant of `lane`.  Raises ValueError if it is not resident."""
        entered = self._lanes[lane] if 0 <= lane < len(self._lanes) else None
        if entered is None:
            raise ValueError(f"a batch names lane {lane}, whose variant is not resident")
        self._lane, self._run, self._steps = lane, entered.run, entered.steps
        if entered.enter is not None:
            entered.enter()

    def _serve(self, batch: int, count: int, lane: int = 0) -> None:
        """Compute one batch of `count` rows with the variant of `lane` and complete it; a model that fails, fails only
        this batch."""
        if lane != self._lane:
            self._turn_to(lane)
        slots = self._slots[:count]
        cpu_ns = time.process_time_ns()
        start_ns = time.monotonic_ns()
        status = 0
        try:
            if self._steps is not None:
                status = self._steps.serve(slots, self._run)
            elif self._scores is None:
                self._batches.scatter(slots, self._run(self._batches.gather(slots)))
            else:
                answers = self._run(self._batches.gather(slots))
                self._batches.scatter(slots, answers, partial(self._scores.write, slots, answers))
        except (WorkerError, DeviceError):
            raise  # this process can compute nothing any more
        except Exception as error:
            status = status_of(error)
            self._log_failure()
        end_ns = time.monotonic_ns()
        used_ns = time.process_time_ns() - cpu_ns
        # Two credits a worker keep at most two batches here, and the ring holds sixteen: it is full only if the
        # server broke its own rule, or stopped reaping.
        if not self._ring.complete(batch, status, count, start_ns, end_ns, used_ns):
            raise RuntimeError("the completion ring is full")
        wakeups.signal(self._completions)

    def _log_failure(self) -> None:
        """Log a failed batch with its traceback, at most once a second: a client may provoke them at will."""
        now_ns = time.monotonic_ns()
        if now_ns - self._logged_ns < _LOG_EVERY_NS:
            self._unlogged += 1
            return
        _log.exception("a batch failed (%d more since the last report)", self._unlogged)
        self._logged_ns, self._unlogged = now_ns, 0
