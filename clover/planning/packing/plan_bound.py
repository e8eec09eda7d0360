"""What no configuration of a formulation can exceed: the dual of a linear relaxation.

Terms: *member*, *group*, *cut* as in `planning.packing.formulation`; n_k: workers of group k; tau, mu, eta, nu: the
multipliers of the dual.

y_k is the share of the rows that the workers of group k serve; no share is above what n_k workers serve at the
utilisation limit, and no row costs less than in the longest batches that there are at that load.  So the objective is
at most the optimum of a linear program over shares and cuts.  With multipliers tau (of "the shares sum to 1") and
mu >= 0 (of the floor) of each member, the program falls apart into devices: each takes its best cut, each slice its
best group.  Any multipliers give a valid bound.  The dual is convex; one member's is minimised by nested sections,
several members' in turns.  p95, minimum shares, the peak and the cost of switching are left out, which can only raise
it.

**Late rows.**  With `slo` one consequence of p95 is kept: of the rows a twentieth at most may miss the SLO, and a row
misses it at least as often as the service of its worker alone does.  That is linear in the shares as well, with a
multiplier eta >= 0 for each member.  (Workers take rows in turn while they are idle and in proportion to capacity while
they are not, so that slow ones take no less than their part of the capacity, which is what joules are counted by.)

**Waiting rows.**  A plane above what a variant's workers can serve within the SLO (`planning.packing.lane_ceilings`) is
linear in shares and workers: with a multiplier nu >= 0 each of its rows costs nu, each of its workers gains nu times
its slope, and nu times the base is added.  The plane that lowers the bound most counts, and the one that lowers it most
beside that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.queueing import Service, expected_batch
from clover.planning.packing.formulation import MISS, Formulation, late_alone
from clover.planning.packing.lane_ceilings import LaneCeiling

_SECTIONS = 24
_ZOOMS = 4
_PRICES = 16
_TURNS = 6
_CHARGES = 20
_WIDE = 60.0
_POINTS, _HALVINGS = 9, 20
_LATE = MISS + 0.005
"""The part of the rows that may be late, with room for the resolution of p95: one of 400 quantiles of 20,000 rows."""
_SELDOM = 1e-3
"""A part of the rows that is as good as none."""

Floats = NDArray[np.float64]


def plan_bound(
    of: Formulation, *, waits: bool = False, slo: bool = False, ceilings: Sequence[LaneCeiling] = ()
) -> float:
    """Return what the joint objective cannot exceed.  It means nothing if the devices cannot serve the rates at all.

    With `waits` rows may wait for batches that are longer than the load alone would make them.  With `slo` no more rows
    than may be late go to workers that are too slow alone: tighter, and some twenty times as much to compute.  With
    `ceilings` no variant serves more than these let it.
    """
    dual = _Dual(of, waits)
    least = dual.least_of_late() if slo else dual.least()
    return min(least, dual.below(ceilings)) if ceilings else least


class _Dual:
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
        self.profile = [of.profiles.index(group.profile) for group in of.groups]
        self.slices = [_run(np.flatnonzero([g.profile == name for g in of.groups])) for name in of.profiles]
        self.kinds = [
            (number, _run(np.flatnonzero([cut.kind == kind for cut in of.cuts])))
            for kind, (_, number) in enumerate(of.kinds)
        ]
        self.table = np.ascontiguousarray(of.table, dtype=np.float64)
        self.best = np.array([max(self.gain[self.member == m]) for m in range(len(of.members))])
        self.late = np.array([_alone(group.service, of.members[group.member].objective.slo_ms) for group in of.groups])
        self.charge = np.zeros(len(of.members))
        """eta of each member."""

        self.total, self.price = self.best.copy(), np.zeros(len(of.members))
        """The multipliers of the least value found last."""

    def value(self, total: Floats, price: Floats) -> Floats:
        """Return the dual at `total` [points, members] and `price` [members]."""
        return self._value(self._gain(price), self._fixed(price), total)

    def _gain(self, price: Floats) -> Floats:
        """Return what a share of each group brings [groups], before its member's total is taken off."""
        gain: Floats = self.gain + price[self.member] * self.accuracy - self.charge[self.member] * self.late
        return gain

    def _fixed(self, price: Floats) -> tuple[float, float]:
        """Return what of the dual no total changes."""
        return float(price @ self.floor), _LATE * float(self.charge.sum())

    def _value(self, gain: Floats, fixed: tuple[float, float], total: Floats) -> Floats:
        """Return `value`, given what its price decides."""
        slices = self._slices(gain[:, None] - self._totals(total))
        return self._cut(slices, total.sum(axis=1) - fixed[0] + fixed[1])

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
        """Return the `rest` of the dual [points] and what the best cuts bring, which is added to it."""
        cuts = self.table @ slices
        cuts -= self.idle[:, None]
        for number, own in self.kinds:
            rest += number * np.maximum.reduce(cuts[own], axis=0)
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

    def below(self, ceilings: Sequence[LaneCeiling]) -> float:
        """Return the least value found with ceilings, from where the rest was left: that of the best one, then of a
        pair with it."""
        alone = [self._under([ceiling]) for ceiling in ceilings]
        first = int(np.argmin(alone))
        member = self._member(ceilings[first])
        pairs = [
            self._under([ceilings[first], other])
            for at, other in enumerate(ceilings)
            if at != first and self._member(other) == member
        ]
        return min([alone[first], *pairs])

    def _member(self, ceiling: LaneCeiling) -> int:
        return int(self.member[np.argmax(ceiling.on)])

    def _under(self, ceilings: Sequence[LaneCeiling]) -> float:
        """Return the least value over the costs of one or two ceilings of a member and over its total, by a grid that
        closes in on its best point."""
        member = self._member(ceilings[0])
        own = self.member == member
        gain, fixed = self._gain(self.price), self._fixed(self.price)
        spread = max(float(np.ptp(self.gain[own] + self.price[member] * self.accuracy[own])), 1e-9)
        ranges = [(0.0, 2.0 * spread)] * len(ceilings)
        ranges.append((self.total[member] - 2.0 * spread, self.total[member] + spread))
        least = math.inf
        grid = np.indices((_POINTS,) * len(ranges)).reshape(len(ranges), -1)
        # Few groups stand under a ceiling.  What the others bring depends on the total alone.
        under = np.flatnonzero(np.any([ceiling.on for ceiling in ceilings], axis=0))
        charged = [ceiling.on[under, None].astype(np.float64) for ceiling in ceilings]
        slopes = [ceiling.slopes[under, None] for ceiling in ceilings]
        free, bound = gain[:, None].copy(), gain[under, None]
        free[under] = -math.inf
        rows = self.rows[under, None]
        totals = np.tile(self.total, (_POINTS, 1))
        for _ in range(_HALVINGS):
            axes = [_spaced(*ends, _POINTS) for ends in ranges]
            *costs, total = (axis[at] for axis, at in zip(axes, grid, strict=True))
            totals[:, member] = axes[-1]
            slices = self._slices(free - self._totals(totals))[:, grid[-1]]
            worth = bound - total
            for cost, on in zip(costs, charged, strict=True):
                worth -= cost * on
            np.maximum(worth, 0.0, out=worth)
            worth *= rows
            for cost, slope in zip(costs, slopes, strict=True):
                worth += cost * slope
            # No slice has to have a worker: one that costs more than it brings, under a ceiling, is none.
            for group, brings in zip(under, worth, strict=True):
                best = slices[self.profile[group]]
                np.maximum(best, brings, out=best)
            found = (totals.sum(axis=1) - fixed[0] + fixed[1])[grid[-1]]
            found = self._cut(slices, found)
            for ceiling, cost in zip(ceilings, costs, strict=True):
                found += cost * ceiling.base
            at = int(found.argmin())
            least = min(least, float(found[at]))
            ranges = [_around(ends, float(cost[at]), 0.0) for ends, cost in zip(ranges, costs, strict=False)] + [
                _around(ranges[-1], float(total[at]))
            ]
        return least

    def least_of_late(self) -> float:
        """Return the least value found with rows that may be late charged for: convex in each member's charge."""
        value = self.least()
        for member in range(len(self.of.members)):
            own = self.member == member
            if not self.late[own].any():
                continue
            # A charge above any gain from a late row changes nothing more.
            high = float(np.ptp(self.gain[own]) * 2.0 / self.late[own][self.late[own] > 0.0].min())

            def charged(eta: float, member: int = member) -> float:
                self.charge[member] = eta
                return self.least()

            value, self.charge[member] = min((value, 0.0), _least(charged, 0.0, high, _CHARGES))
        return value

    def _turn(self, member: int, total: Floats, price: Floats, value: float) -> tuple[Floats, Floats, float]:
        """Return the best multipliers of one member, the others' held."""
        own = self.member == member
        spread = max(float(np.ptp(self.gain[own])), 1e-9)
        reach = max(float(np.ptp(self.accuracy[own])), 1e-9)
        golden = 0.5 * (math.sqrt(5.0) - 1.0)
        points = np.tile(total, (_SECTIONS, 1))

        def inner(mu: float) -> tuple[float, float]:
            prices = price.copy()
            prices[member] = mu
            worth = self.gain[own] + mu * self.accuracy[own]
            low, high = float(worth.min()) - _WIDE * spread, float(worth.max())
            best = (math.inf, 0.0)
            gain, fixed = self._gain(prices), self._fixed(prices)
            for _ in range(_ZOOMS):
                points[:, member] = _spaced(low, high, _SECTIONS)
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
        a, b = high - golden * (high - low), low + golden * (high - low)
        fa, fb = inner(a), inner(b)
        for _ in range(_PRICES):
            chosen = min(chosen, (*fa, a), (*fb, b))
            if fa[0] <= fb[0]:
                high, b, fb = b, a, fa
                a = high - golden * (high - low)
                fa = inner(a)
            else:
                low, a, fa = a, b, fb
                b = low + golden * (high - low)
                fb = inner(b)
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


