"""Factors of a profile that is off: near the truth within minutes, unmoved by what is no evidence, bounded, fading."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clover.planning.model.correction import HALF_LIFE_S, MOST, TimeEvidence, apply_factors
from tests.support.examples import examples
from tests.support.profiles_fixture import BATCHES, profile

KEYS = [(variant, "1c", batch) for variant in ("small", "large") for batch in BATCHES]
SECONDS = 0.01
"""What the profile has for a batch."""


def serve(
    evidence: TimeEvidence,
    truth: dict[str, float],
    *,
    seconds: int = 300,
    since_s: float = 0.0,
    batches: dict[int, int] | None = None,
    cv: float = 0.5,
    stall: tuple[int, float] = (-1, 0.0),
) -> float:
    """Serve for so many seconds, with batches that take the profile's time x `truth` on average; at second `stall`
    they take some more seconds.  Return the time then."""
    rng = random.Random(7)
    now_s = since_s
    for second in range(seconds):
        now_s += 1.0
        for variant, factor in truth.items():
            for batch, count in (batches or {1: 20, 2: 10, 4: 4}).items():
                took_s = sum(rng.gammavariate(cv**-2, cv**2) for _ in range(count)) * SECONDS * factor
                took_s += stall[1] if second == stall[0] else 0.0
                evidence.record_batches(
                    (variant, "1c", batch), count, took_s, count * SECONDS, since_s=now_s - 1.0, now_s=now_s
                )
    return now_s


@pytest.mark.parametrize(("small", "large"), [(1.5, 0.5), (0.5, 1.5), (1.5, 1.5), (0.5, 0.5), (1.0, 1.0)])
def test_factors_of_time_are_within_five_percent_of_the_truth_after_five_minutes(small: float, large: float) -> None:
    evidence, truth = TimeEvidence(), {"small": small, "large": large}
    factors = evidence.factors(KEYS, serve(evidence, truth))
    for variant, name, batch in KEYS:
        if batch <= 4:  # the batches that there were
            assert factors[variant, name, batch] == pytest.approx(truth[variant], rel=0.05)


def test_factors_are_most_of_the_way_after_twenty_seconds() -> None:
    evidence = TimeEvidence()
    now_s = serve(evidence, {"small": 1.5}, seconds=20)
    assert evidence.factors(KEYS, now_s)["small", "1c", 1] == pytest.approx(1.5, rel=0.1)


def test_a_batch_size_that_never_ran_borrows_from_its_neighbours_and_another_variant_does_not() -> None:
    evidence = TimeEvidence()
    factors = evidence.factors(KEYS, serve(evidence, {"small": 1.5}))
    assert 1.3 < factors["small", "1c", 8] < 1.5
    assert all(factors["large", "1c", batch] == 1.0 for batch in BATCHES)


def test_a_slice_that_a_variant_never_ran_on_borrows_less_than_a_batch_size() -> None:
    evidence = TimeEvidence()
    wanted = [("small", "1c", 8), ("small", "2c", 8)]
    factors = evidence.factors(wanted, serve(evidence, {"small": 1.5}))
    assert 1.05 < factors["small", "2c", 8] < factors["small", "1c", 8]


def test_one_slow_batch_moves_nothing() -> None:
    quiet, stalled = TimeEvidence(), TimeEvidence()
    truth = {"small": 1.0}
    plain = quiet.factors(KEYS, serve(quiet, truth, cv=0.1))
    moved = stalled.factors(KEYS, serve(stalled, truth, cv=0.1, stall=(150, 30.0)))
    assert moved["small", "1c", 1] == pytest.approx(plain["small", "1c", 1], rel=0.01)


def test_a_first_window_that_is_bad_is_no_evidence() -> None:
    evidence = TimeEvidence()
    now_s = serve(evidence, {"small": 1.0}, seconds=20, cv=0.1, stall=(2, 30.0))
    assert evidence.factors(KEYS, now_s)["small", "1c", 1] == pytest.approx(1.0, rel=0.05)


def test_what_is_slower_for_good_is_learned_anew() -> None:
    evidence = TimeEvidence()
    now_s = serve(evidence, {"small": 1.0})
    now_s = serve(evidence, {"small": 1.8}, since_s=now_s)
    assert evidence.factors(KEYS, now_s)["small", "1c", 1] == pytest.approx(1.8, rel=0.05)


def test_factors_of_time_fade_with_age() -> None:
    evidence = TimeEvidence()
    now_s = serve(evidence, {"small": 1.5}, cv=0.1)
    key = "small", "1c", 1
    fresh = math.log(evidence.factors([key], now_s)[key])
    assert math.log(evidence.factors([key], now_s + HALF_LIFE_S)[key]) == pytest.approx(fresh / 2.0, rel=0.01)
    assert evidence.factors([key], now_s + 20 * HALF_LIFE_S)[key] == pytest.approx(1.0, abs=1e-5)


def test_windows_in_which_workers_changed_are_dropped() -> None:
    evidence = TimeEvidence()
    for second in range(60):
        evidence.record_batches(("small", "1c", 1), 20, 1.0, 0.2, since_s=second - 1.0, now_s=float(second))
        evidence.interrupt()
    assert evidence.factors(KEYS, 60.0) == dict.fromkeys(KEYS, 1.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS),
            st.integers(0, 100),
            st.floats(0.0, 1e6),
            st.floats(0.0, 1e6),
            st.floats(0.0, 60.0),
        ),
        max_size=200,
    )
)
@example([(KEYS[0], 100, 5e-324, 2.0, 60.0)])  # whose ratio is 0, and has no logarithm
@settings(max_examples=examples(50), deadline=None)
def test_factors_of_time_are_bounded_whatever_is_reported(
    reports: list[tuple[tuple[str, str, int], int, float, float, float]],
) -> None:
    evidence, now_s = TimeEvidence(), 0.0
    for key, batches, seconds, expected_s, step_s in reports:
        now_s += step_s
        evidence.record_batches(key, batches, seconds, expected_s, since_s=now_s - step_s, now_s=now_s)
    for factor in evidence.factors(KEYS, now_s).values():
        assert abs(math.log(factor)) <= math.log(MOST) + 1e-9


# --- files, and profiles ----------------------------------------------------------------------------------------------


def test_times_that_were_learned_are_the_same_once_restored() -> None:
    times, again = TimeEvidence(), TimeEvidence()
    now_s = serve(times, {"small": 1.5, "large": 0.7})
    again.restore(times.save(now_s), 50.0)
    assert again.factors(KEYS, 50.0) == pytest.approx(times.factors(KEYS, now_s))


def test_a_corrected_profile_has_other_times_and_joules_and_the_old_one_stays() -> None:
    measured = profile()
    before = measured.latency
    made = apply_factors(measured, {("large", "2c", 1): 1.5}, {("large", "2c"): 0.5})
    assert measured.latency is before
    for old, new in zip(measured.latency, made.latency, strict=True):
        own = (old.variant, old.profile) == ("large", "2c")
        assert new.mean_ms == pytest.approx(old.mean_ms * (1.5 if own and old.batch == 1 else 1.0))
        assert new.energy_j_per_row == pytest.approx(old.energy_j_per_row * (0.5 if own else 1.0))
    assert made.base.energy_j_per_row == pytest.approx(measured.base.energy_j_per_row * 0.5)
    assert made.base.p95_ms == measured.base.p95_ms  # the default SLO is what was promised
