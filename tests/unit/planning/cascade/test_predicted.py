"""What runs is predicted as the plan that brought it."""

from __future__ import annotations

import msgspec
import pytest

from clover.planning.cascade.evaluation import predict_routing, shortfall
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.policies import build
from clover.research.simulate import families, parametric
from clover.types import Plan, Prediction, State
from tests.support.profiles_fixture import objective, state

pytestmark = pytest.mark.slow


def routed(now: State, plan: Plan) -> Prediction:
    found = predict_routing(problem_of(now), plan.configuration, plan.routing)
    assert found is not None
    return found


def test_a_mix_is_predicted_as_the_plan_that_brought_it() -> None:
    now = state(rate=100.0)
    plan = build("objective").propose(now)
    found = routed(now, plan)
    assert (not shortfall(objective_of(now), found)) == plan.feasible
    assert found.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    assert found.energy_j_per_row == pytest.approx(plan.prediction.energy_j_per_row, rel=0.01)
    assert found.accuracy == pytest.approx(plan.prediction.accuracy, abs=1e-3)


def test_a_plan_with_waits_is_predicted_as_it_was_planned() -> None:
    config = msgspec.structs.replace(objective(slo_ms=60.0), waits=True)
    now = state(rate=300.0, config=config)
    plan = build("objective").propose(now)
    assert plan.routing.wait_ms or plan.routing.largest, "the state is one in which waiting pays"
    found = routed(now, plan)
    assert not shortfall(objective_of(now), found)
    assert found.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.05)
    assert found.energy_j_per_row == pytest.approx(plan.prediction.energy_j_per_row, rel=0.02)


def test_a_cascade_is_predicted_as_the_plan_that_brought_it() -> None:
    measured = families.load("efficientnet", families.gpus(1), parametric.parse("parametric")).profile
    config = msgspec.structs.replace(
        objective(slo_ms=1.5 * measured.base.p95_ms, floor=83.0), cascade=True, accuracy_budget=None
    )
    now = state(rate=3.0, config=config, measured=measured, devices=families.gpus(1))
    plan = build("objective").propose(now)
    assert plan.routing.chain
    found = routed(now, plan)
    assert not shortfall(objective_of(now), found, chained=True)
    assert found.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    unknown = msgspec.structs.replace(plan.routing, thresholds=tuple(0.123 for _ in plan.routing.thresholds))
    assert predict_routing(problem_of(now), plan.configuration, unknown) is None
