"""Cascades while workers die at any point: every row answered once, by whom the receipt says, and no slot lost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.accounting import WorkerMeter
from clover.config import TenantConfig
from clover.errors import RequestError
from clover.runtime.router.tickets import CLOSED, DONE, PENDING, RouterTicket
from clover.tenants import Tenant, Tenants
from tests.support.examples import examples
from tests.support.router_fixture import MS, FakeWorker, House, dealt

LANES = SMALL, MEDIUM, LARGE = range(3)
ANY = -1
NAMES = ("small", "medium", "large")
SLOTS = 24
TORN = -1.0
"""What a worker that dies has made of the outputs it was about to write."""


TENANTS = Tenants([TenantConfig(name="a", token="t"), TenantConfig(name="b", token="u", priority=3)]).all()


def name_of(tenant: Tenant | None) -> str:
    """Return the name under which a tenant's rows are counted."""
    return tenant.name if tenant is not None else ""


def answer(number: float, lane: int) -> float:
    """What `lane` says of the row with that number."""
    return 3.0 * number + lane


class Chaos:
    """A few workers a variant, batches of up to four rows, two credits each; what happens is drawn from `rng`.

    Workers that are `shared` hold all variants and serve some of them, which change: their lane in `staff` is ANY.

    A row carries its number and how unsure the first variants are of it (bit 0: small, bit 1: medium).  A worker that
    dies while it computes has written some rows of its batch: right ones, or torn ones.  `tenants` are those that send
    rows; None is whoever is none.
    """

    def __init__(self, tenants: tuple[Tenant | None, ...] = (None,), shared: bool = False) -> None:
        self.tenants = tenants
        self.shared = shared
        self.outcomes: Counter[tuple[str, int]] = Counter()
        self.rng = random.Random()
        self.house = House(slots=SLOTS)
        self.router = self.house.router
        self.staff: list[tuple[FakeWorker, int]] = []
        self.entries: list[Any] = []
        self.asked: list[tuple[RouterTicket, list[float]]] = []
        self.numbers = 0.0
        self.finished: dict[int, int] = {}
        self.faults: list[AssertionError] = []
        self.left: list[FakeWorker] = []
        self.deaths: dict[int, int] = {}
        self.meters: list[WorkerMeter] = []
        for lane in LANES:
            self.hire(ANY if shared else lane)

    def step(self, what: str, seed: int) -> None:
        """Let `what` happen."""
        self.rng = random.Random(seed)
        getattr(self, what)()
        self.check()

    # --- workers ------------------------------------------------------------------------------------------------------

    def hire(self, lane: int) -> None:
        self.entry(lane)
        self.route(0.5)

    def entry(self, lane: int) -> Any:
        if lane == ANY:
            entries = self.house.shared(*self.rng.sample(LANES, self.rng.randint(1, 3)))
        else:
            entries = [self.house.entry(lane)]
        self.entries += entries
        self.staff.append((entries[0][0], lane))
        self.meters += [entry[3] for entry in entries]
        return entries

    def route(self, threshold: float) -> None:
        routing = dealt(1.0, 0.0, 0.0, chain=NAMES, thresholds=(threshold, threshold))
        self.router.route(self.entries, routing)

    @staticmethod
    def lane_of(worker: FakeWorker, lane: int) -> int:
        """The lane of the worker's first batch, as its ring names it."""
        place = worker.ring.lanes[worker.ring.batches[0][0]]
        return LARGE - place if lane == ANY else lane

    def compute(self, worker: FakeWorker, lane: int) -> None:
        """Outputs and scores of the first batch."""
        slab = self.house.slab
        lane = self.lane_of(worker, lane)
        _, slots = worker.ring.batches[0]
        rows = slab.array("input", 0)[slots]
        slab.array("output", 0)[slots] = answer(rows[:, :1], lane)
        unsure = rows[:, 1].astype(int) >> lane & 1 if lane < LARGE else np.zeros(len(slots))
        slab.score[slots] = np.where(unsure, 0.2, 0.8)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def ask(self) -> None:
        unsure = [self.rng.choice((3, 3, 3, 1, 2, 0)) for _ in range(self.rng.randint(1, 5))]
        tenant = self.rng.choice(self.tenants)
        try:
            ticket = self.router.open(len(unsure), 0, 0, tenant)
        except RequestError as error:
            self.outcomes[name_of(tenant), error.status] += 1
            return  # no room, or nobody there
        numbers = [self.numbers + at for at in range(len(unsure))]
        self.numbers += len(unsure)
        self.router.write(ticket, 0, np.array([numbers, unsure], np.float32).T)
        self.house.slab.array("output", 0)[ticket.slots] = TORN
        self.asked.append((ticket, numbers))
        timeout_ns = self.rng.choice((0, 3, 12)) * MS
        try:
            self.router.submit(ticket, self.done, timeout_ns=timeout_ns)  # type: ignore[arg-type]
        except RequestError as error:  # it would come too late, or never: nothing of it is queued
            self.outcomes[name_of(tenant), error.status] += 1
            self.asked.pop()
            self.router.close(ticket)
        self.house.loop.turn()

    def done(self, ticket: RouterTicket) -> None:
        """The router logs what a callback raises, and goes on."""
        self.finished[id(ticket)] = self.finished.get(id(ticket), 0) + 1
        self.outcomes[name_of(ticket.tenant), ticket.status] += 1
        try:
            self.judge(ticket)
        except AssertionError as fault:
            self.faults.append(fault)

    def judge(self, ticket: RouterTicket) -> None:
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
        if ticket.status != 500:  # one that failed before the router heard of the second death, which is counted here
            assert (ticket.status == 503) == (self.deaths.get(id(ticket), 0) == 2)

    def complete(self) -> None:
        """Any worker completes its batch, or its model fails; the router sees it at once, or later."""
        busy = [(worker, lane) for worker, lane in self.staff if worker.ring.batches]
        if busy:
            worker, lane = self.rng.choice(busy)
            failed = self.rng.random() < 0.15
            if not failed:
                self.compute(worker, lane)
            worker.finish(self.house.loop.now_ns, int(failed))
            if self.rng.random() < 0.8:
                self.router.reap()

    def die(self) -> None:
        """Any worker; rather one that holds rows which were answered before.  Another one is there already, or not."""
        later = [at for at, (worker, lane) in enumerate(self.staff) if worker.ring.batches and lane > SMALL]
        at = self.rng.choice(later or range(len(self.staff))) if self.staff else -1
        if at < 0:
            return
        worker, lane = self.staff.pop(at)
        self.entries = [entry for entry in self.entries if entry[0] is not worker]
        ring = worker.ring
        ring.waiting = min(self.rng.choice((0, 0, 1, 2)), len(ring.batches))
        begun = ring.batches[: len(ring.batches) - ring.waiting]
        if begun:
            slots = begun[0][1]
            if self.rng.random() < 0.5:
                self.compute(worker, lane)
            else:
                self.house.slab.array("output", 0)[slots[: self.rng.randint(0, 4)]] = TORN
        held = {slot for _, slots in begun for slot in slots}
        blame = self.rng.random() < 0.8  # else its GPU was lost, say: no row can have caused it
        for ticket, _ in self.asked:
            if blame and ticket.phase == PENDING and held & set(ticket.slots):
                self.deaths[id(ticket)] = self.deaths.get(id(ticket), 0) + 1
        if self.rng.random() < 0.6:
            for entry in self.entry(lane):
                self.router.join(entry)
        ring.batches.clear()
        self.router.died(worker, "killed", blame=blame)

    def leave(self) -> None:
        """A worker is drained: no new batch, and it ends what it has (or dies over it)."""
        staying = [worker for worker, _ in self.staff if any(entry[0] is worker for entry in self.entries)]
        if staying:
            worker = self.rng.choice(staying)
            self.entries = [entry for entry in self.entries if entry[0] is not worker]
            self.router.leave(worker, lambda: self.left.append(worker))

    def swap(self) -> None:
        """A worker serves other variants of those that it holds, beside or in place of those that it serves."""
        shared = [worker for worker, lane in self.staff if lane == ANY and worker not in self.left]
        if not shared:
            return
        worker = self.rng.choice(shared)
        old = [entry for entry in self.entries if entry[0] is worker]
        if not old:
            return  # it is on its way out
        kept = self.rng.sample(old, self.rng.randint(0, len(old)))
        lanes = [lane for lane in LANES if lane not in [entry[1] for entry in kept]]
        lanes = self.rng.sample(lanes, self.rng.randint(not kept, len(lanes)))
        new = self.house.shared(*lanes) if lanes else []
        self.meters += [entry[3] for entry in new]
        kept += [(worker, *entry[1:]) for entry in new]
        self.entries = [entry for entry in self.entries if entry[0] is not worker] + kept
        if self.rng.random() < 0.3:
            self.router.leave(worker, lambda: None, served=True, lane=old[0][1])  # and comes back, maybe
        self.route(0.5)

    def audited(self) -> None:
        """Some worker answers audits of a variant, or none does."""
        shared = [entry for entry in self.entries if entry[0].resident]
        entries = self.house.shared(self.rng.choice(LANES)) if shared and self.rng.random() < 0.7 else []
        if entries:
            self.meters.append(entries[0][3])
        self.router.set_background([(self.rng.choice(shared)[0], *entry[1:]) for entry in entries])

    def respawn(self) -> None:
        if len(self.staff) < 5:
            self.hire(ANY if self.shared and self.rng.random() < 0.7 else self.rng.choice(LANES))

    def turn_thresholds(self) -> None:
        self.route(self.rng.choice((0.1, 0.5, 0.9)))

    def close(self) -> None:
        """Answered, or a client that went away."""
        if self.asked:
            ticket = self.rng.choice(self.asked)[0]
            # One that has ended, and whose callback has yet to be called, is counted as what it ended with.
            status = 499 if ticket.phase == PENDING else ticket.status if id(ticket) not in self.finished else 0
            if status and ticket.phase != CLOSED:
                self.outcomes[name_of(ticket.tenant), status] += 1
            self.router.close(ticket)

    def close_answered(self) -> None:
        for ticket, _ in self.asked:
            if ticket.phase == DONE:
                self.router.close(ticket)

    def pass_time(self) -> None:
        self.house.loop.advance(self.rng.randint(1, 8) * MS)

    # --- always -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        if self.faults:
            raise self.faults[0]
        assert not any(worker.ring.batches for worker in self.left), "told that it is idle, and is not"
        assert len(self.left) == len({worker.pid for worker in self.left})
        self.house.check_slots()
        assert all(times == 1 for times in self.finished.values()), "answered twice"
        for ticket, _ in self.asked:
            if ticket.phase == PENDING:
                assert ticket.deaths == self.deaths.get(id(ticket), 0) < 2, "deaths count across stages"

    def end(self) -> None:
        """Let everybody work to the end: all are answered, and every slot is free."""
        for lane in LANES:
            self.hire(lane)
        self.router.set_background([])
        self.work()
        self.close_answered()
        failed = sum(len(ticket.slots) for ticket, _ in self.asked if ticket.status != 200)
        for lane in LANES:  # meters hear of what was withdrawn with the next batch of its lane
            self.router.route(self.entries, dealt(*(float(lane == other) for other in LANES)))
            for _ in range(failed // 4 + 1):
                self.house.ask(4, client=1)
                self.work()
                self.router.close(self.house.done[-1])
        answered = sum(len(ticket.slots) for ticket, _ in self.asked if ticket.status == 200)
        answered += sum(len(ticket.variants) for ticket in self.house.done)
        assert sum(meter.window_useful - meter.window_gone_on for meter in self.meters) == answered, "rows served"
        for ticket, _ in self.asked:
            assert ticket.phase in (DONE, CLOSED)
            assert ticket.phase == CLOSED or self.finished[id(ticket)] == 1
            self.router.close(ticket)
        self.check()
        assert self.router.idle
        assert self.router.observe()["free_slots"] == SLOTS
        self.check_tenants()

    def check_tenants(self) -> None:
        """Each tenant has what it sent, on whichever workers, and the sums are the model's."""
        traffic = self.router.traffic
        found = traffic.by_tenant()
        own = [ticket for ticket in self.house.done if ticket.tenant is None]
        self.outcomes["", 200] += len(own)
        for name, totals in found.items():
            mine = {status: count for (whose, status), count in self.outcomes.items() if whose == name and count}
            assert dict(totals.requests) == mine, name
        if None not in self.tenants:
            assert sum(found[""].rows.values()) == sum(len(ticket.variants) for ticket in own)
        by_meters: Counter[tuple[str, str]] = Counter()
        for key, usage in self.house.account.usage.items():  # those that kept an answer
            by_meters[key.tenant, key.variant] += usage.rows
        for meter in self.meters:
            rows, by_tenant = meter.collect_answered()
            for name, count in (*by_tenant.items(), ("", rows - sum(by_tenant.values()))):
                by_meters[name, meter.variant] += count
        for name, totals in found.items():
            assert {variant: by_meters[name, variant] for variant in NAMES} == dict(totals.rows), name

    def work(self) -> None:
        """Let the workers complete all that they get."""
        self.router.reap()
        while any(worker.ring.batches for worker, _ in self.staff):
            for worker, lane in self.staff:
                while worker.ring.batches:
                    self.compute(worker, lane)
                    worker.finish(self.house.loop.now_ns)
                    self.router.reap()


WEIGHTS = {
    "ask": 6,
    "complete": 8,
    "die": 3,
    "leave": 1,
    "respawn": 1,
    "turn_thresholds": 1,
    "close": 1,
    "close_answered": 2,
    "pass_time": 2,
}
STEPS = [what for what, weight in WEIGHTS.items() for _ in range(weight)]


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16)), min_size=20, max_size=120),
    st.sampled_from([(None,), TENANTS, (None, *TENANTS)]),
)
def test_whatever_dies_rows_are_answered_once_and_right(
    steps: list[tuple[str, int]], tenants: tuple[Tenant | None, ...]
) -> None:
    chaos = Chaos(tenants)
    for what, seed in steps:
        chaos.step(what, seed)
    chaos.end()


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*STEPS, *["swap"] * 6, "audited"]), st.integers(0, 1 << 16)), max_size=120))
def test_whatever_variants_workers_share_rows_are_answered_once_and_right(steps: list[tuple[str, int]]) -> None:
    chaos = Chaos(shared=True)
    for what, seed in steps:
        chaos.step(what, seed)
    chaos.end()
