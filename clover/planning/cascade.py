"""Cascades as a planner asks for them: what a chain costs, and which points of a profile come into question.

A point of a profile says which part of the rows every stage of a chain is asked (`reach`, of held-out rows).  That is
all a planner needs: the rate of stage k is the row rate x reach[k], and energy follows from its own services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clover.types import ChainPoint


def expected_energy(reach: Sequence[float], joules_per_variant: Sequence[float]) -> float:
    """Expected active joules a row of a chain whose stages are asked `reach` of the rows, at joules a row asked."""
    return sum(part * joules for part, joules in zip(reach, joules_per_variant, strict=True))


def energy_of(point: ChainPoint, joules_per_variant: Mapping[str, float]) -> float:
    """Expected active joules a row at `point`; KeyError where a stage has no joules."""
    return expected_energy(point.reach, [joules_per_variant[name] for name in point.chain])


def cheapest(points: Sequence[ChainPoint], least_accuracy: float, joules: Mapping[str, float]) -> ChainPoint | None:
    """The cheapest of `points` whose lower bound of accuracy (`low`, percent) is at least `least_accuracy`, of those
    whose stages all have joules; None where there is none."""
    fit = [point for point in points if point.low >= least_accuracy and all(name in joules for name in point.chain)]
    return min(fit, key=lambda point: energy_of(point, joules), default=None)
