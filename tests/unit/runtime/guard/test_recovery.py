"""The tests that something is well again: how rarely they are wrong, and how soon they are right."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.guard.drift import SLACK, bet, most
from clover.runtime.guard.recovery import (
    ILL_AGREEMENT,
    ILL_SCORES,
    AgreementRecovery,
    AllClear,
    ScoreRecovery,
    _against,
)

TENTHS = [0.1] * 10


def rows_until(recovery: ScoreRecovery | AgreementRecovery, add: Callable[[], None], well: bool = True) -> int:
    """How many rows are added until it is well, or no more."""
    for rows in itertools.count(1):
        add()
        if recovery.clear.well == well:
            return rows
    raise AssertionError


def ill(known: float, odds: float) -> float:
    raised = known / (1.0 - known) * odds
    return raised / (1.0 + raised)


@given(known=st.floats(0.001, 0.98), odds=st.floats(1.01, 5.0), truth=st.floats(0.0, 1.0))
def test_a_bet_gains_nothing_on_average_while_it_is_ill(known: float, odds: float, truth: float) -> None:
    within, without = _against(known, odds)
    part = ill(known, odds)
    real = part + truth * (1.0 - part)  # any part from there up
    assert real * math.exp(within) + (1 - real) * math.exp(without) <= 1 + 1e-9


@given(known=st.floats(0.01, 0.95), truth=st.floats(0.0, 1.0))
def test_and_gains_wherever_the_part_counts_as_profiled(known: float, truth: float) -> None:
    within, without = _against(known, 1.3)
    assert truth * known * within + (1 - truth * known) * without > 0.0


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=8))
def test_the_statistic_less_the_rows_never_grows_on_average(steps: list[tuple[bool, int]]) -> None:
    """By going through both outcomes of the last row, after any rows before it."""
    part, pair = ill(0.2, 1.3), _against(0.2, 1.3)

    def after(*steps: tuple[bool, int]) -> float:
        clear = AllClear(1, 1e3)
        for outcome, rows in steps:
            clear.add(rows, [rows * pair[0 if outcome else 1]])
        return clear.statistic

    ends = [after(*steps, (outcome, 1)) for outcome in (True, False)]
    assert part * ends[0] + (1 - part) * ends[1] <= (after(*steps) + 1) * (1 + 1e-9)


@pytest.mark.slow
def test_scores_that_are_still_ill_are_not_well() -> None:
    """The lowest tenth is as large as the least that counts as ill: 200,000 rows of each of five seeds."""
    low = ill(most(0.1, 10_000) + SLACK, ILL_SCORES)
    for seed in range(5):
        draw, recovery = random.Random(seed), ScoreRecovery(TENTHS, 10_000)
        for _ in range(200_000):
            recovery.add(0 if draw.random() < low else draw.randrange(1, 10))
            if not recovery._in_block:
                assert not recovery.clear.well


def test_false_all_clears_are_as_rare_as_the_bound_says() -> None:
    """With a limit of 2,000 audits and 100 audits a run, one run of twenty at most may err."""
    part, wrong = ill(most(0.1, 2000, 3.0), ILL_AGREEMENT), 0
    for seed in range(400):
        draw, recovery = random.Random(seed), AgreementRecovery(limit=2000.0)
        for _ in range(100):
            recovery.add(draw.random() >= part, 0.9, 2000)
            if recovery.clear.well:
                wrong += 1
                break
    assert wrong <= 400 * 100 / 2000


@pytest.mark.parametrize("seed", range(5))
def test_scores_that_are_as_profiled_again_are_well_soon(seed: int) -> None:
    draw, recovery = random.Random(seed), ScoreRecovery(TENTHS, 10_000)
    for _ in range(20_000):
        recovery.add(0)  # however long it was ill
    assert not recovery.clear.well
    assert rows_until(recovery, lambda: recovery.add(draw.randrange(10))) < 4000


@pytest.mark.parametrize(("expected", "audits"), [(0.9, 1500), (0.98, 3000)])
def test_agreement_that_is_as_profiled_again_is_well_soon(expected: float, audits: int) -> None:
    draw, recovery = random.Random(1), AgreementRecovery()
    for _ in range(5000):
        recovery.add(False, expected, 2500)
    assert rows_until(recovery, lambda: recovery.add(draw.random() < expected, expected, 2500)) < audits


def test_what_was_well_for_long_is_not_well_for_long_after() -> None:
    draw, recovery = random.Random(1), AgreementRecovery()
    for _ in range(50_000):
        recovery.add(draw.random() < 0.9, 0.9, 2500)
    assert recovery.clear.well
    assert rows_until(recovery, lambda: recovery.add(draw.random() < 0.6, 0.9, 2500), well=False) < 50


def test_of_what_nothing_is_known_nobody_bets_and_a_restart_is_the_start() -> None:
    recovery = AgreementRecovery()
    for _ in range(1000):
        recovery.add(True, 0.0, 0)
    assert (recovery.clear.rows, recovery.clear.well) == (0, False)
    scores = ScoreRecovery(TENTHS, 10_000)
    for _ in range(75):
        scores.add(5)
    scores.restart()
    assert (scores.clear.rows, scores.clear.statistic, sum(map(sum, scores._counts))) == (0, 0.0, 0)
    with pytest.raises(ValueError, match="tell too little"):
        ScoreRecovery([0.5, 0.5], 1)
    assert bet(0.2, 1.0) == pytest.approx((0.0, 0.0))
