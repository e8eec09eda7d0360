"""Plans whose workers share their time: found if they are better, laid out, kept, and below their bound."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from clover.errors import PlanError
from clover.planning.cascade.evaluation import predict_routing
from clover.planning.cascade.permitted import permitted
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import is_shared, problem_of
from clover.planning.packing.candidates import shared_layouts, whole_sets
from clover.planning.packing.evaluation import UNBOUNDED_MS, evaluate
from clover.planning.search.configurations import best_found
from clover.planning.search.shared import best_shared
from clover.policies import build
from clover.policies.plans import bound_of, plan_fixed
from clover.types import (
    Ahead,
    Assignment,
    Demand,
    DeviceShape,
    GroupCount,
    Permitted,
    Plan,
    Routing,
    State,
    configuration_of,
)
from tests.support.chains_fixture import cascading, point
from tests.support.profiles_fixture import cpu, objective, placement, state

pytestmark = pytest.mark.slow

BOTH = GroupCount(variant="large", profile="1c", count=2, beside=("small",))


def one_place(cores: int = 2) -> DeviceShape:
    """A machine of one placement, as a plain GPU is."""
    return msgspec.structs.replace(cpu(cores), layouts=((placement(0, cores),),))


def resident(given: State, most: int = 3) -> State:
    return msgspec.structs.replace(given, resident=most)


def proposed(given: State, policy: str = "objective") -> Plan:
    return build(policy).propose(given)


def floor_state(rate: float = 60.0, **how: object) -> State:
    return state(rate=rate, config=objective("floor", slo_ms=40.0, floor=90.5), **how)  # type: ignore[arg-type]


def test_one_placement_serves_a_mix_only_if_it_may_share() -> None:
    given = floor_state(devices=(one_place(),))
    alone, shared = proposed(given), proposed(resident(given))
    assert [group.variants for group in alone.configuration] == [("large",)]
    assert [len(group.variants) for group in shared.configuration] == [2]
    assert shared.feasible
    assert shared.score > alone.score
    assert shared.prediction.accuracy == pytest.approx(90.5, abs=0.01)
    assert shared.prediction.p95_ms <= 40.0
    assert {item.placement for item in shared.deployment} == {placement(0, 2)}
    assert configuration_of(shared.deployment) == shared.configuration
    assert alone.bound is not None
    assert shared.bound is not None
    assert alone.bound - 1e-9 <= shared.bound
    assert shared.score <= shared.bound + 1e-9


def test_one_placement_serves_a_cascade() -> None:
    given = cascading([point(91.5), point(91.8, reach=(1.0, 0.5))], rate=60.0, devices=(one_place(),))
    shared = proposed(resident(given))
    assert shared.routing.chain == ("small", "large")
    assert [group.words for group in shared.configuration] == ["1 x large/small@2c"]
    assert shared.feasible
    assert shared.score > proposed(given).score
    assert proposed(given).routing.chain == ()


def test_nothing_changes_where_workers_hold_one_variant() -> None:
    given = cascading([point(91.5)], rate=100.0, devices=(cpu(2),))
    assert proposed(given) == proposed(resident(given, 1))
    assert not is_shared(proposed(given).configuration)


def test_workers_of_one_variant_each_still_win_where_they_save() -> None:
    """Where a worker that serves rare rows alone costs nothing, and the others wait for no other variant's batch."""
    given = msgspec.structs.replace(floor_state(rate=20.0, devices=(cpu(2),)), resident=3)
    plan = proposed(given)
    found = best_found(problem_of(given), objective_of(given))
    assert plan.score >= max(item.score for item in found.candidates if item.feasible) - 1e-9
    assert plan.score >= proposed(floor_state(rate=20.0, devices=(cpu(2),))).score - 1e-9


def test_the_limit_of_utilisation_holds_for_all_variants_together() -> None:
    given = floor_state(rate=1.0)
    problem, aims = problem_of(given), objective_of(given)
    pool_rate = 2 * problem.services["large", "1c"].capacity()
    high = replace(problem, rate=1.2 * pool_rate)
    found = evaluate(high, aims, (BOTH,))
    if found.feasible:
        assert found.prediction.utilisation <= aims.max_utilisation + 1e-6
    over = replace(problem, rate=4.0 * pool_rate)
    assert "utilisation" in evaluate(over, aims, (BOTH,)).why
    routing = Routing(shares={"large": 1.0})
    expected = predict_routing(replace(problem, rate=1.1 * pool_rate), (BOTH,), routing)
    assert expected is not None
    assert expected.p95_ms == UNBOUNDED_MS


