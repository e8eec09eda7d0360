"""More rows than can be served: what is taken is answered in time, and no client takes what is due to another."""

from __future__ import annotations

import random

import pytest

from clover.errors import Overloaded
from clover.runtime.router.lane_pace import ProfiledPace
from tests.support.overload import Load
from tests.support.router_fixture import MS, SECOND, House, dealt


def loaded(lanes: tuple[int, ...] = (0,), slots: int = 8192, service_ms: float = 40.0, **config: float) -> Load:
    house = House(slots=slots, **config)
    return Load(house, house.route(*lanes), service_ms)


# --- goodput ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("times", [1.1, 1.5, 3.0])
@pytest.mark.parametrize("timeout_s", [1, 30])
def test_goodput_stays_at_capacity_for_two_minutes(times: float, timeout_s: int) -> None:
    load = loaded()
    load.run(120.0, times * load.capacity, lambda number: load.ask(1 + number % 64, timeout_s * SECOND))
    for begin in range(5, 115, 10):
        rows = sum(load.answered[second] for second in range(begin, begin + 10))
        assert rows >= 0.97 * 10 * load.capacity, begin
    assert load.late == 0
    accepted = load.statuses[200] + load.statuses[504]
    assert load.statuses[504] <= 0.03 * accepted, load.statuses
    overload = load.house.router.traffic.overload
    assert overload.get("late", 0) + overload.get("dropped", 0) == load.statuses[429] + load.statuses[504]
    load.house.check_slots()


def test_workers_that_slow_down_cost_goodput_for_a_moment_only() -> None:
    load = loaded()
    rate = 1.5 * load.capacity
    load.run(20.0, rate, lambda number: load.ask(1 + number % 64, SECOND))
    load.service_ms = 100.0
    load.run(20.0, rate, lambda number: load.ask(1 + number % 64, SECOND))
    assert sum(load.answered[second] for second in range(22, 38)) >= 0.95 * 16 * load.capacity
    load.service_ms = 40.0
    load.run(20.0, rate, lambda number: load.ask(1 + number % 64, SECOND))
    assert sum(load.answered[second] for second in range(42, 58)) >= 0.95 * 16 * load.capacity
    assert load.late == 0


def test_a_refusal_says_when_to_come_back_and_the_ticket_stays_open() -> None:
    load = loaded()
    load.run(10.0, 3.0 * load.capacity, lambda number: load.ask(1 + number % 64, SECOND))
    ticket = load.house.router.open(1, 99)
    with pytest.raises(Overloaded, match="after the deadline") as refused:
        load.house.router.submit(ticket, print, timeout_ns=100 * MS)
    assert refused.value.retry_after_s is not None
    load.house.router.submit(ticket, print, timeout_ns=5 * SECOND)  # still open


def test_requests_are_refused_unread_while_a_row_would_wait_longer_than_the_familys_timeout() -> None:
    load = loaded(timeout_ms=1000.0)
    router = load.house.router

    def ask(number: int) -> None:
        if router.retry_in_s(1 + number % 64) == 0.0:
            load.ask(1 + number % 64, 60 * SECOND)

    load.run(30.0, 2.0 * load.capacity, ask)
    assert max(load.latency_ms) < 1500.0
    assert sum(load.answered[second] for second in range(5, 30)) >= 0.97 * 25 * load.capacity
    refused = router.traffic.overload["late"]
    assert router.traffic.codes[429] == refused > 0.4 * 30.0 * load.capacity
    load.run(5.0, 0.0, print)
    assert router.retry_in_s(7) == 0.0


def test_what_is_refused_unread_counts_with_the_usual_rows_of_a_request() -> None:
    """Else plans would be made for a thirty-second of the load that an overload brings."""
    load = loaded(timeout_ms=1000.0)
    router = load.house.router

    def ask(number: int) -> None:
        if router.retry_in_s(1 + number % 64) == 0.0:
            load.ask(1 + number % 64, 60 * SECOND, rows=32)

    load.run(20.0, 2.0 * load.capacity / 32, ask)
    assert router.traffic.overload["late"] > 20
    assert router.observe()["arrival_rate"] == pytest.approx(2.0 * load.capacity, rel=0.1)


# --- estimates that are wrong -----------------------------------------------------------------------------------------


