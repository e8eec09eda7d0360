"""Plain infer bodies: what is taken is what the general way makes of them, and everything else is left to it."""

from __future__ import annotations

import importlib
import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clover.errors import BadRequest
from clover.http.oip.request import decode
from clover.http.oip.signature import Signature
from clover.types import FamilySpec, TensorSpec, VariantSpec
from tests.reference import infer as twin
from tests.support.examples import examples

SPEC = FamilySpec(
    name="f",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(2, 3)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    variants=(VariantSpec(name="v", loader="m:f"),),
)
EACH, ROWS = 6, 4


def parsed(kernels: SimpleNamespace, body: bytes) -> tuple[str, list[list[float]]] | None:
    out = np.full(EACH * ROWS, 7.0, np.float32)
    found = kernels.infer.Plain("x", (2, 3), out).parse(body)
    return None if found is None else (found[0], out[: found[1] * EACH].reshape(found[1], EACH).tolist())


def general(body: bytes) -> tuple[str, list[list[float]]]:
    """What the general way makes of it; raises BadRequest."""
    signature = Signature(SPEC, ROWS)
    signature.plain = None
    request = decode(signature, body)
    rows = np.asarray(request.inputs[0][1])
    return request.id, rows.reshape(len(rows), EACH).tolist()


def document(rows: int = 1, data: Any = None, **more: Any) -> dict[str, Any]:
    numbers = [at / 8 - 1 for at in range(EACH * rows)] if data is None else data
    tensor = {"name": "x", "shape": [rows, 2, 3], "datatype": "FP32", "data": numbers}
    return {"id": "one", "inputs": [tensor], **more}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", "\r: ")])
def test_the_plain_form_is_taken(kernels: SimpleNamespace, separators: tuple[str, str]) -> None:
    nested = np.arange(12).reshape(2, 2, 3).tolist()
    for given_ in (document(), document(3), document(2, nested), {"inputs": document()["inputs"]}):
        body = json.dumps(given_, separators=separators).encode()
        assert parsed(kernels, b" " + body + b"\n") == general(body)


def test_members_come_in_any_order(kernels: SimpleNamespace) -> None:
    tensor = document(2)["inputs"][0]
    for order in itertools.permutations(tensor):
        body = json.dumps({"inputs": [{key: tensor[key] for key in order}], "id": "b"}).encode()
        assert parsed(kernels, body) == general(body)


@pytest.mark.parametrize(
    "number",
    ["0", "-0", "-0.0", "0.1", "1e5", "-2.5E-3", "123456.75", "3.4028234663852886e38", "1e-22", "9007199254740992",
     "0.000000000000000000001", "1.17549435e-38", "0e9", "0.30000001192092896"],
)  # fmt: skip
def test_numbers_are_those_of_any_correct_reader(kernels: SimpleNamespace, number: str) -> None:
    body = json.dumps(document()).replace("-0.875", number).encode()
    assert number.encode() in body
    found = parsed(kernels, body)
    if found is not None:
        assert np.array(found[1]).tobytes() == np.array(general(body)[1]).tobytes()  # -0.0 is not 0.0


OTHERS = [
    b"",
    b"{}",
    b"[]",
    b'{"id":"a"}',
    json.dumps(document(parameters={})).encode(),
    json.dumps(document(outputs=[])).encode(),
    json.dumps(document() | {"id": 3}).encode(),
    json.dumps(document() | {"id": "\u00e9"}).encode(),
    json.dumps(document() | {"id": 'a"b'}).encode(),
    json.dumps(document() | {"id": "\x7f"}, ensure_ascii=False).encode(),
    json.dumps(document(5)).encode(),
    json.dumps(document(0, [])).encode(),
    json.dumps(document(1, [1.0] * 5)).encode(),
    json.dumps(document(1, [1.0] * 7)).encode(),
    json.dumps(document(1, [[1.0] * 3] * 2)).encode(),
    json.dumps(document(2, [[[1.0] * 3] * 2])).encode(),
    json.dumps(document(1, [[[1.0] * 3] * 2] * 2)).encode(),
    json.dumps(document(1, [True] * 6)).encode(),
    json.dumps(document(1, ["1"] * 6)).encode(),
    json.dumps(document(1, [None] * 6)).encode(),
    json.dumps(document()).encode() + b"x",
    json.dumps(document()).encode()[:-1],
    json.dumps(document()).replace('"shape": [1,', '"shape": [1.0,').encode(),
    json.dumps(document()).replace('"shape": [1,', '"shape": [01,').encode(),
    json.dumps(document()).replace('"x"', '"y"').encode(),
    json.dumps(document()).replace("FP32", "FP64").encode(),
    json.dumps(document()).replace('"datatype"', '"name": "x", "datatype"').encode(),
    *(json.dumps(document()).replace("-0.875", bad).encode()
      for bad in ("01", "+1", ".5", "1.", "1e", "- 1", "NaN", "1e39", "1e23", "12345678901234567890", "1 2", "0x1")),
]  # fmt: skip


@pytest.mark.parametrize("body", OTHERS)
def test_everything_else_is_left_to_the_general_way(kernels: SimpleNamespace, body: bytes) -> None:
    assert parsed(kernels, body) is None


