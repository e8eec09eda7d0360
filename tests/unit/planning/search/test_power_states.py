"""Devices without workers: how many stay awake, on which a plan is laid out, and what is never given up for it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from clover.planning.model.objective import HYSTERESIS, objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.best import best_power_state, idle_j
from clover.planning.search.configurations import best_found
from clover.planning.transition.steps import plan_transition
from clover.policies import build
from clover.policies.plans import lay_out_candidate, plan_fixed
from clover.types import GroupCount, ObjectiveConfig, Plan, State
from tests.support.mig_fixture import a100, a100s, mig_profile
from tests.support.profiles_fixture import objective, state

RATE = 400.0


def moment(spared_w: float | None, *, gpus: int = 3, rate: float = RATE, **more: float) -> State:
    config: ObjectiveConfig = msgspec.structs.replace(
        objective(slo_ms=30.0, floor=0.0, lam=0.2), spared_w=spared_w, **more
    )
    return state(g_per_kwh=400.0, rate=rate, devices=a100s(gpus), measured=mig_profile(), config=config)


def test_all_are_awake_where_nothing_is_spared() -> None:
    now = moment(None)
    problem, scored = problem_of(now), objective_of(now)
    assert best_power_state(problem, scored) == best_found(problem, scored)
    plan = build("objective").propose(now)
    assert len(plan.awake) == 3
    assert plan.prediction.idle_j_per_row == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [50.0, 400.0, 1_500.0, 4_000.0])
@pytest.mark.parametrize("spared_w", [0.0, 7.0, 52.0])
def test_the_number_awake_is_the_best_of_all_numbers(spared_w: float, rate: float) -> None:
    now = moment(spared_w, rate=rate)
    problem, scored = problem_of(now), objective_of(now)
    found = best_power_state(problem, scored)
    scores = []
    for number in (1, 2, 3):
        best = best_found(replace(problem, devices=problem.devices[:number]), scored).best
        if best.feasible:
            joules = best.prediction.energy_j_per_row + idle_j(problem, number)
            scores.append(scored.score(best.prediction.accuracy, joules))
    assert found.best.feasible == bool(scores)
    if scores:
        assert found.best.score == pytest.approx(max(scores), abs=1e-9)
        assert found.best.prediction.utilisation <= scored.max_utilisation + 1e-9
        assert found.best.prediction.p95_ms <= scored.slo_ms


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["objective", "budget", "static:mix", "static:large"])
def test_plans_leave_devices_without_workers(policy: str) -> None:
    now = moment(52.0, accuracy_budget=1.0)
    plan = build(policy).propose(now)
    assert plan.feasible
    assert len(plan.awake) < 3
    assert {item.placement.device for item in plan.deployment} == set(plan.awake)
    assert plan.prediction.idle_j_per_row == pytest.approx(len(plan.awake) * 52.0 / RATE)
    assert f"on {len(plan.awake)} of 3 devices" in plan.reason
    assert plan.bound is not None
    assert plan.score <= plan.bound + 1e-9
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.slow
def test_watts_decide_how_many() -> None:
    awake = []
    for watts in (0.0, 10.0, 500.0):
        now = moment(watts, rate=6_000.0)
        now = msgspec.structs.replace(now, objective=msgspec.structs.replace(now.objective, lam=0.02))
        awake.append(len(build("objective").propose(now).awake))
    assert awake == sorted(awake, reverse=True)
    assert awake[-1] < awake[0]


def test_what_runs_stays_where_the_gain_is_small() -> None:
    now = moment(52.0)
    first = build("objective").propose(now)
    moved = msgspec.structs.replace(now, running=first.deployment, arrival_rate=1.02 * RATE)
    again = build("objective").propose(moved)
    assert again.deployment == first.deployment
    fresh = build("objective").propose(msgspec.structs.replace(moved, running=()))
    assert again.score >= fresh.score - HYSTERESIS * objective_of(moved).scale


def test_more_wake_for_more_load_and_those_awake_keep_their_workers() -> None:
    now = moment(52.0, gpus=4)
    small = build("objective").propose(now)
    large = build("objective").propose(msgspec.structs.replace(now, running=small.deployment, arrival_rate=25_000.0))
    assert len(small.awake) < len(large.awake)
    assert set(small.awake) <= set(large.awake)


def test_a_change_that_those_awake_cannot_make_is_made_on_those_asleep() -> None:
    now = moment(52.0, gpus=2, rate=300.0)
    one = (GroupCount(variant="small", profile="7g.40gb", count=1),)
    other = (GroupCount(variant="small", profile="1g.5gb", count=7),)
    running = lay_out_candidate(now, problem_of(now), one, 1)
    now = msgspec.structs.replace(now, running=running)
    target = lay_out_candidate(now, problem_of(now), other, 1)
    assert {item.placement.device for item in running} != {item.placement.device for item in target}
    assert plan_transition(running, target, now.devices, floor=1.0).holds
    same = lay_out_candidate(now, problem_of(now), one, 1)
    assert same == running, "what need not change stays where it is"


def test_a_given_configuration_takes_the_fewest_devices() -> None:
    configuration = (GroupCount(variant="small", profile="1g.5gb", count=14),)
    plan = plan_fixed(moment(52.0, gpus=4), configuration)
    assert len(plan.awake) == 2
    assert plan.prediction.idle_j_per_row == pytest.approx(2 * 52.0 / RATE)


def test_devices_of_several_kinds_and_lost_ones() -> None:
    now = moment(52.0)
    devices = (a100("gpu0", lost=True), a100("gpu1", blocked=((0, 1),)), a100("gpu2"))
    plan = build("objective").propose(msgspec.structs.replace(now, devices=devices))
    assert plan.feasible
    assert "gpu0" not in plan.awake


def test_base_on_as_few_devices_as_it_needs() -> None:
    full = build("base").propose(moment(None, gpus=4))
    fitted = build("base:fitted").propose(moment(None, gpus=4))
    assert fitted.feasible
    assert full.configuration[0].count == 4
    assert fitted.configuration[0].count < 4
    assert fitted.configuration[0].variant == full.configuration[0].variant
    assert fitted.prediction.p95_ms <= 30.0
    assert fitted.prediction.utilisation <= 0.85
    fewer = fitted.configuration[0].count - 1
    if fewer:
        one = plan_fixed(moment(52.0, gpus=fewer), (GroupCount(variant="large", profile="7g.40gb", count=fewer),))
        assert not one.feasible
    tight = moment(None, gpus=4)
    tight = msgspec.structs.replace(tight, objective=msgspec.structs.replace(tight.objective, slo_ms=0.01))
    assert build("base:fitted").propose(tight).configuration[0].count == 4