def test_after_a_pause_of_the_workers_rows_are_answered_again() -> None:
    load = loaded()
    load.run(10.0, load.capacity * 1.2, lambda number: load.ask(1 + number % 16, SECOND))
    load.service_ms = 15_000.0  # stopped for a while
    load.run(20.0, load.capacity * 1.2, lambda number: load.ask(1 + number % 16, SECOND))
    load.service_ms = 40.0
    load.run(40.0, load.capacity * 1.2, lambda number: load.ask(1 + number % 16, SECOND))
    last = max(load.answered)
    assert sum(load.answered[second] for second in range(last - 10, last)) >= 0.95 * 10 * load.capacity


@pytest.mark.parametrize("before", [0, 50])
def test_a_slow_batch_condemns_no_row_behind_it(before: int) -> None:
    load = loaded(service_ms=5.0)
    for _ in range(before):
        load.ask(1)
        load.run(0.01, 0.0, print)
    load.service_ms = 600.0  # the first batch of a worker, or one beside a start
    load.ask(1)
    load.run(1.0, 0.0, print)
    load.service_ms = 5.0
    load.ask(1)
    load.run(1.0, 0.0, print)
    for number in range(300):
        load.ask(number, SECOND)
    load.run(2.0, 0.0, print)
    assert load.statuses == {200: before + 302}


def test_one_row_is_always_tried_while_no_row_waits() -> None:
    load = loaded(service_ms=2000.0)
    for _ in range(20):  # whatever the lane is believed to need, an idle worker gets the row
        ticket = load.ask(1, 100 * MS)
        assert ticket is not None
        load.run(2.5, 0.0, print)
    assert load.statuses == {504: 20}
    load.service_ms = 40.0
    for _ in range(10):
        load.ask(1, 100 * MS)
        load.run(0.5, 0.0, print)
    assert load.statuses[200] == 10


def test_a_request_that_fits_into_a_batch_is_tried_as_well_and_a_long_one_is_refused() -> None:
    load = loaded()
    load.run(10.0, 3.0 * load.capacity, lambda number: load.ask(1 + number % 64, SECOND))
    load.run(3.0, 0.0, print)
    assert load.ask(1, 40 * MS, rows=4) is not None
    assert load.ask(1, SECOND, rows=200) is None
    assert load.ask(1, 5 * SECOND, rows=200) is not None
    load.run(6.0, 0.0, print)
    assert load.house.router.idle
    assert load.ask(1, SECOND, rows=400) is None
    load.run(12.0, 0.0, print)
    assert load.ask(1, SECOND, rows=400) is not None  # by then the pace is too old


# --- fairness ---------------------------------------------------------------------------------------------------------


def test_a_shorter_timeout_is_no_priority() -> None:
    load = loaded()

    def ask(number: int) -> None:
        load.ask(1 + number % 2, (20 + 10 * (number % 2)) * SECOND)

    load.run(60.0, 1.3 * load.capacity, ask)
    assert load.by_client[1] == pytest.approx(load.by_client[2], rel=0.1)


def test_a_flood_of_one_client_delays_others_by_a_row_each() -> None:
    load = loaded()
    flood = load.capacity * 3.0
    quiet: list[float] = []

    def ask(number: int) -> None:
        load.ask(1, 30 * SECOND)
        if number % 30 == 0:  # five rows a second
            ticket = load.ask(2)
            assert ticket is not None
            asked_ns = load.house.loop.now_ns
            ticket.on_done = lambda done: (
                quiet.append((load.house.loop.now_ns - asked_ns) / MS),
                load.house.router.close(done),
            )

    load.run(60.0, flood, ask)
    assert len(quiet) > 500
    assert max(quiet) <= 3 * 40.0 + 1.0  # two batches are with the worker, and it is in the next one


def test_a_request_of_20_000_rows_delays_others_by_a_row_each() -> None:
    load = loaded(slots=32768, service_ms=4.0)
    long = load.ask(1, 60 * SECOND, rows=20_000)
    assert long is not None
    load.run(1.0, 0.0, print)
    short = load.ask(2)
    assert short is not None
    load.run(0.013, 0.0, print)
    assert short.status == 200
    load.run(30.0, 0.0, print)
    assert long.status == 200
    assert load.by_client == {1: 20_000, 2: 1}


