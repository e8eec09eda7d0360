"""The slot allocator: the twin, then the kernel, then both beside each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover._native import slots as native
from tests.reference import slots as reference


@given(st.integers(1, 1200), st.lists(st.tuples(st.booleans(), st.integers(1, 600)), max_size=60))
def test_slots_are_handed_out_once_and_in_rising_order(
    kernels: SimpleNamespace, size: int, steps: list[tuple[bool, int]]
) -> None:
    allocator = kernels.slots.SlotAllocator(size)
    held: list[list[int]] = []
    taken: set[int] = set()
    for take, number in steps:
        if take or not held:
            slots = allocator.take(number)
            if slots is None:
                assert number > size - len(taken)
                continue
            assert len(slots) == number
            assert slots == sorted(slots)
            assert not taken & set(slots)
            taken |= set(slots)
            held.append(slots)
        else:
            for slot in held.pop(number % len(held)):
                allocator.give(slot)
                taken.discard(slot)
        assert allocator.free == size - len(taken)


def test_runs_are_found_behind_holes(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(1024)
    first = allocator.take(10)
    assert first == list(range(10))
    for slot in (1, 3, 4, 7):
        allocator.give(slot)
    assert allocator.take(2) == [3, 4]
    assert allocator.take(3) == [10, 11, 12]
    assert allocator.take_one() == 1
    assert allocator.take(600) is not None  # more than a chunk: the lowest single slots


def test_a_slot_cannot_be_given_twice(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(4)
    with pytest.raises(ValueError, match="not taken"):
        allocator.give(2)
    with pytest.raises(ValueError, match="not taken"):
        allocator.give(4)
    with pytest.raises(ValueError, match="at least one"):
        kernels.slots.SlotAllocator(0)
    assert kernels.slots.SlotAllocator(1).take(2) is None


@given(st.integers(1, 9000), st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=80))
def test_both_hand_out_the_same_slots(size: int, steps: list[tuple[bool, int]]) -> None:
    twins = reference.SlotAllocator(size), native.SlotAllocator(size)
    held: list[int] = []
    for take, number in steps:
        if take or not held:
            one, other = (twin.take(number) for twin in twins)
            assert one == other
            held += one or []
        else:  # give back a handful that lie here and there, so that runs have holes
            for slot in held[number % 7 :: 1 + number % 5]:
                for twin in twins:
                    twin.give(slot)
                held.remove(slot)
        assert twins[0].free == twins[1].free
