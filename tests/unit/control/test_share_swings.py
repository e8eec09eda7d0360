"""Shares swing while one meter does not tell its variants apart: by whole moves whose mean is the plan, no longer than
it takes, and not at all if anything speaks against it.  And what it is for: hidden factors of joules are found."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from clover.control.arrivals import WINDOW_S
from clover.control.controller import watch_waits
from clover.control.share_swings import (
    BLOCK_S,
    GIVEN_UP_S,
    KNOWN,
    LEAST_ROWS,
    LONGEST_S,
    REST_S,
    RETRY_S,
    FoundMoves,
    Runs,
    ShareSwings,
    SwingSight,
)
from clover.control.solver.process import solve
from clover.control.solver.protocol import SWINGS, SolverOrder
from clover.control.triggers import SLO_LOOKS
from clover.errors import PlanError
from clover.planning.model.metered import MixedVariant
from clover.planning.model.swings import Move, moved, moves
from clover.types import Assignment, Routing, State
from tests.support.mixed_meter import RATE, TICK_S, MixRig, five_minutes

SHARES = {"small": 0.5, "medium": 0.3, "large": 0.2}
FOUND = tuple(moves({"small": 0.2, "medium": 0.1, "large": 0.1}))
UNKNOWN = {name: MixedVariant(part=1 / 3, error=0.3) for name in SHARES}
SURE = {name: MixedVariant(part=1 / 3, error=0.01) for name in SHARES}


def runs(**shares: float) -> Runs:
    return (), Routing(shares=shares or SHARES)


class Looks:
    """Looks at the swings of one family, a second apart, and what shares are routed meanwhile."""

    def __init__(self) -> None:
        self.swings = ShareSwings()
        self.seen = SwingSight(now_s=0.0, runs=runs(), variants=UNKNOWN, block_s=BLOCK_S, rate=50.0, learned=0)
        self.found: tuple[Move, ...] | None = FOUND
        self.found_for: tuple[float, int] | None = None
        """The rate and the correction of the profile that moves are found for; None: those of the look."""
        self.failed = ""
        self.shares = dict(SHARES)
        self.news: list[str] = []
        self.share_seconds = dict.fromkeys(SHARES, 0.0)
        self.asked = 0

    @property
    def moved(self) -> bool:
        return self.shares != SHARES

    def look(self, seconds: float = 1.0, **seen: Any) -> None:
        for name, share in self.shares.items():
            self.share_seconds[name] += share * seconds
        asked = self.swings.wants
        self.asked += asked
        self.seen = replace(self.seen, now_s=self.seen.now_s + seconds, found=None, **seen)
        if asked and self.found is not None:
            rate, learned = self.found_for or (self.seen.rate, self.seen.learned)
            self.seen = replace(self.seen, found=FoundMoves(self.found, rate, learned, self.failed))
        turn = self.swings.look(self.seen)
        if turn is not None:
            self.shares = moved(SHARES, *turn)
        if self.swings.news:
            self.news.append(f"{self.swings.news}: {self.swings.why}")

    def looks(self, seconds: float, **seen: Any) -> None:
        for _ in range(round(seconds)):
            self.look(**seen)


def swinging() -> Looks:
    """In the first block of the first move."""
    made = Looks()
    made.looks(4)
    assert made.swings.on
    assert made.moved
    return made


def test_each_move_is_made_back_for_as_long_so_that_mean_shares_are_the_plans() -> None:
    made = Looks()
    made.looks(2)
    made.share_seconds = dict.fromkeys(SHARES, 0.0)
    began_s = made.seen.now_s
    steps = [1.0, 1.3, 0.8, 1.1, 0.9, 2.4]  # looks come when they do
    for turn in range(600):
        made.look(steps[turn % len(steps)])
        if not made.swings._sign and made.swings.on:
            break
    assert made.swings._made == len(FOUND)
    for name, share in SHARES.items():
        mean = made.share_seconds[name] / (made.seen.now_s - began_s)
        half_a_look = max(steps) / 2.0 / (2.0 * BLOCK_S)
        assert mean == pytest.approx(share, abs=half_a_look * max(abs(move[name]) for move in FOUND))


def test_a_round_that_looks_see_in_time_has_the_plans_mean_exactly() -> None:
    made = Looks()
    made.looks(2)
    made.share_seconds = dict.fromkeys(SHARES, 0.0)
    made.looks(2 * BLOCK_S * len(FOUND))
    whole_s = 2 * BLOCK_S * len(FOUND)
    assert {name: value / whole_s for name, value in made.share_seconds.items()} == pytest.approx(SHARES, abs=1e-12)
    assert made.shares == pytest.approx(SHARES)


def test_it_ends_once_joules_are_known_and_rests_for_an_hour() -> None:
    made = swinging()
    made.looks(2 * BLOCK_S + 1, variants=SURE)
    assert not made.swings.on
    assert not made.moved
    assert "known to 2 %" in made.news[-1]
    made.looks(REST_S - 100.0, variants=UNKNOWN)
    assert not made.swings.on
    made.looks(110.0)
    assert made.swings.on


def test_a_move_is_finished_before_it_ends() -> None:
    made = swinging()
    made.looks(BLOCK_S / 2, variants=SURE)
    assert made.moved


@pytest.mark.parametrize(
    ("seen", "why"),
    [({"rate": 2.0}, "fewer than 25 rows arrive"), ({"variants": {}}, "no two variants share a meter")],
)
def test_what_would_tell_nothing_ends_it_and_is_not_taken_for_knowledge(seen: dict[str, Any], why: str) -> None:
    made = swinging()
    made.look(**seen)
    assert not made.swings.on
    assert not made.moved
    assert why in made.news[-1]
    made.looks(RETRY_S + 3, rate=50.0, variants=UNKNOWN)
    assert made.swings.on


def test_a_further_variant_ends_the_rest() -> None:
    made = swinging()
    made.looks(2 * BLOCK_S + 1, variants=SURE)
    made.looks(4, variants=SURE | {"tiny": MixedVariant(0.1, 0.3)})
    assert made.swings.on


def test_what_is_not_known_after_ten_minutes_is_given_up_for_hours_and_that_is_said() -> None:
    made = swinging()
    made.looks(LONGEST_S + 4 * BLOCK_S)
    assert not made.swings.on
    assert not made.moved
    assert "known to 30 % after swings of 10 min" in made.news[-1]
    assert len(made.news) == 2
    made.looks(REST_S)
    assert not made.swings.on
    made.look(GIVEN_UP_S)
    made.looks(3)
    assert made.swings.on


def test_time_that_was_spent_before_a_plan_changed_counts() -> None:
    made = Looks()
    for minute in range(30):
        made.looks(60, runs=runs(small=0.5 + minute % 2 / 100.0, large=0.5))
    assert not made.swings.on
    assert "after swings of" in made.news[-1]


@pytest.mark.parametrize("why", ["the SLO is missed, or was lately", "the model is frozen"])
def test_what_bars_it_ends_it_in_the_middle_of_a_move(why: str) -> None:
    made = swinging()
    made.look(barred=why)
    assert not made.swings.on
    assert not made.moved
    assert made.news[-1].endswith(why)
    made.looks(RETRY_S / 2, barred="")
    assert not made.swings.on
    made.looks(RETRY_S / 2 + 3)
    assert made.swings.on


def test_workers_that_change_break_a_move_off_and_the_next_one_follows() -> None:
    made = swinging()
    made.looks(5, pauses="workers change")
    assert made.swings.on
    assert not made.moved
    made.looks(3, pauses="")
    assert made.moved
    assert len(made.news) == 1


def test_moves_that_are_broken_off_leave_mean_shares_the_plans_and_are_given_up() -> None:
    """By a worker that crashes again and again."""
    made = Looks()
    while len(made.news) < 2 and made.seen.now_s < 3600.0:
        made.looks(12, pauses="")
        made.looks(4, pauses="workers change")
    assert not made.swings.on
    assert "after swings of 10 min" in made.news[-1]
    for name, share in SHARES.items():
        assert made.share_seconds[name] / made.seen.now_s == pytest.approx(share, abs=0.01)


def test_a_rate_that_swings_breaks_moves_off_and_mean_shares_are_the_plans_all_the_same() -> None:
    made = Looks()
    rows, all_rows = dict.fromkeys(SHARES, 0.0), 0.0
    while len(made.news) < 2 and made.seen.now_s < 3600.0:
        rate = 50.0 * (1.0 + 0.4 * math.sin(2.0 * math.pi * made.seen.now_s / 30.0))
        all_rows += rate
        for name, share in made.shares.items():
            rows[name] += rate * share
        made.look(rate=rate)
    assert not made.swings.on
    assert rows == pytest.approx({name: all_rows * share for name, share in SHARES.items()}, abs=0.01 * all_rows)


def test_what_ends_it_again_and_again_has_it_given_up() -> None:
    made = Looks()
    for _ in range(int(LONGEST_S / 10)):
        made.looks(12, barred="")
        made.look(barred="the model is frozen")
        made.look(RETRY_S)
    assert "the model is frozen; " in made.news[-1]
    assert "after swings of 10 min" in made.news[-1]
    for name, share in SHARES.items():
        assert made.share_seconds[name] / made.seen.now_s == pytest.approx(share, abs=0.001)
    made.looks(REST_S, barred="")
    assert not made.swings.on


def test_a_move_that_is_dropped_is_followed_by_one_that_begins_with_the_other_side() -> None:
    made = swinging()
    first = made.shares["small"] - SHARES["small"]
    assert made.swings.drop(made.seen.now_s)
    assert not made.swings.drop(made.seen.now_s)
    made.looks(3)
    assert made.shares["small"] - SHARES["small"] == pytest.approx(-first)


def test_moves_are_found_anew_for_another_plan_a_higher_rate_or_another_profile() -> None:
    for change in ({"runs": runs(small=0.6, large=0.4)}, {"rate": 60.0}):
        made = swinging()
        asked = made.asked
        made.look(**change)
        assert not made.moved
        made.looks(2)
        assert made.asked == asked + 1
        assert made.moved
    made = swinging()
    asked = made.asked
    made.looks(2 * BLOCK_S + 3, learned=1)
    assert made.asked == asked + 1


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({"variants": SURE}, "known to 2 %"),
        ({"variants": {"small": MixedVariant(1.0, 0.3)}}, "no two variants share a meter"),
        ({"variants": SURE | {"large": MixedVariant(0.04, 0.5)}}, "known to 2 %"),
        ({"rate": LEAST_ROWS / BLOCK_S - 1.0}, "fewer than 50 rows"),
        ({"barred": "swing_shares is off"}, "is off"),
        ({"pauses": "workers change"}, "workers change"),
        ({"variants": {}}, "no two variants share a meter"),
    ],
)
def test_without_need_or_rows_shares_stay(seen: dict[str, Any], why: str) -> None:
    made = Looks()
    made.looks(30, **seen)
    assert not made.swings.on
    assert not made.moved
    assert made.asked == 0
    assert why in made.swings.report()["why"]


def test_without_room_shares_stay_and_that_is_said_and_tried_again() -> None:
    made = Looks()
    made.found = ()
    made.looks(20)
    assert made.asked == 1
    assert "no variant has room" in made.swings.why
    made.found = FOUND
    made.looks(RETRY_S)
    assert made.swings.on


def test_moves_that_could_not_be_found_are_not_said_to_lack_room_and_are_tried_again() -> None:
    made = Looks()
    made.found, made.failed = (), "the solver died"
    made.looks(20)
    assert made.asked == 1
    assert made.swings.why.endswith("but how far shares may be moved is not known: the solver died")
    made.found, made.failed = FOUND, ""
    made.looks(RETRY_S)
    assert made.swings.on


@pytest.mark.parametrize("found_for", [(40.0, 0), (50.0, -1)])
def test_moves_that_were_found_for_a_lower_rate_or_another_profile_are_not_made(found_for: tuple[float, int]) -> None:
    made = Looks()
    made.found_for = found_for
    made.looks(20)
    assert not made.moved
    made.found_for = None
    made.looks(2)
    assert made.moved


# --- with the production controller -----------------------------------------------------------------------------------


def begun(count: int = 2, **config: Any) -> MixRig:
    """Return a rig in which shares swing, if they may."""
    return five_minutes(count, 1, seconds=30, **config)


def later(made: MixRig, seconds: int = 5) -> MixRig:
    asyncio.run(made.serve(seconds))
    return made


@pytest.mark.parametrize(("count", "seed"), [(2, 1), (3, 1), (5, 1)])
def test_hidden_factors_of_variants_on_one_meter_are_within_five_percent_after_five_minutes(
    count: int, seed: int
) -> None:
    made = five_minutes(count, seed)
    assert max(made.off().values()) < 0.05
    rows = sum(made.meter.rows.values())
    for name, share in made.shares.items():
        assert made.meter.rows[name] / rows == pytest.approx(share, abs=0.01)
    assert max(five_minutes(count, seed, seconds=60, swing_shares=False).off().values()) > 0.2


def test_a_counter_that_moves_ten_times_a_second_does_for_two_variants() -> None:
    assert max(five_minutes(2, 1, tick_s=TICK_S).off().values()) < 0.05


def test_plan_state_and_decisions_stay_those_of_the_plan_and_say_what_goes_on() -> None:
    made = begun()
    fleet, family = made.rig.fleet, made.rig.family
    assert fleet.shares != pytest.approx(made.shares)
    assert family.deployed is not None
    assert family.deployed.routing.shares == made.shares
    state = made.rig.controller.state()["models"]["toy"]
    assert state["routing"]["shares"] == made.shares
    assert state["profile_correction"]["swings"]["on"]
    assert "of its meter's" in state["profile_correction"]["swings"]["why"]
    said = [item for item in made.rig.controller.decisions(99) if "to tell apart what" in item["detail"]]
    assert [(item["action"], item["operator"]) for item in said] == [("routed", "")]
    asyncio.run(made.serve(120))
    assert fleet.shares == made.shares
    assert "as planned again" in made.rig.last["detail"]
    assert not made.rig.controller.state()["models"]["toy"]["profile_correction"]["swings"]["on"]


def test_a_setting_turns_it_off() -> None:
    made = begun(swing_shares=False)
    assert all(routing.shares == made.shares for routing in made.routings[1:])
    assert made.rig.family.swings.why == "swing_shares is off"


@pytest.mark.parametrize("how", ["late", "frozen", "observe", "guard", "relief"])
def test_what_speaks_against_it_returns_the_plans_shares_at_once(how: str) -> None:
    made = begun()
    rig = made.rig
    if how == "late":
        rig.fleet.figures |= {"p95_ms": 9000.0, "p95_least_ms": 9000.0}
    elif how == "guard":
        rig.fleet.figures["guard"] = 1.0
    elif how == "relief":
        rig.fleet.figures["relief"] = 1.0
    elif how == "frozen":
        rig.family.frozen = True
    else:
        rig.family.mode = "observe"
    assert later(made, 1).rig.fleet.shares == made.shares
    assert later(made, 60).rig.fleet.shares == made.shares


def test_after_a_change_of_workers_shares_are_the_plans_until_that_is_verified() -> None:
    made = begun()
    place = made.rig.family.desired[0]
    made.rig.fleet.dead.add(place)
    later(made, 2)
    assert made.rig.fleet.shares == made.shares
    assert made.rig.family.swings.on
    made.rig.fleet.dead.clear()
    assert later(made, 3).rig.fleet.shares != made.shares


@pytest.mark.parametrize("whose", ["its own", "another family's"])
def test_during_a_transition_rows_go_as_planned(whose: str) -> None:
    """No look moves them on, or back, before it is over."""
    made, seen = begun(), []
    rig, deployed = made.rig, made.rig.family.deployed
    assert deployed is not None
    assert rig.fleet.shares != made.shares
    family, fleet = (rig.family, rig.fleet) if whose == "its own" else rig.second()
    spawn, executor = fleet.spawn, rig.controller._executor

    async def spawn_and_see(item: Assignment) -> None:
        seen.append((rig.fleet.shares, rig.family.swings._sign))
        await spawn(item)

    fleet.spawn = spawn_and_see  # type: ignore[method-assign]
    target = deployed
    if family is rig.family:  # another variant on the second place
        first, second = deployed.deployment
        other = (first, msgspec.structs.replace(second, variant=first.variant))
        target = replace(deployed, deployment=other, routing=Routing(shares={first.variant: 1.0}))
    rig.clock.now_s += 1.0
    asyncio.run(executor._change(family, target, executor.transition(family, target.deployment), {}))
    assert seen
    assert rig.family.slo.pressure._changed_s == rig.clock.now_s, "what was late before is no evidence"
    assert all(found == (made.shares, 0.0) for found in seen)


def test_after_a_plan_that_failed_rows_go_as_planned_until_moves_are_found_anew() -> None:
    """How they went when it failed is not known here."""
    made = begun()
    made.rig.solver.fail = "no plan"
    made.rig.family.news = "a GPU is back"
    later(made, 1)
    assert made.rig.last["action"] == "failed"
    made.rig.solver.fail = ""
    assert later(made, 1).rig.fleet.shares == made.shares
    assert later(made, 3).rig.fleet.shares != made.shares


def test_without_a_finder_of_moves_nothing_swings() -> None:
    made = MixRig(2, 1)
    made.rig.controller.swinger.find = None

    async def play() -> None:
        await made.rig.deploy()
        await made.serve(30)

    asyncio.run(play())
    assert all(routing.shares == made.shares for routing in made.routings)


def test_a_meter_that_each_worker_has_to_itself_needs_no_swings() -> None:
    made = MixRig(2, 1)
    made.report_apart = True

    async def play() -> None:
        await made.rig.deploy()
        await made.serve(30)

    asyncio.run(play())
    assert "swings" not in made.rig.solver.orders
    assert made.rig.family.learned.mixed == {}
    assert made.rig.family.learned.energy != {}
    assert "swings" in begun().rig.solver.orders


@pytest.mark.parametrize("error", [PlanError("the solver died"), ValueError("a bug")])
def test_what_goes_wrong_in_asking_is_logged_once_and_asked_again_later(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    made, asked = MixRig(2, 1), []

    async def find(state: State) -> tuple[Move, ...]:
        asked.append(state.arrival_rate)
        raise error

    async def play() -> None:
        await made.rig.deploy()
        made.rig.controller.swinger.find = find
        with caplog.at_level(logging.INFO, "clover.control"):
            await made.serve(60)

    asyncio.run(play())
    assert len(asked) == 1
    assert caplog.text.count("how far shares may swing is not known") == 1
    assert str(error) in caplog.text
    assert "how far shares may be moved is not known" in made.rig.family.swings.why


def test_a_family_that_is_released_leaves_nothing_to_one_of_its_name() -> None:
    made = MixRig(2, 1)
    swinger = made.rig.controller.swinger

    async def play() -> None:
        await made.rig.deploy()
        swinger.find = lambda state: asyncio.Future()
        await made.serve(30)
        asking = swinger._asking["toy"]
        swinger._found["toy"] = runs(), FoundMoves(FOUND, 50.0, 0)
        await made.rig.controller.release("toy")
        assert (swinger._asking, swinger._found, swinger._decided) == ({}, {}, {})
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert (swinger._asking, swinger._found) == ({}, {})

    asyncio.run(play())


def test_what_is_late_under_moved_shares_is_no_evidence_against_the_plan() -> None:
    made = begun()
    rig, pressure = made.rig, made.rig.family.slo.pressure
    assert rig.fleet.shares != made.shares
    assert pressure._changed_s > rig.clock.now_s - 2 * BLOCK_S
    rig.fleet.figures |= {"p95_ms": 9000.0, "p95_least_ms": 9000.0}
    later(made, 1)
    assert rig.fleet.shares == made.shares
    assert pressure._changed_s == rig.clock.now_s


def test_what_is_late_under_moved_shares_gives_up_no_waits() -> None:
    made = begun()
    family, now_s = made.rig.family, made.rig.clock.now_s
    assert family.deployed is not None
    routing = msgspec.structs.replace(family.deployed.routing, wait_ms={"v0": 5.0})
    family.deployed = replace(family.deployed, routing=routing)
    watch_waits(family, now_s - 60.0)
    family.slo.late = True
    family.slo.pressure.shares_moved(now_s)
    for second in range(int(WINDOW_S)):
        watch_waits(family, now_s + second)
    assert not family.waiting.held, "clients' p95 has rows of the move in it still"
    for second in range(SLO_LOOKS):
        watch_waits(family, now_s + WINDOW_S + second)
    assert family.waiting.held


def test_a_controller_that_stops_asks_no_more() -> None:
    made = MixRig(2, 1)

    async def play() -> None:
        await made.rig.deploy()
        made.rig.controller.swinger.find = lambda state: asyncio.Future()
        await made.serve(30)
        assert made.rig.controller.swinger._asking
        await made.rig.controller.stop()
        assert not made.rig.controller.swinger._asking

    asyncio.run(play())


def test_the_solvers_process_finds_the_moves() -> None:
    made = begun()
    assert made.rig.family.deployed is not None

    async def state() -> Any:
        from clover.control.request import PlanRequest

        context, family = made.rig.controller.context, made.rig.family
        return family.state(await context.conditions(family), context.config, PlanRequest(trigger="test", rate=RATE))

    given = asyncio.run(state())
    found = solve(SolverOrder(id=1, policy=SWINGS, state=given)).swings
    assert found == ({"v0": pytest.approx(0.25), "v1": pytest.approx(-0.25)},)
    assert made.rig.family.learned.mixed["v0"].error > KNOWN
