"""What a successor does: asks the running server, starts beside it, accepts in its place, and goes on from its files.

Instances of a real GPU belong to the server that made them, and there is no room for the instances of a second server.
So a take-over is refused there before anything is started.  Emulated GPUs are a file: the successor has a box of its
own, in the other one of two folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import socket
import time
from pathlib import Path

import msgspec

from clover._version import __version__
from clover.config import ServerConfig
from clover.energy.marks import ClosedMeters
from clover.hints import named_wait
from clover.http import Inherited
from clover.low_priority import LowPriority
from clover.malformed import MALFORMED
from clover.runtime.memory.free import free_bytes
from clover.server.front_ends import FrontEnds
from clover.server.parts import Parts
from clover.server.takeover import socket_file
from clover.server.takeover.channel import (
    VERSION,
    Channel,
    OtherEndedError,
    SocketOffer,
    SuccessorAccepting,
    SuccessorReady,
    TakeOverAllowed,
    TakeOverError,
    TakeOverRequest,
)
from clover.settings.check import on_gpus

log = logging.getLogger("clover.server")

STEP_S = 20.0
"""Longest wait for an answer that needs no loading."""
GONE_S = 2.0
"""How long a process may take to end after its connection did."""
BESIDE = "beside"
"""The folder of the emulated GPUs of every other server."""
_FREE_PART = 0.92
_GIB = 1 << 30


class Succession:
    """The take-over of one server, from its offer on.  It owns `channel` and the sockets of `inherited`; `meters` is
    the file that the running server leaves."""

    def __init__(
        self, channel: Channel, offer: SocketOffer, inherited: Inherited, priority: LowPriority, meters: Path
    ) -> None:
        self._channel = channel
        self._offer = offer
        self.inherited = inherited
        self._priority = priority
        self._meters = meters
        self._ending: asyncio.Task[None] | None = None

    def start_s(self, configured_s: float) -> float:
        """Return how long workers may take to start until this server takes over."""
        return configured_s * self._priority.slowdown

    @classmethod
    async def ask(cls, config: ServerConfig, priority: LowPriority) -> Succession | None:
        """Ask the server that runs with this configuration for its sockets; None if it has ended before it offered
        them, so that this one starts as any other.  Raises TakeOverError if there is none, if it refuses, if it is
        ending and does not get there, or if there is no room for two.  `priority` is this server's until it takes over.
        """
        if on_gpus(config.workers.device):
            raise TakeOverError(
                f"a server on {config.workers.device} cannot be taken over: instances of a GPU belong to the server "
                "that made them, and two cannot share one; restart it, or serve from two machines or two GPUs and "
                "restart one after the other"
            )
        sock, path = socket_file.connect(config)
        channel, meters = Channel(sock), socket_file.meters_file(path)
        try:
            with contextlib.suppress(OtherEndedError):
                with named_wait("the running server to offer its sockets", log.info):
                    channel.send(TakeOverRequest(version=VERSION, clover=__version__, listen=listening(config)))
                    offer = await channel.expect(SocketOffer, STEP_S)
                return cls._from_offer(channel, offer, priority, meters)
        except BaseException:
            channel.close()
            raise
        with contextlib.closing(channel), named_wait("the running server, which offers no sockets, to end", log.info):
            limits = config.limits
            gone = await _wait_gone(channel.pid, limits.drain_delay_s + 2.0 * limits.drain_s + STEP_S)
        if not gone:
            raise TakeOverError("the running server is ending and offers no sockets: start again once it has ended")
        log.warning("the server that ran here has ended before it offered its sockets: this one serves alone")
        priority.restore()
        return None

    @classmethod
    def _from_offer(cls, channel: Channel, offer: SocketOffer, priority: LowPriority, meters: Path) -> Succession:
        if not channel.descriptors:
            raise TakeOverError("the running server's sockets did not come")
        free = free_bytes()
        if free and offer.memory_bytes > _FREE_PART * free:
            raise TakeOverError(
                f"there is no room for two servers: the running one holds {offer.memory_bytes / _GIB:.2f} GiB, and "
                f"{free / _GIB:.2f} GiB are free here; restart it instead"
            )
        meters.unlink(missing_ok=True)  # of an earlier take-over
        numbers, channel.descriptors = channel.descriptors, []
        sockets = [socket.socket(fileno=number) for number in numbers]
        control = next((sock for sock in sockets if sock.family == socket.AF_UNIX), None)
        tcp = tuple(sock for sock in sockets if sock is not control)
        log.info("taking over from process %d, Clover %s: it serves until this one is ready", channel.pid, offer.clover)
        priority.run_beside(channel.pid)
        return cls(channel, offer, Inherited(tcp, control), priority, meters)

    @property
    def box(self) -> str:
        """The folder of this server's emulated GPUs, below the cache folder: the one that the other does not use."""
        return "" if self._offer.box == BESIDE else BESIDE

    def boxes(self, cache: Path) -> Path:
        """Return the folder of the emulated GPUs and their records."""
        return cache / self.box

    async def complete(self, parts: Parts, front: FrontEnds | None) -> None:
        """Accept connections, now that a server of `parts` can serve them.  Raises TakeOverError if the running server
        serves on."""
        self._priority.restore()
        parts.pool.allow(parts.config.workers.start_s)
        gc.collect()  # what takes long, before requests come
        with contextlib.suppress(OtherEndedError):
            self._channel.send(SuccessorReady())
        try:
            with named_wait("the running server to hand over", log.info):
                await self._channel.expect(TakeOverAllowed, STEP_S)
        except OtherEndedError:
            log.warning("the previous server ended before this one was ready: this one serves alone")
        if front is not None:
            await front.open(self._offer.grpc_port)
        with contextlib.suppress(OtherEndedError):
            self._channel.send(SuccessorAccepting())
        self._ending = parts.loop.create_task(self._finish(parts, front), name="clover-take-over")

    async def _finish(self, parts: Parts, front: FrontEnds | None) -> None:
        """Wait until the server that ran here has ended, and go on from its files."""
        if not await self._channel.wait_ended(2.0 * parts.config.limits.drain_s + STEP_S):
            log.warning("the previous server has not ended in time: until it ends, its figures are counted twice")
        try:
            await self._go_on(parts, front)
        except Exception:
            log.exception("the state of the previous server could not all be taken over: restart this server")

    async def _go_on(self, parts: Parts, front: FrontEnds | None) -> None:
        """Go on from the files of the server that ran here, which has ended."""
        reading = await parts.grid.priced()
        closed = self._closed_meters()
        if closed is None:
            await _wait_gone(self._channel.pid, GONE_S)  # one that is being killed has closed its files then
        self._channel.close()
        parts.machine.take_over(closed, reading)
        at_ns = closed.at_ns if closed is not None else time.monotonic_ns()
        parts.footprint.begin(at_ns)
        if parts.ledger is not None:
            parts.ledger.begin(at_ns / 1e9)
            parts.ledger.start()
        parts.controller.ledger_files.take_over(parts.controller.context.families.values(), parts.grid.now())
        if front is not None:
            front.take_over()
        log.info("the server that ran here has ended")

    def _closed_meters(self) -> ClosedMeters | None:
        """Return where the meters of the server that ran here stand; None if it did not end in order."""
        try:
            closed = msgspec.json.decode(self._meters.read_bytes(), type=ClosedMeters)
            self._meters.unlink()
            return closed
        except (OSError, *MALFORMED) as error:
            log.warning("the previous server did not stop cleanly, so energy is counted only from now on: %s", error)
            return None

    @property
    def waiting(self) -> bool:
        """Whether the server that ran here has not ended."""
        return self._ending is not None and not self._ending.done()

    async def settle(self) -> None:
        """Wait for the end of the server that ran here, whose ledger this one goes on with."""
        if self._ending is not None:
            await asyncio.wait([self._ending])

    def close(self) -> None:
        """Give the sockets back, if nothing has begun to use them, and the session its priority."""
        self._priority.restore()
        self._channel.close()
        self.inherited.close()


async def _wait_gone(pid: int, within_s: float) -> bool:
    """Wait at most `within_s` for the end of a process; return whether it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool((await asyncio.to_thread(select.select, [process], [], [], within_s))[0])
    finally:
        os.close(process)


def listening(config: ServerConfig) -> dict[str, str]:
    """Return the settings of addresses that two servers must share, as text."""
    values = {name: getattr(config.listen, name) for name in ("host", "port", "grpc_port", "control")}
    return {name: "" if value is None else str(value) for name, value in values.items()}
