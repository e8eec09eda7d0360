"""The candidates of a plan: every configuration of a set of devices, and those that are made to serve a demand.

**Every configuration**: layouts, and variants dealt to their placements as multisets.  Only what differs in the
queueing model counts.  Two layouts with the same profiles are one configuration, and so are two deals that differ only
in which of two equal placements holds which variant.  Every placement of a layout holds a worker; a worker without rows
costs no active energy, and the routing may leave it without.  The count, doubles included, is a product of binomials
for each layout, known without listing: if it exceeds `limit`, PlanError is raised.

Devices that allow the same multisets of profiles are of one *kind*.  If each of n devices of a kind has m multisets,
together they have at most C(m + n - 1, n), and fewer if some are the same: 14 and 74 for one and two A100s, hundreds of
thousands for ten.

**Workers that hold several variants** hold the same ones on all profiles of a layout (`shared_configuration`).

**Rows that ask for an accuracy**: a search that tries some of all configurations might not meet one that serves
them.  `exchange` makes such configurations from those that the search met.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from clover.errors import PlanError
from clover.planning.model.problem import Problem, direct, may_share
from clover.types import Configuration, Demand, DeviceShape, GroupCount

_BITS = 20  # of a profile's count in a packed multiset
Profiles = tuple[tuple[str, int], ...]
"""A multiset of profiles: sorted (profile, count)."""
Kinds = tuple[tuple[tuple[Profiles, ...], int], ...]
"""Kinds of devices: the multisets of one, and how many there are."""
Fitting = dict[str, tuple[str, ...]]
"""The variants that run on each profile."""
_EPSILON = 1e-9
_EXCHANGES = 8
"""Rounds of exchanging workers until a configuration serves the demand."""
_KEPT = 12
"""Configurations that a round hands to the next, at most."""
LAYOUTS = 64
"""Multisets of profiles that are weighed, at most."""


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
    return sorted(_unpack(packed, names) for packed in sums if packed)


def configurations_of(kinds: Kinds, fitting: Fitting, *, limit: int) -> list[Configuration]:
    """Return all configurations, sorted; `fitting` names the variants that run on each profile.

    Layouts with a profile on which nothing runs are left out.  Raises PlanError above `limit`.
    """
    sets = profile_sets_of(kinds, limit)
    expected = _count(sets, fitting)
    if expected > limit:
        raise PlanError(f"{expected} configurations are too many to list (the limit is {limit})")
    configurations = set(itertools.chain.from_iterable(deals(profiles, fitting) for profiles in sets))
    return sorted(configurations, key=lambda item: [(group.variant, group.profile, group.count) for group in item])


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


def _unpack(packed: int, names: Sequence[str]) -> Profiles:
    mask = (1 << _BITS) - 1
    counts = [(profile, packed >> position * _BITS & mask) for position, profile in enumerate(names)]
    return tuple((profile, number) for profile, number in counts if number)


# --- workers that hold several variants -------------------------------------------------------------------------------


def shared_layouts(problem: Problem) -> list[Profiles]:
    """Return the multisets of profiles that are weighed: all, or if there are too many, those with every device of a
    kind cut alike."""
    kinds = kinds_of(problem.devices)
    try:
        return profile_sets_of(kinds, LAYOUTS)
    except PlanError:
        alike = itertools.product(
            *([Counter({name: n * number for name, n in profiles}) for profiles in ways] for ways, number in kinds)
        )
        sums = (sum(chosen, Counter[str]()) for chosen in itertools.islice(alike, LAYOUTS))
        return list(dict.fromkeys(tuple(sorted(counts.items())) for counts in sums))


def shared_configuration(problem: Problem, profiles: Profiles, variants: Sequence[str]) -> Configuration | None:
    """Return the configuration of these profiles whose workers all hold `variants`; None if one of them may not."""
    if not all(may_share(problem, variants, name) for name, _ in profiles):
        return None
    first, *others = sorted(variants)
    return tuple(GroupCount(variant=first, profile=name, count=count, beside=tuple(others)) for name, count in profiles)


def whole_sets(problem: Problem) -> Iterator[Configuration]:
    """Yield the configurations of each layout whose workers hold all variants, or as many as they may."""
    if problem.resident > 1:
        for profiles in shared_layouts(problem):
            yield from held_together(problem, profiles)


def held_together(problem: Problem, profiles: Profiles) -> list[Configuration]:
    """Return the configurations of these profiles whose workers hold all variants; if they may not, those with the
    most that they may hold."""
    for number in range(min(problem.resident, len(problem.variants)), 1, -1):
        sets = itertools.combinations(problem.variants, number)
        held = [own for names in sets if (own := shared_configuration(problem, profiles, names)) is not None]
        if held:
            return held
    return []


# --- rows that ask for an accuracy ------------------------------------------------------------------------------------


def exchange(problem: Problem, configuration: Configuration, max_utilisation: float) -> Iterator[Configuration]:
    """Yield `configuration` if it serves the demand, else configurations that do, made from it by giving slices to
    accurate variants, the fewest slices first.

    For searches that try some of all configurations, and might not meet one of these."""
    exchanged: list[Configuration] = []
    seen = {configuration}
    front = [configuration]
    for _ in range(_EXCHANGES):
        following: list[Configuration] = []
        for one in front:
            if not direct(problem, one, max_utilisation).why:
                exchanged.append(one)
                continue
            for other in _one_more(problem, one, max_utilisation):
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        front = following[:_KEPT]
        if exchanged or not front:
            break
    yield from exchanged[:_KEPT]


def _one_more(problem: Problem, configuration: Configuration, max_utilisation: float) -> Iterator[Configuration]:
    """Yield copies of `configuration`: in each, one slice of a variant that is not accurate enough goes to one that
    is."""
    for asked in sorted(problem.demand, key=lambda item: -item.accuracy):
        alone = [item for item in problem.demand if item.accuracy >= asked.accuracy]
        if direct(_only(problem, alone), configuration, max_utilisation).why:
            break
    able = [variant for variant in problem.variants if problem.accuracy[variant] >= asked.accuracy - _EPSILON]
    for group in configuration:
        others = [name for name in able if (name, group.profile) in problem.services]
        if group.variant in able or not others:
            continue
        takes = min(others, key=lambda name: (problem.services[name, group.profile].least_energy_j, name))
        counts = {(item.variant, item.profile): item.count for item in configuration}
        counts[group.variant, group.profile] -= 1
        counts[takes, group.profile] = counts.get((takes, group.profile), 0) + 1
        yield tuple(
            GroupCount(variant=variant, profile=profile, count=count)
            for (variant, profile), count in sorted(counts.items())
            if count
        )


def _only(problem: Problem, demand: Sequence[Demand]) -> Problem:
    return replace(problem, demand=tuple(demand))