def test_it_refuses_shapes_it_cannot_hold(kernels: SimpleNamespace) -> None:
    out = np.zeros(8, np.float32)
    for shape in ((), (2, -1), (0,), (1,) * 8):
        with pytest.raises(ValueError):
            kernels.infer.Plain("x", shape, out)


NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    st.decimals(-1000, 1000, places=9).map(float),
)


@pytest.mark.slow
@settings(max_examples=examples(300))
@given(rows=st.integers(1, ROWS), data=st.data())
def test_what_is_taken_is_what_the_general_way_makes_of_it(
    kernels: SimpleNamespace, rows: int, data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(NUMBERS, min_size=EACH * rows, max_size=EACH * rows))
    body = json.dumps(document(rows, numbers)).encode()
    found = parsed(kernels, body)
    if found is not None:
        assert found == general(body)
    elif all(abs(number) < 1e6 and len(repr(number)) < 16 and "e" not in repr(number) for number in numbers):
        raise AssertionError("a plain body was not taken")


BASE = json.dumps(document(2)).encode()


@pytest.mark.slow
@settings(max_examples=examples(500))
@given(st.integers(0, len(BASE) - 1), st.integers(0, len(BASE)), st.binary(max_size=4))
@example(0, 0, b"\xef\xbb\xbf")
def test_whatever_is_done_to_a_body(kernels: SimpleNamespace, at: int, until: int, put: bytes) -> None:
    """It is read as the general way reads it, or not at all; and the kernel and its twin agree on which."""
    body = BASE[:at] + put + BASE[max(at, until) :]
    found = parsed(kernels, body)
    assert found == parsed(SimpleNamespace(infer=twin), body)
    if found is not None:
        try:
            expected = general(body)
        except BadRequest:
            raise AssertionError(f"{body!r} is wrong and was taken") from None
        assert found == expected


# --- the burden of other texts ----------------------------------------------------------------------------------------

SIGNS = st.lists(st.sampled_from([*(bytes([code]) for code in b'[]{}",:\\a0 '), b'\\"', b'"a"', b"\xff"])).map(b"".join)


def weight_of(value: Any) -> int:
    """What the compact text of a value weighs: strings 2, colons 4, commas 1, lists and dicts 4."""
    if isinstance(value, str):
        return 2
    if isinstance(value, list):
        return 4 + sum(map(weight_of, value)) + max(0, len(value) - 1)
    if isinstance(value, dict):
        return 4 + sum(6 + weight_of(inner) for inner in value.values()) + max(0, len(value) - 1)
    return 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}:,"\\a', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(alphabet='a":,', max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


@given(JSON)
def test_a_text_weighs_what_its_values_weigh(kernels: SimpleNamespace, value: Any) -> None:
    text = json.dumps(value, separators=(",", ":")).encode()
    weight = weight_of(value)
    assert kernels.infer.burden(text, 100, weight) == 0
    assert weight == 0 or kernels.infer.burden(text, 100, weight - 1) == 2


@given(SIGNS, st.integers(-1, 4), st.integers(0, 12))
def test_the_burden_of_any_bytes_is_what_the_twin_finds(text: bytes, depth: int, weight: int) -> None:
    compiled = importlib.import_module("clover._native.infer")
    assert compiled.burden(text, depth, weight) == twin.burden(text, depth, weight)


def test_the_first_excess_counts(kernels: SimpleNamespace) -> None:
    burden = kernels.infer.burden
    assert burden(b"[[[", 2, 100) == 1
    assert burden(b"[[[", 2, 11) == 2
    assert burden(b"[,,,,,[[[", 2, 8) == 2
    assert burden(b'["[[[[', 1, 100) == 0
    assert burden(b"]]][[[[", 1, 100) == 0
    assert burden(b"", 0, 0) == 0
    with pytest.raises(TypeError):
        burden(None, 1, 1)


# --- a text that came before ------------------------------------------------------------------------------------------

PARTS = st.text("ab\"\\~ \x7f\n\u00e9", max_size=4).map(str.encode)


@given(PARTS, PARTS, PARTS, PARTS)
def test_what_stands_between_is_what_the_twin_finds(head: bytes, inner: bytes, tail: bytes, other: bytes) -> None:
    compiled = importlib.import_module("clover._native.infer")
    for text in (head + inner + tail, other, head + tail, head + other):
        for size in {len(text), max(0, len(text) - 1)}:
            assert compiled.between(text, size, head, tail) == twin.between(text, size, head, tail)


def test_only_what_is_a_string_as_it_stands_is_found_between(kernels: SimpleNamespace) -> None:
    def between(text: bytes, head: bytes, tail: bytes) -> str | None:
        found: str | None = kernels.infer.between(text + b"tensors", len(text), head, tail)
        return found

    assert between(b'{"id":"a 1~"}', b'{"id":"', b'"}') == "a 1~"
    assert between(b'{"id":""}', b'{"id":"', b'"}') == ""
    assert between(b"same", b"same", b"") == ""
    assert between(b"aXa", b"aX", b"Xa") is None, "head and tail do not overlap"
    for inner in (b'a"b', b"a\\b", b"a\nb", b"a\x7f", "\u00e9".encode(), b"\0"):
        assert between(b"<" + inner + b">", b"<", b">") is None
    assert between(b"<a>", b"<", b"]") is None
    assert between(b"<a>", b"[", b">") is None
    for size in (-1, 4):
        with pytest.raises(IndexError):
            kernels.infer.between(b"<a>", size, b"<", b">")
