"""What a configuration permits: the chains and thresholds that can be switched to without touching a worker.

Thresholds change between two requests, workers do not.  So a configuration is worth every routing that is possible *on*
it.  Its permitted set holds every cascade whose variants it has, and each of its variants alone, if at the present rate
every stage stays below the utilisation limit, the rows of all stages together keep the SLO, and the accuracy keeps its
floor.  A variant that is not part of the chain is on standby, at no active energy.

**Which are kept.**  An average over time of two points of the set is as good as any point between them, so only the
lower convex hull of (accuracy, joules a row) is worth switching to.  Loads and joules are cheap to compute; p95 is
simulated.  So the hull is drawn first.  Points that miss the SLO are removed from it (or raised, if a shorter wait
keeps the SLO), and it is drawn again, until every point that is left keeps the SLO.  Some ten simulations suffice for
the profile's hundred points, and hardly more for all configurations of a small machine together (`joint`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from clover.planning.cascade.evaluation import alone, evaluate
from clover.planning.model.frontier import FrontierPoint, hull, reaching
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem, variants_of
from clover.types import Candidate, ChainPoint, Configuration


def permitted(problem: Problem, objective: Objective, configuration: Configuration) -> tuple[Candidate, ...]:
    """Return the useful chains and thresholds of `configuration` at the problem's rate, from the most frugal to the
    most accurate; empty if none keeps utilisation limit, SLO and floor.  KeyError if a worker was never
    measured."""
    return joint(problem, objective, [configuration])


def joint(problem: Problem, objective: Objective, configurations: Iterable[Configuration]) -> tuple[Candidate, ...]:
    """Return the useful chains and thresholds of several configurations together: those that no other configuration
    with its chain and thresholds beats."""
    points: dict[FrontierPoint, list[tuple[Configuration, ChainPoint]]] = {}
    for configuration in configurations:
        for point in points_on(problem, configuration):
            seen = evaluate(problem, objective, configuration, point, play=False)
            if seen.feasible:
                points.setdefault(point_of(seen), []).append((configuration, point))
    kept: dict[FrontierPoint, Candidate] = {}
    while points:
        drawn = hull(tuple(points))
        for at in drawn:
            if at in kept:
                continue
            pair = points[at].pop()
            if not points[at]:
                del points[at]
            candidate = evaluate(problem, objective, *pair)
            if candidate.feasible:  # where it was drawn, or above that: with a shorter wait than was hoped for
                lies = point_of(candidate)
                points.setdefault(lies, [])
                kept.setdefault(lies, candidate)
        if all(at in kept for at in drawn):
            return tuple(kept[at] for at in drawn)
    return ()


def points_on(problem: Problem, configuration: Configuration) -> Iterator[ChainPoint]:
    """Yield the problem's cascades that `configuration` has all variants of, and each of its variants alone."""
    variants = variants_of(configuration)
    yield from (point for point in problem.points if len(point.chain) > 1 and variants.issuperset(point.chain))
    yield from (alone(problem, variant) for variant in sorted(variants))


def point_of(candidate: Candidate) -> FrontierPoint:
    """Return where a candidate lies: percent, and joules a row in the place of grams."""
    return FrontierPoint(accuracy=candidate.prediction.accuracy, grams=candidate.prediction.joules)


def best_at(candidates: Sequence[Candidate], price_j: float) -> Candidate:
    """Return the candidate where joules - price x accuracy is least: `price_j` joules a row for a percent.  At an
    infinite price the most accurate one."""
    if price_j == float("inf"):
        return max(candidates, key=lambda item: (item.prediction.accuracy, -item.prediction.joules))
    return min(candidates, key=lambda item: (item.prediction.joules - price_j * item.prediction.accuracy, -item.score))


def nearest(candidates: Sequence[Candidate], accuracy: float, least: float) -> Candidate:
    """Return the candidate of a permitted set (ascending) that is nearest to `accuracy`, among those from `least`
    percent up if there are any.  Later moments make good the difference."""
    enough = [item for item in candidates if item.prediction.accuracy >= least - 1e-9] or [candidates[-1]]
    return min(enough, key=lambda item: (abs(item.prediction.accuracy - accuracy), item.prediction.joules))


def on_hull(candidates: Iterable[Candidate], enough: float = math.inf) -> tuple[Candidate, ...]:
    """Return those of any configurations that lie on the lower convex hull of all, ascending, up to the first that has
    `enough` percent."""
    drawn: dict[FrontierPoint, Candidate] = {}
    for candidate in candidates:
        drawn.setdefault(point_of(candidate), candidate)
    return tuple(drawn[at] for at in reaching(hull(tuple(drawn)), enough)) if drawn else ()
