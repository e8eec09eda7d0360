"""Requests that wait unread, because refusing them would take the time that answers need.

Most of the work of an answer is reading its request and writing to its client, and a refusal needs both.  With a small
model a refusal costs half an answer or more.  Above capacity, a server that refuses every late request then has two
states.  In one state it answers nearly all.  In the other it refuses half of all requests; the refusals leave less of
the core for answers, so more requests are predicted to be late and refused.

So refusals may take only a part of the event loop's time (`RefusalBudget`).  Beyond that part, the model that refused
refuses no request for its longest wait (`Model.take_late`).  Where its queue is full as well, requests for it are held:
once the head of a request has come, the connection is not read, and its client waits.  Held requests are read again in
the order in which they came, as answers make room (`HeldRequests`).  The time that a request was held counts: for its
deadline and for its latency.  A request that was held for most of the family's `timeout_ms` is answered 504 unread.
All of that ends once nothing waits and the next request would be answered in time (`InferEndpoint.settle`).  Other
requests (health, metrics, an operator's) are never held.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from clover.interfaces import NO_ROOM, ROOM, Model
from clover.tenants import Tenant

_REFUSAL_NS = 30_000
_BYTE_NS = 0.25
"""What a refusal and a byte of its body take of the loop, at the most: on a core of an EPYC, whole answers to small
requests took 20 us, and to 588 KiB 190 us (`bench.wire`, November 2026)."""
_SHARED, _OWN = 0.02, 0.5
"""The part of the loop's time that refusals may take, if workers share its core, and if it has a core of its own.  Time
in which another thread or process has the core is none of the loop's."""
_OWN_FROM = 3
"""Cores from which on the front end has one of its own (`clover.devices.cpu`)."""
_STEP_NS = 5_000_000
"""The loop's time is read again after so long."""
_WINDOW_NS = 100_000_000
"""As much as refusals may take of this time they may take at once."""
_LONGEST = 0.8
"""The part of the family's time limit for which a request is held: the rest is for its answer."""


def core_wait_ns() -> int:
    """Return the nanoseconds for which this thread waited for a core so far; 0 if the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat", "rb", buffering=0) as file:
            return int(file.read().split()[1])
    except (OSError, IndexError):
        return 0


class RefusalBudget:
    """What refusals take of the time of one event loop, which has so many `cores` for itself and the workers."""

    __slots__ = ("_core_wait", "_free_ns", "_read_ns", "_share", "_spent_ns", "clock")

    def __init__(
        self,
        cores: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        core_wait: Callable[[], int] = core_wait_ns,
    ) -> None:
        shared = (cores or len(os.sched_getaffinity(0))) < _OWN_FROM
        self._share = _SHARED if shared else _OWN
        self.clock = clock
        self._core_wait = core_wait
        self._spent_ns = 0.0
        self._read_ns = 0
        self._free_ns = 0  # the loop's time when that was read

    def spend(self, body_bytes: int) -> bool:
        """Count a refusal of a request whose body was read; return whether refusals take more than their part now."""
        now_ns = self.clock()
        if now_ns - self._read_ns >= _STEP_NS:
            free_ns = now_ns - self._core_wait()
            self._spent_ns = max(self._spent_ns - self._share * (free_ns - self._free_ns), 0.0)
            self._read_ns, self._free_ns = now_ns, free_ns
        self._spent_ns += _REFUSAL_NS + _BYTE_NS * body_bytes
        return self._spent_ns > self._share * _WINDOW_NS


class HeldConnection(Protocol):
    """A connection whose next request is held."""

    def let_go(self, waited_ns: int, late: bool) -> bool:
        """Read the request, which was held so long, or answer 504 if it is `late`; return whether its body is still
        coming.  A no-op on a connection that is gone."""


class LoopTurns(Protocol):
    """The event loop, and the bytes of bodies that it took in this turn, of `turn_limit` at most."""

    loop: asyncio.AbstractEventLoop
    turn_bytes: int
    turn_limit: int


class HeldRequests:
    """The requests for `model` that wait unread: of each tenant the oldest first, and of tenants one in turn.

    `state` is that of the connections: what is more than a turn of its loop reads waits for the next one.  While there
    is no room in time, at most two batches of requests whose bodies are still coming are let go: they take no room in
    the queue yet."""

    __slots__ = ("_clock", "_coming", "_model", "_most_coming", "_scheduled", "_state", "_waiting")

    def __init__(self, model: Model, state: LoopTurns, clock: Callable[[], int]) -> None:
        self._model = model
        self._state = state
        self._clock = clock
        self._waiting: dict[Tenant | None, deque[tuple[HeldConnection, int, int, int]]] = {}
        self._most_coming = 2 * model.spec.max_batch
        self._coming = 0
        self._scheduled = False

    def hold(self, connection: HeldConnection, flow: int, request: int, tenant: Tenant | None) -> bool:
        """Hold the next request of a connection, if it has to wait; return whether it has to: the model has no room for
        it, or others of its tenant wait before it."""
        waiting = self._waiting.get(tenant)
        if waiting is None and self._model.room(flow, request, tenant) != NO_ROOM:
            return False
        if waiting is None:
            waiting = self._waiting[tenant] = deque()
        waiting.append((connection, flow, request, self._clock()))
        return True

    def is_settled(self) -> bool:
        """Return whether no request waits, and the next one would be answered in time."""
        return not self._waiting and self._model.room(0, 0, None) == ROOM

    def record_body(self) -> None:
        """Count a body as complete, or given up, that was still coming when its request was let go."""
        self._coming -= 1
        self.wake()

    def wake(self) -> None:
        """Let requests go after this turn of the loop, if there is room for them then."""
        if not self._scheduled:
            self._scheduled = True
            self._state.loop.call_soon(self._let_go)

    def _let_go(self) -> None:
        self._scheduled = False
        now_ns = self._clock()
        tenants = list(self._waiting)
        while tenants:
            left = []
            for tenant in tenants:
                if self._state.turn_bytes > self._state.turn_limit:
                    self.wake()  # what is let go now is not in the queue before the next turn
                    return
                if self._let_one_go(tenant, now_ns):
                    left.append(tenant)
            tenants = left

    def _let_one_go(self, tenant: Tenant | None, now_ns: int) -> bool:
        """Let the oldest request of a tenant go, if there is room for it; return whether another one may follow."""
        model, waiting = self._model, self._waiting[tenant]
        connection, flow, request, since_ns = waiting[0]
        waited_ns = now_ns - since_ns
        late = waited_ns > _LONGEST * model.timeout_ns
        room = model.room(flow, request, tenant)
        no_room = room == NO_ROOM or (room != ROOM and self._coming >= self._most_coming)
        if no_room and not late and not model.closed_reason:
            return False
        waiting.popleft()
        if not waiting:
            del self._waiting[tenant]
        if late:
            model.count_expired(tenant)
        if connection.let_go(waited_ns, late):
            self._coming += 1
        return tenant in self._waiting
