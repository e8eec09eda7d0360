"""The mathematics of cascades: from scores and right answers of every variant to the front of accuracy and energy.

Two splits, two roles.  On *calibration* rows everything is chosen: the grid of thresholds (quantiles of each variant's
scores), which chains at which thresholds are worth keeping, and how the front is thinned.  On *held-out* rows those
choices are only judged: every accuracy, interval, part and energy of a `ChainPoint` is theirs.  Held-out figures leave
points out (one that is neither cheaper nor more accurate than another is of no use to anybody) and choose nothing else;
taking the best of the points that remain is a mild selection, which their intervals do not know of.

Chains rise in energy and in calibration accuracy: a dearer variant that is right less often is not asked.  All pairs of
thresholds are weighed at once: rows are counted by where their two scores fall between the thresholds, and sums over
that table from its corner are the rows that go on from both stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clover.planning.cascade import expected_energy
from clover.profiling.score import wilson
from clover.types import ChainPoint

LONGEST = 3
GRID = 28
"""Thresholds tried of each variant but the last."""
MOST_POINTS = 60
"""Points that a profile keeps of the front."""
_Z = 1.959964


@dataclass(frozen=True)
class Split:
    """The rows of one split: `scores` float32 and `right` bool, each [variants, rows], variants in any one order."""

    scores: NDArray[np.float32]
    right: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """Rows that every variant saw."""
        return int(self.scores.shape[1])


@dataclass(frozen=True)
class Choice:
    """Variants by index and the thresholds between them, with what calibration rows say: a share, and joules a row."""

    chain: tuple[int, ...]
    thresholds: tuple[float, ...]
    accuracy: float
    energy_j: float


def grid(scores: NDArray[np.float32], count: int = GRID) -> NDArray[np.float32]:
    """Thresholds to try of a variant: up to `count` quantiles of its scores, rising, denser where few rows go on.

    Whole float32, so that a router comparing floats and one comparing doubles send the same rows on."""
    levels = (np.arange(1, count + 1) / (count + 1)) ** 2
    return np.unique(np.quantile(scores, levels).astype(np.float32))


def orders(energy_j: Sequence[float], accuracy: Sequence[float], longest: int = LONGEST) -> Iterator[tuple[int, ...]]:
    """Every chain of one to `longest` variants that rises in energy and in accuracy."""
    rising = sorted(range(len(energy_j)), key=lambda v: (energy_j[v], v))
    for length in range(1, longest + 1):
        for chain in itertools.combinations(rising, length):
            if all(accuracy[a] < accuracy[b] for a, b in itertools.pairwise(chain)):
                yield chain


def candidates(split: Split, energy_j: Sequence[float], count: int = GRID) -> list[Choice]:
    """All chains at all thresholds of their grids, with accuracy and energy on `split`, the calibration rows."""
    rows, right = split.rows, split.right.astype(np.int64)
    grids = [grid(scores, count) for scores in split.scores]
    cells = [np.searchsorted(tried, scores, side="right") for scores, tried in zip(split.scores, grids, strict=True)]
    stays, nowhere = np.ones(rows, np.int64), np.zeros(1, np.float32)
    found = []
    for chain in orders(energy_j, list(split.right.mean(axis=1))):
        joules = [energy_j[v] for v in chain]
        first, last = right[chain[0]], right[chain[-1]]
        if len(chain) == 1:
            found.append(Choice(chain, (), float(first.sum()) / rows, joules[0]))
            continue
        # A chain of two is one of three whose second stage keeps every row.
        longest = len(chain) == LONGEST
        i, j = cells[chain[0]], cells[chain[1]] if longest else stays
        sizes = len(grids[chain[0]]), len(grids[chain[1]]) if longest else len(nowhere)
        second = right[chain[1]]
        one = [below(i, stays, weights, (sizes[0], 2))[:, 1:] for weights in (stays, second - first)]
        two = [below(i, j, weights, sizes) for weights in (stays, last - second)]
        accuracy = (first.sum() + one[1] + two[1]) / rows
        for g, h in np.ndindex(sizes):
            reach = [1.0, one[0][g, 0] / rows, two[0][g, h] / rows][: len(chain)]
            limits = [float(grids[v][at]) for v, at in zip(chain[:-1], (g, h), strict=False)]
            found.append(Choice(chain, tuple(limits), float(accuracy[g, h]), expected_energy(reach, joules)))
    return found


def below(
    i: NDArray[np.int64], j: NDArray[np.int64], weights: NDArray[np.int64], sizes: tuple[int, int]
) -> NDArray[np.float64]:
    """[g, h]: the sum of `weights` [rows] over the rows with i <= g and j <= h, for g, h below `sizes`."""
    high, wide = sizes[0] + 1, sizes[1] + 1
    cells = np.bincount(i * wide + j, weights, minlength=high * wide).reshape(high, wide)
    sums: NDArray[np.float64] = cells.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
    return sums


def front(accuracy: Sequence[float], energy: Sequence[float]) -> list[int]:
    """Indices by rising energy of those that are more accurate than all that cost no more."""
    best, kept = -np.inf, []
    for index in sorted(range(len(energy)), key=lambda i: (energy[i], -accuracy[i])):
        if accuracy[index] > best:
            best = accuracy[index]
            kept.append(index)
    return kept


def thinned(accuracy: Sequence[float], energy: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """At most `most` indices of a front in rising order: again and again the inner point goes whose absence costs
    least, as the area between accuracy and the logarithm of energy.  The ends stay."""
    kept = list(range(len(accuracy)))
    height, width = np.array(accuracy), np.log(np.maximum(energy, 1e-12))
    while len(kept) > max(2, most):
        area = (height[kept[1:-1]] - height[kept[:-2]]) * (width[kept[2:]] - width[kept[1:-1]])
        del kept[1 + int(np.argmin(area))]
    return kept


def answered(split: Split, chain: Sequence[int], thresholds: Sequence[float]) -> tuple[NDArray[np.bool_], list[float]]:
    """Which rows of `split` the chain answers right, and the part of the rows that each stage is asked."""
    right = split.right[chain[0]].copy()
    going = np.ones(split.rows, np.bool_)
    reach = [1.0]
    for (before, after), threshold in zip(itertools.pairwise(chain), thresholds, strict=True):
        going &= split.scores[before] < np.float32(threshold)
        right[going] = split.right[after][going]
        reach.append(float(going.mean()))
    return right, reach


def judged(split: Split, choice: Choice, names: Sequence[str], energy_j: Sequence[float], best: int) -> ChainPoint:
    """The choice as a point, with the figures of `split`, the held-out rows."""
    right, reach = answered(split, choice.chain, choice.thresholds)
    low, high = wilson(int(right.sum()), split.rows)
    apart = right.astype(np.float64) - split.right[best]
    middle, spread = float(apart.mean()), _Z * float(apart.std()) / split.rows**0.5
    return ChainPoint(
        chain=tuple(names[v] for v in choice.chain),
        thresholds=choice.thresholds,
        accuracy=100.0 * float(right.mean()),
        low=low,
        high=high,
        difference=100.0 * middle,
        difference_low=100.0 * (middle - spread),
        difference_high=100.0 * (middle + spread),
        reach=tuple(reach),
        energy=expected_energy(reach, [energy_j[v] for v in choice.chain]) / max(energy_j[best], 1e-12),
    )


def fit(
    calibration: Split,
    held_out: Split,
    names: Sequence[str],
    energy_j: Sequence[float],
    best: int,
    *,
    most: int = MOST_POINTS,
    count: int = GRID,
) -> tuple[ChainPoint, ...]:
    """The front of all chains of `names` with `energy_j` joules a row each, by rising energy: chosen on `calibration`
    (at most `most`), judged on `held_out`, beside every variant by itself.  `best` is the variant that energy and
    differences are held against."""
    every = candidates(calibration, energy_j, count)
    chosen = [every[i] for i in front([c.accuracy for c in every], [c.energy_j for c in every])]
    kept = [chosen[i] for i in thinned([c.accuracy for c in chosen], [c.energy_j for c in chosen], most)]
    # Nothing is chosen of a variant by itself, so those that calibration rows left out may be judged as well.
    kept += [choice for choice in every if not choice.thresholds and choice not in kept]
    points = [judged(held_out, choice, names, energy_j, best) for choice in kept]
    return tuple(points[i] for i in front([p.accuracy for p in points], [p.energy for p in points]))