def test_a_part_of_the_queue_and_of_the_slots_is_kept_for_clients_that_have_little_waiting() -> None:
    load = loaded(slots=128, queue_rows=64)
    while load.ask(1) is not None:
        load.house.loop.turn()
    router = load.house.router
    assert router.state.batcher.depth() == 56
    assert router.retry_in_s(1) > 0.0
    assert router.retry_in_s(2) == 0.0
    assert [load.ask(client) is not None for client in range(2, 12)] == [True] * 8 + [False] * 2
    assert router.traffic.overload["queue"] == 4
    load = loaded(slots=64)
    while load.ask(1) is not None:
        load.house.loop.turn()
    assert load.house.router.observe()["free_slots"] == 8.0
    assert load.house.router.traffic.overload == {"slots": 1}
    assert load.ask(2) is not None
    whole = loaded(slots=64)
    assert whole.ask(1, rows=64) is not None  # nothing waits: it may take all
    assert whole.ask(2) is None


def test_rows_of_every_client_are_answered_once_under_any_mixture() -> None:
    rng = random.Random(7)
    load = loaded(lanes=(0, 0), slots=512)
    asked = 0

    def ask(number: int) -> None:
        nonlocal asked
        client = rng.choice([1, 1, 1, 2, 3, 100 + number])
        asked += 1
        load.ask(client, round(rng.choice([0.05, 0.2, 1.0, 30.0]) * SECOND), rows=rng.choice([1, 1, 2, 9]))

    load.run(60.0, load.capacity, ask)
    load.run(40.0, 0.0, print)
    assert sum(load.statuses.values()) == asked
    assert load.late == 0
    assert load.statuses[200] > 0.2 * asked
    load.house.check_slots()
    assert load.house.router.observe()["free_slots"] == 512.0


def test_a_row_of_a_cascade_that_would_be_late_at_its_next_stage_keeps_its_answer() -> None:
    house = House()
    small, large = house.entry(0), house.entry(2)
    house.router.route([small, large], dealt(1.0, chain=("small", "large"), thresholds=(0.5,)))
    for _ in range(4):  # what the large one needs is known from here on
        house.ask(min_accuracy=88.0)
        house.loop.advance(5 * SECOND)
        house.complete(large[0])
    for _ in range(2):
        house.ask(min_accuracy=88.0)  # it is busy
    row = house.ask(timeout_ns=8 * SECOND)
    house.slab.score[row.slots] = 0.1
    house.complete(small[0])
    assert row.paths
    house.loop.advance(5 * SECOND)
    house.complete(large[0])  # this took five seconds, and less than that is left
    assert (row.status, row.variants, row.cut_short) == (200, [0], {0})
    assert house.router.traffic.cut_short == {"deadline": 1}
    assert house.router.traffic.overload == {}
    house.check_slots()


# --- the longest wait -------------------------------------------------------------------------------------------------


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("times", [1.5, 3.0])
def test_what_is_taken_is_answered_within_twice_the_slo_at_capacity(times: float, rows: int) -> None:
    load = loaded()
    load.house.router.aim(100.0, 0.0)
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    load.run(60.0, times * load.capacity / rows, lambda number: load.ask(1 + number % 64, rows=rows))
    assert p95(load.latency_ms) <= 200.0
    assert sum(load.answered[second] for second in range(5, 60)) >= 0.95 * 55 * load.capacity
    assert load.statuses[504] == 0
    assert load.house.router.traffic.overload == {"slo": load.statuses[429]}
    load.house.check_slots()


def test_a_longest_wait_of_0_refuses_by_deadline_only() -> None:
    load = loaded(max_wait_slo=0.0, timeout_ms=5000.0)
    load.house.router.aim(100.0, 0.0)
    load.run(30.0, 3.0 * load.capacity, lambda number: load.ask(1 + number % 64))
    assert set(load.house.router.traffic.overload) == {"late"}
    assert p95(load.latency_ms) > 2000.0


def test_an_slo_that_cannot_be_met_costs_no_goodput() -> None:
    load = loaded()
    load.house.router.aim(5.0, 0.0)  # a batch takes 40 ms
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    load.run(30.0, 3.0 * load.capacity, lambda number: load.ask(1 + number % 64))
    assert sum(load.answered[second] for second in range(5, 30)) >= 0.9 * 25 * load.capacity
    assert p95(load.latency_ms) <= 4 * 40.0


