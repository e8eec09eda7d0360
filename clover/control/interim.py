"""How rows go while a transition is under way, or workers were lost: to the workers that there are, as far as these
can serve them.

A plan's shares were sized for the workers of the plan.  With half of them gone, a lane that keeps its share may get
more rows than it can serve, and its queue grows by the second although other lanes have room: p95 of many seconds from
a change that lost no row.  So no lane gets more than `FULL` of what its workers can serve, and the rest goes where
there is room.  If all of them together have too little, each gets its part of the whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clover.planning.transition.layout import Capacity
from clover.types import Assignment, Routing

FULL = 0.8
"""The part of a lane's capacity up to which it gets rows: above it, queues are long even if they do not grow."""
NOWHERE = Routing(shares={})
"""The routing without any worker."""


@dataclass(frozen=True)
class OfferedLoad:
    """What workers have to serve: `rate` rows/s; `capacity` gives the rows/s of a worker, `reach` which part of the
    rows comes to each stage of a routing's chain (nothing if that is not known)."""

    rate: float
    capacity: Capacity
    reach: Callable[[Routing], Sequence[float]] = lambda routing: ()


def interim(
    routed: Sequence[Assignment], routing: Routing, before: Routing, offered: OfferedLoad | None = None
) -> Routing:
    """Return the routing while only `routed` take rows: each variant's new share, else its old one, made to sum to 1;
    equal shares if none has any.  With `offered`, no more than their workers can serve.

    Largest batches are those of before.  The chain is the new one if all its variants are there, else the old one, else
    none; and none if a stage could not serve the rows that come to it.  No lane waits for a batch to fill: waits were
    sized for so many workers, and neither the new nor the old ones need hold for the workers there are meanwhile."""
    names = list(dict.fromkeys(item.variant for item in routed))
    weights = {variant: routing.shares.get(variant, 0.0) or before.shares.get(variant, 0.0) for variant in names}
    total = sum(weights.values())
    shares = {variant: weights[variant] / total if total > 0.0 else 1.0 / len(names) for variant in names}
    chained = next((item for item in (routing, before) if item.chain and weights.keys() >= set(item.chain)), NOWHERE)
    if offered is not None:
        lanes: dict[str, float] = defaultdict(float)
        for item in routed:
            lanes[item.variant] += offered.capacity(item)
        reach = offered.reach(chained) if chained.chain else ()
        stages = zip(chained.chain, reach, strict=False)
        if any(offered.rate * part > FULL * lanes[variant] for variant, part in stages):
            chained = NOWHERE
        shares = within(shares, lanes, offered.rate)
    return Routing(
        shares=shares,
        largest={variant: rows for variant, rows in before.largest.items() if variant in weights},
        wait_ms=dict.fromkeys((variant for variant in before.wait_ms if variant in weights), 0.0),
        chain=chained.chain,
        thresholds=chained.thresholds,
    )


def within(shares: dict[str, float], lanes: dict[str, float], rate: float) -> dict[str, float]:
    """Return `shares` of `rate` rows/s with what is more than `FULL` of a lane's capacity (`lanes`, rows/s) moved to
    lanes with room, in proportion to it; in proportion to capacity if all have too little."""
    whole = sum(lanes[variant] for variant in shares)
    if rate <= 0.0 or whole <= 0.0:
        return shares
    most = {variant: FULL * lanes[variant] / rate for variant in shares}
    if sum(most.values()) <= 1.0:
        return {variant: lanes[variant] / whole for variant in shares}
    kept = {variant: min(share, most[variant]) for variant, share in shares.items()}
    room = {variant: most[variant] - kept[variant] for variant in shares}
    moved = 1.0 - sum(kept.values())
    return {variant: kept[variant] + moved * room[variant] / sum(room.values()) for variant in shares}
