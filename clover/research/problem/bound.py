"""An upper bound of f over all feasible configurations of a problem file.

The linear relaxations are those of `clover.research.problem.relaxation`.  With HiGHS (the extra `analysis`), branch and
bound: the box with the highest bound is looked at next.  Its linear program gives multipliers, whose dual value,
computed apart, is the bound; its solution is a (fractional) configuration, whose true shares and tail say what the
relaxation gave away and which side of the box to cut.  If few GPUs make fractions matter and the box is small, the
integer program is asked, whose solutions are also good starts for a search.  Without HiGHS, the same relaxation over
boxes of utilisation alone, its two multipliers found by nested golden sections, many boxes at once: valid, and looser.

Whatever ends the search, time included, the highest bound of what was left is one.  It is minus infinity if no box
can hold a feasible configuration.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clover.research.problem import exact
from clover.research.problem.file import Counts, Floats, ProblemFile
from clover.research.problem.relaxation import Box, Limits, Multipliers, Relaxation, erlang_c

EXTRA = 'pip install "clover-inference[analysis]"'
TOLERANCE = 1e-4
"""Of the gap's scale: boxes this close to the incumbent are left alone."""
_INTEGER_GPUS = 40
"""GPUs up to which rounding a fraction costs more than the boxes give away."""
_INTEGER_WIDTH = 0.05
_INTEGER_S = 2.0
_INTEGER_MARGIN = 1e-6
_MOST_BOXES = 30_000
_SECTIONS = 26
_AT_ONCE = 256
_NARROWEST = 1e-7
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


@dataclass(frozen=True)
class Bound:
    """`value`: no feasible f is above (minus infinity: nothing is feasible).  `starts`: configurations met on the way,
    none of them checked."""

    value: float
    method: str
    boxes: int
    starts: list[Counts] = field(default_factory=list)


def bound(
    problem: ProblemFile,
    *,
    incumbent: float = -math.inf,
    stop: Callable[[], bool] = lambda: False,
    highs: bool = True,
) -> Bound:
    """Return an upper bound of f; `incumbent` is the f of a feasible configuration, if one is known.  `highs` false
    asks for the bound that needs no solver."""
    relaxation = Relaxation(problem)
    if not len(relaxation.groups) or relaxation.most_capacity <= problem.arrival_rate:
        return Bound(-math.inf, "capacity", 0)
    solver = solvers() if highs else None
    if solver is None:
        return _sections(relaxation, incumbent, stop)
    return _Branching(relaxation, solver, incumbent, stop).run()


def solvers() -> Any:
    """Return scipy.optimize, or None if it is not installed."""
    try:
        import scipy.optimize
    except ModuleNotFoundError:
        return None
    return scipy.optimize


def _tolerance(problem: ProblemFile, incumbent: float) -> float:
    return TOLERANCE * problem.scale(incumbent) if math.isfinite(incumbent) else 1e-6


# --- without a solver -------------------------------------------------------------------------------------------------


def _sections(relaxation: Relaxation, incumbent: float, stop: Callable[[], bool]) -> Bound:
    """Bound f over boxes of utilisation: evaluate all of a round at once, and halve those above the incumbent."""
    method = f"Lagrangian relaxation (for a tighter bound: {EXTRA})"
    problem = relaxation.problem
    if problem.model == "pf":
        limits = relaxation.limits(relaxation.root())
        rows = (limits.low[None, :], limits.high[None, :], limits.tail_y[None, :])
        return Bound(float(_dual_of(relaxation, *rows)[0]), method, 1)
    least, most = relaxation.root().used
    edges = np.linspace(least, most, 17)
    low, high = edges[:-1], edges[1:]
    values = _of_boxes(relaxation, low, high)
    done, seen = -math.inf, len(low)
    target = incumbent + _tolerance(problem, incumbent)
    while seen < _MOST_BOXES and not stop():
        order = np.argsort(-values, kind="stable")[:_AT_ONCE]
        order = order[values[order] > target]
        if not len(order) or float((high[order] - low[order]).min()) < _NARROWEST:
            break
        middle = 0.5 * (low[order] + high[order])
        fresh = np.concatenate([low[order], middle]), np.concatenate([middle, high[order]])
        found = np.minimum(np.tile(values[order], 2), _of_boxes(relaxation, *fresh))
        seen += len(found)
        done = max(done, float(found[found <= target].max(initial=-math.inf)))
        open_ = found > target
        rest = np.ones(len(values), dtype=np.bool_)
        rest[order] = False
        low = np.concatenate([low[rest], fresh[0][open_]])
        high = np.concatenate([high[rest], fresh[1][open_]])
        values = np.concatenate([values[rest], found[open_]])
    return Bound(max(incumbent, done, float(values.max(initial=-math.inf))), method, seen)


