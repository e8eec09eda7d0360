"""Cascades before the router row by row, and the planner's model of them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from bench.stages import APART, draw
from clover.planning.cascade.evaluation import play_latencies_ms, play_once
from clover.planning.model.queueing import Service
from tests.support.chains_fixture import FAST, SLOW
from tests.support.row_by_row import Time, play

pytestmark = pytest.mark.slow

TWO = Service((1, 2, 4, 8), (4.0, 4.4, 5.2, 6.8), (1.0,) * 4, 0.1)
"""Takes hardly longer for more rows: batches that come together are worth much."""
STEADY = ((FAST,), (SLOW,)), 40.0, (1.0, 0.25)


def p95_ms(stages: tuple[tuple[Service, ...], ...], rate: float, reach: tuple[float, ...]) -> float:
    return float(np.quantile(play_latencies_ms(stages, rate, reach), 0.95))


# --- row by row -------------------------------------------------------------------------------------------------------


def test_time_passes_from_timer_to_timer() -> None:
    time, seen = Time(), []
    time.call_later(2.0, lambda: seen.append(("late", time.now_ns)))
    timer = time.call_later(1.0, lambda: seen.append(("never", time.now_ns)))
    time.call_later(0.5, lambda: time.call_soon(lambda: seen.append(("soon", time.now_ns))))
    timer.cancel()
    time.until(1_500_000_000)
    assert seen == [("soon", 500_000_000)]
    time.until(3_000_000_000)
    assert seen[1:] == [("late", 2_000_000_000)]
    assert time.clock() == 3_000_000_000


def test_rows_before_the_router_take_what_their_stages_take() -> None:
    """At no load: 1 ms, and 10 more for a fifth of the rows."""
    found = play(((FAST,), (SLOW,)), 0.5, (1.0, 0.2), rows=4000, warm_up=10)
    assert len(found.latency_ms) == 4000
    assert found.reach == (1.0, pytest.approx(0.2, abs=0.02))
    later = found.latency_ms > 5.0
    assert later.mean() == pytest.approx(found.reach[1])
    assert np.median(found.latency_ms[~later]) == pytest.approx(1.0)
    assert np.median(found.latency_ms[later]) == pytest.approx(11.0)


def test_one_stage_before_the_router_is_a_queue_whose_wait_is_known() -> None:
    """M/D/1 at a load of 0.5 waits half a service in the mean."""
    found = play(((SLOW,),), 50.0, (1.0,), rows=20_000, warm_up=500)
    assert found.latency_ms.mean() == pytest.approx(15.0, rel=0.03)


def test_the_same_seed_gives_the_same_rows() -> None:
    one, two = (play(*STEADY, rows=500, warm_up=10, seed=3) for _ in range(2))
    assert one.latency_ms.tolist() == two.latency_ms.tolist()


# --- the model --------------------------------------------------------------------------------------------------------


def test_rows_that_go_on_from_a_batch_share_one_again() -> None:
    """Eight rows of a batch that all go on take the second stage once, not eight times."""
    stages, rate = ((TWO, TWO), (TWO, TWO)), 900.0
    found = play(stages, rate, (1.0, 0.4), rows=20_000, warm_up=500)
    assert p95_ms(stages, rate, (1.0, 0.4)) == pytest.approx(float(np.quantile(found.latency_ms, 0.95)), rel=0.05)


def test_rows_end_where_the_profile_says_whatever_chance_did() -> None:
    values, cumulated = play_once(((FAST,), (SLOW,)), 0.5, (1.0, 0.2), rows=300, warm_up=0, seed=1)
    assert cumulated[-1] == pytest.approx(1.0)
    assert cumulated[np.searchsorted(values, 5.0) - 1] == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(12))
def test_the_model_is_what_the_router_does(seed: int) -> None:
    """Drawn configurations, as `bench.stages` draws hundreds; rows enough to know most p95 within 5 %."""
    drawn = draw(random.Random(seed))
    found = play(drawn.stages, drawn.rate, drawn.reach, rows=20_000, warm_up=2_000, seed=seed)
    told = p95_ms(drawn.stages, drawn.rate, drawn.reach)
    apart = told / float(np.quantile(found.latency_ms, 0.95)) - 1.0
    if abs(apart) > APART:
        late = [float((block > told).mean()) for block in np.array_split(found.latency_ms, 20)]
        noise = 2.9 * float(np.std(late, ddof=1)) / math.sqrt(20)
        assert abs(np.mean(late) - 0.05) < noise, f"{apart:+.1%}"
