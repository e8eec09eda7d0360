"""The questions of the gate, each asked by itself: plans of the solver's own, what runs, and a time."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from clover.control.plan import gate
from clover.control.state.family import DeployedPlan
from clover.control.state.request import PlanRequest
from clover.types import GroupCount, Plan, State, Transition
from tests.support.control_fixture import Rig

RIG = Rig()
NOW_S = 1000.0


def planned(**counts: int) -> tuple[State, Plan]:
    """The plan of exactly so many workers on a core each."""

    async def story() -> tuple[State, Plan]:
        context, family = RIG.controller.context, RIG.family
        request = PlanRequest(trigger="test", rate=50.0)
        state = family.state(await context.conditions(family), context.config, request)
        groups = tuple(GroupCount(variant=name, profile="1c", count=count) for name, count in counts.items())
        return state, await RIG.solver.propose(state, "objective", groups)

    return asyncio.run(story())


@pytest.fixture
def rig() -> Rig:
    """A rig on which two large workers run."""
    made = Rig()
    _, plan = planned(large=2)
    made.family.deployed = DeployedPlan(plan.deployment, plan.routing, plan)
    return made


def test_a_configuration_that_failed_is_planned_again_when_its_back_off_ends(rig: Rig) -> None:
    _, plan = planned(small=2)
    assert gate.failed_lately(rig.family, plan, NOW_S) is None
    until_s = rig.family.back_off(plan.configuration, NOW_S)
    stay = gate.failed_lately(rig.family, plan, until_s - 1.0)
    assert stay == gate.Stay("2 x small@1c failed lately and is left alone", until_s)
    assert gate.failed_lately(rig.family, plan, until_s) is None


def test_a_transition_below_the_floor_is_taken_only_if_it_is_allowed() -> None:
    _, plan = planned(small=2)
    low = Transition(steps=(), kept=(), lost_capacity=0.5, capacity_floor=60.0, lowest_capacity=40.0, loses_s=2.0)
    stay = gate.below_floor(plan, low, False)
    assert stay is not None
    assert stay.again_s is None
    assert "2 x small@1c could only be reached with 40.0 rows/s for about 2.0 s (50% of the capacity" in stay.reason
    assert gate.below_floor(plan, low, True) is None
    assert gate.below_floor(plan, msgspec.structs.replace(low, lowest_capacity=60.0), False) is None


@pytest.mark.parametrize(
    ("rate", "within_s", "pays"),
    [
        (
            70.0,
            60.0,
            True,
        ),  # 10 refused and 3 late a second: in 60 s more than 70 x 2
        (70.0, 10.0, False),
        (40.0, 60.0, True),  # none is refused, and 2 a second are late
        (40.0, 39.0, False),
        (70.0, 0.0, False),  # the operator forbids it
    ],
)
def test_capacity_may_be_lost_if_to_stay_would_miss_more_rows(rate: float, within_s: float, pays: bool) -> None:
    _, plan = planned(small=2)
    late = msgspec.structs.replace(plan.prediction, p95_ms=31.0)
    good, bad = (
        msgspec.structs.replace(plan, feasible=True),
        msgspec.structs.replace(plan, feasible=False, prediction=late),
    )
    cut = Transition(steps=(), kept=(), lost_capacity=1.0, capacity_floor=60.0, lowest_capacity=0.0, loses_s=2.0)

    def judged(target: Plan, here: Plan) -> bool:
        return gate.pays_for_loss(target, cut, here, slo_ms=30.0, rate=rate, capacity=60.0, within_s=within_s)

    assert judged(good, bad) is pays
    assert not judged(good, good)  # what runs keeps the limits
    assert not judged(bad, bad)  # the other would not
    in_time = msgspec.structs.replace(plan, feasible=False)  # above a margin, say, but not late
    assert judged(good, in_time) is (pays and rate > 60.0)


def test_noise_is_no_reason_to_leave_what_serves_and_a_clear_gain_is_one(rig: Rig) -> None:
    state, here = planned(large=2)
    _, other = planned(small=2)
    same_again = msgspec.structs.replace(other, prediction=here.prediction, feasible=True)
    stay = gate.within_noise(rig.family, same_again, here, state)
    assert stay == gate.Stay("2 x small@1c gains no more than noise of the intensity explains")
    prediction = msgspec.structs.replace(
        here.prediction,
        accuracy=here.prediction.accuracy,
        energy_j_per_row=here.prediction.energy_j_per_row / 10.0,
        idle_j_per_row=0.0,
    )
    gains = msgspec.structs.replace(other, prediction=prediction, feasible=True)
    assert gate.within_noise(rig.family, gains, here, state) is None
    # What does not keep the limits is not taken for a gain, nor kept where it runs.
    bad = msgspec.structs.replace(gains, feasible=False)
    assert gate.within_noise(rig.family, bad, here, state) == gate.Stay("2 x small@1c would not keep the limits")
    assert gate.within_noise(rig.family, gains, msgspec.structs.replace(here, feasible=False), state) is None
