"""The router against workers, a loop and a clock that the tests drive by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from clover.config import TenantConfig
from clover.errors import BadRequest, DeadlineMissed, Overloaded, TooLarge, Unavailable
from clover.runtime.memory.slab import NO_MEMORY
from clover.runtime.router.relief import StandbyWorkers
from clover.runtime.router.tickets import DONE, RouterTicket
from clover.runtime.router.traffic import Traffic
from clover.tenants import Tenants
from clover.types import TensorSpec
from tests.support.examples import examples
from tests.support.profiles_fixture import profile
from tests.support.router_fixture import MS, SECOND, FakeWorker, House, Timer, dealt, family


@pytest.fixture
def house() -> House:
    return House()


# --- the plain path ---------------------------------------------------------------------------------------------------


def test_what_is_no_ticket_is_refused() -> None:
    router: Any = House().router
    for call in (
        router.close,
        router.receipt,
        lambda nothing: router.read(nothing, 0),
        lambda nothing: router.submit(nothing, print),
    ):
        with pytest.raises((AttributeError, TypeError)):
            call(None)


def test_a_row_goes_to_a_worker_and_back(house: House) -> None:
    (worker,) = house.route(0)
    ticket = house.router.open(1)
    house.router.write(ticket, 0, np.array([[1.0, 2.0]], np.float32))
    house.router.submit(ticket, house.done.append, context="who asked")  # type: ignore[arg-type]
    assert worker.ring.batches == []  # formed at the end of the turn
    house.loop.turn()
    house.loop.advance(3 * MS)
    slots = worker.finish(house.loop.now_ns, busy_ns=2 * MS)
    house.slab.output(0)[slots] = [[3.0, 4.0]]
    assert house.slab.input(0)[slots].tolist() == [[1.0, 2.0]]
    house.router.reap()
    assert house.done == [ticket]
    assert (ticket.status, ticket.variants, ticket.context) == (200, [0], "who asked")
    assert (ticket.queue_ns, ticket.compute_ns) == (1 * MS, 2 * MS)
    rows = house.router.read(ticket, 0)
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == [[3.0, 4.0]]
    receipt = house.router.receipt(ticket)
    assert (receipt.variant, receipt.accuracy, receipt.method) == ("small", 80.0, "modelled")
    assert house.router.receipt(ticket) is receipt
    assert house.account.receipts_j["toy", ""] == receipt.energy_j, "billed once, also if a span reads it again"
    house.router.close(ticket)
    house.router.close(ticket)
    house.check_slots()
    assert house.router.observe()["free_slots"] == 16


def test_requests_of_one_turn_share_a_batch_and_a_sleeping_worker_is_belled(house: House) -> None:
    (worker,) = house.route(0)
    worker.ring.answer = 2
    for _ in range(3):
        house.ask(turn=False)
    house.loop.turn()
    assert [slots for _, slots in worker.ring.batches] == [[0, 1, 2]]
    assert worker.bells == 1


def test_rows_of_a_batch_lie_in_rising_order_whichever_body_was_complete_first(house: House) -> None:
    (worker,) = house.route(0)
    tickets = [house.router.open(1) for _ in range(3)]
    for ticket in (tickets[2], tickets[0], tickets[1]):
        house.router.submit(ticket, house.done.append)
    house.loop.turn()
    assert [slots for _, slots in worker.ring.batches] == [[0, 1, 2]]
    house.complete(worker)
    assert {ticket.phase for ticket in tickets} == {DONE}


def test_rows_that_gather_lie_side_by_side_while_the_batch_before_is_answered(house: House) -> None:
    (worker,) = house.route(0)
    batches = []
    first = house.router.open(1)
    for _ in range(5):
        gathered = [first, house.router.open(1)]
        for ticket in gathered:
            house.router.submit(ticket, house.done.append)
        house.loop.turn()
        batches += [slots for _, slots in worker.ring.batches]
        first = house.router.open(1)  # it is received while the batch before it is computed
        house.complete(worker)
        for ticket in gathered:
            house.router.close(ticket)
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]
    house.check_slots()


def test_two_credits_then_full_batches(house: House) -> None:
    (worker,) = house.route(0)
    for _ in range(9):
        house.ask()
    assert [len(slots) for _, slots in worker.ring.batches] == [1, 1]
    house.complete(worker)
    assert [len(slots) for _, slots in worker.ring.batches] == [1, 4]


def test_workers_get_their_next_batch_before_answers_are_written(house: House) -> None:
    (worker,) = house.route(0)
    seen: list[int] = []
    for _ in range(3):
        ticket = house.router.open(1)
        house.router.submit(ticket, lambda _: seen.append(len(worker.ring.batches)))
        house.loop.turn()
    house.complete(worker)
    assert seen == [2]


def test_quotas_are_kept_row_by_row(house: House) -> None:
    small, large = house.route(0, 2, shares=(0.75, 0.0, 0.25))
    rows = [0, 0]
    for asked in range(1, 101):
        house.ask()
        for which, worker in enumerate((small, large)):
            while worker.ring.batches:
                rows[which] += len(worker.ring.batches[0][1])
                house.complete(worker)
        while house.done:
            house.router.close(house.done.pop())
        assert abs(rows[1] - asked / 4) <= 2
    assert rows == [75, 25]


def test_rows_of_one_request_are_split_in_blocks(house: House) -> None:
    small, large = house.route(0, 2, shares=(0.5, 0.0, 0.5))
    ticket = house.ask(4)
    assert ticket.variants == [0, 0, 2, 2]
    assert [b[1] for b in small.ring.batches] == [[0, 1]]
    assert [b[1] for b in large.ring.batches] == [[2, 3]]
    house.complete(large)
    assert house.done == []
    house.complete(small)
    assert house.done == [ticket]
    receipt = house.router.receipt(ticket)
    assert (receipt.variant, receipt.accuracy) == ("small+large", 85.0)


def test_a_callback_that_raises_does_not_stop_the_others(house: House, caplog: pytest.LogCaptureFixture) -> None:
    (worker,) = house.route(0)

    def broken(_: Any) -> None:
        raise RuntimeError("front end")

    first = house.router.open(1)
    house.router.submit(first, broken)
    second = house.ask()
    house.complete(worker)
    assert house.done == [second]
    assert "callback failed" in caplog.text


# --- admission --------------------------------------------------------------------------------------------------------


def test_full_queue_says_when_to_come_back() -> None:
    house = House(slots=16, queue_rows=3)
    (worker,) = house.route(0)
    for _ in range(2):
        house.ask(4 - 1)
    house.ask(3)  # two batches are with the worker, three rows wait
    with pytest.raises(Overloaded) as refused:
        house.router.open(1)
    assert refused.value.retry_after_s == 1.0
    house.loop.advance(SECOND)
    house.complete(worker)
    house.ask(1)
    with pytest.raises(Overloaded) as refused:
        house.ask(3)
    assert refused.value.retry_after_s == 1.0  # three rows a second are served, and that one is not booked yet
    with pytest.raises(Overloaded) as refused:
        house.router.open(3)
    assert refused.value.retry_after_s == 3.0
    assert house.router.traffic.codes[429] == 3
    house.check_slots()


def test_no_slot_no_worker_too_many_rows() -> None:
    house = House(slots=4)
    with pytest.raises(Unavailable) as unavailable:
        house.router.open(1)
    assert unavailable.value.retry_after_s is not None
    house.route(0)
    tickets = [house.router.open(2), house.router.open(2)]
    with pytest.raises(Overloaded):
        house.router.open(1)
    house.router.close(tickets[0])
    house.router.open(1)
    with pytest.raises(TooLarge):
        house.router.open(5)
    with pytest.raises(BadRequest):
        house.router.open(0)


def test_minimum_accuracy(house: House) -> None:
    house.route(0, 1, shares=(1.0, 0.0, 0.0))
    assert house.ask().variants == [0]
    assert house.ask(min_accuracy=82.0).variants == [1]  # no share, but live and good enough
    ticket = house.router.open(1)
    with pytest.raises(Unavailable):
        house.router.submit(ticket, house.done.append, min_accuracy=88.0)  # type: ignore[arg-type]
    with pytest.raises(BadRequest):
        house.router.submit(ticket, house.done.append, min_accuracy=95.0)  # type: ignore[arg-type]
    for fraction in (0.01, 0.82, 1.0):
        with pytest.raises(BadRequest, match=r"in percent: for 90 % it is 90, not 0\.9"):
            house.router.submit(ticket, house.done.append, min_accuracy=fraction)  # type: ignore[arg-type]
    with pytest.raises(DeadlineMissed):
        house.router.submit(ticket, house.done.append, timeout_ns=-1)  # type: ignore[arg-type]
    house.router.submit(ticket, house.done.append)  # type: ignore[arg-type]  # still open
    house.check_slots()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((1, 3), np.float32),
        np.zeros((1, 2), np.float64),
        np.float32(1.0),
        [b"", b""],
    ],
)
def test_rows_that_do_not_fit_are_refused(house: House, rows: Any) -> None:
    house.route(0)
    with pytest.raises(BadRequest):
        house.router.write(house.router.open(1), 0, np.asarray(rows))


def test_variable_shapes_never_share_a_batch() -> None:
    spec = family(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,), max_shape=(4,)),))
    house = House(spec)
    (worker,) = house.route(0)
    for width in (1, 2, 1, 2):
        ticket = house.router.open(1)
        house.router.write(ticket, 0, np.ones((1, width), np.float32))
        house.router.submit(ticket, house.done.append)  # type: ignore[arg-type]
    house.loop.turn()
    assert [slots for _, slots in worker.ring.batches] == [[0, 2], [1, 3]]
    with pytest.raises(BadRequest):
        house.router.write(house.router.open(1), 0, np.ones((1, 5), np.float32))


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_the_timer_answers_504_while_the_batch_still_runs(house: House) -> None:
    (worker,) = house.route(0)
    ticket = house.ask(timeout_ns=50 * MS)
    house.loop.advance(49 * MS)
    assert ticket.status == 0
    house.loop.advance(4 * MS)
    assert (house.done, ticket.status) == ([ticket], 504)
    house.router.close(ticket)
    assert house.router.observe()["free_slots"] == 15  # the worker still writes there
    house.check_slots()
    house.complete(worker)
    assert house.router.observe()["free_slots"] == 16
    assert house.done == [ticket]


def test_a_timeout_and_a_target_that_nobody_lives_to_see_are_none() -> None:
    house = House(timeout_ms=1e308)
    house.router.aim(1e308, 0.0)
    (worker,) = house.route(0)
    for tenant in Tenants([TenantConfig(name="a", token="b", timeout_ms=1e308)]).all():
        ticket = house.ask(timeout_ns=tenant.timeout_ns)
        house.loop.advance(3600 * SECOND)
        house.complete(worker)
        assert ticket.status == 200
        assert house.ask().deadline_ns == house.loop.now_ns + tenant.timeout_ns


def test_missed_rows_leave_the_queue_and_others_keep_theirs(house: House) -> None:
    (worker,) = house.route(0)
    running = [house.ask(), house.ask()]
    short = house.ask(timeout_ns=5 * MS)
    late = house.ask(timeout_ns=2 * SECOND)
    house.loop.advance(10 * MS)
    assert [t.status for t in (*running, short, late)] == [0, 0, 504, 0]
    house.loop.advance(2100 * MS)
    assert late.status == 504
    house.check_slots()
    house.complete(worker)
    house.complete(worker)
    assert [t.status for t in running] == [200, 200]


def test_max_queue_delay_fills_batches() -> None:
    house = House(max_queue_delay_ms=5.0)
    (worker,) = house.route(0)
    house.ask()
    assert worker.ring.batches == []
    house.loop.advance(2 * MS)
    house.ask()
    house.loop.advance(4 * MS)
    assert [len(slots) for _, slots in worker.ring.batches] == [2]


@settings(deadline=None, max_examples=examples(25))
@given(st.integers(0, 5 * MS), st.floats(0.1, 9.0))
def test_the_end_of_a_wait_takes_one_timer_of_a_loop_that_counts_milliseconds(since_ns: int, wait_ms: float) -> None:
    house = House(max_queue_delay_ms=wait_ms)
    (worker,) = house.route(0)
    rung: list[int] = []
    exact = house.loop.call_later

    def rounded(delay_s: float, callback: Callable[[], None]) -> Timer:
        """Start a timer as uvloop does: of rounded milliseconds, from the beginning of the one that runs."""
        due_ns = house.loop.now_ns // MS * MS + round(delay_s * 1000) * MS

        def ring() -> None:
            rung.append(house.loop.now_ns)
            callback()

        return exact((due_ns - house.loop.now_ns) / SECOND, ring)

    house.loop.call_later = rounded  # type: ignore[method-assign, assignment]
    house.loop.advance(since_ns)
    asked_ns = house.loop.now_ns
    house.ask()
    house.loop.advance(12 * MS)
    assert len(worker.ring.batches) == 1
    (at_ns,) = rung
    assert asked_ns + int(wait_ms * MS) <= at_ns <= asked_ns + int(wait_ms * MS) + 2 * MS


def test_a_wait_of_the_routing_fills_batches_and_none_does_not(house: House) -> None:
    entries = [house.entry(0), house.entry(2)]
    small, large = house.workers
    house.router.route(entries, dealt(0.5, 0.0, 0.5, wait_ms={"small": 5.0}))
    for _ in range(4):
        house.ask()
    assert [len(slots) for _, slots in large.ring.batches] == [1, 1]
    assert small.ring.batches == []
    house.loop.advance(4 * MS)
    assert small.ring.batches == []
    house.loop.advance(2 * MS)
    assert [len(slots) for _, slots in small.ring.batches] == [2]
    house.check_slots()


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_clients_that_wait_for_their_answers_wait_for_no_company(clients: int) -> None:
    house = House(max_queue_delay_ms=50.0)
    (worker,) = house.route(0)
    for turn in range(40):
        tickets = [house.ask() for _ in range(clients)]
        if turn < 10:
            house.loop.advance(52 * MS)
        assert [len(slots) for _, slots in worker.ring.batches] == [clients], "it left at once"
        house.loop.advance(MS)
        house.complete(worker)
        assert [t.status for t in tickets] == [200] * clients
        for ticket in tickets:
            house.router.close(ticket)
    house.router.close(house.ask())
    assert house.router.state.company.here == 0, "who hangs up is not here any more"


def test_the_wait_of_the_routing_goes_before_that_of_the_family() -> None:
    house = House(max_queue_delay_ms=5.0)
    entries = [house.entry(0), house.entry(2)]
    small, large = house.workers
    house.router.route(entries, dealt(0.5, 0.0, 0.5, wait_ms={"small": 0.0}))
    house.ask()
    house.ask()
    assert [len(small.ring.batches), len(large.ring.batches)] == [1, 0]
    house.loop.advance(6 * MS)
    assert len(large.ring.batches) == 1


def test_waits_and_batches_turn_between_two_requests(house: House) -> None:
    entry = house.entry(0)
    (worker,) = house.workers
    house.router.route([entry], dealt(1.0, wait_ms={"small": 50.0}))
    for _ in range(3):
        house.ask()
    assert worker.ring.batches == []
    house.router.route([entry], dealt(1.0, largest={"small": 2}, wait_ms={"small": 50.0}))
    assert [len(slots) for _, slots in worker.ring.batches] == [2]  # two are a full batch by now; one waits on
    house.router.route([entry], dealt(1.0, largest={"small": 10**12}))
    assert [len(slots) for _, slots in worker.ring.batches] == [2, 1]
    house.router.route([], dealt(1.0))
    for knobs in ({"largest": {"small": 0}}, {"wait_ms": {"small": -1.0}}, {"wait_ms": {"small": float("nan")}}):
        with pytest.raises(ValueError, match="small cannot form batches"):
            house.router.route([entry], dealt(1.0, **knobs))
    assert not house.router.ready


def test_a_respawned_worker_joins_under_the_waits_that_stand(house: House) -> None:
    house.router.route([house.entry(0)], dealt(1.0, wait_ms={"small": 5.0}))
    house.router.died(house.workers[0], "killed")  # type: ignore[arg-type]
    house.router.join(house.entry(0))
    house.ask()
    assert house.workers[1].ring.batches == []
    house.loop.advance(6 * MS)
    assert len(house.workers[1].ring.batches) == 1


def test_a_row_waits_for_no_batch_that_would_miss_its_deadline(house: House) -> None:
    entry = house.entry(0)
    (worker,) = house.workers
    house.router.route([entry], dealt(1.0, wait_ms={"small": 50.0}))
    house.ask(timeout_ns=200 * MS)
    assert worker.ring.batches == []
    house.ask(timeout_ns=20 * MS)
    assert [len(slots) for _, slots in worker.ring.batches] == [2]
    house.complete(worker)
    assert [ticket.status for ticket in house.done] == [200, 200]


# --- death ------------------------------------------------------------------------------------------------------------


def test_rows_of_a_dead_worker_are_served_elsewhere(house: House) -> None:
    first, second = house.route(0, 0)
    tickets = [house.ask() for _ in range(4)]
    house.router.died(first, "killed")
    while second.ring.batches:
        house.complete(second)
    assert [t.status for t in tickets] == [200] * 4
    assert house.router.traffic.retried_rows == 2
    house.check_slots()


def test_what_a_dead_worker_had_completed_still_counts(house: House) -> None:
    first, _ = house.route(0, 0)
    ticket = house.ask()
    first.finish(house.loop.now_ns)
    house.router.died(first, "killed")
    assert ticket.status == 200
    assert house.router.traffic.retried_rows == 0


def test_rows_wait_for_a_respawn_and_move_where_no_worker_comes_back(house: House) -> None:
    (first,) = house.route(0)
    tickets = [house.ask() for _ in range(3)]
    house.router.died(first, "killed")
    assert not house.router.ready
    with pytest.raises(Unavailable):
        house.router.open(1)
    entry = house.entry(2)
    house.router.join(entry)
    while entry[0].ring.batches:
        house.complete(entry[0])
    assert [t.status for t in tickets] == [200] * 3
    assert tickets[0].variants == [2]
    house.check_slots()


def test_a_request_that_must_be_accurate_is_not_moved_to_a_cheap_variant(house: House) -> None:
    small, large = house.route(0, 2)
    ticket = house.ask(min_accuracy=88.0, timeout_ns=100 * MS)
    house.router.died(large, "killed")
    assert small.ring.batches == []
    house.loop.advance(102 * MS)
    assert ticket.status == 504


def test_two_deaths_are_poison(house: House) -> None:
    first, second, third = house.route(0, 0, 0)
    ticket = house.ask()
    house.router.died(first, "killed")
    assert len(second.ring.batches) == 1
    house.router.died(second, "killed")
    assert (ticket.status, ticket.retry_after_s) == (503, None)
    assert third.ring.batches == []
    assert house.router.traffic.poisoned == 1
    house.router.close(ticket)
    house.check_slots()


def test_deaths_that_no_row_can_have_caused_count_for_none(house: House) -> None:
    workers = house.route(0, 0, 0, 0)
    ticket = house.ask()
    for worker in workers[:3]:
        assert len(worker.ring.batches) == 1
        house.router.died(worker, "its GPU is lost", blame=False)
    house.complete(workers[3])
    assert (ticket.status, ticket.deaths) == (200, 0)
    assert house.router.traffic.poisoned == 0
    house.router.close(ticket)
    house.check_slots()


def test_poison_does_not_spread_to_its_batch(house: House) -> None:
    first, second, third = house.route(0, 0, 0)
    tickets = [house.ask(turn=False) for _ in range(3)]
    house.loop.turn()
    house.router.died(first, "killed")
    assert sorted(len(slots) for w in (second, third) for _, slots in w.ring.batches) == [1, 1, 1]
    holder = next(w for w in (second, third) if w.ring.batches[0][1] == tickets[0].slots)
    holder.ring.waiting = len(holder.ring.batches) - 1
    other = third if holder is second else second
    house.router.died(holder, "killed")
    while other.ring.batches:
        house.complete(other)
    assert [t.status for t in tickets] == [503, 200, 200]
    house.check_slots()


def test_a_batch_that_was_never_begun_counts_no_death(house: House) -> None:
    first, second, third = house.route(0, 0, 0)
    begun, staged = house.ask(), house.ask()
    house.router.died(second, "killed")  # holds `staged`; `first` holds `begun`
    third.ring.waiting = 1
    house.router.died(third, "killed")
    house.complete(first)
    house.complete(first)
    assert (begun.status, staged.status) == (200, 200)
    assert (begun.deaths, staged.deaths) == (0, 1)


def test_an_unknown_batch_costs_the_worker_its_life(house: House) -> None:
    first, second = house.route(0, 0)
    lost: list[Any] = []
    house.router.lost = lambda worker, reason: (lost.append(worker), house.router.died(worker, reason))  # type: ignore[assignment]
    ticket = house.ask()
    first.ring.completions.append((999, 0, 1, 0, 0, 0))
    house.router.reap()
    assert lost == [first]
    house.complete(second)
    assert ticket.status == 200
    assert house.router.state.lanes.find(first) is None


def test_silence_is_measured_from_the_last_progress(house: House) -> None:
    (worker,) = house.route(0)
    house.ask()
    house.ask()
    house.loop.advance(3 * SECOND)
    house.complete(worker)
    house.loop.advance(2 * SECOND)
    assert house.router.silent(int(2.5 * SECOND)) == []
    house.loop.advance(SECOND)
    assert house.router.silent(int(2.5 * SECOND)) == [worker]


# --- swaps, failures, closing -----------------------------------------------------------------------------------------


def test_swap_moves_waiting_rows_and_lets_the_old_worker_finish(house: House) -> None:
    (old,) = house.route(0)
    tickets = [house.ask() for _ in range(5)]
    (new,) = house.route(2, shares=(0.0, 0.0, 1.0))
    assert [len(slots) for _, slots in new.ring.batches] == [3]
    idle: list[int] = []
    house.router.leave(old, lambda: idle.append(1))
    house.complete(old)
    assert idle == []
    house.complete(old)
    assert idle == [1]
    house.complete(new)
    assert [t.status for t in tickets] == [200] * 5
    house.router.leave(old, lambda: idle.append(2))  # nobody any more: at once
    assert idle == [1, 2]
    house.check_slots()


def test_a_worker_routed_again_while_it_drains_keeps_its_credits_straight(house: House) -> None:
    entries = [house.entry(0), house.entry(0)]
    house.router.route(entries, dealt(1.0))
    tickets = [house.ask() for _ in range(4)]
    house.router.route(entries[:1], dealt(1.0))
    house.router.route(entries, dealt(1.0))
    tickets += [house.ask() for _ in range(8)]
    for _ in range(12):
        for worker in house.workers:
            if worker.ring.batches:
                house.complete(worker)
    assert [t.status for t in tickets] == [200] * 12
    house.check_slots()


def test_a_model_error_fails_the_request_only(house: House) -> None:
    (worker,) = house.route(0)
    bad = house.ask(2)
    good = house.ask()
    house.complete(worker, status=1)
    house.complete(worker)
    assert (bad.status, good.status) == (500, 200)
    mixed = [house.ask(turn=False) for _ in range(3)]
    house.loop.turn()
    assert [len(slots) for _, slots in worker.ring.batches] == [3]
    house.complete(worker, status=1)  # which of them was it?
    assert [t.status for t in mixed] == [0, 0, 0]
    house.complete(worker)
    house.complete(worker, status=1)
    house.complete(worker)
    assert [t.status for t in mixed] == [200, 500, 200]
    house.check_slots()
    with pytest.raises(ValueError, match="answered"):
        house.router.read(bad, 0)


def test_a_worker_without_memory_is_asked_again_and_the_client_too(house: House) -> None:
    (worker,) = house.route(0)
    passing = house.ask(2)
    house.complete(worker, status=NO_MEMORY)
    assert passing.status == 0, "tried again at once, alone"
    house.complete(worker)
    assert passing.status == 200
    lasting = house.ask()
    house.complete(worker, status=NO_MEMORY)
    house.complete(worker, status=NO_MEMORY)
    assert (lasting.status, lasting.retry_after_s) == (503, 1.0)
    assert "no memory" in lasting.error
    assert worker.ring.batches == []
    mixed = [house.ask(turn=False) for _ in range(2)]
    house.loop.turn()
    house.complete(worker, status=NO_MEMORY)
    house.complete(worker, status=NO_MEMORY)
    house.complete(worker)
    assert [ticket.status for ticket in mixed] == [503, 200]
    failing = house.ask()
    house.complete(worker, status=NO_MEMORY)
    house.complete(worker, status=1)
    assert failing.status == 500, "with memory, the model failed"
    house.check_slots()


def test_each_batch_of_a_request_is_asked_again_once(house: House) -> None:
    (worker,) = house.route(0)
    passing, failed = house.ask(12), set()  # two batches of four that a worker has, and one that waits
    while worker.ring.batches:
        slots = set(worker.ring.batches[0][1])
        house.complete(worker, status=0 if slots & failed else NO_MEMORY)
        failed |= slots
    assert (passing.status, len(failed)) == (200, 12)
    house.router.close(passing)
    lasting = house.ask(8)
    for _ in range(3):
        house.complete(worker, status=NO_MEMORY)
    assert lasting.status == 503, "one of its batches has failed twice"
    house.complete(worker)
    assert worker.ring.batches == []
    house.router.close(lasting)
    other = house.ask(8)  # in slots of requests that were asked again
    for status in (NO_MEMORY, NO_MEMORY, 0, 0):
        house.complete(worker, status=status)
    assert other.status == 200
    house.check_slots()


def test_closing_while_rows_wait_and_fly(house: House) -> None:
    (worker,) = house.route(0)
    house.ask(4)
    house.ask(4)
    waiting = house.ask(2)
    flying = house.workers[0].ring.batches[0]
    house.router.close(waiting)
    assert house.router.observe()["queue_rows"] == 0
    ticket = house.router.state.table.owner[flying[1][0]]
    assert ticket is not None
    house.router.close(ticket)
    house.check_slots()
    house.complete(worker)
    assert house.done == []
    house.complete(worker)
    assert len(house.done) == 1
    house.check_slots()


def test_fail_waiting_answers_everybody(house: House) -> None:
    house.route(0)
    tickets = [house.ask() for _ in range(5)]
    house.router.fail_waiting("unloaded")
    assert [t.status for t in tickets] == [503] * 5
    house.check_slots()


def test_a_closed_router_takes_nothing_new_and_answers_what_it_took(house: House) -> None:
    (worker,) = house.route(0)
    assert house.router.idle
    tickets = [house.ask(4) for _ in range(3)]  # two with the worker, one in the queue
    house.router.closed_reason = "the model is unloaded"
    with pytest.raises(Unavailable, match="unloaded"):
        house.router.open(1)
    for _ in tickets:
        assert not house.router.idle
        house.complete(worker)
    assert [t.status for t in tickets] == [200] * 3
    assert house.router.idle


def test_rows_of_a_failed_batch_are_not_rows_answered(house: House) -> None:
    (worker,) = house.route(0)
    failed, fine = house.ask(2), house.ask()
    house.complete(worker, status=1)
    house.complete(worker)
    assert (failed.status, fine.status) == (500, 200)
    stats = house.router.stats()
    assert (stats["inference_count"], stats["execution_count"]) == (1, 1)


def test_nanoseconds_of_the_statistics_have_64_bits_and_begin_again_after_these() -> None:
    traffic, seen = Traffic(["small"]), []
    for _ in range(17):  # a thousand requests that wait at any time come to 2^60 within a fortnight
        traffic.record_outcome(200, 0, 0, 1 << 60, 1 << 60, 1 << 60)
        seen.append(traffic.report("toy", "1", 1 << 60)["inference_stats"])
    for name in ("success", "queue", "compute_infer"):
        assert [stats[name]["ns"] for stats in seen] == [count % 16 << 60 for count in range(1, 18)]


def test_statistics(house: House) -> None:
    (worker,) = house.route(0)
    house.ask(3)
    house.loop.advance(4 * MS)
    house.complete(worker)
    house.router.close(house.done[0])  # type: ignore[arg-type]
    missed = house.ask(timeout_ns=MS)
    house.loop.advance(5 * MS)
    assert missed.status == 504
    stats = house.router.stats()
    assert (stats["name"], stats["inference_count"], stats["execution_count"]) == ("toy", 3, 1)
    assert stats["inference_stats"]["success"] == {"count": 1, "ns": 4 * MS}
    assert stats["inference_stats"]["queue"] == {"count": 1, "ns": 3 * MS}
    assert stats["inference_stats"]["compute_infer"] == {"count": 1, "ns": MS}
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert stats["batch_stats"][0]["batch_size"] == 3
    observed = house.router.observe()
    assert observed["p95_ms"] == pytest.approx(4.0, rel=0.02)
    assert observed["accuracy_served"] == 80.0
    assert observed["arrival_rate"] == pytest.approx(4.0)
    assert observed["p95_least_ms"] == 0.0  # of one answer
    # What clients see has what HTTP adds besides.
    measured = profile(variants={variant.name: (80.0, 1.0) for variant in house.router.spec.variants})
    house.router.expect(structs.replace(measured, front_ms=1.5))
    assert house.router.observe()["p95_ms"] == pytest.approx(5.5, rel=0.02)
    house.router.expect_front(0.5)
    assert house.router.observe()["p95_ms"] == pytest.approx(4.5, rel=0.02)
    assert house.router.observe()["p95_least_ms"] == 0.5
    assert house.router.front_ms == 0.5


# --- no slot is ever lost ---------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Everything that can happen, in any order: slots add up, every ticket is answered once, none is answered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(slots=12)
        self.tickets: list[RouterTicket] = []
        self.answers: dict[int, int] = {}
        self.entries: list[Any] = []
        self.standing: list[Any] = []
        self.cascade = False

    def _route(self, **knobs: Any) -> None:
        if self.cascade:
            knobs = {"chain": ("small", "medium", "large"), "thresholds": (0.5, 0.7), **knobs}
        self.house.router.route(self.entries, dealt(0.5, 0.2, 0.3, **knobs), self._standby())

    def _standby(self) -> StandbyWorkers:
        return StandbyWorkers(lane=0, entries=tuple(self.standing), longest_wait_ns=5 * MS, rates=(100.0, 100.0, 100.0))

    def _done(self, ticket: Any) -> None:
        self.answers[id(ticket)] = self.answers.get(id(ticket), 0) + 1

    def _alive(self) -> list[FakeWorker]:
        return [link.worker for link in self.house.router.state.lanes.links]  # type: ignore[misc]

    @rule(lane=st.integers(0, 2))
    def add(self, lane: int) -> None:
        if len(self.entries) < 4:
            self.entries.append(self.house.entry(lane, max_batch=3))
            self._route()

    @rule()
    def enlist(self) -> None:
        if len(self.standing) < 2:
            self.standing.append(self.house.entry(0, max_batch=3))
            self.house.router.set_standby(self._standby())

    @precondition(lambda self: self.standing)
    @rule(data=st.data(), promoted=st.booleans())
    def dismiss(self, data: st.DataObject, promoted: bool) -> None:
        entry = data.draw(st.sampled_from(self.standing))
        self.standing.remove(entry)
        if promoted:
            self.entries.append(entry)
            self._route()
        else:
            self.house.router.leave(entry[0], lambda: None)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.entries.remove(data.draw(st.sampled_from(self.entries)))
        self._route()

    @rule(wait_ms=st.sampled_from([0.0, 2.0, 20.0]), rows=st.integers(1, 4), cascade=st.booleans())
    def turn_the_knobs(self, wait_ms: float, rows: int, cascade: bool) -> None:
        self.cascade = cascade
        knobs = {"wait_ms": {"small": wait_ms, "large": 5.0}, "largest": {"small": rows}}
        self._route(**knobs)

    @rule(
        rows=st.integers(1, 5),
        accuracy=st.sampled_from([0.0, 82.0]),
        timeout=st.sampled_from([0, 3, 30]),
        client=st.integers(0, 2),
    )
    def ask(self, rows: int, accuracy: float, timeout: int, client: int) -> None:
        try:
            ticket = self.house.router.open(rows, client)
        except (Unavailable, Overloaded):
            return
        try:
            self.house.router.submit(ticket, self._done, min_accuracy=accuracy, timeout_ns=timeout * MS)
        except (Unavailable, Overloaded):
            self.house.router.close(ticket)
            return
        self.tickets.append(ticket)

    @rule()
    def turn(self) -> None:
        self.house.loop.turn()

    @rule(duration=st.integers(1, 10))
    def wait(self, duration: int) -> None:
        self.house.loop.advance(duration * MS)

    @precondition(lambda self: any(w.ring.batches for w in self._alive()))
    @rule(data=st.data(), status=st.sampled_from([0, 0, 0, 1]), score=st.sampled_from([0.1, 0.6, 0.9]))
    def complete(self, data: st.DataObject, status: int, score: float) -> None:
        worker = data.draw(st.sampled_from([w for w in self._alive() if w.ring.batches]))
        slots = worker.ring.batches[0][1]
        self.house.slab.score[slots] = score + 0.1 * np.arange(len(slots))
        self.house.complete(worker, status)

    @precondition(lambda self: self._alive())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self._alive()))
        self.entries = [entry for entry in self.entries if entry[0] is not worker]
        self.standing = [entry for entry in self.standing if entry[0] is not worker]
        self.house.router.died(worker, "killed")

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        answered = self.answers.pop(id(ticket), 0)
        assert answered == (1 if ticket.status else 0)
        self.house.router.close(ticket)

    @invariant()
    def adds_up(self) -> None:
        self.house.check_slots()
        assert all(count == 1 for count in self.answers.values())
        for ticket in self.tickets:
            assert len(self.house.router.escalation.paths(ticket)) == len(ticket.variants)
            for row, before in ticket.paths.items():
                assert len(set(before)) == len(before)
                assert ticket.variants[row] not in before

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.house.router.close(ticket)
        for worker in self._alive():
            while worker.ring.batches:
                self.house.complete(worker)
        self.house.check_slots()
        assert self.house.router.observe()["free_slots"] == 12


TestNoSlotIsEverLost = Machine.TestCase
TestNoSlotIsEverLost.settings = settings(max_examples=examples(80), stateful_step_count=50, deadline=None)
