"""Every configuration of a set of devices: layouts, and variants dealt to their placements as multisets.

Only what differs in the queueing model counts: two layouts with the same profiles, or two deals that differ in
which of two equal placements holds which variant, are one configuration.  Every placement of a layout holds a worker
(one without rows costs no active energy, and the routing may leave it without).  The count before removing doubles is
a product of binomials a layout, known without listing: if it exceeds `limit`, PlanError says so.

Devices that allow the same multisets of profiles are of one *kind*.  How many multisets n devices of a kind with m of
their own have together is at most C(m + n - 1, n), and less if some are the same: 14 and 74 for one and two A100s,
hundreds of thousands for ten.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from clover.errors import PlanError
from clover.types import Configuration, DeviceShape, GroupCount

_BITS = 20  # of a profile's count in a packed multiset

Profiles = tuple[tuple[str, int], ...]
"""A multiset of profiles: sorted (profile, count)."""
Kinds = tuple[tuple[tuple[Profiles, ...], int], ...]
"""Kinds of devices: the multisets of one, and how many there are."""
Fitting = dict[str, tuple[str, ...]]
"""The variants that run on each profile."""


def multisets_of(device: DeviceShape) -> tuple[Profiles, ...]:
    """Return the different multisets of profiles of the device's layouts, sorted; those without a placement do not
    count."""
    return tuple(sorted({_multiset(placement.profile for placement in layout) for layout in device.layouts if layout}))


def kinds_of(devices: Sequence[DeviceShape]) -> Kinds:
    """Return the multisets of each kind of device, and how many devices of it there are.  A device that has no layout
    (lost, or full of what others own) is left out."""
    kinds = Counter(multisets_of(device) for device in devices)
    return tuple((kind, number) for kind, number in kinds.items() if kind)


def profile_sets_of(kinds: Kinds, limit: int) -> list[Profiles]:
    """Return the different multisets of profiles that the layouts of these devices allow together, sorted.  Raises
    PlanError above `limit`."""
    names = sorted({profile for kind, _ in kinds for profiles in kind for profile, _ in profiles})
    at = {profile: position * _BITS for position, profile in enumerate(names)}
    sums = {0}
    for kind, number in kinds:
        if math.comb(len(kind) + number - 1, number) > 4 * limit:  # some are the same, but not so many
            raise PlanError(f"more than {limit} combinations of layouts: too many to list")
        own = [sum(n << at[profile] for profile, n in profiles) for profiles in kind]
        for _ in range(number):
            sums = {left + right for left in sums for right in own}
            if len(sums) > limit:
                raise PlanError(f"more than {limit} combinations of layouts: too many to list")
    return sorted(_unpacked(packed, names) for packed in sums if packed)


def configurations_of(kinds: Kinds, fitting: Fitting, *, limit: int) -> list[Configuration]:
    """Return all configurations, sorted; `fitting` names the variants that run on each profile.

    Layouts with a profile on which nothing runs are left out.  Raises PlanError above `limit`.
    """
    sets = profile_sets_of(kinds, limit)
    expected = _count(sets, fitting)
    if expected > limit:
        raise PlanError(f"{expected} configurations are too many to list (the limit is {limit})")
    found = set(itertools.chain.from_iterable(deals(profiles, fitting) for profiles in sets))
    return sorted(found, key=lambda item: [(group.variant, group.profile, group.count) for group in item])


def deals(profiles: Profiles, fitting: Fitting) -> Iterator[Configuration]:
    """Yield the ways to deal variants to these profiles; none if nothing runs on one of them."""
    if not all(fitting.get(profile) for profile, _ in profiles):
        return
    parts = [
        [
            [GroupCount(variant=variant, profile=profile, count=k) for variant, k in sorted(Counter(deal).items())]
            for deal in itertools.combinations_with_replacement(fitting[profile], n)
        ]
        for profile, n in profiles
    ]
    for chosen in itertools.product(*parts):
        yield tuple(sorted(itertools.chain(*chosen), key=lambda group: (group.variant, group.profile)))


def _count(sets: Sequence[Profiles], fitting: Fitting) -> int:
    """Return how many configurations there are at most (those of different layouts counted apart)."""
    return sum(
        math.prod(math.comb(n + len(fitting.get(profile, ())) - 1, n) for profile, n in profiles)
        for profiles in sets
        if all(fitting.get(profile) for profile, _ in profiles)
    )


def _multiset(items: Iterable[str]) -> Profiles:
    return tuple(sorted(Counter(items).items()))


def _unpacked(packed: int, names: Sequence[str]) -> Profiles:
    mask = (1 << _BITS) - 1
    counts = [(profile, packed >> position * _BITS & mask) for position, profile in enumerate(names)]
    return tuple((profile, number) for profile, number in counts if number)
