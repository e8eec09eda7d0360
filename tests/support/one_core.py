"""A front end and a worker that share one core, on a clock that is moved by hand: while one works, the other waits.

A turn reads one request of each client that has sent one, whether they are few or thousands, and answers at its end.
The worker computes while the front end has nothing to read, between two of its turns, or if it yields.
"""

from __future__ import annotations

import os
from collections import deque

import pytest

from clover.errors import Overloaded
from clover.runtime.router.tickets import RouterTicket
from tests.support.router_fixture import SECOND, House

US = 1000
TURN_NS, REFUSE_NS, TAKE_NS = 20 * US, 30 * US, 50 * US
"""What the front end needs for a turn, for a request that it refuses, and for one that it takes."""


class OneCore:
    """`connections` clients that send a request when one is due and they have the answer of the last one; the worker
    needs `batch_ns` for a batch.  `taken` and `refused` count requests that were answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, house: House, batch_ns: int) -> None:
        self.house = house
        self.taken = self.refused = 0
        self._batch_ns = batch_ns
        (self._worker,) = house.route(0, max_batch=house.spec.max_batch)
        self._idle: deque[int] = deque()
        monkeypatch.setattr(os, "sched_yield", self._compute)

    def run(self, seconds: float, connections: int, rate: float = 0.0) -> float:
        """Return the requests answered with 200 a second; `rate` is the requests due a second (0: always one)."""
        loop = self.house.loop
        begin_ns, taken, sent = loop.now_ns, self.taken, 0
        self._idle = deque(range(1, connections + 1))
        while (passed_ns := loop.now_ns - begin_ns) < seconds * SECOND:
            due = int(passed_ns * rate / SECOND) - sent if rate else connections
            asking = [self._idle.popleft() for _ in range(min(due, len(self._idle)))]
            sent += len(asking)
            self._turn(asking)
        return (self.taken - taken) * SECOND / (loop.now_ns - begin_ns)

    def _turn(self, asking: list[int]) -> None:
        loop = self.house.loop
        loop.now_ns += TURN_NS
        self.house.router.reap()
        refused = [client for client in asking if not self._ask(client)]
        loop.turn()
        self.refused += len(refused)
        self._idle.extend(refused)
        self._compute()

    def _ask(self, client: int) -> bool:
        """Send a request; return whether it is taken."""
        loop, router = self.house.loop, self.house.router
        loop.now_ns += REFUSE_NS
        ticket = None
        try:
            if router.retry_in_s(client) > 0.0:
                return False
            loop.now_ns += TAKE_NS - REFUSE_NS
            ticket = router.open(1, client)
            router.submit(ticket, self._done)
        except Overloaded:
            if ticket is not None:
                router.close(ticket)
            return False
        return True

    def _done(self, ticket: RouterTicket) -> None:
        assert ticket.status == 200, ticket.status
        self.taken += 1
        self._idle.append(ticket.flow)
        self.house.router.close(ticket)

    def _compute(self) -> None:
        """Let the worker compute the batches that it has."""
        loop, ring = self.house.loop, self._worker.ring
        for _ in range(len(ring.batches)):
            loop.now_ns += self._batch_ns
            self._worker.finish(loop.now_ns, busy_ns=self._batch_ns)
