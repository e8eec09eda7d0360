from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.model.queueing import (
    Service,
    capacity,
    energy_j_per_row,
    estimate,
    expected_batch,
    lane_of,
    late,
    latencies_ms,
    mixture_p95_ms,
    play,
    play_batches,
)
from tests.reference.des_reference import Lane, SimulatedWorker, quantile, simulate
from tests.support.examples import examples

BATCHES = (1, 2, 4, 8, 16, 32)


def service(fixed_ms: float, row_ms: float, cv: float = 0.1) -> Service:
    return Service(
        BATCHES,
        tuple(fixed_ms + row_ms * b for b in BATCHES),
        tuple(0.002 + 0.01 / b for b in BATCHES),
        cv,
    )


DES_CASES = [
    (workers, shape, load, share)
    for workers in (1, 2, 4)
    for shape in ((0.2, 1.0), (1.0, 0.2))
    for load, share in ((0.3, 1.0), (0.5, 0.4), (0.8, 1.0))
]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shape", "load", "share"), DES_CASES)
def test_the_model_agrees_with_a_plain_simulation(
    workers: int, shape: tuple[float, float], load: float, share: float
) -> None:
    lane = (service(*shape),) * workers
    rate = load * capacity(lane)
    predicted = estimate(lane, rate, share)
    lanes = [Lane(share, [SimulatedWorker(lane[0].seconds, 32, 0.1) for _ in range(workers)])]
    if share < 1.0:
        lanes.append(Lane(1.0 - share, [SimulatedWorker(lambda b: 1e-6 * b, 32)]))
    simulate(lanes, rate / share, int(12_000 / share), seed=7)
    batch = sum(lanes[0].batches) / len(lanes[0].batches)
    # 15 %: sampling error of both sides (about 3 % each at low load, more at 80 %), and rates rounded up by up to 3 %.
    assert predicted.p95_ms == pytest.approx(quantile(lanes[0].latencies, 0.95) * 1e3, rel=0.15)
    assert predicted.batch == pytest.approx(batch, rel=0.1)
    assert predicted.energy_j_per_row == pytest.approx(lane[0].energy_j(batch), rel=0.1)
    assert predicted.utilisation == pytest.approx(load)


def test_mixed_workers_and_two_lanes_agree_with_a_plain_simulation() -> None:
    fast, slow, other = service(0.5, 0.5), service(1.0, 1.0), service(0.2, 0.3)
    lane_a, lane_b = (fast, slow), (other,)
    rate = 0.6 * (capacity(lane_a) / 0.7)
    p95 = mixture_p95_ms([(0.7, latencies_ms(lane_a, 0.7 * rate, 0.7)), (0.3, latencies_ms(lane_b, 0.3 * rate, 0.3))])
    lanes = [
        Lane(0.7, [SimulatedWorker(fast.seconds, 32, 0.1), SimulatedWorker(slow.seconds, 32, 0.1)]),
        Lane(0.3, [SimulatedWorker(other.seconds, 32, 0.1)]),
    ]
    everything = simulate(lanes, rate, 20_000, seed=3)
    assert p95 == pytest.approx(quantile(everything, 0.95) * 1e3, rel=0.15)


def test_md1_mean_wait() -> None:
    """One worker, batches of one, constant service: wait = rho s / 2(1-rho)."""
    only = Service((1,), (10.0,), (1.0,), 0.0)
    waits = latencies_ms((only,), 50.0 / 1.03)
    mean_wait_ms = float(waits.mean()) - 10.0
    assert mean_wait_ms == pytest.approx(10.0 * 0.5 / (2 * 0.5), rel=0.15)


def test_a_lane_played_with_waits_and_caps() -> None:
    lane = lane_of(((service(4.0, 0.5), 2),))
    plain = play_batches(lane, 100.0, 0.5)
    assert np.array_equal(plain.latencies_ms, latencies_ms(lane.workers, 100.0, 0.5))
    assert plain.energy_j_per_row == pytest.approx(lane.energy_j(100.0, 0.5), rel=0.1)
    waits = play_batches(lane, 100.0, 0.5, wait_ms=40.0)
    assert waits.batch == pytest.approx(1.0 + 100.0 * 0.04, rel=0.1)
    assert waits.energy_j_per_row < 0.6 * plain.energy_j_per_row
    assert plain.latencies_ms[-1] < waits.latencies_ms[-1] < 40.0 + 1.6 * (4.0 + 0.5 * 16)
    capped = play_batches(lane, 100.0, 0.5, wait_ms=40.0, largest=2)
    assert 1.9 < capped.batch <= 2.0
    assert play_batches(lane, 100.0, 0.5, largest=1).batch == 1.0
    assert play_batches(lane, 100.0, 0.5, wait_ms=40.0) is waits  # played once
    assert play_batches(lane, 100.0, 0.5, wait_ms=40.0, rows=3_000).batch == pytest.approx(waits.batch, rel=0.03)


