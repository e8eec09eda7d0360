"""Plans have workers for the rows that ask for an accuracy of their own."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.cascade import evaluation as chains
from clover.planning.cascade.evaluation import alone
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import direct, met_by, of_the_others, problem_of
from clover.planning.packing.candidates import exchange
from clover.planning.packing.evaluation import evaluate
from clover.planning.search.configurations import every
from clover.policies.demanded import heeds, propose_with_demand, with_met
from clover.types import ChainPoint, Demand, DeviceShape, GroupCount, ObjectiveConfig, Plan, State
from tests.support.chains_fixture import cascading, point
from tests.support.examples import examples
from tests.support.profiles_fixture import VARIANTS, cpu, objective, profile, state


def asked(rate: float, variant: str = "large") -> Demand:
    return Demand(variant=variant, accuracy=VARIANTS[variant][0], rate=rate)


def best(plan: Plan) -> float:
    return max(VARIANTS[item.variant][0] for item in plan.deployment)


def cheap(*demand: Demand, rate: float = 20.0, devices: tuple[DeviceShape, ...] = (cpu(2),), **given: Any) -> State:
    """A dirty grid, where no plan of its own would have the best variant."""
    found = state(g_per_kwh=900.0, rate=rate, devices=devices, config=objective(floor=88.0, lam=0.9, **given))
    return msgspec.structs.replace(found, demand=demand)


@pytest.mark.parametrize("policy", ["objective", "budget", "budget:flat", "static:mix"])
def test_a_plan_has_a_worker_for_what_is_asked_for(policy: str) -> None:
    budget = ObjectiveConfig(
        form="floor", slo_ms=30.0, accuracy_floor=88.0, lam=None, reference_g_per_kwh=250.0, accuracy_budget=4.0
    )
    plain = cheap() if policy == "objective" else msgspec.structs.replace(cheap(), objective=budget)
    assert best(propose_with_demand(policy, plain)) < 92.0
    wanted = msgspec.structs.replace(plain, demand=(asked(1.0),))
    plan = propose_with_demand(policy, wanted)
    assert plan.feasible
    assert best(plan) == 92.0
    assert with_met(wanted, plan).demand == (asked(1.0),)


def test_the_other_rows_go_on_as_before() -> None:
    plan = propose_with_demand("objective", cheap(asked(2.0)))
    # The best variant gets the rows that ask for it by themselves: no other row is sent there.
    assert plan.routing.shares["large"] == pytest.approx(0.0, abs=1e-3)
    assert plan.prediction.accuracy > propose_with_demand("objective", cheap()).prediction.accuracy


def test_all_rows_may_ask() -> None:
    plan = propose_with_demand("objective", cheap(asked(50.0)))
    assert plan.feasible
    assert {item.variant for item in plan.deployment} == {"large"}


def test_what_cannot_be_had_is_left_out_and_the_rest_is_not() -> None:
    # large takes 4 ms a row on one core and 2.3 ms on two; nobody may miss 2 ms
    tight = cheap(asked(5.0, "medium"), asked(5.0), slo_ms=2.2)
    plan = propose_with_demand("objective", tight)
    assert plan.feasible
    assert with_met(tight, plan).demand == (asked(5.0, "medium"),)


def test_policies_that_serve_what_their_name_says_do_not_heed_it() -> None:
    plan = propose_with_demand("static:small", cheap(asked(1.0)))
    assert plan.feasible
    assert {item.variant for item in plan.deployment} == {"small"}
    named = ("objective", "budget", "static", "static:mix", "my.module:Policy", "static:small", "base", "clover", "")
    assert [heeds(name) for name in named] == [True] * 5 + [False] * 4


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(
    demand=st.lists(st.tuples(st.sampled_from(["medium", "large"]), st.floats(0.1, 300.0)), min_size=1, max_size=2),
    rate=st.floats(1.0, 400.0),
    slo_ms=st.floats(3.0, 60.0),
    floor=st.floats(88.0, 91.5),
    lam=st.floats(0.01, 0.99),
    cores=st.sampled_from([1, 2, 4]),
)
def test_every_plan_has_the_workers_if_any_feasible_plan_has(
    demand: list[tuple[str, float]], rate: float, slo_ms: float, floor: float, lam: float, cores: int
) -> None:
    wanted = tuple(asked(rows, name) for name, rows in sorted(dict(demand).items(), key=lambda item: VARIANTS[item[0]]))
    config = objective(floor=floor, lam=lam, slo_ms=slo_ms)
    measured = profile((1, 2, 4))
    posed = state(g_per_kwh=500.0, rate=rate, devices=(cpu(cores),), config=config, measured=measured)
    plan = propose_with_demand("objective", msgspec.structs.replace(posed, demand=wanted))
    for number in range(len(wanted), 0, -1):
        part = msgspec.structs.replace(posed, demand=wanted[:number])
        problem, goal = problem_of(part), objective_of(part)
        some = [evaluate(problem, goal, configuration) for configuration in every(problem) or ()]
        if any(candidate.feasible for candidate in some):
            assert plan.feasible
            assert not direct(problem, plan.configuration, goal.max_utilisation).why
            assert met_by(wanted[:number], plan.deployment, problem.accuracy) == wanted[:number]
            break


def test_a_large_space_is_made_to_serve_what_is_asked_for() -> None:
    devices = tuple(cpu(8, f"cpu{number}") for number in range(4))
    plain = state(
        g_per_kwh=900.0,
        rate=300.0,
        devices=devices,
        config=objective(floor=88.0, lam=0.95),
        measured=profile((1, 2, 4, 8)),
    )
    assert every(problem_of(plain)) is None
    plan = propose_with_demand("objective", msgspec.structs.replace(plain, demand=(asked(3.0),)))
    assert plan.feasible
    assert best(plan) == 92.0


@given(st.floats(0.1, 500.0), st.integers(0, 19))
def test_what_is_exchanged_serves_what_is_asked_for(rate: float, at: int) -> None:
    problem = problem_of(cheap(asked(1.0, "medium"), asked(rate), rate=600.0))
    space = every(problem)
    assert space is not None
    slices = sum(group.count for group in space[at % len(space)])
    for made in itertools.islice(exchange(problem, space[at % len(space)], 0.85), 5):
        assert not direct(problem, made, 0.85).why
        assert sum(group.count for group in made) == slices


@pytest.mark.slow
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_shares_of_the_others_sum_to_one(share: float, part: float) -> None:
    problem = problem_of(cheap(asked(max(0.1, 20.0 * share * part))))
    configuration = propose_with_demand("objective", cheap(asked(1.0))).configuration
    shares = {"small": 1.0 - share, "large": share}
    found = of_the_others(problem, shares, direct(problem, configuration, 0.85))
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert all(value >= 0.0 for value in found.values())


def test_a_cascade_leaves_room_for_rows_that_go_straight() -> None:
    point = ChainPoint(
        chain=("small", "medium"),
        thresholds=(0.5,),
        accuracy=89.5,
        low=89.0,
        high=90.0,
        reach=(1.0, 0.3),
        ends=(88.0, 90.0),
        cut=(88.0, 90.0),
        cost=1.0,
    )
    from clover.planning.cascade.evaluation import evaluate as chained

    posed = cheap(asked(5.0), devices=(cpu(4),))
    problem = problem_of(msgspec.structs.replace(posed, profile=profile((1, 2, 4))))
    goal = objective_of(posed)
    with_large = [c for c in every(problem) or () if {g.variant for g in c} == {"small", "medium", "large"}]
    without = [c for c in every(problem) or () if {g.variant for g in c} == {"small", "medium"}]
    good = chained(problem, goal, with_large[0], point)
    assert good.feasible
    bad = chained(problem, goal, without[0], point)
    assert not bad.feasible
    assert "92.00 %" in bad.why


def test_on_shared_workers_the_chain_serves_what_it_can_and_another_variant_is_no_plan() -> None:
    """Rows that ask for 90 % go to a variant of the chain that reaches it, as in the router.  A variant outside the
    chain would take the time of the same workers, which the chain counts on."""
    posed = cascading([point(91.5)], rate=20.0, floor=85.0)
    problem = problem_of(msgspec.structs.replace(posed, demand=(asked(1.0, "medium"),), resident=3))
    held = (GroupCount(variant="large", profile="1c", count=2, beside=("medium", "small")),)
    chained = chains.evaluate(problem, objective_of(posed), held, point(91.5))
    assert chained.feasible, chained.why
    assert direct(problem, held, 0.85, ("small", "large")).rates == {"large": 1.0}
    assert direct(problem, held, 0.85).rates == {"medium": 1.0}
    small = chains.evaluate(problem, objective_of(posed), held, alone(problem, "small"))
    assert small.why == "rows ask for the accuracy of medium, which is not in the chain"
    assert chains.evaluate(problem, objective_of(posed), held, alone(problem, "large")).feasible
