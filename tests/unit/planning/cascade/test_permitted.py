"""What a configuration permits, and where a moment goes: thresholds at once, configurations where it pays."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.budget.frontiers import frontier, permitted_on
from clover.planning.budget.steering import steer, steer_on
from clover.planning.budget.target import budget_target
from clover.planning.cascade.evaluation import evaluate
from clover.planning.cascade.permitted import best_at, joint, nearest, permitted, point_of, points_on
from clover.planning.model.frontier import FrontierPoint, hull
from clover.planning.model.objective import PlanningInput, objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.chains import best_chains
from clover.planning.search.configurations import every
from clover.policies import build
from clover.policies.plans import plan_fixed
from clover.types import Ahead, Candidate, CascadeProfile, ChainPoint, Configuration, GroupCount, Plan, State
from tests.support.chain_points import POINTS, point
from tests.support.profiles_fixture import objective, profile, reading, state

RATE = 100.0


def cascading(
    *,
    points: tuple[ChainPoint, ...] = POINTS,
    rate: float = RATE,
    budget: float = 1.0,
    floor: float = 88.5,
    slo: float = 30.0,
) -> State:
    measured = msgspec.structs.replace(
        profile(), cascade=CascadeProfile(points=points, quantiles={}, calibration_rows=5000, held_out_rows=5000)
    )
    config = msgspec.structs.replace(objective("paper", slo_ms=slo, floor=floor), cascade=True, accuracy_budget=budget)
    return state(rate=rate, config=config, measured=measured)


def on(*variants: str) -> Configuration:
    return tuple(GroupCount(variant=name, profile="1c", count=1) for name in sorted(variants))


def moment(expected: list[float], *, rows: float = 0.0, accuracy: float = 0.0, base: State | None = None) -> State:
    now = base or cascading()
    return msgspec.structs.replace(
        now,
        intensity=reading(expected[0]),
        ahead=tuple(Ahead(seconds=3600.0, g_per_kwh=g, rows=now.arrival_rate * 3600.0) for g in expected),
        forecast="given",
        served_rows=rows,
        served_accuracy_rows=rows * accuracy,
    )


def day(grid: list[float], base: State | None = None, *, policy: str = "budget") -> list[Plan]:
    """The hours of a grid that is foretold rightly, each on what the one before left."""
    plans: list[Plan] = []
    rows = total = 0.0
    for at in range(len(grid)):
        now = moment(grid[at:], rows=rows, accuracy=total / rows if rows else 0.0, base=base)
        now = msgspec.structs.replace(now, running=plans[-1].deployment if plans else ())
        plans.append(build(policy).propose(now))
        rows += now.arrival_rate * 3600.0
        total += now.arrival_rate * 3600.0 * plans[-1].prediction.accuracy
    return plans


def mean(plans: list[Plan]) -> float:
    return sum(plan.prediction.accuracy for plan in plans) / len(plans)


def routings(found: tuple[Candidate, ...]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    return [(item.routing.chain, item.routing.thresholds) for item in found]


# --- the permitted set ------------------------------------------------------------------------------------------------


def test_a_configuration_permits_its_chains_and_its_variants_alone() -> None:
    problem = problem_of(cascading())
    found = list(points_on(problem, on("small", "large")))
    assert {item.chain for item in found} == {("small", "large"), ("small",), ("large",)}
    three = {item.chain for item in points_on(problem, on("small", "medium", "large"))}
    assert ("small", "medium", "large") in three, "a chain of two or three, as it has the workers"


def test_what_is_permitted_is_the_hull_and_keeps_every_limit() -> None:
    given = cascading()
    problem, aim = problem_of(given), objective_of(given)
    found = permitted(problem, aim, on("small", "large"))
    points = [point_of(item) for item in found]
    assert points == hull(points)
    assert (("small", "large"), (0.6,)) not in routings(found), "dearer and less accurate than another"
    for item in found:
        assert item.feasible
        assert item.prediction.utilisation <= aim.max_utilisation
        assert item.prediction.p95_ms <= aim.slo_ms
        assert item.prediction.accuracy >= aim.planned_floor
    assert {"small", "large"} == set(found[0].routing.shares), "who stands by has a share of nothing"


def test_the_set_shrinks_with_the_rate_until_nothing_is_left() -> None:
    sizes = []
    for rate in (100.0, 300.0, 450.0, 700.0, 2000.0):
        given = cascading(rate=rate)
        problem, aim = problem_of(given), objective_of(given)
        found = permitted(problem, aim, on("small", "large"))
        assert all(item.prediction.utilisation <= 0.85 for item in found)
        sizes.append(max((item.prediction.accuracy for item in found), default=0.0))
    assert sizes == sorted(sizes, reverse=True), "a higher rate never permits more accuracy"
    assert sizes[0] > sizes[-1] == 0.0


def test_a_slo_that_only_some_keep_leaves_the_others_out() -> None:
    given = cascading(slo=4.5)
    problem, aim = problem_of(given), objective_of(given)
    late = evaluate(problem, aim, on("small", "large"), POINTS[4])
    assert late.why.startswith("p95")
    assert (POINTS[4].chain, POINTS[4].thresholds) not in routings(permitted(problem, aim, on("small", "large")))


@pytest.mark.parametrize(("rate", "rests"), [(0.1, True), (700.0, False)])
def test_nothing_is_to_save_only_where_the_best_variant_can_answer(rate: float, rests: bool) -> None:
    now = PlanningInput.from_state(
        msgspec.structs.replace(moment([300.0], base=cascading(rate=rate)), least_saving_w=1e9)
    )
    found = steer(now, budget_target(now))
    assert found is not None
    assert found.nothing_to_save is rests
    assert (found.best.prediction.accuracy == pytest.approx(92.0)) is rests
    given = steer_on(now, found.best.configuration)
    assert given is not None
    assert not given.nothing_to_save, "another configuration may save more"


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rate=st.sampled_from([60.0, 200.0, 420.0]), slo=st.sampled_from([5.0, 9.0, 30.0]))
def test_the_joint_frontier_is_that_of_all_pairs_played(data: st.DataObject, rate: float, slo: float) -> None:
    """However the hull is drawn: nothing feasible lies below it, and all of it is feasible."""
    accuracies = data.draw(st.lists(st.floats(88.6, 92.4), min_size=2, max_size=5, unique=True))
    pairs = [("small", "medium"), ("small", "large"), ("medium", "large")]
    given = cascading(
        points=tuple(point(pairs[at % 3], value, 0.05 + 0.15 * at) for at, value in enumerate(accuracies)),
        rate=rate,
        slo=slo,
    )
    problem, aim = problem_of(given), objective_of(given)
    space = every(problem)
    assert space
    found = joint(problem, aim, space)
    all_of_them = [evaluate(problem, aim, item, how) for item in space for how in points_on(problem, item)]
    feasible = [point_of(item) for item in all_of_them if item.feasible]
    assert [point_of(item) for item in found] == (hull(feasible) if feasible else [])


def test_on_a_small_machine_the_best_chain_of_all_is_found() -> None:
    given = cascading(floor=91.0)
    problem, aim = problem_of(given), objective_of(given)
    space = every(problem) or []
    best = best_chains(problem, aim, problem.points, space=space)[0]
    for item, how in itertools.product(space, POINTS):
        if {group.variant for group in item} == set(how.chain):
            other = evaluate(problem, aim, item, how)
            assert not other.feasible or other.score <= best.score + 1e-12


# --- where to land ----------------------------------------------------------------------------------------------------


def test_the_price_chooses_and_the_nearest_point_is_taken() -> None:
    given = cascading()
    found = permitted(problem_of(given), objective_of(given), on("small", "large"))
    assert best_at(found, 0.0) is found[0]
    assert best_at(found, float("inf")) is found[-1]
    low, high = found[0].prediction.accuracy, found[1].prediction.accuracy
    assert nearest(found, 0.9 * low + 0.1 * high, 0.0) is found[0]
    assert nearest(found, 0.1 * low + 0.9 * high, 0.0) is found[1]
    assert nearest(found, low, high) is found[1], "what must be reached now cannot wait"
    assert nearest(found, 99.0, 99.0) is found[-1]


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), loss=st.sampled_from([0.3, 0.7, 1.0, 1.6]))
def test_the_mean_of_a_day_lands_on_the_budget_though_no_hour_does(seed: int, loss: float) -> None:
    rng = random.Random(seed)
    base = cascading(budget=loss)
    plans = day([rng.uniform(60.0, 500.0) for _ in range(24)], base)
    assert mean(plans) == pytest.approx(92.0 - loss, abs=0.1)
    assert all(plan.feasible for plan in plans)
    for plan in plans:
        assert plan.permitted, "a configuration says what it permits"
        assert all(item.prediction.p95_ms <= 30.0 for item in plan.permitted)


# --- fast and slow ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_thresholds_follow_the_grid_and_the_workers_stay() -> None:
    grid = [100.0, 450.0, 120.0, 400.0, 110.0, 420.0, 105.0, 430.0]
    plans = day(grid)
    assert len({plan.configuration for plan in plans[1:]}) == 1
    clean, dirty = plans[2::2], plans[3::2]
    assert min(p.prediction.accuracy for p in clean) >= max(p.prediction.accuracy for p in dirty)
    assert mean(clean) > mean(dirty) + 0.1
    assert len({plan.routing.thresholds for plan in plans}) > 1
    flat = day(grid, policy="budget:flat")
    grams = [sum(g * p.prediction.energy_j_per_row for g, p in zip(grid, each, strict=True)) for each in (plans, flat)]
    assert mean(flat) == pytest.approx(mean(plans), abs=0.1)
    assert grams[0] < grams[1]


@pytest.mark.slow
def test_a_change_has_to_pay_and_says_so() -> None:
    now = moment([200.0] * 8)
    first = build("budget").propose(now)
    again = build("budget").propose(msgspec.structs.replace(now, running=first.deployment))
    assert set(again.deployment) == set(first.deployment)
    poor = plan_fixed(now, on("large", "medium"))
    left = build("budget").propose(msgspec.structs.replace(now, running=poor.deployment))
    assert "changing gains" in left.reason
    assert left.configuration != poor.configuration, "half of the joules is worth a worker"


@pytest.mark.slow
def test_what_is_not_permitted_any_more_is_left_at_once() -> None:
    quiet = moment([200.0] * 4)
    first = build("budget").propose(quiet)
    loud = moment([200.0] * 4, base=cascading(rate=900.0, floor=88.0))
    running = plan_fixed(quiet, on("medium", "large")).deployment
    found = build("budget").propose(msgspec.structs.replace(loud, running=running))
    assert found.feasible
    assert found.configuration != on("medium", "large")
    assert "permits nothing" in found.reason
    assert first.feasible


def test_what_must_be_reached_now_is_reached_even_if_workers_must_change() -> None:
    now = moment([300.0], rows=RATE * 36_000.0, accuracy=90.9)
    running = plan_fixed(now, on("medium", "small")).deployment
    owing = msgspec.structs.replace(now, running=running)
    asked = PlanningInput.from_state(owing)
    found = steer(asked, budget_target(asked))
    assert found is not None
    assert found.best.prediction.accuracy > 91.5
    assert "has to reach" in found.why


def test_a_given_configuration_is_routed_as_the_budget_wants_it() -> None:
    now = moment([100.0, 400.0])
    plan = plan_fixed(now, on("small", "large"))
    assert plan.configuration == on("small", "large")
    assert plan.routing.chain == ("small", "large")
    found = steer_on(PlanningInput.from_state(now), on("small", "large"))
    assert found is not None
    assert found.best.routing == plan.routing
    assert {item.chain for item in plan.permitted} >= {("small", "large")}


def test_the_frontier_of_a_horizon_is_that_of_all_permitted_sets() -> None:
    now = moment([200.0] * 4)
    problem, scored = problem_of(now), objective_of(now)
    found = frontier(problem, scored, RATE)
    points = [plan.point for plan in found]
    assert points == hull(points)
    for plan in found:
        for item in permitted_on(problem, scored, plan.configuration):
            own = point_of(item)
            assert any(p.grams <= own.grams + 1e-9 or p.accuracy < own.accuracy for p in points)
    assert all(isinstance(plan.point, FrontierPoint) for plan in found)


def test_without_a_forecast_the_policy_is_the_static_one() -> None:
    now = cascading()
    assert build("budget").propose(now).prediction.accuracy >= 91.0
