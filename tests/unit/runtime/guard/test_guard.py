"""The guard's ladder: what is seen, which step follows, what the router does on it, and the way back."""

from __future__ import annotations

import logging
import math
import random

import msgspec
import numpy as np
import pytest

from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.drift import FEWEST_AUDITS
from clover.runtime.guard.guard import CASCADE_OFF, OK, OWN, SCORES, SERVED, TIGHTENED, URGENT_AUDITS, Guard
from clover.types import Routing
from tests.support.guard_fixture import LARGE, MEDIUM, SMALL, Audited, profile, sureness

VARIANTS = ("small", "medium", "large")


def made(acts: bool = True) -> tuple[Guard, list[int]]:
    steps: list[int] = []
    guard = Guard("toy", VARIANTS, lambda: steps.append(guard.alarm_level), acts=acts)
    guard.expect(profile())
    return guard, steps


def disagree(guard: Guard, kind: str = SERVED, rows: int = 2 * FEWEST_AUDITS) -> None:
    for _ in range(rows):
        guard.record_comparison(kind, SMALL, False, 0.98, 2500)


def test_scores_as_profiled_change_nothing() -> None:
    guard, steps = made()
    rng = random.Random(1)
    for _ in range(50_000):
        guard.score(SMALL, float(np.float32(rng.random())))
    assert (guard.alarm_level, steps, guard.alarms) == (OK, [], 0)
    assert not guard.suspicious
    told = guard.report()["variants"]["small"][SCORES]
    assert told["rows"] == 50_000
    assert not told["alarmed"]


def test_scores_that_drift_tighten_and_do_not_step_aside(caplog: pytest.LogCaptureFixture) -> None:
    guard, steps = made()
    rng = random.Random(1)
    with caplog.at_level(logging.WARNING, "clover.guard"):
        for _ in range(2000):
            guard.score(SMALL, rng.random() ** 2)
        for _ in range(2000):
            guard.score(LARGE, rng.random() ** 2)
    assert (guard.alarm_level, steps, guard.alarms) == (TIGHTENED, [TIGHTENED], 2)
    assert guard.suspicious
    first, second = caplog.records
    assert first.levelname == "WARNING"
    assert "the scores of small are not those of the profile any more" in first.getMessage()
    assert "guard reset" in first.getMessage()
    assert "the guard stays tightened" in second.getMessage()


def test_after_an_alarm_that_tightens_it_is_urgent() -> None:
    guard, _ = made()
    assert guard.urgent == 0
    guard.alarm(SCORES, SMALL, "")
    assert guard.urgent == URGENT_AUDITS
    guard.urgent = 0  # all were made
    guard.alarm(SCORES, LARGE, "")  # something else is wrong now
    assert (guard.alarm_level, guard.urgent) == (TIGHTENED, URGENT_AUDITS)
    guard.reset()
    assert guard.urgent == 0
    guard.alarm(SCORES, LARGE, "")
    guard.alarm(SERVED, SMALL, "")
    assert (guard.alarm_level, guard.urgent) == (CASCADE_OFF, 0)
    guard.alarm(SERVED, SMALL, "")
    assert guard.urgent == 0


def test_where_it_only_watches_nothing_is_urgent() -> None:
    guard, _ = made(acts=False)
    guard.alarm(SCORES, SMALL, "")
    assert (guard.detected_level, guard.urgent) == (TIGHTENED, 0)


def test_a_score_that_is_no_number_lies_below_all() -> None:
    guard, _ = made()
    for _ in range(500):
        guard.score(SMALL, math.nan)
    assert guard.alarm_level == TIGHTENED
    assert guard._scores[SMALL] is not None
    assert guard._scores[SMALL].seen[0] == 500


def test_agreement_that_stays_low_after_tightening_steps_aside_loudly(caplog: pytest.LogCaptureFixture) -> None:
    guard, steps = made()
    with caplog.at_level(logging.WARNING, "clover.guard"):
        disagree(guard)
    assert (guard.alarm_level, steps) == (CASCADE_OFF, [TIGHTENED, CASCADE_OFF])
    assert [record.levelname for record in caplog.records[:2]] == ["WARNING", "ERROR"]
    assert "0.0% instead of 98.0%" in caplog.records[1].getMessage()
    assert "the best variant answers all" in caplog.records[1].getMessage()


def test_only_answers_that_clients_got_make_it_step_aside() -> None:
    """Where the first variant is off but what it is sure of still agrees, the cascade is not what is wrong."""
    guard, _ = made()
    disagree(guard, OWN, 1000)
    assert guard.alarm_level == TIGHTENED
    for _ in range(5000):
        guard.record_comparison(SERVED, SMALL, True, 0.98, 2500)
    assert guard.alarm_level == TIGHTENED


def test_agreement_after_tightening_is_counted_anew() -> None:
    guard, _ = made()
    while guard.alarm_level == OK:
        guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert guard.report()["variants"].get("small", {}).get(SERVED) is None


def test_a_reset_begins_anew() -> None:
    guard, steps = made()
    disagree(guard)
    guard.reset()
    assert (guard.alarm_level, steps[-1], guard.why, guard.resets) == (OK, OK, "", 1)
    assert guard.report()["variants"] == {}
    disagree(guard, rows=FEWEST_AUDITS)
    assert guard.alarm_level != OK


def test_one_that_only_watches_tells_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    guard, steps = made(acts=False)
    with caplog.at_level(logging.WARNING, "clover.guard"):
        disagree(guard)
    assert (guard.alarm_level, guard.detected_level, steps) == (OK, CASCADE_OFF, [])
    assert guard.report()["state"] == "aside"
    assert "it only watches: nothing is done" in caplog.text


