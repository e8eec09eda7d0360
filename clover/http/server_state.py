"""What the connections of one socket share: limits, parsed heads, ids, counters, buffers and the burst of writes.

Answers that finish in one turn of the event loop are written together: a connection with something to write enters
`_dirty`, and one `call_soon` flushes them all.

One turn of the loop takes a bounded amount of work, so that no client's bytes delay all others.  The first `TURN_BYTES`
of bodies in a turn are taken at once.  The rest waits in `_postponed`, of which each turn does as much again, and at
least one piece of work.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clover._native.wire import sealed, unsealed
from clover.config import LimitsConfig
from clover.http.heads import Head, Heads
from clover.http.held import RefusalBudget

SCRATCH_BYTES = 1 << 16
TURN_BYTES = 256 << 10
"""Bytes of request bodies that one turn of the loop reads at once."""
_POOLED_BUFFERS = 16
_POOLED_BYTES = 4 << 20
_NUMBERS = itertools.count(1)


class RequestTracer(Protocol):
    """What makes a span of each inference, if tracing is switched on."""

    def record_answer(self, exchange: Any, status: int) -> bytes:
        """Take note of the answer that `exchange` gets, and return the header line of its trace context; empty if it
        is no inference.  Called once for each answer, on the loop, before it is written; never raises."""


class ConnectionBase:
    """A connection as the shared state and an exchange see it.

    `control` marks the control socket, `loopback` a peer on this machine; `peer` is the peer's address (empty on the
    control socket), `client` what it is counted by (`clover.http.addresses.client_of`).  `number` is unique among all
    connections of the process, from 1 on.
    """

    __slots__ = ("client", "control", "loopback", "number", "peer", "state")

    def __init__(self, state: ServerState, *, control: bool = False) -> None:
        self.state = state
        self.control = control
        self.number = next(_NUMBERS)
        self.loopback = control
        self.peer = ""
        self.client = ""

    def on_reply(self) -> None:
        """Take notice that an exchange has its reply."""
        raise NotImplementedError

    def is_last(self, exchange: object) -> bool:
        """Return whether no request received so far comes after `exchange`."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write the answers that are due."""
        raise NotImplementedError


class ServerState:
    """The state that all connections of one socket share.  `judge(head)` decides on each newly parsed head; `tracer`
    makes spans of answers, if that is switched on; `refusals` is shared by all sockets of the event loop."""

    __slots__ = (
        "_buffers",
        "_dirty",
        "_postponed",
        "_scheduled",
        "_working",
        "access_log",
        "draining",
        "heads",
        "ids",
        "limits",
        "loop",
        "pipelined",
        "refusals",
        "scratch",
        "scratch_view",
        "stats",
        "tracer",
        "turn_bytes",
        "turn_limit",
    )

    def __init__(
        self,
        judge: Callable[[Head], None],
        limits: LimitsConfig,
        loop: asyncio.AbstractEventLoop,
        stats: HttpStats,
        *,
        access_log: bool = False,
        ids: RequestIds | None = None,
        tracer: RequestTracer | None = None,
        refusals: RefusalBudget | None = None,
    ) -> None:
        self.refusals = refusals or RefusalBudget()
        self.limits = limits
        self.loop = loop
        self.stats = stats
        self.access_log = access_log
        self.tracer = tracer
        self.heads = Heads(limits, judge)
        self.pipelined = limits.pipelined
        self.draining = False
        # One buffer is enough for all: the loop reads into it and parses that before it reads from another connection.
        self.scratch = bytearray(SCRATCH_BYTES)
        self.scratch_view = memoryview(self.scratch)
        self._buffers: list[NDArray[np.uint8]] = []
        self._dirty: list[ConnectionBase] = []
        self._scheduled = False
        self._postponed: deque[tuple[Callable[[], None], int]] = deque()
        self._working = False
        self.turn_bytes = 0
        self.turn_limit = TURN_BYTES  # as an attribute it is compared as a number of C
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
        """Keep a body's buffer for the next body of about its size."""
        if len(buffer) <= _POOLED_BYTES:
            if len(self._buffers) >= _POOLED_BUFFERS:
                del self._buffers[0]
            self._buffers.append(buffer)

    def mark(self, connection: ConnectionBase) -> None:
        """Schedule `connection` to be flushed at the end of this turn of the loop."""
        self._dirty.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write every answer finished in this turn: one write a connection."""
        self._scheduled = False
        self.turn_bytes = 0
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            connection.flush()

    def postpone(self, work: Callable[[], None], weight: int) -> None:
        """Call `work` in one of the next turns of the loop; `weight` is in bytes of a body."""
        self._postponed.append((work, weight))
        if not self._working:
            self._working = True
            self.loop.call_soon(self.work)

    def work(self) -> None:
        """Do some of the work that was postponed, in the order it came."""
        self.turn_bytes = 0
        done = 0
        waiting = self._postponed
        try:
            while waiting and done < TURN_BYTES:
                work, weight = waiting.popleft()
                done += weight
                work()
        finally:
            self._working = bool(waiting)
            if waiting:
                self.loop.call_soon(self.work)


class RequestIds:
    """Makes the ids of a server, shared by its sockets, and recognises them: consecutive numbers, each with a tag that
    no one else can make.

    An id is a random prefix, a number and the number's SipHash-2-4 (a keyed pseudo-random function) under a random key
    of 128 bits that never leaves this process.  A client that knows some ids guesses another's tag with a chance of
    2**-64, so naming an id is proof of having read it.  Checking one takes no memory.
    """

    __slots__ = ("_high", "_low", "_number", "_prefix")

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode() + b"-"
        self._low = int.from_bytes(os.urandom(8), "little")
        self._high = int.from_bytes(os.urandom(8), "little")
        self._number = 0

    def take(self) -> int:
        """Return the next number, from 1 on."""
        self._number += 1
        return self._number

    def text(self, number: int) -> bytes:
        """Return the id of a number."""
        return sealed(self._prefix, number, self._low, self._high)

    def number_of(self, text: str) -> int:
        """Return the number of an id of ours; 0 for any other text."""
        number: int | None = unsealed(self._prefix, text.encode(), self._low, self._high)
        return number or 0


class HttpStats:
    """Plain counters of a front end, for the metrics to read: totals since the start, except `open_connections`.
    `requests` counts answers by status code."""

    __slots__ = (
        "_fine",
        "_others",
        "accepted_connections",
        "deadlines_missed",
        "dropped_connections",
        "failed_handshakes",
        "held_requests",
        "malformed",
        "open_connections",
        "received_bytes",
        "refused_connections",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.open_connections = 0
        self.accepted_connections = 0
        self.refused_connections = 0
        self.malformed = 0
        self.deadlines_missed = 0
        self.dropped_connections = 0
        self.failed_handshakes = 0
        self.held_requests = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._fine = 0
        self._others: dict[int, int] = {}

    def record_answer(self, status: int) -> None:
        """Count an answer."""
        if status == 200:
            self._fine += 1
        else:
            self._others[status] = self._others.get(status, 0) + 1

    @property
    def requests(self) -> dict[int, int]:
        """Answers by status."""
        return ({200: self._fine} if self._fine else {}) | self._others
