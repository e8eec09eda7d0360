"""Repeats are no evidence: however often a few inputs come, nothing is made of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from clover.families import load_family
from clover.runtime.guard.drift import FEWEST_AUDITS
from clover.runtime.guard.guard import OK, OWN, SCORES, SERVED, TIGHTENED
from clover.runtime.guard.health import REMEMBERED
from clover.types import Routing
from tests.support.guard_fixture import LARGE, SMALL, WATCHED, Audited, Guarded, profile
from tests.support.router_fixture import House


@pytest.mark.slow
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
                    guard.record_overrules(WATCHED, overruled, 1)
                if guard.fresh_audit(digest):
                    guard.record_comparison(OWN, SMALL, own, 0.9, 10_000)
                    guard.record_comparison(SERVED, SMALL, served, 0.98, 2500)
        assert (guard.alarms, guard.detected_level) == (0, OK)
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
                guard.record_overrules(WATCHED, overruled, 1)
    assert guard.inputs > count
    assert (guard.alarms, guard.detected_level) == (0, OK)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [1, 10, 100])
@pytest.mark.parametrize("repeats", [300, 3000, 30_000])
def test_repeats_of_the_worst_inputs_there_can_be_raise_no_alarm(inputs: int, repeats: int) -> None:
    """Each is one that `small` is least sure of, and answers otherwise than the best variant."""
    guard = Guarded().guard
    for _ in range(repeats):
        for digest in range(1, inputs + 1):
            if guard.fresh(digest):
                guard.score(SMALL, 0.0)
                guard.record_overrules(WATCHED, 1, 1)
            if guard.fresh_audit(digest):
                guard.record_comparison(OWN, SMALL, False, 0.9, 10_000)
                guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert (guard.alarms, guard.detected_level, guard.inputs) == (0, OK, inputs)


@pytest.mark.parametrize("inputs", [FEWEST_AUDITS, FEWEST_AUDITS + 50, 2 * FEWEST_AUDITS - 1])
def test_the_same_few_inputs_take_one_step_and_not_a_second(inputs: int) -> None:
    guard = Guarded().guard
    for _ in range(300):
        for digest in range(1, inputs + 1):
            evidence = guard.fresh_audit(digest)
            if evidence:
                guard.record_comparison(SERVED, SMALL, digest % 5 < 3, 0.98, 2500, evidence=evidence)
    assert (guard.alarms, guard.detected_level) == (1, TIGHTENED)


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
        told = house.router.guard_report()
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
    assert sum(map(sum, guard._scores[SMALL]._counts)) == 1
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
        house.guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert house.guard.alarms == 0
    house.guard.record_comparison(SERVED, SMALL, False, 0.98, 2500)
    assert house.guard.alarms == 1


def test_no_digest_is_made_of_a_row_that_no_test_would_count() -> None:
    house = Audited(share=0.0, chained=False)
    house.router.guard.edges[SMALL] = None
    house.ask()
    house.says(SMALL, 1)
    assert (house.router.guard.inputs, house.router.guard.repeats) == (0, 0)
    chained = Audited(share=0.0)
    chained.router.guard.edges[SMALL] = None
    chained.ask()
    chained.says(SMALL, 1)
    assert chained.router.guard.inputs == 1  # it may be overruled


def test_the_request_of_the_readme_three_hundred_times_raises_no_alarm() -> None:
    """Through the router of the family that it is for, and as unlike the profile's scores as can be."""
    body = json.loads((Path(__file__).parents[4] / "docs" / "shirt.json").read_text())
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
    told = house.router.guard_report()
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
    assert house.router.guard_report()["state"] == "tightened"
