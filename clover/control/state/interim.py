"""How rows go while a transition is under way, or workers were lost, if the solver found no routing for those workers:
by the shares of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from clover.types import Assignment, Routing

NOWHERE = Routing(shares={})
"""The routing without any worker."""


def interim(routed: Sequence[Assignment], routing: Routing, before: Routing) -> Routing:
    """Return the routing while only `routed` take rows: each variant's new share, else its old one, made to sum to 1;
    equal shares if none has any.

    Largest batches are those of before.  The chain is the new one if all its variants are there, else the old one, else
    none.  No lane waits for a batch to fill: waits were sized for so many workers, and neither the new nor the old ones
    need hold for the workers there are meanwhile."""
    names = list(dict.fromkeys(item.variant for item in routed))
    weights = {variant: routing.shares.get(variant, 0.0) or before.shares.get(variant, 0.0) for variant in names}
    total = sum(weights.values())
    chained = next((item for item in (routing, before) if item.chain and weights.keys() >= set(item.chain)), NOWHERE)
    return Routing(
        shares={variant: weights[variant] / total if total > 0.0 else 1.0 / len(names) for variant in names},
        largest={variant: rows for variant, rows in before.largest.items() if variant in weights},
        wait_ms=dict.fromkeys((variant for variant in before.wait_ms if variant in weights), 0.0),
        chain=chained.chain,
        thresholds=chained.thresholds,
    )
