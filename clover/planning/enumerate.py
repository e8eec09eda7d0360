"""Every configuration of a set of devices: layouts, and variants dealt to their placements as multisets.

Only what the queueing model can tell apart counts: two layouts with the same profiles, or two deals that differ in
which of two equal placements holds which variant, are one configuration.  Every placement of a layout holds a worker
(one without rows costs no active energy, and the routing may leave it without).  The count before removing doubles is
a product of binomials a layout, known without listing: where it exceeds `limit`, PlanError says so, and the caller may
ask for configurations of at most `max_variants` different variants instead: a routing over a linear objective with
one accuracy constraint mixes at most two variants unless a capacity limit binds.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from clover.errors import PlanError
from clover.types import Configuration, DeviceShape, GroupCount

LIMIT = 200_000

Profiles = tuple[tuple[str, int], ...]
"""A multiset of profiles: sorted (profile, count)."""


def profile_sets(devices: Sequence[DeviceShape], limit: int = LIMIT) -> list[Profiles]:
    """The different multisets of profiles that the devices' layouts allow together, sorted."""
    sums: set[Profiles] = {()}
    for device in devices:
        own = {_multiset(placement.profile for placement in layout) for layout in device.layouts}
        sums = {_added(left, right) for left in sums for right in own}
        if len(sums) > limit:
            raise PlanError(f"more than {limit} combinations of layouts: too many to list")
    return sorted(sums)


def count(devices: Sequence[DeviceShape], fitting: dict[str, tuple[str, ...]], limit: int = LIMIT) -> int:
    """How many configurations there are at most (those of different layouts counted apart)."""
    return sum(
        math.prod(math.comb(n + len(fitting.get(profile, ())) - 1, n) for profile, n in profiles)
        for profiles in profile_sets(devices, limit)
        if all(fitting.get(profile) for profile, _ in profiles)
    )


def configurations(
    devices: Sequence[DeviceShape],
    fitting: dict[str, tuple[str, ...]],
    *,
    limit: int = LIMIT,
    max_variants: int = 0,
) -> list[Configuration]:
    """All configurations, sorted; `fitting` names the variants that run on each profile.

    `max_variants` > 0 keeps those of at most that many different variants.  Layouts with a profile on which nothing
    runs are left out.  Raises PlanError above `limit`.
    """
    names = sorted({variant for variants in fitting.values() for variant in variants})
    if not 0 < max_variants < len(names):
        expected = count(devices, fitting, limit)
        if expected > limit:
            raise PlanError(f"{expected} configurations are too many to list (the limit is {limit})")
        return sorted(set(_of(devices, fitting, limit)), key=_key)
    found: set[Configuration] = set()
    for chosen in itertools.combinations(names, max_variants):
        only = {profile: tuple(v for v in variants if v in chosen) for profile, variants in fitting.items()}
        if count(devices, only, limit) + len(found) > limit:
            raise PlanError(f"more than {limit} configurations of {max_variants} variants: too many to list")
        found.update(_of(devices, only, limit))
    return sorted(found, key=_key)


def _of(devices: Sequence[DeviceShape], fitting: dict[str, tuple[str, ...]], limit: int) -> Iterable[Configuration]:
    for profiles in profile_sets(devices, limit):
        if not all(fitting.get(profile) for profile, _ in profiles):
            continue
        deals = [
            [
                [GroupCount(variant=variant, profile=profile, count=k) for variant, k in sorted(Counter(deal).items())]
                for deal in itertools.combinations_with_replacement(fitting[profile], n)
            ]
            for profile, n in profiles
        ]
        for parts in itertools.product(*deals):
            yield tuple(sorted(itertools.chain(*parts), key=lambda group: (group.variant, group.profile)))


def _key(configuration: Configuration) -> list[tuple[str, str, int]]:
    return [(group.variant, group.profile, group.count) for group in configuration]


def _multiset(items: Iterable[str]) -> Profiles:
    return tuple(sorted(Counter(items).items()))


def _added(left: Profiles, right: Profiles) -> Profiles:
    return tuple(sorted((Counter(dict(left)) + Counter(dict(right))).items()))
