"""Cascades while workers die at any point: every row answered once, by whom the receipt says, and no slot lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clover.errors import RequestError
from clover.runtime.tickets import CLOSED, DONE, PENDING, Ticket
from tests.unit.router_fixture import MS, FakeWorker, House, dealt

LANES = SMALL, MEDIUM, LARGE = range(3)
NAMES = ("small", "medium", "large")
SLOTS = 24
TORN = -1.0
"""What a worker that dies has made of the outputs it was about to write."""


def answer(number: float, lane: int) -> float:
    """What `lane` says of the row with that number."""
    return 3.0 * number + lane


class Chaos(RuleBasedStateMachine):
    """Up to three workers a variant, batches of up to four rows, two credits each.

    A row carries its number and how unsure the first variants are of it (bit 0: small, bit 1: medium).  A worker that
    dies while it computes has written some rows of its batch: right ones, or torn ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.house = House(slots=SLOTS)
        self.router = self.house.router
        self.staff: list[tuple[FakeWorker, int]] = []
        self.entries: list[Any] = []
        self.asked: list[tuple[Ticket, list[float]]] = []
        self.numbers = 0.0
        self.finished: dict[int, int] = {}
        self.deaths: dict[int, int] = {}
        for lane in LANES:
            for _ in range(2):
                self.hire(lane)

    # --- workers ------------------------------------------------------------------------------------------------------

    def hire(self, lane: int) -> None:
        entry = self.house.entry(lane)
        self.entries.append(entry)
        self.staff.append((entry[0], lane))
        self.route(0.5)

    def route(self, threshold: float) -> None:
        routing = dealt(1.0, 0.0, 0.0, chain=NAMES, thresholds=(threshold, threshold))
        self.router.route([entry for entry in self.entries if entry is not None], routing)

    def dismiss(self, at: int) -> tuple[FakeWorker, int]:
        worker, lane = self.staff.pop(at)
        self.entries = [entry for entry in self.entries if entry[0] is not worker]
        return worker, lane

    def compute(self, worker: FakeWorker, lane: int) -> None:
        """Outputs and scores of the first batch."""
        slab = self.house.slab
        _, slots = worker.ring.batches[0]
        rows = slab.array("input", 0)[slots]
        slab.array("output", 0)[slots] = answer(rows[:, :1], lane)
        unsure = rows[:, 1].astype(int) >> lane & 1 if lane < LARGE else np.zeros(len(slots))
        slab.score[slots] = np.where(unsure, 0.2, 0.8)

    # --- rules --------------------------------------------------------------------------------------------------------

    @rule(unsure=st.lists(st.integers(0, 3), min_size=1, max_size=5), deadline=st.sampled_from([0, 0, 3, 12]))
    def ask(self, unsure: list[int], deadline: int) -> None:
        try:
            ticket = self.router.open(len(unsure))
        except RequestError:
            return  # no room, or nobody there
        numbers = [self.numbers + at for at in range(len(unsure))]
        self.numbers += len(unsure)
        rows = np.array([numbers, unsure], np.float32).T
        self.router.write(ticket, 0, rows)
        self.house.slab.array("output", 0)[ticket.slots] = TORN
        self.asked.append((ticket, numbers))
        try:
            self.router.submit(ticket, self.done, timeout_ns=deadline * MS)  # type: ignore[arg-type]
        except RequestError:
            self.asked.pop()
            self.router.close(ticket)
        self.house.loop.turn()

    def done(self, ticket: Ticket) -> None:
        self.finished[id(ticket)] = self.finished.get(id(ticket), 0) + 1
        numbers = next(numbers for own, numbers in self.asked if own is ticket)
        assert ticket.phase == DONE
        if ticket.status == 200:
            outputs = self.router.read(ticket, 0)
            paths = self.router.receipt(ticket).path
            for row, number in enumerate(numbers):
                assert outputs[row].tolist() == [answer(number, ticket.variants[row])] * 2
                assert not paths or paths[row].rpartition(">")[2] == NAMES[ticket.variants[row]]
        elif ticket.status == 503:
            assert ticket.retry_after_s is None
            assert "two workers that died" in ticket.error
        else:
            assert ticket.status in (500, 504)
        assert (ticket.status == 503) == (self.deaths.get(id(ticket), 0) == 2)

    @precondition(lambda self: any(worker.ring.batches for worker, _ in self.staff))
    @rule(pick=st.integers(0, 99), status=st.sampled_from([0, 0, 0, 0, 1]), reaped=st.booleans())
    def complete(self, pick: int, status: int, reaped: bool) -> None:
        busy = [(worker, lane) for worker, lane in self.staff if worker.ring.batches]
        worker, lane = busy[pick % len(busy)]
        if not status:
            self.compute(worker, lane)
        worker.finish(self.house.loop.now_ns, status)
        if reaped:
            self.router.reap()

    @rule()
    def reap(self) -> None:
        self.router.reap()

    @precondition(lambda self: self.staff)
    @rule(pick=st.integers(0, 99), written=st.integers(0, 4), torn=st.booleans(), untaken=st.integers(0, 2))
    def die(self, pick: int, written: int, torn: bool, untaken: int) -> None:
        worker, lane = self.dismiss(pick % len(self.staff))
        ring = worker.ring
        ring.waiting = min(untaken, len(ring.batches))
        begun = ring.batches[: len(ring.batches) - ring.waiting]
        if begun:
            if not torn:
                self.compute(worker, lane)
            self.house.slab.array("output", 0)[begun[0][1][:written]] += TORN if torn else 0.0
        finished = {number for number, *_ in ring.completions}
        begun_slots = {slot for number, slots in begun if number not in finished for slot in slots}
        for ticket, _ in self.asked:
            if ticket.phase == PENDING and begun_slots & set(ticket.slots):
                self.deaths[id(ticket)] = self.deaths.get(id(ticket), 0) + 1
        self.router.died(worker, "killed")

    @precondition(lambda self: len(self.staff) < 9)
    @rule(lane=st.sampled_from(LANES))
    def respawn(self, lane: int) -> None:
        self.hire(lane)

    @rule(threshold=st.sampled_from([0.1, 0.5, 0.9]))
    def turn_thresholds(self, threshold: float) -> None:
        self.route(threshold)

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 99))
    def close(self, pick: int) -> None:
        """Answered, or a client that went away."""
        ticket, _ = self.asked[pick % len(self.asked)]
        self.router.close(ticket)

    @rule(passed=st.integers(1, 8))
    def pass_time(self, passed: int) -> None:
        self.house.loop.advance(passed * MS)

    # --- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def slots_are_where_they_belong(self) -> None:
        self.house.check_slots()

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(times == 1 for times in self.finished.values())

    @invariant()
    def deaths_count_across_stages(self) -> None:
        for ticket, _ in self.asked:
            if ticket.phase == PENDING:
                assert ticket.deaths == self.deaths.get(id(ticket), 0) < 2

    def teardown(self) -> None:
        """Let everybody work to the end: all are answered, and every slot is free."""
        for lane in LANES:
            self.hire(lane)
        self.router.reap()
        while any(worker.ring.batches for worker, _ in self.staff):
            for worker, lane in self.staff:
                while worker.ring.batches:
                    self.compute(worker, lane)
                    worker.finish(self.house.loop.now_ns)
                    self.router.reap()
        for ticket, _ in self.asked:
            assert ticket.phase in (DONE, CLOSED)
            assert ticket.phase == CLOSED or self.finished[id(ticket)] == 1
            self.router.close(ticket)
        self.house.check_slots()
        assert self.router.idle
        assert self.router.observe()["free_slots"] == SLOTS


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