def test_a_batch_below_the_smallest_measured_costs_what_that_one_costs() -> None:
    only = Service((8, 16), (20.0, 30.0), (0.5, 0.4))
    assert [batch * only.energy_j(batch) for batch in (0.5, 1, 2, 8, 12)] == pytest.approx([2.0, 4.0, 4.0, 4.0, 5.2])
    assert only.least_energy_to(2) == pytest.approx(2.0)
    assert only.least_energy_to(9) == only.energy_j(9)
    assert only.least_energy_j == 0.4


def test_limits() -> None:
    one = service(0.2, 1.0)
    assert estimate((one,), 1e-3).p95_ms == pytest.approx(1.2 * (1 + 1.645 * 0.1), rel=0.05)
    assert expected_batch(one, 0.0) == 1.0
    overloaded = estimate((one,), 1.01 * one.capacity())
    assert math.isinf(overloaded.p95_ms)
    assert overloaded.utilisation > 1.0
    assert expected_batch(one, 10 * one.capacity()) == pytest.approx(32.0, abs=0.01)


def test_a_share_of_the_machine_slows_service_and_leaves_energy() -> None:
    whole, half = service(0.2, 1.0), service(0.2, 1.0).derate(0.5)
    assert half.seconds(3) == pytest.approx(2 * whole.seconds(3))
    assert half.capacity() == pytest.approx(whole.capacity() / 2)
    assert half.energy_j(3) == whole.energy_j(3)


def test_the_same_question_has_the_same_answer() -> None:
    lane = (service(0.5, 0.5), service(1.0, 1.0))
    assert estimate(lane, 500.0) == estimate(tuple(reversed(lane)), 500.0)


def test_mixtures() -> None:
    quick, slow = latencies_ms((service(0.2, 0.1),), 100.0), latencies_ms((service(9.0, 1.0),), 10.0)
    assert mixture_p95_ms([(1.0, quick), (0.0, slow)]) == mixture_p95_ms([(1.0, quick)])
    assert mixture_p95_ms([(0.97, quick), (0.03, slow)]) < float(slow[0])
    assert mixture_p95_ms([(0.9, quick), (0.1, slow)]) >= float(slow[0])
    assert math.isinf(mixture_p95_ms([]))


@settings(max_examples=examples(30), deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.01), min_size=1, max_size=200),
    workers=st.integers(1, 4),
    fixed_ms=st.floats(0.1, 5.0),
)
def test_play_serves_every_row_once_and_after_it_came(gaps: list[float], workers: int, fixed_ms: float) -> None:
    arrivals, now = [], 0.0
    for gap in gaps:
        now += gap
        arrivals.append(now)
    one = service(fixed_ms, 0.5, cv=0.0)
    latencies_s = play([one] * workers, np.array(arrivals))
    assert len(latencies_s) == len(arrivals)
    assert (latencies_s >= one.seconds(1) - 1e-12).all()


@settings(max_examples=examples(30), deadline=None)
@given(rate=st.floats(0.0, 2000.0), workers=st.integers(1, 4))
def test_energy_never_falls_below_its_bound(rate: float, workers: int) -> None:
    lane = (service(0.2, 1.0),) * workers
    assert energy_j_per_row(lane, rate) >= lane_of(((lane[0], workers),)).least_energy_j() - 1e-12


@settings(max_examples=examples(60), deadline=None)
@given(
    few=st.integers(1, 3),
    many=st.integers(0, 4),
    load=st.floats(0.05, 0.9),
    share=st.floats(0.1, 1.0),
    factor=st.floats(0.2, 1.0),
)
def test_the_least_energy_of_a_lane_is_never_undercut(
    few: int, many: int, load: float, share: float, factor: float
) -> None:
    lane = lane_of(((service(0.5, 0.5), few), *(((service(2.0, 0.3), many),) if many else ())))
    rate = load * lane.capacity
    assert lane.capacity == pytest.approx(capacity(lane.workers))
    assert lane.count == few + many == len(lane.workers)
    assert lane.least_energy_j(rate) <= lane.energy_j(rate * factor, share) * (1 + 1e-3)
    assert lane.least_energy_j() <= lane.least_energy_j(rate) * (1 + 1e-9)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("fast", "slow"), [(0, 3), (1, 1), (3, 1), (1, 6)])
def test_rows_called_late_are_late(load: float, fast: int, slow: int) -> None:
    groups = [(service(0.2, 0.2), fast), (service(4.0, 1.0), slow)]
    lane = lane_of(tuple(group for group in groups if group[1]))
    limit_ms = 5.0  # a single row takes 5 ms on a slow worker
    values = latencies_ms(lane.workers, load * lane.capacity)
    assert 0.0 < lane.late(limit_ms) <= float((values >= limit_ms * 0.999).mean()) + 0.02
    assert lane.late(5.1) == 0.0


