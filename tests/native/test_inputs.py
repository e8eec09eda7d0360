"""Digests of inputs and the memory of them: the twin, then the kernel, then both beside each other."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover._native import inputs as native
from tests.reference import inputs as reference

KEY = 0x0123456789ABCDEF
WHOLE, EDGE = 65_536, 4096  # up to so many bytes a row is read whole; of a larger one so many at either end
SIZES = (0, 1, 3, 8, 63, 64, 65, 784, 3136, 4095, 4097, WHOLE - 1, WHOLE, WHOLE + 1, 100_003, 300_000)


def rows(size: int, count: int = 2) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.zeros((count, size), np.uint8)


@pytest.mark.parametrize("size", [1, 8, 63, 64, 65, 784, 3136, 5000])
def test_rows_of_usual_size_differ_by_any_bit(kernels: SimpleNamespace, size: int) -> None:
    region = rows(size)
    digests = kernels.inputs.Digests([region], KEY)
    assert digests.row(0) == digests.row(1)
    seen = {digests.row(0)}
    for at in sorted({0, 1, size // 2, size - 1} & set(range(size))):
        for bit in (1, 128):
            region[1, at] = bit
            seen.add(digests.row(1))
            region[1, at] = 0
    assert len(seen) == 1 + 2 * len({0, 1, size // 2, size - 1} & set(range(size)))
    assert digests.row(1) == digests.row(0)


@given(size=st.integers(1, WHOLE), at=st.floats(0.0, 1.0, exclude_max=True), by=st.integers(1, 255))
def test_a_row_that_is_read_whole_has_another_digest_if_any_byte_differs(size: int, at: float, by: int) -> None:
    region = rows(size)
    region[1, int(at * size)] = by
    digests = native.Digests([region], KEY)
    assert digests.row(0) != digests.row(1)


@given(
    size=st.integers(WHOLE + 1, 8 * WHOLE),
    at=st.integers(0, EDGE - 1),
    last=st.booleans(),
    by=st.integers(1, 255),
    key=st.integers(0, 2**64 - 1),
)
def test_a_larger_row_has_another_digest_if_a_byte_near_either_end_differs(
    size: int, at: int, last: bool, by: int, key: int
) -> None:
    region = rows(size)
    region[1, size - 1 - at if last else at] = by
    digests = native.Digests([region], key)
    assert digests.row(0) != digests.row(1)


@pytest.mark.parametrize("elements", [2048, 16_384])
@pytest.mark.parametrize("front", [True, False])
def test_padded_tokens_are_told_apart_under_any_key(kernels: SimpleNamespace, elements: int, front: bool) -> None:
    region = np.zeros((16, elements), np.int64)
    tokens = np.random.default_rng(2).integers(0, 50_000, (16, 10))
    region[:, slice(10) if front else slice(-10, None)] = tokens
    for key in range(3):
        digests = kernels.inputs.Digests([region], key)
        assert len({digests.row(slot) for slot in range(16)}) == 16


def test_large_rows_that_differ_all_over_differ(kernels: SimpleNamespace) -> None:
    region = np.random.default_rng(1).integers(0, 256, (4, 200_000)).astype(np.uint8)
    region[:, :EDGE] = region[:, -EDGE:] = 0
    digests = kernels.inputs.Digests([region], KEY)
    assert len({digests.row(slot) for slot in range(4)}) == 4


def test_every_stretch_of_a_large_row_is_looked_at_under_some_key() -> None:
    """A client who does not know the key cannot know where its rows may differ unseen."""
    region = rows(200_003)
    digests = [native.Digests([region], key) for key in range(300)]
    for at in range(EDGE, 200_003 - EDGE, 1777):
        region[1, at : at + 30] = 1
        assert {digest.row(0) == digest.row(1) for digest in digests} == {True, False}, at
        region[1] = 0


def test_all_inputs_of_a_row_count_in_their_order_and_with_their_size(kernels: SimpleNamespace) -> None:
    one, two = np.zeros((2, 3), np.float32), np.zeros((2, 5), np.int64)
    digests = kernels.inputs.Digests([one, two], KEY)
    two[1, 4] = 1
    assert digests.row(0) != digests.row(1)
    assert kernels.inputs.Digests([one, two], KEY + 1).row(0) != digests.row(0)
    assert digests.more(1, b"ab") != digests.more(1, b"ab\0")
    assert digests.more(1, b"") != digests.more(2, b"")


def test_rows_and_regions_are_checked(kernels: SimpleNamespace) -> None:
    digests = kernels.inputs.Digests([rows(4)], KEY)
    for slot in (-1, 2):
        with pytest.raises(IndexError, match="outside"):
            digests.row(slot)
    with pytest.raises(ValueError, match="differ in slots"):
        kernels.inputs.Digests([rows(4), rows(4, 3)], KEY)
    with pytest.raises(ValueError, match="no axis of slots"):
        kernels.inputs.Digests([rows(4, 0)], KEY)
    with pytest.raises(IndexError, match="outside"):
        kernels.inputs.Digests([], KEY).row(0)


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_both_give_small_rows_the_same_digest(data: bytes, key: int, before: int) -> None:
    assert native.Digests([], key).more(before, data) == reference.Digests([], key).more(before, data)


@pytest.mark.parametrize("size", SIZES)
def test_both_give_rows_of_any_size_the_same_digest(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert native.Digests([], KEY).more(7, data) == reference.Digests([], KEY).more(7, data)
    if size:
        region = np.frombuffer(data, np.uint8).reshape(1, -1)
        assert native.Digests([region], KEY).row(0) == reference.Digests([region], KEY).row(0)


def corners(depth: int = 3) -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of an array and of a corner of it."""
    axis = st.integers(1, 9).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most)))
    return st.lists(axis, min_size=1, max_size=depth).map(lambda axes: tuple(zip(*axes, strict=True)))  # type: ignore[arg-type, return-value]


