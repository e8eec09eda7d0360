"""The guard comes down by itself, on evidence that all is well again, and does not flap."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.guard.drift import FEWEST_AUDITS
from clover.runtime.guard.guard import (
    CASCADE_OFF,
    DRIFT,
    FORGIVEN,
    LEAST_STAY_NS,
    MOST_STAY_NS,
    OK,
    OVERRULED,
    OWN,
    RECOVERY,
    SCORES,
    SERVED,
    TIGHTENED,
    Guard,
)
from clover.runtime.guard.health import QUIET, Health
from tests.support.guard_fixture import LARGE, MINUTE, SMALL, VARIANTS, WATCHED, Audited, Guarded, profile, sureness

DAY = 86_400_000_000_000


# --- the way back -----------------------------------------------------------------------------------------------------


def test_it_comes_down_once_scores_are_as_profiled_and_it_has_stood_there_long_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = Guarded()
    house.ill()
    assert house.guard.alarm_level == TIGHTENED
    house.scores(5000)
    house.wait(LEAST_STAY_NS - 1)
    assert house.guard.alarm_level == TIGHTENED
    assert house.guard.report()["health"]["small"]["scores"]["well"]
    with caplog.at_level(logging.INFO, "clover.guard"):
        house.wait(1)
    assert (house.guard.alarm_level, house.guard.returns, house.guard.why) == (OK, 1, "")
    assert "answers are as profiled again" in caplog.text
    assert "the plan's thresholds are back" in caplog.text
    house.scores(50_000)
    assert house.guard.alarms == 1


def test_it_stays_while_what_it_saw_goes_on() -> None:
    house = Guarded()
    house.ill()
    for _ in range(50):
        house.scores(2000, power=1.6)
        house.wait(DAY)
        assert house.guard.alarm_level == TIGHTENED


def test_repeats_are_no_evidence_of_health_either() -> None:
    house = Guarded()
    house.ill()
    for _ in range(20_000):
        if house.guard.fresh(7):
            house.guard.score(SMALL, 0.5)
    house.wait(DAY)
    assert house.guard.alarm_level == TIGHTENED


def test_inputs_that_came_before_an_alarm_are_evidence_of_health_once() -> None:
    """Those of a client whose inputs are some thousands, again and again: else it could never come down."""
    house = Guarded()
    guard, pool = house.guard, [(digest, house.draw.random()) for digest in range(1, 5001)]

    def serve() -> None:
        for digest, score in pool:
            evidence = guard.fresh(digest)
            if evidence:
                guard.score(SMALL, score, evidence)

    serve()
    house.ill()
    alarms, rows = guard.alarms, guard.report()["variants"]["small"][SCORES]["rows"]
    serve()
    assert guard.report()["variants"]["small"][SCORES]["rows"] == rows
    assert guard.report()["health"]["small"][SCORES]["rows"] == 5000
    serve()
    assert guard.report()["health"]["small"][SCORES]["rows"] == 5000
    house.wait(LEAST_STAY_NS)
    assert (guard.alarm_level, guard.alarms) == (OK, alarms)


def test_an_accusation_has_the_evidence_of_health_begin_anew() -> None:
    """So that inputs that count once cannot run out."""
    house = Guarded()
    house.ill()
    counts = [house.guard.fresh(digest) for digest in (1, 1)]
    house.scores(1000)
    house.guard.alarm(OWN, SMALL, "")
    assert house.guard.report()["health"]["small"][SCORES]["rows"] == 0
    assert [*counts, house.guard.fresh(1)] == [DRIFT | RECOVERY, 0, RECOVERY]


def test_audits_too_count_once_after_an_alarm() -> None:
    guard = Guarded().guard
    assert [guard.fresh_audit(7), guard.fresh_audit(7), guard.was_audited(7)] == [DRIFT, 0, True]
    guard.alarm(SERVED, SMALL, "")
    assert not guard.was_audited(7)
    assert [guard.fresh_audit(7), guard.fresh_audit(7), guard.was_audited(7)] == [RECOVERY, 0, True]
    guard.reset()
    assert guard.fresh_audit(7) == DRIFT


@pytest.mark.slow
def test_one_that_only_watches_comes_down_all_the_way() -> None:
    """What is served is the plan's throughout, so audits of that speak for it on both steps."""
    house = Guarded(acts=False)
    guard = house.guard
    house.audits(600, 0.9, 0.0)
    assert (guard.detected_level, guard.alarm_level) == (CASCADE_OFF, OK)
    for found in (TIGHTENED, OK):
        for _ in range(5):
            house.scores(2000)
            house.audits(1000, 0.9, 0.98)
        house.wait(DAY)
        assert guard.detected_level == found
    assert guard.returns == 2


