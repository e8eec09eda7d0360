"""A tighter bound than `planning.packing.plan_bound`, with what p95 asks of plans: for judging them afterwards.

**Late rows.**  One consequence of p95 is kept: of the rows a twentieth at most may miss the SLO, and a row misses it at
least as often as the service of its worker alone does.  That is linear in the shares, with a multiplier eta >= 0 for
each member.  (Workers take rows in turn while they are idle and in proportion to capacity while they are not, so that
slow ones take no less than their part of the capacity, which is what joules are counted by.)

**Waiting rows.**  A plane above what a variant's workers can serve within the SLO (`research.simulate.lane_ceilings`)
is linear in shares and workers: with a multiplier nu >= 0 each of its rows costs nu, each of its workers gains nu times
its slope, and nu times the base is added.  The plane that lowers the bound most counts, and the one that lowers it most
beside that.

Both are about workers of one variant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.queueing import Service
from clover.planning.packing.formulation import MISS, Formulation, late_alone
from clover.planning.packing.plan_bound import Floats, PlanDual, least_by_sections, spaced
from clover.research.simulate.lane_ceilings import LaneCeiling

_CHARGES = 20
_POINTS, _HALVINGS = 9, 20
_LATE = MISS + 0.005
"""The part of the rows that may be late, with room for the resolution of p95: one of 400 quantiles of 20,000 rows."""
_SELDOM = 1e-3
"""A part of the rows that is as good as none."""


def slo_bound(of: Formulation, *, waits: bool = False, ceilings: Sequence[LaneCeiling] = ()) -> float:
    """Return what the joint objective cannot exceed if no more rows than may be late go to workers that are too slow
    alone, and no variant serves more than `ceilings` let it.  Some twenty times as much to compute as `plan_bound`;
    `waits` as there."""
    dual = _SloDual(of, waits)
    least = dual.least_of_late()
    return min(least, dual.below(ceilings)) if ceilings else least


class _SloDual(PlanDual):
    """The dual with a price for late rows."""

    def __init__(self, of: Formulation, waits: bool) -> None:
        super().__init__(of, waits)
        self.profile = [of.profiles.index(group.profile) for group in of.groups]
        self.late = np.array([_alone(group.service, of.members[group.member].objective.slo_ms) for group in of.groups])
        self.charge = np.zeros(len(of.members))
        """eta of each member."""

    def _gain(self, price: Floats) -> Floats:
        gain: Floats = super()._gain(price) - self.charge[self.member] * self.late
        return gain

    def _fixed(self, price: Floats) -> float:
        return super()._fixed(price) - _LATE * float(self.charge.sum())

    def below(self, ceilings: Sequence[LaneCeiling]) -> float:
        """Return the least value found with ceilings, from where the rest was left: that of the best one, then of a
        pair with it."""
        members = [self._member(ceiling) for ceiling in ceilings]
        alone = np.empty(len(ceilings))
        for member in set(members):
            members_at = [at for at, of in enumerate(members) if of == member]
            alone[members_at] = self._under(member, [[ceilings[at]] for at in members_at])
        first = int(np.argmin(alone))
        pairs = [
            [ceilings[first], other]
            for at, other in enumerate(ceilings)
            if at != first and members[at] == members[first]
        ]
        least = float(alone[first])
        return min(least, float(self._under(members[first], pairs).min())) if pairs else least

    def _member(self, ceiling: LaneCeiling) -> int:
        return int(self.member[np.argmax(ceiling.on)])

    def _under(self, member: int, sets: Sequence[Sequence[LaneCeiling]]) -> Floats:
        """Return the least value of each set of one or of two ceilings (in all as many) of a member, over their costs
        and the member's total, by a grid [cost, (cost,) total] that closes in on its best point."""
        number, count, points = len(sets), len(sets[0]), _POINTS
        size = points ** (count + 1)
        mine = self.member == member
        gain, fixed = self._gain(self.price), self._fixed(self.price)
        spread = max(float(np.ptp(self.gain[mine] + self.price[member] * self.accuracy[mine])), 1e-9)
        low, high = np.zeros((count + 1, number)), np.full((count + 1, number), 2.0 * spread)
        low[-1], high[-1] = self.total[member] - 2.0 * spread, self.total[member] + spread
        floor = np.full((count + 1, 1), 0.0)
        floor[-1] = -math.inf
        # Few groups stand under a ceiling.  What the others bring depends on the total alone; what those bring that one
        # ceiling is over, on its cost and the total: only those that two are over need the whole grid.
        on = np.array([[ceiling.on for ceiling in each] for each in sets])  # [set, ceiling, group]
        under = np.flatnonzero(on.any(axis=(0, 1)))
        free: Floats = np.repeat(gain[:, None], number * points, axis=1).reshape(-1, number, points)
        free[on.any(axis=1).T] = -math.inf
        free = free.reshape(-1, number * points)
        lanes = [_Charged(self, gain, under, [each[k] for each in sets], on) for k in range(count)]
        twice = [_Twice(self, gain, each, at) for at, each in enumerate(sets) if on[at].all(axis=0).any() and count > 1]
        bases = np.array([[ceiling.base for ceiling in each] for each in sets]).T
        totals = np.tile(self.total, (number * points, 1))
        least, every = np.full(number, math.inf), np.arange(number)
        for _ in range(_HALVINGS):
            axes = spaced(low, high, points)  # [axis, set, point]
            totals[:, member] = axes[-1].ravel()
            beside = self._slices(free - self._totals(totals)).reshape(-1, number, 1, points)
            brought = np.maximum(beside, lanes[0].slices(axes[0], axes[-1]))  # [profile, set, cost, total]
            if count > 1:
                brought = np.maximum(brought[:, :, :, None], lanes[1].slices(axes[1], axes[-1])[:, :, None])
            slices = np.ascontiguousarray(brought.swapaxes(0, 1)).reshape(number, -1, size)
            for each in twice:
                each.add(slices[each.at], axes[:, each.at])
            found = np.empty((number, size // points, points))
            found[:] = (totals.sum(axis=1) - fixed).reshape(number, 1, points)
            found = self._cut(slices, found.reshape(number, size)).reshape(number, *[points] * (count + 1))
            for k in range(count):
                shape = [number, *(points if axis == k else 1 for axis in range(count + 1))]
                found += (axes[k] * bases[k, :, None]).reshape(shape)
            at = found.reshape(number, size).argmin(axis=1)
            least = np.minimum(least, found.reshape(number, size)[every, at])
            best = np.array(
                [axis[every, i] for axis, i in zip(axes, np.unravel_index(at, found.shape[1:]), strict=True)]
            )
            # Intervals half as wide around it: the least value may lie beside the cell of the best grid point.
            reach = 0.25 * (high - low)
            low, high = np.maximum(floor, best - reach), best + reach
        return least

    def least_of_late(self) -> float:
        """Return the least value found with rows that may be late charged for: convex in each member's charge."""
        value = self.least()
        for member in range(len(self.of.members)):
            mine = self.member == member
            if not self.late[mine].any():
                continue
            # A charge above any gain from a late row changes nothing more.
            high = float(np.ptp(self.gain[mine]) * 2.0 / self.late[mine][self.late[mine] > 0.0].min())

            def charged(eta: float, member: int = member) -> tuple[float, float]:
                self.charge[member] = eta
                return self.least(), eta

            sections = least_by_sections(charged, 0.0, high, _CHARGES + 1)
            value, self.charge[member] = min((value, 0.0), sections[:2])
        return value


class _Charged:
    """What groups bring that one ceiling alone is over: of each set its first, or its second."""

    def __init__(
        self,
        dual: _SloDual,
        gain: Floats,
        under: NDArray[np.intp],
        ceilings: Sequence[LaneCeiling],
        on: NDArray[np.bool_],
    ) -> None:
        self._gain, self._rows = gain[under, None, None, None], dual.rows[under, None, None, None]
        self._slopes = np.array([ceiling.slopes[under] for ceiling in ceilings]).T[:, :, None, None]
        alone = on.sum(axis=1) == 1
        self._others = ~np.array([ceiling.on & only for ceiling, only in zip(ceilings, alone, strict=True)]).T[under]
        self._profiles = [dual.profile[group] for group in under]
        self._shape = len(dual.slices), len(ceilings)

    def slices(self, costs: Floats, totals: Floats) -> Floats:
        """Return what the best of them brings, or nothing if it brings less [profile, set, cost, total]."""
        cost = costs[:, :, None]
        worth = self._gain - totals[:, None, :] - cost
        np.maximum(worth, 0.0, out=worth)
        worth *= self._rows
        worth += cost * self._slopes
        worth[self._others] = 0.0
        # No slice has to have a worker: one that costs more than it brings, under a ceiling, is none.
        slices = np.zeros((*self._shape, costs.shape[-1], totals.shape[-1]))
        for profile, brings in zip(self._profiles, worth, strict=True):
            np.maximum(slices[profile], brings, out=slices[profile])
        return slices


class _Twice:
    """What groups bring that both ceilings of a set are over."""

    def __init__(self, dual: _SloDual, gain: Floats, ceilings: Sequence[LaneCeiling], at: int) -> None:
        self.at = at
        under = np.flatnonzero(np.all([ceiling.on for ceiling in ceilings], axis=0))
        self._gain, self._rows = gain[under, None, None, None], dual.rows[under, None, None, None]
        self._slopes = [ceiling.slopes[under, None, None, None] for ceiling in ceilings]
        self._profiles = [dual.profile[group] for group in under]

    def add(self, slices: Floats, axes: Floats) -> None:
        """Put into `slices` [profile, points] what the best of them brings at `axes` [cost, cost, total]."""
        first, second, total = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        worth = self._gain - total - first - second
        np.maximum(worth, 0.0, out=worth)
        worth *= self._rows
        worth += first * self._slopes[0]
        worth += second * self._slopes[1]
        for profile, brings in zip(self._profiles, worth.reshape(len(worth), -1), strict=True):
            np.maximum(slices[profile], brings, out=slices[profile])


def _alone(service: Service, slo_ms: float) -> float:
    """Return the part of the rows that are late although they never wait."""
    part = late_alone(service, slo_ms)
    return part if part >= _SELDOM else 0.0