def test_a_batch_after_a_pause_costs_more_and_a_busy_worker_does_not_pause() -> None:
    warm = Service((1, 8), (0.1, 0.4), (1e-3, 0.5e-3))
    rested = Service((1, 8), (0.1, 0.4), (1e-3, 0.5e-3), 0.0, 0.8e-3)
    slow, busy = (lane_of(((rested, 1),)).energy_j(rate) - lane_of(((warm, 1),)).energy_j(rate) for rate in (1.0, 1e5))
    assert slow == pytest.approx(0.8e-3, rel=0.01), "a second between rows: all of it"
    assert busy == 0.0
    # 1,000 rows a second: a mean pause of 0.9 ms, and of 2 ms this costs 0.45 (1 - exp(-1 / 0.45)).
    assert rested.resting_j(1.0, 1000.0) == pytest.approx(0.8e-3 * 0.45 * (1.0 - math.exp(-1.0 / 0.45)))
    rates = [1.0, 10.0, 100.0, 1000.0, 5000.0, 20_000.0]
    costs = [lane_of(((rested, 2),)).energy_j(rate) for rate in rates]
    assert costs == sorted(costs, reverse=True)
    assert all(cost >= lane_of(((rested, 2),)).least_energy_j(rate) for cost, rate in zip(costs, rates, strict=True))
    for rate in (1.0, 1000.0):
        lane, other = lane_of(((rested, 2),)), lane_of(((warm, 2),))
        assert lane.energy_j(rate) - lane.resting_j(rate) == pytest.approx(other.energy_j(rate))
        assert lane.resting_j(rate, batch=lane.batch(rate)) == pytest.approx(lane.resting_j(rate))
        assert other.resting_j(rate) == 0.0
    assert lane_of(((rested, 2),)).resting_j(1.0, batch=4.0) == pytest.approx(0.2e-3, rel=0.01), "of a batch, not a row"
    assert rested.derate(0.5).rested_j == rested.rested_j
    assert hash(warm) != hash(rested)


def test_a_worker_that_serves_wakes_up_at_a_price_that_grows_for_eight_milliseconds() -> None:
    plain, woken = service(0.1, 0.1), replace(service(0.1, 0.1), wake_j=1e-3)
    # 100 rows a second: a mean pause of 9.8 ms, 1.225 times that after which everything is cold.
    assert woken.resting_j(1.0, 100.0) == pytest.approx(1e-3 * 1.225 * (1.0 - math.exp(-1.0 / 1.225)))
    assert woken.resting_j(1.0, 0.0) == 1e-3
    assert woken.resting_j(1.0, 1e5) == plain.resting_j(1.0, 100.0) == 0.0
    assert woken.resting_j(4.0, 100.0) < 0.5 * woken.resting_j(1.0, 100.0)
    assert hash(plain) != hash(woken)


def test_a_batch_costs_the_front_end_a_turn_and_one_that_waited_two() -> None:
    plain, asked = (lane_of(((replace(service(0.1, 0.1), turn_j=turn_j), 1),)) for turn_j in (0.0, 1e-3))
    for rate, wait_ms, turns in ((1.0, 0.0, 1.0), (200.0, 0.0, 1.0), (200.0, 8.0, 2.0)):
        more_j = asked.energy_j(rate, wait_ms=wait_ms) - plain.energy_j(rate, wait_ms=wait_ms)
        assert more_j == pytest.approx(turns * 1e-3 / asked.batch(rate, wait_ms=wait_ms))
    assert asked.batch(200.0, wait_ms=8.0) == pytest.approx(2.6, abs=0.01)
    assert hash(plain.groups[0][0]) != hash(asked.groups[0][0])


def test_what_the_front_end_adds_is_part_of_every_latency() -> None:
    plain = service(1.0, 0.2)
    fronted = replace(plain, front_ms=3.0)
    rate = 0.6 * plain.capacity()
    assert estimate((fronted,), rate).p95_ms == pytest.approx(estimate((plain,), rate).p95_ms + 3.0)
    assert latencies_ms((fronted,), rate) == pytest.approx(latencies_ms((plain,), rate) + 3.0)
    lanes = [lane_of(((one, 1),)) for one in (plain, fronted)]
    waiting = [play_batches(lane, rate, wait_ms=2.0).latencies_ms for lane in lanes]
    assert waiting[1] == pytest.approx(waiting[0] + 3.0)
    assert late((fronted,), rate, 8.0) == late((plain,), rate, 5.0)
    assert [lane.late(2.0) for lane in lanes] == [0.0, 0.5], "a row of 1.2 ms takes 4.2 with the front end"
    assert energy_j_per_row((fronted,), rate) == energy_j_per_row((plain,), rate)
    assert fronted.derate(0.5).front_ms == 3.0


def test_a_lane_without_workers_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="a lane needs a worker"):
        lane_of(())
