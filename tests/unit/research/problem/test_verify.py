"""The verify step: what the simulator says of a configuration, and how sure that is."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover._native import des
from clover.research.problem import exact, intervals, verify
from clover.research.problem.file import Counts, ProblemFile
from tests.reference.problems import of_plain, plain_problem, random_counts

GROUPS = [("slow", "1g", 20.0), ("fast", "7g", 4.0), ("dull", "1g", 100.0)]


def problem_of(rate: float, *, cv: float = 0.2, **change: Any) -> ProblemFile:
    groups = [
        {"variant": v, "slice": s, "service_ms": ms, "cv": cv, "energy_j": 1.0, "accuracy": 80.0, "fits": True}
        for v, s, ms in GROUPS
    ]
    plain = plain_problem(2, 1, model="pf") | {
        "groups": groups,
        "partition_slices": ["1g", "7g"],
        "partitions": [[7, 0], [0, 1]],
        "arrival_rate": rate,
        "sla_ms": 60.0,
    }
    return of_plain(plain | change)


def counts_of(*numbers: int) -> Counts:
    return np.array(numbers, dtype=np.int64)


def test_equal_workers_hold_and_agree() -> None:
    """M/G/7 at a load of 0.7: Erlang's formulas are within 3 %."""
    problem = problem_of(245.0)
    found = verify.verify(problem, counts_of(7, 0, 0))
    assert found.accepted
    assert found.why == ""
    assert not found.misses
    model = exact.evaluate(problem, counts_of(7, 0, 0))
    assert found.model_quantile_s == pytest.approx(model.p95_s, rel=1e-6)
    assert found.quantile_s == pytest.approx(model.p95_s, rel=0.03)
    assert 0.0 < found.half_width_s < 0.01 * found.quantile_s
    assert found.shares.tolist() == [1.0, 0.0, 0.0]
    assert (found.energy_j, found.accuracy) == (pytest.approx(model.energy_j), pytest.approx(80.0))
    assert found.f == pytest.approx(model.f)


def test_the_interval_covers_the_truth() -> None:
    """M/D/1, whose wait is known: Erlang's series of 1909, at a load of 0.5."""
    service_s, rate = 0.004, 125.0
    found = verify.verify(problem_of(rate, cv=0.0), counts_of(0, 1, 0))

    def on_time(t_s: float) -> float:
        wait_s = t_s - service_s
        terms = ((rate * (k * service_s - wait_s)) for k in range(math.floor(wait_s / service_s) + 1))
        return 0.5 * sum(x**k / math.factorial(k) * math.exp(-x) for k, x in enumerate(terms))

    assert on_time(found.quantile_s - found.half_width_s) <= 0.95 <= on_time(found.quantile_s + found.half_width_s)


def test_a_missed_sla_is_seen() -> None:
    """The limit between what the model says and the true p95."""
    roomy = verify.verify(problem_of(245.0), counts_of(7, 0, 0))
    tight = problem_of(245.0, sla_ms=roomy.quantile_s * 1e3 * 0.98)
    found = verify.verify(tight, counts_of(7, 0, 0))
    assert found.misses
    assert not found.holds
    assert found.agrees
    assert not found.accepted
    assert f"exceed the SLA of {tight.sla_ms:.4g} ms; 5% may" in found.why


@pytest.mark.parametrize(
    ("numbers", "load", "why"),
    [
        ((1, 0, 1), 0.3, "share of dull@1g"),
        ((3, 1, 1), 0.3, "share of fast@7g"),
        ((0, 1, 1), 0.7, "below the simulated"),
    ],
)
def test_what_the_mean_field_gets_wrong_is_rejected(numbers: tuple[int, ...], load: float, why: str) -> None:
    """A few unequal workers: shares points off, or half of the p95.  The product form is right about them."""
    counts = counts_of(*numbers)
    rate = load * float((counts / problem_of(1.0).service_s).sum())
    found = verify.verify(problem_of(rate, model="mf", sla_ms=500.0), counts)
    assert found.holds
    assert not found.agrees
    assert not found.accepted
    assert why in found.why
    assert verify.verify(problem_of(rate, sla_ms=500.0), counts).accepted


@pytest.mark.slow
def test_slow_workers_do_not_start_in_step() -> None:
    """Regular, slow, nearly always busy: begun all at once they stay in step, and short runs see too little of them."""
    gpus, slowest = 100, 10
    plain = plain_problem(164, gpus)
    counts = random_counts(of_plain(plain), random.Random(164))
    rate = 0.872 * float((counts / of_plain(plain).service_s).sum())
    problem = of_plain(plain | {"arrival_rate": rate, "sla_ms": 1e3})

    def share(arrivals: des.Arrivals, rows: int, warm_up: int, seed: int) -> float:
        given = problem.service_s, counts, arrivals
        played = des.simulate(*given, rows=rows, warm_up=warm_up, seed=seed, law="normal", cv=problem.cv)
        return float(played.shares[slowest])

    settled = share(des.poisson(rate), 2_000_000, 400_000, 1)
    ramp, settle, rows = verify.lengths(problem, counts)
    warm_up = ramp + settle
    at_once = np.mean([share(des.poisson(rate), warm_up + rows, warm_up, 50 + n) for n in range(10)])
    found = verify.verify(problem, counts).shares[slowest]
    assert at_once < settled - 0.0002
    assert abs(found - settled) < 0.0001


