"""What no configuration can exceed: linear relaxations of a problem over boxes, and their duals.

f is linear in the shares y_k, so an upper bound needs a set that holds all feasible shares and is easy to optimise
over.  Let n_k be the workers of a group and z_p the GPUs in each partition; the slices of the n are those of the z, and
the z add up to N.

**Mean field.**  y_k = n_k h_k(x) with h_k(x) = x / ((1 + x S_k) rate), and x is such that the y add up to 1.  In a box
of x, h_k lies between its ends (it rises with x), so that n_k h_k(low) <= y_k <= n_k h_k(high).  The smaller the box,
the less is given away.  x is represented by the utilisation u = x R / (1 + x R) of a reference service R, from 0 to 1.

**Product form.**  No router keeps a worker busier than always: y_k <= n_k / (rate S_k).

**The tail.**  With p_k = P(service > SLA) and q_k >= p_k the same after a wait, the tail is
sum (1 - P_wait) idle_k p_k + P_wait busy_k q_k.  In the product form shares are the mix of both, so sum y_k p_k is a
lower bound.  In the mean field y = idle, and two lower bounds are linear if P_wait lies in [P_low, P_high]:

 1. busy_k >= r_k y_k with r_k = (1/S_k + x) / (1/S_min + x) <= 1, which rises with x;
    hence sum y_k p_k (1 - P_high (1 - r_k(x_low)));
 2. (1 - P_high) sum y_k p_k + P_low sum q_k n_k / (S_k mu_high), with q_k at the fastest drain of waits,
    2 (mu_high - rate) / (1 + cv_min^2): a wait that ends later makes a request later.

Erlang's C(c, rho c) falls with c and rises with rho = rate / mu, so boxes of c and of the capacity mu give P_low and
P_high.  Boxes therefore have three sides: utilisation, capacity, workers.

**The dual.**  With multipliers for "the shares add up to 1", the two tails and the sides mu and c, what remains splits
by slice and by GPU: each slice takes its best group, each GPU its best partition.  Any multipliers give a valid bound,
evaluated here in plain sums, so that a solver's tolerances can make a bound worse but never wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clover.research.problem.exact import SLACK, late_after_wait, late_service
from clover.research.problem.file import Counts, Floats, ProblemFile

MARGIN = 1e-9
"""Boxes and limits are widened by this part, for rounding."""


@dataclass(frozen=True)
class Box:
    """Ranges of the utilisation of the reference service, of capacity (1/s) and of the number of workers."""

    used: tuple[float, float]
    capacity: tuple[float, float]
    workers: tuple[float, float]


@dataclass(frozen=True)
class Limits:
    """A box's linear limits: `low` n <= y <= `high` n; sum `tail_y` y <= late; sum `part_y` y + `part_n` n <= late."""

    low: Floats
    high: Floats
    tail_y: Floats
    part_y: Floats
    part_n: Floats


@dataclass(frozen=True)
class Multipliers:
    """Of the dual: of the shares' sum (any sign), of the two tails, and of the lower and upper sides of capacity and
    workers (at least 0)."""

    total: float
    tail: float = 0.0
    part: float = 0.0
    capacity: tuple[float, float] = (0.0, 0.0)
    workers: tuple[float, float] = (0.0, 0.0)