@pytest.mark.parametrize("rate", [5.0, 40.0, 110.0])
@pytest.mark.parametrize("floor", [88.5, 90.0, 91.7])
@pytest.mark.parametrize("lam", [0.1, 0.9])
def test_no_mix_on_shared_workers_exceeds_the_bound(rate: float, floor: float, lam: float) -> None:
    config = objective("paper", slo_ms=1000.0, floor=floor, lam=lam)
    given = resident(state(rate=rate, config=config, devices=(cpu(2),)))
    problem, aims = problem_of(given), objective_of(given)
    bound = bound_of(problem, aims)
    found = [evaluate(problem, aims, configuration) for configuration in whole_sets(problem)]
    found += [evaluate(problem, aims, configuration) for configuration in whole_sets(replace(problem, resident=2))]
    found += best_shared(problem, aims)
    for item in found:
        if item.feasible:
            assert item.score <= bound + 1e-9, item


def test_the_same_state_gives_the_same_plan() -> None:
    given = resident(cascading([point(91.5), point(91.2, reach=(1.0, 0.15))], rate=120.0, devices=(cpu(2),)))
    assert proposed(given) == proposed(given)


def running(given: State, plan: Plan) -> State:
    return msgspec.structs.replace(given, running=plan.deployment, routing=plan.routing)


@pytest.mark.parametrize("chained", [False, True])
def test_a_shared_plan_that_runs_is_predicted_as_it_was_planned(chained: bool) -> None:
    given = (
        cascading([point(91.5)], rate=60.0, devices=(one_place(),)) if chained else floor_state(devices=(one_place(),))
    )
    given = resident(given)
    plan = proposed(given)
    found = predict_routing(problem_of(given), plan.configuration, plan.routing)
    assert found is not None
    assert found.p95_ms == pytest.approx(plan.prediction.p95_ms, rel=0.02)
    assert found.energy_j_per_row == pytest.approx(plan.prediction.energy_j_per_row, rel=0.01)
    again = proposed(running(given, plan))
    assert again.deployment == plan.deployment


def test_what_runs_shared_stays_where_it_is() -> None:
    given = resident(cascading([point(91.5)], rate=150.0, devices=(cpu(4),)))
    mixed = (GroupCount(variant="large", profile="1c", count=2), BOTH)
    fixed = plan_fixed(given, mixed)
    assert configuration_of(fixed.deployment) == mixed
    again = plan_fixed(running(given, fixed), mixed)
    assert set(again.deployment) == set(fixed.deployment)
    swapped = plan_fixed(running(given, fixed), (GroupCount(variant="small", profile="1c", count=2), BOTH))
    here = {item.placement for item in fixed.deployment if item.variant == "small"}
    assert here == {item.placement for item in swapped.deployment if item.variant == "large"}


def test_a_shared_configuration_permits_every_chain_of_its_variants() -> None:
    given = resident(cascading([point(91.5), point(91.9, reach=(1.0, 0.6))], rate=60.0, devices=(cpu(2),)))
    found = permitted(problem_of(given), objective_of(given), (BOTH,))
    chains = {item.routing.chain for item in found}
    assert ("small", "large") in chains
    assert {item.configuration for item in found} == {(BOTH,)}


def test_a_budget_is_spent_on_shared_workers_too() -> None:
    given = cascading([point(91.5), point(91.9, reach=(1.0, 0.6))], rate=60.0, devices=(one_place(),), floor=88.0)
    config = msgspec.structs.replace(given.objective, accuracy_budget=0.5)
    ahead = (Ahead(seconds=86_400.0, g_per_kwh=250.0, rows=60.0 * 86_400.0),)
    given = msgspec.structs.replace(given, objective=config, ahead=ahead)
    plan = proposed(resident(given), "budget")
    assert plan.feasible
    assert is_shared(plan.configuration)
    assert any(isinstance(item, Permitted) and item.chain for item in plan.permitted)
    assert plan.prediction.joules < proposed(given, "budget").prediction.joules


def test_rows_that_ask_for_an_accuracy_get_it_from_a_shared_worker() -> None:
    given = resident(floor_state(devices=(one_place(),)))
    asked = msgspec.structs.replace(given, demand=(Demand(variant="large", accuracy=92.0, rate=12.0),))
    plan = proposed(asked)
    assert plan.feasible
    assert any("large" in group.variants for group in plan.configuration)
    assert plan.prediction.accuracy >= 90.5 - 1e-6


def test_layouts_of_many_devices_are_cut_alike() -> None:
    many = tuple(cpu(4, f"gpu{number}", overlap=False) for number in range(12))
    problem = problem_of(resident(state(devices=many, measured=None)))
    found = shared_layouts(problem)
    assert 1 <= len(found) <= 64
    few = problem_of(resident(state(devices=(cpu(2),))))
    assert shared_layouts(few) == [(("1c", 2),), (("2c", 1),)]
    assert [group.variants for own in whole_sets(few) for group in own] == [("large", "medium", "small")] * 2
    pairs = [own[0].variants for own in whole_sets(replace(few, resident=2))]
    assert len(pairs) == 6


def test_a_configuration_that_a_worker_cannot_hold_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot hold large, small together"):
        plan_fixed(floor_state(), (BOTH,))
    plan = plan_fixed(resident(floor_state()), (BOTH,))
    assert isinstance(plan.deployment[0], Assignment)
    assert len(plan.deployment) == 4
