"""Properties of the protocol: round trips, and bodies nobody would send."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover._native.infer import burden
from clover.errors import BadRequest
from clover.http.oip import tensors
from clover.http.oip.tensors import DATATYPES
from clover.runtime.memory.bytes_codec import count_elements
from tests.support.examples import examples
from tests.support.http_fakes import Driver, FakeModel, FakeView, family, tensor

NUMBERS = [name for name in DATATYPES if name not in ("BYTES", "BOOL", "FP16", "BF16")]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Any]:
    name = draw(st.sampled_from([*NUMBERS, "BOOL"]))
    shape = [draw(st.integers(1, 4)), *draw(st.lists(st.integers(0, 4), max_size=3))]
    count = int(np.prod(shape))
    dtype = DATATYPES[name].dtype
    if dtype.kind == "f":
        width = dtype.itemsize * 8
        element: st.SearchStrategy[Any] = st.floats(width=width, allow_nan=False, allow_infinity=False)
    elif dtype.kind == "b":
        element = st.booleans()
    else:
        info = np.iinfo(dtype)
        element = st.integers(int(info.min), int(info.max))
    values = draw(st.lists(element, min_size=count, max_size=count))
    return name, np.array(values, dtype).reshape(shape)


@settings(deadline=None)
@given(arrays(), st.booleans())
def test_tensors_survive_json(case: tuple[str, Any], nested: bool) -> None:
    name, array = case
    shape = list(array.shape)
    text = orjson.dumps(array.tolist()) if nested else tensors.numbers_to_json(name, array)
    back = tensors.numbers_from_json(DATATYPES[name], orjson.loads(text), shape, True)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


@settings(deadline=None)
@given(arrays())
def test_tensors_survive_binary(case: tuple[str, Any]) -> None:
    name, array = case
    raw = tensors.numbers_to_binary(array)
    back = tensors.numbers_from_binary(DATATYPES[name], memoryview(raw), list(array.shape))
    assert back.shape == array.shape
    assert (back == array).all()


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.data())
def test_bytes_survive(rows: int, each: int, data: st.DataObject) -> None:
    elements = data.draw(st.lists(st.text(max_size=6), min_size=rows * each, max_size=rows * each))
    packed = tensors.bytes_from_json(elements, [rows, each], False)
    assert tensors.bytes_from_binary(b"".join(packed), [rows, each]) == packed
    assert orjson.loads(tensors.bytes_to_json(packed)) == elements
    coded = [b64encode(text.encode()).decode() for text in elements]
    assert tensors.bytes_from_json(coded, [rows, each], True) == packed


@given(st.binary(max_size=64), st.integers(1, 3), st.integers(0, 4))
def test_bytes_from_anything(raw: bytes, rows: int, each: int) -> None:
    try:
        packed = tensors.bytes_from_binary(raw, [rows, each])
    except BadRequest:
        return
    assert b"".join(packed) == raw
    assert sum(count_elements(row) for row in packed) == rows * each


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=30,
)


def deepest(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(deepest, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(deepest, value.values()), default=0)
    return 0


@settings(deadline=None)
@given(st.recursive(st.text(alphabet='[]{}"\\a', max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_depth(value: Any) -> None:
    text = orjson.dumps(value)
    depth = deepest(value)
    assert burden(text, depth, 1 << 40) == 0
    assert depth == 0 or burden(text, depth - 1, 1 << 40) == 1


def everything() -> Driver:
    listed = [tensor("F", "FP32", -1, max_shape=(4,)), tensor("I", "INT8", 2), tensor("S", "BYTES", -1, max_bytes=64)]
    listed.append(tensor("B", "BOOL", 1))
    return Driver(FakeView(FakeModel(family("m", listed, listed))))


VALID = {
    "F": {"name": "F", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]},
    "I": {"name": "I", "shape": [1, 2], "datatype": "INT8", "data": [1, 2]},
    "S": {"name": "S", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]},
    "B": {"name": "B", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
}


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """A valid request with a few of its parts replaced by anything."""
    body: dict[str, Any] = {
        "id": "x",
        "parameters": {},
        "inputs": [dict(item) for item in VALID.values()],
        "outputs": [],
    }
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.sampled_from(["top", "input", "element", "parameters", "outputs"]))
        item = draw(st.sampled_from(body["inputs"])) if isinstance(body["inputs"], list) and body["inputs"] else {}
        if where == "top":
            body[draw(st.sampled_from(["id", "parameters", "inputs", "outputs", "x"]))] = draw(JSON)
        elif where == "input" and isinstance(item, dict):
            item[draw(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]))] = draw(JSON)
        elif where == "element" and isinstance(item, dict) and isinstance(item.get("data"), list) and item["data"]:
            item["data"] = [draw(JSON), *item["data"][1:]]
        elif where == "parameters":
            keys = ["timeout", "binary_data_output", "clover_min_accuracy", "clover_max_latency_ms", "clover_cascade"]
            keys += ["clover_receipt"]
            body["parameters"] = {draw(st.sampled_from(keys)): draw(JSON)}
        else:
            keys = ["binary_data", "classification", "shared_memory_region"]
            name = draw(st.sampled_from(["F", "I", "S", "B", "nope"]))
            body["outputs"] = [{"name": name, "parameters": {draw(st.sampled_from(keys)): draw(JSON)}}]
    return body


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(400))
@given(requests(), st.binary(max_size=24), st.one_of(st.none(), st.integers(-30, 30)))
def test_random_bodies_never_give_500(body: Any, tail: bytes, slip: int | None) -> None:
    text = json.dumps(body).encode()
    fields = [] if slip is None else [f"Inference-Header-Content-Length: {max(0, len(text) + slip)}"]
    d = everything()
    answer = d.post("/v2/models/m/infer", text + (tail if slip is not None else b""), *fields)
    assert answer.status in (200, 400)
    assert d.view.by_name["m"].open_tickets == 0


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(200))
@given(JSON | st.binary(max_size=60))
def test_anything_at_all_never_gives_500(body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    d = everything()
    for path in ("/v2/models/m/infer", "/v2/repository/index", "/v2/repository/models/m/load"):
        assert d.post(path, data).status in (200, 400)


@settings(deadline=None, max_examples=examples(50))
@given(
    st.sampled_from(NUMBERS),
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 6),
)
def test_the_largest_come_first_and_of_equals_the_lower_index(
    name: str, listed: list[list[int]], classes: int, labelled: int
) -> None:
    labels = tuple(f"label{index}" for index in range(labelled))
    table = tensors.classify(name, np.array(listed, DATATYPES[name].dtype), classes, labels)
    form = "{:f}" if name.startswith("FP") else "{}"
    for row, line in zip(listed, table, strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))[:classes]
        expected = [
            f"{form.format(row[index])}:{index}" + (f":label{index}" if index < labelled else "") for index in order
        ]
        assert [text.decode() for text in line] == expected
