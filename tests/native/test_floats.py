"""Rows of floats: the twin, then the kernel."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

FLOATS = st.floats(width=32)


def region(slots: int, *shape: int) -> NDArray[np.float32]:
    return np.arange(slots * math.prod(shape), dtype=np.float32).reshape(slots, *shape)


@given(st.lists(FLOATS.filter(math.isfinite), min_size=1, max_size=24))
def test_text_reads_back_as_the_same_floats(kernels: SimpleNamespace, numbers: list[float]) -> None:
    rows = np.array([numbers, [0.0] * len(numbers)], np.float32)
    text = kernels.floats.Floats(rows).text([0, 1])
    found = json.loads(text)
    assert all(type(number) is float for number in found), "no reader takes one for a whole number"
    again = np.array(found, np.float32)
    assert again.tobytes() == rows.tobytes()  # the sign of zero too


def test_text_of_known_numbers(kernels: SimpleNamespace) -> None:
    most = float(np.finfo(np.float32).max)
    numbers = [0.0, -0.0, 1.0, -1.5, 0.1, 1e20, 1e-20, 16777216.0, most, -most, 1e-45, 123456.0]
    rows = np.array([numbers], np.float32)
    assert np.array(json.loads(kernels.floats.Floats(rows).text([0])), np.float32).tobytes() == rows.tobytes()
    assert kernels.floats.Floats(region(2, 0)).text([0, 1]) == b"[]"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_there_is_no_text_for_what_json_has_no_word_for(kernels: SimpleNamespace, bad: float) -> None:
    rows = np.array([[1.0, 2.0], [bad, 2.0]], np.float32)
    floats = kernels.floats.Floats(rows)
    assert floats.text([1]) is None
    assert floats.text([0, 1]) is None
    assert json.loads(floats.text([0])) == [1.0, 2.0]


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_the_largest_is_numpys(kernels: SimpleNamespace, numbers: list[float]) -> None:
    rows = np.array([numbers], np.float32)
    assert kernels.floats.Floats(rows).argmax(0) == int(rows[0].argmax())


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True))
def test_rows_are_copied_to_their_slots(kernels: SimpleNamespace, slots: list[int]) -> None:
    wanted, rows = region(8, 2, 3), -1.0 - region(len(slots), 2, 3)
    wanted[slots] = rows
    found = region(8, 2, 3)
    floats = kernels.floats.Floats(found)
    assert floats.put(slots, rows)
    assert (found == wanted).all()
    rows += 100.0
    assert floats.put(slots, rows), "the same array again, with other numbers"
    assert (found[slots] == rows).all()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, 2, 3), np.float64),
        np.zeros((1, 2, 3), np.int32),
        np.zeros((2, 2, 3), np.float32),
        np.zeros((1, 3, 2), np.float32),
        np.zeros((1, 6), np.float32),
        np.zeros((1, 3, 2), np.float32).transpose(0, 2, 1),
        np.zeros((), np.float32),
    ],
)
def test_rows_that_are_not_as_declared_are_not_copied(kernels: SimpleNamespace, rows: NDArray[Any]) -> None:
    found = region(4, 2, 3)
    floats = kernels.floats.Floats(found)
    assert not floats.put([1], rows)
    assert (found == region(4, 2, 3)).all()
    good = np.ones((1, 2, 3), np.float32)
    assert floats.put([1], good)
    assert not floats.put([1, 2], good)
    assert floats.put([2], good)


def test_nothing_is_no_rows(kernels: SimpleNamespace) -> None:
    floats = kernels.floats.Floats(region(2, 3))
    for rows in (None, "abc"):
        with pytest.raises((AttributeError, TypeError)):
            floats.put([0], rows)
    with pytest.raises(TypeError):
        floats.text(None)


def test_large_rows_are_let_go_of(kernels: SimpleNamespace) -> None:
    found = region(2, 5000)
    floats = kernels.floats.Floats(found)
    rows = np.ones((1, 5000), np.float32)
    for slot in (0, 1, 0):
        assert floats.put([slot], rows)
    rows.resize((1, 1), refcheck=False)  # raises while somebody holds its memory
    assert (found == 1.0).all()


def test_a_slot_that_is_not_there(kernels: SimpleNamespace) -> None:
    found = region(2, 3)
    floats = kernels.floats.Floats(found)
    for slot in (-1, 2):
        with pytest.raises(IndexError, match="outside"):
            floats.put([0, slot], np.zeros((2, 3), np.float32))
        with pytest.raises(IndexError, match="outside"):
            floats.text([slot])
        with pytest.raises(IndexError, match="outside"):
            floats.argmax(slot)
    assert (found == region(2, 3)).all(), "all or nothing"
    with pytest.raises(ValueError, match="float32"):
        kernels.floats.Floats(np.zeros((2, 3), np.float64))
    with pytest.raises(ValueError, match="without numbers"):
        kernels.floats.Floats(region(2, 0)).argmax(0)
