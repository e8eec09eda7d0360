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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
