"""Which configurations are weighed: all of them while there are few, and a part that says what it leaves out else.

The number of configurations explodes with the devices (A100s and five variants: thousands on one, hundreds of thousands
on two, 10^13 on ten), so there is a ladder, and the first rung of at most `FULL` configurations is taken:

 1. every configuration;
 2. those of at most two variants: a linear objective with one accuracy constraint mixes no more, unless a capacity
    limit binds;
 3. devices of a kind *all alike* (one layout and one deal of at most two variants, on each of them), or *split*: some
    in one layout with one variant, the rest in another with another.  Shares, not counts, do most of the mixing, so a
    good configuration of many devices usually has a neighbour here; but it may be better than that neighbour;
 4. the same, split at the quarters only, then at half;
 5. all alike only; with one variant a kind, where devices of many kinds multiply.

Nothing is said about how far the best of a rung is from the best of all, beyond the bound that every plan carries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from clover.errors import PlanError
from clover.planning.enumerate import Fitting, Kinds, Profiles, configurations_of, deals, in_order, kinds_of, only
from clover.types import Configuration, DeviceShape, GroupCount

FULL = 20_000
_VARIANTS = 2

Counts = dict[tuple[str, str], int]


def space_of(devices: Sequence[DeviceShape], fitting: Fitting, limit: int = FULL) -> tuple[list[Configuration], str]:
    """The configurations to weigh, and what was left out in words (empty: nothing); PlanError where even the last rung
    holds more than `limit`."""
    return _space(kinds_of(devices), tuple(sorted(fitting.items())), limit)


@lru_cache(maxsize=8)  # the same devices are planned for again and again
def _space(kinds: Kinds, fits: tuple[tuple[str, tuple[str, ...]], ...], limit: int) -> tuple[list[Configuration], str]:
    fitting = dict(fits)
    names = sorted({variant for variants in fitting.values() for variant in variants})
    for most in (0, _VARIANTS) if len(names) > _VARIANTS else (0,):
        try:
            space = configurations_of(kinds, fitting, limit=limit, max_variants=most)
        except PlanError:
            continue
        return space, f"searched configurations of at most {most} variants" if most else ""
    for parts, mixed, words in (
        (0, True, "all alike or in two layouts"),
        (4, True, "all alike, or in two layouts split at the quarters"),
        (2, True, "all alike, or in two layouts by halves"),
        (1, True, "all alike"),
        (1, False, "all alike, each kind with one variant"),
    ):
        found = _similar(kinds, fitting, names, parts, mixed, limit)
        if found is not None:
            return found, f"searched GPUs of a kind {words}, with at most {_VARIANTS} variants"
    raise PlanError(f"devices of {len(kinds)} kinds have more than {limit} configurations even if all alike")


def _similar(
    kinds: Kinds,
    fitting: Fitting,
    names: Sequence[str],
    parts: int,
    mixed: bool,
    limit: int,
) -> list[Configuration] | None:
    """The configurations of a rung; None where there are more than `limit`."""
    found: set[Configuration] = set()
    for chosen in itertools.combinations(names, min(_VARIANTS, len(names))):
        fits = only(fitting, chosen)
        options = []
        for multisets, number in kinds:
            alike = fits if mixed else None
            options.append(set(_alike(multisets, number, alike, fits)) | set(_split(multisets, number, fits, parts)))
            if len(options[-1]) > limit:
                return None
        if math.prod(map(len, options)) > limit:
            return None
        found.update(options[0] if len(options) == 1 else (_joined(parts) for parts in itertools.product(*options)))
        if len(found) > limit:
            return None
    return in_order(found)


def _alike(multisets: Iterable[Profiles], number: int, mixed: Fitting | None, fits: Fitting) -> Iterator[Configuration]:
    """All `number` devices with one layout and one deal; `mixed` None: with one variant."""
    for profiles in multisets:
        for deal in deals(profiles, mixed) if mixed is not None else _uniform(profiles, fits):
            yield _times(deal, number)


def _split(multisets: Sequence[Profiles], number: int, fits: Fitting, parts: int) -> Iterator[Configuration]:
    """Some devices with one variant in one layout, the others with one in another, for each number of the former (a
    multiple of `number` / `parts`, where `parts` is given)."""
    sizes = range(1, number) if not parts else sorted({round(number * i / parts) for i in range(1, parts)})
    uniform = [deal for profiles in multisets for deal in _uniform(profiles, fits)]
    for size in sizes:
        if not 0 < size < number:
            continue
        left = [_times(deal, size) for deal in uniform]
        right = [_times(deal, number - size) for deal in uniform]
        for one, other in itertools.product(left, right):
            yield _joined((one, other))


def _uniform(profiles: Profiles, fits: Fitting) -> Iterator[Configuration]:
    for variant in sorted({variant for variants in fits.values() for variant in variants}):
        if all(variant in fits.get(profile, ()) for profile, _ in profiles):
            yield tuple(GroupCount(variant=variant, profile=profile, count=n) for profile, n in profiles)


def _times(configuration: Configuration, number: int) -> Configuration:
    return tuple(GroupCount(variant=g.variant, profile=g.profile, count=g.count * number) for g in configuration)


def _joined(parts: Iterable[Configuration]) -> Configuration:
    counts: Counts = {}
    for group in itertools.chain(*parts):
        counts[group.variant, group.profile] = counts.get((group.variant, group.profile), 0) + group.count
    return tuple(GroupCount(variant=v, profile=p, count=n) for (v, p), n in sorted(counts.items()))
