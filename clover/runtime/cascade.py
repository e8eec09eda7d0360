"""Cascades: which rows go on to a dearer variant, and what is to be expected of an answer.

A row that follows a *chain* is answered by its first variant.  Where the score that came back with the answer is below
the stage's threshold, the row goes on to the next one: its input stays in its slot, and only the slot moves to another
lane.  The last answer counts.  A row carries its chain from the moment it was submitted, so that thresholds turn
between two requests.

A row that should go on but cannot (its deadline would pass, nobody is there to ask, the next stage failed) keeps the
answer it has, and is counted as *cut short*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Ends = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain as the router follows it.

    `lanes` in the order in which they are asked; a row goes on from `lanes[k]` where its score is below
    `thresholds[k]`.  `ends` is the accuracy (percent) of the rows that end at each stage, `cut` that of the rows which
    end at a stage although they should go on; both from the profile's held-out rows.  `alike` is the part of those
    that end at each stage which is answered as the best variant does, of `alike_rows` rows; `overruled` the part of
    `overruled_rows` rows that goes on to the best variant, which says otherwise.  Nothing where that is unknown.
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
    """The plan's thresholds, where the guard has put others in their place."""

    def stage(self, lane: int) -> int:
        """Return the stage that asks `lane`; -1 for none."""
        return self.lanes.index(lane) if lane in self.lanes else -1

    def from_on(self, lane: int, live: int) -> int:
        """`lane`, or where it is not among the `live` ones (bits) the first of the stages after it that is."""
        later = self.lanes[self.stage(lane) :] if lane in self.lanes else ()
        return next((other for other in later if live >> other & 1), lane)


def chain_of(
    chain: Sequence[str],
    thresholds: Sequence[float],
    lanes: Mapping[str, int],
    accuracy: Sequence[float],
    known: Mapping[tuple[tuple[str, ...], tuple[float, ...]], tuple[Ends, Ends]],
) -> Chain:
    """Return the chain of these variants.  `known` gives `ends` and `cut` of profiled chains; of another one nothing
    better is known than each variant's own `accuracy`.  ValueError for a chain that cannot be followed."""
    names, levels = tuple(chain), tuple(thresholds)
    if len(set(names)) != len(names) or any(name not in lanes for name in names):
        raise ValueError(f"a chain asks known variants, each once, not {', '.join(names)}")
    if len(levels) != len(names) - 1 or not all(math.isfinite(level) for level in levels):
        raise ValueError(f"a chain of {len(names)} variants has {len(names) - 1} thresholds, not {list(levels)}")
    own = tuple(lanes[name] for name in names)
    alone = tuple(accuracy[lane] for lane in own)
    ends, cut = known.get((names, levels), (alone, alone))
    return Chain(own, levels, ends, cut)
