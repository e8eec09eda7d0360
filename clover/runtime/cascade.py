"""Cascades: which rows are escalated to a more expensive variant, and the accuracy to expect of an answer.

A row that follows a *chain* is answered by its first variant.  If the score of that answer is below the stage's
threshold, the row is escalated to the next variant: its input stays in its slot, and only the slot joins another lane's
queue.  The last answer counts.  A row keeps the chain that it was submitted with, so that thresholds change between two
requests.

A row that should be escalated but cannot be (its deadline would pass, the next variant has no worker or failed) keeps
the answer that it has, and is counted as *cut short*.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clover.types import CascadeProfile

Ends = tuple[float, ...]


@dataclass(frozen=True)
class RoutedChain:
    """A chain as the router follows it.

    `lanes` in the order in which they are asked; a row is escalated from `lanes[k]` if its score is below
    `thresholds[k]`.  `ends` is the accuracy (percent) of the rows that end at each stage, `cut` that of the rows which
    end at a stage although they should be escalated; both from the profile's held-out rows.  `alike` is the share of
    the rows ending at each stage, of `alike_rows`, that the best variant answers the same; `overruled` the share of
    `overruled_rows` rows that is escalated to the best variant and answered differently by it.  Empty or 0 if
    unknown.
    """

    lanes: tuple[int, ...]
    thresholds: tuple[float, ...]
    ends: Ends
    cut: Ends
    alike: Ends = ()
    alike_rows: tuple[int, ...] = ()
    overruled: float = 0.0
    overruled_rows: int = 0
    planned: tuple[float, ...] = ()
    """The plan's thresholds, if the guard has replaced them."""
    escalations: float = 0.0
    """Escalations a row that the profile expects; 0 if that is unknown."""
    accuracy: float = 0.0
    """Accuracy (percent) of all rows by the plan's thresholds; 0 if that is unknown."""

    def stage(self, lane: int) -> int:
        """Return the stage that asks `lane`; -1 for none."""
        for stage, own in enumerate(self.lanes):
            if own == lane:
                return stage
        return -1

    def from_on(self, lane: int, live: int) -> int:
        """Return `lane`, or if it is not `live` (bits) the first lane of a later stage that is."""
        later = self.lanes[self.stage(lane) :] if lane in self.lanes else ()
        return next((other for other in later if live >> other & 1), lane)


def chain_of(
    chain: Sequence[str],
    thresholds: Sequence[float],
    lanes: Mapping[str, int],
    accuracy: Sequence[float],
    known: Mapping[tuple[tuple[str, ...], tuple[float, ...]], tuple[Ends, Ends]],
) -> RoutedChain:
    """Return the chain of these variants.  `known` gives `ends` and `cut` of profiled chains; for any other one each
    variant's own `accuracy` is used.  Raises ValueError for a chain that cannot be followed."""
    names, levels = tuple(chain), tuple(thresholds)
    if len(set(names)) != len(names) or any(name not in lanes for name in names):
        raise ValueError(f"a chain asks known variants, each once, not {', '.join(names)}")
    if len(levels) != len(names) - 1 or not all(math.isfinite(level) for level in levels):
        raise ValueError(f"a chain of {len(names)} variants has {len(names) - 1} thresholds, not {list(levels)}")
    own = tuple(lanes[name] for name in names)
    alone = tuple(accuracy[lane] for lane in own)
    ends, cut = known.get((names, levels), (alone, alone))
    return RoutedChain(own, levels, ends, cut)


def tighten(chain: RoutedChain, cascade: CascadeProfile, variants: Sequence[str]) -> RoutedChain:
    """Return a chain of `variants` with tightened thresholds, and what `cascade` expects of it: of the profiled rows
    that would have ended at a stage, half are escalated."""
    scores = [cascade.quantiles.get(variants[lane], ()) for lane in chain.lanes]
    levels = tuple(map(_tighter, scores, chain.thresholds))
    part, below = 0.0, _below(scores[0], levels[0])
    if len(chain.lanes) == 2 and variants[chain.lanes[1]] == cascade.best:
        part = _overruled_share(cascade, variants[chain.lanes[0]], below)
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


def _overruled_share(cascade: CascadeProfile, variant: str, below: float) -> float:
    """Return the share of rows that are among the `below` (a share) least sure and that `variant` answers differently
    from the best one, or a little more, as tenths count whole; 0 if that is unknown."""
    own = cascade.sureness.get(variant)
    if own is None or not own.agreement:
        return 0.0
    tenths = own.agreement[: math.ceil(below * len(own.agreement))]
    return sum(1.0 - part for part in tenths) / len(own.agreement)
