"""BYTES rows in OIP form: what is packed comes back, and no bytes break the decoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.runtime.memory.bytes_codec import count_elements, cut_rows, pack_element, pack_row, split_row


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_elements_round_trip(elements):
    row = pack_row(elements)
    assert row == b"".join(map(pack_element, elements))
    assert split_row(row) == elements
    assert count_elements(row) == len(elements)


@given(st.binary(max_size=40))
def test_no_bytes_break_a_row(row):
    try:
        found = split_row(row)
    except ValueError:
        with pytest.raises(ValueError, match="ends inside"):
            count_elements(row)
        return
    assert pack_row(found) == row
    assert count_elements(row) == len(found)


@given(st.lists(st.lists(st.binary(max_size=9), min_size=2, max_size=2), max_size=4), st.binary(max_size=9))
def test_rows_are_cut_exactly(rows, more):
    packed = [pack_row(row) for row in rows]
    data = b"".join(packed)
    assert cut_rows(data, len(rows), 2) == packed
    assert cut_rows(memoryview(data), len(rows), 2) == packed
    if more:
        with pytest.raises(ValueError, match="longer"):
            cut_rows(data + more, len(rows), 2)
    if data:
        with pytest.raises(ValueError, match="shorter"):
            cut_rows(data[:-1], len(rows), 2)


def test_text_is_packed_as_utf8_and_anything_else_is_named():
    assert pack_row(["é", bytearray(b"a"), memoryview(b"b")]) == b"\2\0\0\0\xc3\xa9\1\0\0\0a\1\0\0\0b"
    with pytest.raises(TypeError, match=r"^int$"):
        pack_row([1])
