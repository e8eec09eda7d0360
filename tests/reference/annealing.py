"""Twin of `csrc/annealing.pxd`: the walk over configurations, its moves and its cooling, from the same random numbers.

`Walk` is the base of the searches of `tests.reference.anneal` and `tests.reference.lanes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference.random import Random

LOOK = 64
PATIENCE = 64


def members_of(slice_of: Any, fits: Any, slices: int) -> list[list[int]]:
    """Return the groups that may be used, by slice."""
    return [[j for j, where in enumerate(slice_of) if where == s and fits[j]] for s in range(slices)]


def first_temperature(devices: int) -> float:
    return max(0.01, 0.6 / float(devices))


def first_levels(devices: int) -> int:
    levels = 1
    while 4 << levels <= devices:
        levels += 1
    return levels


class Walk:
    def __init__(self, members: list[list[int]], slice_of: Sequence[int], seed: int) -> None:
        self.members, self.slice_of = members, slice_of
        self.random = Random(seed)
        self.draw = self.random.below
        self.levels = 1
        self.count: list[float] = []
        self.trial: list[float] = []
        self.used: list[int] = []
        self.trial_used: list[int] = []
        self.active: list[int] = []
        self.tried: list[int] = []
        self.evaluations = self.proposals = self.accepted = 0

    def copy_trial(self) -> None:
        self.trial, self.trial_used = list(self.count), list(self.used)

    def stand_at(self, counts: Sequence[int], used: Sequence[int]) -> None:
        self.count, self.used = [float(n) for n in counts], list(used)
        self.copy_trial()

    def swap_trial(self) -> None:
        self.count, self.used, self.active = self.trial, self.trial_used, self.tried

    def step_size(self, more: int) -> int:
        return 1 + self.draw(1 << self.draw(self.levels + more))

    def change_variant(self) -> bool:
        if not self.active:
            return False
        j = self.active[self.draw(len(self.active))]
        members = self.members[self.slice_of[j]]
        if len(members) < 2:
            return False
        other = members[(members.index(j) + 1 + self.draw(len(members) - 1)) % len(members)]
        moved = min(float(self.step_size(2)), self.trial[j])
        if moved == 0.0:
            return False
        self.trial[j] -= moved
        self.trial[other] += moved
        return True

    def draw_partition(self) -> int:
        a = self.draw(len(self.trial_used))
        while not self.trial_used[a]:
            a = (a + 1) % len(self.trial_used)
        return a

    def draw_group(self, members: list[int]) -> int:
        at = self.draw(len(members))
        for _ in members:
            if self.trial[members[at]] > 0.0:
                break
            at = (at + 1) % len(members)
        return members[at]

    def change_slices(self, s: int, change: int) -> None:
        members = self.members[s]
        while change < 0:
            j = self.draw_group(members)
            taken = min(-change, int(self.trial[j]))
            self.trial[j] -= taken
            change += taken
        if change > 0:
            j = self.draw_group(members) if self.draw(2) else members[self.draw(len(members))]
            self.trial[j] += change

    def move(self) -> bool:
        """Make one move.  False if it is not possible."""
        raise NotImplementedError

    def propose(self) -> bool:
        self.copy_trial()
        if not self.move():
            return False
        for _ in range(2):
            if self.draw(2) == 0:
                break
            self.move()
        return True

    def accepts(self, gain: float, heat: float) -> bool:
        return gain >= 0.0 or (gain > -40.0 * heat and math.exp(gain / heat) > self.random.uniform())


class Cooling:
    def __init__(self, walk: Walk, hot: float, cold: float, spread: float, budget: tuple[int, int]) -> None:
        self.walk = walk
        self.hot, self.fall = hot * spread, math.log(cold / hot)
        self.levels = walk.levels
        self.first, self.last = budget
        self.moves = 0

    def progress(self) -> float:
        every = float(self.last - self.first)
        return max((self.walk.evaluations - self.first) / every, self.moves / (float(PATIENCE) * every))

    def cool(self, spent: float) -> float:
        self.walk.levels = 1 + int((self.levels - 1) * (1.0 - 0.75 * spent) + 0.5)
        return self.hot * math.exp(self.fall * spent)

    def end(self) -> None:
        self.walk.proposals += self.moves
        self.walk.levels = self.levels


def whole_numbers(counts: Any, size: int) -> list[int]:
    """Return `size` whole numbers that are not negative as a list.  ValueError for anything else."""
    given = np.array(counts)
    if given.shape != (size,) or given.dtype.kind not in "iu" or (given < 0).any():
        raise ValueError("whole numbers")
    return [int(n) for n in given]