def _of_boxes(relaxation: Relaxation, low: Floats, high: Floats) -> Floats:
    least, most, slowed = relaxation.shares_within(low, high)
    return _dual_of(relaxation, least, most, relaxation.direct * slowed)


def _dual_of(relaxation: Relaxation, low: Floats, high: Floats, tail_y: Floats) -> Floats:
    """Return the duals [b] of boxes with these limits, least over the multipliers of the shares' sum and of the tail.
    Golden sections may miss the least value, which makes a bound worse and not wrong."""
    gains, late, boxes = relaxation.gains, relaxation.late, len(low)
    spread = float(gains.max() - gains.min()) + 1e-9

    def value(of: Floats, total: Floats, tail: Floats) -> Floats:
        weight = of - total[:, None] - tail[:, None] * tail_y
        return np.asarray(
            total + tail * late + relaxation.gpus * relaxation.per_gpu(np.maximum(weight * low, weight * high))
        )

    def least_over_total(tail: Floats) -> Floats:
        reach = 4.0 * spread + tail
        return _least(lambda total: value(gains, total, tail), gains.min() - reach, gains.max() + reach)

    none, one = np.zeros(boxes), np.ones(boxes)
    found = np.minimum(least_over_total(none), _least(least_over_total, none, none + 20.0 * spread))
    # With nothing to gain a dual below 0 says that no shares meet the limits.
    nothing = np.zeros_like(gains)
    empty = np.minimum(value(nothing, one, none), value(nothing, -one, none))
    empty = np.minimum(empty, _least(lambda total: value(nothing, total, one), -1.1 * one, 0.1 * one))
    return np.where(empty < -1e-9, -math.inf, found + relaxation.problem.offset + 1e-9)


