"""Sequential tests of a release: what they decide, and how often they are wrong, over simulated releases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clover.runtime.guard.release import (
    TAIL_MARGIN,
    TESTS,
    BettingTest,
    ReleaseLimits,
    ReleaseTests,
    log_wealth,
)

LIMITS = ReleaseLimits(warmup_s=2.0, min_s=20.0, max_s=400.0)
ENOUGH = math.log(len(TESTS) / LIMITS.risk)


class Release:
    """A stable version and a new one under the same load, second by second."""

    def __init__(self, limits: ReleaseLimits = LIMITS, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.tests = ReleaseTests(limits, 0.0)
        self.now_s = 0.0

    def second(self, *, slow: float = 1.0, failing: float = 0.0, both_failing: float = 0.0, rows: int = 1) -> None:
        load = math.exp(0.3 * self.random.standard_normal())  # both see the same load
        for new, count in ((True, 10), (False, 90)):
            for latency_ms in 20.0 * load * np.exp(0.4 * self.random.standard_normal(count)):
                failed = self.random.random() < (failing if new else 0.0) + both_failing
                self.tests.record_request(new, bool(failed), latency_ms * (slow if new else 1.0), rows, self.now_s)
        self.now_s += 1.0

    def until_decided(self, seconds: int = 500, **how: float) -> str:
        for _ in range(seconds):
            self.second(**how)  # type: ignore[arg-type]
            for _ in range(20):
                self.tests.record_comparison(bool(self.random.random() < 0.97))
            found = self.tests.verdict(self.now_s)
            if found.action:
                return f"{found.action}: {found.why}"
        return ""


def test_one_observation_at_a_time_is_what_all_at_once_is() -> None:
    observations = np.random.default_rng(3).uniform(-1.0, 1.0, 300)
    test = BettingTest(0.02)
    for one in observations:
        test.add(float(one))
    assert test.worse == pytest.approx(max(0.0, log_wealth(observations, 0.02).max()))
    assert test.fine == pytest.approx(max(0.0, log_wealth(-observations, -0.02).max()))
    assert test.mean == pytest.approx(observations.mean())


def test_a_good_version_is_promoted_after_its_least_time() -> None:
    release = Release()
    assert release.until_decided().startswith("promote: errors: ")
    assert 20.0 <= release.now_s < 120.0


def test_a_version_that_is_twice_as_slow_is_rolled_back_within_half_a_minute() -> None:
    release = Release()
    assert "slower" in release.until_decided(slow=2.0)
    assert release.now_s < 30.0


def test_a_version_that_is_slow_for_a_third_of_its_requests_is_rolled_back_for_its_tail() -> None:
    release = Release()
    for _ in range(300):
        release.second()
        for latency_ms in (500.0,) * 5:
            release.tests.record_request(True, False, latency_ms, 1, release.now_s)
        if release.tests.verdict(release.now_s).action:
            break
    found = release.tests.verdict(release.now_s)
    assert found.action == "roll back"
    assert found.why.startswith("tail: ")


def test_failures_that_both_have_are_not_held_against_the_new_one() -> None:
    assert Release().until_decided(both_failing=0.05, seconds=30) == ""
    assert Release().until_decided(both_failing=0.05).startswith(("promote", "roll back: undecided"))
    assert Release().until_decided(failing=0.2).startswith("roll back: errors: +")


def test_a_client_that_asks_seldom_is_enough_to_find_a_version_that_fails() -> None:
    tests = ReleaseTests(ReleaseLimits(), 0.0)
    for count in range(400):  # one request in 2 seconds, so that no second has one of each version
        new = count % 10 == 0
        tests.record_request(new, new, 0.0 if new else 10.0, 1, 2.0 * count)
    assert tests.tests["errors"].count > 30
    assert tests.verdict(800.0).action == "roll back"


def test_the_first_seconds_of_latency_do_not_count() -> None:
    release = Release(ReleaseLimits(warmup_s=15.0, min_s=20.0))
    for _ in range(15):
        release.second(slow=50.0)
    release.second()
    assert release.tests.tests["slower"].count == 0
    assert release.until_decided().startswith("promote")


def test_requests_are_compared_with_those_of_their_size_only() -> None:
    release = Release()
    for at in range(40):
        for _ in range(5):
            release.tests.record_request(True, False, 200.0, 64, float(at))
            release.tests.record_request(False, False, 20.0, 1, float(at))
    assert release.tests.tests["slower"].count == 0


def test_labels_decide_where_the_version_answers_worse() -> None:
    tests = ReleaseTests(ReleaseLimits(), 0.0)
    random = np.random.default_rng(5)
    rows = 0
    while not tests.verdict(0.0).action:
        place = random.random()
        tests.count_label(new_right=place > 0.03, stable_right=not 0.03 <= place < 0.04)  # 3 % lost, 1 % won
        rows += 1
    found = tests.verdict(0.0)
    assert (found.action, found.why.partition(":")[0]) == ("roll back", "accuracy")
    assert 1000 < rows < 20_000


def test_a_version_that_answers_a_quarter_of_the_rows_differently_is_rolled_back_unless_that_is_allowed() -> None:
    for limits, found in ((LIMITS, "roll back"), (ReleaseLimits(differs=1.0), "")):
        tests = ReleaseTests(limits, 0.0)
        for at in range(400):
            tests.record_comparison(at % 4 != 0)
        assert tests.verdict(0.0).action == found


def test_what_is_missing_is_said() -> None:
    tests = ReleaseTests(ReleaseLimits(), 0.0)
    assert tests.waits_for(0.0) == "more evidence of errors, slower, tail, differs and 600 s of its least time"
    assert set(tests.report()) == set(TESTS)


def test_a_thousand_clean_releases_are_rolled_back_at_most_as_often_as_promised() -> None:
    """Every mean lies exactly on its margin, the worst that is still clean; each release is looked at all the time."""
    random = np.random.default_rng(7)
    wrong = np.zeros(1000, bool)
    blocks = {
        "errors": (np.clip(LIMITS.errors + random.normal(0.0, 0.05, (1000, 150)), -1.0, 1.0), -1.0),
        "slower": (random.beta(2.0, 2.0, (1000, 150)), 0.0),
        "tail": (np.clip(TAIL_MARGIN + random.normal(0.0, 0.1, (1000, 150)), -1.0, 1.0), -1.0),
        "differs": ((random.random((1000, 300)) < LIMITS.differs).astype(float), 0.0),
    }
    place = random.random((1000, 300))
    blocks["accuracy"] = ((place < 0.03).astype(float) - ((place >= 0.03) & (place < 0.05)), -1.0)
    for name, (observations, low) in blocks.items():
        wrong |= log_wealth(observations, LIMITS.margin(name), low).max(axis=1) >= ENOUGH
    assert wrong.mean() <= LIMITS.risk
