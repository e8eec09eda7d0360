"""Second answers: asked when the client has its own, behind everybody, and compared with what was said before."""

from __future__ import annotations

import random

import numpy as np
import pytest

from clover.errors import Overloaded, Unavailable
from clover.runtime.guard.guard import URGENT_AUDITS
from clover.runtime.router.audits import HOUR_NS, LEAST, MOST, PATIENCE_NS, URGENT
from clover.runtime.router.tickets import FREE
from tests.support.guard_fixture import LARGE, MEDIUM, SMALL, Audited
from tests.support.router_fixture import MS, SECOND


@pytest.fixture
def house() -> Audited:
    return Audited()


def test_a_row_is_asked_again_once_its_client_has_the_answer(house: Audited) -> None:
    ticket = house.ask()
    house.says(SMALL, 1)
    assert house.done == [ticket]
    assert house.sent(LARGE) == []
    assert np.argmax(house.router.read(ticket, 0)) == 1
    house.close(ticket)
    assert house.sent(LARGE) == [ticket.slots]
    house.check_slots()
    house.says(LARGE, 1)
    tests = house.tests()
    assert tests["own"]["agreement"] == tests["served"]["agreement"] == 1.0
    assert tests["own"]["expected"] == pytest.approx(0.9)
    assert tests["served"]["expected"] == pytest.approx(0.98)
    house.check_slots()
    assert house.router.state.table.free.free == 64


def test_what_disagrees_is_counted_so(house: Audited) -> None:
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    house.says(LARGE, 0)
    assert house.tests()["own"]["agreement"] == house.tests()["served"]["agreement"] == 0.0


def test_a_row_that_the_best_variant_answered_is_audited_for_nothing(house: Audited) -> None:
    ticket = house.ask()
    house.says(SMALL, 0, score=0.2)
    house.says(LARGE, 1)
    house.close(ticket)
    assert house.sent(LARGE) == []
    assert (house.router.audits.free, house.router.audits.answered) == (1, 0)
    tests = house.tests()
    assert tests["own"]["agreement"] == 0.0
    assert "served" not in tests
    house.check_slots()


def test_rows_that_went_on_to_the_best_are_compared_although_nobody_audits_them() -> None:
    house = Audited(share=0.0)
    first = house.ask(cascade=False)  # the first row of an hour is audited
    house.says(SMALL, 1)
    house.close(first)
    house.says(LARGE, 1)
    for row in range(50):
        ticket = house.ask()
        assert ticket.marked == ()
        house.says(SMALL, 1, score=0.2 if row % 5 < 2 else 0.9)
        if row % 5 < 2:
            house.says(LARGE, row % 5)
        house.close(ticket)
    told = house.tests()["overruled"]
    assert told["rows"] == 50
    assert told["agreement"] == pytest.approx(0.8)
    assert told["expected"] == pytest.approx(0.9)


def test_second_answers_are_no_answers(house: Audited) -> None:
    """Rows, requests, accuracy and rates are those of clients; joules of audits are told apart."""
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    before = house.router.observe()
    house.says(LARGE, 1)
    after = house.router.observe()
    traffic = house.router.traffic
    assert traffic.rows == [1, 0, 0]
    assert traffic.codes == {200: 1}
    assert after["rows"] == before["rows"] == 1.0
    assert after["accuracy_served"] == before["accuracy_served"]
    assert traffic.latency.count == 1
    assert house.router.audits.energy_j == pytest.approx(MS * 1e-9 * 8.0)
    meter = house.staff[LARGE][3]
    assert (meter.rows, meter.window_audits, meter.window_useful) == (1, 1, 0)


def test_clients_come_first(house: Audited) -> None:
    """Audits wait behind rows that came after them, however long those may wait."""
    first = house.ask()
    house.says(SMALL, 1)
    flying = [house.ask(cascade=False, min_accuracy=91.0) for _ in range(2)]  # both credits of the large worker
    house.close(first)
    full = house.spec.max_batch
    later = [house.ask(cascade=False, min_accuracy=91.0, timeout_ns=3600 * SECOND) for _ in range(full)]
    assert len(house.sent(LARGE)) == 2
    house.says(LARGE, 1)
    assert house.sent(LARGE)[1] == [ticket.slots[0] for ticket in later]
    for ticket in flying:
        assert ticket.status in (0, 200)


def test_a_full_queue_drops_audits_and_no_client() -> None:
    house = Audited(lanes=(SMALL, LARGE), queue_rows=4)
    busy = [house.ask(cascade=False, min_accuracy=91.0) for _ in range(2)]
    first = house.ask()
    house.says(SMALL, 1)
    house.close(first)
    assert len(house.router.audits.waiting) == 1
    waiting = [house.ask(cascade=False, min_accuracy=91.0) for _ in range(4)]  # the fourth finds the queue full
    assert house.router.audits.waiting == {}
    assert house.router.audits.dropped == {"full": 1}
    with pytest.raises(Overloaded):
        house.ask()
    assert not any(ticket.status for ticket in (*busy, *waiting))
    house.check_slots()


