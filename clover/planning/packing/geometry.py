"""Which GPU instances may exist side by side: the geometry of MIG, as pure arithmetic.

A partitionable GPU has *compute slices* (7 on an A100) and an axis of *memory slices* (8 wide there).  A profile takes
some of both and may start only at certain memory slices.  A set of instances is legal exactly if

 - their intervals on the memory axis are disjoint,
 - their compute slices together are no more than the GPU has,
 - no profile occurs more often than its cap allows,
 - at most one of them has the media engines (`+me`).

A legal set stays legal if an instance is taken away.  So the legal sets are the subsets of the *maximal* layouts, to
which nothing can be added: a set is legal if some maximal layout contains it.  With 1g, 2g, 3g, 4g and 7g an A100 has
297 legal sets that are not empty, 19 of them maximal, which are 14 different multisets of profiles.  Not all 19 use
every compute slice: 3g at memory slice 0 covers four of the eight memory slices and only three of the seven compute
slices, so 3g twice leaves one compute slice without memory.

What others own on the same GPU (instances that are not ours, slots that could not be emptied) is given as `blocked`
intervals, and `compute` is lowered to what they leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from clover.types import Placement, Record


class SliceProfile(Record, frozen=True, kw_only=True):
    """A shape an instance may have: `slices` compute slices and `size` memory slices, from one of `starts`; at most
    `most` of them on a GPU, and at most one with `media` engines."""

    name: str
    slices: int
    size: int
    starts: tuple[int, ...]
    most: int
    media: bool = False


def legal(placements: Sequence[Placement], profiles: Mapping[str, SliceProfile], *, compute: int) -> str:
    """Return why the `placements` of one GPU may not exist together; empty if they may."""
    end, before = 0, ""
    for place in sorted(placements, key=lambda item: (item.start, item.size)):
        profile = profiles.get(place.profile)
        if profile is None:
            return f"there is no profile {place.profile}; known: {', '.join(sorted(profiles))}"
        if place.size != profile.size or place.start not in profile.starts:
            starts = ", ".join(str(start) for start in profile.starts)
            return (
                f"{place.profile} takes {profile.size} memory slices from one of {starts}, "
                f"not {place.size} from {place.start}"
            )
        if place.start < end:
            return f"{place.id} and {before} overlap"
        end, before = place.start + place.size, place.id
    used = sum(profiles[place.profile].slices for place in placements)
    if used > compute:
        return f"{used} compute slices are more than the {compute} there are"
    for name, count in sorted(Counter(place.profile for place in placements).items()):
        if count > profiles[name].most:
            return f"{count} x {name} are more than the {profiles[name].most} there may be"
    media = sorted(place.profile for place in placements if profiles[place.profile].media)
    if len(media) > 1:
        return f"only one instance may have the media engines, not {' and '.join(media)}"
    return ""


def layouts(
    profiles: Sequence[SliceProfile],
    *,
    device: str,
    compute: int,
    blocked: Sequence[tuple[int, int]] = (),
    maximal: bool = True,
) -> tuple[tuple[Placement, ...], ...]:
    """Return the legal sets of instances of `profiles` beside the `blocked` (start, size) intervals: those to which
    nothing can be added, or all.  If nothing fits at all, that is the empty layout.

    `compute` counts the compute slices that are free for them.  Each layout is sorted by start; the layouts run from
    large instances to small ones, read from the left.
    """
    options = sorted(
        (
            (start, profile)
            for profile in profiles
            for start in profile.starts
            if not any(_meet(start, profile.size, *interval) for interval in blocked)
        ),
        key=lambda option: (option[0], -option[1].size, -option[1].slices, option[1].name),
    )
    rank = {(start, profile.name): position for position, (start, profile) in enumerate(options)}
    sets = [chosen for chosen in _sets(options, compute) if not maximal or _full(chosen, options, compute)]
    sets.sort(key=lambda chosen: [rank[start, profile.name] for start, profile in chosen])
    return tuple(
        tuple(
            Placement(device=device, profile=profile.name, start=start, size=profile.size) for start, profile in chosen
        )
        for chosen in sets
    )


_Option = tuple[int, SliceProfile]


def _sets(options: Sequence[_Option], compute: int) -> Iterator[tuple[_Option, ...]]:
    """Yield every legal subset of `options` (sorted by start), the empty one included."""
    chosen: list[_Option] = []

    def grow(first: int) -> Iterator[tuple[_Option, ...]]:
        yield tuple(chosen)
        for position in range(first, len(options)):
            if _fits(options[position], chosen, compute):
                chosen.append(options[position])
                yield from grow(position + 1)
                chosen.pop()

    yield from grow(0)


def _full(chosen: Sequence[_Option], options: Sequence[_Option], compute: int) -> bool:
    return not any(_fits(option, chosen, compute) for option in options)


def _fits(option: _Option, chosen: Sequence[_Option], compute: int) -> bool:
    """Return whether `option` may join the legal set `chosen`."""
    start, profile = option
    return (
        sum(other.slices for _, other in chosen) + profile.slices <= compute
        and sum(other.name == profile.name for _, other in chosen) < profile.most
        and not (profile.media and any(other.media for _, other in chosen))
        and not any(_meet(start, profile.size, other_start, other.size) for other_start, other in chosen)
    )


def _meet(start: int, size: int, other_start: int, other_size: int) -> bool:
    return start < other_start + other_size and other_start < start + size