def test_before_a_pace_is_measured_the_profile_bounds_a_burst() -> None:
    load = loaded()
    router = load.house.router
    router.aim(100.0, 0.0)
    router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    taken = sum(load.ask(client) is not None for client in range(1, 500))
    assert taken <= 0.2 * load.capacity, "200 ms of work"
    load.run(1.0, 0.0, print)
    assert max(load.latency_ms) <= 200.0


def test_a_retry_when_it_was_asked_for_is_taken() -> None:
    house = House(slots=8192)
    load = Load(house, house.route(0, 0), 40.0)
    router = house.router
    router.aim(150.0, 0.0)
    due: dict[int, list[int]] = {}
    kept: list[bool] = []

    def wait_s(number: int) -> float:
        """Ask, with an id of its own; return 0, or when to come back."""
        ticket = None
        try:
            ticket = router.open(1, 1 + number % 128, 1000 + number)
            router.submit(ticket, load._done)
        except Overloaded as error:
            if ticket is not None:
                router.close(ticket)
            return error.retry_after_s or 0.001
        return 0.0

    fresh = 0
    seconds = 30
    rate = 3.0 * load.capacity
    at = 0
    while at <= 1000 * seconds or due:
        load.run(0.001, 0.0, print)
        while at <= 1000 * seconds and fresh < at * rate / 1000.0:
            refused_s = wait_s(fresh)
            if refused_s:
                due.setdefault(at + round(1000 * refused_s), []).append(fresh)
            fresh += 1
        kept.extend(wait_s(number) == 0.0 for number in due.pop(at, ()))
        at += 1
    assert len(kept) > 0.5 * fresh
    assert sum(kept) >= 0.9 * len(kept)
    assert p95(load.latency_ms) <= 300.0
    assert sum(load.answered[second] for second in range(2, seconds)) >= 0.9 * (seconds - 2) * load.capacity
    assert router.traffic.retries["taken"] == sum(kept)


def test_a_long_request_is_taken_while_no_row_waits_and_does_not_keep_single_rows_out() -> None:
    load = loaded()
    load.house.router.aim(100.0, 0.0)
    load.run(5.0, 0.9 * load.capacity, lambda number: load.ask(1 + number % 64))
    load.run(1.0, 0.0, print)
    assert load.ask(1, rows=100) is not None, "one second of work"
    load.run(0.1, 0.0, print)
    assert load.ask(2) is not None
    load.run(2.0, 0.0, print)
    assert load.statuses[429] == 0


def test_a_cascade_whose_last_variant_is_behind_refuses_rows() -> None:
    house = House(slots=4096)
    small, large = house.entry(0), house.entry(2)
    house.router.route([small, large], dealt(1.0, chain=("small", "large"), thresholds=(0.5,)))
    house.router.aim(100.0, 0.0)
    load = Load(house, [small[0], large[0]], 40.0)
    house.slab.score[:] = 0.1  # all rows are escalated
    load.run(20.0, 3.0 * load.capacity / 2, lambda number: load.ask(1 + number % 64))
    assert load.statuses[429] > 0.5 * 20 * load.capacity / 2
    assert p95(load.latency_ms) <= 3 * 200.0


def test_a_variant_that_has_room_takes_over_if_it_keeps_the_floor() -> None:
    house = House(slots=4096)
    small, medium, large = (house.entry(lane) for lane in range(3))  # 80, 85 and 90 %
    house.router.route([small, medium, large], dealt(0.0, 0.0, 1.0))
    house.router.aim(100.0, 84.0)
    load = Load(house, [small[0], medium[0], large[0]], 40.0)
    one = load.capacity / 3
    load.run(20.0, 1.8 * one, lambda number: load.ask(1 + number % 64))
    assert load.statuses[429] < 0.05 * sum(load.statuses.values())
    rows = house.router.traffic.rows
    assert rows[0] == 0
    assert rows[2] > 0.9 * 20 * one, "the planned one first"
    assert rows[1] > 0.7 * 20 * 0.8 * one
    assert 0 <= house.router.traffic.diverted_rows - rows[1] <= 20, "the last ones are not answered yet"
    load.run(2.0, 0.0, print)
    load.statuses.clear()
    load.run(10.0, 1.8 * one / 2, lambda number: load.ask(1 + number % 64, rows=2))
    assert load.statuses[429] < 0.1 * sum(load.statuses.values())
    house.check_slots()
