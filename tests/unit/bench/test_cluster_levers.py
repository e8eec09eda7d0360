"""What each lever of a cluster saves: the problems with levers switched off, and their shares."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cluster_levers import LEVERS, all_awake, shapley, with_levers
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterPlan, ClusterProblem
from clover.cluster.simulate.scenario import simulate
from tests.support.cluster_fixture import REGIONS, scenario


def test_levers_are_switched_off_by_other_problems() -> None:
    own = scenario(hours=1.0, each=1)
    bound = with_levers(own, frozenset({"release", "accuracy"}))
    assert bound.terms.families[0].regions == {name: (name,) for name in REGIONS}
    best = with_levers(own, frozenset({"shift"}))
    assert best.terms.families[0].accuracy_floor == 92.0
    seen: list[ClusterProblem] = []

    def spy(problem: ClusterProblem) -> ClusterPlan:
        seen.append(problem)
        return plan_cluster(problem)

    run = simulate(own, all_awake(spy))
    assert run.sums.releases == 0
    assert all(point.awake_w == 0.0 for point in seen[-1].nodes)


@given(st.lists(st.floats(1.0, 100.0), min_size=8, max_size=8))
def test_shares_of_levers_add_up_to_the_saving(grams: list[float]) -> None:
    subsets = [frozenset(names) for count in range(4) for names in itertools.combinations(LEVERS, count)]
    played = dict(zip(subsets, grams, strict=True))
    most, least = played[frozenset()], played[frozenset(LEVERS)]
    saved = 1.0 - least / most if most > 0.0 else 0.0
    assert sum(shapley(played).values()) == pytest.approx(saved, abs=1e-9, rel=1e-6)
