"""The server's side of its workers: spawns them through the zygote, learns of their deaths, ends them.

One pool serves every family.  It owns the zygote, the watch over the eventfds that workers write after completing a
batch (`completions`), and the lifeline: a pipe whose write end only this process holds, so that workers end with it.

A worker's death is signalled by its pidfd, which the zygote (its parent) opened; the exit status comes from the zygote
a moment later.  The zygote may die without harm: workers keep serving, and the next spawn starts another.

Starting a worker takes CPU time: importing what a model needs, loading, warming.  Dozens of workers that started at
once would share the cores, and each would take as long as all together; so about one a core starts at a time
(`starts`), and the time that a worker may take counts from when it is its turn.

All methods run on the event loop the pool was started on, stock asyncio or uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable

from clover._native.ring import RING_BYTES, Ring
from clover.errors import CloverError, StartError, WorkerError
from clover.hints import named_wait
from clover.runtime.memory.slab import Slab, map_shared, shared_memory
from clover.runtime.workers.completions import Completions
from clover.runtime.workers.deaths import OomKills
from clover.runtime.workers.handle import WorkerChannel, WorkerProcess
from clover.runtime.workers.output import LeftOut, WorkerOutput
from clover.runtime.workers.zygote_link import ZygoteLink
from clover.worker import frames

__all__ = ["Pool", "WorkerProcess"]

_log = logging.getLogger("clover.pool")

_STOP_S = 2.0
_ZYGOTE_END_S = 5.0
_RENEW_S = 5.0
"""Between two zygotes that are started though no worker waits for one."""


class Pool:
    """Spawns and ends workers.

    `start_s`: seconds a worker may take to become ready.  `silent_s`: seconds a batch may run before its worker is
    taken for stuck; draining waits that long.  `starts`: workers that start at once; 0 takes one more than there are
    cores.
    """

    def __init__(self, *, start_s: float = 60.0, silent_s: float = 30.0, starts: int = 0) -> None:
        self.start_s = start_s
        self.silent_s = silent_s
        self.oom_kills = OomKills()
        self._turns = asyncio.Semaphore(starts or len(os.sched_getaffinity(0)) + 1)
        self.workers: set[WorkerProcess] = set()
        """Every worker that has not died, starting ones included."""
        self._lifeline, self._lifeline_held = os.pipe2(os.O_CLOEXEC)
        self.completions = Completions()
        """Says when a worker has completed a batch."""
        self._zygote: ZygoteLink | None = None
        self._starting: asyncio.Lock | None = None
        self._tokens = 0
        self._asking = 0
        self._early: dict[int, int] = {}  # pid -> exit status that came before its WorkerProcess was made
        self._stopped = False
        self._renewing: asyncio.Task[None] | None = None
        self._renewed_s = -math.inf

    @classmethod
    def launch(cls, *, start_s: float = 60.0, silent_s: float = 30.0, starts: int = 0) -> Pool:
        """Return a pool whose zygote is already importing: before the event loop starts, so that both overlap."""
        pool = cls(start_s=start_s, silent_s=silent_s, starts=starts)
        pool._zygote = ZygoteLink.launch()
        return pool

    def allow(self, start_s: float) -> None:
        """Let workers take `start_s` seconds to become ready, from the next one on."""
        self.start_s = start_s

    @property
    def zygote_pid(self) -> int | None:
        """Process id of the zygote; None while there is none."""
        return None if self._zygote is None or self._zygote.dead else self._zygote.pid

    async def start(self) -> None:
        """Start the zygote (unless `launch` did) and wait until it can fork.  Raises StartError."""
        try:
            with named_wait("the process that forks workers to import torch", _log.info):
                await self._ready_zygote()
        except WorkerError as error:
            raise StartError(f"the worker processes cannot start: {error}") from error

    async def _ready_zygote(self) -> ZygoteLink:
        if self._stopped:
            raise WorkerError("the pool is stopped")
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            link = self._zygote
            if link is not None and link.killed:  # else an order would go to one that is about to end
                await link.wait_ended(_ZYGOTE_END_S)
            if link is None or link.dead:
                if link is not None:
                    _log.warning("the zygote died; starting another")
                link = self._zygote = ZygoteLink.launch()
            if not link.bound:
                link.bind(asyncio.get_running_loop(), self._on_exit)
                link.on_end = self._renew_zygote
            await link.ready(self.start_s)
            return link

    def _renew_zygote(self) -> None:
        """Start another zygote, though no worker waits for one: the next to die would wait for its imports, too."""
        loop = asyncio.get_running_loop()
        if self._stopped or loop.time() < self._renewed_s + _RENEW_S:
            return  # one that dies again and again costs its imports only if a worker needs it
        self._renewed_s = loop.time()
        self._renewing = loop.create_task(self._on_renewed(), name="clover-zygote")

    async def _on_renewed(self) -> None:
        try:
            await self._ready_zygote()
        except (CloverError, OSError) as error:
            _log.warning("no other zygote is ready; the next worker asks for one: %s", error)

    async def spawn(
        self,
        order: frames.WorkerOrder,
        slab: Slab,
        *,
        on_death: Callable[[WorkerProcess, str], None] | None = None,
        left_out: LeftOut | None = None,
    ) -> WorkerProcess:
        """Return a new worker over `slab`, once it is ready: loaded and warmed.  What it prints goes to the log, as far
        as that takes it (`runtime.workers.output`); what does not is counted in `left_out`.

        Raises WorkerError with the worker's own reason if it fails, dies or takes longer than `start_s` once it is its
        turn; nothing of it is left then, nor after the caller is cancelled.
        """
        try:
            async with self._turns:
                return await self._spawn(order, slab, on_death, left_out)
        except OSError as error:  # out of descriptors, memory or processes
            raise WorkerError(f"{order.variant} ({order.backend}) cannot be started: {error.strerror}") from error

    async def _spawn(
        self,
        order: frames.WorkerOrder,
        slab: Slab,
        on_death: Callable[[WorkerProcess, str], None] | None,
        left_out: LeftOut | None,
    ) -> WorkerProcess:
        link = await self._ready_zygote()
        self._tokens += 1
        with contextlib.ExitStack() as mine, contextlib.ExitStack() as theirs:
            control, far = frames.socket_pair()
            mine.callback(control.close)
            theirs.callback(far.close)
            control.setblocking(False)
            size = RING_BYTES(order.max_batch)
            ring_fd = shared_memory("clover-ring", size)
            theirs.callback(os.close, ring_fd)
            ring = Ring(map_shared(ring_fd, size), order.max_batch, create=True, lanes=order.lanes)
            # A pipe, whose ends are two open files: a worker cannot make the server's end block, as of an eventfd.
            rung, doorbell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            mine.callback(os.close, doorbell)
            theirs.callback(os.close, rung)
            completed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            mine.callback(os.close, completed)
            self.completions.watch(completed)
            mine.callback(self.completions.forget, completed)
            printed, output = os.pipe2(os.O_CLOEXEC)
            mine.callback(os.close, printed)
            theirs.callback(os.close, output)
            spawn = frames.Spawn(token=self._tokens, slots=slab.layout.slots, order=order.trimmed())
            started_at_ns = time.monotonic_ns()
            slab.write_header()
            fds = (far.fileno(), slab.fd, ring_fd, rung, completed, self._lifeline, output)
            self._asking += 1
            try:
                pid, pidfd = await link.spawn(spawn, fds, self.start_s)
            finally:
                self._asking -= 1
            mine.pop_all()
        name = f"worker {pid} ({order.variant} at {order.place or 'its cores'})"
        worker = WorkerProcess(
            order,
            pid,
            WorkerChannel(ring, control, doorbell, completed, pidfd),
            output=WorkerOutput(printed, name, left_out),
            started_at_ns=started_at_ns,
            pool=self,
        )
        worker.on_death = on_death
        self.workers.add(worker)
        try:
            worker.bind(asyncio.get_running_loop())
            if pid in self._early:
                worker.exited(self._early[pid])
            if not self._asking:
                self._early.clear()
            await worker.until_ready(self.start_s)
        except BaseException:
            await asyncio.shield(self._discard(worker))
            raise
        return worker

    async def _discard(self, worker: WorkerProcess) -> None:
        worker.on_death = None
        worker.kill()
        await worker.dead(_STOP_S)

    def _on_exit(self, pid: int, code: int) -> None:
        for worker in self.workers:
            if worker.pid == pid:
                worker.exited(code)
                return
        if self._asking:
            self._early[pid] = code

    def forget(self, worker: WorkerProcess, completed: int) -> None:
        """Remove a worker that died, and watch its eventfd `completed` no more; the worker itself calls this."""
        self.workers.discard(worker)
        self.completions.forget(completed)

    async def stop(self) -> None:
        """End every worker and the zygote; close every descriptor.  No `on_death` is called.  Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        for worker in list(self.workers):
            worker.on_death = None
            worker.request_exit()
        await self._all_dead(_STOP_S)
        for worker in list(self.workers):
            worker.kill()
        await self._all_dead(_STOP_S)
        if self._zygote is not None:
            if not self._zygote.bound:
                self._zygote.bind(asyncio.get_running_loop(), self._on_exit)
            await self._zygote.stop(_STOP_S)
        os.close(self._lifeline)
        os.close(self._lifeline_held)
        self.completions.close()
        self._lifeline = self._lifeline_held = -1

    async def _all_dead(self, within_s: float) -> None:
        if self.workers:
            await asyncio.gather(*(worker.dead(within_s) for worker in list(self.workers)))
