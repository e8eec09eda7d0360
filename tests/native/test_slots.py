"""The slot allocator: the twin, then the kernel, then both beside each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover._native import slots as native
from tests.reference import slots as reference

WINDOWS = st.sampled_from([0, 1, 16, 64, 100, 700])


@given(st.integers(1, 1200), WINDOWS, st.lists(st.tuples(st.booleans(), st.integers(1, 600)), max_size=60))
def test_slots_are_handed_out_once_and_in_rising_order(
    kernels: SimpleNamespace, size: int, window: int, steps: list[tuple[bool, int]]
) -> None:
    allocator = kernels.slots.SlotAllocator(size, window)
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


def test_rows_lie_one_behind_the_other_while_those_before_are_given_back(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(1024, 8)
    found: list[list[int]] = [[allocator.take_one() for _ in range(4)]]
    for _ in range(5):
        first = allocator.take(1)
        for slot in found[-1]:  # the batch before is answered while the next one gathers
            allocator.give(slot)
        found.append([*first, *(allocator.take_one() for _ in range(3))])
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3


def test_outside_of_its_window_the_lowest_slots_are_taken(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(200, 70)
    assert [allocator.take_one() for _ in range(72)] == list(range(72))
    for slot in (66, 3, 71):
        allocator.give(slot)
    assert [allocator.take_one() for _ in range(3)] == [3, 66, 71], "those beyond are taken if nothing else is left"
    allocator.give(2)
    assert allocator.take_one() == 2
    allocator.give(69)
    allocator.give(1)
    assert allocator.take_one() == 69
    assert allocator.take_one() == 1
    plain = kernels.slots.SlotAllocator(200)
    assert [plain.take_one(), plain.take_one()] == [0, 1]
    plain.give(0)
    assert plain.take_one() == 0, "without a window always"


def test_a_row_that_is_alone_has_the_lowest_slot(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(1024, 64)
    for _ in range(3):
        assert allocator.take_one() == 0
        allocator.give(0)
    assert allocator.take(2) == [0, 1]
    assert allocator.take_one() == 2


def test_a_slot_cannot_be_given_twice(kernels: SimpleNamespace) -> None:
    allocator = kernels.slots.SlotAllocator(4)
    with pytest.raises(ValueError, match="not taken"):
        allocator.give(2)
    with pytest.raises(ValueError, match="not taken"):
        allocator.give(4)
    with pytest.raises(ValueError, match="at least one"):
        kernels.slots.SlotAllocator(0)
    with pytest.raises(ValueError, match="window"):
        kernels.slots.SlotAllocator(4, -1)
    assert kernels.slots.SlotAllocator(1).take(2) is None


@given(st.integers(1, 9000), WINDOWS, st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=80))
def test_both_hand_out_the_same_slots(size: int, window: int, steps: list[tuple[bool, int]]) -> None:
    twins = reference.SlotAllocator(size, window), native.SlotAllocator(size, window)
    held: list[int] = []
    for take, number in steps:
        if take or not held:
            one, other = (twin.take(1 if number % 3 else number) for twin in twins)  # most requests have one row
            assert one == other
            held += one or []
        else:  # give back a handful that lie here and there, so that runs have holes
            for slot in held[number % 7 :: 1 + number % 5]:
                for twin in twins:
                    twin.give(slot)
                held.remove(slot)
        assert twins[0].free == twins[1].free
