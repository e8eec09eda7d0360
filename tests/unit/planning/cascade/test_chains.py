"""Cascades as plans: what a chain does on a configuration, and which is taken."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from clover.planning.cascade.evaluation import ends_of, energy_j, evaluate, play_latencies_ms
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.model.queueing import lane_of, latencies_ms
from clover.planning.packing.formulation import Formulation
from clover.planning.search.chains import _members, best_chains, promising
from clover.policies import build
from clover.policies.plans import plan_fixed
from clover.types import GroupCount
from tests.support.chains_fixture import FAST, SLOW, both, cascading, point, two_cores
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import objective, profile, state

# --- playing ----------------------------------------------------------------------------------------------------------


def test_a_chain_of_one_is_a_lane() -> None:
    alone = latencies_ms((SLOW,), 60.0)
    found = play_latencies_ms(((SLOW,),), 60.0, (1.0,))
    for q in (0.5, 0.95):
        assert np.quantile(found, q) == pytest.approx(np.quantile(alone, q), rel=0.08)


def test_stages_add_up_for_the_rows_that_go_on() -> None:
    """At no load: 1 ms, and 10 more for a fifth of the rows."""
    found = play_latencies_ms(((FAST,), (SLOW,)), 0.5, (1.0, 0.2))
    assert np.quantile(found, 0.7) == pytest.approx(1.0, rel=0.01)
    assert np.quantile(found, 0.95) == pytest.approx(11.0, rel=0.01)
    assert np.mean(found > 5.0) == pytest.approx(0.2, abs=0.01)


def test_a_second_stage_queues_by_what_reaches_it() -> None:
    """80 rows/s, a quarter of which go on: 20 rows/s of 10 ms, M/D/1 at 0.2 in front of it."""
    found = play_latencies_ms(((FAST,), (SLOW,)), 80.0, (1.0, 0.25))
    later = np.sort(found)[int(0.75 * len(found)) :]
    assert later.mean() == pytest.approx(1.0 + 10.0 + 10.0 * 0.2 / (2 * 0.8), rel=0.05)


def test_energy_is_that_of_the_stages_as_far_as_they_are_reached() -> None:
    stages = [lane_of(((FAST, 1),)), lane_of(((SLOW, 1),))]
    assert energy_j(stages, 10.0, (1.0, 0.2)) == pytest.approx(0.01 + 0.2 * 0.2)


# --- on a configuration -----------------------------------------------------------------------------------------------


def test_a_chain_on_a_configuration() -> None:
    problem, aim = problem_of(two_cores()), objective_of(two_cores())
    found = evaluate(problem, aim, both(problem), point())
    assert found.feasible, found.why
    assert found.routing.chain == ("small", "large")
    assert found.routing.thresholds == (0.5,)
    assert found.routing.shares == {"small": 0.8, "large": 0.2}
    assert found.prediction.accuracy == 91.5
    large, small = problem.services["large", "1c"], problem.services["small", "1c"]
    assert found.prediction.energy_j_per_row == pytest.approx(
        lane_of(((small, 1),)).energy_j(100.0) + 0.2 * lane_of(((large, 1),)).energy_j(20.0)
    )
    assert found.prediction.utilisation == pytest.approx(max(100.0 / small.capacity(), 20.0 / large.capacity()))


@pytest.mark.parametrize(
    ("rate", "reach", "accuracy", "why"),
    [
        (100.0, (1.0, 0.2), 90.5, "below the floor"),
        (800.0, (1.0, 0.6), 91.5, "large would be at"),
        (5000.0, (1.0, 0.01), 91.5, "small would be at"),
    ],
)
def test_what_cannot_be_says_why(rate: float, reach: tuple[float, ...], accuracy: float, why: str) -> None:
    given = two_cores(rate)
    found = evaluate(problem_of(given), objective_of(given), both(problem_of(given)), point(accuracy, reach=reach))
    assert not found.feasible
    assert why in found.why


def test_a_stage_without_a_worker_is_no_plan() -> None:
    given = two_cores()
    only = (GroupCount(variant="small", profile="1c", count=2),)
    found = evaluate(problem_of(given), objective_of(given), only, point())
    assert not found.feasible
    assert found.why == "no worker holds large, which the chain asks"
    assert math.isinf(found.prediction.p95_ms)


def test_ends_are_parts() -> None:
    assert ends_of(point(chain=("small", "medium", "large"), reach=(1.0, 0.3, 0.1))) == {
        "small": 0.7,
        "medium": 0.2,
        "large": 0.1,
    }


# --- which ------------------------------------------------------------------------------------------------------------


def test_points_below_the_floor_and_variants_alone_are_no_cascades() -> None:
    problem, aim = problem_of(two_cores()), objective_of(two_cores())
    given = [point(91.5), point(90.9), point(92.0, chain=("large",), reach=(1.0,)), point(91.2, reach=(1.0, 0.1))]
    assert [item.reach for _, item in promising(problem, aim, given)] == [(1.0, 0.1), (1.0, 0.2)]


def test_the_most_frugal_chain_is_taken_and_what_promises_less_is_not_looked_for() -> None:
    given = two_cores()
    problem, aim = problem_of(given), objective_of(given)
    cheap, dear = point(91.2, reach=(1.0, 0.1)), point(91.8, reach=(1.0, 0.5))
    found = best_chains(problem, aim, [dear, cheap])
    assert found[0].routing.thresholds == cheap.thresholds
    assert found[0].prediction.accuracy == 91.2
    assert {(group.variant, group.profile) for group in found[0].configuration} == {("small", "1c"), ("large", "1c")}
    assert best_chains(problem, aim, [dear, cheap], beat=found[0].score + 1.0) == []


def test_what_runs_is_weighed_under_every_threshold() -> None:
    given = two_cores()
    problem, aim = problem_of(given), objective_of(given)
    found = best_chains(
        problem, aim, [point(91.2, reach=(1.0, 0.1)), point(91.8, reach=(1.0, 0.5))], running=both(problem)
    )
    assert sum(candidate.configuration == both(problem) for candidate in found) >= 2


@pytest.mark.parametrize("count", [1, 3])
def test_on_gpus_stages_share_the_slices(count: int) -> None:
    devices = a100s(count)
    given = state(
        rate=40.0 * count, measured=mig_profile(), devices=devices, config=objective("floor", slo_ms=200.0, floor=91.0)
    )
    longer = point(91.7, chain=("small", "medium", "large"), reach=(1.0, 0.4, 0.2))
    problem, aim = problem_of(given), objective_of(given)
    found = best_chains(problem, aim, [point(91.5), longer])
    assert found
    best = found[0]
    assert best.feasible
    assert {group.variant for group in best.configuration} == set(best.routing.chain)
    assert best.prediction.p95_ms <= 200.0


def test_the_same_question_has_the_same_answer() -> None:
    given = two_cores()
    problem, aim = problem_of(given), objective_of(given)
    points = [point(91.2, reach=(1.0, 0.1)), point(91.8)]
    assert msgspec.json.encode(best_chains(problem, aim, points)) == msgspec.json.encode(
        best_chains(problem, aim, points)
    )


# --- in the policies --------------------------------------------------------------------------------------------------


def test_the_objective_takes_a_cascade_where_it_may_and_it_is_cheaper() -> None:
    points = [point(91.2, reach=(1.0, 0.1)), point(91.8, reach=(1.0, 0.5))]
    mixed, chained = (build("objective").propose(cascading(points, on=on)) for on in (False, True))
    assert mixed.routing.chain == ()
    assert chained.routing.chain == ("small", "large")
    assert chained.prediction.energy_j_per_row < mixed.prediction.energy_j_per_row
    assert chained.bound is None, "the bound of mixes is none of cascades"
    assert "cascade small < 0.500 > large" in chained.reason


def test_a_cascade_that_costs_more_is_not_taken() -> None:
    dear = point(91.2, reach=(1.0, 1.0))
    assert build("objective").propose(cascading([dear])).routing.chain == ()


def test_what_runs_stays_under_another_threshold() -> None:
    """The floor rises: the same workers, another threshold; nothing is changed but the routing."""
    points = [point(91.2, reach=(1.0, 0.1)), msgspec.structs.replace(point(91.8, reach=(1.0, 0.3)), thresholds=(0.7,))]
    first = build("objective").propose(cascading(points))
    second = build("objective").propose(cascading(points, floor=91.5, running=first.deployment))
    assert set(second.deployment) == set(first.deployment)
    assert (first.routing.thresholds, second.routing.thresholds) == ((0.5,), (0.7,))


def test_a_given_configuration_is_routed_as_a_cascade_where_that_is_better() -> None:
    given = cascading([point(91.2, reach=(1.0, 0.1))])
    found = plan_fixed(given, both(problem_of(given)))
    assert found.routing.chain == ("small", "large")
    assert plan_fixed(cascading([], on=True), both(problem_of(given))).routing.chain == ()


def test_a_budget_is_spent_on_cascades_too() -> None:
    points = [
        msgspec.structs.replace(point(accuracy, reach=(1.0, part)), thresholds=(part,))
        for accuracy, part in ((90.6, 0.05), (91.2, 0.1), (91.5, 0.15), (91.8, 0.3))
    ]
    config = msgspec.structs.replace(cascading(points).objective, accuracy_floor=89.0, accuracy_budget=0.6)
    given = msgspec.structs.replace(cascading(points), objective=config)
    found = build("static").propose(given)
    assert found.routing.chain == ("small", "large")
    assert found.prediction.accuracy == 91.5, "the cheapest that reaches 92 less 0.6"


@pytest.mark.parametrize("count", [2, 4])
def test_stages_that_need_unlike_parts_of_the_devices_have_a_start(count: int) -> None:
    """A slow second stage keeps the SLO on whole GPUs only: three of four are its, and no start cut alike says so."""
    devices = a100s(count)
    measured = mig_profile()
    given = state(
        rate=30.0 * count, measured=measured, devices=devices, config=objective("floor", slo_ms=120.0, floor=91.0)
    )
    problem, aim = problem_of(given), objective_of(given)
    how = point(91.5, reach=(1.0, 0.5))
    form = Formulation(_members(problem, aim, how, 0.0), problem.devices)
    starts = form.loaded()
    assert starts
    for counts, used in starts:
        assert used.sum() == count
        slices = dict(zip(form.profiles, (used @ form.table).tolist(), strict=True))
        for name, number in slices.items():
            assert sum(n for g, n in zip(form.groups, counts.tolist(), strict=True) if g.profile == name) == number
        for at, member in enumerate(form.members):
            own = sum(
                n * g.service.capacity() for g, n in zip(form.groups, counts.tolist(), strict=True) if g.member == at
            )
            assert member.problem.rate <= aim.max_utilisation * own


def test_a_chain_that_is_too_slow_is_given_up_and_another_is_found() -> None:
    """More than `POINTS` promising points of a chain that nothing can serve stand before one that can be."""
    given = two_cores(100.0)
    slow = [
        msgspec.structs.replace(point(91.3 + 0.001 * at, chain=("small", "medium"), reach=(1.0, 0.99)), thresholds=(t,))
        for at, t in enumerate(np.linspace(0.1, 0.9, 20).tolist())
    ]
    measured = msgspec.structs.replace(
        profile(),
        latency=tuple(
            msgspec.structs.replace(item, mean_ms=40.0, p50_ms=40.0, p95_ms=40.0, p99_ms=40.0)
            if item.variant == "medium"
            else item
            for item in profile().latency
        ),
    )
    given = msgspec.structs.replace(given, profile=measured)
    found = best_chains(problem_of(given), objective_of(given), [*slow, point(91.5, reach=(1.0, 0.5))])
    assert found
    assert found[0].routing.chain == ("small", "large")
