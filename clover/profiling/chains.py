"""Chains of variants and their thresholds: what each would cost and how often it would be right.

Every variant answers the same rows, each answer with a score (its confidence).  From these answers the outcome of any
chain with any thresholds can be computed without running a variant again.  Thresholds are quantiles of the scores.

Example: 1,000 rows, chain `small > large`, threshold 0.8.  If `small` scores 0.8 or more on 700 rows and is right on
680 of them, and `large` is right on 270 of the other 300, the chain is right on 950 rows: 95 %.  It costs a row of
`small`, and 0.3 rows of `large`.

What is kept is chosen on *calibration* rows.  Of all chains and thresholds these are

- the Pareto front: those that no other beats in both accuracy and cost;
- the front of chains of at most two variants, because a machine may have no room for three at once;
- of each chain of two, a few points of its own front.  While its two variants run, its thresholds can be changed
  without touching a worker, and at the batch sizes of a real load a point may cost less than one that beat it here.

Their reported figures are counted on *held-out* rows, which had no part in the choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.profiling.score import Rights, alike, interval
from clover.types import CascadeProfile, ChainPoint, Sureness

Floats = NDArray[np.float64]
Cells = NDArray[np.int64]

LEVELS = 32
"""Thresholds of a variant that are tried, at most."""
POINTS = 48
"""Points of a front that are kept, at most."""
OWN_POINTS = 8
"""Points that are kept of the front of each chain of two, at most."""
QUANTILES = 33
TENTHS = 10
_LONGEST = 3


@dataclass(frozen=True)
class Answers:
    """The answers of a variant to some rows: the score of each, whether (or how far, 0..1) it is right, and (if kept)
    the answer."""

    scores: Floats
    right: Rights
    said: NDArray[Any] | None = None


@dataclass(frozen=True)
class ChainOutcome:
    """A chain with its thresholds on some rows: accuracy (0..1), fraction of rows that reach each stage, cost a row."""

    chain: tuple[str, ...]
    thresholds: tuple[float, ...]
    accuracy: float
    reach: tuple[float, ...]
    cost: float


def play(
    answers: Mapping[str, Answers], costs: Mapping[str, float], chain: Sequence[str], thresholds: Sequence[float]
) -> ChainOutcome:
    """Return the outcome of one chain on the rows of `answers`; `costs` are those of a row, by variant."""
    rows = len(answers[chain[0]].right)
    here = np.ones(rows, np.bool_)
    right = 0.0
    reach: list[float] = []
    for name, threshold in itertools.zip_longest(chain, thresholds):
        reach.append(float(here.mean()))
        own = answers[name]
        passed_on = here & ~(own.scores >= threshold) if threshold is not None else np.zeros(rows, np.bool_)
        right += float(own.right[here & ~passed_on].sum())
        here = passed_on
    cost = sum(part * costs[name] for part, name in zip(reach, chain, strict=True))
    return ChainOutcome(tuple(chain), tuple(thresholds), right / rows, tuple(reach), cost)


def profile_of(
    calibration: Mapping[str, Answers], held_out: Mapping[str, Answers], costs: Mapping[str, float]
) -> CascadeProfile:
    """Return the cascade profile of variants (in the order of the mapping, cheapest first) with these costs.

    The rows of a split must be the same for all variants.
    """
    best = max(held_out, key=lambda name: float(held_out[name].right.mean()))
    return CascadeProfile(
        points=points_of(calibration, held_out, costs, best),
        quantiles={name: _quantiles(own.scores) for name, own in held_out.items()},
        calibration_rows=len(next(iter(calibration.values())).right),
        held_out_rows=len(next(iter(held_out.values())).right),
        sureness={name: _sureness(name, calibration, held_out, best) for name in held_out},
        best=best,
        joules=dict(costs),
    )


def points_of(
    calibration: Mapping[str, Answers], held_out: Mapping[str, Answers], costs: Mapping[str, float], best: str
) -> tuple[ChainPoint, ...]:
    """Return the chains to keep at these costs: chosen on `calibration`, with figures counted on `held_out`."""
    relative = {name: cost / max(costs[best], 1e-12) for name, cost in costs.items()}
    played = list(every_chain(calibration, relative))
    fronts = [front(item for item in played if len(item.chain) < longest) for longest in (_LONGEST, _LONGEST + 1)]
    pairs = [
        [item for item in front(each for each in played if each.chain in (pair[:1], pair)) if item.chain == pair]
        for pair in itertools.combinations(calibration, 2)
    ]
    kept = [*(thin(each) for each in fronts), *(thin(each, OWN_POINTS) for each in pairs)]
    chosen = dict.fromkeys(item for each in kept for item in each)
    ordered = sorted(chosen, key=lambda item: (item.cost, item.accuracy))
    return tuple(_point(held_out, relative, item, best) for item in ordered)


def _quantiles(scores: Floats) -> tuple[float, ...]:
    """Return equally spaced quantiles of the scores that are numbers."""
    known = scores[~np.isnan(scores)]
    return tuple(np.quantile(known, np.linspace(0.0, 1.0, QUANTILES)).tolist()) if len(known) else ()


def _sureness(name: str, calibration: Mapping[str, Answers], held_out: Mapping[str, Answers], best: str) -> Sureness:
    """Return how accuracy and agreement with `best` depend on the scores of a variant, by tenths of its rows.

    NaN sorts below all numbers.
    """
    own = held_out[name]
    order = np.argsort(_sortable(own.scores), kind="stable")
    tenths = [part for part in np.array_split(order, TENTHS) if len(part)]
    same = _same(own, held_out[best])
    edges = _edges(calibration[name].scores)
    seen = np.concatenate([_sortable(split[name].scores) for split in (calibration, held_out)])
    # Compared as float32, because that is how scores come back from a worker.
    counts = np.bincount(np.searchsorted(edges, seen.astype(np.float32), side="right"), minlength=len(edges) + 1)
    same_as = {}
    for other in held_out:
        known = [_same(split[name], split[other]) for split in (calibration, held_out)]
        if other != name and all(part is not None for part in known):
            same_as[other] = float(np.concatenate([part for part in known if part is not None]).mean())
    return Sureness(
        right=tuple(float(own.right[part].mean()) for part in tenths),
        agreement=tuple(float(np.mean(same[part])) for part in tenths) if same is not None else (),
        edges=tuple(edges) if len(edges) else (),
        parts=tuple((counts / len(seen)).tolist()) if len(edges) else (),
        rows=len(seen) if len(edges) else 0,
        alike=same_as,
    )


def _sortable(scores: Floats) -> Floats:
    sortable: Floats = np.where(np.isnan(scores), -np.inf, scores)
    return sortable


def _same(one: Answers, other: Answers) -> NDArray[np.bool_] | None:
    """Return on which rows two variants give the same answer; None if their answers were not kept."""
    if one.said is None or other.said is None or len(one.said) != len(other.said):
        return None
    return alike(one.said, other.said)


def _edges(scores: Floats) -> list[float]:
    """Return the scores that separate the tenths; fewer if many scores are equal, none if all are."""
    known = scores[~np.isnan(scores)].astype(np.float32)
    if not len(known):
        return []
    edges = np.unique(np.quantile(known, np.linspace(0.0, 1.0, TENTHS + 1)[1:-1], method="higher"))
    return [float(edge) for edge in edges if edge > known.min()]


def common_rows(answers: Mapping[str, Answers]) -> dict[str, Answers]:
    """Return the answers to the rows that all variants saw: a slow one may have seen fewer, in the same order."""
    rows = min(len(own.right) for own in answers.values())
    return {
        name: Answers(own.scores[:rows], own.right[:rows], own.said[:rows] if own.said is not None else None)
        for name, own in answers.items()
    }


def levels(scores: Floats) -> list[float]:
    """Return the thresholds to try, rising: quantiles of the scores, rounded to float32, without repeats."""
    known = scores[~np.isnan(scores)]
    quantiles = np.quantile(known, np.linspace(0.0, 1.0, LEVELS + 2)[1:-1]) if len(known) else ()
    return sorted({float(np.float32(value)) for value in quantiles})


def every_chain(answers: Mapping[str, Answers], costs: Mapping[str, float]) -> Iterator[ChainOutcome]:
    """Yield every chain of one to three variants, each more expensive than the one before, with every threshold.  All
    thresholds of a chain are computed at once.  Rows are counted in a table by where their scores fall between the
    thresholds of the first two stages; cumulative sums over that table are the rows that both stages pass on."""
    names = list(answers)
    grids = {name: np.array(levels(own.scores)) for name, own in answers.items()}
    cells = {name: _cells(own.scores, grids[name]) for name, own in answers.items()}
    right = {name: own.right.astype(np.float64) for name, own in answers.items()}
    for length in range(1, min(_LONGEST, len(names)) + 1):
        for chain in itertools.combinations(names, length):
            if any(costs[low] >= costs[high] for low, high in itertools.pairwise(chain)):
                continue
            stages = [cells[name] for name in chain[:-1]]
            sizes = [len(grids[name]) for name in chain[:-1]]
            rows = len(right[chain[0]])
            reach = [_below(stages[:k], sizes[:k], np.ones(rows)) / rows for k in range(length)]
            gained = [right[chain[k]] - (right[chain[k - 1]] if k else 0.0) for k in range(length)]
            gains = [_below(stages[:k], sizes[:k], gain) / rows for k, gain in enumerate(gained)]
            for at in np.ndindex(*sizes):
                parts = tuple(float(part[at[:k]]) for k, part in enumerate(reach))
                yield ChainOutcome(
                    chain,
                    tuple(float(grids[name][k]) for name, k in zip(chain, at, strict=False)),
                    sum(float(gain[at[:k]]) for k, gain in enumerate(gains)),
                    parts,
                    sum(part * costs[name] for part, name in zip(parts, chain, strict=True)),
                )


def _cells(scores: Floats, grid: Floats) -> Cells:
    """Return how many thresholds of a rising `grid` each score reaches; 0 for NaN, so that the row is passed on."""
    cells: Cells = np.searchsorted(grid, np.where(np.isnan(scores), -np.inf, scores), side="right")
    return cells


def _below(stages: Sequence[Cells], sizes: Sequence[int], weights: Floats) -> Floats:
    """Return sums [k, ...], k below `sizes`, of `weights` [rows] over rows whose cell of every stage is at most k."""
    if not stages:
        return np.array(weights.sum(), np.float64)
    whole = [size + 1 for size in sizes]
    flat = np.ravel_multi_index(tuple(stages), whole)
    sums: Floats = np.bincount(flat, weights, minlength=math.prod(whole)).reshape(whole).astype(np.float64)
    for axis in range(len(sizes)):
        sums = sums.cumsum(axis=axis)
    return sums[tuple(slice(size) for size in sizes)]


def front(played: Iterable[ChainOutcome]) -> list[ChainOutcome]:
    """Return the Pareto front: from the cheapest up, those that are more accurate than all before them."""
    outcomes: list[ChainOutcome] = []
    for item in sorted(played, key=lambda item: (item.cost, -item.accuracy, len(item.chain), item.thresholds)):
        if not outcomes or item.accuracy > outcomes[-1].accuracy:
            outcomes.append(item)
    return outcomes


def thin(points: Sequence[ChainOutcome], most: int = POINTS) -> list[ChainOutcome]:
    """Return at most `most` points of a front, both ends among them.

    Inner points are removed one by one: each time the one that costs least area between accuracy and the logarithm of
    cost.  (The same number of points, spread evenly over accuracies, left chains within 0.1 points of the best variant
    up to 1.4 times as expensive on `fashion`.)
    """
    kept = list(points)
    accuracy = [item.accuracy for item in kept]
    width = [math.log(max(item.cost, 1e-12)) for item in kept]
    while len(kept) > most:
        lost = [(accuracy[k] - accuracy[k - 1]) * (width[k + 1] - width[k]) for k in range(1, len(kept) - 1)]
        at = 1 + lost.index(min(lost))
        del kept[at], accuracy[at], width[at]
    return kept


def _point(answers: Mapping[str, Answers], costs: Mapping[str, float], chosen: ChainOutcome, best: str) -> ChainPoint:
    """Return the figures of a chosen chain on the rows of `answers`; `best` is the variant it is compared with."""
    outcome = play(answers, costs, chosen.chain, chosen.thresholds)
    rows = len(answers[chosen.chain[0]].right)
    low, high = interval(outcome.accuracy * rows, rows)
    here = np.ones(rows, np.bool_)
    right = np.zeros(rows)
    ends, cut, agreed = [], [], []
    overruled = -1.0
    for name, threshold in itertools.zip_longest(chosen.chain, chosen.thresholds):
        own = answers[name]
        same = _same(own, answers[best])
        passed_on = here & ~(own.scores >= threshold) if threshold is not None else np.zeros(rows, np.bool_)
        right[here & ~passed_on] = own.right[here & ~passed_on]
        ends.append(_percent(own.right, here & ~passed_on))
        cut.append(_percent(own.right, passed_on if threshold is not None else here))
        if same is not None:
            agreed.append(_percent(same, here & ~passed_on) / 100.0)
            if len(ends) == len(chosen.chain) - 1 and chosen.chain[-1] == best:
                overruled = float((passed_on & ~same).mean())
        here = passed_on
    return ChainPoint(
        chain=chosen.chain,
        thresholds=chosen.thresholds,
        accuracy=100.0 * outcome.accuracy,
        low=low,
        high=high,
        reach=outcome.reach,
        ends=tuple(ends),
        cut=tuple(cut),
        cost=outcome.cost,
        against=against(right, answers[best].right),
        alike=tuple(agreed) if len(agreed) == len(ends) else (),
        overruled=overruled,
    )


def against(right: Rights, best: Rights) -> tuple[float, float, float]:
    """Return by how many points `right` is right more often than `best`, with the 95 % interval of a paired difference.
    The spread is that of the differences themselves, so it holds for rows that are partly right as well."""
    apart = right.astype(np.float64) - best
    middle, spread = 100.0 * float(apart.mean()), 196.0 * float(apart.std()) / math.sqrt(len(apart))
    return middle, middle - spread, middle + spread


def _percent(right: Rights, rows: NDArray[np.bool_]) -> float:
    """Return accuracy (percent) over `rows`, or over all rows if these are none."""
    return 100.0 * float(right[rows].mean() if rows.any() else right.mean())
