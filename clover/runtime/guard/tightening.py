"""Tightened thresholds: of the profiled rows that would have ended at a stage, half are escalated."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from clover.runtime.cascade import RoutedChain
from clover.types import CascadeProfile


def tighten(chain: RoutedChain, cascade: CascadeProfile, variants: Sequence[str]) -> RoutedChain:
    """Return a chain of `variants` with tightened thresholds, and what `cascade` expects of it."""
    scores = [cascade.quantiles.get(variants[lane], ()) for lane in chain.lanes]
    levels = tuple(map(_tighter, scores, chain.thresholds))
    part, below = 0.0, _below(scores[0], levels[0])
    if len(chain.lanes) == 2 and variants[chain.lanes[1]] == cascade.best:
        part = _overruled(cascade, variants[chain.lanes[0]], below)
    return replace(
        chain,
        thresholds=levels,
        overruled=part,
        overruled_rows=cascade.held_out_rows if part > 0.0 else 0,
        planned=chain.planned or chain.thresholds,
        # No row goes on from a later stage more often than it reached it.
        escalations=below * len(levels) if chain.escalations else 0.0,
    )


def _tighter(scores: Sequence[float], threshold: float) -> float:
    """Return a threshold with half of the `scores` above it that are above `threshold`."""
    above = [score for score in scores if score >= threshold]
    return max(threshold, above[len(above) // 2]) if above else threshold


def _below(scores: Sequence[float], threshold: float) -> float:
    """Return the profiled share of rows with scores below `threshold`, or up to a 32nd more; 0 if that is unknown."""
    return min(bisect_left(scores, threshold) / (len(scores) - 1), 1.0) if scores else 0.0


def _overruled(cascade: CascadeProfile, variant: str, below: float) -> float:
    """Return the share of rows that are among the `below` (a share) least sure and that `variant` answers differently
    from the best one, or a little more, as tenths count whole; 0 if that is unknown."""
    own = cascade.sureness.get(variant)
    if own is None or not own.agreement:
        return 0.0
    tenths = own.agreement[: math.ceil(below * len(own.agreement))]
    return sum(1.0 - part for part in tenths) / len(own.agreement)
