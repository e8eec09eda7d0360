"""The batcher: nothing lost, nothing twice, the right order, and never more batches out than credits."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.reference import batcher as twin
from tests.support.examples import examples

OUT = np.zeros(64, np.uint32)


def slots(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.uint32)


def dispatched(batcher: Any, now_ns: int = 1) -> tuple[int, list[int]] | None:
    batch = batcher.dispatch(now_ns, OUT)
    return None if batch is None else (batch[0], OUT[: batch[1]].tolist())


def test_a_row_needs_a_worker_with_a_credit(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    assert b.push(0, 3, 100, 1)
    assert dispatched(b) is None
    assert not b.lane_has_worker(0)
    b.attach(0, 0, 4, credits=1)
    assert b.lane_has_worker(0)
    assert dispatched(b) == (0, [3])
    assert b.push(0, 4, 100, 1)
    assert dispatched(b) is None
    b.credit(0)
    assert dispatched(b) == (0, [4])
    assert b.outstanding(0) == 1
    assert b.depth() == 0


def test_a_client_is_served_first_come_first_served_whatever_the_deadlines(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 8)
    for slot, deadline_ns in ((0, 50), (1, 40), (2, 50), (3, 40), (4, 10)):
        b.push(0, slot, deadline_ns, 1)
    assert dispatched(b) == (0, [0, 1, 2, 3, 4])


def test_clients_are_served_in_turn(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 32)
    b.attach(0, 0, 4, credits=8)
    b.push_many(0, list(range(10)), 100, 1, client=7)
    assert dispatched(b) == (0, [0, 1, 2, 3])
    b.push(0, 20, 100, 1, client=8)  # one row waits for none of the six
    b.push_many(0, [30, 31], 100, 1, client=9)
    assert dispatched(b) == (0, [4, 20, 30, 5])
    assert dispatched(b) == (0, [31, 6, 7, 8])
    assert dispatched(b) == (0, [9])


def test_the_background_is_behind_all_clients_and_is_none(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 2, credits=4)
    b.push(0, 0, 100, 1, client=-1)
    b.push(0, 1, 100, 1, client=-1)
    b.push_many(0, [2, 3, 4], 100, 1, client=5)
    assert (b.rows_ahead(0, 5, 1), b.rows_ahead(0, 6, 1)) == (4, 2)
    assert [dispatched(b) for _ in range(3)] == [(0, [2, 3]), (0, [4, 0]), None]
    b.credit(0)
    assert dispatched(b) is None
    b.credit(0)
    assert dispatched(b) == (0, [1])


def test_the_background_alone_leaves_only_for_a_worker_that_has_nothing_out(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 2, 16, max_queue_delay_ns=10)
    b.attach(0, 0, 2, credits=2)
    b.push_many(0, [0, 1], 100, 1, client=5)
    assert dispatched(b, 1) == (0, [0, 1])
    b.push(0, 2, 100, 1, client=-1)
    assert (dispatched(b, 50), b.next_event_ns(50)) == (None, 0)  # it is the worker that it waits for, no time
    b.attach(1, 0, 2, credits=2)
    assert b.next_event_ns(50) == 50
    assert dispatched(b, 50) == (1, [2])
    b.push(0, 3, 100, 1, client=-1)
    assert dispatched(b, 50) is None
    b.push(0, 4, 100, 50, client=5)
    assert (b.next_event_ns(50), dispatched(b, 50)) == (50, (0, [4, 3]))  # it joins the batch of a client


def test_a_batch_that_was_not_queued_is_for_a_worker_that_has_nothing_out(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 3, 8)
    assert not b.claim(0, 1)  # it is not attached
    b.attach(0, 0, 4, 2, 0)
    b.attach(1, 1, 4, 2, 0)  # in its group
    assert b.claim(0, 1)
    assert not b.claim(0, 1)
    assert not b.claim(1, 1)
    b.push(1, 3, 100, 1)
    assert dispatched(b) == (1, [3])  # the other credit is there for clients
    b.push(0, 4, 100, 1)
    assert dispatched(b) is None
    b.credit(0, 5)
    assert dispatched(b, 5) == (0, [4])
    assert not b.claim(0, 5)
    with pytest.raises(IndexError):
        b.claim(3, 1)


def test_the_rows_ahead_are_ones_own_and_as_many_of_each_other_client(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 1, 64)
    b.push_many(0, list(range(20)), 100, 1, client=1)
    b.push_many(0, list(range(20, 24)), 100, 1, client=2)
    b.push_many(1, list(range(24, 30)), 100, 1, client=2)
    assert b.rows_ahead(0, 3, 1) == 1 + 1 + 1
    assert b.rows_ahead(0, 3, 10) == 10 + 20
    assert b.rows_ahead(0, 3, 100) == 100 + 2 * 24 + 100  # they may send as many again meanwhile
    assert b.rows_ahead(0, 2, 1) == 5 + 5
    assert b.rows_ahead(0, 1, 1) == 21 + 21
    assert b.rows_ahead(1, 1, 3) == 3 + 3
    assert [b.waiting_of(client) for client in (1, 2, 3, -1)] == [20, 10, 0, 0]


def test_a_flood_that_is_given_up_leaves_no_debt(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 64)
    b.attach(0, 0, 4, credits=9)
    b.push_many(0, list(range(20)), 100, 1, client=1)
    b.push_many(0, list(range(20, 28)), 100, 1, client=2)
    for slot in range(2, 20):
        b.cancel(slot)
    b.push_many(0, [30, 31, 32], 100, 1, client=1)
    assert dispatched(b) == (0, [0, 20, 1, 21])
    assert dispatched(b) == (0, [22, 30, 23, 31])


def test_no_stream_of_new_clients_holds_up_an_old_one(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 64)
    b.attach(0, 0, 1, credits=1000)
    b.push_many(0, list(range(8)), 100, 1, client=1)
    served = 0
    for client in range(2, 102):  # one row of a new client for each that leaves; three of them always wait
        b.push(0, 8 + client % 50, 100, 1, client=client)
        if client > 4:
            batch = dispatched(b)
            assert batch is not None
            served += batch[1][0] < 8
    assert served == 8


def test_the_lane_with_the_earliest_bucket_serves_that_first(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 2, 8)
    b.attach(0, 0, 8)
    b.attach(1, 1, 8)
    b.push(1, 1, 40, 1)
    b.push(0, 0, 50, 1, 5)
    b.push(0, 2, 50, 1, 6)
    assert [dispatched(b) for _ in range(3)] == [(0, [0]), (0, [2]), (1, [1])]


def test_a_batch_holds_one_key(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 8, credits=4)
    for slot, key in enumerate((7, -9, 7, -9, 2**62)):
        b.push(0, slot, 10 + slot, 1, key)
    assert [dispatched(b) for _ in range(4)] == [(0, [0, 2]), (0, [1, 3]), (0, [4]), None]


def test_the_least_busy_worker_serves_and_ties_rotate(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 3, 16)
    for worker in (2, 0, 1):
        b.attach(worker, 0, 1)
    for slot in range(8):
        b.push(0, slot, 10, 1)
    order = [b.dispatch(1, OUT) for _ in range(7)]
    assert order == [(0, 1), (1, 1), (2, 1), (0, 1), (1, 1), (2, 1), None]
    b.credit(1)
    b.credit(1)
    b.credit(2)
    assert b.dispatch(1, OUT) == (1, 1)


def test_a_detached_worker_gets_nothing_more(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 2, 8)
    b.attach(0, 0, 1)
    b.attach(1, 0, 1)
    for slot in range(6):
        b.push(0, slot, 10, 1)
    assert dispatched(b) == (0, [0])
    b.detach(0)
    assert [dispatched(b) for _ in range(3)] == [(1, [1]), (1, [2]), None]
    assert b.outstanding(0) == 1
    b.credit(0)
    assert dispatched(b) is None
    with pytest.raises(ValueError):
        b.detach(0)
    b.attach(0, 0, 4)
    assert dispatched(b) == (0, [3, 4, 5])


def test_capacity_bounds_pushes_but_not_requeues(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 3, 0, 8)
    assert b.push_many(0, [0, 1], 10, 1)
    assert not b.push_many(0, slots(2, 3), 10, 1)
    assert b.depth() == 2
    assert b.push_many(0, slots(2), 10, 1)
    assert not b.push(0, 3, 10, 1)
    b.requeue(0, [3, 4], 5, 1)
    b.attach(0, 0, 8)
    assert dispatched(b) == (0, [0, 1, 2, 3, 4])
    b.push_many(0, [5, 6], 10, 1)
    b.requeue(0, [1, 0], 10, 1)
    assert dispatched(b) == (0, [0, 1, 5, 6])  # those that return keep their places


def test_a_row_that_comes_from_another_lane_waits_for_its_turn_there(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 2, 32)
    b.attach(0, 0, 8)
    b.push_many(0, list(range(8)), 100, 1, client=1)
    dispatched(b)
    b.requeue(1, list(range(6)), 100, 1, client=1)
    b.push(1, 20, 100, 1, client=2)
    b.attach(1, 1, 4)
    assert dispatched(b) == (1, [0, 20, 1, 2])


def test_a_bad_push_changes_nothing(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 1, 4)
    b.push(0, 1, 10, 1)
    for bad in ([2, 1], [2, 2], slots(3, 1)):
        with pytest.raises(ValueError):
            b.push_many(0, bad, 10, 1)
    for bad in ([2, 4], slots(2, 2**32 - 1)):
        with pytest.raises(IndexError):
            b.push_many(0, bad, 10, 1)
    with pytest.raises(ValueError):
        b.push(1, 1, 10, 1)
    for lane, slot in ((0, 4), (0, -1), (2, 0), (-1, 0)):
        with pytest.raises(IndexError):
            b.push(lane, slot, 10, 1)
    with pytest.raises(IndexError):
        b.requeue(2, [0], 10, 1)
    assert b.depth() == 1
    assert b.push_many(0, [0, 2, 3], 10, 1)


def test_arguments_out_of_range_are_refused(kernels: SimpleNamespace) -> None:
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, -1), (1, 1, 1, 0, -1)):
        with pytest.raises(ValueError):
            kernels.batcher.Batcher(*sizes)
    b = kernels.batcher.Batcher(2, 2, 4)
    for call in (b.credit, b.outstanding, b.detach, b.cancel, b.lane_has_worker, b.depth, b.saturated, b.most):
        with pytest.raises(IndexError):
            call(9)
        with pytest.raises(IndexError):
            call(-2)
    for worker, lane in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            b.attach(worker, lane, 1)
    for limits in ((0, 1), (1, 0), (1, 1 << 15)):
        with pytest.raises(ValueError):
            b.attach(0, 0, *limits)
    for lane in (2, -1):
        with pytest.raises(IndexError):
            b.set_lane(lane, 1, 1)
    for knobs in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError):
            b.set_lane(0, *knobs)
    b.attach(0, 0, 1)
    with pytest.raises(ValueError):
        b.attach(0, 1, 1)
    with pytest.raises(ValueError):
        b.credit(0)
    with pytest.raises(ValueError):
        b.dispatch(1, np.zeros(0, np.uint32))
    for lane in (2, -1):
        with pytest.raises(IndexError):
            b.expect(lane, 5)
        with pytest.raises(IndexError):
            b.rows_ahead(lane, 0, 1)


def test_cancel_takes_a_row_out_wherever_it_stands(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 32)
    b.attach(0, 0, 4)
    for slot in range(32):
        b.push(0, slot, 100, 1, client=(slot * 7) % 13)
    assert dispatched(b) is not None  # gives the heap a shape
    waiting = set(range(32)) - set(OUT[:4].tolist())
    for slot in (2, 31, 15, 16, 9):
        assert b.cancel(slot) == (slot in waiting)
        assert not b.cancel(slot)
        waiting.discard(slot)
    assert b.depth(0) == len(waiting)
    assert dispatched(b, 100) is None
    assert b.dropped == len(waiting)
    assert set(b.take_dropped()) == waiting


def test_rows_that_are_too_late_are_dropped_and_never_sent(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 2, credits=3)
    for slot, deadline_ns in enumerate((30, 10, 20, 40, 10, 50)):
        b.push(0, slot, deadline_ns, 1)
    assert dispatched(b, 20) == (0, [0, 3])
    assert (b.dropped, b.depth()) == (2, 2)
    with pytest.raises(ValueError):
        b.push(0, 1, 99, 1)  # until it is taken
    assert not b.cancel(2)
    assert sorted(b.take_dropped()) == [1, 2]
    assert (b.dropped, b.take_dropped()) == (0, [])
    assert b.push(0, 1, 99, 1)
    assert dispatched(b, 50) == (0, [1])
    assert sorted(b.take_dropped()) == [4, 5]
    assert b.outstanding(0) == 2
    b.push(0, 4, 60, 1)
    assert dispatched(b, 60) is None  # all are too late: no batch, no credit
    assert (b.take_dropped(), b.outstanding(0)) == ([4], 2)


def test_a_row_is_too_late_if_its_worker_is_busy_for_too_long(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 1)
    b.expect(0, 50)
    b.push(0, 0, 110, 1)
    assert dispatched(b, 100) == (0, [0])  # an idle worker tries: it may be faster than expected
    b.push(0, 1, 150, 1)
    b.push(0, 2, 151, 1)
    assert dispatched(b, 100) == (0, [2])
    assert b.take_dropped() == [1]


def test_a_lane_is_saturated_while_rows_wait_and_no_credit_is_left(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 1, 8)
    b.push(0, 0, 100, 1)
    assert not b.saturated(0)  # no worker is there
    b.attach(0, 0, 4, credits=1)
    assert not b.saturated(0)
    dispatched(b)
    assert not b.saturated(0)
    b.push(0, 1, 100, 1)
    assert b.saturated(0)
    assert not b.saturated(1)
    assert b.most(0) == 4
    b.set_lane(0, 3, 0)
    assert b.most(0) == 3


def test_a_delay_lets_a_batch_fill(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 2, 8, 100)
    b.push(0, 0, 10_000, 1_000)
    assert b.next_event_ns(1_000) == 0  # no worker could take it
    b.attach(0, 0, 2)
    b.attach(1, 0, 4)
    assert b.next_event_ns(1_000) == 1_100
    assert dispatched(b, 1_099) is None
    b.push(0, 1, 10_000, 1_099)
    assert dispatched(b, 1_099) == (0, [0, 1])  # full for worker 0
    b.push(0, 2, 10_000, 1_100)
    assert dispatched(b, 1_199) is None
    assert dispatched(b, 1_200) == (1, [2])  # has waited long enough
    b.push(0, 3, 10_000, 1_200)
    b.requeue(0, [2], 10_000, 1_200)
    assert b.next_event_ns(1_200) == 1_200
    assert dispatched(b, 1_200) == (0, [2, 3])  # a row on its second try waits for no other


def test_each_lane_has_its_own_delay_which_may_change_while_rows_wait(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 2, 8, 100)
    b.attach(0, 0, 4)
    b.attach(1, 1, 4)
    b.push(0, 0, 10_000, 1_000)
    b.push(1, 1, 10_000, 1_000)
    b.set_lane(1, 0, 0)
    assert dispatched(b, 1_000) == (1, [1])
    assert b.next_event_ns(1_000) == 1_100  # lane 0 waits as it was made to
    b.set_lane(0, 0, 500)
    assert dispatched(b, 1_100) is None
    assert b.next_event_ns(1_100) == 1_500
    b.set_lane(0, 0, 200)
    assert b.next_event_ns(1_300) == 1_300
    assert dispatched(b, 1_300) == (0, [0])
    b.set_lane(1, 0, 50)
    b.push(1, 2, 10_000, 1_300)
    assert b.next_event_ns(1_300) == 1_350
    b.set_lane(1, 0, 0)  # what waited waits no more
    assert dispatched(b, 1_300) == (1, [2])


def test_no_row_waits_for_company_while_the_queue_is_not_patient(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 2, 8, 100)
    b.attach(0, 0, 4)
    b.attach(1, 1, 4)
    assert b.patient
    b.push(0, 0, 10_000, 1_000)
    assert dispatched(b, 1_000) is None
    b.patient = False
    assert b.next_event_ns(1_000) == 1_000
    assert dispatched(b, 1_000) == (0, [0])
    assert b.next_event_ns(1_000) == 0
    b.push(1, 1, 10_000, 1_000)
    b.patient = True
    assert b.next_event_ns(1_000) == 1_100
    assert dispatched(b, 1_000) is None


def test_no_row_waits_for_company_if_a_batch_would_then_miss_its_deadline(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8, 100)
    b.attach(0, 0, 4)
    b.expect(0, 30)
    b.push(0, 0, 1_131, 1_000)
    assert dispatched(b, 1_000) is None
    b.push(0, 1, 1_130, 1_000)
    assert b.next_event_ns(1_000) == 1_000
    assert dispatched(b, 1_000) == (0, [0, 1])


def test_a_lane_may_hold_batches_below_what_its_workers_take(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 3, 16)
    b.attach(0, 0, 4)
    b.attach(1, 0, 2)
    b.attach(2, 1, 4)
    b.set_lane(0, 3, 0)
    b.push_many(0, list(range(8)), 10, 1)
    b.push_many(1, [8, 9, 10, 11], 10, 1)
    assert [dispatched(b) for _ in range(4)] == [(0, [0, 1, 2]), (1, [3, 4]), (0, [5, 6, 7]), (2, [8, 9, 10, 11])]
    b.set_lane(0, 0, 0)
    b.credit(0)
    b.push_many(0, list(range(5)), 10, 1)
    assert dispatched(b) == (1, [0, 1])
    assert dispatched(b) == (0, [2, 3, 4])


def test_a_batch_is_full_at_the_cap_of_its_lane(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 16, 100)
    b.attach(0, 0, 8)
    b.set_lane(0, 2, 100)
    b.push(0, 0, 10_000, 1_000)
    assert dispatched(b, 1_000) is None
    b.push(0, 1, 10_000, 1_001)
    assert dispatched(b, 1_001) == (0, [0, 1])


def test_no_row_waits_past_a_deadline_that_it_could_keep(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 16, 100)
    b.attach(0, 0, 8)
    b.push(0, 0, 10_000, 1_000)
    b.push(0, 1, 1_101, 1_040)
    assert dispatched(b, 1_040) is None  # the delay ends before the deadline does
    b.push(0, 2, 1_100, 1_041)
    assert b.next_event_ns(1_041) == 1_041
    assert dispatched(b, 1_041) == (0, [0, 1, 2])


def test_out_bounds_a_batch(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 8)
    b.push_many(0, [0, 1, 2], 10, 1)
    out = np.zeros(2, np.uint32)
    assert b.dispatch(1, out) == (0, 2)
    assert out.tolist() == [0, 1]
    assert b.depth() == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=64))
def test_every_row_leaves_once_and_those_of_a_client_and_key_in_order(
    kernels: SimpleNamespace, rows: list[tuple[int, int]]
) -> None:
    b = kernels.batcher.Batcher(1, 1, 64)
    b.attach(0, 0, 5, credits=64)
    for slot, (client, key) in enumerate(rows):
        b.push(0, slot, 9, 1, key, client)
    left: list[int] = []
    while (batch := dispatched(b)) is not None:
        assert len({rows[slot][1] for slot in batch[1]}) == 1
        left += batch[1]
    assert sorted(left) == list(range(len(rows)))
    for which in set(rows):
        mine = [slot for slot in left if rows[slot] == which]
        assert mine == sorted(mine)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12)), max_size=40),
    st.integers(1, 6),
)
def test_clients_that_always_have_rows_waiting_get_equal_shares(
    kernels: SimpleNamespace, first: list[int], pushes: list[tuple[int, int]], most: int
) -> None:
    b = kernels.batcher.Batcher(1, 1, 4096)
    b.attach(0, 0, most, credits=4096)
    free, owner = list(range(4096)), {}
    waiting, served = [0] * len(first), [0] * len(first)

    def push(client: int, rows: int) -> None:
        for slot in free[:rows]:
            owner[slot] = client
        b.push_many(0, free[:rows], 9, 1, client=client)
        del free[:rows]
        waiting[client] += rows

    for client, rows in enumerate(first):
        push(client, 20 + rows)
    for client, rows in [*pushes, *[(0, 1)] * 20]:
        push(client % len(first), rows)
        batch = dispatched(b)
        assert batch is not None
        for slot in batch[1]:
            waiting[owner[slot]] -= 1
            served[owner[slot]] += 1
        if min(waiting) == 0:
            break  # from now on one of them has none
        assert max(served) - min(served) <= 1


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(1, 6))
def test_clients_that_always_have_rows_waiting_get_shares_by_their_weights(
    kernels: SimpleNamespace, weights: list[int], most: int
) -> None:
    b = kernels.batcher.Batcher(1, 1, 128)
    b.attach(0, 0, most, credits=128)
    owner: dict[int, int] = {}
    for index, weight in enumerate(weights):
        mine = range(len(owner), len(owner) + 5 * weight)
        owner.update(dict.fromkeys(mine, index))
        b.push_many(0, list(mine), 9, 1, client=weight << 40 | index)
    served = [0] * len(weights)
    while (batch := dispatched(b)) is not None:
        for slot in batch[1]:
            served[owner[slot]] += 1
        rounds = [rows / weight for rows, weight in zip(served, weights, strict=True)]
        if max(rounds) == 5.0:
            break  # from now on one of them has none
        assert max(rounds) - min(rounds) <= 1.0 + 1.0 / min(weights)


def test_the_rows_ahead_count_other_clients_by_weight(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 64)
    b.push_many(0, list(range(30)), 100, 1, client=4 << 40)
    assert b.rows_ahead(0, 1 << 40 | 1, 1) == 1 + 4
    assert b.rows_ahead(0, 8 << 40 | 1, 1) == 1 + 1
    assert b.rows_ahead(0, 8 << 40 | 1, 16) == 16 + 8
    assert b.rows_ahead(0, 4 << 40, 1) == 31


def test_however_heavy_clients_are_their_weights_add_up(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 513)
    b.attach(0, 0, 64, credits=9)
    for slot in range(512):
        b.push(0, slot, 100, 1, client=1 << 62 | slot)  # 2^22 each, together 2^31
    assert b.rows_ahead(0, 5, 1) == 1 + 512
    b.push(0, 512, 100, 1, client=5)
    assert [dispatched(b) for _ in range(9)] == [(0, list(range(at, min(at + 64, 513)))) for at in range(0, 513, 64)]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 30)), min_size=1, max_size=30))
def test_a_single_row_waits_for_one_row_of_each_other_client_and_a_batch(
    kernels: SimpleNamespace, others: list[tuple[int, int]]
) -> None:
    b = kernels.batcher.Batcher(1, 1, 4096)
    b.attach(0, 0, 4, credits=4096)
    slot = 1
    for client, rows in others:
        b.push_many(0, list(range(slot, slot + rows)), 9, 1, client=client)
        slot += rows
        dispatched(b)
    b.push(0, 0, 9, 1, client=99)
    bound = len({client for client, _ in others}) + 4
    left: list[int] = []
    while 0 not in left:
        batch = dispatched(b)
        assert batch is not None
        left += batch[1]
    assert left.index(0) < bound


def test_rows_that_weigh_much_end_a_batch(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 32)
    b.attach(0, 0, 8, credits=9)
    for slot, weight in enumerate((1, 18, 1, 20, 30, 500, 1, 1 << 40, 0)):
        b.weigh(slot, weight)
    b.push_many(0, list(range(9)), 100, 1)
    batches = [dispatched(b) for _ in range(7)]
    assert batches == [*[(0, rows) for rows in ([0, 1, 2, 3], [4], [5], [6], [7], [8])], None]


def test_a_client_of_heavy_rows_gets_no_more_time_than_others(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 200)
    b.attach(0, 0, 2, credits=200)
    for slot in range(10):
        b.weigh(slot, 12)
    b.push_many(0, list(range(10)), 100, 1, client=1)
    b.push_many(0, list(range(10, 100)), 100, 1, client=2)
    left = [slot for _ in range(40) for slot in (dispatched(b) or (0, []))[1]]
    heavy = [at for at, slot in enumerate(left) if slot < 10]
    assert heavy[:6] == [0, 13, 26, 39, 52, 65]  # a heavy row for twelve others
    b.push(0, 150, 100, 1, client=3)
    left = [slot for _ in range(6) for slot in (dispatched(b) or (0, []))[1]]
    assert 150 in left  # within the time of one heavy row


def test_a_heavy_row_that_is_given_up_leaves_no_debt(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 8)
    b.attach(0, 0, 1, credits=9)
    b.weigh(1, 900)
    b.push_many(0, [0, 1, 2], 100, 1, client=1)
    b.cancel(1)
    b.push_many(0, [3, 4], 100, 1, client=2)
    b.push(0, 5, 100, 1, client=1)
    b.cancel(2)
    assert [dispatched(b) for _ in range(4)] == [(0, [0]), (0, [3]), (0, [4]), (0, [5])]


def test_what_waits_is_not_weighed(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(1, 1, 4)
    b.push(0, 1, 100, 1)
    with pytest.raises(ValueError):
        b.weigh(1, 2)
    for slot in (-1, 4):
        with pytest.raises(IndexError):
            b.weigh(slot, 2)


def shared(kernels: SimpleNamespace, lanes: int, credits: int = 2, capacity: int = 64) -> Any:
    """Return a batcher of `lanes` lanes that one group serves, worker i lane i."""
    b = kernels.batcher.Batcher(lanes, lanes, capacity)
    for lane in range(lanes):
        b.attach(lane, lane, 4, credits, group=0)
    return b


def test_workers_of_a_group_share_their_credits(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 2)
    b.push_many(0, list(range(8)), 100, 1)
    b.push_many(1, [10, 11], 100, 1)
    assert [dispatched(b) for _ in range(3)] == [(0, [0, 1, 2, 3]), (0, [4, 5, 6, 7]), None]
    assert b.saturated(1)
    b.credit(0)
    assert dispatched(b) == (1, [10, 11])
    assert (b.outstanding(0), b.outstanding(1)) == (1, 1)
    b.push(0, 0, 100, 1)
    assert dispatched(b) is None
    b.credit(1)
    assert dispatched(b) == (0, [0])


def test_the_lane_whose_next_row_has_waited_longest_goes_first(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 3, credits=9)
    b.push(1, 4, 100, 1)
    dispatched(b)
    b.push(2, 0, 100, 1)
    b.push(0, 1, 100, 2)
    b.push(1, 2, 100, 2)
    b.push(2, 3, 100, 3, key=5)
    b.requeue(1, [4], 100, 9)  # has waited before all of them
    assert [dispatched(b) for _ in range(4)] == [(1, [4, 2]), (2, [0]), (0, [1]), (2, [3])]


def test_the_background_of_a_lane_is_behind_the_clients_of_all(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 2, credits=9)
    b.push(0, 0, 100, 1, client=-1)
    b.push_many(1, [1, 2, 3, 4, 5], 100, 9, client=1)
    assert [dispatched(b) for _ in range(3)] == [(1, [1, 2, 3, 4]), (1, [5]), None]
    b.credit(1)
    assert dispatched(b) is None  # the rows that come meanwhile would be behind it
    b.credit(1)
    assert dispatched(b) == (0, [0])


def test_a_lane_that_several_batches_passed_goes_first(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 2, credits=99)
    b.push_many(1, list(range(60)), 100, 1, client=1)
    b.push(0, 60, 100, 2, client=2)  # behind fifteen batches of another client in another lane
    left = [dispatched(b) for _ in range(10)]
    assert [batch[0] for batch in left if batch] == [1] * 8 + [0, 1]


def test_a_worker_of_its_own_helps_a_lane_of_a_group(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(2, 3, 64)
    b.attach(0, 0, 4, 1, group=2)
    b.attach(1, 1, 4, 1, group=2)
    b.attach(2, 1, 4, 1, group=0)
    for slot in range(4):
        b.push(1 - slot % 2, slot, 100, 1, key=slot)
    assert [dispatched(b) for _ in range(3)] == [(1, [0]), (2, [2]), None]
    b.credit(1)
    assert dispatched(b) == (0, [1])
    b.credit(2)
    assert dispatched(b) is None


def test_a_batch_waits_for_that_of_another_lane_before_it(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 2, credits=2)
    b.expect(0, 10)
    b.expect(1, 50)
    b.push(1, 0, 999, 100)
    assert dispatched(b, 100) == (1, [0])  # until 150 at least
    b.push(0, 1, 160, 110)
    b.push(0, 2, 161, 110)
    assert dispatched(b, 110) == (0, [2])
    assert b.take_dropped() == [1]
    b.credit(1, 170)
    b.push(0, 3, 189, 175)
    b.push(0, 4, 191, 175)
    assert dispatched(b, 175) == (0, [4])  # that of lane 0 runs since 170
    assert b.take_dropped() == [3]


def test_a_worker_that_comes_back_to_its_group_has_its_batches_out(kernels: SimpleNamespace) -> None:
    b = shared(kernels, 2)
    b.push_many(0, list(range(6)), 100, 1)
    b.push_many(1, [10], 100, 1)
    dispatched(b)
    b.detach(0)
    assert dispatched(b) == (1, [10])
    b.attach(0, 0, 4, 2, group=0)
    assert dispatched(b) is None
    b.credit(0)
    assert dispatched(b) == (0, [4, 5])


def test_what_no_group_can_be_is_refused(kernels: SimpleNamespace) -> None:
    b = kernels.batcher.Batcher(3, 4, 8)
    b.attach(0, 0, 4, 2, group=1)
    for index, lane, credits, group in ((1, 1, 3, 1), (1, 0, 2, 1), (1, 1, 2, -1)):
        with pytest.raises(ValueError):
            b.attach(index, lane, 4, credits, group=group)
    for group in (4, -2):
        with pytest.raises(IndexError):
            b.attach(1, 1, 4, 2, group=group)
    b.push(0, 0, 100, 1)
    assert dispatched(b) == (0, [0])
    b.detach(0)
    with pytest.raises(ValueError):
        b.attach(0, 0, 4, 2, group=3)  # its batch is out, and is counted in the group that it was in
    b.attach(0, 0, 4)
    assert b.outstanding(0) == 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 3)), min_size=3, max_size=20),
    st.integers(0, 2),
)
def test_no_lane_of_a_group_starves(kernels: SimpleNamespace, pushes: list[tuple[int, int, int]], lane: int) -> None:
    """However many rows others keep queueing, `PATIENCE` batches a lane are the most that pass one with rows."""
    b = shared(kernels, 3, credits=4096, capacity=4096)
    slot = 1
    for into, rows, client in pushes:
        b.push_many(into, list(range(slot, slot + rows)), 9, 1, client=client)
        slot += rows
    b.push(lane, 0, 9, 2, client=9)
    passed = 0
    for turn in range(80):
        b.push_many((lane + 1 + turn % 2) % 3, list(range(slot, slot + 8)), 9, 3, client=turn)
        slot += 8
        batch = dispatched(b)
        assert batch is not None
        passed = 0 if batch[0] == lane else passed + 1
        assert passed <= twin.PATIENCE + 1
        if not b.depth(lane):
            break
    assert not b.depth(lane)


LANES, WORKERS, CAPACITY, SLOTS = 3, 4, 12, 16
CLIENTS = st.sampled_from([-1, 0, 1, 2, 3, 3 << 40, 7 << 40 | 1])


class Life(RuleBasedStateMachine):
    """Any life of a batcher, beside its twin and beside plain books of who is where."""

    subject: Any

    @initialize(delay_ns=st.sampled_from([0, 0, 5, 50]))
    def start(self, delay_ns: int) -> None:
        self.now_ns = 1_000
        self.real = self.subject(LANES, WORKERS, CAPACITY, delay_ns, SLOTS)
        self.twin = twin.Batcher(LANES, WORKERS, CAPACITY, delay_ns, SLOTS)
        self.queued: dict[int, tuple[int, int]] = {}  # slot -> lane, key
        self.since_ns: dict[int, float] = {}  # slot -> when it began to wait
        self.deadline_ns: dict[int, int] = {}
        self.client: dict[int, int] = {}
        self.expected_ns = [0] * LANES
        self.most_expected_ns = [0] * LANES
        self.knobs = [(0, delay_ns)] * LANES  # largest batch, delay
        self.rows_of: dict[int, int] = {}
        self.lane_of: dict[int, int] = {}
        self.credits: dict[int, int] = {}
        self.out_of = [0] * WORKERS
        self.group_of = list(range(WORKERS))

    def both(self, name: str, *arguments: Any) -> Any:
        mine, theirs = (getattr(batcher, name)(*arguments) for batcher in (self.real, self.twin))
        assert mine == theirs, (name, arguments)
        return mine

    @rule(step_ns=st.integers(0, 30))
    def time_passes(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @rule(
        data=st.data(),
        lane=st.integers(0, LANES - 1),
        wait_ns=st.integers(0, 40),
        key=st.integers(0, 1),
        client=CLIENTS,
    )
    def push(self, data: st.DataObject, lane: int, wait_ns: int, key: int, client: int) -> None:
        free = [slot for slot in range(SLOTS) if slot not in self.queued]
        if free:
            some = data.draw(st.lists(st.sampled_from(free), unique=True, max_size=6))
            for slot in some[:2]:
                self.both("weigh", slot, data.draw(st.sampled_from([0, 1, 7, 30, 99])))
            name = data.draw(st.sampled_from(["requeue", "push_many"]))
            fits = len(self.queued) + len(some) <= CAPACITY
            taken = self.both(name, lane, some, self.now_ns + wait_ns, self.now_ns, key, client)
            again = name == "requeue"
            if again or taken:
                assert again or fits
                self.queued.update(dict.fromkeys(some, (lane, key)))
                self.client.update(dict.fromkeys(some, client))
                self.since_ns.update(dict.fromkeys(some, -math.inf if again else self.now_ns))
                self.deadline_ns.update(dict.fromkeys(some, self.now_ns + wait_ns))
            else:
                assert not fits

    @rule(lane=st.integers(0, LANES - 1), expected_ns=st.integers(0, 40))
    def expect(self, lane: int, expected_ns: int) -> None:
        self.both("expect", lane, expected_ns)
        self.expected_ns[lane] = expected_ns
        self.most_expected_ns[lane] = max(self.most_expected_ns[lane], expected_ns)

    @rule(lane=st.integers(0, LANES - 1), client=CLIENTS, rows=st.integers(1, 6))
    def rows_ahead(self, lane: int, client: int, rows: int) -> None:
        self.both("rows_ahead", lane, client, rows)

    @rule(slot=st.integers(0, SLOTS - 1))
    def cancel(self, slot: int) -> None:
        assert self.both("cancel", slot) == (slot in self.queued)
        self.queued.pop(slot, None)

    @rule(
        worker=st.integers(0, WORKERS - 1), lane=st.integers(0, LANES - 1), rows=st.integers(1, 5), n=st.integers(1, 3)
    )
    def attach_or_detach(self, worker: int, lane: int, rows: int, n: int) -> None:
        if worker in self.lane_of:
            self.both("detach", worker)
            del self.lane_of[worker]
        elif not self.members(worker) and self.out_beside(worker) <= n:
            self.both("attach", worker, lane, rows, n)
            self.lane_of[worker], self.credits[worker], self.out_of[worker] = lane, n, 0
            self.group_of[worker], self.rows_of[worker] = worker, rows

    @rule(worker=st.integers(0, WORKERS - 1), lane=st.integers(0, LANES - 1), group=st.integers(0, 1))
    def attach_to_group(self, worker: int, lane: int, group: int) -> None:
        """Workers 0 and 1 alone may have been members of these groups before."""
        if worker in self.lane_of:
            return
        members = self.members(group)
        out = sum(self.out_of[other] for other in range(WORKERS) if self.group_of[other] == group)
        fits = all(self.credits[other] == 2 and self.lane_of[other] != lane for other in members) and out <= 2
        if fits and (not self.out_of[worker] or self.group_of[worker] == group):
            self.both("attach", worker, lane, 4, 2, group)
            self.lane_of[worker], self.credits[worker] = lane, 2
            self.group_of[worker], self.rows_of[worker] = group, 4
        else:
            for batcher in (self.real, self.twin):
                with pytest.raises(ValueError):
                    batcher.attach(worker, lane, 4, 2, group)

    def out_beside(self, worker: int) -> int:
        """Batches that others have out in the group of the worker's own number."""
        return sum(self.out_of[other] for other in range(WORKERS) if self.group_of[other] == worker != other)

    def members(self, group: int) -> list[int]:
        """Attached workers of a group."""
        return [worker for worker in self.lane_of if self.group_of[worker] == group]

    def has_credit(self, worker: int) -> bool:
        group = self.group_of[worker]
        out = sum(self.out_of[other] for other in range(WORKERS) if self.group_of[other] == group)
        return out < self.credits[worker]

    def idle(self, worker: int) -> bool:
        """Whether nobody in the worker's group has a batch out."""
        return not any(self.out_of[w] for w in range(WORKERS) if self.group_of[w] == self.group_of[worker])

    @rule(lane=st.integers(0, LANES - 1), rows=st.integers(0, 4), delay_ns=st.sampled_from([0, 0, 3, 20, 60]))
    def set_lane(self, lane: int, rows: int, delay_ns: int) -> None:
        self.both("set_lane", lane, rows, delay_ns)
        self.knobs[lane] = rows, delay_ns

    @rule(patient=st.booleans())
    def be_patient(self, patient: bool) -> None:
        self.real.patient = self.twin.patient = patient

    @rule(worker=st.integers(0, WORKERS - 1))
    def claim(self, worker: int) -> None:
        claimed = self.both("claim", worker, self.now_ns)
        assert claimed == (worker in self.lane_of and self.idle(worker))
        self.out_of[worker] += claimed

    @rule(worker=st.integers(0, WORKERS - 1))
    def credit(self, worker: int) -> None:
        if self.out_of[worker]:
            self.both("credit", worker, self.now_ns)
            self.out_of[worker] -= 1
        else:
            for batcher in (self.real, self.twin):
                with pytest.raises(ValueError):
                    batcher.credit(worker)

    @rule()
    def dispatch(self) -> None:
        mine, theirs = np.zeros(8, np.uint32), np.zeros(8, np.uint32)
        batch = self.real.dispatch(self.now_ns, mine)
        assert batch == self.twin.dispatch(self.now_ns, theirs)
        for slot in self.both("take_dropped"):
            lane, _ = self.queued.pop(slot)
            assert self.deadline_ns[slot] <= self.now_ns + self.expected_ns[lane] + max(self.most_expected_ns)
        if batch is not None:
            worker, n = batch
            assert mine[:n].tolist() == theirs[:n].tolist()
            assert min(self.deadline_ns[slot] for slot in mine[:n].tolist()) > self.now_ns
            rows = [self.queued.pop(slot) for slot in mine[:n].tolist()]
            assert {lane for lane, _ in rows} == {self.lane_of[worker]}
            assert len(set(rows)) == 1
            assert n <= self.most(worker)
            assert self.idle(worker) or any(self.client[slot] >= 0 for slot in mine[:n].tolist())
            self.out_of[worker] += 1
        else:
            self.nobody_waits_too_long()

    def most(self, worker: int) -> int:
        """Rows of a batch of that worker."""
        return min(self.rows_of[worker], self.knobs[self.lane_of[worker]][0] or self.rows_of[worker])

    def nobody_waits_too_long(self) -> None:
        """Where no batch is to be had, rows that a worker could take wait neither for long nor for nothing."""
        for lane, key in set(self.queued.values()):
            able = [w for w, own in self.lane_of.items() if own == lane and self.has_credit(w)]
            mine = [slot for slot, where in self.queued.items() if where == (lane, key)]
            if able and (any(self.client[slot] >= 0 for slot in mine) or any(map(self.idle, able))):
                ends_ns = min(self.since_ns[slot] for slot in mine) + self.knobs[lane][1]
                assert self.now_ns < ends_ns
                assert ends_ns + self.expected_ns[lane] < min(self.deadline_ns[slot] for slot in mine)
                assert self.real.patient
                assert len(mine) < min(map(self.most, able))
                assert self.real.next_event_ns(self.now_ns) <= ends_ns

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "real"):
            assert self.both("depth") == len(self.queued)
            for lane in range(LANES):
                assert self.both("depth", lane) == sum(entry[0] == lane for entry in self.queued.values())
                assert self.both("lane_has_worker", lane) == (lane in self.lane_of.values())
                able = [w for w, own in self.lane_of.items() if own == lane and self.has_credit(w)]
                waits = any(entry[0] == lane for entry in self.queued.values())
                assert self.both("saturated", lane) == (waits and lane in self.lane_of.values() and not able)
            for worker in range(WORKERS):
                assert self.both("outstanding", worker) == self.out_of[worker]
                if worker in self.lane_of:
                    group = [other for other in range(WORKERS) if self.group_of[other] == self.group_of[worker]]
                    assert sum(self.out_of[other] for other in group) <= self.credits[worker]
            for client in (-1, 0, 1, 3, 3 << 40, 7 << 40 | 1):
                mine = sum(self.client[slot] == client >= 0 for slot in self.queued)
                assert self.both("waiting_of", client) == mine
            for worker in self.lane_of:
                assert self.both("most", worker) == self.most(worker)
            self.both("next_event_ns", self.now_ns)


@pytest.mark.slow
def test_any_life_of_a_batcher(kernels: SimpleNamespace) -> None:
    machine = type("Machine", (Life,), {"subject": staticmethod(kernels.batcher.Batcher)})
    run_state_machine_as_test(machine, settings=settings(max_examples=examples(80), stateful_step_count=60))
