"""Twin of `clover._native.lanes`: the same moves from the same random numbers, lanes and shares in plain lists."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clover._native.arguments import LanesArguments
from tests.reference.annealing import (
    LOOK,
    Cooling,
    Walk,
    first_levels,
    first_temperature,
    members_of,
    whole_numbers,
)

MAX_LANES = 64
PASSES = 3
HALVINGS = 4
COLD = 1e-6
PENALTY = 3.0
FIRM = 33.0
EPSILON = 1e-9

Table = list[list[list[float]]]


class Found(NamedTuple):
    counts: NDArray[np.int64]
    used: NDArray[np.int64]
    value: float


class Solution(NamedTuple):
    found: list[Found]
    feasible: bool
    nearest: Found
    evaluations: int
    proposals: int


class Judged(NamedTuple):
    feasible: bool
    value: float
    shares: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    energy_j: NDArray[np.float64]


# --- the problem ---


class Problem:
    def __init__(self, **columns: Any) -> None:
        given = LanesArguments(**columns)
        self.part, self.devices, self.kind = given.partitions.tolist(), given.devices.tolist(), given.kind_of.tolist()
        self.idle_w, self.spare = given.idle_w.tolist(), given.spare.tolist()
        self.slices = len(self.part[0])
        self.capacity, self.slice_of, self.lane_of = (
            column.tolist() for column in (given.capacity, given.slice_of, given.lane_of)
        )
        self.groups = len(self.capacity)
        self.energy_j: Table = given.energy_j.tolist()
        self.late: Table = given.late.tolist()
        self.sizes, self.loads = len(self.energy_j[0]), len(self.energy_j[0][0]) - 1
        self.running, self.switching = given.running.tolist(), given.switching.tolist()
        self.family_of, self.accuracy, self.quality = (
            column.tolist() for column in (given.family_of, given.accuracy, given.quality)
        )
        self.lanes = len(self.accuracy)
        if self.lanes > MAX_LANES:
            raise ValueError("lanes")
        self.rate, self.peak, self.wake, self.floor, self.miss, self.limit, self.price = (
            column.tolist()
            for column in (given.rate, given.peak, given.wake, given.floor, given.miss, given.limit, given.price)
        )
        self.families = len(self.rate)
        self.least, self.watt = float(given.least), float(given.watt)
        self.own = [[v for v in range(self.lanes) if self.family_of[v] == f] for f in range(self.families)]
        self.members = members_of(self.slice_of, [True] * self.groups, self.slices)
        self.largest = max(self.devices)
        self.reach = []
        for own in self.own:
            values = [self.accuracy[v] for v in own]
            self.reach.append(max(max(values) - min(values), 1e-6))
        self.spread = max(self._range(), 1e-9)

    def _range(self) -> float:
        """Return what the gains of all families and the idle devices may differ by."""
        total = 0.0
        for f in range(self.families):
            gains = [
                self.quality[self.lane_of[j]] - self.price[f] * x
                for j in range(self.groups)
                if self.family_of[self.lane_of[j]] == f
                for row in self.energy_j[j]
                for x in row
            ]
            if gains:
                total += max(gains) - min(gains)
        for kind, number in enumerate(self.devices):
            watts = [w for w, k in zip(self.idle_w, self.kind, strict=True) if k == kind]
            total += self.watt * number * (max(watts) - min(watts))
        return total

    def checked(self, counts: Any, used: Any) -> tuple[list[int], list[int]]:
        given, cut = whole_numbers(counts, self.groups), whole_numbers(used, len(self.part))
        slices = [0] * self.slices
        for j, n in enumerate(given):
            slices[self.slice_of[j]] += n
        kinds = [0] * len(self.devices)
        for i, n in enumerate(cut):
            kinds[self.kind[i]] += n
        wanted = [sum(n * row[s] for n, row in zip(cut, self.part, strict=True)) for s in range(self.slices)]
        if kinds != self.devices or slices != wanted:
            raise ValueError("the slices of counts are not those of the devices")
        return given, cut

    def judge(self, counts: Any, used: Any) -> Judged:
        search = Search(self, 0, 1)
        search.stand_at(*self.checked(counts, used))
        search.score()
        accuracy, energy_j = np.zeros(self.families), np.zeros(self.families)
        for v, f in enumerate(self.family_of):
            accuracy[f] += search.share[v] * self.accuracy[v]
            energy_j[f] += search.share[v] * search.joules[v]
        return Judged(search.good, search.value, np.array(search.share), accuracy, energy_j)

    def judge_many(self, counts: Any, used: Any) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        given, cuts = np.array(counts), np.array(used)
        if given.ndim != 2 or cuts.ndim != 2 or len(given) != len(cuts):
            raise ValueError("counts and used")
        found = [self.judge(row, cut) for row, cut in zip(given, cuts, strict=True)]
        return np.array([item.feasible for item in found], bool), np.array([item.value for item in found], float)


# --- the search ---


class Search(Walk):
    def __init__(self, problem: Problem, seed: int, keep: int) -> None:
        super().__init__(problem.members, problem.slice_of, seed)
        self.p = problem
        self.good = False
        self.value = self.lost = 0.0
        self.penalty = PENALTY * problem.spread
        self.rows: list[float] = []
        self.workers: list[float] = []
        self.full: list[float] = []
        self.most: list[float] = []
        self.least: list[float] = []
        self.share: list[float] = []
        self.joules: list[float] = []
        self.gain: list[float] = []
        self.tardy: list[float] = []
        self.keep = keep
        self.kept: list[tuple[list[float], list[int], float]] = []
        self.nearest: tuple[list[float], list[int], float] = ([], [], 0.0)
        self.nearest_key = (math.inf, 0.0)

    # --- what a configuration is worth ---

    def score(self) -> float:
        p = self.p
        self.evaluations += 1
        self.tried = [j for j in range(p.groups) if self.trial[j]]
        self.rows, self.workers = [0.0] * p.lanes, [0.0] * p.lanes
        for j in self.tried:
            self.rows[p.lane_of[j]] += self.trial[j] * p.capacity[j]
            self.workers[p.lane_of[j]] += self.trial[j]
        self.full, self.most, self.least = [0.0] * p.lanes, [0.0] * p.lanes, [0.0] * p.lanes
        self.share = [0.0] * p.lanes
        need = have = lost = value = 0.0
        self.good = True
        for f, own in enumerate(p.own):
            total = capacity = 0.0
            for v in own:
                total += self.workers[v]
                capacity += self.rows[v]
            for v in own:
                self.full[v] = p.limit[f] * self.rows[v] / p.rate[f]
                self.most[v] = min(1.0, self.full[v])
                if 0.0 < self.workers[v] < total:
                    self.least[v] = min(self.most[v], p.least * self.workers[v] / total)
            if capacity < p.peak[f]:
                need += (p.peak[f] - capacity) / p.wake[f]
        self.read_gains(self.most)
        for step in range(PASSES):
            for f in range(p.families):
                short = self.fill_shares(f)
                if step == PASSES - 1 and short > EPSILON:
                    self.good = False
                    lost += short
            self.read_gains(self.share)
        self.tardy = self.mean(p.late, self.share)
        again = False
        for f in range(p.families):
            late = self.late(f)
            if late > p.miss[f]:
                late = self.limit_late(f, late)
                again = True
                if late > p.miss[f] + EPSILON:
                    self.good = False
                    lost += math.log(late / p.miss[f])
        if again:
            self.read_gains(self.share)
        for f, own in enumerate(p.own):
            accuracy = 0.0
            for v in own:
                accuracy += self.share[v] * p.accuracy[v]
                value += self.share[v] * self.gain[v]
            if accuracy < p.floor[f] - EPSILON:
                self.good = False
                lost += (p.floor[f] - accuracy) / p.reach[f]
        for i, n in enumerate(self.trial_used):
            have += n * p.spare[i]
            value -= p.watt * (n * p.idle_w[i])
        if need > have + EPSILON:
            self.good = False
            lost += (need - have) / p.largest
        for j in self.tried:
            if self.trial[j] > p.running[j]:
                value -= (self.trial[j] - p.running[j]) * p.switching[j]
        self.value, self.lost = value, lost
        return value - self.penalty * lost

    def at_load(self, row: list[float], load: float) -> float:
        at = min(int(load), self.p.loads - 1)
        return row[at] + (load - at) * (row[at + 1] - row[at])

    def of_group(self, table: Table, j: int, workers: float, load: float) -> float:
        """Read the table of group j in a lane of so many workers: linear between powers of two and between loads."""
        at, size = 0, 1.0
        while at < self.p.sizes - 2 and workers >= 2.0 * size:
            at, size = at + 1, 2.0 * size
        between = min(1.0, (workers - size) / size) if self.p.sizes > 1 else 0.0
        low = self.at_load(table[j][at], load)
        if between:
            low += between * (self.at_load(table[j][at + 1], load) - low)
        return low

    def mean(self, table: Table, shares: list[float]) -> list[float]:
        p = self.p
        means = [0.0] * p.lanes
        for j in self.tried:
            v = p.lane_of[j]
            load = min(1.0, shares[v] / self.full[v]) * p.loads
            weight = self.trial[j] * p.capacity[j] / self.rows[v]
            means[v] += weight * self.of_group(table, j, self.workers[v], load)
        return means

    def read_gains(self, shares: list[float]) -> None:
        p = self.p
        self.joules = self.mean(p.energy_j, shares)
        self.gain = [p.quality[v] - p.price[p.family_of[v]] * self.joules[v] for v in range(p.lanes)]

    def late(self, f: int) -> float:
        total = 0.0
        for v in self.p.own[f]:
            total += self.share[v] * self.tardy[v]
        return total

    def limit_late(self, f: int, before: float) -> float:
        p, own = self.p, self.p.own[f]
        start, held = list(self.share), list(self.share)
        safe: dict[int, float] = {}
        for step in range(p.loads, -1, -1):
            for v in own:
                held[v] = self.full[v] * step / p.loads
            tardy = self.mean(p.late, held)
            for v in own:
                if v not in safe and tardy[v] <= p.miss[f]:
                    safe[v] = held[v]
        for v in own:
            self.most[v] = max(self.least[v], min(self.most[v], safe.get(v, 0.0)))
        if self.fill_shares(f) > EPSILON:
            self.share = start
            return before
        end = list(self.share)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            self.between(own, start, end, middle)
            if self.late(f) > p.miss[f]:
                low = middle
            else:
                high = middle
        self.between(own, start, end, high)
        return self.late(f)

    def between(self, own: list[int], start: list[float], end: list[float], part: float) -> None:
        for v in own:
            self.share[v] = start[v] + part * (end[v] - start[v])
        self.tardy = self.mean(self.p.late, self.share)

    def fill_shares(self, f: int) -> float:
        p, own, share = self.p, self.p.own[f], self.share
        room = 0.0
        for v in own:
            room += self.most[v]
        if room < 1.0 - EPSILON:
            for v in own:
                share[v] = self.most[v] / room if room > 0.0 else 0.0
            return 1.0 - room
        left = 1.0
        for v in own:
            share[v] = self.least[v]
            left -= share[v]
        for v in sorted(own, key=lambda v: -self.gain[v]):
            more = self.most[v] - share[v]
            if left <= 0.0 or more <= 0.0:
                continue
            share[v] = self.most[v] if more <= left else share[v] + left
            left = left - more if more <= left else 0.0
        accuracy = 0.0
        for v in own:
            accuracy += share[v] * p.accuracy[v]
        while accuracy < p.floor[f] - EPSILON:
            pairs = [
                ((self.gain[v] - self.gain[w]) / (p.accuracy[w] - p.accuracy[v]), v, w)
                for v in own
                if share[v] > self.least[v] + 1e-15
                for w in own
                if share[w] < self.most[w] - 1e-15 and p.accuracy[w] > p.accuracy[v]
            ]
            if not pairs:
                break
            _, v, w = min(pairs, key=lambda pair: pair[0])
            moved = min(share[v] - self.least[v], self.most[w] - share[w])
            moved = min(moved, (p.floor[f] - accuracy) / (p.accuracy[w] - p.accuracy[v]))
            share[v] -= moved
            share[w] += moved
            accuracy += moved * (p.accuracy[w] - p.accuracy[v])
        return 0.0

    # --- moves ---

    def move(self) -> bool:
        return self.change_variant() if self.draw(2) == 0 else self.change_partition()

    def change_partition(self) -> bool:
        p, parts = self.p, len(self.p.part)
        a = self.draw_partition()
        b = self.draw(parts)
        if a == b or p.kind[a] != p.kind[b]:
            return False
        gpus = min(self.step_size(0), self.trial_used[a])
        self.trial_used[a] -= gpus
        self.trial_used[b] += gpus
        for s in range(p.slices):
            self.change_slices(s, gpus * (p.part[b][s] - p.part[a][s]))
        return True

    def remember(self) -> None:
        if (self.lost, -self.value) < self.nearest_key:
            self.nearest_key = (self.lost, -self.value)
            self.nearest = (list(self.trial), list(self.trial_used), self.value)
        worst = min(range(len(self.kept)), key=lambda i: self.kept[i][2], default=0)
        full = len(self.kept) == self.keep
        if not self.good or (full and self.value <= self.kept[worst][2]):
            return
        near = EPSILON * self.p.spread
        if any(counts == self.trial and abs(value - self.value) <= near for counts, _, value in self.kept):
            return
        kept = (list(self.trial), list(self.trial_used), self.value)
        if full:
            self.kept[worst] = kept
        else:
            self.kept.append(kept)

    def run(self, first: int, last: int) -> None:
        spread = self.p.spread
        cooling = Cooling(self, first_temperature(self.p.largest), COLD, spread, (first, last))
        score, value, lost, heat = self.value, self.value, self.lost, 0.0
        while True:
            if cooling.moves % LOOK == 0:
                spent = cooling.progress()
                if spent >= 1.0:
                    break
                heat = cooling.cool(spent)
                self.penalty = (PENALTY + (FIRM - PENALTY) * spent) * spread
                score = value - self.penalty * lost
            cooling.moves += 1
            if not self.propose():
                continue
            now = self.score()
            self.remember()
            if self.accepts(now - score, heat):
                self.swap_trial()
                score, value, lost = now, self.value, self.lost
        cooling.end()
        self.penalty = PENALTY * spread


def solve(problem: Problem, seed: int, evaluations: int, starts: Any, restarts: int = 1, keep: int = 16) -> Solution:
    if not 1 <= evaluations <= 10**12 or not 1 <= restarts <= 10**6 or not 1 <= keep <= 4096 or not len(starts):
        raise ValueError("evaluations, restarts, keep or starts")
    search = Search(problem, seed, keep)
    top, origin = -math.inf, problem.checked(*starts[0])
    for counts, used in starts:
        checked = problem.checked(counts, used)
        search.stand_at(*checked)
        score = search.score()
        search.remember()
        if score > top:
            top, origin = score, checked
    search.levels = first_levels(problem.largest)
    scanned = search.evaluations
    budget = max(evaluations - scanned, restarts)
    for turn in range(restarts):
        search.stand_at(*origin)
        search.score()
        search.swap_trial()
        search.run(scanned + budget * turn // restarts, scanned + budget * (turn + 1) // restarts)
    found = [Found(np.array(c).astype(np.int64), np.array(u, np.int64), value) for c, u, value in search.kept]
    found.sort(key=lambda item: -item.value)
    counts, used, value = search.nearest
    nearest = Found(np.array(counts).astype(np.int64), np.array(used, np.int64), value)
    return Solution(found, bool(found), nearest, search.evaluations, search.proposals)
