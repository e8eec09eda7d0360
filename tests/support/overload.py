"""A lane of fake workers under a load that comes whether or not it can be served, on a clock that is moved by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from clover.errors import RequestError
from clover.runtime.router.tickets import RouterTicket
from tests.support.router_fixture import MS, SECOND, FakeWorker, House


class Load:
    """Rows at `rate` a second, one a request, by `clients` in turn, to workers that need `service_ms` for any batch.

    `answered` has, by second, the requests that were answered with 200 within their deadline."""

    def __init__(self, house: House, workers: list[FakeWorker], service_ms: float = 40.0) -> None:
        self.house = house
        self.workers = workers
        self.service_ms = service_ms
        self.statuses: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.by_client: Counter[int] = Counter()
        self.latency_ms: list[float] = []
        self.late = 0
        self.begin_ns = house.loop.now_ns
        self._busy_until_ns: dict[int, int] = {}

    @property
    def capacity(self) -> float:
        """Rows a second of all workers."""
        return 4 * len(self.workers) * 1000.0 / self.service_ms

    def ask(self, client: int, timeout_ns: int = 0, rows: int = 1) -> RouterTicket | None:
        """Send a request; None if it is refused."""
        router = self.house.router
        ticket = None
        try:
            ticket = router.open(rows, client)
            router.submit(ticket, self._done, timeout_ns=timeout_ns)
        except RequestError as error:
            self.statuses[error.status] += 1
            if ticket is not None:
                router.close(ticket)
            return None
        return ticket

    def _done(self, ticket: Any) -> None:
        now_ns = self.house.loop.now_ns
        self.statuses[ticket.status] += 1
        if ticket.status == 200:
            self.late += now_ns > ticket.deadline_ns
            self.answered[(now_ns - self.begin_ns) // SECOND] += len(ticket.slots)
            self.by_client[ticket.flow] += len(ticket.slots)
            self.latency_ms.append((now_ns - ticket.arrival_ns) / MS)
        self.house.router.close(ticket)

    def run(self, seconds: float, rate: float, ask: Callable[[int], Any]) -> None:
        """Let `seconds` pass; `ask(number)` is called for each request that is due, `rate` a second."""
        loop = self.house.loop
        begin_ns, number = loop.now_ns, 0
        end_ns = begin_ns + round(seconds * SECOND)
        due_ns = begin_ns if rate else end_ns
        loop.turn()
        self.start()
        while (at_ns := min(due_ns, *self._busy_until_ns.values(), end_ns)) < end_ns:
            loop.advance(at_ns - loop.now_ns)
            for index, until_ns in list(self._busy_until_ns.items()):
                if until_ns <= loop.now_ns:
                    del self._busy_until_ns[index]
                    self.workers[index].finish(loop.now_ns, busy_ns=round(self.service_ms * MS))
            self.house.router.reap()
            while due_ns <= loop.now_ns:
                ask(number)
                number += 1
                due_ns = begin_ns + round(number * SECOND / rate)
            loop.turn()
            self.start()
        loop.advance(end_ns - loop.now_ns)

    def start(self) -> None:
        """Let idle workers begin with the batch that they were sent first."""
        for index, worker in enumerate(self.workers):
            if worker.ring.batches and index not in self._busy_until_ns:
                self._busy_until_ns[index] = self.house.loop.now_ns + round(self.service_ms * MS)