def test_an_audit_makes_no_haste_and_no_queue() -> None:
    """Where rows wait for a batch to fill, one behind them does not send them off; and nobody counts it as a client."""
    house = Audited(max_queue_delay_ms=50.0)
    first = house.ask()
    house.loop.advance(60 * MS)
    house.says(SMALL, 1)
    house.close(first)
    assert len(house.router.audits.list_queued()) == 1
    assert house.router.observe()["queue_rows"] == 0.0
    assert house.sent(LARGE) == []
    house.ask(cascade=False, min_accuracy=91.0)
    assert house.router.observe()["queue_rows"] == 1.0
    assert house.sent(LARGE) == []


def test_no_audit_is_begun_while_the_queue_is_full() -> None:
    house = Audited(queue_rows=2)
    first = house.ask()
    house.says(SMALL, 1)
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0)
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0)
    house.close(first)
    assert house.router.audits.waiting == {}
    assert house.router.audits.dropped == {"full": 1}
    house.check_slots()


def test_slots_that_clients_need_are_given_back() -> None:
    house = Audited()
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0)
    first = house.ask()
    house.says(SMALL, 1)
    house.close(first)
    held = [house.router.open(1) for _ in range(62)]
    assert house.router.audits.dropped == {"full": 1}
    with pytest.raises(Overloaded):
        house.router.open(1)
    for ticket in held:
        house.router.close(ticket)
    house.check_slots()


def test_an_audit_has_patience_for_a_minute(house: Audited) -> None:
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0, timeout_ns=1000 * SECOND)
    first = house.ask()
    house.says(SMALL, 1)
    house.close(first)
    house.loop.advance(PATIENCE_NS + 2 * SECOND)
    assert house.router.audits.dropped == {"late": 1}
    assert house.router.traffic.codes == {200: 1}
    house.check_slots()


def test_a_row_that_kills_a_worker_kills_one_only(house: Audited) -> None:
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    house.router.died(house.worker(LARGE), "killed")
    assert house.router.audits.dropped == {"died": 1}
    assert house.router.traffic.poisoned == 0
    house.check_slots()
    assert house.router.state.table.state.count(FREE) == 64


def test_a_model_that_fails_on_an_audit_is_no_alarm(house: Audited) -> None:
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    house.says(LARGE, 0, status=1)
    assert house.router.audits.dropped == {"failed": 1}
    assert house.router.traffic.codes == {200: 1}
    assert "own" not in house.tests()
    house.check_slots()


def test_audits_end_with_the_last_worker_who_could_answer_them(house: Audited) -> None:
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0)
    first = house.ask()
    house.says(SMALL, 1)
    house.close(first)
    house.router.leave(house.worker(LARGE), lambda: None)
    assert house.router.audits.dropped == {"nobody": 1}
    house.check_slots()


def test_where_no_better_variant_is_there_nothing_is_asked_and_it_is_owed() -> None:
    house = Audited(lanes=(SMALL,), chained=False)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    assert house.router.audits.dropped == {"nobody": 1}
    assert house.router.audits.sampler.owed > 0.0
    house = Audited(lanes=(SMALL, MEDIUM), chained=False)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    house.says(MEDIUM, 1)
    assert house.tests()["own"]["expected"] == pytest.approx(0.93)
    assert "served" not in house.tests()


def test_a_client_that_went_away_leaves_no_audit(house: Audited) -> None:
    ticket = house.ask()
    house.close(ticket)
    assert house.router.audits.dropped == {"lost": 1}
    house.says(SMALL, 1)
    house.check_slots()
    assert house.router.state.table.free.free == 64


def test_waiting_audits_do_not_keep_a_server_from_stopping(house: Audited) -> None:
    for _ in range(2):
        house.ask(cascade=False, min_accuracy=91.0)
    first = house.ask()
    house.says(SMALL, 1)
    house.close(first)
    for _ in range(2):
        house.worker(LARGE).finish(house.loop.now_ns)
    house.worker(LARGE).ring.batches.clear()
    assert len(house.router.audits.list_queued()) == 1
    house.router.fail_waiting("over")
    assert house.router.audits.waiting == {}


def test_rows_of_one_request_are_audited_apart() -> None:
    house = Audited()
    ticket = house.ask(rows=4)
    house.says(SMALL, 1)
    house.close(ticket)
    assert sorted(house.sent(LARGE)[0]) == sorted(ticket.slots)
    house.says(LARGE, 1)
    assert house.router.audits.answered == 4
    house.check_slots()


def test_a_family_without_scores_audits_nothing() -> None:
    house = Audited()
    house.router.expect(None)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    assert house.sent(LARGE) == []
    assert house.router.audits.sampler.rows == 0
    assert not house.router.guard_report()["watches"]


@pytest.mark.parametrize("config", [{"audit": 0.0}, {"guard": "off"}])
def test_audits_can_be_turned_off(config: dict[str, object]) -> None:
    house = Audited(**config)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    assert house.sent(LARGE) == []
    assert house.router.guard_report()["audits"]["on"] is False
    assert house.router.guard_report()["watches"] is (config != {"guard": "off"})


