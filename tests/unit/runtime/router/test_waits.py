"""Rows that wait for company wait no longer than they may, nor for nobody, whatever happens meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import RequestError
from clover.runtime.router.tickets import PENDING, RouterTicket
from tests.support.examples import examples
from tests.support.router_fixture import MS, FakeWorker, House, dealt

SMALL, MEDIUM, LARGE = range(3)
TICKS_NS = 2 * MS
"""How much later than they end the loop may notice the end of waits."""


def waiting(*lanes: int, **wait_ms: float) -> tuple[House, list[FakeWorker]]:
    """A house with a worker of each lane, to which all rows go in turn, and which wait so long."""
    house = House(slots=64)
    entries = [house.entry(lane) for lane in lanes]
    shares = [float(lane in lanes) for lane in range(3)]
    house.router.route(entries, dealt(*shares, wait_ms=wait_ms))
    return house, [entry[0] for entry in entries]


def in_turn(house: House, worker: FakeWorker, clients: int, times: int = 40) -> None:
    """Let clients send their next request when all were answered, until it is known that no other one comes."""
    for _ in range(times):
        tickets = [house.ask() for _ in range(clients)]
        house.loop.advance(60 * MS)
        while worker.ring.batches:
            house.complete(worker)
        for ticket in tickets:
            house.router.close(ticket)
    house.done.clear()


def test_a_client_that_hangs_up_wakes_those_that_wait_for_its_like() -> None:
    house, (worker,) = waiting(SMALL, small=50.0)
    in_turn(house, worker, 1)
    first = house.ask()
    assert len(worker.ring.batches) == 1, "alone, it is known that no other comes"
    second, third = house.ask(turn=False), house.ask(turn=False)
    house.loop.turn()
    assert len(worker.ring.batches) == 1, "with more here, others may come"
    house.router.close(first)
    house.router.close(second)
    house.loop.turn()
    assert [slots for _, slots in worker.ring.batches][1:] == [third.slots]


@pytest.mark.parametrize("how", ["drained", "routed away", "swapped"])
def test_rows_of_a_lane_that_is_left_wait_for_no_company(how: str) -> None:
    house, (_, large) = waiting(SMALL, LARGE, large=1000.0)
    ticket = house.ask(min_accuracy=88.0)
    assert large.ring.batches == [], "others may come"
    entries = house.router.state.lanes.entries()
    if how != "drained":
        coming = [house.entry(LARGE)] if how == "swapped" else []
        house.router.route([entries[0], *coming], dealt(1.0, 0.0, 0.0, wait_ms={"large": 1000.0}))
    left: list[str] = []
    house.router.leave(large, lambda: left.append("idle"), served=True)  # type: ignore[arg-type]
    if how == "swapped":
        assert house.workers[2].ring.batches == [], "the other worker has the row now, and others come to it"
        house.loop.advance(1002 * MS)
        house.complete(house.workers[2])
    else:
        house.complete(large)
    assert ticket.status == 200
    assert left == ["idle"]
    house.router.route([house.entry(LARGE)], dealt(0.0, 0.0, 1.0, wait_ms={"large": 1000.0}))
    house.ask(min_accuracy=88.0)
    assert house.workers[-1].ring.batches == [], "a lane that is there again has its wait again"


def test_a_row_waits_for_no_company_if_a_batch_would_then_come_too_late() -> None:
    house, (worker,) = waiting(SMALL, small=50.0)
    for _ in range(8):
        for _ in range(2):
            house.ask(2)  # the second one fills the batch
        house.loop.advance(20 * MS)
        house.complete(worker)
    assert house.router.state.lanes.paces[SMALL].least_ns == 20 * MS
    house.router.close(house.ask(timeout_ns=75 * MS))
    assert worker.ring.batches == [], "others may come in time"
    ticket = house.ask(timeout_ns=65 * MS)
    assert len(worker.ring.batches) == 1
    house.loop.advance(20 * MS)
    house.complete(worker)
    assert ticket.status == 200


STEPS = ("ask", "ask", "ask", "close", "complete", "complete", "time", "time", "swap", "die", "drain", "turn the knobs")


class Waits:
    """Requests, clients that hang up, workers that come, go and die, and waits that change, in any order."""

    def __init__(self) -> None:
        self.house = House(slots=32)
        self.router = self.house.router
        self.entries: list[Any] = []
        self.asked: list[RouterTicket] = []
        self.wait_ms = {"small": 4.0, "large": 20.0}
        self.longest_ms = 20.0
        self.route([SMALL, LARGE])

    def route(self, lanes: list[int]) -> None:
        kept = [entry for entry in self.entries if entry[1] in lanes]
        gone = [entry for entry in self.entries if entry[1] not in lanes]
        self.entries = [*kept, *(self.house.entry(lane) for lane in lanes if lane not in {one[1] for one in kept})]
        self.router.route(self.entries, dealt(0.5, 0.2, 0.3, wait_ms=self.wait_ms))
        for entry in gone:
            self.router.leave(entry[0], lambda: None, served=True)

    def step(self, what: str, number: int) -> None:
        house = self.house
        if what == "ask":
            try:
                ticket = self.router.open(1 + number % 3, number % 4)
            except RequestError:
                return
            try:
                timeout_ns = (0, 8 * MS, 60 * MS)[number % 3]
                self.router.submit(ticket, house.done.append, timeout_ns, 88.0 * (number % 5 == 0))
                self.asked.append(ticket)
            except RequestError:
                self.router.close(ticket)
        elif what == "close" and self.asked:
            self.router.close(self.asked.pop(number % len(self.asked)))
        elif what == "complete":
            busy = [worker for worker in house.workers if worker.ring.batches]
            if busy:
                house.complete(busy[number % len(busy)], status=number % 9 == 0)
        elif what == "time":
            house.loop.advance((number % 30) * MS // 3)
        elif what == "swap":
            self.route(sorted({number % 3, (number // 3) % 3}))
        elif what == "drain" and self.entries:
            self.router.leave(self.entries.pop(number % len(self.entries))[0], lambda: None, served=True)
        elif what == "die" and self.entries:
            entry = self.entries.pop(number % len(self.entries))
            self.router.expect_workers([entry[1]])
            self.router.died(entry[0], "killed")
            entry[0].ring.batches.clear()
            self.entries.append(house.entry(entry[1]))
            self.router.join(self.entries[-1])
            self.router.expect_workers([])
        elif what == "turn the knobs":
            self.wait_ms = {"small": float(number % 7), "medium": float(number % 3), "large": float(number % 20)}
            self.route([entry[1] for entry in self.entries])
        house.loop.turn()
        self.check()

    def check(self) -> None:
        """No row waits without need for a worker that could take it."""
        house, state = self.house, self.router.state
        house.check_slots()
        lanes, now_ns = state.lanes, house.loop.now_ns
        for slot, ticket in state.table.list_queued():
            lane = ticket.variants[ticket.row_of(slot)]
            free = [link for link in lanes.links if link.attached and link.lane == lane and link.process.held < 2]
            if free:
                name = house.spec.variants[lane].name
                assert lanes.live >> lane & 1, "nobody comes to it any more"
                assert now_ns - ticket.submit_ns < int(self.wait_ms.get(name, 0.0) * 1e6) + TICKS_NS
                assert state.company.here > 0


@settings(max_examples=examples(80))
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 999)), max_size=50))
def test_no_row_waits_longer_than_it_may_for_a_worker_that_could_take_it(steps: list[tuple[str, int]]) -> None:
    waits = Waits()
    for what, number in steps:
        waits.step(what, number)
    waits.house.loop.advance(31_000 * MS)
    for _ in range(40):
        for worker in waits.house.workers:
            if worker.ring.batches and waits.router.state.lanes.find(worker) is not None:  # type: ignore[arg-type]
                waits.house.complete(worker)
        waits.house.loop.turn()
    assert not [ticket for ticket in waits.asked if ticket.phase == PENDING]
    assert waits.router.state.company.here == 0
    for ticket in waits.asked:
        waits.router.close(ticket)
    waits.house.check_slots()
