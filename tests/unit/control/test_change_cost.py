"""What a change of configuration costs, and that it is made only if it saves more than that while it lasts."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from clover.control import gate
from clover.control.change_cost import HOLDS_S, ChangeCost
from clover.control.family import DeployedPlan
from clover.control.request import PlanRequest
from clover.planning.cascade.permitted import moving_j
from clover.planning.model.objective import HYSTERESIS, MARGIN, objective_of
from clover.planning.model.problem import problem_of
from clover.planning.packing.formulation import SWITCH_S
from clover.types import GroupCount, Plan, State, Step, Transition
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import worker

STARTS = Transition(steps=(Step(kind="spawn"), Step(kind="route")), kept=())
ROUTES = Transition(steps=(Step(kind="route"),), kept=())


def planned(**counts: int) -> tuple[Rig, State, Plan]:
    rig = Rig()

    async def story() -> tuple[State, Plan]:
        context, family = rig.controller.context, rig.family
        request = PlanRequest(trigger="test", rate=50.0)
        state = family.state(await context.conditions(family), context.config, request)
        groups = tuple(GroupCount(variant=name, profile="1c", count=count) for name, count in counts.items())
        return state, await rig.solver.propose(state, "objective", groups)

    return rig, *asyncio.run(story())


def saving(other: Plan, here: Plan, state: State, part: float) -> Plan:
    """`other` with the accuracy of `here` and so much (a part of BASE's joules a row) less energy."""
    joules = here.prediction.energy_j_per_row - part * objective_of(state).base_energy_j
    prediction = msgspec.structs.replace(here.prediction, energy_j_per_row=joules, idle_j_per_row=0.0)
    return msgspec.structs.replace(other, prediction=prediction, candidates=(), feasible=True)


def test_what_a_start_takes_is_learned() -> None:
    cost = ChangeCost()
    assert (cost.start_s, cost.holds_s(0.0)) == (SWITCH_S, HOLDS_S)
    for at in range(20):
        cost.changed(STARTS, 600.0 * at, 600.0 * at + 1.0)
    assert cost.start_s == pytest.approx(1.0, abs=0.02)
    cost.changed(ROUTES, 12_000.0, 12_090.0)
    assert cost.start_s == pytest.approx(1.0, abs=0.02), "nothing was started"


def test_what_comes_to_a_process_that_is_there_teaches_nothing_of_starts() -> None:
    item = worker("large", 0, 1)
    step = Step(kind="spawn", assignment=item)
    cost = ChangeCost()
    cost.changed(Transition(steps=(step,), kept=(), resident=(item,)), 0.0, 0.01)
    assert cost.start_s == SWITCH_S
    cost.changed(Transition(steps=(step,), kept=()), 0.0, 1.0)
    assert cost.start_s < SWITCH_S


def test_a_configuration_is_expected_to_last_as_long_as_others_did_and_as_it_has_by_now() -> None:
    cost = ChangeCost()
    for at in range(20):
        cost.changed(STARTS, 300.0 * at, 300.0 * at)
    last_s = 300.0 * 19
    assert cost.holds_s(last_s) == pytest.approx(300.0, rel=0.05)
    assert cost.holds_s(last_s + 7200.0) == 7200.0
    assert cost.holds_s(last_s + 1e6) <= 4.0 * 3600.0


def test_a_change_pays_only_if_it_saves_more_than_it_costs_while_it_lasts() -> None:
    rig, state, here = planned(large=2)
    _, _, other = planned(small=2)
    rig.family.deployed = DeployedPlan(here.deployment, here.routing, here)
    problem, base_j = problem_of(state), objective_of(state).base_energy_j
    there = moving_j(problem, here.configuration, other.configuration, state.switch_s)
    back = moving_j(problem, other.configuration, here.configuration, state.switch_s)
    needed = (there + back) / (problem.rate * state.holds_s) / base_j + MARGIN
    assert gate.change_j(other, here, state, 0.0) == pytest.approx(needed * base_j)
    quick = msgspec.structs.replace(state, switch_s=1.0)
    assert gate.change_j(other, here, quick, 0.0) < HYSTERESIS * base_j, "a smaller gain than before is worth an hour"
    for gain, taken in ((0.95 * needed, False), (1.05 * needed, True)):
        found = gate.within_noise(rig.family, saving(other, here, state, gain), here, state)
        assert (found is None) is taken
    # The same gain is not worth a change that lasts five minutes only, and the reason says so.
    short = msgspec.structs.replace(state, holds_s=60.0)
    found = gate.within_noise(rig.family, saving(other, here, state, 1.05 * needed), here, short)
    assert found is not None
    assert "saves less than changing to it costs" in found.reason
    assert "over the 60 s that it is expected to last" in found.reason
    # Nor if half of the capacity is missing meanwhile, for a long start.
    slow = msgspec.structs.replace(state, switch_s=60.0)
    gained = saving(other, here, state, gate.change_j(other, here, slow, 0.0) / base_j + 1e-3)
    assert gate.within_noise(rig.family, gained, here, slow, 0.0) is None
    assert gate.within_noise(rig.family, gained, here, slow, 0.5) is not None


def test_a_faster_start_is_a_cheaper_change() -> None:
    _, state, here = planned(large=2)
    _, _, other = planned(small=2)
    fast = msgspec.structs.replace(state, switch_s=0.5)
    assert gate.change_j(other, here, fast, 0.0) < gate.change_j(other, here, state, 0.0)
    margin_j = MARGIN * objective_of(state).base_energy_j
    assert gate.change_j(here, here, state, 0.0) == pytest.approx(margin_j)


def test_changes_on_a_rig_are_counted() -> None:
    async def story() -> None:
        rig = Rig(g_per_kwh=100.0)
        await rig.settled()
        before = rig.family.change_cost.start_s
        rig.chain.g_per_kwh = 900.0
        await rig.look(600.0, looks=3)
        assert rig.family.changes >= 2
        assert rig.family.change_cost.start_s < before, "a fake fleet starts workers at once"
        assert rig.family.change_cost.holds_s(rig.clock()) < HOLDS_S

    asyncio.run(story())