@pytest.mark.slow
def test_one_that_only_watches_comes_down_through_the_router() -> None:
    house = Audited(share=1.0, guard="watch")
    guard = house.router.guard
    for _ in range(2 * FEWEST_AUDITS):
        guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert (guard.detected_level, guard.alarm_level) == (CASCADE_OFF, OK)
    house.router.audits.sampler.set(1.0)
    for found in (TIGHTENED, OK):
        for row in range(1500):
            ticket = house.ask()
            house.says(SMALL, 1, score=(row % 100) / 100)
            while house.sent(LARGE):
                house.says(LARGE, 1)
            house.close(ticket)
            while house.sent(LARGE):
                house.says(LARGE, 1)
        house.loop.now_ns += LEAST_STAY_NS
        guard.evaluate()
        assert guard.detected_level == found


def test_another_profile_has_other_floors() -> None:
    guard = Guarded().guard
    guard.floors[SMALL] = (0.5, 0.98, 2500)
    guard.expect(profile())
    assert guard.floors == {}


def test_every_accusation_has_to_be_cleared() -> None:
    house = Guarded()
    house.ill()
    while house.guard.alarms < 2:
        house.guard.record_comparison(OWN, SMALL, False, 0.9, 10_000)
    house.scores(5000)
    house.wait(DAY)
    assert house.guard.alarm_level == TIGHTENED
    house.audits(2000, 0.9, 0.98)
    house.wait(0)
    assert house.guard.alarm_level == OK


@pytest.mark.parametrize("kind", [OWN, OVERRULED])
def test_overruling_is_cleared_by_rows_or_by_audits(kind: str) -> None:
    house = Guarded()
    house.guard.alarm(OVERRULED, SMALL, "")
    for _ in range(6000):
        if kind == OWN:
            house.guard.record_comparison(OWN, SMALL, house.draw.random() < 0.9, 0.9, 10_000)
        else:
            house.guard.record_overrules(WATCHED, house.draw.random() < 0.1, 1)
    house.wait(DAY)
    assert house.guard.alarm_level == OK


def test_it_steps_down_one_by_one_and_a_relapse_doubles_its_stay() -> None:
    house = Guarded()
    guard = house.guard
    house.audits(400, 0.9, 0.0)
    assert guard.alarm_level == CASCADE_OFF
    assert (guard.accused, guard.urgent) == (SMALL, 0)
    house.witnesses(5000, 0.5)
    house.scores(30_000, lane=LARGE)  # `small` is asked, so that these do not speak for it
    house.witnesses(1, 0.5)
    house.wait(LEAST_STAY_NS)
    assert guard.alarm_level == CASCADE_OFF
    house.witnesses(5000, 0.98)
    house.wait(0)
    assert (guard.alarm_level, guard.urgent > 0) == (TIGHTENED, True)
    house.audits(400, 0.9, 0.0)
    assert (guard.alarm_level, guard.relapses, guard.stay_ns) == (CASCADE_OFF, 1, 2 * LEAST_STAY_NS)
    house.witnesses(5000, 0.98)
    house.wait(LEAST_STAY_NS)
    assert guard.alarm_level == CASCADE_OFF
    house.wait(LEAST_STAY_NS)
    assert guard.alarm_level == TIGHTENED
    house.audits(5000, 0.9, 0.98)
    house.wait(2 * LEAST_STAY_NS)
    assert (guard.alarm_level, guard.returns) == (OK, 3)
    house.now_ns += FORGIVEN * guard.stay_ns
    house.ill()
    assert (guard.relapses, guard.stay_ns) == (1, LEAST_STAY_NS)
    guard.reset()
    assert (guard.alarm_level, guard.stay_ns) == (OK, LEAST_STAY_NS)


def test_a_lane_that_nobody_asks_any_more_is_judged_by_the_scores_of_those_that_are_asked() -> None:
    house = Guarded()
    house.audits(400, 0.9, 0.0)
    house.scores(QUIET - 1, lane=LARGE)
    house.wait(DAY)
    assert house.guard.alarm_level == CASCADE_OFF
    house.scores(100, lane=LARGE)
    house.wait(0)
    assert house.guard.alarm_level == TIGHTENED
    other = Guarded()
    other.audits(400, 0.9, 0.0)
    other.scores(2 * QUIET, power=1.6, lane=LARGE)  # inputs are not as profiled
    other.wait(DAY)
    assert other.guard.alarm_level == CASCADE_OFF


def test_of_a_lane_without_scores_nothing_speaks() -> None:
    health = Health([None, sureness(), None], {(SERVED, 0)})
    for _ in range(2 * QUIET):
        health.score(2, 0)
    assert not health.well(SERVED, 0)
    told = {"rows": 0, "statistic": 0.0, "limit": 250_000.0, "well": False}
    assert health.report(VARIANTS) == {"small": {SERVED: told}}


