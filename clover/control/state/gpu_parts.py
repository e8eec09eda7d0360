"""Several families on one GPU: its memory slices are divided into parts, one a family, in proportion to their shares.

A part is a run of memory slices, and a family may use every placement that lies within its part.  Which parts there are
follows from the layouts that the GPU offers, whatever its kind: a part has to hold at least one placement, so an A100
has seven at most, and a GPU without MIG is one part.  Of all divisions that one is taken whose worst-off family has
most compute slices for its share, then the next worst-off; among equals the one with the largest single instances.

What one family runs never limits where another's instances lie, but it may limit which layouts go with it.  So a family
plans with the layouts that contain what the others have at the moment.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import msgspec

from clover.types import DeviceShape, Placement

LACKS = 1.1
GAINS = 1.25
Part = tuple[int, int]
"""Memory slices of a GPU, from the first to behind the last."""
Layouts = tuple[tuple[Placement, ...], ...]


def whole_part(shape: DeviceShape) -> Part:
    """Return all memory slices of a GPU."""
    return 0, max((place.start + place.size for layout in shape.layouts for place in layout), default=0)


def within(placement: Placement, part: Part) -> bool:
    """Return whether an instance at `placement` lies in `part`."""
    return part[0] <= placement.start and placement.start + placement.size <= part[1]


def most_parts(shape: DeviceShape) -> int:
    """Return how many families may share a GPU."""
    return max((len(layout) for layout in shape.layouts), default=0)


def part_slices(shape: DeviceShape, part: Part) -> int:
    """Return the most compute slices that instances within `part` have together."""
    return max((_compute(layout, part) for layout in shape.layouts), default=0)


def divided(shape: DeviceShape, shares: Mapping[str, float]) -> dict[str, Part]:
    """Return the part of each family of `shares`, which stand in the order of their parts; there must not be more than
    `most_parts`."""
    parts = _divided(shape.layouts, tuple(shares.values()))
    return dict(zip(shares, parts, strict=True))


@lru_cache(maxsize=256)
def _divided(layouts: Layouts, shares: Sequence[float]) -> tuple[Part, ...]:
    end = max(place.start + place.size for layout in layouts for place in layout)
    if len(shares) == 1:
        return ((0, end),)
    every = list(itertools.combinations(range(end + 1), 2))
    compute = {part: max(_compute(layout, part) for layout in layouts) for part in every}
    largest = {
        part: max((place.slices for layout in layouts for place in layout if within(place, part)), default=0)
        for part in every
    }

    def worth(parts: Sequence[Part]) -> tuple[list[float], int]:
        each = sorted(compute[part] / share for part, share in zip(parts, shares, strict=True))
        return each, sum(largest[part] for part in parts)

    cuts = itertools.combinations(range(1, end), len(shares) - 1)
    ways = (tuple(itertools.pairwise((0, *cut, end))) for cut in cuts)
    return max((way for way in ways if all(compute[part] for part in way)), key=worth)


def limited(shape: DeviceShape, part: Part, others: Collection[Placement]) -> DeviceShape:
    """Return a GPU as a family may plan with it: the placements within `part` that go with `others`, what the other
    families have there now; without layouts if there are none."""
    return msgspec.structs.replace(
        shape,
        layouts=_limited(shape.layouts, part, frozenset(others)),
        slices=part_slices(shape, part),
    )


def demanded(
    shape: DeviceShape, parts: Mapping[str, Part], shares: Mapping[str, float], needs: Mapping[str, float]
) -> dict[str, Part] | None:
    """Return the parts of a GPU that fit what its families need, in compute slices; None if `parts`, which they have,
    do well enough: no family lacks a tenth, or the one that lacks most would have less than a quarter more.

    What is left beyond the needs goes by share."""
    slices = {family: part_slices(shape, part) for family, part in parts.items()}
    if all(needs[family] <= LACKS * slices[family] for family in parts):
        return None
    total = sum(slices.values())
    left = max(0.0, total - sum(needs[family] for family in parts))
    whole = sum(shares[family] for family in parts)
    wanted = {family: needs[family] + left * shares[family] / whole for family in parts}
    found = divided(shape, {family: round(max(number, 0.1), 1) for family, number in wanted.items()})
    gain = min(part_slices(shape, part) / wanted[family] for family, part in found.items())
    return found if gain >= GAINS * min(slices[family] / wanted[family] for family in parts) else None


@lru_cache(maxsize=256)
def _limited(layouts: Layouts, part: Part, others: frozenset[Placement]) -> Layouts:
    found = dict.fromkeys(
        tuple(place for place in layout if within(place, part) and place not in others)
        for layout in layouts
        if others.issubset(layout)
    )
    sets = {layout: frozenset(layout) for layout in found if layout}
    return tuple(layout for layout, own in sets.items() if not any(own < other for other in sets.values()))


def _compute(layout: Sequence[Placement], part: Part) -> int:
    return sum(place.slices for place in layout if within(place, part))