@given(corners(), st.sampled_from([np.uint8, np.float16, np.float32, np.int64, np.bool_]))
def test_the_corner_of_an_array_has_the_digest_of_its_bytes(
    kernels: SimpleNamespace, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: type
) -> None:
    region: NDArray[Any] = np.arange(np.prod(shapes[0])).astype(dtype).reshape(shapes[0])
    corner = region[tuple(map(slice, shapes[1]))]
    digests = kernels.inputs.Digests([], KEY)
    assert digests.more(7, corner) == digests.more(7, corner.tobytes())


@pytest.mark.parametrize("shape", [(300, 300), (300, 299), (299, 300), (50, 41, 100), (300, 1), (1, 300)])
def test_large_corners_too(kernels: SimpleNamespace, shape: tuple[int, ...]) -> None:
    region = np.random.default_rng(3).random((300, 300) if len(shape) == 2 else (50, 60, 100))
    corner = region[tuple(map(slice, shape))]
    digests = kernels.inputs.Digests([], KEY)
    assert digests.more(7, corner) == digests.more(7, corner.tobytes())
    assert native.Digests([], KEY).more(7, corner) == reference.Digests([], KEY).more(7, corner)
    assert digests.more(7, corner[::-1]) == digests.more(7, corner[::-1].tobytes())
    assert digests.more(7, corner.T) == digests.more(7, corner.T.tobytes())


@given(st.integers(1, 9), st.lists(st.integers(0, 40), max_size=300))
def test_of_so_many_that_were_new_no_two_are_equal(kernels: SimpleNamespace, capacity: int, digests: list[int]) -> None:
    recent = kernels.inputs.Recent(capacity)
    new = [digest for digest in digests if recent.add(digest)]
    assert all(len(set(new[at : at + capacity])) == len(new[at : at + capacity]) for at in range(len(new)))
    assert all(recent.holds(digest or 1) for digest in new[-capacity:] if digest > 1)
    recent.clear()
    assert not any(recent.holds(digest) for digest in new)


@pytest.mark.parametrize("inputs", [1, 10, 100, 1000])
def test_a_circle_that_fits_counts_once(kernels: SimpleNamespace, inputs: int) -> None:
    recent = kernels.inputs.Recent(1000)
    draw = random.Random(3)
    digests = [draw.getrandbits(64) for _ in range(inputs)]
    assert sum(recent.add(digest) for _ in range(20) for digest in digests) == inputs


@given(st.integers(1, 20), st.lists(st.integers(0, 60), max_size=400))
def test_both_remember_the_same(capacity: int, digests: list[int]) -> None:
    one, other = native.Recent(capacity), reference.Recent(capacity)
    for digest in digests:
        assert one.holds(digest) == other.holds(digest)
        assert one.add(digest) == other.add(digest)


@pytest.mark.parametrize("capacity", [0, -1, 1 << 30])
def test_a_memory_has_a_size(kernels: SimpleNamespace, capacity: int) -> None:
    with pytest.raises(ValueError, match="holds 1 to"):
        kernels.inputs.Recent(capacity)