def test_a_profile_of_before_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    plain = msgspec.structs.replace(sureness(), edges=(), parts=(), rows=0, alike={})
    guard = Guard("toy", VARIANTS)
    with caplog.at_level(logging.WARNING, "clover.guard"):
        guard.expect(profile(sureness=dict.fromkeys(VARIANTS, plain)))
    assert not guard.watches
    assert "measure the family again" in caplog.text
    assert "measure the family again" in guard.report()["missing"]
    guard.score(SMALL, 0.5)
    assert guard.report()["variants"] == {}


def test_a_tighter_threshold_lets_half_of_the_rest_through() -> None:
    guard, _ = made()

    def tightened(threshold: float) -> RoutedChain:
        return guard.tighten_chain(RoutedChain((SMALL, LARGE), (threshold,), (), ()))

    assert tightened(0.5).thresholds[0] == pytest.approx(0.75, abs=0.02)
    assert tightened(0.0).thresholds[0] == pytest.approx(0.5, abs=0.02)
    assert tightened(2.0).thresholds == (2.0,)
    assert Guard("toy", VARIANTS).tighten_chain(RoutedChain((SMALL, LARGE), (0.5,), (), ())).thresholds == (0.5,)
    # The best variant says otherwise of a tenth of the rows in every tenth of scores, of which eight lie below 0.75.
    assert tightened(0.5).overruled == pytest.approx(0.08)
    assert tightened(0.5).overruled_rows == 5000
    assert tightened(2.0).overruled == pytest.approx(0.1)
    longer = guard.tighten_chain(
        RoutedChain((SMALL, MEDIUM, LARGE), (0.5, 0.5), (), (), overruled=0.1, overruled_rows=5000)
    )
    assert (len(longer.thresholds), longer.overruled_rows) == (2, 0)


# --- in the router ----------------------------------------------------------------------------------------------------


def test_tightened_rows_go_on_that_ended_before() -> None:
    house = Audited(share=0.0)
    disagree(house.router.guard, OWN)
    assert house.router.observe()["guard"] == TIGHTENED
    ticket = house.ask()
    house.says(SMALL, 1, score=0.6)  # above the plan's threshold
    assert house.sent(LARGE) == [ticket.slots]
    house.says(LARGE, 1)
    assert ticket.variants == [LARGE]
    chain = house.router.state.lanes.chain
    assert chain is not None
    assert chain.alike == (0.98, 1.0)  # what is expected is what the plan's thresholds were counted with
    house.router.guard.reset()
    ticket = house.ask()
    house.says(SMALL, 1, score=0.6)
    assert ticket.variants == [SMALL]


def test_aside_the_best_variant_answers_everything_until_a_reset() -> None:
    house = Audited(share=0.0)
    disagree(house.router.guard)
    ticket = house.ask()
    assert house.sent(LARGE) == [ticket.slots]
    house.says(LARGE, 1)
    assert (ticket.variants, ticket.chain) == ([LARGE], None)
    assert len({house.ask().variants[0] for _ in range(5)}) == 1
    assert house.ask(min_accuracy=85.0).variants == [LARGE]
    house.router.guard.reset()
    assert house.ask().variants == [SMALL]


def test_aside_without_the_best_the_most_accurate_that_is_there_answers() -> None:
    house = Audited(lanes=(SMALL, MEDIUM), chained=False, share=0.0)
    disagree(house.router.guard)
    assert house.ask().variants == [MEDIUM]
    entries = [*house.staff.values(), house.entry(LARGE)]
    house.router.route(entries, Routing(shares={"small": 1.0}))
    assert house.ask().variants == [LARGE]


def test_a_profile_made_anew_begins_anew() -> None:
    house = Audited(share=0.0)
    disagree(house.router.guard)
    house.router.expect(profile())
    assert house.ask().variants == [SMALL]


def test_scores_count_where_a_row_was_asked_first() -> None:
    house = Audited(share=0.0)
    for score in (0.9, 0.2, 0.95):
        house.ask()
        house.says(SMALL, 1, score=score)
    house.says(LARGE, 1, score=0.1)
    scores = house.router.guard._scores
    assert [sum(map(sum, watch._counts)) if watch is not None else None for watch in scores] == [3, 0, 0]


def test_drift_end_to_end_through_the_router() -> None:
    """Clean rows for a while; then the small variant is as sure as ever, and wrong."""
    rng = random.Random(3)
    house = Audited(share=0.02, chained=True)
    guard = house.router.guard

    def serve(rows: int, wrong: float) -> int:
        for row in range(rows):
            if row % 100 == 0:
                house.router.audits.grid(250.0, 250.0)  # as a server does, so that audits are urgent after an alarm
            ticket = house.ask()
            said = int(rng.random() >= wrong)
            if SMALL in ticket.variants:
                house.says(SMALL, said, score=rng.random())
            while house.sent(LARGE):
                house.says(LARGE, 1, score=rng.random())
            house.router.close(ticket)
            house.loop.turn()
            while house.sent(LARGE):
                house.says(LARGE, 1, score=rng.random())
            house.done.clear()
            if guard.alarm_level == CASCADE_OFF:
                return row
        return rows

    assert serve(3000, 0.01) == 3000
    assert guard.alarm_level == OK
    assert serve(20_000, 0.4) < 20_000
    assert house.router.traffic.codes.keys() == {200}
    house.check_slots()
