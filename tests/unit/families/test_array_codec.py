"""Arrays between processes: what goes in comes out, and what is no array is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clover.families.array_codec import PackedArray, pack, unpack

PLAIN = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.floating_dtypes(endianness="="),
    arrays.byte_string_dtypes(min_len=1),
    arrays.unicode_string_dtypes(min_len=1),
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(array=arrays.arrays(PLAIN, SHAPES))
def test_what_is_packed_is_unpacked(array: np.ndarray) -> None:
    found = unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(array)), type=PackedArray))
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(array=arrays.arrays(object, SHAPES, elements=st.binary()) | arrays.arrays(object, SHAPES, elements=st.text()))
def test_objects_are_text_or_bytes(array: np.ndarray) -> None:
    found = unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(array)), type=PackedArray))
    assert (found.dtype, found.shape, found.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.mark.parametrize("items", [[1], [None], [b"a", "b"], [[1]]])
def test_other_objects_are_not_packed(items: list[object]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    with pytest.raises(TypeError, match="not passed on"):
        pack(array)
    with pytest.raises(TypeError, match="not passed on"):
        pack(np.zeros(2, dtype="datetime64[s]"))


@given(
    dtype=st.sampled_from(["O", "<f4", "|b1", "<U3", "f16", "V8", "<M8[s]", "object", "<f4,O", "|S0", ""]) | st.text(),
    shape=st.lists(st.integers(-2, 1 << 40), max_size=40),
    data=st.binary(max_size=64),
    items=st.lists(st.binary(max_size=4), max_size=4),
    text=st.booleans(),
)
def test_a_message_that_is_no_array_is_refused(
    dtype: str, shape: list[int], data: bytes, items: list[bytes], text: bool
) -> None:
    packed = PackedArray(dtype=dtype, shape=tuple(shape), data=data, items=tuple(items), text=text)
    try:
        found = unpack(packed)
    except ValueError:
        return
    assert found.shape == tuple(shape)
    assert found.nbytes == len(data) or found.dtype == object
