"""A worker process as the server holds it: its ring, its doorbell, its state, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from clover._native.ring import Ring
from clover._native.wakeups import ring_bell
from clover.errors import WorkerError, WorkerLostInStart
from clover.hints import printable
from clover.runtime.workers.deaths import OomKills
from clover.runtime.workers.output import WorkerOutput
from clover.worker import frames

_log = logging.getLogger("clover.pool")

_STATUS_S = 0.1
"""How much later than the death itself the exit status may come."""

_LAST_FRAMES = 32
"""What is read of its frames after its death: a process that it forked may have its socket, and send without end."""

_END_S = 5.0
"""How long a killed process may take to end; its memory has to be unmapped."""

_ENDING_NICE = 10

_SANDBOX_CHARS = 64
_REASON_CHARS = 2000
"""Of what a worker gives as the reason of its failure, at most so much is believed and logged."""

State = Literal["starting", "loading", "warming", "ready", "draining", "dead"]


class WorkerOwner(Protocol):
    """What a worker process needs of its pool."""

    silent_s: float
    oom_kills: OomKills

    def forget(self, worker: WorkerProcess, completed: int) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerChannel:
    """The server's ends of what connects it with a worker: the ring of batches, the control socket, the pipe that wakes
    the worker, the eventfd that it writes after each batch, and the descriptor of its process."""

    ring: Ring
    control: socket.socket
    doorbell: int
    completed: int
    pidfd: int


class WorkerProcess:
    """One worker process.  `Pool.spawn` makes it and returns it ready.

    `ring` is the server's side of its ring, and stays readable after its death.  `ready_ms` is the time from the order
    to ready; `fork_ms`, `load_ms` and `warm_ms` are its parts as the worker measured them; `said_ns` is when it first
    reported each state.  `overruns` of `paced_batches` took longer than the emulated slice would have (0 elsewhere);
    `device_lost`: it ended because its GPU is gone.  `sandbox` says by what it is confined (`WorkerState.sandbox`).

    `resident` has the lane of its ring for each variant that it holds; `held` what each of them takes on its slice, and
    `context_bytes` what it holds beside them; `left_out` why it does not hold the others of its order; `recorded` which
    variants' launches it compared with their replays, and why those are not used ("" if they are).
    """

    def __init__(
        self,
        order: frames.WorkerOrder,
        pid: int,
        channel: WorkerChannel,
        *,
        output: WorkerOutput,
        started_at_ns: int,
        pool: WorkerOwner,
    ) -> None:
        self.order = order
        self.pid = pid
        self.ring = channel.ring
        self.state: State = "starting"
        self.started_at_ns = started_at_ns
        self.ready_ms = 0.0
        self.fork_ms = 0.0
        self.load_ms = 0.0
        self.warm_ms = 0.0
        self.said_ns: dict[str, int] = {}
        self.paced_batches = 0
        self.overruns = 0
        self.device_lost = False
        self.sandbox = ""
        self.resident: dict[str, int] = {}
        self.held: tuple[frames.HeldMemory, ...] = ()
        self.context_bytes = 0
        self.left_out: dict[str, str] = {}
        self.recorded: dict[str, str] = {}
        self._control = channel.control
        self._doorbell = channel.doorbell
        self._completed = channel.completed
        self._pidfd = channel.pidfd
        self._output = output
        self._pool = pool
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._gone = asyncio.Event()
        self._code: int | None = None
        self._ended = False
        self._timers: list[asyncio.TimerHandle] = []
        self._failure = ""
        self._killed = False
        self._on_death: Callable[[WorkerProcess, str], None] | None = None
        self._undelivered = ""
        self._on_end_asked: Callable[[WorkerProcess], None] | None = None
        self._end_asked = False

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} {self.order.family.name}/{self.order.variant} {self.state}>"

    def backend_of(self, variant: str) -> str:
        """Return the backend with which it holds `variant`; empty if it does not hold that."""
        lane = self.resident.get(variant, -1)
        if lane <= 0:
            return self.order.backend if lane == 0 else ""
        return self.order.also[lane - 1].backend

    @property
    def cores(self) -> int:
        """How many CPU cores it may use."""
        return len(self.order.cores)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Listen on `loop` to what it sends, and for its end."""
        self._loop = loop
        self._ready = loop.create_future()
        loop.add_reader(self._control.fileno(), self._readable)
        loop.add_reader(self._pidfd, self._on_death_seen)
        self._output.bind(loop)

    async def until_ready(self, within_s: float) -> None:
        """Wait until it is ready; raises WorkerError if it failed, died or takes longer."""
        assert self._ready is not None
        try:
            # Not wait_for, which swallows (in Python 3.11) a cancellation that comes with the result.
            async with asyncio.timeout(within_s):
                await self._ready
        except TimeoutError as error:
            what = f"{self.order.variant} ({self.order.backend})"
            hint = f"--start-s {5 * within_s:g} allows more"
            text = f"{what} was not ready within {within_s:g} s: still {self.state} ({hint})"
            raise (WorkerLostInStart(text, hung=True) if self.order.also else WorkerError(text)) from error

    # --- using it ---

    def bell(self) -> None:
        """Ring its doorbell: there is a batch in its ring."""
        if self.state != "dead":
            ring_bell(self._doorbell)  # untaken if it was rung often enough, or is dying

    def request_exit(self) -> None:
        """Have it answer what is in its ring and exit; return at once."""
        if self.state == "dead":
            return
        self.state = "draining"
        self._move_to_other_cores()
        try:
            frames.send(self._control, frames.Exit())
        except OSError:
            self.kill()  # it cannot be reached any more

    def _move_to_other_cores(self) -> None:
        """Have it leave its cores before it ends, for other cores of the server's if there are any.

        The kernel takes ten milliseconds to unmap all that it shares, and the next worker on these cores has clients
        that wait.  The priority is lowered, but not to the lowest: ending takes locks that the zygote's forks need.
        """
        if self.order.emulated is None and not self.order.visible_devices:
            everywhere = os.sched_getaffinity(0)
            with contextlib.suppress(OSError):  # it has ended
                nice = os.getpriority(os.PRIO_PROCESS, self.pid)
                os.setpriority(os.PRIO_PROCESS, self.pid, min(nice + _ENDING_NICE, 19))
                os.sched_setaffinity(self.pid, everywhere.difference(self.order.cores) or everywhere)

    async def drain_and_exit(self) -> None:
        """Let it answer what is in its ring and exit; kill it if that takes longer than the pool's `silent_s`.

        Returns once it has ended.  `on_death` is called only if it did not exit by itself.
        """
        self.request_exit()
        if not await self.dead(self._pool.silent_s):
            _log.warning("worker %d did not exit within %.0f s: killed", self.pid, self._pool.silent_s)
            self.kill()
            await self.dead(_END_S)

    def kill(self) -> None:
        """End it by SIGKILL; `on_death` is called as for any other death."""
        if self.state != "dead":
            self._killed = True
            with contextlib.suppress(ProcessLookupError):  # by pidfd, which cannot hit another process
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def dead(self, within_s: float) -> bool:
        """Wait at most `within_s` seconds for its end; return whether it came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        return self.state == "dead"

    @property
    def on_death(self) -> Callable[[WorkerProcess, str], None] | None:
        """Called once on the loop, with a reason, when it died unexpectedly: anything but exiting after a drain.

        If it is set after the death, it is called on the loop's next turn, so that no death is missed.
        """
        return self._on_death

    @on_death.setter
    def on_death(self, callback: Callable[[WorkerProcess, str], None] | None) -> None:
        self._on_death = callback
        if callback is not None and self._undelivered:
            assert self._loop is not None
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        callback, reason = self._on_death, self._undelivered
        if callback is not None and reason:
            self._on_death, self._undelivered = None, ""
            callback(self, reason)

    @property
    def on_end_asked(self) -> Callable[[WorkerProcess], None] | None:
        """Called once on the loop when another process asked it to end (SIGTERM); it keeps serving until
        `request_exit`.

        If it is set after that, it is called on the loop's next turn.
        """
        return self._on_end_asked

    @on_end_asked.setter
    def on_end_asked(self, callback: Callable[[WorkerProcess], None] | None) -> None:
        self._on_end_asked = callback
        if callback is not None and self._end_asked:
            assert self._loop is not None
            self._loop.call_soon(self._deliver_end_asked)

    def _deliver_end_asked(self) -> None:
        callback, self._on_end_asked = self._on_end_asked, None
        if callback is not None:
            callback(self)

    # --- what it sends ---

    def _readable(self) -> None:
        assert self._loop is not None
        try:
            frame = frames.receive(self._control)
            if frame is not None:
                kind, payload, _ = frame
                if kind is frames.Kind.STATE:
                    self._on_report(frames.decode(payload, frames.WorkerState))
                elif kind is frames.Kind.END_ASKED:
                    self._end_asked = True
                    self._deliver_end_asked()
                else:
                    raise WorkerError(f"it sent {kind.name}")
                return
        except BlockingIOError:
            return
        except (OSError, WorkerError) as error:
            _log.error("worker %d is ended: %s", self.pid, error)
            self.kill()
        # The end of its socket: it is dying, and a worker that only closed it cannot be drained any more.
        self._loop.remove_reader(self._control.fileno())
        self._timers.append(self._loop.call_later(_STATUS_S, self.kill))

    def _on_report(self, state: frames.WorkerState) -> None:
        assert self._ready is not None
        self.said_ns.setdefault(state.state, time.monotonic_ns())
        self.fork_ms = state.fork_ms or self.fork_ms
        self.load_ms = state.load_ms or self.load_ms
        self.warm_ms = state.warm_ms or self.warm_ms
        self.paced_batches = state.batches or self.paced_batches
        self.overruns = state.overruns or self.overruns
        self.device_lost = self.device_lost or state.device_lost
        self.sandbox = printable(state.sandbox, _SANDBOX_CHARS) or self.sandbox
        if state.state == "failed":
            self._failure = printable(state.text, _REASON_CHARS) or "it failed without a reason"
            if not self._ready.done():
                failed = WorkerLostInStart if state.left_out else WorkerError
                self._ready.set_exception(failed(f"{self.order.variant} ({self.order.backend}): {self._failure}"))
        elif self.state in ("starting", "loading", "warming"):
            if state.state == "ready":
                self._holds(state)
            self.state = state.state
            if state.state == "ready":
                self.ready_ms = (time.monotonic_ns() - self.started_at_ns) / 1e6
                if not self._ready.done():
                    self._ready.set_result(None)

    def _holds(self, state: frames.WorkerState) -> None:
        """Note what it holds, from its report that it is ready.  Raises WorkerError if its order names no such
        variant."""
        order = self.order
        places = {
            name: lane
            for lane, name in enumerate((order.variant, *(held_variant.variant for held_variant in order.also)))
        }
        lanes = {held_variant.variant: places.get(held_variant.variant, -1) for held_variant in state.resident} or {
            order.variant: 0
        }
        if order.variant not in lanes or min(lanes.values()) < 0:
            raise WorkerError(f"it holds {', '.join(lanes)}, and was to hold {', '.join(places)}")
        self.resident, self.held, self.context_bytes = lanes, state.resident, state.context_bytes
        self.left_out = {
            name: printable(reason, _REASON_CHARS) for name, reason in state.left_out.items() if name in places
        }
        self.recorded = {
            name: printable(reason, _REASON_CHARS) for name, reason in state.recorded.items() if name in places
        }
        for name, reason in self.left_out.items():
            _log.warning("worker %d at %s does not hold %s: %s", self.pid, order.place or "its cores", name, reason)

    def exited(self, code: int) -> None:
        """Take its exit status, or minus a signal's number, which the zygote reports."""
        self._code = code
        if self._ended:
            self._finish()

    def _on_death_seen(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._pidfd)
        self._ended = True
        if self._code is not None:
            self._finish()
        else:
            self._timers.append(self._loop.call_later(_STATUS_S, self._finish))

    def _finish(self) -> None:
        if self.state == "dead":
            return
        assert self._loop is not None
        assert self._ready is not None
        expected = self.state == "draining" and self._code in (0, None)
        for timer in self._timers:
            timer.cancel()  # a timer would keep this worker, and with it the mapping of its ring
        self._timers.clear()
        self._loop.remove_reader(self._control.fileno())
        with contextlib.suppress(OSError, WorkerError):  # its last frame may give the reason
            for _ in range(_LAST_FRAMES):
                if (frame := frames.receive(self._control)) is None:
                    break
                if frame[0] is frames.Kind.STATE:
                    self._on_report(frames.decode(frame[1], frames.WorkerState))
        self.state = "dead"
        self._control.close()
        self._output.close()
        self._pool.forget(self, self._completed)
        os.close(self._completed)
        os.close(self._doorbell)
        os.close(self._pidfd)
        self._gone.set()
        reason = self._reason()
        if not self._ready.done():
            died = WorkerLostInStart if self.order.also else WorkerError
            text = f"{self.order.variant} ({self.order.backend}) died while starting: {reason}"
            self._ready.set_exception(died(text))
        if not self._ready.cancelled():
            self._ready.exception()  # retrieved, so that asyncio does not warn if nothing awaits it
        if not expected:
            self._undelivered = reason
            self._deliver()

    def _reason(self) -> str:
        if self._failure:
            return self._failure
        if self._code is None:
            return "ended with unknown status"
        if self._code == -signal.SIGKILL and not self._killed and self._pool.oom_kills.risen():
            return "killed by SIGKILL as the machine, or its control group, was out of memory"
        if self._code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self._code).name}"
        return f"exited with status {self._code}"
