"""Twin of `clover._native.anneal`: the same moves from the same random numbers, and every configuration
evaluated from scratch, as `queueing.evaluate` does it.

`solve` takes the same budget of evaluations; it has no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clover._native.arguments import AnnealArguments, partition_table
from tests.reference import queueing
from tests.reference.annealing import (
    LOOK,
    Cooling,
    Walk,
    first_levels,
    first_temperature,
    members_of,
    whole_numbers,
)

MAX_SLICES = 16
MANY = 64
TOLERANCE = 1e-9
COLD_ALONE = 0.03
PENALTY = 0.3
OVERLOAD = -1e6

A100 = {
    (0, 0, 0, 0, 1), (0, 0, 1, 1, 0), (0, 0, 2, 0, 0), (0, 2, 1, 0, 0), (1, 1, 0, 1, 0), (1, 1, 1, 0, 0),
    (1, 3, 0, 0, 0), (2, 1, 1, 0, 0), (3, 0, 0, 1, 0), (3, 0, 1, 0, 0), (3, 2, 0, 0, 0), (4, 0, 1, 0, 0),
    (5, 1, 0, 0, 0), (7, 0, 0, 0, 0),
}  # fmt: skip


class Solution(NamedTuple):
    counts: NDArray[np.int64]
    f: float
    feasible: bool
    evaluations: int
    proposals: int
    accepted: int
    trace: NDArray[np.float64]


# --- tiling ---


def _tiles_a100(slices: list[int], gpus: int) -> bool:
    m1, m2, m3, m4, m7 = slices
    halved = gpus - m7
    open_ = halved - m4
    wide = 4 * open_ + 3 * halved - 3 * m3 - (m1 + 2 * m2)
    return (
        min(slices) >= 0
        and open_ >= 0
        and max(0, m3 - halved) <= wide <= min(open_, m3)
        and m2 <= 2 * (open_ - wide) + halved - (m3 - wide)
    )


def _table(partitions: Any) -> list[tuple[int, ...]]:
    rows = [tuple(row) for row in partition_table(partitions).tolist()]
    if len(rows[0]) > MAX_SLICES:
        raise ValueError("partitions")
    return rows


def _is_a100(rows: list[tuple[int, ...]]) -> bool:
    return set(rows) == A100


def decompose(partitions: Any, slices: Any, n_gpus: int) -> NDArray[np.int64] | None:
    """Try every number of every partition, with no test but that nothing becomes negative."""
    rows, wanted = _table(partitions), [int(n) for n in slices]
    if len(wanted) != len(rows[0]):
        raise ValueError("slices")

    def fill(i: int, gpus: int, left: list[int]) -> list[int] | None:
        if min(left) < 0 or gpus < 0:
            return None
        if i == len(rows):
            return [] if gpus == 0 and not any(left) else None
        for number in range(gpus, -1, -1):
            rest = fill(i + 1, gpus - number, [n - number * taken for n, taken in zip(left, rows[i], strict=True)])
            if rest is not None:
                return [number, *rest]
        return None

    found = fill(0, int(n_gpus), wanted)
    return None if found is None else np.array(found, np.int64)


def feasible(partitions: Any, slices: Any, n_gpus: int) -> bool:
    return decompose(partitions, slices, n_gpus) is not None


# --- the problem ---


class Problem:
    def __init__(self, *columns: Any, **more: Any) -> None:
        given = AnnealArguments(*columns, **more)
        self.rows = sorted(_table(given.partitions), key=lambda row: tuple(-n for n in reversed(row)))
        self.closed_form = _is_a100(self.rows)
        self.slices = len(self.rows[0])
        self.n_gpus, self.rate, self.model = given.n_gpus, float(given.rate), given.model
        self.service_s, self.cv, self.accuracy = given.service_s.tolist(), given.cv.tolist(), given.accuracy.tolist()
        self.groups = len(self.service_s)
        self.fits, self.slice_of = given.fits.tolist(), given.slice_of.tolist()
        self.sla_s, self.miss = given.sla_s, 1.0 - given.quantile
        self.accuracy_floor, self.utilisation_limit = given.accuracy_floor, given.utilisation_limit
        self.switches, self.running, self.switching = given.switches, given.running.tolist(), given.switching.tolist()
        self.rate_of = [1.0 / s for s in self.service_s]
        carbon = given.lam * given.intensity / (given.base_energy_j * given.reference_intensity)
        self.fixed: float = given.lam - carbon * given.idle_w * given.n_gpus / given.rate - (1.0 - given.lam)
        weight = (1.0 - given.lam) / given.base_accuracy
        joules = given.energy_j.tolist()
        self.worth: list[float] = [weight * a - carbon * e for a, e in zip(self.accuracy, joules, strict=True)]
        self.members = members_of(self.slice_of, self.fits, self.slices)
        self.part = [row for row in self.rows if all(self.members[s] for s in range(self.slices) if row[s])]
        if not self.part or not any(self.fits):
            raise ValueError("no partition")
        worths = [w for w, fit in zip(self.worth, self.fits, strict=True) if fit]
        self.spread = max(max(worths) - min(worths), 1e-6)
        self.delta = sorted(
            {tuple(y - x for x, y in zip(a, b, strict=True)) for a in self.part for b in self.part if a != b}
        )

    def slices_of(self, counts: Sequence[int]) -> list[int]:
        slices = [0] * self.slices
        for j, n in enumerate(counts):
            slices[self.slice_of[j]] += n
        return slices

    def checked(self, counts: Any) -> list[int]:
        given = whole_numbers(counts, self.groups)
        if any(n for n, fit in zip(given, self.fits, strict=True) if not fit):
            raise ValueError("counts have a variant where it does not fit")
        return given

    def tiles(self, counts: Any) -> bool:
        slices = self.slices_of(self.checked(counts))
        if self.closed_form:
            return _tiles_a100(slices, self.n_gpus)
        return feasible(self.rows, slices, self.n_gpus)

    def score(self, counts: Any) -> tuple[bool, float]:
        given = self.checked(counts)
        if not any(given):
            return False, math.nan
        search = Search(self, 0)
        search.stand_at(given, [])
        value = search.score()
        if value <= OVERLOAD / 2.0:
            return False, math.nan
        return search.good and self.tiles(given), search.value


# --- the search ---


class Search(Walk):
    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem.members, problem.slice_of, seed)
        self.p = problem
        self.slices: list[int] = []
        self.trial_slices: list[int] = []
        self.gap_s = self.trial_gap_s = 0.0
        self.good = False
        self.value = 0.0
        self.best: list[float] = []
        self.best_score = self.best_value = -1e300
        self.best_good = False
        self.trace: list[tuple[float, float]] = []

    def stand_at(self, counts: Sequence[int], used: Sequence[int]) -> None:
        self.slices = self.p.slices_of(counts)
        super().stand_at(counts, used)

    def copy_trial(self) -> None:
        self.trial_slices = list(self.slices)
        super().copy_trial()

    def swap_trial(self) -> None:
        super().swap_trial()
        self.slices, self.gap_s = self.trial_slices, self.trial_gap_s

    def score(self) -> float:
        p, trial = self.p, self.trial
        system = queueing.System(p.service_s, p.cv, trial, p.rate, p.model, self.gap_s)
        self.tried = system.active
        self.good = False
        if not p.rate < system.capacity * p.utilisation_limit:
            return OVERLOAD * (p.rate / system.capacity)
        self.evaluations += 1
        self.trial_gap_s = system.gap_s
        shares, tail = system.shares(), system.tail(p.sla_s)
        value, right = p.fixed, 0.0
        for j in self.tried:
            value += shares[j] * p.worth[j]
            right += shares[j] * p.accuracy[j]
        if p.switches:
            for j in self.tried:
                more = trial[j] - p.running[j]
                if more > 0.0:
                    value -= more * p.switching[j]
        self.value, self.good, lost = value, True, 0.0
        if tail > p.miss + TOLERANCE:
            self.good = False
            lost = math.log(tail / p.miss)
        if right < p.accuracy_floor:
            self.good = False
            lost += 100.0 * (p.accuracy_floor - right) / p.accuracy_floor
        return value - PENALTY * p.spread * lost

    def move(self) -> bool:
        return self.change_variant() if self.draw(4) == 0 else self.change_partition()

    def change_partition(self) -> bool:
        p = self.p
        parts = len(p.part)
        if parts < 2:
            return False
        if p.closed_form:
            delta = p.delta[self.draw(len(p.delta))]
            gpus = self.step_size(0)
            wanted = [n + gpus * change for n, change in zip(self.trial_slices, delta, strict=True)]
            if not _tiles_a100(wanted, p.n_gpus):
                return False
        else:
            a = self.draw_partition()
            b = (a + 1 + self.draw(parts - 1)) % parts
            gpus = min(self.step_size(0), self.trial_used[a])
            self.trial_used[a] -= gpus
            self.trial_used[b] += gpus
            wanted = [n + gpus * (y - x) for n, x, y in zip(self.trial_slices, p.part[a], p.part[b], strict=True)]
        for s in range(p.slices):
            self.change_slices(s, wanted[s] - self.trial_slices[s])
        self.trial_slices = wanted
        return True

    def remember(self, score: float) -> None:
        if self.best_good and not (self.good and self.value > self.best_value):
            return
        if not self.good and score <= self.best_score:
            return
        self.best, self.best_score, self.best_value = list(self.trial), score, self.value
        if self.good:
            self.best_good = True
            self.trace.append((float(self.evaluations), self.value))

    def run(self, score: float, first: int, last: int) -> None:
        gpus = float(self.p.n_gpus)
        hot, cold = first_temperature(self.p.n_gpus), COLD_ALONE / (gpus * math.sqrt(gpus))
        cooling = Cooling(self, hot, cold, self.p.spread, (first, last))
        heat = 0.0
        while True:
            if cooling.moves % LOOK == 0:
                spent = cooling.progress()
                if spent >= 1.0:
                    break
                heat = cooling.cool(spent)
            cooling.moves += 1
            if not self.propose():
                continue
            now = self.score()
            gain = now - score
            if gain >= 0.0 or (self.good and self.value > self.best_value):
                self.remember(now)
            if self.accepts(gain, heat):
                self.swap_trial()
                self.accepted += 1
                score = now
        cooling.end()


def _homogeneous(problem: Problem) -> list[tuple[list[int], list[int]]]:
    found = []
    ordinal = [problem.slice_of[:j].count(problem.slice_of[j]) for j in range(problem.groups)]
    for i, row in enumerate(problem.part):
        used = [problem.n_gpus if other == i else 0 for other in range(len(problem.part))]
        kinds = [s for s in range(problem.slices) if row[s]]
        choices = [[max(problem.members[s], key=problem.rate_of.__getitem__) for s in kinds]]
        for rank in range(max(ordinal) + 1):
            chosen = [j for s in kinds for j in problem.members[s] if ordinal[j] == rank]
            if len(chosen) == len(kinds) and chosen not in choices:
                choices.append(chosen)
        for chosen in choices:
            counts = [0] * problem.groups
            for s, j in zip(kinds, chosen, strict=True):
                counts[j] = row[s] * problem.n_gpus
            found.append((counts, used))
    return found


def solve(
    problem: Problem,
    seed: int,
    time_limit_s: float,
    evaluations: int = 0,
    start: Any = None,
    restarts: int = 1,
    *,
    cpu_time: bool = False,
) -> Solution:
    if not time_limit_s >= 0.0 or evaluations < 0 or restarts < 1:
        raise ValueError("time_limit_s, evaluations or restarts")
    if evaluations == 0:
        raise ValueError("the twin has no clock: it needs a number of evaluations")
    search = Search(problem, seed)
    candidates = _homogeneous(problem)
    if start is not None:
        given = problem.checked(start)
        if not problem.tiles(given):
            raise ValueError("the slices of start do not tile")
        found = None if problem.closed_form else decompose(problem.part, problem.slices_of(given), problem.n_gpus)
        candidates.append((given, [] if found is None else [int(n) for n in found]))
    top, origin = -1e300, candidates[0]
    for counts, used in candidates:
        search.stand_at(counts, used)
        score = search.score()
        search.remember(score)
        if score > top:
            top, origin = score, (counts, used)
    search.levels = first_levels(problem.n_gpus)
    if problem.n_gpus >= MANY:
        search.levels += 2
    scanned = search.evaluations
    budget = evaluations - scanned
    for turn in range(restarts):
        search.stand_at(*origin)
        score = search.score()
        search.swap_trial()
        if budget > 0:
            search.run(score, scanned + budget * turn // restarts, scanned + budget * (turn + 1) // restarts)
    return Solution(
        np.array(search.best).astype(np.int64),
        search.best_value if search.best_good else math.nan,
        search.best_good,
        search.evaluations,
        search.proposals,
        search.accepted,
        np.array(search.trace).reshape(-1, 2),
    )
