"""Which share of the rows each variant of a configuration gets.

Shares sum to 1, none above what the lane's capacity allows nor below the least asked of it, their accuracy at least
the floor; the objective is linear in them once the energy of a row is fixed.  That is a fractional knapsack with one
side constraint, and `best_mix` solves it exactly: with a price mu on accuracy, filling lanes in order of
gain + mu accuracy is optimal; raise mu through the points where two lanes change order until the floor is met, and
there combine the fill just below the floor with the one above it.  (The energy of a row depends on the batch size and
so on the share: it is re-read at the shares found, a few times over.)

The p95 limit is not linear.  If the best mix breaks it, the shares move as little as needed:
 - two variants: along the one line that is left, from the best end to the other (exact to the grid and its bisection);
 - three: over a triangular grid of step 1/12, best gain first, then back towards the best mix by bisection (exact to
   that grid);
 - more: along the segment from the best mix to the mix of least peak utilisation (a heuristic: it may miss a
   better mix, never return one that breaks the limit).
If neither the best mix, nor the one of least peak utilisation, nor those that give a lane the most rows it may have
meet the limit, nothing in between is tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_EPSILON = 1e-9
_LINE = 8
_GRID = 12
_BISECTIONS = 5

Mix = tuple[float, ...]


def best_mix(
    gains: Sequence[float],
    accuracy: Sequence[float],
    limits: Sequence[float],
    floor: float,
    least: Sequence[float] = (),
) -> Mix | None:
    """Return the shares of the highest total gain, between `least` (0 if not given) and `limits`; None if these do not
    hold all rows or the floor is out of reach."""
    if any(least):
        left = 1.0 - sum(least)
        if left < -_EPSILON or any(low > high + _EPSILON for low, high in zip(least, limits, strict=True)):
            return None
        if left <= _EPSILON:  # all rows are asked for
            return tuple(least) if _dot(least, accuracy) >= floor - _EPSILON else None
        rest = best_mix(
            gains,
            accuracy,
            [max(0.0, (high - low) / left) for low, high in zip(least, limits, strict=True)],
            (floor - _dot(least, accuracy)) / left,
        )
        return None if rest is None else tuple(low + left * share for low, share in zip(least, rest, strict=True))
    if sum(limits) < 1.0 - _EPSILON:
        return None
    count = range(len(gains))
    size = max(1e-12, *(abs(gain) for gain in gains))
    prices = {0.0}
    for i, j in itertools.permutations(count, 2):
        if accuracy[j] > accuracy[i] and gains[i] > gains[j]:
            prices.add((gains[i] - gains[j]) / (accuracy[j] - accuracy[i]))
    prices_up = sorted(prices)
    for price in prices_up:
        worth = [round((gains[i] + price * accuracy[i]) / size, 9) for i in count]
        high = _fill(sorted(count, key=lambda i: (-worth[i], -accuracy[i])), limits)
        reached = _dot(high, accuracy)
        if reached < floor - _EPSILON:
            continue
        if price == 0.0:
            return high
        low = _fill(sorted(count, key=lambda i: (-worth[i], accuracy[i])), limits)
        below = _dot(low, accuracy)
        part = 1.0 if reached - below < _EPSILON else min(1.0, max(0.0, (floor - below) / (reached - below)))
        return tuple(a + part * (b - a) for a, b in zip(low, high, strict=True))
    top = _fill(sorted(count, key=lambda i: (-accuracy[i], -gains[i])), limits)
    return top if _dot(top, accuracy) >= floor - _EPSILON else None


def balanced_mix(capacities: Sequence[float], accuracy: Sequence[float], floor: float) -> Mix | None:
    """Return the shares of the least peak utilisation that meet the floor; None if the floor is out of reach.

    Shares in proportion to capacity load all lanes alike.  If that is not accurate enough, rows move from the least
    accurate lane to all others alike, then from the next: at any peak load the most accurate mix fills the lanes from
    the top, and its accuracy is linear in the load until one more lane is empty.
    """
    if max(accuracy) < floor - _EPSILON:
        return None
    order = sorted(range(len(capacities)), key=lambda i: (-accuracy[i], -capacities[i]))
    mix = [0.0] * len(capacities)
    for filled in range(len(order), 0, -1):
        full = order[:filled]
        total = sum(capacities[i] for i in full)
        reached = sum(capacities[i] * accuracy[i] for i in full) / total
        if reached >= floor - _EPSILON:
            break
    # `full` alone is accurate enough; of the next lane as much as the floor allows.
    for i in full:
        mix[i] = capacities[i] / total
    if filled < len(order):
        following = order[filled]
        gap = reached - accuracy[following]
        part = max(0.0, min((reached - floor) / gap, capacities[following] / (total + capacities[following])))
        mix = [(1.0 - part) * share for share in mix]
        mix[following] = part
    return tuple(mix)


@dataclass(frozen=True)
class MixProblem:
    """How rows may be dealt to the lanes of a configuration, one entry a lane: what a unit of share gains, its accuracy
    (percent), its largest (`limits`) and `least` share, and the accuracy `floor` of all rows."""

    gains: Sequence[float]
    accuracy: Sequence[float]
    limits: Sequence[float]
    least: Sequence[float]
    floor: float

    def best(self) -> Mix | None:
        """Return the shares of the highest gain (`best_mix`); None if no shares are within the limits."""
        return best_mix(self.gains, self.accuracy, self.limits, self.floor, self.least)

    def gain(self, mix: Mix) -> float:
        """Return what the shares `mix` gain together."""
        return _dot(mix, self.gains)

    def allows(self, mix: Mix) -> bool:
        """Return whether `mix` is within the limits and reaches the floor."""
        bounds = zip(self.least, mix, self.limits, strict=True)
        fits = all(low - _EPSILON <= share <= high + _EPSILON for low, share, high in bounds)
        return fits and _dot(mix, self.accuracy) >= self.floor - _EPSILON


def within_p95(
    problem: MixProblem,
    start: Mix,
    balanced: Mix,
    p95_ms: Callable[[Mix], float],
    slo_ms: float,
    beat: float = -math.inf,
) -> tuple[Mix, bool]:
    """Return shares near `start` (the best mix) whose p95 meets `slo_ms`, and whether there are any; else those of the
    least p95 that were seen.  `balanced` is the mix of least peak utilisation.  p95 is not asked of shares that gain no
    more than `beat`."""
    seen: dict[Mix, float] = {}

    def p95(mix: Mix) -> float:
        if mix not in seen:
            seen[mix] = p95_ms(mix)
        return seen[mix]

    if p95(start) <= slo_ms:
        return start, True
    mixes = _candidates(problem, start, balanced)
    corners = {max(mixes, key=lambda mix: mix[i]) for i in range(len(start))} if mixes else set()
    if mixes and all(p95(mix) > slo_ms for mix in sorted(corners | {balanced} & set(mixes))):
        mixes = []
    for mix in mixes:
        if problem.gain(mix) <= beat:
            break  # they come best first
        if p95(mix) <= slo_ms:
            return _towards(start, mix, p95, slo_ms), True
    return min(seen, key=lambda mix: seen[mix]), False


def _candidates(problem: MixProblem, start: Mix, balanced: Mix) -> list[Mix]:
    """Return the mixes of which p95 may be asked, the highest gain first."""
    if len(start) == 1:
        return []
    if len(start) == 2:
        ends = [(x, 1.0 - x) for x in _ends(problem)]
        mixes = [_between(start, end, step / _LINE) for end in ends for step in range(1, _LINE + 1)]
        mixes.append(balanced)
    elif len(start) == 3:
        mixes = [
            (i / _GRID, j / _GRID, (_GRID - i - j) / _GRID) for i in range(_GRID + 1) for j in range(_GRID + 1 - i)
        ]
        mixes.append(balanced)
    else:
        mixes = [_between(start, balanced, step / _LINE) for step in range(1, _LINE + 1)]
    return sorted({mix for mix in mixes if problem.allows(mix)}, key=lambda mix: (-problem.gain(mix), mix))


def _ends(problem: MixProblem) -> tuple[float, float]:
    """Return the least and greatest share of the first of two lanes."""
    limits, least, (first, second) = problem.limits, problem.least, problem.accuracy
    low, high = max(least[0], 1.0 - limits[1]), min(1.0 - least[1], limits[0])
    step = first - second
    if step > _EPSILON:
        low = max(low, (problem.floor - second) / step)
    elif step < -_EPSILON:
        high = min(high, (problem.floor - second) / step)
    return min(low, high), max(low, high)


def _towards(start: Mix, good: Mix, p95: Callable[[Mix], float], slo_ms: float) -> Mix:
    """Return the mix between `good`, which meets the limit, and `start` that bisection finds to meet it still."""
    bad, part = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (bad + part)
        if p95(_between(start, good, middle)) <= slo_ms:
            part = middle
        else:
            bad = middle
    return _between(start, good, part)


def _fill(order: Sequence[int], limits: Sequence[float]) -> Mix:
    left = 1.0
    mix = [0.0] * len(limits)
    for index in order:
        mix[index] = min(left, limits[index])
        left -= mix[index]
    return tuple(mix)


def _between(start: Mix, end: Mix, part: float) -> Mix:
    return end if part >= 1.0 else tuple(a + part * (b - a) for a, b in zip(start, end, strict=True))


def _dot(mix: Sequence[float], values: Sequence[float]) -> float:
    return sum(share * value for share, value in zip(mix, values, strict=True))