@pytest.mark.slow
@given(seed=st.integers(0, 1000), healthy=st.floats(0.0, 1.0))
def test_it_does_not_flap_however_evidence_comes_and_goes(seed: int, healthy: float) -> None:
    """Every ten minutes all is well or nothing is, for three days, by chance: two steps down are never nearer than the
    stay that was in force, and there are no more of them than a stay that is doubled and forgiven allows."""
    house, draw = Guarded(seed), random.Random(seed)
    guard = house.guard
    last_ns, stay_ns = -1, 0
    for _ in range(3 * 144):
        if guard.detected_level == OK and draw.random() >= healthy:
            guard.alarm(SCORES, SMALL, "")
        if guard._health is not None and draw.random() < healthy:
            cleared(guard)
        before, stay_ns = guard.returns, guard.stay_ns
        house.wait(10 * MINUTE)
        if guard.returns > before:
            assert last_ns < 0 or house.now_ns - last_ns >= stay_ns
            last_ns = house.now_ns
    # A stay is forgiven after ten of them, so that there is one step down in half a dozen of the least at most.
    assert guard.returns <= 3 * 144 / 6


def cleared(guard: Guard) -> None:
    """All evidence there can be speaks for the scores of `small`."""
    assert guard._health is not None
    found = guard._health._scores[SMALL]
    assert found is not None
    found.clear._logs[:] = 100.0


def test_who_relapses_at_once_comes_down_seven_times_in_a_day() -> None:
    house = Guarded()
    began, times = house.now_ns, []
    while house.now_ns - began < 10 * DAY:
        if house.guard.detected_level == OK:
            house.guard.alarm(SCORES, SMALL, "")
        cleared(house.guard)
        house.wait(MINUTE)
        if house.guard.detected_level == OK:
            times.append((house.now_ns - began) / DAY)
    assert sum(time <= 1.0 for time in times) == 7
    assert sum(time > 2.0 for time in times) <= 8
    assert house.guard.stay_ns == MOST_STAY_NS


# --- in the router ----------------------------------------------------------------------------------------------------


def aside() -> Audited:
    house = Audited(share=1.0)
    for _ in range(2 * FEWEST_AUDITS):
        house.router.guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert house.router.guard.alarm_level == CASCADE_OFF
    house.router.audits.sampler.set(1.0)
    return house


def test_aside_audits_go_the_other_way_and_clear_the_variant() -> None:
    house = aside()
    guard = house.router.guard
    guard.floors[SMALL] = (0.5, 0.98, 2500)
    for row in range(1500):
        ticket = house.ask()
        assert house.sent(LARGE) == [ticket.slots]
        house.says(LARGE, 1, score=row % 100 / 100)
        house.close(ticket)
        assert house.sent(SMALL) == [ticket.slots]
        house.says(SMALL, int(row % 100 != 0 and row % 2), score=0.9 if row % 2 else 0.3)
    assert guard.report()["health"]["small"]["served"]["rows"] == 750  # only those of which it was sure enough
    house.loop.now_ns += LEAST_STAY_NS
    house.router.audits.grid(250.0, 250.0)
    assert guard.alarm_level == TIGHTENED
    assert house.ask().chain is not None
    assert house.router.audits.answered == 1500
    assert house.router.traffic.rows == [0, 0, 1500]


def test_aside_without_a_worker_of_the_variant_nobody_is_asked() -> None:
    house = aside()
    house.router.leave(house.worker(SMALL), lambda: None)
    ticket = house.ask()
    house.says(LARGE, 1)
    house.close(ticket)
    assert house.router.audits.free == 1
    assert house.router.audits.waiting == {}
    house.check_slots()


def test_tightened_what_the_plan_would_have_served_is_compared() -> None:
    house = Audited(share=1.0)
    guard = house.router.guard
    guard.alarm(SERVED, SMALL, "")
    house.router.audits.sampler.set(1.0)

    def ask(score: float, said: int) -> None:
        ticket = house.ask()
        house.says(SMALL, said, score=score)
        if house.sent(LARGE):
            house.says(LARGE, 1)
        house.close(ticket)
        while house.sent(LARGE):
            house.says(LARGE, 1)

    for score, rows in ((0.3, 0), (0.6, 1), (0.9, 2)):  # goes on by the plan; goes on by tightened thresholds; ends
        ask(score, 0)
        assert guard.report()["health"]["small"]["served"]["rows"] == rows
    assert guard.report()["variants"]["small"]["served"]["rows"] == 1
    assert guard.floors[SMALL][0] == 0.5
