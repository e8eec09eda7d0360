"""Twin of `clover._native.anneal`: the same moves from the same random numbers, and every configuration
evaluated from scratch, as `queueing.evaluate` does it.

`solve` takes the same budget of evaluations; it has no clock.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.reference import queueing
from tests.reference.random import Random

LOOK = 64
MANY = 64
PATIENCE = 64
TOLERANCE = 1e-9
HOT = 0.01
HOT_ALONE = 0.6
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
    rows = [tuple(int(n) for n in row) for row in partitions]
    kinds = {len(row) for row in rows}
    if len(kinds) != 1 or not 1 <= min(kinds) <= 16 or any(n < 0 for row in rows for n in row):
        raise ValueError("partitions")
    return rows


def _is_a100(rows: list[tuple[int, ...]]) -> bool:
    return set(rows) == A100


def decompose(partitions: Any, slices: Any, n_gpus: int) -> NDArray[np.int64] | None:
    """Tries every number of every partition, with no test but that nothing becomes negative."""
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
    def __init__(
        self,
        n_gpus: int,
        rate: float,
        service_s: Any,
        cv: Any,
        energy_j: Any,
        accuracy: Any,
        fits: Any,
        slice_of: Any,
        partitions: Any,
        model: str,
        sla_s: float,
        quantile: float,
        lam: float,
        intensity: float,
        reference_intensity: float,
        idle_w: float,
        base_energy_j: float,
        base_accuracy: float,
        *,
        running: Any = None,
        switching: Any = None,
        accuracy_floor: float = 0.0,
        utilisation_limit: float = 1.0,
    ) -> None:
        self.rows = sorted(_table(partitions), key=lambda row: tuple(-n for n in reversed(row)))
        self.closed_form = _is_a100(self.rows)
        self.slices = len(self.rows[0])
        self.service_s = [float(s) for s in service_s]
        self.groups = len(self.service_s)
        variation = [float(x) for x in cv]
        joules = [float(e) for e in energy_j]
        self.accuracy = [float(a) for a in accuracy]
        self.fits = [bool(fit) for fit in fits]
        self.slice_of = [int(s) for s in slice_of]
        columns: tuple[list[Any], ...] = (variation, joules, self.accuracy, self.fits, self.slice_of)
        if any(len(column) != self.groups for column in columns):
            raise ValueError("one number a group")
        if not all(map(math.isfinite, self.service_s + variation + joules + self.accuracy)):
            raise ValueError("finite")
        if self.groups == 0 or not all(0 <= s < self.slices for s in self.slice_of):
            raise ValueError("slice_of")
        if min(self.service_s) <= 0.0 or min(variation) < 0.0 or model not in ("pf", "mf"):
            raise ValueError("service_s, cv or model")
        positive = (rate, sla_s, base_energy_j, base_accuracy, reference_intensity)
        if not 1 <= n_gpus <= 1_000_000 or not all(x > 0.0 and math.isfinite(x) for x in positive):
            raise ValueError("not positive")
        if not 0.0 < quantile < 1.0 or not 0.0 <= lam <= 1.0 or not 0.0 < utilisation_limit <= 1.0:
            raise ValueError("not between 0 and 1")
        if not all(x >= 0.0 and math.isfinite(x) for x in (intensity, idle_w)):
            raise ValueError("intensity or idle_w")
        if (running is None) != (switching is None):
            raise ValueError("running and switching")
        self.n_gpus, self.rate, self.model = n_gpus, float(rate), model
        self.miss = 1.0 - quantile
        self.accuracy_floor, self.utilisation_limit = accuracy_floor, utilisation_limit
        self.rate_of = [1.0 / s for s in self.service_s]
        self.cv, self.sla_s = variation, sla_s
        carbon = lam * intensity / (base_energy_j * reference_intensity)
        self.fixed = lam - carbon * idle_w * n_gpus / rate - (1.0 - lam)
        weight = (1.0 - lam) / base_accuracy
        self.worth = [weight * a - carbon * e for a, e in zip(self.accuracy, joules, strict=True)]
        worths = [w for w, fit in zip(self.worth, self.fits, strict=True) if fit]
        self.switches = running is not None
        self.running = [float(n) for n in running] if running is not None else []
        self.switching = [float(x) for x in switching] if switching is not None else []
        if self.switches and not len(self.running) == len(self.switching) == self.groups:
            raise ValueError("one number a group")
        self.members = [
            [j for j in range(self.groups) if self.slice_of[j] == s and self.fits[j]] for s in range(self.slices)
        ]
        self.part = [row for row in self.rows if all(self.members[s] for s in range(self.slices) if row[s])]
        if not self.part:
            raise ValueError("no partition")
        self.spread = max(max(worths) - min(worths), 1e-6)
        self.delta = sorted(
            {tuple(y - x for x, y in zip(a, b, strict=True)) for a in self.part for b in self.part if a != b}
        )

    def slices_of(self, counts: list[int]) -> list[int]:
        slices = [0] * self.slices
        for j, n in enumerate(counts):
            slices[self.slice_of[j]] += n
        return slices

    def checked(self, counts: Any) -> list[int]:
        given = [int(n) for n in counts]
        if len(given) != self.groups or min(given) < 0:
            raise ValueError("counts")
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
        search.trial = [float(n) for n in given]
        value = search.score()
        if value <= OVERLOAD / 2.0:
            return False, math.nan
        return search.good and self.tiles(given), search.value


# --- the search ---


class Search:
    def __init__(self, problem: Problem, seed: int) -> None:
        self.p = problem
        self.random = Random(seed)
        self.below = self.random.below
        self.count: list[float] = []
        self.trial: list[float] = []
        self.slices: list[int] = []
        self.trial_slices: list[int] = []
        self.used: list[int] = []
        self.trial_used: list[int] = []
        self.active: list[int] = []
        self.tried: list[int] = []
        self.gap_s = self.trial_gap_s = 0.0
        self.levels = 1
        self.evaluations = self.proposals = self.accepted = 0
        self.good = False
        self.value = 0.0
        self.best: list[float] = []
        self.best_score = self.best_value = -1e300
        self.best_good = False
        self.trace: list[tuple[float, float]] = []

    def stand(self, counts: list[int], used: list[int]) -> None:
        self.count = [float(n) for n in counts]
        self.slices = self.p.slices_of(counts)
        self.used = list(used)
        self.copy()

    def copy(self) -> None:
        self.trial, self.trial_slices, self.trial_used = list(self.count), list(self.slices), list(self.used)

    def size(self, more: int) -> int:
        return 1 + self.below(1 << self.below(self.levels + more))

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

    def change_variant(self) -> bool:
        j = self.active[self.below(len(self.active))]
        members = self.p.members[self.p.slice_of[j]]
        if len(members) < 2:
            return False
        other = members[(members.index(j) + 1 + self.below(len(members) - 1)) % len(members)]
        moved = min(float(self.size(2)), self.trial[j])
        if moved == 0.0:
            return False
        self.trial[j] -= moved
        self.trial[other] += moved
        return True

    def change_partition(self) -> bool:
        p = self.p
        parts = len(p.part)
        if parts < 2:
            return False
        if p.closed_form:
            delta = p.delta[self.below(len(p.delta))]
            gpus = self.size(0)
            wanted = [n + gpus * change for n, change in zip(self.trial_slices, delta, strict=True)]
            if not _tiles_a100(wanted, p.n_gpus):
                return False
        else:
            a = self.below(parts)
            while not self.trial_used[a]:
                a = (a + 1) % parts
            b = (a + 1 + self.below(parts - 1)) % parts
            gpus = min(self.size(0), self.trial_used[a])
            self.trial_used[a] -= gpus
            self.trial_used[b] += gpus
            wanted = [n + gpus * (y - x) for n, x, y in zip(self.trial_slices, p.part[a], p.part[b], strict=True)]
        for s, members in enumerate(p.members):
            change = wanted[s] - self.trial_slices[s]
            while change < 0:
                j = self.in_use(members)
                taken = min(-change, int(self.trial[j]))
                self.trial[j] -= taken
                change += taken
            if change > 0:
                j = self.in_use(members) if self.below(2) else members[self.below(len(members))]
                self.trial[j] += change
        self.trial_slices = wanted
        return True

    def in_use(self, members: list[int]) -> int:
        at = self.below(len(members))
        for _ in members:
            if self.trial[members[at]] > 0.0:
                break
            at = (at + 1) % len(members)
        return members[at]

    def move(self) -> bool:
        return self.change_variant() if self.below(4) == 0 else self.change_partition()

    def propose(self) -> bool:
        self.copy()
        if not self.move():
            return False
        if self.below(2):
            self.move()
            if self.below(2):
                self.move()
        return True

    def accept(self) -> None:
        self.count, self.slices, self.used = self.trial, self.trial_slices, self.trial_used
        self.active, self.gap_s = self.tried, self.trial_gap_s

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
        spread = self.p.spread
        hot = max(HOT, HOT_ALONE / float(self.p.n_gpus))
        heat = hot * spread
        cold = COLD_ALONE / (float(self.p.n_gpus) * math.sqrt(float(self.p.n_gpus)))
        falling = math.log(cold / hot)
        moves, most = 0, self.levels
        while True:
            if moves % LOOK == 0:
                progress = (self.evaluations - first) / (last - first)
                progress = max(0.0, progress, moves / (float(PATIENCE) * (last - first)))
                if progress >= 1.0:
                    break
                heat = hot * spread * math.exp(falling * progress)
                self.levels = 1 + int((most - 1) * (1.0 - 0.75 * progress) + 0.5)
            moves += 1
            if not self.propose():
                continue
            tried = self.score()
            gain = tried - score
            if gain >= 0.0 or (self.good and self.value > self.best_value):
                self.remember(tried)
            if gain >= 0.0 or (gain > -40.0 * heat and math.exp(gain / heat) > self.random.uniform()):
                self.accept()
                self.accepted += 1
                score = tried
        self.proposals += moves
        self.levels = most


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
        search.stand(counts, used)
        score = search.score()
        search.remember(score)
        if score > top:
            top, origin = score, (counts, used)
    while 4 << search.levels <= problem.n_gpus:
        search.levels += 1
    if problem.n_gpus >= MANY:
        search.levels += 2
    scanned = search.evaluations
    budget = evaluations - scanned
    for turn in range(restarts):
        search.stand(*origin)
        score = search.score()
        search.accept()
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
