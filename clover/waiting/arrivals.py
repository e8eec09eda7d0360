"""How much work may still come: the most that came within a span of time before, and was due within it.

    to_come = WorkToCome()
    to_come.record(at_s=0.0, work_s=600.0, deadline_s=3600.0)       # as jobs come
    most = to_come.ahead(now_s=864_000.0)
    most(np.array([864_000.0]), np.array([865_800.0, 871_200.0]))   # array([[0., 600.]])

If a plan leaves work until the last moment, and another job comes that is due earlier, one of the two is late.  So a
plan keeps room for as much work as the busiest span of the last weeks brought, for each length of span: the arrival
curve of network calculus (Le Boudec and Thiran, 2001), as it was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from clover.planning.budget.forecast import HOUR_S, WEEK, Floats

_WEEKS = 3
_MOST_JOBS = 4096
"""Jobs that are remembered at most, the last ones."""
_LENGTHS_S: Floats = np.array([600.0 * 1.3**power for power in range(28)])
"""The lengths of spans that are looked at: ten minutes to eight days."""
_BEYOND = 1.5
"""How many times what a span brought at most one may bring that has begun: at 1, 2 to 12 of 17,000 jobs of a year were
late, at 1.5 one was, which came before others like it."""

ToCome = Callable[[Floats, Floats], Floats]
"""Returns, for an array of times and another one of later times, the most work (seconds of the whole machine) that may
come and be due between each two of them."""


class WorkToCome:
    """The work that came in the last weeks, in seconds of the whole machine."""

    def __init__(self) -> None:
        self._came_s = self._work_s = self._due_s = np.zeros(0)
        self._within = np.zeros((0, len(_LENGTHS_S)))
        """What came and was due in the span of each length that ends at the deadline of each job."""

    def record(self, at_s: float, work_s: float, deadline_s: float) -> None:
        """Take note of a job that came at `at_s` (Unix seconds)."""
        kept = self._came_s > at_s - _WEEKS * WEEK * HOUR_S
        kept[: -_MOST_JOBS + 1] = False
        came_s, works_s, due_s = self._came_s[kept], self._work_s[kept], self._due_s[kept]
        # The job lies in spans that end at the deadlines of others, and others lie in those that end at its own.
        of_job = work_s * ((due_s >= deadline_s)[:, None] & (due_s[:, None] - _LENGTHS_S <= at_s))
        inside = (due_s <= deadline_s)[:, None] & (came_s[:, None] >= deadline_s - _LENGTHS_S)
        own = (works_s[:, None] * inside).sum(axis=0) + work_s * (deadline_s - _LENGTHS_S <= at_s)
        self._came_s, self._work_s = np.append(came_s, at_s), np.append(works_s, work_s)
        self._due_s = np.append(due_s, deadline_s)
        self._within = np.vstack((self._within[kept] + of_job, own))

    def ahead(self, now_s: float) -> ToCome:
        """Return what gives the most work that may come between times: as much as the curve has for such a span, and no
        more than is left of longer spans with the same end that have begun by `now_s`."""
        curve = np.append(self._within.max(axis=0, initial=0.0), self._within.max(initial=0.0))
        recent = self._came_s > now_s - _LENGTHS_S[-1]
        came_s, work_s, due_s = self._came_s[recent][::-1], self._work_s[recent][::-1], self._due_s[recent][::-1]

        def most(from_s: Floats, until_s: Floats) -> Floats:
            due = work_s * (due_s <= until_s[:, None])
            came = np.hstack((np.zeros((len(until_s), 1)), np.cumsum(due, axis=1)))  # with the last jobs, by how many
            began_s = until_s[:, None] - _LENGTHS_S
            since = np.take_along_axis(came, np.searchsorted(-came_s, -began_s, "right"), axis=1)
            left = np.where(began_s <= now_s, _BEYOND * curve[:-1] - since, math.inf).min(axis=1)
            spans_s = until_s - from_s[:, None]
            asked = np.where(spans_s > 0.0, curve[np.searchsorted(_LENGTHS_S, spans_s)], 0.0)
            found: Floats = np.maximum(0.0, np.minimum(asked, left))
            return found

        return most