def test_the_same_question_gets_the_same_answer() -> None:
    told = [verify.verify(problem_of(200.0), counts_of(7, 0, 0)) for _ in range(2)]
    assert told[0].quantile_s == told[1].quantile_s
    assert told[0].half_width_s == told[1].half_width_s
    assert told[0].shares.tolist() == told[1].shares.tolist()


def test_what_cannot_be_simulated_is_rejected_with_the_reason() -> None:
    for problem, counts, why in (
        (problem_of(400.0), counts_of(7, 0, 0), "overloaded"),
        (problem_of(349.9), counts_of(7, 0, 0), "too near its capacity"),
        (problem_of(100.0), counts_of(0, 0, 0), "overloaded"),
    ):
        found = verify.verify(problem, counts)
        assert not found.accepted
        assert not found.misses  # nothing was shown
        assert found.replications == 0
        assert math.isinf(found.quantile_s)
        assert why in found.why


def test_more_is_simulated_only_where_the_verdict_is_open() -> None:
    clear = verify.verify(problem_of(200.0), counts_of(7, 0, 0))
    assert clear.replications == verify.REPLICATIONS
    near = problem_of(315.0)  # its p95 is 60.2 ms
    closer = verify.verify(near, counts_of(7, 0, 0), most_rows=1_200_000)
    assert closer.replications == 2 * verify.REPLICATIONS
    cut = verify.verify(near, counts_of(7, 0, 0), most_rows=500_000)
    assert cut.replications == verify.REPLICATIONS
    assert not cut.accepted
    assert not cut.misses
    assert "too close to decide" in cut.why


# --- tolerances -------------------------------------------------------------------------------------------------------

SHARE = st.floats(0.0, 1.0)
WIDTH = st.floats(0.0, 0.2)


@given(allowed=st.floats(0.001, 0.5), late=SHARE, width=WIDTH, narrower=st.floats(0.0, 1.0))
def test_the_sla_is_kept_unless_the_whole_interval_is_above(
    allowed: float, late: float, width: float, narrower: float
) -> None:
    told = intervals.keeps(allowed, late, width)
    if late - width > allowed:
        assert told is False
    elif late + width <= allowed:
        assert told is True
    else:  # it spans the limit: let pass only if it is narrow
        assert told is (True if width <= intervals.TOLERANCE * allowed else None)
    if told is True:  # what is let pass is at most so far above
        assert late <= allowed * (1.0 + intervals.TOLERANCE) + 1e-12
    if late > allowed and told is False:  # doubt alone never saves what was shown to miss
        assert intervals.keeps(allowed, late, width * narrower) is False


@given(limit=st.floats(0.001, 0.5), apart=st.floats(-1.0, 1.0), width=WIDTH, narrower=st.floats(0.0, 1.0))
def test_agreement_needs_the_whole_interval_within(limit: float, apart: float, width: float, narrower: float) -> None:
    told = intervals.within(limit, apart, width)
    assert told is intervals.within(limit, -apart, width)
    if told is True:
        assert abs(apart) + width <= limit
    if told is False:
        assert abs(apart) - width > limit
    if told is not None:  # a narrower interval around the same value never changes a verdict
        assert intervals.within(limit, apart, width * narrower) is told
    assert intervals.within(limit, apart, 0.0) is (abs(apart) <= limit)


def test_students_quantile() -> None:
    """Tables: 99 %, two-sided."""
    for freedom, wanted in ((9, 3.2498), (19, 2.8609), (39, 2.7079), (79, 2.6395), (10_000, 2.5763)):
        assert intervals.student(freedom) == pytest.approx(wanted, rel=1e-3)


def test_half_widths_cover_as_often_as_they_say() -> None:
    draw = np.random.default_rng(5)
    samples = draw.normal(3.0, 2.0, size=(4000, 10))
    missed = sum(abs(row.mean() - 3.0) > intervals.half_width(row.tolist()) for row in samples)
    assert 0.006 < missed / len(samples) < 0.014


@given(seed=st.integers(0, 10_000), gpus=st.sampled_from([1, 2, 5]), load=st.floats(0.01, 0.97))
def test_warm_ups_grow_with_the_system_and_the_load(seed: int, gpus: int, load: float) -> None:
    plain = plain_problem(seed, gpus)
    counts = random_counts(of_plain(plain), random.Random(seed))
    capacity = float((counts / of_plain(plain).service_s).sum())
    ramp, settle, rows = verify.lengths(of_plain(plain | {"arrival_rate": load * capacity}), counts)
    assert ramp > 0
    assert settle >= 3.0 * load / (1.0 - math.sqrt(load)) ** 2
    assert rows >= 2 * (ramp + settle)
    more = verify.lengths(of_plain(plain | {"arrival_rate": 0.5 * (1.0 + load) * capacity}), counts)
    assert more[0] >= ramp
    assert more[1] > settle


def test_arrivals_rise_and_stay_poisson() -> None:
    """The time of the n-th row, and the gaps after the rise."""
    rate, ramp, rows = 50.0, 1000, 60_000
    assert verify.arrivals(rate, ramp, rows, 1).rate == pytest.approx(rows / (rows + ramp) * rate, rel=0.02)
    played = des.simulate([0.001], [1000], verify.arrivals(rate, ramp, rows, 1), rows=rows, warm_up=ramp)
    assert (rows - ramp) / played.span_s == pytest.approx(rate, rel=0.02)
    risen = des.simulate([0.001], [1000], verify.arrivals(rate, ramp, rows, 1), rows=ramp)
    assert risen.span_s == pytest.approx(2.0 * ramp / rate, rel=0.1)
