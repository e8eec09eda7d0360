"""What the connections of one front end share: limits, the head memo, buffers, the write burst and the sweep.

Answers that finish in one turn of the loop are written together: a connection with something to say enters `_dirty`,
and one `call_soon` flushes them all.  Deadlines cost no timer per request: a coarse sweep, each `SWEEP_S`, adds the
time since the last one to whatever each connection is waiting for.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from clover.config import LimitsConfig
from clover.http.heads import Head, Heads
from clover.http.ids import RequestIds
from clover.http.stats import HttpStats

if TYPE_CHECKING:
    from clover.http.connection import Incoming
    from clover.http.exchange import Exchange

log = logging.getLogger("clover.http")
access = logging.getLogger("clover.access")

Body = bytes | bytearray | memoryview
"""A request body: flat bytes."""

SWEEP_S = 0.5
SCRATCH_BYTES = 1 << 16
_POOLED_BUFFERS = 16
_POOLED_BYTES = 4 << 20


class Application(Protocol):
    """What turns a complete request into an answer."""

    def judge(self, head: Head) -> None:
        """Set `refusal` and `authorised` of a freshly parsed head."""

    def dispatch(self, exchange: Exchange, body: Body) -> None:
        """Answer now or later; `body` must not be kept after this returns."""


class Writer:
    """What the hub, and an exchange, need of a connection.  `control` marks the control socket, `loopback` a local
    peer, and `peer` is its address (empty on the control socket)."""

    __slots__ = ("control", "hub", "loopback", "peer")

    def __init__(self, hub: Hub, *, control: bool = False) -> None:
        self.hub = hub
        self.control = control
        self.loopback = control
        self.peer = ""

    def answered(self) -> None:
        """An exchange got its reply."""
        raise NotImplementedError

    def is_last(self, exchange: Exchange) -> bool:
        """Return whether no request received so far comes after `exchange`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what there is to say."""
        raise NotImplementedError


class Hub:
    """Shared state of all connections of a front end."""

    __slots__ = (
        "_buffers",
        "_dirty",
        "_scheduled",
        "access_log",
        "application",
        "connections",
        "draining",
        "heads",
        "ids",
        "limits",
        "loop",
        "pipelined",
        "scratch",
        "scratch_view",
        "stats",
    )

    def __init__(
        self,
        application: Application,
        limits: LimitsConfig,
        loop: asyncio.AbstractEventLoop,
        stats: HttpStats,
        *,
        access_log: bool = False,
        ids: RequestIds | None = None,
    ) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.stats = stats
        self.access_log = access_log
        self.heads = Heads(limits, application.judge)
        self.pipelined = limits.pipelined
        self.connections: set[Incoming] = set()
        self.draining = False
        # Shared by all connections: a loop reads into it and hands it over before it reads for anybody else.
        self.scratch = bytearray(SCRATCH_BYTES)
        self.scratch_view = memoryview(self.scratch)
        self._buffers: list[NDArray[np.uint8]] = []
        self._dirty: list[Writer] = []
        self._scheduled = False
        self.ids = ids or RequestIds()

    def take_buffer(self, size: int) -> NDArray[np.uint8]:
        """Return a buffer of at least `size` bytes for one body.  Its pages cost nothing until bytes arrive."""
        buffers = self._buffers
        for index, buffer in enumerate(buffers):
            if size <= len(buffer) <= 2 * size:
                del buffers[index]
                return buffer
        return np.empty(size, np.uint8)

    def give_buffer(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a body's buffer for the next body of its size."""
        if len(buffer) <= _POOLED_BYTES:
            if len(self._buffers) >= _POOLED_BUFFERS:
                del self._buffers[0]
            self._buffers.append(buffer)

    def mark(self, connection: Writer) -> None:
        """Write what `connection` has to say at the end of this turn."""
        self._dirty.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write every answer finished in this turn: one write a connection."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()

    def sweep(self, elapsed_s: float) -> None:
        """Charge `elapsed_s` to whatever each connection waits for, and act on missed deadlines."""
        for connection in list(self.connections):
            connection.sweep(elapsed_s)

    def log_access(self, exchange: Exchange, status: int, size: int) -> None:
        """One line per answer, with its id."""
        head = exchange.head
        request_id = exchange.request_id.decode("latin-1")
        access.info(
            "%s %s %d %d %s",
            head.method,
            head.path.encode("unicode_escape").decode("ascii"),
            status,
            size,
            request_id,
            extra={"request_id": request_id, "method": head.method, "status": status, "answer_bytes": size},
        )
