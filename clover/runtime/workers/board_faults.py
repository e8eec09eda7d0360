"""Workers that share a GPU by MPS: how one is ended without harm to the others, and what follows if a fault ends all.

**Ending one.**  A client that is killed while it computes may leave the server with work that nobody takes back, and
from then on it refuses every client (docs.nvidia.com/deploy/mps: client early termination).  So the order is: the
worker is asked to end (an EXIT frame, `WorkerProcess.request_exit`) and waited for; if it does not end, the daemon is
asked to end its work (`terminate_client`), for a few seconds at most, as that was seen not to return; only then comes
SIGKILL.  One exception cannot be helped: workers end with a server that is killed itself.

**A fault.**  A fatal error of one client is reported to all of the GPU, each at its next call, and no new one is taken
until all have gone.  CUDA does not say whose error it was.  So if a client dies and the server says FAULT, the others
there are ended at once, those included that idle and would not notice; rows of none are suspected; and no worker is
started there before the server is well again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from clover.devices.mps import MpsDevice
from clover.devices.mps_control import LOG, PIPE, MpsControl
from clover.errors import CloverError
from clover.interfaces import Device
from clover.types import Placement
from clover.worker.frames import MpsPart, WorkerOrder

_log = logging.getLogger("clover.pool")

TERMINATE_S = 4.0
"""The longest wait for one answer of a daemon before a worker is killed all the same."""

WELL_S = 10.0
"""The longest that starts wait for a server to be well after a fault; later ones fail as the server says."""

_LOOK_S = 0.1


class MpsClient(Protocol):
    """What is needed of a worker process."""

    order: WorkerOrder
    pid: int
    device_lost: bool

    @property
    def state(self) -> str: ...
    def kill_now(self) -> None: ...
    async def dead(self, within_s: float) -> bool: ...


Worker = TypeVar("Worker", bound=MpsClient)


def mps_part(device: Device, placement: Placement) -> MpsPart | None:
    """Return the part that a worker at `placement` has as a client of MPS; None on other devices.  Raises DeviceError
    if it does not stand."""
    if not isinstance(device, MpsDevice):
        return None
    environment = device.environment(placement)
    return MpsPart(
        part=placement.id,
        program=device.program.program,
        control=device.program.environment,
        environment=environment,
    )


def control_of(part: MpsPart, timeout_s: float = TERMINATE_S) -> MpsControl:
    """Return the daemon that has `part`."""
    pipe, logs = Path(part.environment[PIPE]), Path(part.environment[LOG])
    return MpsControl(pipe, logs, program=part.program, environment=part.control, timeout_s=timeout_s)


class BoardFaults(Generic[Worker]):
    """Ends those of `workers` that are clients of MPS.  `on_fault`, an attribute, is called with the pipe directory and
    a reason after a fault, or if the daemon does not say whether there was one."""

    def __init__(self, workers: set[Worker], *, control: Callable[[MpsPart], MpsControl] = control_of) -> None:
        self.on_fault: Callable[[str, str], None] = lambda pipe, why: None
        self._workers = workers
        self._control = control
        self._ending: dict[Worker, asyncio.Task[None]] = {}
        self._clearing: dict[str, asyncio.Task[None]] = {}
        self._lost: set[str] = set()
        """Pipe directories of boards on which a worker lost its work meanwhile."""

    def end(self, worker: Worker) -> None:
        """End `worker`: its work on the GPU, then its process.  Returns at once."""
        if worker not in self._ending:
            task = self._ending[worker] = asyncio.get_running_loop().create_task(self._end(worker))
            task.add_done_callback(lambda _: self._ending.pop(worker, None))

    async def _end(self, worker: Worker) -> None:
        part = worker.order.mps
        assert part is not None
        try:
            if refused := await asyncio.to_thread(self._control(part).terminate, worker.pid):
                _log.warning("worker %d at %s is killed, though %s", worker.pid, part.part, refused)
        finally:
            worker.kill_now()

    def died(self, worker: Worker, reason: str) -> None:
        """Look whether the end of `worker` was a fault of its GPU, and end the others there if so."""
        part = worker.order.mps
        assert part is not None
        pipe = part.environment[PIPE]
        if worker.device_lost and worker not in self._ending:  # its work was ended, and not by us
            self._lost.add(pipe)
        if pipe not in self._clearing:
            self._clearing[pipe] = asyncio.get_running_loop().create_task(self._clear(worker, reason))

    async def _clear(self, worker: Worker, reason: str) -> None:
        part = worker.order.mps
        assert part is not None
        control, pipe = self._control(part), part.environment[PIPE]
        there = [other for other in self._workers if other.order.mps and other.order.mps.environment[PIPE] == pipe]
        try:
            if pipe not in self._lost and not await asyncio.to_thread(control.faulted) and pipe not in self._lost:
                return  # a server is well again once all have gone, which may be before it answers
            board = part.part.partition(":")[0]
            why = f"worker {worker.pid} at {part.part}: {reason}"
            _log.error(
                "%s: a fatal error ended all workers that share it by MPS (first seen: %s); their rows are tried "
                "again, and none is suspected",
                board,
                why,
            )
            self.on_fault(pipe, why)
            for other in there:
                other.device_lost = True
                self.end(other)
            until_s = time.monotonic() + WELL_S
            await asyncio.gather(*(other.dead(WELL_S) for other in there))
            while await asyncio.to_thread(control.faulted) and time.monotonic() < until_s:
                await asyncio.sleep(_LOOK_S)
        except CloverError as error:
            _log.warning("whether a fault ended worker %d is not known: %s", worker.pid, error)
            self.on_fault(pipe, str(error))
        finally:  # at once: a death that comes before others see the task done is looked at anew
            self._clearing.pop(pipe, None)
            self._lost.discard(pipe)

    async def over(self, part: MpsPart) -> None:
        """Wait until what a fault of the GPU of `part` began is over."""
        if task := self._clearing.get(part.environment[PIPE]):
            await asyncio.wait((task,))

    async def settled(self) -> None:
        """Wait until all that are being ended were killed."""
        if tasks := [*self._ending.values()]:
            await asyncio.wait(tasks)
