"""The frontier of a family: where it ends."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from clover.planning.budget.frontiers import frontier
from clover.planning.model.frontier import FrontierPoint, hull, reaching
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from tests.support.chains_fixture import cascading, point


def ladder(*accuracies: float) -> list[FrontierPoint]:
    return [FrontierPoint(accuracy=accuracy, grams=float(at)) for at, accuracy in enumerate(accuracies)]


def test_a_hull_ends_at_its_first_point_that_is_good_enough() -> None:
    points = ladder(88.0, 90.0, 92.0, 93.0)
    assert reaching(points, 92.0) == points[:3]
    assert reaching(points, 91.0) == points[:3], "the first that reaches it, though it has more"
    assert reaching(points, 94.0) == points, "all, if none does"
    assert reaching(points, 80.0) == points[:1]


def test_no_budget_buys_more_than_the_best_variant_has() -> None:
    """`large` has 92 %.  Two chains have more, the cheaper of them by passing fewer rows on."""
    enough, dear = point(92.1, reach=(1.0, 0.1)), point(92.6, reach=(1.0, 0.9))
    for points, last in (([point(91.5), enough, dear], 92.1), ([point(91.5, reach=(1.0, 0.05)), enough], 92.1)):
        now = cascading(points, floor=80.0, rate=100.0)
        known = frontier(problem_of(now), objective_of(now), 100.0)
        assert known[-1].point.accuracy == pytest.approx(last), "it reaches the best variant's, and is the cheapest"
        assert known[0].point.accuracy < 92.0


def test_the_objective_pays_for_no_accuracy_above_the_best_variant() -> None:
    aims = replace(objective_of(cascading([], rate=100.0)), form="paper")
    best, joules = aims.base_accuracy, 0.5 * aims.base_energy_j
    assert aims.score(best + 0.6, joules) == aims.score(best, joules)
    assert aims.score(best, joules) > aims.score(best + 0.6, 1.01 * joules)


@pytest.mark.parametrize("waits", [False, True])
def test_a_small_machine_is_weighed_whole_without_a_search_for_chains(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = cascading([point(91.5), point(91.8, reach=(1.0, 0.4))], floor=80.0, rate=90.0)
    problem = problem_of(now)
    problem = replace(problem, objective=msgspec.structs.replace(problem.objective, waits=waits))
    found = frontier(problem, objective_of(now), 90.0, seed=1)
    assert any(plan.candidate.routing.chain for plan in found)
    # What searches find, chains included, as on a machine that is too large to be weighed whole:
    monkeypatch.setattr("clover.planning.budget.frontiers.JOINT", 0)
    searched = frontier(problem, objective_of(now), 90.0, seed=2)
    weighed = [plan.point for plan in found]
    for plan in searched:
        assert hull((*weighed, plan.point)) == hull(tuple(weighed)), "nothing is more frugal"
    monkeypatch.undo()
    monkeypatch.setattr("clover.planning.search.configurations.best_chains", None)
    assert frontier(problem, objective_of(now), 90.0, seed=3) == found, "it calls no search for them"
