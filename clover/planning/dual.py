"""What no configuration of a formulation can exceed.

y_k is the share of the rows that the workers of group k serve; no share is above what n_k workers serve at the
utilisation limit, and no row costs less than in the longest batches that there are at that load.  So the objective is
at most the optimum of a linear program over shares and cuts.  With multipliers tau (of "the shares sum to 1") and
mu >= 0 (of the floor) of each member, the program falls apart into devices: each takes its best cut, each slice its
best group.  Any multipliers give a valid bound.  The dual is convex; one member's is minimised by nested sections,
several members' in turns.  p95, minimum shares, the peak and the cost of switching are left out, which can only raise
it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from clover.planning.formulation import Formulation
from clover.planning.queueing import expected_batch

_SECTIONS = 24
_ZOOMS = 4
_PRICES = 16
_TURNS = 6
_WIDE = 60.0

Floats = NDArray[np.float64]


def bound(of: Formulation, *, waits: bool = False) -> float:
    """What the joint objective cannot exceed.  Where the devices cannot serve the rates at all it says nothing.

    With `waits` rows may wait for batches that are longer than the load alone would make them.
    """
    return _Dual(of, waits).least()


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
        self.slices = [np.flatnonzero([g.profile == name for g in of.groups]) for name in of.profiles]
        self.best = np.array([max(self.gain[self.member == m]) for m in range(len(of.members))])

    def value(self, total: Floats, price: Floats) -> Floats:
        """The dual at `total` [points, members] and `price` [members]."""
        worth = self.gain + price[self.member] * self.accuracy - total[:, self.member]
        worth = np.maximum(worth, 0.0) * self.rows
        slices = np.stack([worth[:, groups].max(axis=1) for groups in self.slices], axis=1)
        cuts = slices @ self.of.table.T - self.idle
        found = total.sum(axis=1) - float(price @ self.floor)
        for kind, (_, number) in enumerate(self.of.kinds):
            own = [at for at, cut in enumerate(self.of.cuts) if cut.kind == kind]
            found = found + number * cuts[:, own].max(axis=1)
        return np.asarray(found)

    def least(self) -> float:
        """The least value found."""
        members = len(self.of.members)
        total, price = self.best.copy(), np.zeros(members)
        value = float(self.value(total[None, :], price)[0])
        for _ in range(1 if members == 1 else _TURNS):
            for member in range(members):
                total, price, value = self._turn(member, total, price, value)
        return value

    def _turn(self, member: int, total: Floats, price: Floats, value: float) -> tuple[Floats, Floats, float]:
        """The best multipliers of one member, the others' held."""
        own = self.member == member
        spread = max(float(np.ptp(self.gain[own])), 1e-9)
        reach = max(float(np.ptp(self.accuracy[own])), 1e-9)
        golden = 0.5 * (math.sqrt(5.0) - 1.0)

        def inner(mu: float) -> tuple[float, float]:
            prices = price.copy()
            prices[member] = mu
            worth = self.gain[own] + mu * self.accuracy[own]
            low, high = float(worth.min()) - _WIDE * spread, float(worth.max())
            best = (math.inf, 0.0)
            for _ in range(_ZOOMS):
                points = np.tile(total, (_SECTIONS, 1))
                points[:, member] = np.linspace(low, high, _SECTIONS)
                found = self.value(points, prices)
                at = int(np.argmin(found))
                best = min(best, (float(found[at]), float(points[at, member])))
                low, high = float(points[max(at - 1, 0), member]), float(points[min(at + 1, _SECTIONS - 1), member])
            return best

        low, high = 0.0, 4.0 * spread / reach
        best, at = inner(0.0)
        chosen = (best, at, 0.0)
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
        if chosen[0] < value:
            total, price = total.copy(), price.copy()
            total[member], price[member] = chosen[1], chosen[2]
            return total, price, chosen[0]
        return total, price, value
