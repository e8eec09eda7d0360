"""Points of a cascade profile over three variants, of which one is beaten by another."""

from __future__ import annotations

from clover.types import ChainPoint


def point(chain: tuple[str, ...], accuracy: float, *reach: float) -> ChainPoint:
    """Chain, accuracy, and the parts that go on; the thresholds are these parts, so that each is another one."""
    return ChainPoint(
        chain=chain,
        thresholds=reach,
        accuracy=accuracy,
        low=accuracy - 0.5,
        high=accuracy + 0.5,
        reach=(1.0, *reach),
        ends=(accuracy,) * len(chain),
        cut=(accuracy,) * len(chain),
        cost=0.1,
    )


POINTS = (
    point(("small", "medium"), 89.0, 0.2),
    point(("small", "medium"), 89.6, 0.5),
    point(("small", "large"), 90.0, 0.1),
    point(("small", "large"), 91.0, 0.25),
    point(("small", "large"), 91.5, 0.4),
    point(("small", "large"), 91.2, 0.6),  # beaten by the one before
    point(("medium", "large"), 91.6, 0.2),
    point(("medium", "large"), 91.95, 0.5),
    point(("small", "medium", "large"), 91.7, 0.3, 0.1),
)
