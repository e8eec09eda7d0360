"""Clusters of a few nodes: whole nodes and whole devices by branch and bound, from the best plan that is known.

If a cluster has only a few devices, one device or node is a large part of all grams.  A search that changes one device
at a time then gets stuck where only two changes together help.  So whole counts are searched for here.  The program of
`relaxation` is solved with variables for the devices of each group and mode, and the count that is least whole is split
in two: sets of modes first (`branching`), then nodes, then how many devices of a group serve a family, then devices in
a mode.  Without the third kind, a branch that closes one mode would only move to a similar one.  The most promising
part is followed to its end, then the most promising of the rest, until none promises less than the best plan.

**The bound.**  Each program's duals bound the plans of its part from below (`LinearProgram.least`).  The least of these
bounds, over all parts that were left or followed to their end, bounds all plans.  If the search ends by itself, the
bound is within a ten-thousandth of the best plan's grams.  A part without devices for its least counts is empty.  A
part whose program fails by rounding errors is not empty: it keeps the bound of the part that it was split from.

The number of programs is limited, not the time: the same problem gets the same plan on every machine.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from clover.cluster.planning.arrays import Flags, Floats, ProblemArrays
from clover.cluster.planning.branching import Place, choices, disagreement, narrow, settle, shut
from clover.cluster.planning.relaxation import ClusterRelaxation
from clover.cluster.planning.rounding import Rounded, Rounding
from clover.cluster.planning.simplex import Basis, NoSolutionError

_MOST_NODES = 12
_MOST_COUNTS = 120  # counts of devices, by group and mode: a program's time grows with their square
_PROGRAMS = 3000
_WHOLE = 1e-6
_CLOSE = 1e-4  # part of the grams that is not searched for

Limits = Mapping[int, tuple[float, float]]
"""The least and the most of a variable, by its column."""


def searchable(instance: ProblemArrays) -> bool:
    """Say whether an instance is small enough for whole counts to be searched for."""
    counts = sum(mode.kind in group.devices for group in instance.groups for mode in instance.modes)
    return sum(group.size for group in instance.groups) <= _MOST_NODES and counts <= _MOST_COUNTS


@dataclass(frozen=True)
class _Branch:
    """What is decided: sets of modes (as bytes) by place, limits of variables; its solution and grams/h that no plan
    in it is below."""

    sets: Mapping[Place, bytes]
    limits: Limits
    solved: Basis
    bound: float


class ExactSearch:
    """Searches whole nodes and devices of a small instance; `relaxed` has counts of devices."""

    def __init__(self, instance: ProblemArrays, relaxed: ClusterRelaxation, rounding: Rounding) -> None:
        self._instance, self._relaxed, self._rounding = instance, relaxed, rounding
        self._root = relaxed.program.save()

    def better(self, best: Rounded, nodes: Floats | None = None) -> tuple[Rounded, float]:
        """Return a plan that emits less than `best`, or `best` if none is found, and grams/h that no plan is below;
        `nodes`: on just these."""
        fixed: Limits = {}
        if nodes is not None:
            fixed = {column: (float(n), float(n)) for column, n in zip(self._relaxed.awake, nodes, strict=True)}
        order = itertools.count()
        heap: list[tuple[float, int, _Branch]] = []
        least = np.inf  # of the branches that are done with, but for those that promised too little
        followed = self._solve(self._root, {}, fixed)
        left = _PROGRAMS - 1
        while followed is not None and left > 0:
            halves, found = self._halves(followed)
            if found is not None:
                least = min(least, followed.bound)
                best = found if found.merit < best.merit else best
            most = best.merit * (1.0 - _CLOSE)
            tried = []
            for sets, limits in halves:
                if self._possible(limits):
                    left -= 1
                    half = self._solve(followed.solved, sets, limits)
                    if half is None:
                        least = min(least, followed.bound)  # rounding errors left no solution, which proves nothing
                    else:
                        tried.append(half)
            solved = sorted((item for item in tried if item.bound < most), key=lambda item: item.bound)
            for other in solved[1:]:
                heapq.heappush(heap, (other.bound, next(order), other))
            if solved:
                followed = solved[0]
                continue
            followed = heapq.heappop(heap)[2] if heap and heap[0][0] < most else None
        open_bounds = [item[0] for item in heap] + ([] if followed is None else [followed.bound])
        return best, max(0.0, min([least, best.merit * (1.0 - _CLOSE), *open_bounds]))

    def _possible(self, limits: Limits) -> bool:
        """Say whether there are devices for the least counts of a branch; all else has a price, so that there is a
        solution."""
        relaxed, needed = self._relaxed, dict.fromkeys(self._relaxed.parts, 0.0)
        for (g, m), column in relaxed.counts.items():
            mode = self._instance.modes[m]
            needed[g, mode.kind, mode.family] += limits.get(column, (0.0, np.inf))[0]
        devices: dict[tuple[int, str], float] = defaultdict(float)
        for (g, kind, family), column in relaxed.parts.items():
            low, high = limits.get(column, (0.0, np.inf))
            if needed[g, kind, family] > high:
                return False
            devices[g, kind] += max(low, needed[g, kind, family])
        for (g, kind), most in devices.items():
            group = self._instance.groups[g]
            if most > group.devices[kind] * limits.get(relaxed.awake[g], (0.0, float(group.size)))[1]:
                return False
        return True

    def _solve(self, start: Basis, sets: Mapping[Place, bytes], limits: Limits) -> _Branch | None:
        """Return a branch, solved from the solution of another one; None if its limits contradict each other."""
        program = self._relaxed.program
        self._decide(start, sets)
        for column, (low, high) in limits.items():
            program.lower[column], program.upper[column] = low, high
        try:
            program.resolve()
        except NoSolutionError:
            return None
        return _Branch(sets, limits, program.save(), program.least(self._relaxed.most))

    def _decide(self, start: Basis, sets: Mapping[Place, bytes]) -> list[Flags]:
        """Put the program where `start` is, with only those modes open that `sets` leave; return them by stream."""
        self._relaxed.program.restore(replace(start, lower=self._root.lower, upper=self._root.upper))
        opened = self._open_flags(sets)
        shut(self._instance, self._relaxed, opened)
        return opened

    def _open_flags(self, sets: Mapping[Place, bytes]) -> list[Flags]:
        opened = [stream.allowed.copy() for stream in self._instance.streams]
        for place, choice in sets.items():
            narrow(self._instance, opened, place, np.frombuffer(choice, dtype=bool))
        return opened

    def _halves(self, branch: _Branch) -> tuple[list[tuple[Mapping[Place, bytes], Limits]], Rounded | None]:
        """Return what a branch is split into, and the plan if all in it is whole."""
        instance, relaxed = self._instance, self._relaxed
        relaxed.program.restore(branch.solved)
        opened = self._open_flags(branch.sets)
        place = disagreement(instance, relaxed, opened, branch.sets)
        if place is not None:
            sets = [{**branch.sets, place: choice} for choice in choices(opened, instance, place)]
            return [(item, branch.limits) for item in sets], None
        x = relaxed.program.x
        lacking, split = False, self._least_whole(x, relaxed.awake)
        if split is None:
            lacking, split = self._lacking(x, branch)
            if lacking and split is None:
                return [], None
        split = split or self._least_whole(x, list(relaxed.parts.values()))
        split = split or self._least_whole(x, list(relaxed.counts.values()))
        if split is not None:
            column, below = split
            low, high = branch.limits.get(column, (0.0, float(self._root.upper[column])))
            ranges = (low, below), (below + 1.0, high)
            return [(branch.sets, {**branch.limits, column: limits}) for limits in ranges], None
        nodes = np.round(x[relaxed.awake])
        counts = np.zeros((len(instance.groups), len(instance.modes)))
        for (g, m), column in relaxed.counts.items():
            counts[g, m] = round(float(x[column]))
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

    def _lacking(self, x: Floats, branch: _Branch) -> tuple[bool, tuple[int, float] | None]:
        """Say whether the reserve of whole nodes lacks something, and what to split: a group of which more may help,
        or one of which less may be lost; None if all nodes are decided."""
        nodes = np.round(x[self._relaxed.awake])
        lacking, gain = self._rounding.lacking(nodes)
        if not lacking:
            return False, None
        more, fewer = [], []
        for g, column in enumerate(self._relaxed.awake):
            low, high = branch.limits.get(column, (0.0, float(self._root.upper[column])))
            if nodes[g] < high - 0.5:
                more.append((float(gain[g]), column, float(nodes[g])))
            if nodes[g] > low + 0.5:
                fewer.append((-float(gain[g]), column, float(nodes[g]) - 1.0))
        options = more or fewer
        return True, max(options)[1:] if options else None
