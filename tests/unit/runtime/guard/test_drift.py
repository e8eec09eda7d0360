"""Sequential tests: that they are e-detectors, how soon they see a change, and which rows are audited."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.guard import drift
from clover.runtime.guard.drift import AgreementWatch, Detector, ScoreWatch, bet, most
from clover.runtime.guard.guard import URGENT_AUDITS
from clover.runtime.router.audits import HOUR_NS, LEAST, MOST, URGENT, Sampler, clean_share

TENTHS = [0.1] * 10


@given(part=st.floats(0.001, 0.98), odds=st.floats(1.01, 10.0), truth=st.floats(0.0, 1.0))
def test_a_bet_gains_nothing_on_average_while_the_hypothesis_holds(part: float, odds: float, truth: float) -> None:
    within, without = bet(part, odds)
    real = truth * part  # any part up to `part`
    assert real * math.exp(within) + (1 - real) * math.exp(without) <= 1 + 1e-9


@given(logs=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=1, max_size=8), odds=st.floats(1.1, 4.0))
def test_the_statistic_less_the_rows_never_grows_on_average(logs: list[tuple[bool, int]], odds: float) -> None:
    """By going through both outcomes of the last row, after any rows before it."""
    part = 0.2
    detector = Detector(1, 1e300)
    pair = bet(part, odds)
    for outcome, rows in logs:
        detector.add(rows, [rows * pair[0 if outcome else 1]])
    before = detector.statistic
    ends = []
    for outcome in (0, 1):
        twin = Detector(1, 1e300)
        twin._logs = detector._logs.copy()
        twin.add(1, [pair[outcome]])
        ends.append(twin.statistic)
    assert part * ends[0] + (1 - part) * ends[1] <= (before + 1) * (1 + 1e-9)


@given(right=st.integers(0, 2000), more=st.integers(0, 2000))
def test_what_is_known_is_no_more_than_the_profile_tells(right: int, more: int) -> None:
    rows = right + more + 1
    part = right / rows
    assert part < most(part, rows) <= 1.0
    assert most(part, rows * 100) < most(part, rows)


def test_no_false_alarm_where_the_profile_is_off_by_what_chance_explains() -> None:
    """The parts differ from the truth by three standard errors each, in the worst direction."""
    rng = random.Random(1)
    rows = 2000
    off = 3.0 * math.sqrt(0.1 * 0.9 / rows)
    watch = ScoreWatch([0.1 - off, *[0.1] * 8, 0.1 + off], rows)
    assert not any(watch.add(rng.randrange(10)) for _ in range(200_000))
    assert sum(watch.seen) == 200_000


@pytest.mark.parametrize("low", [True, False])
def test_scores_that_fall_or_rise_are_seen(low: bool) -> None:
    rng = random.Random(2)
    watch = ScoreWatch(TENTHS, 10_000)
    fallen = (min(rng.randrange(10), rng.randrange(10)) for _ in itertools.count())
    seen = next(n for n, at in enumerate(fallen, 1) if watch.add(at if low else 9 - at))
    assert seen < 300
    assert watch.detector.alarmed
    assert not watch.add(0)  # once is enough


@pytest.mark.slow
def test_agreement_that_falls_is_seen_and_agreement_that_holds_is_not() -> None:
    rng = random.Random(3)
    steady, fallen = AgreementWatch(), AgreementWatch()
    assert not any(steady.add(rng.random() < 0.93, 0.93, 5000) for _ in range(50_000))
    seen = next(n for n in itertools.count(1) if fallen.add(rng.random() < 0.75, 0.93, 5000))
    assert seen < 300
    assert steady.agreed / steady.rows == pytest.approx(0.93, abs=0.01)


def test_of_what_nothing_is_known_nobody_bets() -> None:
    watch = AgreementWatch()
    assert not any(watch.add(False, 0.0, 0) for _ in range(1000))
    assert (watch.rows, watch.detector.rows) == (1000, 0)


def test_reset_is_the_start() -> None:
    watch = ScoreWatch(TENTHS, 10_000)
    for _ in range(1000):
        watch.add(0)
    assert watch.detector.alarmed
    watch.reset()
    fresh = ScoreWatch(TENTHS, 10_000)
    assert (watch.detector.alarmed, watch.detector.statistic, watch.seen) == (False, 0.0, fresh.seen)


@pytest.mark.parametrize(("parts", "rows"), [([1.0], 10), ([0.5, 0.6], 10), ([0.5, 0.5], 0), ([-0.5, 1.5], 10)])
def test_parts_that_are_none_are_refused(parts: list[float], rows: int) -> None:
    with pytest.raises(ValueError, match=r"not shares|not a share"):
        ScoreWatch(parts, rows)


def test_a_detector_needs_a_bet_and_a_limit() -> None:
    with pytest.raises(ValueError, match="a bet and a limit"):
        Detector(0, 10.0)
    with pytest.raises(ValueError, match="a bet and a limit"):
        Detector(1, 1.0)


def test_the_bounds_that_the_docs_promise() -> None:
    """Two watches of every row and two of every audit, while most is audited, and while the default is."""
    bound = {share: 2.0 / drift.SCORE_LIMIT + 2.0 * share / drift.AGREEMENT_LIMIT for share in (MOST, 0.005)}
    hasty = 1.0 + 2.0 * URGENT_AUDITS / drift.AGREEMENT_LIMIT  # alarms that follow one
    assert 1.0 / (bound[MOST] * hasty) > 5e6
    assert 1.0 / bound[0.005] > 1.5e7


# --- which rows are audited -------------------------------------------------------------------------------------------


@given(share=st.floats(LEAST, MOST), rows=st.integers(1, 5000), start=st.integers(0, 5000))
def test_any_run_of_rows_holds_its_part(share: float, rows: int, start: int) -> None:
    sampler = Sampler(share)
    picked = [sampler.pick(0) for _ in range(start + rows)][start:]
    assert abs(sum(picked) - share * rows) <= 5.0  # also in a run that begins anywhere


@given(
    hours=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.0, MOST), st.floats(0.0, 0.9)), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
def test_no_hour_lies_below_the_least_also_where_audits_fail(hours: list[tuple[int, float, float]], seed: int) -> None:
    """Every failure is told at once, as of a queue that is full; the last row of an hour is audited."""
    rng = random.Random(seed)
    sampler = Sampler(LEAST)
    for hour, (rows, share, failing) in enumerate(hours):
        sampler.set(share)
        for row in range(rows):
            if sampler.pick(hour * HOUR_NS + row) and rng.random() < failing and row < rows - 1:
                sampler.take_back()
        if failing == 0.0:
            assert sampler.taken >= LEAST * rows
        assert sampler.taken + sampler.owed >= LEAST * rows - 1e-9


@pytest.mark.slow
def test_what_an_hour_owes_is_made_up_for_in_the_next() -> None:
    sampler = Sampler(LEAST)
    tried = 0
    for row in range(10_000):
        if sampler.pick(row):
            sampler.take_back()
            tried += 1
    assert sampler.owed == pytest.approx(10.0)
    assert tried <= MOST * 10_000 + 1  # however long it fails
    picked = [sampler.pick(HOUR_NS + row) for row in range(10_000)]
    assert sum(picked) >= 20
    assert all(sum(picked[:rows]) <= MOST * rows + 1 for rows in range(1, 10_001))
    assert sampler.lowest == sampler.last == 0.0


def test_debts_of_more_than_an_hour_are_forgotten() -> None:
    sampler = Sampler(LEAST)
    for hour in range(5):
        for row in range(5000):
            if sampler.pick(hour * HOUR_NS + row):
                sampler.take_back()
    sampler.pick(5 * HOUR_NS)
    assert sampler.owed < 6.0


def test_what_was_urgent_and_failed_is_no_reason_to_leave_debts() -> None:
    sampler = Sampler(URGENT)
    for row in range(2_000):
        if sampler.pick(row):
            sampler.take_back()
    sampler.set(LEAST)
    picked = [sampler.pick(2_000 + row) for row in range(2_000)]
    assert sampler.taken == sum(picked)
    assert sum(picked) >= LEAST * 4_000


@given(g=st.floats(0.0, 2000.0), share=st.floats(0.0, MOST))
def test_more_is_audited_where_the_grid_is_clean(g: float, share: float) -> None:
    found = clean_share(share, g, 250.0)
    assert LEAST <= found <= MOST
    assert found <= clean_share(share, g / 2, 250.0)
    assert clean_share(share, g, 250.0, suspicious=True) == MOST
    assert clean_share(share, g, 250.0, suspicious=True, urgent=True) == URGENT
