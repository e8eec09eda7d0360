"""Instances in words: what a person writes for the instances of a GPU, and what it means on a given GPU.

    INSTANCE  = [ N "x" ] PROFILE [ "@" START ]
    PROFILE   = a name of the GPU, as 3g.20gb, or its short form without the memory, as 3g, 1g+me

`2x3g` are two instances of the smallest profile with three compute slices, at any place that fits; `3g.20gb@4` is one
whose first memory slice is 4.  Names mean something only on a GPU with its table of profiles: a `3g` is `3g.20gb` on
one GPU and `3g.40gb` on another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from clover.errors import ConfigError
from clover.planning.packing.geometry import SliceProfile, legal
from clover.types import Placement, Record

_MOST = 16
"""More instances than any GPU has."""

_NAME = r"(?P<slices>[1-9]\d?)g(?P<memory>\.\d+gb)?(?P<extra>(?:[+-][a-z][a-z0-9.]*)*)"
_PROFILE = re.compile(_NAME)
_INSTANCE = re.compile(rf"(?:(?P<count>\d{{1,2}})\s*x\s*)?(?P<profile>{_NAME})(?:@(?P<start>\d{{1,2}}))?")


class Ask(Record, frozen=True, kw_only=True):
    """One instance asked for: a profile, at a memory slice or (None) at any place that fits."""

    profile: str
    start: int | None = None

    def __str__(self) -> str:
        return self.profile if self.start is None else f"{self.profile}@{self.start}"


Asks = tuple[Ask, ...]
"""The instances asked for on one GPU: all of them, so that whatever else is there has to go."""


def parse_instance(text: str) -> Asks:
    """Return one INSTANCE, as many times as it says; ConfigError if `text` is not one."""
    found = _INSTANCE.fullmatch(text.strip().lower())
    if found is None:
        raise ConfigError(
            f"{text.strip()!r} is no instance: write PROFILE, PROFILE@START or NxPROFILE, as 3g.20gb, 3g@4 or 2x1g"
        )
    count = int(found["count"] or 1)
    if not 1 <= count <= _MOST:
        raise ConfigError(f"{text.strip()!r}: 1 to {_MOST} instances, not {count}")
    if found["start"] is not None and count > 1:
        raise ConfigError(f"{text.strip()!r}: {count} instances cannot all start at memory slice {found['start']}")
    return (Ask(profile=found["profile"], start=int(found["start"]) if found["start"] else None),) * count


def resolve(name: str, profiles: Mapping[str, SliceProfile]) -> SliceProfile:
    """Return the profile that `name` means on a GPU; ConfigError names those it has."""
    if name in profiles:
        return profiles[name]
    asked = _PROFILE.fullmatch(name)
    if asked is not None and not asked["memory"]:
        fits = []
        for known in profiles.values():
            parts = _PROFILE.fullmatch(known.name)
            if parts and (parts["slices"], parts["extra"]) == (asked["slices"], asked["extra"]):
                fits.append(known)
        if fits:
            return min(fits, key=lambda profile: (profile.size, profile.name))
    known_names = ", ".join(profiles) or "none"
    raise ConfigError(f"there is no profile {name} on this GPU; it has {known_names}")


def choices(
    asks: Sequence[Ask],
    profiles: Mapping[str, SliceProfile],
    *,
    device: str,
    compute: int,
    blocked: Sequence[tuple[int, int]] = (),
) -> Iterator[tuple[Placement, ...]]:
    """Yield every legal way to place `asks` on a GPU beside the `blocked` (start, size) intervals, each sorted by
    start.  ConfigError if a name means nothing or a start is not one of its profile's."""
    wanted: list[tuple[SliceProfile, tuple[int, ...]]] = []
    for ask in asks:
        profile = resolve(ask.profile, profiles)
        if ask.start is not None and ask.start not in profile.starts:
            starts = ", ".join(map(str, profile.starts))
            raise ConfigError(f"{profile.name} may start at memory slice {starts} of this GPU, not at {ask.start}")
        wanted.append((profile, profile.starts if ask.start is None else (ask.start,)))
    # The narrow choices first; equal ones beside each other, so that they are taken in one order only.
    wanted.sort(key=lambda item: (len(item[1]) > 1, -item[0].size, item[0].name, item[1]))
    taken: list[tuple[int, int]] = list(blocked)
    chosen: list[Placement] = []

    def grow(index: int) -> Iterator[tuple[Placement, ...]]:
        if index == len(wanted):
            found = tuple(sorted(chosen, key=lambda place: place.start))
            if not legal(found, profiles, compute=compute):
                yield found
            return
        profile, starts = wanted[index]
        after = chosen[-1].start if index and wanted[index] == wanted[index - 1] else -1
        for start in starts:
            if start <= after or any(start < at + size and at < start + profile.size for at, size in taken):
                continue
            taken.append((start, profile.size))
            chosen.append(Placement(device=device, profile=profile.name, start=start, size=profile.size))
            yield from grow(index + 1)
            chosen.pop()
            taken.pop()

    yield from grow(0)


def unplaceable(asks: Sequence[Ask], profiles: Mapping[str, SliceProfile], *, compute: int, where: str) -> ConfigError:
    """Return the error for `asks` that do not fit together on a GPU, even an empty one."""
    why = _why_not(asks, profiles, compute)
    return ConfigError(f"{counted(map(str, asks))} cannot exist together on {where}: {why}")


def _why_not(asks: Sequence[Ask], profiles: Mapping[str, SliceProfile], compute: int) -> str:
    found = [resolve(ask.profile, profiles) for ask in asks]
    slices = sum(profile.slices for profile in found)
    if slices > compute:
        return f"they need {slices} compute slices of {compute}"
    for name, count in Counter(profile.name for profile in found).items():
        if count > profiles[name].most:
            return f"there may be {profiles[name].most} x {name} at most, not {count}"
    if sum(profile.media for profile in found) > 1:
        return "only one instance may have the media engines (+me)"
    return "no places for them on the memory axis are free of overlap"


def grouped(places: Iterable[Placement]) -> str:
    """Return placements of one GPU in short, as "3g.20gb@4, 1g.5gb@0,1,2"."""
    starts: dict[str, list[str]] = {}
    for place in places:
        starts.setdefault(place.profile, []).append(str(place.start))
    return ", ".join(f"{profile}@{','.join(at)}" for profile, at in starts.items())


def counted(names: Iterable[str]) -> str:
    """Return names with how often they occur, as "2 x 1g.5gb, 3g.20gb"; "no instances" for none."""
    found = Counter(names)
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in found.items()) or "no instances"
