"""The geometry of MIG against brute force over all subsets, and against the published counts of the A100."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.packing.geometry import SliceProfile, layouts, legal
from clover.types import Placement
from tests.support.examples import examples
from tests.support.geometry_fixture import A100, A100_DOUBLE, A100_MEDIA, BY_NAME, a100_layouts, place


def subsets(options: list[Placement], most: int) -> list[tuple[Placement, ...]]:
    return [chosen for count in range(most + 1) for chosen in itertools.combinations(options, count)]


def plainly_legal(chosen: tuple[Placement, ...], profiles: dict[str, SliceProfile], compute: int) -> bool:
    """The rules once more, cell by cell."""
    cells = Counter(cell for item in chosen for cell in range(item.start, item.start + item.size))
    counts = Counter(item.profile for item in chosen)
    return (
        all(count == 1 for count in cells.values())
        and sum(profiles[item.profile].slices for item in chosen) <= compute
        and all(count <= profiles[name].most for name, count in counts.items())
        and sum(profiles[item.profile].media for item in chosen) <= 1
    )


def test_the_a100_has_297_legal_sets_19_maximal_layouts_and_14_multisets() -> None:
    everything = layouts(A100, device="gpu0", compute=7, maximal=False)
    maximal = layouts(A100, device="gpu0", compute=7)
    assert len(everything) == len(set(everything)) == 1 + 297  # the empty one is legal too
    assert everything[0] == ()
    assert len(maximal) == len(set(maximal)) == 19
    assert len({tuple(sorted(p.profile for p in layout)) for layout in maximal}) == 14
    assert sum(sum(p.slices for p in layout) == 7 for layout in maximal) == 16
    assert all(legal(layout, BY_NAME, compute=7) == "" for layout in everything)
    assert maximal[0] == (place("7g.40gb", 0),)


def test_every_legal_set_is_listed_and_no_other() -> None:
    options = [place(profile.name, start) for profile in A100 for start in profile.starts]
    by_force = {frozenset(chosen) for chosen in subsets(options, 7) if plainly_legal(chosen, BY_NAME, 7)}
    listed = layouts(A100, device="gpu0", compute=7, maximal=False)
    assert {frozenset(chosen) for chosen in listed} == by_force
    most = {chosen for chosen in by_force if not any(chosen < other for other in by_force)}
    assert {frozenset(chosen) for chosen in a100_layouts()} == most


def test_a_pair_share_no_instance_in_124_of_342_ordered_cases() -> None:
    pairs = [(a, b) for a in a100_layouts() for b in a100_layouts() if a != b]
    assert len(pairs) == 342
    assert sum(not set(a) & set(b) for a, b in pairs) == 124


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_any_small_gpu_agrees_with_brute_force(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 5))
    compute = data.draw(st.integers(0, width))
    profiles = []
    for index in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.integers(1, width))
        starts = data.draw(st.sets(st.integers(0, width - size), min_size=1))
        profiles.append(
            SliceProfile(
                name=f"p{index}",
                slices=data.draw(st.integers(1, 3)),
                size=size,
                starts=tuple(sorted(starts)),
                most=data.draw(st.integers(1, 3)),
                media=data.draw(st.booleans()),
            )
        )
    blocked = data.draw(st.lists(st.tuples(st.integers(0, width - 1), st.integers(1, 2)), max_size=2))
    taken = {cell for start, size in blocked for cell in range(start, start + size)}
    options = [
        Placement(device="gpu0", profile=profile.name, start=start, size=profile.size)
        for profile in profiles
        for start in profile.starts
        if not taken & set(range(start, start + profile.size))
    ]
    known = {profile.name: profile for profile in profiles}
    by_force = {frozenset(c) for c in subsets(options, width) if plainly_legal(c, known, compute)}
    found = layouts(profiles, device="gpu0", compute=compute, blocked=blocked, maximal=False)
    assert len(found) == len(by_force)
    assert {frozenset(chosen) for chosen in found} == by_force
    maximal = layouts(profiles, device="gpu0", compute=compute, blocked=blocked)
    assert {frozenset(chosen) for chosen in maximal} == {
        chosen for chosen in by_force if not any(chosen < other for other in by_force)
    }
    for chosen in subsets(options, 3):
        assert (legal(chosen, known, compute=compute) == "") == plainly_legal(chosen, known, compute)


def test_blocked_intervals_leave_the_rest() -> None:
    # A 3g of somebody else at memory slice 0: the upper half is ours, with four compute slices.
    found = layouts(A100, device="gpu0", compute=4, blocked=[(0, 4)])
    assert set(found[0]) == {place("3g.20gb", 4)}
    assert all(p.start >= 4 for layout in found for p in layout)
    assert layouts(A100, device="gpu0", compute=0, blocked=[(0, 8)]) == ((),)


def test_media_and_double_memory() -> None:
    found = layouts([*A100, A100_MEDIA, A100_DOUBLE], device="gpu0", compute=7)
    names = [Counter(p.profile for p in layout) for layout in found]
    assert max(count["1g.5gb+me"] for count in names) == 1
    assert max(count["1g.10gb"] for count in names) == 4
    known = {**BY_NAME, A100_MEDIA.name: A100_MEDIA, A100_DOUBLE.name: A100_DOUBLE}
    two = [place("1g.5gb+me", 0), place("1g.5gb+me", 1)]
    assert "than the 1 there may be" in legal(two, known, compute=7)
    wide = SliceProfile(name="2g.10gb+me", slices=2, size=2, starts=(0, 2, 4), most=1, media=True)
    known[wide.name] = wide
    both = [place("1g.5gb+me", 0), Placement(device="gpu0", profile="2g.10gb+me", start=2, size=2)]
    assert "media engines" in legal(both, known, compute=7)


@pytest.mark.parametrize(
    ("placements", "why"),
    [
        ([place("4g.20gb", 0), place("2g.10gb", 2)], "overlap"),
        ([place("4g.20gb", 0), place("3g.20gb", 4), place("1g.5gb", 4)], "overlap"),
        ([Placement(device="gpu0", profile="4g.20gb", start=4, size=4)], "from one of 0, not 4 from 4"),
        ([Placement(device="gpu0", profile="2g.10gb", start=0, size=4)], "takes 2 memory slices"),
        ([Placement(device="gpu0", profile="5g.30gb", start=0, size=5)], "no profile 5g.30gb"),
    ],
)
def test_what_is_not_legal_says_why(placements: list[Placement], why: str) -> None:
    assert why in legal(placements, BY_NAME, compute=7)


def test_compute_slices_are_a_limit_of_their_own() -> None:
    # Memory would allow an eighth 1g, the starts do not; with fewer compute slices the sum decides.
    seven = [place("1g.5gb", start) for start in range(7)]
    assert legal(seven, BY_NAME, compute=7) == ""
    assert "7 compute slices are more than the 6" in legal(seven, BY_NAME, compute=6)
