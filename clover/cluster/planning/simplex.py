"""Small linear programs, solved exactly: the revised simplex method with bounded variables, in NumPy.

    minimise  cost . x   subject to   A x = b,   lower <= x <= upper

The planner's programs have some hundred rows and ten thousand columns with a few entries each, and are solved again and
again with other bounds.  The inverse of the basis is kept as a dense matrix; reduced costs are one gather over the
entries.  `solve` starts from the columns that the caller names as a basis (slacks and shortfalls, an identity up to
scale) by the primal method; `resolve` goes on from the last optimum after bounds or right-hand sides changed, by the
dual method.  The duals of the last basis bound the optimum from below whatever the rounding: see `relaxation`.

Source: R. J. Vanderbei, Linear Programming (5th ed., 2020), chapters 6, 8 and 9.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clover.errors import PlanError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_OPTIMAL = 1e-11  # a reduced cost, of the largest dual, that counts as none
_FEASIBLE = 1e-9  # how far outside its bounds a variable may lie, in scaled units
_PIVOT = 1e-8  # least entry that a pivot may have
_REFACTOR = 120  # pivots after which the inverse is made anew
_SHAKE = 1e-10  # by how much right-hand sides are moved apart, so that no ratio ties
_LIMIT = 30_000  # pivots; a program that needs more is broken


class NoSolutionError(PlanError):
    """A program whose bounds contradict its constraints."""


@dataclass
class Columns:
    """Columns of a program that is being written down: entries, costs and upper bounds; lower bounds are 0."""

    count: int = 0
    _widths: list[Ints] = field(default_factory=list)
    _rows: list[Ints] = field(default_factory=list)
    _values: list[Floats] = field(default_factory=list)
    _costs: list[Floats] = field(default_factory=list)
    _uppers: list[Floats] = field(default_factory=list)
    # Of columns that were appended one by one since: width, cost and upper bound of each, and all their entries.
    _single: list[tuple[int, float, float]] = field(default_factory=list)
    _entries: list[tuple[int, float]] = field(default_factory=list)

    def add(self, cost: float, entries: Iterable[tuple[int, float]], upper: float = np.inf) -> int:
        """Append a column of (row, value) entries and return its number."""
        before = len(self._entries)
        self._entries += entries
        if len(self._entries) == before:
            raise PlanError("a column of a linear program has no entries")
        self._single.append((len(self._entries) - before, cost, upper))
        self.count += 1
        return self.count - 1

    def extend(self, costs: Floats, rows: Ints, values: Floats) -> range:
        """Append columns without an upper bound, whose entries are the rows of two matrices of the same width; return
        their numbers."""
        many, width = rows.shape
        if not width:
            raise PlanError("a column of a linear program has no entries")
        self._gather()
        self._widths.append(np.full(many, width, dtype=np.int64))
        self._rows.append(rows.ravel())
        self._values.append(values.ravel())
        self._costs.append(costs)
        self._uppers.append(np.full(many, np.inf))
        self.count += many
        return range(self.count - many, self.count)

    def _gather(self) -> None:
        """Make arrays of the columns that were appended one by one: an array for each takes longer than its program."""
        if self._single:
            widths, costs, uppers = zip(*self._single, strict=True)
            rows, values = zip(*self._entries, strict=True)
            self._widths.append(np.array(widths, dtype=np.int64))
            self._rows.append(np.array(rows, dtype=np.int64))
            self._values.append(np.array(values, dtype=np.float64))
            self._costs.append(np.array(costs, dtype=np.float64))
            self._uppers.append(np.array(uppers, dtype=np.float64))
            self._single.clear()
            self._entries.clear()

    def joined(self) -> tuple[Ints, Ints, Floats, Floats, Floats]:
        """Return the starts of all columns, rows and values of their entries, costs and upper bounds."""
        self._gather()
        starts = np.concatenate(([0], np.cumsum(np.concatenate(self._widths))))
        rows, values = np.concatenate(self._rows), np.concatenate(self._values)
        return starts, rows, values, np.concatenate(self._costs), np.concatenate(self._uppers)


@dataclass
class Basis:
    """Where a solution stands, to return to: the basic columns, those at their upper bound, and the inverse."""

    basic: Ints
    at_upper: NDArray[np.bool_]
    inverse: Floats
    lower: Floats
    upper: Floats


class LinearProgram:
    """A linear program with its last solution: `x`, `duals` (one a row) and `objective`."""

    def __init__(self, columns: Columns, right: Iterable[float], basis: Iterable[int]) -> None:
        self._starts, self._rows, raw, costs, uppers = columns.joined()
        self._right = np.asarray(list(right), dtype=np.float64)
        self._m, self._n = len(self._right), columns.count
        # Rows and columns are scaled until their largest entries are near 1.
        self._row_scale = np.ones(self._m)
        self._column_scale = np.ones(self._n)
        owner = np.repeat(np.arange(self._n), np.diff(self._starts))
        for _ in range(3):
            size = np.abs(raw) * self._row_scale[self._rows] * self._column_scale[owner]
            largest = np.zeros(self._m)
            np.maximum.at(largest, self._rows, size)
            self._row_scale /= np.sqrt(np.where(largest > 0.0, largest, 1.0))
            size = np.abs(raw) * self._row_scale[self._rows] * self._column_scale[owner]
            largest = np.maximum.reduceat(size, self._starts[:-1])
            self._column_scale /= np.sqrt(np.where(largest > 0.0, largest, 1.0))
        self._values = raw * self._row_scale[self._rows] * self._column_scale[owner]
        self._cost = costs * self._column_scale
        self.lower = np.zeros(self._n)
        self.upper = uppers
        self._basic = np.asarray(list(basis), dtype=np.int64)
        self._first = self._basic.copy()
        if len(self._basic) != self._m:
            raise PlanError("a linear program needs a basic column for each row")
        self._at_upper = np.zeros(self._n, dtype=bool)
        self._nonbasic = np.ones(self._n, dtype=bool)
        self._nonbasic[self._basic] = False
        self._inverse = self._invert()
        shake = np.random.default_rng(7).uniform(0.5, 1.0, self._m)
        self._shake = _SHAKE * shake * max(1.0, float(np.abs(self._right * self._row_scale).max(initial=0.0)))
        self.pivots = 0

    def set_right(self, row: int, value: float) -> None:
        """Change the right-hand side of a row; call `resolve` afterwards."""
        self._right[row] = value

    def save(self) -> Basis:
        """Return where the solution stands."""
        return Basis(
            self._basic.copy(), self._at_upper.copy(), self._inverse.copy(), self.lower.copy(), self.upper.copy()
        )

    def restore(self, kept: Basis) -> None:
        """Return to a saved solution, its bounds included."""
        self._basic, self._at_upper = kept.basic.copy(), kept.at_upper.copy()
        self._inverse = kept.inverse.copy()
        self.lower, self.upper = kept.lower.copy(), kept.upper.copy()
        self._nonbasic[:] = True
        self._nonbasic[self._basic] = False

    def solve(self) -> float:
        """Return the least cost, from the basis at hand, which keeps all bounds; PlanError if there is no least."""
        self._primal()
        return self.objective

    def resolve(self) -> float:
        """Return the least cost after bounds or right-hand sides changed since the last optimum."""
        try:
            self._dual()
        except NoSolutionError:
            self._restart()
        self._primal()
        return self.objective

    def _restart(self) -> None:
        """Return to the caller's basis, as rounding errors left no pivot; NoSolutionError if it breaks a bound now."""
        self._basic, self._at_upper = self._first.copy(), np.zeros(self._n, dtype=bool)
        self._nonbasic[:] = True
        self._nonbasic[self._basic] = False
        self._refactor()
        basic, low, high = self._start()
        if (np.maximum(low - basic, basic - high) > _FEASIBLE * max(1.0, float(np.abs(basic).max(initial=0.0)))).any():
            raise NoSolutionError("a linear program of the cluster's planner has no solution; please report this")

    @property
    def x(self) -> Floats:
        """The variables, within their bounds."""
        x = self._resting()
        x[self._basic] = self._inverse @ (self._right * self._row_scale - self._apply_inverse(x))
        return np.clip(x * self._column_scale, self.lower, self.upper)

    @property
    def duals(self) -> Floats:
        """What one more of each row's right-hand side costs."""
        return (self._cost[self._basic] @ self._inverse) * self._row_scale

    @property
    def reduced(self) -> Floats:
        """What one more of each variable costs, to first order."""
        return self._reduced_costs(self._cost[self._basic] @ self._inverse) / self._column_scale

    @property
    def objective(self) -> float:
        """The cost of `x`."""
        return float((self._cost / self._column_scale) @ self.x)

    def least(self, most: Floats) -> float:
        """Return a cost that no solution is below, by the duals at hand, whatever they are; `most`: what variables
        without an upper bound are at most."""
        y = self._cost[self._basic] @ self._inverse
        gain = self._reduced_costs(y) / self._column_scale
        upper = np.where(np.isfinite(self.upper), self.upper, most)
        rest = np.where(gain > 0.0, gain * self.lower, gain * upper)
        return float(y @ (self._right * self._row_scale) + rest.sum())

    def _matrix(self, columns: Ints) -> Floats:
        dense = np.zeros((self._m, len(columns)))
        for place, column in enumerate(columns):
            span = slice(self._starts[column], self._starts[column + 1])
            dense[self._rows[span], place] = self._values[span]
        return dense

    def _column(self, column: int) -> Floats:
        span = slice(self._starts[column], self._starts[column + 1])
        return np.asarray(self._inverse[:, self._rows[span]] @ self._values[span])

    def _reduced_costs(self, y: Floats) -> Floats:
        return self._cost - np.add.reduceat(y[self._rows] * self._values, self._starts[:-1])

    def _resting(self) -> Floats:
        """Return the scaled values of the variables outside the basis, 0 for those in it."""
        x = np.where(self._at_upper, self.upper, self.lower) / self._column_scale
        x[self._basic] = 0.0
        return x

    def _apply_inverse(self, x: Floats) -> Floats:
        """Return A x, scaled."""
        owner = np.repeat(x, np.diff(self._starts))
        return np.asarray(np.bincount(self._rows, weights=self._values * owner, minlength=self._m), dtype=np.float64)

    def _start(self) -> tuple[Floats, Floats, Floats]:
        """Return the basic variables (right-hand sides shaken), their lower and their upper bounds, all scaled."""
        right = self._right * self._row_scale + self._shake - self._apply_inverse(self._resting())
        scale = self._column_scale[self._basic]
        return self._inverse @ right, self.lower[self._basic] / scale, self.upper[self._basic] / scale

    def _refactor(self) -> None:
        self._inverse = self._invert()

    def _invert(self) -> Floats:
        """Return the inverse of the basis.  Its columns with one entry are eliminated by hand, which leaves little or
        nothing to invert:

            rows of those     [D X]-1   [D-1  -D-1 X S-1]
            all other rows    [0 S]   = [0           S-1]
        """
        single = np.diff(self._starts)[self._basic] == 1
        ones, others = np.flatnonzero(single), np.flatnonzero(~single)
        starts = self._starts[self._basic[ones]]
        own, values = self._rows[starts], self._values[starts]
        inverse = np.zeros((self._m, self._m))
        inverse[ones, own] = 1.0 / values
        if len(others):
            matrix = self._matrix(self._basic[others])
            rest = np.setdiff1d(np.arange(self._m), own)
            inner = np.linalg.inv(matrix[rest])
            inverse[np.ix_(others, rest)] = inner
            inverse[np.ix_(ones, rest)] = -(matrix[own] @ inner) / values[:, None]
        return inverse

    def _exchange(self, row: int, column: int, step: Floats) -> None:
        """Put `column` into the basis in the place of the one in `row`; `step` is the column in terms of the basis."""
        self._nonbasic[self._basic[row]] = True
        self._nonbasic[column] = False
        self._basic[row] = column
        self._at_upper[column] = False
        pivot_row = self._inverse[row] / step[row]
        rest = step.copy()
        rest[row] = 0.0
        self._inverse -= rest[:, None] * pivot_row
        self._inverse[row] = pivot_row
        self.pivots += 1
        if self.pivots % _REFACTOR == 0:
            self._refactor()

    def _primal(self) -> None:
        basic, low, high = self._start()
        begun = self.pivots
        y = self._cost[self._basic] @ self._inverse
        fixed = self.lower >= self.upper
        while True:
            gain = np.where(self._at_upper, -1.0, 1.0) * self._reduced_costs(y)
            gain[~self._nonbasic | fixed] = 0.0
            column = int(gain.argmin())
            # The duals of what cannot be had are a thousand times those of the optimum: no fixed tolerance fits both.
            if gain[column] >= -_OPTIMAL * max(1e-3, float(np.abs(y).max(initial=0.0))):
                return
            if self.pivots - begun > _LIMIT:
                raise PlanError("a linear program of the cluster's planner does not converge; please report this")
            step = self._column(column)
            sense = -1.0 if self._at_upper[column] else 1.0
            moved = sense * step
            down, up = moved > _PIVOT, moved < -_PIVOT
            room = np.full(self._m, np.inf)
            room[down] = np.maximum(basic[down] - low[down], 0.0) / moved[down]
            room[up] = np.maximum(high[up] - basic[up], 0.0) / -moved[up]
            row = int(room.argmin())
            width = (self.upper[column] - self.lower[column]) / self._column_scale[column]
            if min(width, room[row]) == np.inf:
                raise PlanError("a linear program of the cluster's planner has no least cost; please report this")
            if width <= room[row]:
                self._at_upper[column] = not self._at_upper[column]
                basic = basic - moved * width
                self.pivots += 1
                continue
            ties = np.flatnonzero(room <= room[row] * (1.0 + 1e-9) + 1e-13)
            row = int(ties[np.abs(step[ties]).argmax()])
            leaving, size = self._basic[row], room[row]
            rest = self.upper[column] if self._at_upper[column] else self.lower[column]
            basic = basic - moved * size
            basic[row] = rest / self._column_scale[column] + sense * size
            self._exchange(row, column, step)
            self._at_upper[leaving] = bool(up[row])
            scale = self._column_scale[column]
            low[row], high[row] = self.lower[column] / scale, self.upper[column] / scale
            y = self._cost[self._basic] @ self._inverse
            if self.pivots % _REFACTOR == 0:
                basic, low, high = self._start()

    def _dual(self) -> None:
        y = self._cost[self._basic] @ self._inverse
        gain = self._reduced_costs(y)
        # A variable with two bounds rests at the one that its reduced cost prefers.
        self._at_upper = np.where(np.isfinite(self.upper), gain < 0.0, False) & self._nonbasic
        basic, low, high = self._start()
        begun = self.pivots
        while True:
            below, above = low - basic, basic - high
            far = np.maximum(below, above)
            row = int(far.argmax())
            if far[row] <= _FEASIBLE * max(1.0, float(np.abs(basic).max(initial=0.0))):
                return
            if self.pivots - begun > _LIMIT:
                raise PlanError("a linear program of the cluster's planner does not converge; please report this")
            short = below[row] >= above[row]
            across = np.add.reduceat(self._inverse[row][self._rows] * self._values, self._starts[:-1])
            # To raise the basic variable, one at its lower bound may grow if its entry is negative, and so on.
            sides = np.where(self._at_upper, -1.0, 1.0)
            signed = sides * across if short else -sides * across
            usable = np.flatnonzero(self._nonbasic & (signed < -_PIVOT) & (self.lower < self.upper))
            if not len(usable):
                raise NoSolutionError("a linear program of the cluster's planner has no solution; please report this")
            ratio = np.maximum(sides[usable] * gain[usable], 0.0) / -signed[usable]
            ties = usable[ratio <= ratio.min() * (1.0 + 1e-9) + 1e-14]
            column = int(ties[np.abs(across[ties]).argmax()])
            leaving, step = self._basic[row], self._column(column)
            rest = self.upper[column] if self._at_upper[column] else self.lower[column]
            size = (basic[row] - (low[row] if short else high[row])) / step[row]
            basic = basic - step * size
            basic[row] = rest / self._column_scale[column] + size
            gain = gain - (gain[column] / across[column]) * across
            self._exchange(row, column, step)
            self._at_upper[leaving] = not short
            scale = self._column_scale[column]
            low[row], high[row] = self.lower[column] / scale, self.upper[column] / scale
            if self.pivots % _REFACTOR == 0:
                basic, low, high = self._start()
                gain = self._reduced_costs(self._cost[self._basic] @ self._inverse)
