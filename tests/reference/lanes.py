"""Twin of `clover._native.lanes`: the same moves from the same random numbers, lanes and shares in plain lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.reference.random import Random

MAX_LANES = 64
MOST_DEVICES = 1_000_000
MOST_SLICES = 4096
LOOK = 64
PATIENCE = 64
PASSES = 3
HALVINGS = 4
HOT = 0.01
HOT_ALONE = 0.6
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


def _column(name: str, values: Any, size: int | None = None) -> list[float]:
    column = [float(x) for x in values]
    if not column or (size is not None and len(column) != size) or not all(map(math.isfinite, column)):
        raise ValueError(name)
    return column


def _whole(name: str, values: Any, size: int | None = None, below: int | None = None) -> list[int]:
    column = np.array(values)
    if column.ndim != 1 or column.dtype.kind not in "iu" or (size is not None and len(column) != size):
        raise ValueError(name)
    found = [int(n) for n in column]
    if min(found) < 0 or (below is not None and max(found) >= below):
        raise ValueError(name)
    return found


def _table(name: str, values: Any, groups: int) -> Table:
    table = np.array(values, dtype=np.float64)
    if table.ndim != 3 or len(table) != groups or table.shape[1] < 1 or table.shape[2] < 2:
        raise ValueError(name)
    if not np.isfinite(table).all():
        raise ValueError(name)
    return [[[float(x) for x in row] for row in of_group] for of_group in table]


class Problem:
    def __init__(
        self,
        *,
        devices: Any,
        kind_of: Any,
        partitions: Any,
        idle_w: Any,
        spare: Any,
        slice_of: Any,
        lane_of: Any,
        capacity: Any,
        energy_j: Any,
        late: Any,
        family_of: Any,
        accuracy: Any,
        quality: Any,
        rate: Any,
        peak: Any,
        wake: Any,
        floor: Any,
        miss: Any,
        limit: Any,
        price: Any,
        watt: float,
        least: float = 0.0,
        running: Any = None,
        switching: Any = None,
    ) -> None:
        table = np.array(partitions)
        if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
            raise ValueError("partitions")
        self.part = [[int(n) for n in row] for row in table]
        if any(not 0 <= n <= MOST_SLICES for row in self.part for n in row):
            raise ValueError("partitions")
        parts, self.slices = len(self.part), len(self.part[0])
        self.devices = _whole("devices", devices)
        self.kind = _whole("kind_of", kind_of, parts, len(self.devices))
        if not all(1 <= n <= MOST_DEVICES for n in self.devices) or set(self.kind) != set(range(len(self.devices))):
            raise ValueError("devices or kind_of")
        self.idle_w, self.spare = _column("idle_w", idle_w, parts), _column("spare", spare, parts)
        self.capacity = _column("capacity", capacity)
        self.groups = len(self.capacity)
        self.slice_of = _whole("slice_of", slice_of, self.groups, self.slices)
        self.accuracy = _column("accuracy", accuracy)
        self.lanes = len(self.accuracy)
        if self.lanes > MAX_LANES:
            raise ValueError("lanes")
        self.lane_of = _whole("lane_of", lane_of, self.groups, self.lanes)
        self.quality = _column("quality", quality, self.lanes)
        self.rate = _column("rate", rate)
        self.families = len(self.rate)
        self.family_of = _whole("family_of", family_of, self.lanes, self.families)
        if self.family_of != sorted(self.family_of) or set(self.family_of) != set(range(self.families)):
            raise ValueError("family_of")
        self.own = [[v for v in range(self.lanes) if self.family_of[v] == f] for f in range(self.families)]
        self.energy_j, self.late = _table("energy_j", energy_j, self.groups), _table("late", late, self.groups)
        self.sizes, self.loads = len(self.energy_j[0]), len(self.energy_j[0][0]) - 1
        if (len(self.late[0]), len(self.late[0][0])) != (self.sizes, self.loads + 1):
            raise ValueError("late")
        if any(not 0.0 <= x <= 1.0 for of_group in self.late for row in of_group for x in row):
            raise ValueError("late")
        self.peak, self.wake = _column("peak", peak, self.families), _column("wake", wake, self.families)
        self.floor, self.miss = _column("floor", floor, self.families), _column("miss", miss, self.families)
        self.limit, self.price = _column("limit", limit, self.families), _column("price", price, self.families)
        if not all(x > 0.0 for x in self.capacity + self.rate + self.wake):
            raise ValueError("not positive")
        if (running is None) != (switching is None):
            raise ValueError("running and switching")
        self.running = [0.0] * self.groups if running is None else _column("running", running, self.groups)
        self.switching = [0.0] * self.groups if switching is None else _column("switching", switching, self.groups)
        if any(x < 0.0 for x in self.price + self.idle_w + self.spare + self.running + self.switching):
            raise ValueError("negative")
        if not all(0.0 < x < 1.0 for x in self.miss) or not all(0.0 < x <= 1.0 for x in self.limit):
            raise ValueError("miss or limit")
        if not 0.0 <= least < 1.0 or not 0.0 <= watt < math.inf:
            raise ValueError("least or watt")
        self.least, self.watt = float(least), float(watt)
        self.members = [[j for j in range(self.groups) if self.slice_of[j] == s] for s in range(self.slices)]
        if any(n and not self.members[s] for row in self.part for s, n in enumerate(row)):
            raise ValueError("a slice has no group")
        self.largest = max(self.devices)
        self.reach = []
        for own in self.own:
            values = [self.accuracy[v] for v in own]
            self.reach.append(max(max(values) - min(values), 1e-6))
        self.spread = max(self._range(), 1e-9)

    def _range(self) -> float:
        """What gains and idle devices may differ by, at most."""
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
        given, cut = _whole("counts", counts, self.groups), _whole("used", used, len(self.part))
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
        search.load(*self.checked(counts, used))
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


class Search:
    def __init__(self, problem: Problem, seed: int, keep: int) -> None:
        self.p = problem
        self.random = Random(seed)
        self.below = self.random.below
        self.count: list[float] = []
        self.trial: list[float] = []
        self.used: list[int] = []
        self.trial_used: list[int] = []
        self.active: list[int] = []
        self.tried: list[int] = []
        self.good = False
        self.value = self.lost = 0.0
        self.levels = 1
        self.penalty = PENALTY * problem.spread
        self.evaluations = self.proposals = 0
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

    def load(self, counts: Sequence[int], used: Sequence[int]) -> None:
        self.count, self.used = [float(n) for n in counts], list(used)
        self.copy()

    def copy(self) -> None:
        self.trial, self.trial_used = list(self.count), list(self.used)

    def size(self, more: int) -> int:
        return 1 + self.below(1 << self.below(self.levels + more))

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
                short = self.mix(f)
                if step == PASSES - 1 and short > EPSILON:
                    self.good = False
                    lost += short
            self.read_gains(self.share)
        self.tardy = self.mean(p.late, self.share)
        again = False
        for f in range(p.families):
            late = self.late(f)
            if late > p.miss[f]:
                late = self.hurry(f, late)
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
        """The table of group j in a lane of so many workers, linear between powers of two and between loads."""
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

    def hurry(self, f: int, before: float) -> float:
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
        if self.mix(f) > EPSILON:
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

    def mix(self, f: int) -> float:
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

    def change_variant(self) -> bool:
        if not self.active:
            return False
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
        p, parts = self.p, len(self.p.part)
        a = self.below(parts)
        while not self.trial_used[a]:
            a = (a + 1) % parts
        b = self.below(parts)
        if a == b or p.kind[a] != p.kind[b]:
            return False
        gpus = min(self.size(0), self.trial_used[a])
        self.trial_used[a] -= gpus
        self.trial_used[b] += gpus
        for s, members in enumerate(p.members):
            change = gpus * (p.part[b][s] - p.part[a][s])
            while change < 0:
                j = self.in_use(members)
                taken = min(-change, int(self.trial[j]))
                self.trial[j] -= taken
                change += taken
            if change > 0:
                j = self.in_use(members) if self.below(2) else members[self.below(len(members))]
                self.trial[j] += change
        return True

    def in_use(self, members: list[int]) -> int:
        at = self.below(len(members))
        for _ in members:
            if self.trial[members[at]] > 0.0:
                break
            at = (at + 1) % len(members)
        return members[at]

    def move(self) -> bool:
        return self.change_variant() if self.below(2) == 0 else self.change_partition()

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
        self.count, self.used, self.active = self.trial, self.trial_used, self.tried

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
        hot = max(HOT, HOT_ALONE / float(self.p.largest))
        heat, falling = hot * self.p.spread, math.log(COLD / hot)
        score, value, lost = self.value, self.value, self.lost
        moves, most = 0, self.levels
        while True:
            if moves % LOOK == 0:
                progress = (self.evaluations - first) / (last - first)
                progress = max(progress, moves / (float(PATIENCE) * (last - first)))
                if progress >= 1.0:
                    break
                heat = hot * self.p.spread * math.exp(falling * progress)
                self.penalty = (PENALTY + (FIRM - PENALTY) * progress) * self.p.spread
                score = value - self.penalty * lost
                self.levels = 1 + int((most - 1) * (1.0 - 0.75 * progress) + 0.5)
            moves += 1
            if not self.propose():
                continue
            now = self.score()
            self.remember()
            gain = now - score
            if gain >= 0.0 or (gain > -40.0 * heat and math.exp(gain / heat) > self.random.uniform()):
                self.accept()
                score, value, lost = now, self.value, self.lost
        self.proposals += moves
        self.levels, self.penalty = most, PENALTY * self.p.spread


def solve(problem: Problem, seed: int, evaluations: int, starts: Any, restarts: int = 1, keep: int = 16) -> Solution:
    if not 1 <= evaluations <= 10**12 or not 1 <= restarts <= 10**6 or not 1 <= keep <= 4096 or not len(starts):
        raise ValueError("evaluations, restarts, keep or starts")
    search = Search(problem, seed, keep)
    top, origin = -math.inf, problem.checked(*starts[0])
    for counts, used in starts:
        checked = problem.checked(counts, used)
        search.load(*checked)
        score = search.score()
        search.remember()
        if score > top:
            top, origin = score, checked
    while 4 << search.levels <= problem.largest:
        search.levels += 1
    scanned = search.evaluations
    budget = max(evaluations - scanned, restarts)
    for turn in range(restarts):
        search.load(*origin)
        search.score()
        search.accept()
        search.run(scanned + budget * turn // restarts, scanned + budget * (turn + 1) // restarts)
    found = [Found(np.array(c).astype(np.int64), np.array(u, np.int64), value) for c, u, value in search.kept]
    found.sort(key=lambda item: -item.value)
    counts, used, value = search.nearest
    nearest = Found(np.array(counts).astype(np.int64), np.array(used, np.int64), value)
    return Solution(found, bool(found), nearest, search.evaluations, search.proposals)
