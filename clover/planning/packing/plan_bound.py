"""What no configuration of a formulation can exceed: the dual of a linear relaxation.

Terms: *member*, *group*, *cut* as in `planning.packing.formulation`; n_k: workers of group k; y_k: share of the rows
that they serve; tau, mu: the multipliers of the dual.

No y_k is above what n_k workers serve at the utilisation limit, and no row costs less than in the longest batches that
there are at that load.  So the objective is at most the optimum of a linear program over shares and cuts.  With
multipliers tau (of "the shares sum to 1") and mu >= 0 (of the floor) of each member, the program falls apart into
devices: each takes its best cut, each slice its best group.  Any multipliers give a valid bound.  The dual is convex;
one member's is minimised by nested sections, several members' in turns.  p95, minimum shares, the peak and the cost of
switching are left out, which can only raise the bound.

**Workers that share their time** between variants are covered too.  A worker that gives a variant a part of its time
serves what that part of a worker would, and the relaxation knows parts of workers.  Only batches may be longer, which
`waits` allows for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.queueing import expected_batch
from clover.planning.packing.formulation import Formulation

_SECTIONS = 24
_ZOOMS = 4
_PRICES = 16
_TURNS = 6
_WIDE = 60.0

Floats = NDArray[np.float64]


def plan_bound(of: Formulation, *, waits: bool = False) -> float:
    """Return what the joint objective cannot exceed.  It means nothing if the devices cannot serve the rates at all.

    With `waits` rows may wait for batches that are longer than the load alone would make them, as they do for those of
    other variants in workers that share their time.
    """
    return PlanDual(of, waits).least()


class PlanDual:
    """The dual of a formulation's relaxation."""

    def __init__(self, of: Formulation, waits: bool) -> None:
        self.of = of
        gains, rows = [], []
        for group in of.groups:
            member = of.members[group.member]
            weight = of.weights[group.member]
            accuracy = member.problem.accuracy[group.variant]
            busiest = member.objective.max_utilisation * group.service.capacity()
            # No lane has longer batches at that load, unless its rows wait.
            longest = math.inf if waits else expected_batch(group.service, busiest)
            gains.append(weight * member.objective.score(accuracy, group.service.least_energy_to(longest)))
            rows.append(busiest / member.problem.rate)
        self.gain, self.rows = np.array(gains), np.array(rows)
        self.member = np.array([group.member for group in of.groups])
        self.accuracy = np.array([of.members[g.member].problem.accuracy[g.variant] for g in of.groups])
        self.floor = np.array([member.objective.planned_floor for member in of.members])
        self.idle = of.watt * np.array([cut.watts for cut in of.cuts])
        self.slices = [_run(np.flatnonzero([g.profile == name for g in of.groups])) for name in of.profiles]
        self.kinds = [
            (number, _run(np.flatnonzero([cut.kind == kind for cut in of.cuts])))
            for kind, (_, number) in enumerate(of.kinds)
        ]
        self.table = np.ascontiguousarray(of.table, dtype=np.float64)
        self.best = np.array([max(self.gain[self.member == m]) for m in range(len(of.members))])
        self.total, self.price = self.best.copy(), np.zeros(len(of.members))
        """The multipliers of the least value found last."""

    def value(self, total: Floats, price: Floats) -> Floats:
        """Return the dual at `total` [points, members] and `price` [members]."""
        return self._value(self._gain(price), self._fixed(price), total)

    def _gain(self, price: Floats) -> Floats:
        """Return what a share of each group brings [groups], before its member's total is taken off."""
        gain: Floats = self.gain + price[self.member] * self.accuracy
        return gain

    def _fixed(self, price: Floats) -> float:
        """Return what is taken off the dual whatever the totals are."""
        return float(price @ self.floor)

    def _value(self, gain: Floats, fixed: float, total: Floats) -> Floats:
        """Return `value`, given what its price decides."""
        slices = self._slices(gain[:, None] - self._totals(total))
        return self._cut(slices, total.sum(axis=1) - fixed)

    def _totals(self, total: Floats) -> Floats:
        """Return the total of each group's member [groups or 1, points]."""
        return total.T if len(self.floor) == 1 else total.T[self.member]

    def _slices(self, worth: Floats) -> Floats:
        """Return what the best group of each profile brings [profiles, points], of the `worth` of shares [groups,
        points], which is written over.  Points come last here: so the arrays are read as they lie in memory."""
        np.maximum(worth, 0.0, out=worth)
        worth *= self.rows[:, None]
        slices = np.empty((len(self.slices), worth.shape[1]))
        for best, groups in zip(slices, self.slices, strict=True):
            np.maximum.reduce(worth[groups], axis=0, out=best)
        return slices

    def _cut(self, slices: Floats, rest: Floats) -> Floats:
        """Return the `rest` of the dual [..., points] and what the best cuts bring of `slices` [..., profiles, points],
        which is added to it."""
        cuts = self.table @ slices
        cuts -= self.idle[:, None]
        for number, own in self.kinds:
            rest += number * np.maximum.reduce(cuts[..., own, :], axis=-2)
        return rest

    def least(self) -> float:
        """Return the least value found."""
        members = len(self.of.members)
        total, price = self.best.copy(), np.zeros(members)
        value = float(self.value(total[None, :], price)[0])
        for _ in range(1 if members == 1 else _TURNS):
            for member in range(members):
                total, price, value = self._turn(member, total, price, value)
        self.total, self.price = total, price
        return value

    def _turn(self, member: int, total: Floats, price: Floats, value: float) -> tuple[Floats, Floats, float]:
        """Return the best multipliers of one member, the others' held."""
        own = self.member == member
        spread = max(float(np.ptp(self.gain[own])), 1e-9)
        reach = max(float(np.ptp(self.accuracy[own])), 1e-9)
        points = np.tile(total, (_SECTIONS, 1))

        def inner(mu: float) -> tuple[float, float]:
            prices = price.copy()
            prices[member] = mu
            worth = self.gain[own] + mu * self.accuracy[own]
            low, high = float(worth.min()) - _WIDE * spread, float(worth.max())
            best = (math.inf, 0.0)
            gain, fixed = self._gain(prices), self._fixed(prices)
            for _ in range(_ZOOMS):
                points[:, member] = spaced(low, high, _SECTIONS)
                found = self._value(gain, fixed, points)
                at = int(found.argmin())
                best = min(best, (float(found[at]), float(points[at, member])))
                low, high = float(points[max(at - 1, 0), member]), float(points[min(at + 1, _SECTIONS - 1), member])
            return best

        low, high = 0.0, 4.0 * spread / reach
        best, at = inner(0.0)
        chosen = (best, at, 0.0)
        if self.floor[member] <= self.accuracy[own].min():  # a floor that nothing breaks has no price
            return self._better(member, total, price, value, chosen)
        chosen = min(chosen, least_by_sections(inner, low, high, _PRICES))
        return self._better(member, total, price, value, chosen)

    @staticmethod
    def _better(
        member: int, total: Floats, price: Floats, value: float, chosen: tuple[float, float, float]
    ) -> tuple[Floats, Floats, float]:
        """Return the multipliers with those that were `chosen` for a member, if they lower the value."""
        if chosen[0] < value:
            total, price = total.copy(), price.copy()
            total[member], price[member] = chosen[1], chosen[2]
            return total, price, chosen[0]
        return total, price, value


def least_by_sections(
    of: Callable[[float], tuple[float, float]], low: float, high: float, steps: int
) -> tuple[float, float, float]:
    """Return the least pair that golden sections of a convex function's range find, and where it is."""
    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = of(a), of(b)
    least = (*fa, a)
    for _ in range(steps):
        least = min(least, (*fa, a), (*fb, b))
        if fa[0] <= fb[0]:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = of(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = of(b)
    return least


def spaced(low: Any, high: Any, points: int) -> Floats:
    """Return what `np.linspace` gives between numbers or arrays, with points last, in a fraction of its time."""
    points_between: Floats = np.multiply.outer((high - low) / (points - 1), np.arange(points, dtype=np.float64))
    points_between += np.asarray(low)[..., None]
    points_between[..., -1] = high
    return points_between


def _run(at: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """Return indices, as a slice if they are evenly spaced: that copies nothing."""
    step = int(at[1] - at[0]) if len(at) > 1 else 1
    return slice(int(at[0]), int(at[-1]) + 1, step) if (np.diff(at) == step).all() else at
