"""Inputs of an embedding program: what is taken as what, and refusals that name what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import BadRequest
from clover.runtime.embedded_inputs import prepare
from clover.types import FamilySpec, PublishedAccuracy, TensorSpec, VariantSpec
from tests.support.examples import examples

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(1, 2, 2))


def family(*inputs: TensorSpec) -> FamilySpec:
    variant = VariantSpec(name="v", loader="m:f", accuracy=PublishedAccuracy(metric="top1", value=90.0, source="none"))
    return FamilySpec(
        name="f", inputs=inputs, outputs=(TensorSpec(name="out", datatype="FP32", shape=(1,)),), variants=(variant,)
    )


def taken(tensor: TensorSpec, value: Any) -> tuple[int, np.ndarray[Any, Any]]:
    rows, prepared = prepare(family(tensor), {tensor.name: value})
    array = prepared[0][0]
    assert isinstance(array, np.ndarray)
    return rows, array


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (np.zeros((1, 2, 2), np.float32), 1),
        (np.zeros((3, 1, 2, 2), np.float32), 3),
        (np.zeros((3, 1, 2, 2)), 3),
        (np.zeros((1, 2, 2), np.float16), 1),
        ([[[0, 1], [2, 3]]], 1),
        ([[[0.5, 1], [2, 3]]], 1),
    ],
)
def test_what_is_taken(value: Any, rows: int) -> None:
    count, array = taken(IMAGE, value)
    assert (count, array.dtype, array.shape) == (rows, np.float32, (rows, 1, 2, 2))
    assert array.ravel().tolist() == np.asarray(value).ravel().tolist()


def test_nan_and_infinity_are_data() -> None:
    _, array = taken(IMAGE, np.array([[[np.nan, np.inf], [-np.inf, 0.0]]]))
    assert np.isnan(array[0, 0, 0, 0])
    assert np.isinf(array).sum() == 2


WANTED = r"FP32 of shape [1, 2, 2], or [rows, 1, 2, 2] for several rows"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            np.zeros((1, 2, 2), np.float32),
            "names to arrays, as {'image': ...}, not float32 of shape",
        ),
        ("text", "not a str; this model takes 'image': " + WANTED),
        ({}, "input 'image' is missing: it must be " + WANTED),
        ({"imag": 1}, "unknown input 'imag' (did you mean image?); this model takes 'image': " + WANTED),
        ({7: 1}, "unknown input 7; this model takes"),
        (
            {"image": np.zeros((1, 2, 2), np.uint8)},
            f"input 'image' must be {WANTED}, not uint8 of shape [1, 2, 2]; integers are not cast: scale them as in tr",
        ),
        ({"image": np.zeros((28, 28), np.float32)}, f"input 'image' must be {WANTED}, not float32 of shape [28, 28]"),
        ({"image": np.zeros((5, 1, 2, 3), np.float32)}, f"must be {WANTED}, not float32 of shape [5, 1, 2, 3]"),
        ({"image": np.zeros((1, 2, 2), bool)}, "not bool of shape [1, 2, 2]"),
        ({"image": np.zeros((1, 2, 2), complex)}, "not complex128 of shape [1, 2, 2]"),
        ({"image": [["a"]]}, "not a list of text, of shape [1, 1]"),
        ({"image": [[1.0], [1.0, 2.0]]}, "not a list whose rows differ in length"),
        ({"image": None}, "not a NoneType"),
        ({"image": object()}, "not a object"),
        ({"image": np.full((1, 2, 2), 1e300)}, "1e+300 does not fit into FP32"),
    ],
)
def test_refusals_name_what_was_expected_and_what_came(inputs: Any, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        prepare(family(IMAGE), inputs)
    assert text in caught.value.message


def test_other_datatypes() -> None:
    small = TensorSpec(name="x", datatype="UINT8", shape=(1,))
    assert taken(small, np.array([[255], [0]]))[1].tolist() == [[255], [0]]
    for value in (np.array([256]), np.array([-1], np.int8), [300]):
        with pytest.raises(BadRequest, match="does not fit into UINT8"):
            taken(small, value)
    with pytest.raises(BadRequest, match="not float64 of shape"):
        taken(small, np.array([1.0]))
    bits = TensorSpec(name="x", datatype="BF16", shape=(1,))
    assert taken(bits, np.array([16256], np.uint16))[1].tolist() == [[16256]]
    with pytest.raises(BadRequest, match=r"BF16 \(its bits, as uint16\)"):
        taken(bits, np.array([1.0]))
    truth = TensorSpec(name="x", datatype="BOOL", shape=(1,))
    assert taken(truth, [True])[1].tolist() == [[True]]
    with pytest.raises(BadRequest, match="BOOL"):
        taken(truth, [1])
    loose = TensorSpec(name="x", datatype="FP32", shape=(-1,), max_shape=(4,))
    assert taken(loose, np.zeros((2, 3)))[0] == 2
    with pytest.raises(BadRequest, match=r"of shape \[1..4\], or \[rows, 1..4\] for several rows, not float64"):
        taken(loose, np.zeros((2, 5)))
    text = TensorSpec(name="x", datatype="BYTES", shape=(2,), max_bytes=64)
    assert prepare(family(text), {"x": ["a", b"bc"]}) == (1, [([b"\x01\0\0\0a\x02\0\0\0bc"], (2,))])
    with pytest.raises(BadRequest, match="elements of input 'x', which is BYTES, are str or bytes, not int"):
        prepare(family(text), {"x": [1, 2]})


def test_as_many_rows_in_each_input() -> None:
    other = TensorSpec(name="mask", datatype="FP32", shape=(1,))
    with pytest.raises(BadRequest, match="differ in their number of rows: image 2, mask 3"):
        prepare(family(IMAGE, other), {"image": np.zeros((2, 1, 2, 2)), "mask": np.zeros((3, 1))})


INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")


@settings(max_examples=examples(200), deadline=None)
@given(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), st.data())
def test_integers_are_taken_if_and_only_if_they_fit(declared: str, came: str, data: st.DataObject) -> None:
    limits = np.iinfo(came.lower())
    value = data.draw(st.integers(int(limits.min), int(limits.max)))
    tensor = TensorSpec(name="x", datatype=declared, shape=(1,))  # type: ignore[arg-type]
    wanted = np.iinfo(declared.lower())
    array = np.array([value], came.lower())
    if int(wanted.min) <= value <= int(wanted.max):
        assert taken(tensor, array)[1].tolist() == [[value]]
    else:
        with pytest.raises(BadRequest, match="does not fit"):
            taken(tensor, array)
