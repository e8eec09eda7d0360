"""Rows whose variant loses its worker while they wait: they are answered, or refused as soon as no worker will come."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import RequestError
from clover.families.declaration import MAX_VARIANTS
from clover.runtime.router.tickets import CLOSED, DONE, PENDING, RouterTicket
from clover.types import Declined, PublishedAccuracy, Routing, VariantSpec
from tests.support.examples import examples
from tests.support.router_fixture import MS, SECOND, FakeWorker, House, dealt, family

SMALL, MEDIUM, LARGE = range(3)
PINNED = Declined(why="static:small serves what it serves")
NEVER = 3_600_000 * SECOND
"""A timeout that a client may send, and that nobody lives to see."""


@pytest.fixture
def house() -> House:
    return House(slots=128)


def planned(house: House, *lanes: int) -> list[Any]:
    """Route to a worker of each lane, with a controller that may start others; return the workers."""
    entries = [house.entry(lane) for lane in lanes]
    house.router.route(entries, dealt(1.0, 0.0, 0.0))
    house.router.decline({}, lambda: None)
    return entries


def pin(house: House, *entries: Any) -> None:
    """Route to `entries` alone, as a pin does; afterwards the controller says that no other worker comes."""
    house.router.route(entries, dealt(1.0, 0.0, 0.0))
    house.router.decline({"medium": PINNED, "large": PINNED}, lambda: None)


def finish_all(house: House, worker: FakeWorker) -> None:
    """Let a worker answer whatever it gets."""
    house.loop.turn()
    while worker.ring.batches:
        house.complete(worker)
        house.loop.turn()


@pytest.mark.parametrize("timeout_ns", [0, NEVER])
def test_a_pin_keeps_the_worker_until_the_rows_that_only_it_can_serve_are_answered(
    house: House, timeout_ns: int
) -> None:
    small, large = planned(house, SMALL, LARGE)
    tickets = [house.ask(min_accuracy=88.0, timeout_ns=timeout_ns) for _ in range(30)]
    pin(house, small)
    left: list[str] = []
    house.router.leave(large[0], lambda: left.append("idle"), served=True)
    assert left == []
    finish_all(house, large[0])
    assert Counter(ticket.status for ticket in tickets) == {200: 30}
    assert left == ["idle"]
    assert house.router.idle
    for ticket in house.done:
        house.router.close(ticket)
    house.check_slots()


def test_rows_that_come_after_the_pin_do_not_keep_the_worker(house: House) -> None:
    small, large = planned(house, SMALL, LARGE)
    for _ in range(10):
        house.ask(min_accuracy=88.0)
    house.router.route([small], dealt(1.0, 0.0, 0.0))  # the controller has not said yet that none comes
    left: list[str] = []
    house.router.leave(large[0], lambda: left.append("idle"), served=True)
    for _ in range(40):
        if left:
            break
        house.ask(min_accuracy=88.0)
        house.complete(large[0])
        house.loop.turn()
    assert left == ["idle"]
    answered = Counter(ticket.status for ticket in house.done)[200]
    assert 10 <= answered <= 10 + 2 * house.spec.max_batch
    house.router.decline({"large": PINNED}, lambda: None)
    assert {ticket.status for ticket in house.done} == {200, 503}
    assert house.router.idle


def test_rows_that_another_worker_may_serve_move_to_it_at_once(house: House) -> None:
    small, medium, large = planned(house, SMALL, MEDIUM, LARGE)
    for _ in range(10):
        house.ask(min_accuracy=88.0)
    more = house.entry(LARGE)
    left: list[str] = []
    house.router.route([small, medium, more], dealt(1.0, 0.0, 0.0))
    house.router.leave(large[0], lambda: left.append("idle"), served=True)
    house.complete(large[0])
    house.complete(large[0])
    assert left == ["idle"], "it holds no more than its credits"
    finish_all(house, more[0])
    assert [ticket.status for ticket in house.done] == [200] * 10


def test_if_the_worker_dies_the_rows_are_refused_the_moment_that_none_comes(house: House) -> None:
    small, large = planned(house, SMALL, LARGE)
    tickets = [house.ask(min_accuracy=88.0, timeout_ns=NEVER) for _ in range(10)]
    other = house.ask()
    pin(house, small)
    house.router.died(large[0], "killed")
    assert Counter(ticket.status for ticket in tickets) == {503: 10}
    assert {ticket.error for ticket in tickets} == {PINNED.why}
    assert other.status == 0
    assert house.router.demand.report(house.loop.now_ns)["large"].refused == 10
    assert house.router.demand.waiting == 0
    for ticket in tickets:
        house.router.close(ticket)
    house.check_slots()


def test_if_the_worker_dies_and_one_may_come_rows_wait_no_longer_than_others(house: House) -> None:
    _, large = planned(house, SMALL, LARGE)
    tickets = [house.ask(min_accuracy=88.0, timeout_ns=NEVER) for _ in range(3)]
    house.router.died(large[0], "killed", blame=False)
    assert house.router.demand.waiting == 3
    house.loop.advance(31 * SECOND)
    assert [ticket.status for ticket in tickets] == [504] * 3


def test_rows_wait_while_their_worker_is_restarted_whatever_else_is_known(house: House) -> None:
    _, large = planned(house, SMALL, LARGE)
    ticket = house.ask(min_accuracy=88.0, timeout_ns=NEVER)
    house.router.decline({"large": PINNED}, lambda: None)
    house.router.expect_workers([LARGE])
    house.router.died(large[0], "killed", blame=False)
    house.loop.advance(40 * SECOND)
    assert ticket.status == 0
    house.router.expect_workers([SMALL])  # its restart failed too often
    house.loop.turn()
    assert (ticket.status, ticket.error) == (503, PINNED.why)


def test_rows_wait_for_the_last_of_as_many_variants_as_there_may_be() -> None:
    best = MAX_VARIANTS - 1
    accuracies = [PublishedAccuracy(value=30.0 + at, metric="top1", source="a paper") for at in range(MAX_VARIANTS)]
    variants = tuple(
        VariantSpec(name=f"v{at}", loader="m:f", accuracy=accuracy) for at, accuracy in enumerate(accuracies)
    )
    house = House(family(variants=variants))
    least, last = house.entry(0), house.entry(best)
    house.router.route([least, last], Routing(shares={"v0": 1.0}))
    ticket = house.ask(min_accuracy=30.0 + best)
    house.router.expect_workers([best])
    house.router.died(last[0], "killed", blame=False)
    house.loop.turn()
    assert (ticket.status, house.router.hold) == (0, True)
    entry = house.entry(best)
    house.router.join(entry)
    house.router.expect_workers([])
    finish_all(house, entry[0])
    assert (ticket.status, ticket.variants) == (200, [best])


def test_a_worker_that_is_there_in_time_serves_them(house: House) -> None:
    _, large = planned(house, SMALL, LARGE)
    ticket = house.ask(min_accuracy=88.0)
    house.router.expect_workers([LARGE])
    house.router.died(large[0], "killed", blame=False)
    house.router.expect_workers([])  # it is ready, and joins before the turn ends
    entry = house.entry(LARGE)
    house.router.join(entry)
    finish_all(house, entry[0])
    assert ticket.status == 200


def test_a_failed_batch_of_a_worker_that_has_left_is_not_forgotten(house: House) -> None:
    small, large = planned(house, SMALL, LARGE)
    first = house.ask(min_accuracy=88.0, turn=False, timeout_ns=NEVER)
    second = house.ask(min_accuracy=88.0, timeout_ns=NEVER)
    assert len(large[0].ring.batches[0][1]) == 2
    pin(house, small)
    house.router.leave(large[0], lambda: None, served=True)
    house.complete(large[0], status=1)  # each of them shall be tried alone, and there is no one to try it
    house.loop.turn()
    assert (first.status, second.status) == (503, 503)


def test_an_escalated_row_keeps_its_answer_if_the_next_variant_dies(house: House) -> None:
    small, large = house.entry(SMALL), house.entry(LARGE)
    routing = dealt(1.0, 0.0, 0.0, chain=("small", "large"), thresholds=(0.5,))
    house.router.route([small, large], routing)
    house.router.decline({}, lambda: None)
    for _ in range(12):
        house.ask(timeout_ns=NEVER)
    house.slab.score[:] = 0.0
    finish_all(house, small[0])
    assert house.done == []  # all were escalated
    house.router.route([small], dealt(1.0, 0.0, 0.0))
    house.router.died(large[0], "killed", blame=False)
    finish_all(house, small[0])
    assert [ticket.status for ticket in house.done] == [200] * 12
    assert {ticket.variants[0] for ticket in house.done} == {SMALL}


def test_once_the_server_stops_no_row_waits_for_a_worker_that_is_not_there(house: House) -> None:
    _, large = planned(house, SMALL, LARGE)
    waiting = [house.ask(min_accuracy=84.0, timeout_ns=NEVER) for _ in range(3)]
    house.router.died(large[0], "killed", blame=False)
    plain = house.ask(timeout_ns=NEVER)
    house.router.died(house.workers[SMALL], "killed", blame=False)
    assert {ticket.status for ticket in (*waiting, plain)} == {0}
    house.router.decline_stranded("the server is shutting down")
    assert [(ticket.status, ticket.error) for ticket in (*waiting, plain)] == [(503, "the server is shutting down")] * 4
    assert house.router.idle


def test_a_worker_that_hangs_is_not_waited_for(house: House) -> None:
    small, large = planned(house, SMALL, LARGE)
    tickets = [house.ask(min_accuracy=88.0, timeout_ns=NEVER) for _ in range(10)]
    pin(house, small)
    house.router.leave(large[0], lambda: None, served=True)
    house.loop.advance(10 * SECOND)
    assert house.router.silent(SECOND) == [large[0]]
    house.router.leave(large[0], lambda: None)  # it is killed
    assert Counter(ticket.status for ticket in tickets) == {503: 8, 0: 2}
    house.router.died(large[0], "killed")
    assert Counter(ticket.status for ticket in tickets) == {503: 10}


def test_a_client_that_goes_away_does_not_keep_the_worker(house: House) -> None:
    small, large = planned(house, SMALL, LARGE)
    tickets = [house.ask(min_accuracy=88.0, timeout_ns=NEVER) for _ in range(3)]
    house.router.route([small], dealt(1.0, 0.0, 0.0))
    left: list[str] = []
    house.router.leave(large[0], lambda: left.append("idle"), served=True)
    house.router.close(tickets[2])  # the other two are with the worker
    house.loop.turn()
    assert not house.router.state.lanes.leaving
    finish_all(house, large[0])
    assert left == ["idle"]
    assert [ticket.status for ticket in tickets] == [200, 200, 0]


STEPS = ("ask", "ask accurate", "pin", "swap", "demand", "complete", "die", "restart", "close", "time", "freeze")


class Operators:
    """Pins, swaps, deaths, restarts and clients in any order.  `allowed`: the lanes that the controller may bring."""

    def __init__(self) -> None:
        self.house = House(slots=64)
        self.router = self.house.router
        self.entries: list[Any] = []
        self.leaving: list[tuple[FakeWorker, list[str]]] = []
        self.asked: list[RouterTicket] = []
        self.restarting: set[int] = set()
        self.change([SMALL, LARGE], frozen=False)

    def change(self, lanes: list[int], *, frozen: bool) -> None:
        """Let exactly `lanes` have a worker, as a transition does, and say what comes after it."""
        kept = [entry for entry in self.entries if entry[1] in lanes]
        new = [self.house.entry(lane) for lane in lanes if lane not in {entry[1] for entry in kept}]
        gone = [entry for entry in self.entries if entry not in kept]
        self.entries = [*kept, *new]
        self.restarting.clear()
        self.router.expect_workers([])
        self.router.route(self.entries, dealt(1.0, 0.0, 0.0))
        for worker, *_ in gone:
            idle: list[str] = []
            self.leaving.append((worker, idle))
            self.router.leave(worker, lambda idle=idle: idle.append("idle"), served=True)
        self.say(frozen=frozen)

    def say(self, *, frozen: bool) -> None:
        best = max((entry[1] for entry in self.entries), default=-1)
        names = ("small", "medium", "large")
        self.router.decline({name: PINNED for lane, name in enumerate(names) if frozen and lane > best}, lambda: None)

    def step(self, what: str, number: int) -> None:
        house = self.house
        if what.startswith("ask"):
            floor = (0.0, 84.0, 88.0)[number % 3] if "accurate" in what else 0.0
            try:
                ticket = self.router.open(1 + number % 5)
            except RequestError:
                return
            try:
                timeout_ns = (0, 50 * MS, NEVER)[number % 3]
                self.router.submit(ticket, house.done.append, timeout_ns, floor)  # type: ignore[arg-type]
                self.asked.append(ticket)
            except RequestError:
                self.router.close(ticket)
        elif what == "pin":
            self.change([number % 3], frozen=True)
        elif what == "swap":
            self.change(sorted({number % 3, (number // 3) % 3}), frozen=False)
        elif what == "demand":
            self.change(sorted({*(entry[1] for entry in self.entries), LARGE}), frozen=False)
        elif what == "freeze":
            self.say(frozen=bool(number % 2))
        elif what == "complete":
            busy = [worker for worker in house.workers if worker.ring.batches]
            if busy:
                house.complete(busy[number % len(busy)], status=number % 7 == 0)
        elif what == "die" and self.entries:
            worker, lane, *_ = self.entries.pop(number % len(self.entries))
            worker.ring.batches.clear()
            self.restarting.add(lane)
            self.router.expect_workers(self.restarting)
            self.router.died(worker, "killed")
        elif what == "restart" and self.restarting:
            lane = self.restarting.pop()
            self.router.expect_workers(self.restarting)
            if number % 3:
                entry = house.entry(lane)
                self.entries.append(entry)
                self.router.join(entry)
        elif what == "close" and self.asked:
            self.router.close(self.asked[number % len(self.asked)])
        elif what == "time":
            house.loop.advance(number * 20 * MS)
        house.loop.turn()

    def check(self) -> None:
        """No row waits for a lane that has no worker if none that may serve it comes."""
        self.house.check_slots()
        lanes, table = self.router.state.lanes, self.router.state.table
        for slot, ticket in table.list_queued():
            lane = ticket.variants[ticket.slots.index(slot)]
            assert ticket.phase == PENDING
            if not lanes.staffed >> lane & 1 and not self.router.state.coming & lanes.able(ticket.min_accuracy):
                declined = self.router.demand.declined(ticket.awaits)
                assert declined is None, "none comes, and it waits"
                assert ticket.deadline_ns <= self.house.loop.now_ns + self.router.state.timeout_ns
        waiting = sum(len(ticket.slots) for ticket in self.asked if ticket.awaits >= 0 and ticket.phase == PENDING)
        assert self.router.demand.waiting == waiting

    def end(self) -> None:
        """The workers that are there answer all they get: then everything is answered or refused, within a timeout,
        whatever the client's own was, and nobody who left is waited for."""
        self.restarting.clear()
        self.router.expect_workers([])
        self.say(frozen=True)
        for _ in range(2):
            self.house.loop.turn()
            while busy := [worker for worker in self.house.workers if worker.ring.batches]:
                for worker in busy:
                    self.house.complete(worker)
                self.house.loop.turn()
            self.check()
            self.house.loop.advance(self.router.state.timeout_ns + SECOND)
        for ticket in self.asked:
            assert ticket.phase in (DONE, CLOSED)
            self.router.close(ticket)
        assert all(idle == ["idle"] for _, idle in self.leaving)
        self.house.check_slots()
        assert self.router.idle
        assert self.router.observe()["free_slots"] == 64


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 20)), max_size=60))
def test_whatever_is_pinned_every_row_is_answered_or_refused(steps: list[tuple[str, int]]) -> None:
    operators = Operators()
    for what, number in steps:
        operators.step(what, number)
        operators.check()
    operators.end()
