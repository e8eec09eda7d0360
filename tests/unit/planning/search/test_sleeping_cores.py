"""A row of cores whose cores may sleep: as many of the first cores as are worth it, with room for more to come."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from clover.devices.cpu import CpuDevice
from clover.planning.model.cores import cores_of, cores_under, first_cores, sleeping_row
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.best import ROOM, best_power_state, idle_j, power_states
from clover.planning.search.configurations import best_found
from clover.policies import build
from clover.policies.plans import plan_fixed
from clover.types import Plan, State
from tests.support.profiles_fixture import objective, profile, state

POLICIES = ("objective", "budget", "static:mix", "static:small")


def moment(rate: float, *, sleep_w: float | None = 0.25, least: int = 1, policy: str = "objective") -> State:
    shape = CpuDevice.from_cores(tuple(range(5)), sleep_w=sleep_w).shape()
    shape = msgspec.structs.replace(shape, least_cores=least)
    asked = objective(form="floor", slo_ms=60.0, floor=80.0)
    if policy in ("budget", "static:mix"):
        asked = msgspec.structs.replace(asked, accuracy_budget=3.0)
    return state(rate=rate, devices=(shape,), measured=profile((1, 2, 4)), config=asked)


def running(now: State, plan: Plan) -> State:
    return msgspec.structs.replace(now, running=plan.deployment, routing=plan.routing)


@pytest.mark.parametrize("rate", [5.0, 600.0, 1_500.0, 2_500.0, 3_500.0])
@pytest.mark.parametrize("sleep_w", [0.0, 0.25, 2.0])
def test_the_number_awake_is_the_best_of_all_that_have_room(sleep_w: float, rate: float) -> None:
    now = moment(rate, sleep_w=sleep_w)
    problem, scored = problem_of(now), objective_of(now)
    row = sleeping_row(problem.devices)
    assert row is not None
    scores = []
    for count in (1, 2, 3, 4):
        part = replace(problem, devices=(first_cores(row, count),))
        limit = scored.max_utilisation / (ROOM if count < 4 else 1.0)
        best = best_found(part, replace(scored, max_utilisation=limit)).best
        if best.feasible:
            joules = best.prediction.energy_j_per_row + idle_j(problem, count)
            scores.append(scored.score(best.prediction.accuracy, joules))
    found = best_power_state(problem, scored).best
    assert found.feasible
    assert found.score == pytest.approx(max(scores), abs=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_plans_leave_the_last_cores_without_workers(policy: str) -> None:
    now = moment(300.0, policy=policy)
    plan = build(policy).propose(now)
    assert plan.feasible
    assert cores_under(plan.deployment) == cores_of(plan.configuration) < 4
    assert plan.prediction.idle_j_per_row == pytest.approx(cores_under(plan.deployment) * 0.25 / 300.0)
    assert f"on {cores_under(plan.deployment)} of 4 cores" in plan.reason
    assert plan.bound is None or plan.score <= plan.bound + 1e-9
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_all_cores_have_workers_where_none_may_sleep() -> None:
    now = moment(300.0, sleep_w=None)
    plan = build("objective").propose(now)
    assert cores_under(plan.deployment) == 4
    assert plan.prediction.idle_j_per_row == 0.0


def test_no_fewer_than_have_to_be_awake() -> None:
    assert [each.awake for each in power_states(problem_of(moment(300.0, least=3)))] == [3, 4]
    plan = build("objective").propose(moment(300.0, least=3))
    assert cores_under(plan.deployment) == 3


@pytest.mark.slow
def test_cores_are_left_with_room_to_spare_and_kept_without() -> None:
    rates = [200.0 * step for step in range(1, 20)]

    def seen(rates: list[float], now: State) -> tuple[list[int], State]:
        awake = []
        for rate in rates:
            now = msgspec.structs.replace(now, arrival_rate=rate)
            plan = build("objective").propose(now)
            assert plan.feasible
            assert plan.prediction.utilisation <= now.objective.max_utilisation + 1e-9
            now = running(now, plan)
            awake.append(cores_under(plan.deployment))
        return awake, now

    up, now = seen(rates, moment(rates[0]))
    down, now = seen(rates[::-1], now)
    assert up[0] == down[-1] == 1
    assert up[-1] == down[0] == 4
    assert up.count(1) > down.count(1) >= 1
    again, _ = seen([900.0, 1_300.0] * 5, now)
    assert again == [1] * 10


def test_a_given_configuration_takes_its_own_cores() -> None:
    now = moment(300.0)
    plan = build("objective").propose(now)
    again = plan_fixed(running(now, plan), plan.configuration)
    assert again.deployment == plan.deployment
    assert again.score == pytest.approx(plan.score)
