"""Clusters of a few nodes: whole nodes and whole devices by branch and bound, from the best plan that is known.

Where a cluster has a few devices, one in another mode or one node more is a large part of all grams, and changes of one
device at a time end at plans that only two at once would better.  Here whole counts are searched for: the program of
`relaxation` with a variable for the devices of each group and mode is solved, whatever is least whole is split in two,
sets of modes first (`branching`), then nodes, then devices, and the half that promises less is followed to its end
before the other one is taken up.  Branches that promise nothing below the best plan are left.

The number of programs is limited, not the time: the same problem gets the same plan on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from clover.planning.cluster.arrays import Floats, ProblemArrays
from clover.planning.cluster.branching import Place, choices, disagreement, narrow, settle, shut
from clover.planning.cluster.relaxation import ClusterRelaxation
from clover.planning.cluster.rounding import Rounded, Rounding
from clover.planning.cluster.simplex import Basis

MOST_NODES = 12
_WORK = 400_000  # columns of all programs together
_MOST, _LEAST = 400, 30  # programs
_WHOLE = 1e-6
_CLOSE = 1e-4  # part of the grams that is not searched for

Limits = Mapping[int, tuple[float, float]]
"""The least and the most of a variable, by its column."""


@dataclass(frozen=True)
class _Branch:
    """What is decided: sets of modes (as bytes) by place, limits of variables; the solution it starts from."""

    start: Basis
    objective: float = 0.0
    sets: Mapping[Place, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)


class ExactSearch:
    """Searches whole nodes and devices of a small instance; `relaxed` has counts of devices."""

    def __init__(self, instance: ProblemArrays, relaxed: ClusterRelaxation, rounding: Rounding) -> None:
        self._instance, self._relaxed, self._rounding = instance, relaxed, rounding
        self._root = relaxed.program.save()
        self._programs = int(np.clip(_WORK / max(1, relaxed.program.columns), _LEAST, _MOST))

    def better(self, best: Rounded | None, nodes: Floats | None = None) -> Rounded | None:
        """Return a plan that emits less than `best`, or `best` if none is found; `nodes`: on just these."""
        fixed: Limits = {}
        if nodes is not None:
            fixed = {column: (float(n), float(n)) for column, n in zip(self._relaxed.awake, nodes, strict=True)}
        left = self._programs
        stack = [_Branch(self._root, limits=fixed)]
        while stack and left > 0:
            branch = stack.pop()
            if best is not None and branch.objective >= best.merit * (1.0 - _CLOSE):
                continue
            left -= 1
            halves, found = self._followed(branch, np.inf if best is None else best.merit)
            if found is not None and (best is None or found.merit < best.merit):
                best = found
            stack += halves
        return best

    def _followed(self, branch: _Branch, most: float) -> tuple[list[_Branch], Rounded | None]:
        """Solve a branch; return its halves, the one to be followed last, and the plan if all in it is whole."""
        instance, relaxed = self._instance, self._relaxed
        program = relaxed.program
        program.restore(branch.start)
        program.lower, program.upper = self._root.lower.copy(), self._root.upper.copy()
        opened = [stream.allowed.copy() for stream in instance.streams]
        for place, choice in branch.sets.items():
            narrow(instance, opened, place, np.frombuffer(choice, dtype=bool))
        shut(instance, relaxed, opened)
        for column, (low, high) in branch.limits.items():
            program.lower[column], program.upper[column] = low, high
        objective = program.resolve()
        if objective >= most * (1.0 - _CLOSE):
            return [], None
        solved = program.save()
        place = disagreement(instance, relaxed, opened, branch.sets)
        if place is not None:
            sets = [{**branch.sets, place: choice} for choice in choices(opened, instance, place)]
            # The set of most modes last, which is taken up first.
            sets.sort(key=lambda item: int(np.frombuffer(item[place], dtype=bool).sum()))
            return [_Branch(solved, objective, item, branch.limits) for item in sets], None
        x = program.x
        split = self._least_whole(x, relaxed.awake) or self._lacking(x, branch)
        split = split or self._least_whole(x, list(relaxed.counts.values()))
        if split is not None:
            column, below = split
            low, high = branch.limits.get(column, (0.0, float(self._root.upper[column])))
            lower = _Branch(solved, objective, branch.sets, {**branch.limits, column: (low, below)})
            upper = _Branch(solved, objective, branch.sets, {**branch.limits, column: (below + 1.0, high)})
            return ([lower, upper] if x[column] - below >= 0.5 else [upper, lower]), None
        nodes = np.round(x[relaxed.awake])
        counts = np.zeros((len(instance.groups), len(instance.modes)))
        for (g, m), column in relaxed.counts.items():
            counts[g, m] = round(float(x[column]))
        if self._rounding.lacking(nodes)[0]:
            return [], None
        settle(instance, relaxed, opened, branch.sets)
        return [], self._rounding.weighed(nodes, counts, opened)

    @staticmethod
    def _least_whole(x: Floats, columns: list[int]) -> tuple[int, float] | None:
        """Return the column whose value is least whole, and the whole number below it; None if all are whole."""
        rest = np.abs(x[columns] - np.round(x[columns]))
        if not len(rest) or rest.max() <= _WHOLE:
            return None
        column = columns[int(rest.argmax())]
        return column, float(np.floor(x[column]))

    def _lacking(self, x: Floats, branch: _Branch) -> tuple[int, float] | None:
        """Return the group of which more nodes may be needed for a loss, and its nodes; None if none."""
        nodes = np.round(x[self._relaxed.awake])
        lacking, gain = self._rounding.lacking(nodes)
        if not lacking:
            return None
        free = [
            (float(gain[g]), column)
            for g, column in enumerate(self._relaxed.awake)
            if nodes[g] < branch.limits.get(column, (0.0, float(self._root.upper[column])))[1] - 0.5
        ]
        if not free:
            return None
        column = max(free)[1]
        return column, float(np.round(x[column]))
