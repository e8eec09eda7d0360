"""Rows of batch jobs: on workers that have nothing else to do, and out of sight of all that is counted of clients."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.config import TenantConfig
from clover.errors import BadRequest, Overloaded, TooLarge, Unavailable
from clover.planning.model.queueing import Service
from clover.runtime.memory.slab import NO_MEMORY
from clover.runtime.router.tickets import FLYING, FREE, RouterTicket
from clover.runtime.router.waiting import PART, BatchPace, SpareTime
from clover.tenants import Tenant
from clover.types import Receipt
from tests.support.router_fixture import MS, SECOND, FakeWorker, House

SMALL, MEDIUM, LARGE = range(3)
ROW_MS = 1.0
SLO_MS = 20.0


@dataclass
class Finished:
    status: int
    error: str
    receipt: Receipt | None
    outputs: list[list[float]]


class WaitingHouse(House):
    """A house whose workers take `ROW_MS` a row by the profile, and whose SLO is `SLO_MS`."""

    def __init__(self, slots: int = 64, slo_ms: float = SLO_MS, **more: Any) -> None:
        super().__init__(slots=slots, **more)
        self.slo_ms = slo_ms
        service = Service((1, 4), (ROW_MS, 4 * ROW_MS), (1.0, 1.0))
        self.spare = SpareTime(self.router, lambda variant, shape: service, lambda: self.slo_ms, self.loop)  # type: ignore[arg-type]
        self.spare.on = True
        self.answers: list[Finished] = []
        self.hungry = 0

    def wait(self, rows: int = 1, turn: bool = True, tenant: Tenant | None = None, **how: Any) -> RouterTicket:
        ticket = self.spare.open(rows, tenant=tenant)
        for slot in ticket.slots:
            self.inputs += 1
            self.slab.input(0)[slot] = (self.inputs, 0.0)
            self.slab.output(0)[slot] = (self.inputs, 1.0)
        try:
            self.spare.submit(ticket, self.keep, **how)
        except BadRequest:
            self.spare.close(ticket)
            raise
        if turn:
            self.loop.turn()
        return ticket

    def keep(self, ticket: RouterTicket) -> None:
        good = ticket.status == 200
        receipt = self.spare.receipt(ticket) if good else None
        outputs = self.spare.read(ticket, 0).tolist() if good else []  # type: ignore[union-attr]
        self.answers.append(Finished(ticket.status, ticket.error, receipt, outputs))
        self.spare.close(ticket)

    def finish(self, worker: FakeWorker, status: int = 0, busy_ns: int = MS) -> None:
        self.loop.now_ns += busy_ns
        worker.finish(self.loop.now_ns, status, busy_ns)
        self.router.reap()
        while self.loop.soon:
            self.loop.turn()

    def settle(self) -> None:
        """Let workers compute until nothing is left."""
        for _ in range(1000):
            busy = [worker for worker in self.workers if worker.ring.batches]
            if not busy:
                return
            for worker in busy:
                self.finish(worker)
        raise AssertionError("it does not end")


@pytest.fixture
def house() -> WaitingHouse:
    return WaitingHouse()


def test_a_row_is_computed_by_a_worker_without_a_batch_and_answered(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    ticket = house.wait(2)
    assert [slots for _, slots in worker.ring.batches] == [ticket.slots]
    house.finish(worker)
    (answer,) = house.answers
    assert answer.status == 200
    assert answer.outputs == [[1.0, 1.0], [2.0, 1.0]]
    assert answer.receipt is not None
    assert (answer.receipt.variant, answer.receipt.accuracy) == ("small", 80.0)
    assert answer.receipt.energy_j > 0.0
    house.check_slots()
    assert house.router.state.table.free.free == 64
    assert (house.spare.answered, house.spare.waiting_rows) == (2, 0)


def test_a_batch_takes_a_tenth_of_the_slo_and_none_is_behind_it(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    for _ in range(9):
        house.wait(turn=False)
    house.loop.turn()
    assert [len(slots) for _, slots in worker.ring.batches] == [2]  # 2 ms of the SLO's 20
    house.finish(worker, busy_ns=2 * MS)
    assert [len(slots) for _, slots in worker.ring.batches] == [2]
    house.finish(worker, busy_ns=20 * MS)  # this machine is slower than the one of the profile
    assert [len(slots) for _, slots in worker.ring.batches] == [1]
    house.settle()
    assert [answer.status for answer in house.answers] == [200] * 9


def test_where_clients_are_answered_fast_they_stay_so() -> None:
    house = WaitingHouse(slo_ms=100.0)
    (worker,) = house.route(SMALL)
    for _ in range(2):
        house.wait(9)
        assert [len(slots) for _, slots in worker.ring.batches] == [4]  # 4 ms of 100
        house.settle()
        live = house.ask()
        house.finish(worker)
        house.router.close(live)
        house.loop.now_ns += 2 * SECOND
        house.wait(9)
        assert [len(slots) for _, slots in worker.ring.batches] == [1]  # their p95 is 1 ms
        house.settle()
        house.loop.now_ns += 20 * SECOND  # no client any more


def test_while_clients_ask_a_worker_is_left_free_if_a_row_takes_longer_than_a_batch_should() -> None:
    house = WaitingHouse(slo_ms=9.0)  # a row takes 1 ms
    house.route(SMALL, SMALL)

    def busy() -> int:
        house.wait(9)
        found = sum(bool(worker.ring.batches) for worker in house.workers)
        house.settle()
        return found

    assert busy() == 2  # nobody asks
    live = house.ask()
    house.settle()
    house.router.close(live)
    house.loop.now_ns += 2 * SECOND
    assert busy() == 1
    house.spare.urgent = True
    assert busy() == 2
    house.spare.urgent = False
    house.slo_ms = 11.0
    house.loop.now_ns += 2 * SECOND
    assert busy() == 2


def test_clients_rows_go_first(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    house.wait(8)
    assert len(worker.ring.batches) == 1
    live = house.ask()
    assert [slots for _, slots in worker.ring.batches][1:] == [live.slots]  # behind the one that runs
    house.finish(worker)
    assert [slots for _, slots in worker.ring.batches] == [live.slots]  # and none is put behind that
    house.finish(worker)
    assert house.done == [live]
    assert len(worker.ring.batches) == 1  # the next rows that wait
    house.router.close(live)
    house.settle()
    assert [answer.status for answer in house.answers] == [200]
    house.check_slots()


def test_rows_that_come_in_the_same_turn_go_first(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    house.wait(turn=False)
    live = house.ask()
    assert [slots for _, slots in worker.ring.batches] == [live.slots]
    house.finish(worker)
    assert len(worker.ring.batches) == 1


def test_nothing_that_is_counted_of_clients_changes(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    live = house.ask()
    house.finish(worker)
    house.router.close(live)
    traffic = house.router.traffic
    paces = [(pace.expected_ns, pace.least_ns) for pace in house.router.state.lanes.paces]

    def counted() -> dict[str, Any]:
        report = traffic.report("toy", "", house.loop.now_ns)
        return {**house.router.observe(), **report, "codes": traffic.codes, "rows": list(traffic.rows)}

    before = counted()
    for _ in range(20):
        house.wait(2)
        assert house.router.observe()["in_flight_rows"] == 0.0
        house.settle()
    house.wait()
    house.finish(worker, status=1)
    assert [answer.status for answer in house.answers] == [200] * 20 + [500]
    after = counted()
    for each in (before, after):
        each.pop("last_inference")
    assert after == before
    assert house.router.demand.report(house.loop.now_ns) == {}
    assert house.router.guard_report()["audits"]["answered"] == 0
    assert house.router.state.company.here == 0
    assert [(pace.expected_ns, pace.least_ns) for pace in house.router.state.lanes.paces] == paces
    meter = house.router.state.lanes.links[0].meter
    assert (meter.window_useful, meter.window_rows, meter.waiting_rows) == (1, 42, 41)


def test_the_best_variant_answers_or_the_one_that_is_asked_for() -> None:
    house = WaitingHouse()
    workers = house.route(SMALL, MEDIUM, LARGE)
    house.wait()
    assert [len(worker.ring.batches) for worker in workers] == [0, 0, 1]
    house.wait(min_accuracy=81.0)
    assert [len(worker.ring.batches) for worker in workers] == [0, 1, 1]
    house.settle()
    assert [answer.receipt.variant for answer in house.answers if answer.receipt] == ["medium", "large"]


def test_a_row_waits_for_the_variant_that_it_asks_for() -> None:
    house = WaitingHouse()
    (small,) = house.route(SMALL)
    house.wait(min_accuracy=86.0)
    house.wait()
    house.settle()
    assert len(house.answers) == 1
    assert house.spare.lanes_wanted() == {LARGE}
    entry = house.entry(LARGE)
    house.router.set_background([entry])
    house.loop.turn()
    assert (len(small.ring.batches), len(entry[0].ring.batches)) == (0, 1)
    house.settle()
    assert [answer.receipt.variant for answer in house.answers if answer.receipt] == ["small", "large"]
    house.spare.on = False
    assert house.spare.lanes_wanted() == set()


def test_a_worker_of_several_variants_gets_one_batch() -> None:
    house = WaitingHouse()
    entries = house.shared(SMALL, LARGE)
    house.router.route(entries, house.router.state.lanes.routing)
    house.wait(9)
    (worker,) = {id(entry[0]): entry[0] for entry in entries}.values()
    assert len(worker.ring.batches) == 1
    assert list(worker.ring.lanes.values()) == [worker.resident["large"]]
    live = house.ask(min_accuracy=0.0)
    assert len(worker.ring.batches) == 2
    house.settle()
    assert house.done == [live]


@pytest.mark.parametrize(("given", "error"), [(0.9, "in percent"), (99.0, "no variant")])
def test_an_accuracy_that_cannot_be_is_refused_as_a_clients_is(house: WaitingHouse, given: float, error: str) -> None:
    with pytest.raises(BadRequest, match=error):
        house.wait(min_accuracy=given)
    assert house.router.traffic.codes == {}
    house.check_slots()


def test_clients_keep_their_slots(house: WaitingHouse) -> None:
    house.route(SMALL)
    with pytest.raises(TooLarge, match="at most 32 rows"):
        house.spare.open(33)
    with pytest.raises(BadRequest):
        house.spare.open(0)
    house.wait(16)
    with pytest.raises(Overloaded) as refused:
        house.spare.open(1)
    assert refused.value.retry_after_s
    assert house.spare.rows_wanted() == 0
    for client in range(1, 49):
        house.ask(turn=False, client=client)
    assert house.router.traffic.codes == {}


def test_nothing_runs_while_workers_change_or_the_family_ends(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    house.router.closed_reason = "the model is unloaded"
    with pytest.raises(Unavailable, match="unloaded"):
        house.spare.open(1)
    house.router.closed_reason = ""
    house.wait(3)
    house.router.closed_reason = "the model is unloaded"
    house.finish(worker)
    assert worker.ring.batches == []
    house.router.fail_waiting("the model is unloaded")
    house.loop.turn()
    house.loop.turn()
    assert [(answer.status, answer.error) for answer in house.answers] == [(503, "the model is unloaded")]
    house.check_slots()
    assert house.router.state.table.free.free == 64


def test_a_failed_batch_is_tried_again_request_by_request(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    bad = house.wait(turn=False)
    house.wait()
    assert [len(slots) for _, slots in worker.ring.batches] == [2]
    house.finish(worker, status=1)
    for _ in range(2):
        ((_, slots),) = worker.ring.batches
        house.finish(worker, status=int(slots == bad.slots))
    assert Counter(answer.status for answer in house.answers) == {200: 1, 500: 1}
    house.check_slots()


def test_memory_that_is_short_is_waited_for_a_few_times(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    house.wait()
    for _ in range(3):
        assert not house.answers
        house.finish(worker, status=NO_MEMORY)
    assert [answer.status for answer in house.answers] == [413]


def test_after_a_death_rows_are_computed_again_and_the_cause_fails_alone(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    bad, good = house.wait(turn=False), house.wait()
    for _ in range(20):
        ((_, slots),) = worker.ring.batches
        if bad.slots[0] in slots:
            house.router.died(worker, "killed")
            worker = house.entry(SMALL)[0]
            house.router.join((worker, SMALL, 4, house.entry(SMALL)[3]))
        else:
            house.finish(worker)
        house.loop.turn()
        house.loop.turn()
        if len(house.answers) == 2:
            break
    assert {(answer.status, answer.error) for answer in house.answers} == {
        (200, ""),
        (503, "the request was being computed by two workers that died"),
    }
    assert good.status == 200
    assert house.router.traffic.poisoned == house.router.traffic.retried_rows == 0
    house.check_slots()


def test_a_batch_that_was_not_begun_counts_no_death(house: WaitingHouse) -> None:
    for _ in range(5):
        (worker,) = house.route(SMALL)
        if not house.spare.waiting_rows:
            house.wait()
        worker.ring.waiting = 1
        house.router.died(worker, "killed")
    house.route(SMALL)
    house.settle()
    assert [answer.status for answer in house.answers] == [200]


def test_rows_of_a_request_that_fails_are_dropped_wherever_they_are(house: WaitingHouse) -> None:
    workers = house.route(SMALL, SMALL)
    house.wait(6)
    assert [len(worker.ring.batches) for worker in workers] == [1, 1]
    house.finish(workers[0], status=1)
    assert [answer.status for answer in house.answers] == [500]
    states = list(house.router.state.table.state)
    assert Counter(states) == {FREE: 62, FLYING: 2}
    house.settle()
    house.check_slots()
    assert house.router.state.table.free.free == 64
    assert house.spare.waiting_rows == 0


def test_joules_are_a_line_of_their_own_and_the_tenants(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    meter = house.router.state.lanes.links[0].meter
    acme = Tenant(TenantConfig(name="acme", token="a-token-of-sixteen"), 1)
    house.wait(2, tenant=acme)
    house.finish(worker)
    house.wait(1)
    house.finish(worker)
    assert meter.waiting_parts() == {"acme": pytest.approx(0.5), "": pytest.approx(0.5)}  # by the joules of the batches
    assert house.account.receipts_j.keys() == {("toy", "acme"), ("toy", "")}
    assert house.answers[0].receipt is not None
    assert house.account.receipts_j["toy", "acme"] == house.answers[0].receipt.energy_j


def test_who_feeds_it_hears_of_room(house: WaitingHouse) -> None:
    (worker,) = house.route(SMALL)
    calls: list[int] = []
    house.spare.hungry = lambda: calls.append(house.spare.rows_wanted())
    assert house.spare.rows_wanted() == 6  # three batches ahead
    for _ in range(6):
        house.wait(turn=False)
    house.loop.turn()
    assert calls == []
    house.finish(worker, busy_ns=2 * MS)
    assert calls == []
    house.finish(worker, busy_ns=2 * MS)
    assert calls[-1] == 4
    house.settle()


def test_turns_of_clients_cost_nothing_once_no_row_waits(house: WaitingHouse) -> None:
    house.route(SMALL)
    assert house.router.dispatch.spare is None
    house.wait(3)
    house.spare.on = False
    assert house.router.dispatch.spare is not None
    house.settle()
    house.ask()
    assert house.router.dispatch.spare is None


def test_several_workers_share_the_rows() -> None:
    house = WaitingHouse()
    workers = house.route(LARGE, LARGE)
    house.wait(8)
    assert [len(worker.ring.batches) for worker in workers] == [1, 1]
    house.settle()
    assert [answer.status for answer in house.answers] == [200]
    assert sorted(row[0] for row in house.answers[0].outputs) == [float(row) for row in range(1, 9)]


# --- how long a batch takes -------------------------------------------------------------------------------------------

services = st.lists(st.floats(0.05, 50.0), min_size=1, max_size=4).map(
    lambda each: Service(
        tuple(4**at for at in range(len(each))), tuple(np.cumsum(each).tolist()), (1.0,) * len(each)
    )
)


@given(services | st.none(), st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 1.0)), max_size=20), st.data())
def test_a_batch_fits_or_is_one_row(
    service: Service | None, seen: list[tuple[int, float]], data: st.DataObject
) -> None:
    pace = BatchPace(service)
    assert pace.fitting(1.0, 64) == 1 or service is not None
    for rows, busy_s in seen:
        pace.record(rows, busy_s)
    limit_s, most = data.draw(st.floats(0.0, 1.0)), data.draw(st.integers(1, 64))
    rows = pace.fitting(limit_s, most)
    assert 1 <= rows <= most
    assert rows == 1 or pace.seconds(rows) <= limit_s
    assert rows == most or pace.seconds(rows + 1) > limit_s
    assert pace.fitting(2 * limit_s, most) >= rows


@given(services, st.floats(0.1, 10.0))
def test_what_was_seen_corrects_the_profile(service: Service, slower: float) -> None:
    pace = BatchPace(service)
    for _ in range(200):
        pace.record(4, slower * service.seconds(4))
    assert pace.ratio == pytest.approx(slower, rel=0.01)


# --- a live row waits for one batch at most ---------------------------------------------------------------------------


@given(st.data())
def test_no_clients_row_is_behind_more_than_one_waiting_batch(data: st.DataObject) -> None:
    """Whatever comes when: a batch of waiting rows is only ever given to a worker with nothing to do, rows of clients
    are never behind two, and every row is answered once."""
    house = WaitingHouse(slo_ms=data.draw(st.sampled_from([1.0, 20.0, 100.0])))
    workers = house.route(*data.draw(st.sampled_from([(SMALL,), (SMALL, LARGE), (SMALL, SMALL)])))
    waiting_slots: set[int] = set()
    asked = waited = 0
    for act in data.draw(st.lists(st.sampled_from("awft"), min_size=5, max_size=60)):
        if act == "a" and house.router.state.table.free.free > 24:
            house.ask(data.draw(st.integers(1, 3)), turn=False, timeout_ns=1 << 50)
            asked += 1
        elif act == "w":
            with contextlib.suppress(Overloaded):
                waiting_slots |= set(house.wait(data.draw(st.integers(1, 6)), turn=False).slots)
                waited += 1
        elif act == "f":
            busy = [worker for worker in workers if worker.ring.batches]
            if busy:
                house.finish(data.draw(st.sampled_from(busy)))
                for ticket in house.done:
                    house.router.close(ticket)
        else:
            house.loop.turn()
        links = house.router.state.lanes.links
        for worker in workers:
            held = sorted(
                (batch for link in links if link.worker is worker for batch in link.batches.values()),
                key=lambda batch: batch.id,
            )
            assert [batch.waiting for batch in held[1:]] == [False] * (len(held) - 1)
            assert all(batch.waiting == bool(waiting_slots & set(batch.slots)) for batch in held) or not held
        owners = house.router.state.table.owner
        waiting_slots = {slot for slot in waiting_slots if owners[slot] is not None}
        house.check_slots()
    house.loop.turn()
    for _ in range(200):
        house.settle()
        house.loop.turn()
    for ticket in house.done:
        house.router.close(ticket)
    assert len(house.done) == asked
    assert [answer.status for answer in house.answers] == [200] * waited
    assert house.router.state.table.free.free == 64
    assert PART == 0.1