def test_after_an_alarm_many_rows_are_audited_soon() -> None:
    house = Audited(share=0.005)
    house.router.guard.alarm("scores", SMALL, "")
    house.router.audits.grid(250.0, 250.0)
    for _ in range(500):
        ticket = house.ask()
        house.says(SMALL, 1)
        house.close(ticket)
        while house.sent(LARGE):
            house.says(LARGE, 1)
    assert house.router.audits.answered == pytest.approx(URGENT * 500, abs=2)
    assert URGENT_AUDITS - house.router.audits.answered <= house.router.guard.urgent < URGENT_AUDITS


@pytest.mark.slow
def test_what_is_urgent_ends_though_every_audit_fails() -> None:
    house = Audited(share=0.005)
    house.router.guard.alarm("scores", SMALL, "")
    house.router.audits.grid(250.0, 250.0)
    asked = 0
    while house.router.guard.urgent:
        ticket = house.ask()
        asked += 1
        house.says(SMALL, 1)
        house.close(ticket)
        while house.sent(LARGE):
            house.says(LARGE, 1, status=1)
    assert asked == pytest.approx(URGENT_AUDITS / URGENT, rel=0.01)
    assert house.router.audits.answered == 0
    assert house.router.audits.sampler.share == MOST  # at once, and not at the next look at the grid
    house.router.audits.grid(250.0, 250.0)
    assert house.router.audits.sampler.share == MOST


def test_a_repeat_that_is_audited_for_nothing_uses_up_nothing_that_is_urgent(house: Audited) -> None:
    guard = house.router.guard
    guard.alarm("scores", SMALL, "")
    for _ in range(20):
        ticket = house.ask(again=1.0)
        house.says(SMALL, 0, score=0.2)
        house.says(LARGE, 1)
        house.close(ticket)
    assert (guard.urgent, house.router.audits.free) == (URGENT_AUDITS - 1, 20)


def test_what_is_urgent_waits_for_somebody_who_can_answer() -> None:
    house = Audited(lanes=(SMALL,), chained=False, share=0.005)
    house.router.guard.alarm("scores", SMALL, "")
    house.router.audits.grid(250.0, 250.0)
    for _ in range(40):
        ticket = house.ask()
        house.says(SMALL, 1)
        house.close(ticket)
    assert house.router.audits.dropped["nobody"] > 0
    assert house.router.guard.urgent == URGENT_AUDITS


def test_no_hour_lies_below_the_least_share() -> None:
    """Four hours of requests through the router in a dirty grid, audits dropped and failed on the way."""
    rng = random.Random(5)
    house = Audited(share=0.0, queue_rows=8)
    for hour in range(4):
        house.router.audits.grid(2000.0, 250.0)
        for _ in range(1500):
            house.loop.now_ns += HOUR_NS // 1600
            ticket = house.ask()
            house.says(SMALL, 1)
            house.close(ticket)
            while house.sent(LARGE):
                house.says(LARGE, 1, status=int(rng.random() < 0.3))
        house.loop.now_ns = (house.loop.now_ns // HOUR_NS + 1) * HOUR_NS
        sampler = house.router.audits.sampler
        assert sampler.taken >= LEAST * sampler.rows, hour
    assert house.router.audits.answered >= LEAST * 6000
    assert house.router.audits.sampler.lowest is not None
    assert house.router.audits.sampler.lowest >= LEAST


def test_the_best_variant_answers_audits_where_the_plan_gives_it_no_rows() -> None:
    house = Audited(lanes=(SMALL,), chained=False)
    worker = house.worker(SMALL)
    worker.resident = {"small": 0, "large": 2}
    _, lane, most, meter = house.entry(LARGE)
    house.router.set_background([(worker, lane, most, meter)])
    assert house.router.state.lanes.live == 1 << SMALL
    ticket = house.ask()
    house.says(SMALL, 1)
    house.close(ticket)
    (number, slots), *_ = worker.ring.batches
    assert (slots, worker.ring.lanes[number]) == (ticket.slots, 2)
    with pytest.raises(Unavailable):  # no client's row is asked of it
        house.ask(min_accuracy=91.0)
    house.router.set_background([])
    house.complete(worker)
    assert house.router.audits.answered == 1
    assert (meter.rows, meter.window_audits) == (1, 1)
    house.check_slots()


def test_an_audit_is_not_staged_ahead_of_the_rows_of_clients_that_come_while_its_worker_computes() -> None:
    house = Audited(lanes=(SMALL,), chained=False)
    worker = house.worker(SMALL)
    worker.resident = {"small": 0, "large": 2}
    _, lane, most, meter = house.entry(LARGE)
    house.router.set_background([(worker, lane, most, meter)])
    audited = house.ask()
    house.says(SMALL, 1)
    first = house.ask()  # under way when the audit is queued
    house.close(audited)
    assert [slots for _, slots in worker.ring.batches] == [first.slots]
    second = house.ask()
    assert [slots for _, slots in worker.ring.batches] == [first.slots, second.slots]
    house.says(SMALL, 1)
    house.says(SMALL, 1)
    (_, slots), *_ = worker.ring.batches
    assert slots == audited.slots
