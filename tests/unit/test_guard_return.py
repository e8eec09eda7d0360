"""Repeats are no evidence, and the guard comes down by itself: the two ways in which it might do harm for nothing."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.families import load_family
from clover.planning.drift import FEWEST_AUDITS
from clover.runtime.cascade import Chain
from clover.runtime.guard import (
    ASIDE,
    FORGIVEN,
    LEAST_STAY_NS,
    MOST_STAY_NS,
    OK,
    OVERRULED,
    OWN,
    REMEMBERED,
    SCORES,
    SERVED,
    TIGHTENED,
    Guard,
)
from clover.runtime.health import QUIET, Health
from clover.types import Routing
from tests.unit.guard_fixture import LARGE, SMALL, Audited, profile, sureness
from tests.unit.router_fixture import House

VARIANTS = ("small", "medium", "large")
CHAIN = Chain((SMALL, LARGE), (0.5,), (), (), overruled=0.1, overruled_rows=5000)
MINUTE = 60_000_000_000
DAY = 86_400_000_000_000


class Guarded:
    """A guard with a clock that the tests move, and clients that send it inputs."""

    def __init__(self, seed: int = 1) -> None:
        self.now_ns = 1000 * MINUTE
        self.guard = Guard("toy", VARIANTS, clock=lambda: self.now_ns)
        self.guard.expect(profile())
        self.draw = random.Random(seed)

    def wait(self, ns: int) -> None:
        self.now_ns += ns
        self.guard.look()

    def scores(self, rows: int, power: float = 1.0, lane: int = SMALL) -> None:
        for _ in range(rows):
            if self.guard.fresh(self.draw.getrandbits(64)):
                self.guard.score(lane, self.draw.random() ** power)

    def audits(self, rows: int, own: float, served: float) -> None:
        """Audits of rows of which such parts agree."""
        for _ in range(rows):
            self.guard.fresh_audit(self.draw.getrandbits(64))
            agrees = self.draw.random() < served
            self.guard.compared(OWN, SMALL, self.draw.random() < own, 0.9, 10_000)
            self.guard.as_planned(SMALL, agrees, 0.98, 2500)
            self.guard.compared(SERVED, SMALL, agrees, 0.98, 2500)

    def witnesses(self, rows: int, agree: float) -> None:
        for _ in range(rows):
            self.guard.witness(self.draw.random(), self.draw.random() < agree)

    def ill(self) -> None:
        """Whatever is well now."""
        while self.guard.rung != ASIDE and self.guard.alarms < 1000:
            before = self.guard.rung
            self.scores(50, power=3.0)
            if self.guard.rung != before:
                return


# --- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [1, 10, 100])
@pytest.mark.parametrize("repeats", [300, 3000, 30_000])
def test_repeats_of_inputs_like_the_profiles_raise_no_alarm(inputs: int, repeats: int) -> None:
    for seed in range(max(1, 3000 // (repeats * inputs) * 10)):
        draw = random.Random(1000 * inputs + seed)
        house = Guarded()
        guard = house.guard
        sent = [
            (draw.getrandbits(64), draw.random(), draw.random() < 0.1, draw.random() < 0.9, draw.random() < 0.98)
            for _ in range(inputs)
        ]
        for _ in range(repeats):
            for digest, score, overruled, own, served in sent:
                if guard.fresh(digest):
                    guard.score(SMALL, score)
                    guard.followed(CHAIN, overruled, 1)
                if guard.fresh_audit(digest):
                    guard.compared(OWN, SMALL, own, 0.9, 10_000)
                    guard.compared(SERVED, SMALL, served, 0.98, 2500)
        assert (guard.alarms, guard.found) == (0, OK)
        assert guard.inputs == inputs
        assert guard.report()["repeats"] >= inputs * (repeats - 1)


def test_a_circle_longer_than_the_memory_raises_no_alarm() -> None:
    """It counts again and again; and what so many inputs say lies within what counts as profiled."""
    house = Guarded()
    guard, draw = house.guard, random.Random(5)
    count = 2 * REMEMBERED + 500
    sent = [(draw.getrandbits(64), draw.random(), draw.random() < 0.1) for _ in range(count)]
    for _ in range(8):
        for digest, score, overruled in sent:
            if guard.fresh(digest):
                guard.score(SMALL, score)
                guard.followed(CHAIN, overruled, 1)
    assert guard.inputs > count
    assert (guard.alarms, guard.found) == (0, OK)


@pytest.mark.parametrize("inputs", [1, 10])
def test_the_worst_inputs_in_a_load_test_of_a_router_are_no_evidence(inputs: int) -> None:
    """A row that `small` is least sure of, or wrongly surest of, and that every row is audited."""
    for score in (0.01, 0.99):
        house = Audited(share=1.0)
        for row in range(600):
            ticket = house.ask(again=float(row % inputs))
            house.says(SMALL, 0, score=score)
            while house.sent(LARGE):
                house.says(LARGE, 1, score=score)
            house.close(ticket)
            while house.sent(LARGE):
                house.says(LARGE, 1, score=score)
        told = house.router.guarded()
        assert (told["state"], told["alarms"], told["inputs"], told["repeats"]) == ("ok", 0, inputs, 600 - inputs)
        tests = told["variants"]["small"]
        assert tests["own"]["rows"] == inputs
        assert told["audits"]["dropped"].get("repeat", 0) > 500 or score < 0.5
        house.check_slots()


def test_rows_of_one_request_that_are_alike_count_once() -> None:
    house = Audited(share=0.0)
    ticket = house.ask(rows=4, again=1.0)
    house.says(SMALL, 1, score=0.9)
    house.close(ticket)
    guard = house.router.guard
    assert (guard.inputs, guard.repeats) == (1, 3)
    assert guard._scores[SMALL] is not None
    assert sum(guard._scores[SMALL]._counts) == 1
    ticket = house.ask(rows=4)
    house.says(SMALL, 1, score=0.9)
    house.close(ticket)
    assert (guard.inputs, guard.repeats) == (5, 3)


def test_repeats_do_not_use_up_what_is_urgent_nor_the_share_that_is_promised() -> None:
    house = Audited(share=0.005)
    house.router.guard.alarm(SCORES, SMALL, "")
    house.router.audits.grid(250.0, 250.0)
    urgent = house.router.guard.urgent
    for _ in range(2000):
        ticket = house.ask(again=1.0)
        house.says(SMALL, 1)
        house.close(ticket)
        while house.sent(LARGE):
            house.says(LARGE, 1)
    audits = house.router.audits
    assert 2 <= audits.answered <= 4
    assert urgent - house.router.guard.urgent <= 4
    assert audits.sampler.taken >= 0.001 * audits.sampler.rows


def test_a_handful_of_inputs_raises_no_alarm() -> None:
    house = Guarded()
    for _ in range(150):
        house.guard.score(SMALL, 0.0)
    for _ in range(FEWEST_AUDITS - 1):
        house.guard.compared(SERVED, SMALL, False, 0.98, 2500)
    assert house.guard.alarms == 0
    house.guard.compared(SERVED, SMALL, False, 0.98, 2500)
    assert house.guard.alarms == 1


# --- the way back -----------------------------------------------------------------------------------------------------


def test_it_comes_down_once_scores_are_as_profiled_and_it_has_stood_there_long_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = Guarded()
    house.ill()
    assert house.guard.rung == TIGHTENED
    house.scores(5000)
    house.wait(LEAST_STAY_NS - 1)
    assert house.guard.rung == TIGHTENED
    assert house.guard.report()["health"]["small"]["scores"]["well"]
    with caplog.at_level(logging.INFO, "clover.guard"):
        house.wait(1)
    assert (house.guard.rung, house.guard.returns, house.guard.why) == (OK, 1, "")
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
        assert house.guard.rung == TIGHTENED


def test_repeats_are_no_evidence_of_health_either() -> None:
    house = Guarded()
    house.ill()
    for _ in range(20_000):
        if house.guard.fresh(7):
            house.guard.score(SMALL, 0.5)
    house.wait(DAY)
    assert house.guard.rung == TIGHTENED


def test_every_accusation_has_to_be_cleared() -> None:
    house = Guarded()
    house.ill()
    while house.guard.alarms < 2:
        house.guard.compared(OWN, SMALL, False, 0.9, 10_000)
    house.scores(5000)
    house.wait(DAY)
    assert house.guard.rung == TIGHTENED
    house.audits(2000, 0.9, 0.98)
    house.wait(0)
    assert house.guard.rung == OK


@pytest.mark.parametrize("kind", [OWN, OVERRULED])
def test_overruling_is_cleared_by_rows_or_by_audits(kind: str) -> None:
    house = Guarded()
    house.guard.alarm(OVERRULED, SMALL, "")
    for _ in range(6000):
        if kind == OWN:
            house.guard.compared(OWN, SMALL, house.draw.random() < 0.9, 0.9, 10_000)
        else:
            house.guard.followed(CHAIN, house.draw.random() < 0.1, 1)
    house.wait(DAY)
    assert house.guard.rung == OK


def test_it_steps_down_one_by_one_and_a_relapse_doubles_its_stay() -> None:
    house = Guarded()
    guard = house.guard
    house.audits(400, 0.9, 0.0)
    assert guard.rung == ASIDE
    assert (guard.accused, guard.urgent) == (SMALL, 0)
    house.witnesses(5000, 0.5)
    house.scores(30_000, lane=LARGE)  # `small` is asked, so that these do not speak for it
    house.witnesses(1, 0.5)
    house.wait(LEAST_STAY_NS)
    assert guard.rung == ASIDE
    house.witnesses(5000, 0.98)
    house.wait(0)
    assert (guard.rung, guard.urgent > 0) == (TIGHTENED, True)
    house.audits(400, 0.9, 0.0)
    assert (guard.rung, guard.relapses, guard.stay_ns) == (ASIDE, 1, 2 * LEAST_STAY_NS)
    house.witnesses(5000, 0.98)
    house.wait(LEAST_STAY_NS)
    assert guard.rung == ASIDE
    house.wait(LEAST_STAY_NS)
    assert guard.rung == TIGHTENED
    house.audits(5000, 0.9, 0.98)
    house.wait(2 * LEAST_STAY_NS)
    assert (guard.rung, guard.returns) == (OK, 3)
    house.now_ns += FORGIVEN * guard.stay_ns
    house.ill()
    assert (guard.relapses, guard.stay_ns) == (1, LEAST_STAY_NS)
    guard.reset()
    assert (guard.rung, guard.stay_ns) == (OK, LEAST_STAY_NS)


def test_a_lane_that_nobody_asks_any_more_is_judged_by_the_scores_of_those_that_are_asked() -> None:
    house = Guarded()
    house.audits(400, 0.9, 0.0)
    house.scores(QUIET - 1, lane=LARGE)
    house.wait(DAY)
    assert house.guard.rung == ASIDE
    house.scores(100, lane=LARGE)
    house.wait(0)
    assert house.guard.rung == TIGHTENED
    other = Guarded()
    other.audits(400, 0.9, 0.0)
    other.scores(2 * QUIET, power=1.6, lane=LARGE)  # inputs are not as profiled
    other.wait(DAY)
    assert other.guard.rung == ASIDE


def test_of_a_lane_without_scores_nothing_speaks() -> None:
    health = Health([None, sureness(), None], {(SERVED, 0)})
    for _ in range(2 * QUIET):
        health.score(2, 0)
    assert not health.well(SERVED, 0)
    told = {"rows": 0, "statistic": 0.0, "limit": 250_000.0, "well": False}
    assert health.report(VARIANTS) == {"small": {SERVED: told}}


@given(seed=st.integers(0, 1000), healthy=st.floats(0.0, 1.0))
def test_it_does_not_flap_however_evidence_comes_and_goes(seed: int, healthy: float) -> None:
    """Every ten minutes all is well or nothing is, for three days, by chance: two steps down are never nearer than the
    stay that was in force, and there are no more of them than a stay that is doubled and forgiven allows."""
    house, draw = Guarded(seed), random.Random(seed)
    guard = house.guard
    last_ns, stay_ns = -1, 0
    for _ in range(3 * 144):
        if guard.found == OK and draw.random() >= healthy:
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
        if house.guard.found == OK:
            house.guard.alarm(SCORES, SMALL, "")
        cleared(house.guard)
        house.wait(MINUTE)
        if house.guard.found == OK:
            times.append((house.now_ns - began) / DAY)
    assert sum(time <= 1.0 for time in times) == 7
    assert sum(time > 2.0 for time in times) <= 8
    assert house.guard.stay_ns == MOST_STAY_NS


# --- in the router ----------------------------------------------------------------------------------------------------


def aside() -> Audited:
    house = Audited(share=1.0)
    for _ in range(2 * FEWEST_AUDITS):
        house.router.guard.compared(SERVED, SMALL, False, 0.98, 2500)
    assert house.router.guard.rung == ASIDE
    house.router.audits.sampler.set(1.0)
    return house


def test_aside_audits_go_the_other_way_and_clear_the_variant() -> None:
    house = aside()
    guard = house.router.guard
    guard.floors[SMALL] = (0.5, 0.98, 2500)
    for row in range(1500):
        ticket = house.ask()
        assert house.sent(LARGE) == [ticket.slots]
        house.says(LARGE, 1)
        house.close(ticket)
        assert house.sent(SMALL) == [ticket.slots]
        house.says(SMALL, int(row % 100 != 0 and row % 2), score=0.9 if row % 2 else 0.3)
    assert guard.report()["health"]["small"]["served"]["rows"] == 750  # only those of which it was sure enough
    house.loop.now_ns += LEAST_STAY_NS
    house.router.audits.grid(250.0, 250.0)
    assert guard.rung == TIGHTENED
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


def test_the_request_of_the_readme_three_hundred_times_raises_no_alarm() -> None:
    """Through the router of the family that it is for, and as unlike the profile's scores as can be."""
    body = json.loads((Path(__file__).parents[2] / "docs" / "shirt.json").read_text())
    rows = np.array(body["inputs"][0]["data"], np.float32).reshape(body["inputs"][0]["shape"])
    house = House(load_family("fashion"), slots=64)
    house.router.expect(profile())
    variants = [variant.name for variant in house.spec.variants]
    small = house.entry(variants.index("small"))
    house.router.route([small], Routing(shares={"small": 1.0}))
    for _ in range(300):
        ticket = house.router.open(1)
        house.router.write(ticket, 0, rows)
        house.router.submit(ticket, house.done.append)
        house.loop.turn()
        house.slab.score[ticket.slots] = 0.01
        house.complete(small[0])
        assert ticket.status == 200
        house.router.close(ticket)
    told = house.router.guarded()
    assert (told["state"], told["alarms"], told["inputs"], told["repeats"]) == ("ok", 0, 1, 299)
    for _ in range(300):  # as unlike, and inputs of their own: that is what an alarm is for
        ticket = house.router.open(1)
        rows = np.random.default_rng(house.router.guard.inputs).random(rows.shape, np.float32)
        house.router.write(ticket, 0, rows)
        house.router.submit(ticket, house.done.append)
        house.loop.turn()
        house.slab.score[ticket.slots] = 0.01
        house.complete(small[0])
        house.router.close(ticket)
    assert house.router.guarded()["state"] == "tightened"
