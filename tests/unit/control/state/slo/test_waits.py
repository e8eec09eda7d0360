"""Rows wait for fuller batches unless the SLO was missed while they did."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.state.arrivals import WINDOW_S
from clover.control.state.slo.waits import FIRST_HOLD_S, LONGEST_HOLD_S, ROOM, WELL_S, WaitSight, WaitWatch
from clover.types import Routing
from tests.support.control_fixture import Rig
from tests.support.examples import examples

WAITING = Routing(shares={"a": 1.0}, wait_ms={"a": 4.0})
AGAIN = "rows may wait for company again"
MISSED = "rows of a waited while the SLO was missed"


def seen(now_s: float, p95_ms: float = 5.0, *, waits: bool = True) -> WaitSight:
    """Return a look at an SLO of 20 ms, which is missed above that."""
    routing = WAITING if waits else Routing(shares={"a": 1.0}, wait_ms={"a": 0.0})
    return WaitSight(now_s=now_s, routing=routing, p95_ms=p95_ms, slo_ms=20.0, late=p95_ms > 20.0)


def missed_from(watch: WaitWatch, now_s: float) -> float:
    """Let rows wait and the SLO be missed from `now_s` on; return when a hold begins."""
    for second in range(60):
        if watch.observe(seen(now_s + second, 30.0)) == MISSED:
            return now_s + second
    raise AssertionError("nothing was held")


def test_no_row_waits_while_the_slo_is_missed_nor_before_there_is_room() -> None:
    watch, now_s = WaitWatch(), 100.0
    for second in range(11):  # what is seen is of the time before the rows waited, at first
        assert watch.observe(seen(now_s + second, 30.0)) == ""
    watch.observe(seen(now_s + 11, 19.0))
    for second in (12, 13):
        assert watch.observe(seen(now_s + second, 30.0)) == "", "it may be chance"
    assert watch.observe(seen(now_s + 14, 30.0)) == MISSED
    now_s += 14 + FIRST_HOLD_S
    assert watch.observe(seen(now_s, 11.0, waits=False)) == ""
    assert watch.held, "a wait on top of that would miss it again"
    assert watch.observe(seen(now_s + 2 * FIRST_HOLD_S - 1.0, 9.0, waits=False)) == ""
    assert watch.observe(seen(now_s + 2 * FIRST_HOLD_S, 9.0, waits=False)) == AGAIN
    assert not watch.held


@pytest.mark.parametrize("waits", [False, True])
def test_only_rows_that_wait_are_held(waits: bool) -> None:
    watch = WaitWatch()
    for second in range(60):
        watch.observe(seen(100.0 + second, 30.0, waits=waits))
    assert watch.held is waits


def test_a_hold_ends_and_the_next_one_is_longer_until_waits_went_well() -> None:
    watch, now_s = WaitWatch(), 100.0

    def held(hold_s: float) -> None:
        nonlocal now_s
        now_s = missed_from(watch, now_s)
        assert watch.observe(seen(now_s + hold_s - 0.1, waits=False)) == ""
        assert watch.held
        now_s += hold_s
        assert watch.observe(seen(now_s, waits=False)) == AGAIN
        assert not watch.held

    for hold_s in (FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S):
        held(hold_s)
    assert watch.observe(seen(now_s)) == ""
    now_s += WELL_S
    assert watch.observe(seen(now_s)) == ""
    held(FIRST_HOLD_S)
    for _ in range(20):
        now_s = missed_from(watch, now_s) + LONGEST_HOLD_S
        assert watch.observe(seen(now_s, waits=False)) == AGAIN, "no hold is longer"


def test_a_hold_and_its_end_are_reasons_to_plan() -> None:
    async def story() -> None:
        rig = Rig(waits=True)
        await rig.settled()
        family, config = rig.family, rig.controller.context.config
        assert family.deployed is not None
        name = rig.fleet.routed[0].variant
        waiting = msgspec.structs.replace(family.deployed.routing, wait_ms={name: 4.0})
        family.deployed = dataclasses.replace(family.deployed, routing=waiting)
        rig.fleet.figures.update(p95_ms=12.0)
        await rig.look(looks=20)
        assert family.objective(family.targets, config).waits
        rig.fleet.figures.update(p95_ms=45.0)
        await rig.look(looks=5)
        assert not family.objective(family.targets, config).waits
        reasons = [decision["trigger"] for decision in rig.controller.decisions(20)]
        assert any(f"rows of {name} waited while the SLO was missed" in reason for reason in reasons)
        rig.fleet.figures.update(p95_ms=20.0)
        await rig.look(FIRST_HOLD_S)
        assert not family.objective(family.targets, config).waits, "there is no room for a wait yet"
        rig.fleet.figures.update(p95_ms=12.0)
        await rig.look(2 * FIRST_HOLD_S)
        assert family.objective(family.targets, config).waits
        assert any(AGAIN in decision["trigger"] for decision in rig.controller.decisions(20))

    asyncio.run(story())


def test_waits_that_come_back_while_they_are_held_are_a_reason_to_plan() -> None:
    watch = WaitWatch()
    now_s = missed_from(watch, 100.0)
    assert watch.observe(seen(now_s + 1.0, 30.0)) == "", "the plan without waits is being made"
    assert watch.observe(seen(now_s + 2.0, 30.0, waits=False)) == ""
    assert watch.observe(seen(now_s + 3.0, 30.0)) == "rows of a wait again", "the plan of before was restored"
    assert watch.observe(seen(now_s + 4.0, 30.0)) == "", "once"
    assert watch.held


@settings(max_examples=examples(60))
@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 5.0, 100.0, 900.0]), st.sampled_from([None, 5.0, 15.0, 30.0]), st.booleans()),
        max_size=120,
    )
)
def test_no_hold_is_for_ever_and_none_is_for_nothing(looks: list[tuple[float, float | None, bool]]) -> None:
    watch, now_s, waited_s, held_s = WaitWatch(), 0.0, math.inf, math.inf
    for step_s, p95_ms, waits in looks:
        now_s += step_s
        before = watch.held
        sight = dataclasses.replace(seen(now_s, waits=waits), p95_ms=p95_ms, late=p95_ms == 30.0)
        reason = watch.observe(sight)
        waited_s = min(waited_s, now_s) if waits else math.inf
        assert bool(reason) or watch.held == before, "who plans is told of each change"
        if watch.held and not before:
            held_s = now_s
            assert now_s >= waited_s + WINDOW_S
            assert p95_ms == 30.0
        elif before and not watch.held:
            assert now_s >= held_s + FIRST_HOLD_S
            assert p95_ms is None or p95_ms <= ROOM * 20.0
    if watch.held:
        now_s += LONGEST_HOLD_S
        assert watch.observe(dataclasses.replace(seen(now_s, waits=False), p95_ms=None)) == AGAIN
