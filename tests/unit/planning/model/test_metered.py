"""Factors of joules a row, from meters that one variant has to itself and meters that several share: near the truth
within minutes where that can be known, with an honest error where it cannot."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover._native.route import Quota
from clover.planning.model.correction import HALF_LIFE_S, MOST
from clover.planning.model.metered import UNKNOWN_ERROR, EnergyEvidence
from tests.support.examples import examples

SMALL, LARGE = ("small", "1c"), ("large", "1c")


@pytest.mark.parametrize(("small", "large"), [(1.5, 0.5), (0.5, 1.5), (1.5, 1.5), (0.5, 0.5), (1.0, 1.0)])
def test_factors_of_joules_that_a_meter_tells_apart_are_within_five_percent(small: float, large: float) -> None:
    evidence, rng = EnergyEvidence(), random.Random(3)
    for second in range(300):
        for key, factor, expected_j in ((SMALL, small, 2.0), (LARGE, large, 10.0)):
            evidence.record_window(
                "cpu0",
                expected_j * factor * rng.gauss(1.0, 0.2),
                {key: expected_j},
                shared=False,
                since_s=second - 1.0,
                now_s=float(second),
            )
    factors = evidence.factors([SMALL, LARGE], 300.0)
    assert factors[SMALL] == pytest.approx(small, rel=0.05)
    assert factors[LARGE] == pytest.approx(large, rel=0.05)


def test_of_a_shared_meter_with_constant_shares_the_common_factor_is_known() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        evidence.record_window(
            "gpu0",
            1.5 * 10.0 + 0.5 * 10.0,
            {SMALL: 10.0, LARGE: 10.0},
            shared=True,
            since_s=second - 1.0,
            now_s=float(second),
        )
    factors = evidence.factors([SMALL, LARGE], 300.0)
    assert factors[SMALL] == pytest.approx(1.0, rel=0.02)
    assert factors[SMALL] == pytest.approx(factors[LARGE])
    assert factors[SMALL] * 10.0 + factors[LARGE] * 10.0 == pytest.approx(20.0, rel=0.02)


def test_a_variant_that_never_ran_keeps_its_joules() -> None:
    evidence = EnergyEvidence()
    for second in range(60):
        evidence.record_window("cpu0", 3.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second))
    factors = evidence.factors([SMALL, LARGE, ("small", "2c")], 60.0)
    assert factors[LARGE] == 1.0
    assert 1.05 < factors["small", "2c"] < factors[SMALL]


def test_a_variant_that_never_ran_costs_as_much_more_a_batch_as_cheaper_ones_do() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        evidence.record_window(
            "cpu0", 3.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second)
        )  # half as much again: 1 J if a batch should take 2 J
    tiny = "tiny", "1c"
    plain = evidence.factors([tiny, SMALL, LARGE], 300.0)
    found = evidence.unseen(plain, {tiny: 1.0, SMALL: 2.0, LARGE: 10.0})
    assert found[LARGE] == pytest.approx(1.1, rel=0.01)
    assert found[SMALL] == plain[SMALL]
    assert found[tiny] == 1.0  # it is tried, and shows for itself what it takes


def test_a_variant_that_never_ran_is_not_cheaper_because_another_one_is() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        evidence.record_window("cpu0", 1.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second))
    found = evidence.unseen(evidence.factors([SMALL, LARGE], 300.0), {SMALL: 2.0, LARGE: 10.0})
    assert found[LARGE] == 1.0


def test_one_window_of_a_meter_that_is_far_off_moves_little() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        evidence.record_window(
            "cpu0",
            2.0 * (50.0 if second == 200 else 1.0),
            {SMALL: 2.0},
            shared=False,
            since_s=second - 1.0,
            now_s=float(second),
        )
    assert evidence.factors([SMALL], 300.0)[SMALL] == pytest.approx(1.0, rel=0.02)


def test_factors_of_joules_fade_and_are_bounded() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        evidence.record_window("cpu0", 20.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second))
    assert evidence.factors([SMALL], 300.0)[SMALL] == MOST
    assert evidence.factors([SMALL], 300.0 + 20 * HALF_LIFE_S)[SMALL] == pytest.approx(1.0, abs=1e-4)


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.floats(0.0, 60.0)), max_size=100
    )
)
@settings(max_examples=examples(50), deadline=None)
def test_factors_of_joules_are_bounded_whatever_is_reported(
    windows: list[tuple[float, float, float, float]],
) -> None:
    evidence, now_s = EnergyEvidence(), 0.0
    for joules, small_j, large_j, step_s in windows:
        now_s += step_s
        evidence.record_window(
            "gpu0", joules, {SMALL: small_j, LARGE: large_j}, shared=True, since_s=now_s - step_s, now_s=now_s
        )
    for factor in evidence.factors([SMALL, LARGE, ("large", "2c")], now_s).values():
        assert 1.0 / MOST <= factor <= MOST


# --- joules of one meter, with the edges that its windows have --------------------------------------------------------

BATCH_SPREAD = 0.1
TICK_S, LOOK_S = 0.1, 0.005
BATCH_J = {SMALL: 1.0, LARGE: 1.7}


class Load(NamedTuple):
    """Batches a second of all variants (if a cascade asks more of the larger one, beside those), how much of its time
    each worker computes, and which part of the power is idle."""

    batches_per_s: float = 50.0
    utilisation: float = 0.6
    idle_part: float = 0.4


HIGH = Load()


def arrivals(
    how: str, seconds: int, batches_per_s: float, rng: np.random.Generator
) -> dict[tuple[str, str], list[float]]:
    """Return when batches come to each variant: Poisson arrivals of which clients choose the variant, of which a
    cascade asks the larger one half of the time, or which a quota shares out."""
    times = np.sort(rng.uniform(0.0, seconds, rng.poisson(batches_per_s * seconds)))
    if how == "clients choose":
        chosen = rng.uniform(size=len(times)) < 0.5
        return {SMALL: times[chosen].tolist(), LARGE: times[~chosen].tolist()}
    if how == "cascade":
        return {SMALL: times.tolist(), LARGE: times[rng.uniform(size=len(times)) < 0.5].tolist()}
    quota = Quota(2)
    found: tuple[list[float], list[float]] = ([], [])
    for at_s in times.tolist():
        found[quota.choose(3)].append(at_s)
    return {SMALL: found[0], LARGE: found[1]}


def shared_meter(
    how: str,
    truth: dict[tuple[str, str], float],
    seed: int,
    *,
    tick_s: float = 0.0,
    seconds: int = 300,
    load: Load = HIGH,
) -> EnergyEvidence:
    """Return what one meter, read each second, tells of two variants with a worker each: joules are drawn while a batch
    is computed, and it counts where it ends; the counter shows what was drawn up to a tick, idle power included."""
    rng = np.random.default_rng(seed)
    edges = np.arange(seconds + 1.0)
    seen_s = np.maximum(edges - rng.uniform(0.0, tick_s, len(edges)), 0.0)
    expected, active, most_w = {}, np.zeros(len(edges)), 0.0
    evidence = EnergyEvidence()
    for key, came in arrivals(how, seconds, load.batches_per_s, rng).items():
        took_s = load.utilisation * seconds / len(came)
        evidence.record_batch_length(took_s, 0.0)
        turn = np.arange(len(came))
        ends = np.maximum.accumulate(np.array(came) - took_s * turn) + took_s * (turn + 1)  # first come, first served
        drawn = BATCH_J[key] * truth[key] * rng.gamma(BATCH_SPREAD**-2, BATCH_SPREAD**2, len(ends))
        most_w += drawn.sum() / seconds
        corners = np.column_stack([ends - took_s, ends]).ravel()
        sums = np.column_stack([np.cumsum(drawn) - drawn, np.cumsum(drawn)]).ravel()
        active += np.interp(seen_s, corners, sums, left=0.0)
        expected[key] = BATCH_J[key] * np.histogram(ends, edges)[0]
    idle_w = most_w * load.idle_part / (1.0 - load.idle_part)
    joules = np.diff(active + idle_w * seen_s) - idle_w
    for second in range(seconds):
        evidence.record_window(
            "gpu0",
            float(joules[second]),
            {key: float(found[second]) for key, found in expected.items()},
            shared=True,
            since_s=float(second),
            now_s=second + 1.0,
        )
    return evidence


TRUTHS = [{SMALL: 1.5, LARGE: 0.5}, {SMALL: 0.5, LARGE: 1.5}]
SEEDS = range(3)


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("load", [HIGH, Load(batches_per_s=1.0)])
def test_edges_of_windows_are_no_evidence(load: Load, truth: dict[tuple[str, str], float]) -> None:
    """Batches of one a second take longer than a second."""
    for seed in SEEDS:
        evidence = shared_meter("quota", truth, seed, load=load)
        factors, errors = evidence.factors([SMALL, LARGE], 300.0), evidence.errors([SMALL, LARGE], 300.0)
        whole_j = sum(BATCH_J[key] * truth[key] for key in truth)
        assert sum(BATCH_J[key] * factors[key] for key in truth) == pytest.approx(whole_j, rel=0.02)
        assert factors[SMALL] == pytest.approx(factors[LARGE], rel=0.15)  # what both have in common, and no more
        assert min(errors.values()) > 0.15


def test_noise_of_idle_power_beside_little_work_has_no_side() -> None:
    """A counter that is late by up to a tick moves joules that are many times those of the work to the next window."""
    found: list[float] = []
    for seed in range(6):
        evidence = shared_meter(
            "clients choose", {SMALL: 1.0, LARGE: 1.0}, seed, tick_s=TICK_S, seconds=600, load=Load(50.0, 0.1, 0.97)
        )
        found += evidence.factors([SMALL, LARGE], 600.0).values()
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.05)


def test_what_noise_made_negative_is_restored() -> None:
    evidence, again = EnergyEvidence(), EnergyEvidence()
    for second in range(30):
        evidence.record_window("gpu0", -3.0, {SMALL: 2.0}, shared=True, since_s=second - 1.0, now_s=float(second))
    again.restore(evidence.save(30.0), 30.0)
    assert again.factors([SMALL], 30.0) == {SMALL: 1.0 / MOST}


def test_of_a_variant_that_had_a_shared_meter_to_itself_the_factor_is_known() -> None:
    evidence = EnergyEvidence()
    for second in range(300):
        expected_j = {SMALL: 2.0} if second < 200 else {SMALL: 2.0, LARGE: 2.0}
        evidence.record_window("gpu0", 3.0, expected_j, shared=True, since_s=second - 1.0, now_s=float(second))
        if second == 199:
            assert evidence.factors([SMALL], 200.0)[SMALL] == pytest.approx(1.5, rel=0.02)
            assert evidence.errors([SMALL], 200.0)[SMALL] < 0.02
    errors = evidence.errors([SMALL, LARGE], 300.0)
    assert 0.02 < errors[SMALL] < 0.15 < errors[LARGE]


def test_joules_without_a_batch_are_those_of_the_next_one() -> None:
    evidence = EnergyEvidence()
    for second in range(60):
        expected_j = {SMALL: 3.0} if second % 2 else {}
        evidence.record_window("gpu0", 3.0, expected_j, shared=True, since_s=second - 1.0, now_s=float(second))
    assert evidence.factors([SMALL], 60.0)[SMALL] == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("seconds", [1.0, 60.0])
def test_a_few_windows_are_no_evidence_and_neither_are_a_few_seconds(seconds: float) -> None:
    evidence, found = EnergyEvidence(), []
    for window in range(12):
        now_s = window * seconds
        evidence.record_window("cpu0", 4.0, {SMALL: 2.0}, shared=False, since_s=now_s - seconds, now_s=now_s)
        found.append(evidence.factors([SMALL], now_s)[SMALL])
    few = 9 if seconds == 1.0 else 3
    assert found[:few] == [1.0] * few
    assert found[few + 1] > 1.5


def test_the_error_of_a_factor_is_the_priors_before_there_is_evidence_and_long_after() -> None:
    evidence = EnergyEvidence()
    before = evidence.errors([SMALL], 0.0)[SMALL]
    for second in range(300):
        evidence.record_window("cpu0", 3.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second))
    assert evidence.errors([SMALL, LARGE], 300.0)[SMALL] < 0.01
    assert evidence.errors([SMALL, LARGE], 300.0)[LARGE] == before
    assert evidence.errors([SMALL], 300.0 + 20 * HALF_LIFE_S)[SMALL] == pytest.approx(before, rel=0.01)


def test_joules_that_were_learned_are_the_same_once_restored() -> None:
    truth = {SMALL: 1.5, LARGE: 0.5}
    evidence, again = shared_meter("cascade", truth, 1), EnergyEvidence()
    again.restore(evidence.save(300.0), 50.0)
    assert again.factors([SMALL, LARGE], 50.0) == pytest.approx(evidence.factors([SMALL, LARGE], 300.0))
    assert again.errors([SMALL, LARGE], 50.0) == pytest.approx(evidence.errors([SMALL, LARGE], 300.0))


def test_of_a_slice_on_which_its_variant_did_not_run_less_is_known() -> None:
    evidence, other = EnergyEvidence(), (SMALL[0], "another slice")
    for second in range(300):
        evidence.record_window("cpu0", 3.0, {SMALL: 2.0}, shared=False, since_s=second - 1.0, now_s=float(second))
    errors = evidence.errors([SMALL, other, LARGE], 300.0)
    assert errors[SMALL] < 0.01 < 0.09 < errors[other] < 0.15 < errors[LARGE] == UNKNOWN_ERROR
