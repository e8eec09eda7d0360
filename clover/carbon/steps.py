"""How long each row of a trace holds, from the times of the rows alone.

A row lasts until the next one, whatever the steps elsewhere in the file, unless rows are missing between the two.  The
distances tell: a *run* is a stretch of equal distances, and rows are missing in a run that is clearly longer (by a
quarter) than the runs before and after it and that has fewer than three distances.  So a change of step, which lasts,
is no gap, nor is a run between a shorter and a longer step, nor a time that is off by seconds.  At either end of a
file, where a neighbour is missing, one distance is too few, and two equal ones are a change of step.

    hours       1 1 1 2 1 1 1         a row is missing
                1 1 2 2 1 1           two, each alone
                1 1 1 .5 .5 .5        from hourly to half-hourly
                .5 .5 .5 1 1 1        and back
                .5 .5 1 1 1 .5 .5     three hourly values between half-hourly ones

A row before a gap holds for the smaller of the steps around it: a value is rather missing than used beyond its time.
What no rule can see is a missing row right where the step changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from clover.carbon.layouts import in_small_parts

_LONGER = 1.25
_LEAST_BETWEEN = 3
_LEAST_AT_AN_END = 2


class _Run:
    """Equal distances that follow each other, gaps between them left out; `members` are their places."""

    __slots__ = ("distance", "members")

    def __init__(self, distance: float, at: int) -> None:
        self.distance = distance
        self.members = [at]

    def peak(self, before: float | None, after: float | None) -> bool:
        """Return whether it is a gap between runs of these distances (None: the file begins or ends there)."""
        if before is None and after is None:
            return False
        longer = all(self.distance > _LONGER * other for other in (before, after) if other is not None)
        least = _LEAST_AT_AN_END if before is None or after is None else _LEAST_BETWEEN
        return longer and len(self.members) < least


def steps_of(times: Sequence[float]) -> list[float]:
    """Return for how many seconds the row at each of `times` holds, which rise; ValueError if there are fewer than two.

    Equal to the distance to the next row unless rows are missing in between.
    """
    distances = [later - at for at, later in itertools.pairwise(times)]
    if not distances:
        raise ValueError("one row shows no step")
    runs: list[_Run] = []
    gaps: set[int] = set()

    def close(after: float | None) -> None:
        """Take gaps off the end of `runs`, which is followed by the distance `after`."""
        while runs and runs[-1].peak(runs[-2].distance if len(runs) > 1 else None, after):
            gaps.update(runs.pop().members)

    for at, distance in enumerate(in_small_parts(distances)):
        if runs and distance != runs[-1].distance:
            close(distance)
        if runs and runs[-1].distance == distance:
            runs[-1].members.append(at)
        else:
            runs.append(_Run(distance, at))
    close(None)
    return _held(distances, gaps)


def _held(distances: list[float], gaps: set[int]) -> list[float]:
    """Return the seconds each row holds, the last one's included: gaps are as long as the smaller step beside them."""
    after: list[float | None] = [None] * len(distances)
    known: float | None = None
    for at in reversed(range(len(distances))):
        after[at] = known
        known = known if at in gaps else distances[at]
    steps: list[float] = []
    before: float | None = None
    for at, distance in enumerate(in_small_parts(distances)):
        if at in gaps:
            steps.append(min(step for step in (before, after[at]) if step is not None))
        else:
            before = distance
            steps.append(distance)
    assert before is not None  # the shortest distance is never a gap
    return [*steps, before]