def _least(function: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Return the least value met of convex functions [b], by golden sections between `low` and `high`."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    bounds = np.minimum(at_left, at_right)
    for _ in range(_SECTIONS):
        go = at_left < at_right
        low, high = np.where(go, low, left), np.where(go, right, high)
        probe = np.where(go, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_probe = function(probe)
        left, right = np.where(go, probe, right), np.where(go, left, probe)
        at_left, at_right = np.where(go, at_probe, at_right), np.where(go, at_left, at_probe)
        bounds = np.minimum(bounds, at_probe)
    return bounds


# --- with HiGHS -------------------------------------------------------------------------------------------------------


class _Branching:
    """Branch and bound over boxes.  Variables of the programs: workers n and shares y of each group, GPUs z of each
    partition."""

    def __init__(self, relaxation: Relaxation, solver: Any, incumbent: float, stop: Callable[[], bool]) -> None:
        self.relaxation, self.solver, self.stop = relaxation, solver, stop
        self.problem = relaxation.problem
        self.best = incumbent
        groups, (rows, slices) = len(relaxation.groups), relaxation.table.shape
        self.groups, self.parts = groups, rows
        sums = np.zeros((2 + slices, 2 * groups + rows))
        sums[0, groups : 2 * groups] = 1.0
        sums[1, 2 * groups :] = 1.0
        sums[2 + relaxation.slice_of, np.arange(groups)] = 1.0
        sums[2:, 2 * groups :] = -relaxation.table.T
        self.sums = sums
        self.sums_to = np.concatenate([[1.0, float(relaxation.gpus)], np.zeros(slices)])
        self.cost = np.zeros(2 * groups + rows)
        self.cost[groups : 2 * groups] = -relaxation.gains
        self.starts: list[Counts] = []
        self.boxes = 0

    def run(self) -> Bound:
        method = "branch and bound (HiGHS)" if self.problem.model == "mf" else "integer program (HiGHS)"
        order = itertools.count()
        waiting: list[tuple[float, int, Box]] = [(-math.inf, next(order), self.relaxation.root())]
        settled = -math.inf
        while waiting:
            highest, _, box = waiting[0]
            target = self.best + _tolerance(self.problem, self.best)
            if -highest <= target or self.boxes >= _MOST_BOXES or self.stop():
                break
            heapq.heappop(waiting)
            self.boxes += 1
            value, parts = self._inspect(box, -highest)
            if value <= target or not parts:
                settled = max(settled, value)
                continue
            for part in parts:
                heapq.heappush(waiting, (-value, next(order), part))
        left = max((-item[0] for item in waiting), default=-math.inf)
        if left == math.inf:  # stopped before anything was solved
            limits = self.relaxation.limits(self.relaxation.root())
            total = Multipliers(total=float(self.relaxation.gains.max()))
            left = self.relaxation.dual(self.relaxation.root(), limits, total)
        return Bound(max(self.best, settled, left), method, self.boxes, self.starts)

    def _inspect(self, box: Box, parent: float) -> tuple[float, list[Box]]:
        """Return the bound in `box`, and the parts to cut it into (none: it is as good as it gets)."""
        limits = self.relaxation.limits(box)
        matrix, most = self._rows(box, limits)
        answer = self.solver.linprog(
            self.cost, A_ub=matrix, b_ub=most, A_eq=self.sums, b_eq=self.sums_to, bounds=(0, None), method="highs"
        )
        if answer.status == 2:
            return -math.inf, []
        if answer.status != 0:
            return parent, _halves(box, "used")
        value = min(parent, self.relaxation.dual(box, limits, self._multipliers(answer)))
        point = np.maximum(answer.x[: self.groups], 0.0)
        if value > self.best + _tolerance(self.problem, self.best) and self._whole(box):
            value, whole = self._integer(box, limits, matrix, most, value)
            if value == -math.inf:
                return value, []
            point = point if whole is None else whole
        return value, self._cuts(box, value, point)

    def _rows(self, box: Box, limits: Limits) -> tuple[Floats, Floats]:
        groups, late = self.groups, self.relaxation.late
        unit, none = np.eye(groups), np.zeros((groups, self.parts))
        speed, flat = 1.0 / self.relaxation.service, np.ones(groups)
        pad = np.zeros(self.parts)
        gone = np.zeros(groups)
        rows = [
            np.hstack([-np.diag(limits.high), unit, none]),
            np.hstack([np.diag(limits.low), -unit, none]),
            np.concatenate([gone, limits.tail_y, pad])[None, :],
            np.concatenate([limits.part_n, limits.part_y, pad])[None, :],
            np.concatenate([-speed, gone, pad])[None, :] / self.relaxation.rate,
            np.concatenate([speed, gone, pad])[None, :] / self.relaxation.rate,
            np.concatenate([-flat, gone, pad])[None, :],
            np.concatenate([flat, gone, pad])[None, :],
        ]
        rate = self.relaxation.rate
        sides = [late, late, -box.capacity[0] / rate, box.capacity[1] / rate, -box.workers[0], box.workers[1]]
        return np.vstack(rows), np.concatenate([np.zeros(2 * groups), sides])

    def _multipliers(self, answer: Any) -> Multipliers:
        of = np.maximum(-np.asarray(answer.ineqlin.marginals)[2 * self.groups :], 0.0).tolist()
        rate = self.relaxation.rate
        return Multipliers(
            total=-float(answer.eqlin.marginals[0]),
            tail=of[0],
            part=of[1],
            capacity=(of[2] / rate, of[3] / rate),
            workers=(of[4], of[5]),
        )

    def _whole(self, box: Box) -> bool:
        if self.relaxation.gpus > _INTEGER_GPUS:
            return False
        return self.problem.model == "pf" or box.used[1] - box.used[0] < _INTEGER_WIDTH

    def _integer(
        self, box: Box, limits: Limits, matrix: Floats, most: Floats, value: float
    ) -> tuple[float, Floats | None]:
        """Return the bound with whole workers and GPUs, and the workers [groups] of the program's best answer."""
        groups = self.groups
        kinds = np.ones(len(self.cost))
        kinds[groups : 2 * groups] = 0.0
        constraint = self.solver.LinearConstraint
        answer = self.solver.milp(
            self.cost,
            integrality=kinds,
            constraints=[constraint(matrix, -np.inf, most), constraint(self.sums, self.sums_to, self.sums_to)],
            options={"time_limit": _INTEGER_S, "mip_rel_gap": 0.0},
        )
        if answer.status == 2:
            return -math.inf, None
        below = getattr(answer, "mip_dual_bound", None)
        if below is not None and math.isfinite(below):
            value = min(value, self.problem.offset - float(below) + _INTEGER_MARGIN)
        if answer.x is None:
            return value, None
        whole = np.round(answer.x[:groups])
        counts = np.zeros(len(self.problem.groups), dtype=np.int64)
        counts[self.relaxation.groups] = whole.astype(np.int64)
        self._start(counts)
        return value, whole

    def _start(self, counts: Counts) -> None:
        if self.problem.model == "pf" and counts.sum() > exact.MOST_WORKERS:
            self.starts.append(counts)
            return
        found, f = exact.best(self.problem, counts[None, :], self.best)
        if found is not None:
            self.best = f
            self.starts.append(counts)

    def _cuts(self, box: Box, value: float, point: Floats) -> list[Box]:
        """Return the parts of `box` whose relaxations are closest to the true value at `point`."""
        relaxation = self.relaxation
        if self.problem.model == "pf":
            return []
        service, rate = relaxation.service, relaxation.rate
        capacity, workers = float((point / service).sum()), float(point.sum())
        counts = np.zeros((1, len(self.problem.groups)))
        counts[0, relaxation.groups] = point
        claimed = value
        if capacity <= rate * (1.0 + 1e-12):
            return _halves(box, "capacity")
        idle = exact.mean_field(rate, self.problem.service_s, counts, np.ones(1, dtype=np.bool_))[0][relaxation.groups]
        used = _workers_used(relaxation, point)
        true = self.problem.offset + float(idle @ relaxation.gains)
        lost_shares = max(0.0, claimed - true)
        late = self._tail(point, idle, capacity, workers) - relaxation.late
        if late <= 1e-12 and lost_shares <= 1e-12:
            return _halves(box, "used")
        rho = rate / capacity
        few, many = math.floor(box.workers[0]), math.ceil(box.workers[1])
        now = max(1, round(workers))
        by_workers = erlang_c(few, rho) - erlang_c(many, rho)
        by_capacity = erlang_c(now, min(1.0, rate / box.capacity[0])) - erlang_c(now, rate / box.capacity[1])
        scale = self.problem.scale(self.best) if math.isfinite(self.best) else 1.0
        if late <= 1e-12 or lost_shares / scale > max(by_workers, by_capacity):
            return _at(box, "used", used)
        widest = max((by_capacity, "capacity"), (by_workers, "workers"), (box.used[1] - box.used[0], "used"))[1]
        return _at(box, widest, {"capacity": capacity, "workers": workers, "used": used}[widest])

    def _tail(self, point: Floats, idle: Floats, capacity: float, workers: float) -> float:
        relaxation = self.relaxation
        p_wait = erlang_c(max(1, round(workers)), min(1.0, relaxation.rate / capacity))
        busy = point / relaxation.service / capacity
        drain = 2.0 * (capacity - relaxation.rate) / (1.0 + float(busy @ relaxation.cv**2))
        waited = np.array(
            [
                exact.late_after_wait(s, v, self.problem.sla_s, drain)
                for s, v in zip(relaxation.service, relaxation.cv, strict=True)
            ]
        )
        return float((1.0 - p_wait) * (idle @ relaxation.direct) + p_wait * (busy @ waited))


def _workers_used(relaxation: Relaxation, point: Floats) -> float:
    """Return the reference service's utilisation at a configuration, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        busy = middle / ((1.0 - middle) * relaxation.reference_s + middle * relaxation.service)
        low, high = (middle, high) if float(point @ busy) < relaxation.rate else (low, middle)
    return 0.5 * (low + high)


def _halves(box: Box, side: str) -> list[Box]:
    low, high = getattr(box, side)
    return _at(box, side, 0.5 * (low + high))


def _at(box: Box, side: str, at: float) -> list[Box]:
    """Return `box` cut near `at`, not too near an end of the side; whole numbers of workers fall into one part only."""
    low, high = getattr(box, side)
    width = high - low
    if width <= 1e-9 * max(1.0, abs(high)):
        return []
    at = min(max(at, low + 0.2 * width), high - 0.2 * width)
    ends = (at, at)
    if side == "workers":
        ends = (float(math.floor(at)), float(math.floor(at) + 1))
        if not (low <= ends[0] and ends[1] <= high):
            return []
    whole = {name: getattr(box, name) for name in Box.__dataclass_fields__}
    return [Box(**{**whole, side: (low, ends[0])}), Box(**{**whole, side: (ends[1], high)})]