def _spaced(low: float, high: float, points: int) -> Floats:
    """Return what `np.linspace` gives, in a fraction of its time."""
    found: Floats = np.arange(points, dtype=np.float64)
    found *= (high - low) / (points - 1)
    found += low
    found[-1] = high
    return found


def _run(at: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """Return indices, as a slice if they are evenly spaced: that copies nothing."""
    step = int(at[1] - at[0]) if len(at) > 1 else 1
    return slice(int(at[0]), int(at[-1]) + 1, step) if (np.diff(at) == step).all() else at


def _around(ends: tuple[float, float], at: float, least: float = -math.inf) -> tuple[float, float]:
    """Return an interval half as wide as `ends`, around `at`: the least value may lie beside the cell of the best grid
    point."""
    reach = 0.25 * (ends[1] - ends[0])
    return max(least, at - reach), at + reach


def _alone(service: Service, slo_ms: float) -> float:
    """Return the part of the rows that are late although they never wait."""
    part = late_alone(service, slo_ms)
    return part if part >= _SELDOM else 0.0


def _least(of: Callable[[float], float], low: float, high: float, steps: int) -> tuple[float, float]:
    """Return the least value of a convex function that golden sections find, and where."""
    golden = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = of(a), of(b)
    best = min((fa, a), (fb, b))
    for _ in range(steps):
        if fa <= fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = of(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = of(b)
        best = min(best, (fa, a), (fb, b))
    return best