class Relaxation:
    """The parts of a problem that every box shares.  Groups are those that fit a slice of a usable partition, sorted by
    slice: `groups` are their places in the problem."""

    def __init__(self, problem: ProblemFile) -> None:
        self.problem = problem
        table = problem.usable
        used = np.flatnonzero(table.sum(axis=0)) if len(table) else np.zeros(0, dtype=np.int64)
        fitting = [k for s in used for k in np.flatnonzero((problem.slice_of == s) & problem.fits)]
        self.groups: Counts = np.array(fitting, dtype=np.int64)
        self.table: Counts = table[:, used]
        self.slice_of: Counts = np.searchsorted(used, problem.slice_of[self.groups])
        self._starts = np.searchsorted(self.slice_of, np.arange(len(used)))
        self.gains: Floats = problem.gains[self.groups]
        self.service: Floats = problem.service_s[self.groups]
        self.cv: Floats = problem.cv[self.groups]
        self.rate, self.gpus = problem.arrival_rate, problem.n_gpus
        self.late = (1.0 - problem.quantile + SLACK) * (1.0 + MARGIN)
        pairs = zip(self.service, self.cv, strict=True)
        self.direct: Floats = np.array([late_service(s, v, problem.sla_s) for s, v in pairs])

    @cached_property
    def reference_s(self) -> float:
        """The service whose utilisation stands for x."""
        return float(np.exp(np.log(self.service).mean()))

    def per_gpu(self, worth: Floats) -> Floats:
        """Return the most that a GPU can be worth [b], if a worker of each group is worth `worth` [b, groups]."""
        slices = np.maximum.reduceat(worth, self._starts, axis=1)
        return np.asarray((slices @ self.table.T).max(axis=1))

    @cached_property
    def most_capacity(self) -> float:
        """No configuration serves more requests a second."""
        return self.gpus * float(self.per_gpu(1.0 / self.service[None, :])[0]) * (1.0 + MARGIN)

    def root(self) -> Box:
        """Return the box of all configurations that are not overloaded."""
        sizes = self.table.sum(axis=1) * self.gpus
        least = self.used(self.rate / float(sizes.max()))
        workers = float(sizes.min()), float(sizes.max())
        return Box((least * (1.0 - MARGIN), 1.0), (self.rate, self.most_capacity), workers)

    def used(self, x: float) -> float:
        """Return the reference service's utilisation at x."""
        return x * self.reference_s / (1.0 + x * self.reference_s)

    def _pace(self, used: Floats) -> Floats:
        """Return h_k at the given utilisations [b, groups], widened by nothing."""
        left = 1.0 - used
        return np.asarray(used / (left * self.reference_s + used * self.service) / self.rate)

    def shares_within(self, low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
        """Return, for boxes of utilisation [b], the least and largest share of one worker and r_k at the lower end,
        each [b, groups]."""
        x = low[:, None] / ((1.0 - np.minimum(low, 1.0 - 1e-15))[:, None] * self.reference_s)
        slowed = (1.0 / self.service + x) / (1.0 / self.service.min() + x)
        return (
            self._pace(low[:, None]) * (1.0 - MARGIN),
            self._pace(high[:, None]) * (1.0 + MARGIN),
            slowed * (1.0 - MARGIN),
        )

    def limits(self, box: Box) -> Limits:
        """Return the linear limits that hold in `box`."""
        nothing = np.zeros_like(self.service)
        if self.problem.model == "pf":
            high = (1.0 + MARGIN) / (self.rate * self.service)
            return Limits(nothing, high, self.direct, nothing, nothing)
        low, high, slowed = self.shares_within(np.array([box.used[0]]), np.array([box.used[1]]))
        fewest, most = box.workers
        p_low = erlang_c(math.ceil(most), min(1.0, self.rate / box.capacity[1])) * (1.0 - MARGIN)
        p_high = min(1.0, erlang_c(math.floor(fewest), min(1.0, self.rate / box.capacity[0])) * (1.0 + MARGIN))
        drain = 2.0 * max(0.0, box.capacity[1] * (1.0 + MARGIN) - self.rate) / (1.0 + float(self.cv.min()) ** 2)
        sla_s = self.problem.sla_s
        waited = np.array([late_after_wait(s, v, sla_s, drain) for s, v in zip(self.service, self.cv, strict=True)])
        return Limits(
            low=low[0],
            high=high[0],
            tail_y=self.direct * (1.0 - p_high * (1.0 - slowed[0])),
            part_y=self.direct * (1.0 - p_high),
            part_n=p_low * waited / (self.service * box.capacity[1]),
        )

    def dual(self, box: Box, limits: Limits, by: Multipliers) -> float:
        """Return a bound of f in `box`, valid for any multipliers."""
        weight = self.gains - by.total - by.tail * limits.tail_y - by.part * limits.part_y
        worth = np.maximum(weight * limits.low, weight * limits.high) - by.part * limits.part_n
        worth = worth + (by.capacity[0] - by.capacity[1]) / self.service + (by.workers[0] - by.workers[1])
        fixed = by.total + (by.tail + by.part) * self.late
        fixed += by.capacity[1] * box.capacity[1] - by.capacity[0] * box.capacity[0]
        fixed += by.workers[1] * box.workers[1] - by.workers[0] * box.workers[0]
        value = self.problem.offset + fixed + self.gpus * float(self.per_gpu(worth[None, :])[0])
        return value + 1e-12 * (abs(fixed) + abs(value) + 1.0)


def erlang_c(workers: int, rho: float) -> float:
    """Return the probability to wait with `workers` at utilisation `rho`."""
    if rho >= 1.0 or workers < 1:
        return 1.0
    load = rho * workers
    inverse = term = 1.0  # 1/B = sum of prod (c - j) / load
    for j in range(workers):
        term *= (workers - j) / load
        inverse += term
        if term < 1e-17 * inverse or inverse > 1e300:
            break
    return 1.0 / (1.0 + (1.0 - rho) * (inverse - 1.0))
