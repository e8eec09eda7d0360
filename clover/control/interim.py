"""How rows go while a transition is under way, or workers were lost: to the workers that there are, as far as these
can serve them.

A plan's shares were sized for the workers of the plan.  With half of them gone, a lane that keeps its share may get
more rows than it can serve, and its queue grows by the second although other lanes have room: p95 of many seconds from
a change that lost no row.  So no lane gets more than `FULL` of what its workers can serve, and the rest goes where
there is room.  If all of them together have too little, each gets its part of the whole.

Lanes that one process serves share its time: rows of a slow one take more of it than rows of a fast one.  So what
counts is the part of its time that each process is busy, and a process has the room of its fastest lane, once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clover.planning.transition.layout import Capacity
from clover.types import Assignment, Routing

FULL = 0.8
"""The part of a lane's capacity up to which it gets rows: above it, queues are long even if they do not grow."""
_HALVINGS = 20
"""Times that the range of what goes to the fastest lanes is halved: to a millionth."""
_ROUNDED = 1e-9
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
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for item in routed:
            found[item.placement.id][item.variant] = offered.capacity(item)
        places = tuple(found.values())
        reach = offered.reach(chained) if chained.chain else ()
        stages = zip(chained.chain, reach, strict=False)
        if not have_room(places, {variant: offered.rate * part for variant, part in stages}):
            chained = NOWHERE
        shares = within(shares, places, offered.rate)
    return Routing(
        shares=shares,
        largest={variant: rows for variant, rows in before.largest.items() if variant in weights},
        wait_ms=dict.fromkeys((variant for variant in before.wait_ms if variant in weights), 0.0),
        chain=chained.chain,
        thresholds=chained.thresholds,
    )


def within(shares: dict[str, float], places: Sequence[Mapping[str, float]], rate: float) -> dict[str, float]:
    """Return `shares` of `rate` rows/s with what is more than `FULL` of a lane's capacity moved to lanes with room, in
    proportion to it; in proportion to capacity if all have too little.  `places`: the rows/s of each process, by
    variant.  If one that is shared has too little time for that, as much as it takes goes to the fastest lanes."""
    lanes, fastest = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0.0)
    for place in places:
        for variant, most_rows in place.items():
            lanes[variant] += most_rows
        best = max(place, key=place.__getitem__)
        fastest[best] += place[best]
    whole = sum(fastest.values())
    if rate <= 0.0 or whole <= 0.0:
        return shares
    fastest = {variant: rows / whole for variant, rows in fastest.items()}
    if FULL * whole <= rate:
        return fastest
    most = {variant: FULL * lanes[variant] / rate for variant in shares}
    kept = {variant: min(share, most[variant]) for variant, share in shares.items()}
    room = {variant: most[variant] - kept[variant] for variant in shares}
    moved = 1.0 - sum(kept.values())
    found = {variant: kept[variant] + moved * room[variant] / sum(room.values()) for variant in shares}

    def towards_fastest(part: float) -> dict[str, float]:
        return {variant: share + part * (fastest[variant] - share) for variant, share in found.items()}

    def good(shares: dict[str, float]) -> bool:
        return have_room(places, {variant: rate * share for variant, share in shares.items()})

    low, high = 0.0, 1.0
    if all(len(place) == 1 for place in places) or good(found):
        return found
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if good(towards_fastest(middle)) else (middle, high)
    return towards_fastest(high)


def have_room(places: Sequence[Mapping[str, float]], rows_per_s: Mapping[str, float]) -> bool:
    """Return whether processes that serve `places` (rows/s by variant) can serve `rows_per_s` with no process busy for
    more than `FULL` of its time.  Lanes of few processes choose first, and processes of few lanes are taken first."""
    free = [FULL] * len(places)
    order = sorted(range(len(places)), key=lambda place: len(places[place]))
    serving = {variant: [place for place in order if variant in places[place]] for variant in rows_per_s}
    for variant in sorted(rows_per_s, key=lambda variant: len(serving[variant])):
        left = rows_per_s[variant]
        for place in serving[variant]:
            taken = min(left, free[place] * places[place][variant])
            if taken > 0.0:
                free[place] -= taken / places[place][variant]
                left -= taken
        if left > _ROUNDED * rows_per_s[variant]:
            return False
    return True
