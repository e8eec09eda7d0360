"""The Open Inference Protocol, rule by rule, through the whole front end."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover._native.infer import burden
from clover.errors import BadRequest
from clover.http.inference import receipt_field, receipt_json
from clover.types import EvaluationSpec, Reading
from tests.support.http_fakes import (
    RECEIPT,
    Answer,
    Driver,
    FakeModel,
    FakeView,
    echo_body,
    echo_family,
    family,
    request,
    tensor,
)

INFER = "/v2/models/echo/infer"


def simple_family() -> Any:
    inputs = [tensor("INPUT0", "INT32", 16), tensor("INPUT1", "INT32", 16)]
    outputs = [tensor("OUTPUT0", "INT32", 16), tensor("OUTPUT1", "INT32", 16)]
    return family("simple", inputs, outputs)


def simple() -> Driver:
    return Driver(FakeView(FakeModel(simple_family(), lambda x: [x[0] + x[1], x[0] - x[1]])))


def echo(datatype: str = "FP32", *shape: int, function: Any = None, **others: Any) -> Driver:
    shape = shape or (4,)
    spec = family("echo", [tensor("IN", datatype, *shape, **others)], [tensor("OUT", datatype, *shape, **others)])
    return Driver(FakeView(FakeModel(spec, *([function] if function else []))))


def one(data: Any, shape: list[int], datatype: str = "FP32", **others: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "IN", "shape": shape, "datatype": datatype, "data": data}], **others}


def binary(document: dict[str, Any], *tails: bytes, path: str = INFER) -> tuple[str, bytes, str]:
    text = json.dumps(document).encode()
    return path, text + b"".join(tails), f"Inference-Header-Content-Length: {len(text)}"


def split(answer: Answer) -> tuple[dict[str, Any], bytes]:
    size = int(answer.fields["inference-header-content-length"])
    assert answer.fields["content-type"] == "application/octet-stream"
    return orjson.loads(answer.body[:size]), answer.body[size:]


def simple_inputs(**parameters: Any) -> list[dict[str, Any]]:
    return [{"name": f"INPUT{i}", "shape": [1, 16], "datatype": "INT32", **parameters} for i in (0, 1)]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_flat_and_nested() -> None:
    d = simple()
    first, second = list(range(16)), [1] * 16
    for a, b in ((first, second), ([first], [second])):
        inputs = simple_inputs()
        inputs[0]["data"], inputs[1]["data"] = a, b
        answer = d.post("/v2/models/simple/infer", {"id": "7", "inputs": inputs, "model_name": "ignored"})
        assert answer.fields["content-type"] == "application/json"
        assert "inference-header-content-length" not in answer.fields
        assert answer.json() == {
            "model_name": "simple",
            "model_version": "1",
            "id": "7",
            "outputs": [
                {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16], "data": [x + 1 for x in first]},
                {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 16], "data": [x - 1 for x in first]},
            ],
        }
    assert d.post("/v2/models/simple/versions/1/infer", {"inputs": inputs}).status == 200


def test_id_is_echoed_only_if_given() -> None:
    d = echo()
    assert "id" not in d.post(INFER, echo_body()).json()
    assert "id" not in d.post(INFER, echo_body(id="")).json()
    assert d.post(INFER, echo_body(id='a"\n\u00e9')).json()["id"] == 'a"\n\u00e9'
    assert d.post(INFER, echo_body(id=7)).status == 400


def test_several_rows() -> None:
    answer = echo().post(INFER, one([[1, 2, 3, 4], [5, 6, 7, 8]], [2, 4]))
    assert answer.json()["outputs"][0] == {
        "name": "OUT",
        "datatype": "FP32",
        "shape": [2, 4],
        "data": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    }


def test_requested_outputs() -> None:
    d = simple()
    inputs = simple_inputs(data=[1] * 16)
    answer = d.post("/v2/models/simple/infer", {"inputs": inputs, "outputs": [{"name": "OUTPUT1"}]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["OUTPUT1"]
    answer = d.post(
        "/v2/models/simple/infer", {"inputs": inputs, "outputs": [{"name": "OUTPUT1"}, {"name": "OUTPUT0"}]}
    )
    assert [output["name"] for output in answer.json()["outputs"]] == ["OUTPUT1", "OUTPUT0"]
    for outputs in (
        [{"name": "nope"}],
        [{"name": "OUTPUT1"}, {"name": "OUTPUT1"}],
        [{"name": "OUTPUT0"}, {"name": "OUTPUT1"}, {"name": "OUTPUT0"}],
        ["OUTPUT0"],
        [{}],
        {"name": "OUTPUT0"},
        [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}],
        [{"name": "OUTPUT0", "parameters": {"classification": "2"}}],
        [{"name": "OUTPUT0", "parameters": {"classification": -1}}],
        [{"name": "OUTPUT0", "parameters": {"classification": {}}}],
        [{"name": "OUTPUT0", "parameters": []}],
        [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "x"}}],
        [{"name": ["OUTPUT0"]}],
    ):
        assert d.post("/v2/models/simple/infer", {"inputs": inputs, "outputs": outputs}).status == 400


GOOD = {"name": "IN", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
BAD_INPUTS: list[Any] = [
    None,
    {},
    [],
    ["IN"],
    [GOOD, GOOD],
    [GOOD | {"name": "OTHER"}],
    [GOOD | {"name": 1}],
    [GOOD | {"name": ["IN"]}],
    [GOOD | {"datatype": "FP64"}],
    [GOOD | {"datatype": None}],
    [GOOD | {"shape": [4]}],
    [GOOD | {"shape": [1, 1, 4]}],
    [GOOD | {"shape": [1, 5]}],
    [GOOD | {"shape": [2, 4]}],
    [GOOD | {"shape": [0, 4], "data": []}],
    [GOOD | {"shape": [-1, 4]}],
    [GOOD | {"shape": [1.0, 4]}],
    [GOOD | {"shape": [True, 4]}],
    [GOOD | {"shape": "1,4"}],
    [GOOD | {"shape": None}],
    [GOOD | {"shape": [2**62, 4]}],
    [GOOD | {"shape": [1] * 9}],
    [GOOD | {"data": [1, 2, 3]}],
    [GOOD | {"data": [1, 2, 3, 4, 5]}],
    [GOOD | {"data": [[1, 2], [3, 4]]}],
    [GOOD | {"data": [[1, 2, 3], 4]}],
    [GOOD | {"data": [[1, 2, 3, [4]]]}],
    [GOOD | {"data": [[[1, 2, 3, 4]]]}],
    [GOOD | {"data": [[1, 2, 3, 4], []]}],
    [GOOD | {"data": "1234"}],
    [GOOD | {"data": {"0": 1}}],
    [GOOD | {"data": None}],
    [GOOD | {"data": 1}],
    [GOOD | {"data": ["1", 2, 3, 4]}],
    [GOOD | {"data": [None, 2, 3, 4]}],
    [GOOD | {"data": [True, 2, 3, 4]}],
    [GOOD | {"data": [1e39, 2, 3, 4]}],
    [GOOD | {"data": [10**18, 2, 3, {}]}],
    [GOOD | {"parameters": []}],
    [GOOD | {"parameters": {"binary_data_size": 16}}],
    [GOOD | {"parameters": {"binary_data_size": -1}}],
    [GOOD | {"parameters": {"shared_memory_region": "x"}}],
    [{key: value for key, value in GOOD.items() if key != "data"}],
]


@pytest.mark.parametrize("inputs", BAD_INPUTS, ids=range(len(BAD_INPUTS)))
def test_bad_inputs(inputs: Any) -> None:
    d = echo()
    answer = d.post(INFER, {"inputs": inputs})
    assert answer.status == 400
    assert set(answer.json()) == {"error"}
    assert d.post(INFER, {"inputs": [GOOD]}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{}",
        b"\xff",
        b'{"inputs":[NaN]}',
        b'{"inputs":[]}x',
        b"\0",
        b'{"id":"\\ud800"}',
    ],
)
def test_bad_bodies(body: bytes) -> None:
    assert echo().post(INFER, body).status == 400


def test_missing_input() -> None:
    inputs = simple_inputs(data=[1] * 16)
    d = simple()
    assert d.post("/v2/models/simple/infer", {"inputs": inputs[:1]}).status == 400
    inputs[1]["shape"] = [2, 16]
    inputs[1]["data"] = [1] * 32
    assert d.post("/v2/models/simple/infer", {"inputs": inputs}).status == 400


@pytest.mark.parametrize(
    ("datatype", "low", "high"),
    [(f"INT{bits}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)]
    + [(f"UINT{bits}", 0, 2**bits - 1) for bits in (8, 16, 32, 64)],
)
def test_integer_ranges(datatype: str, low: int, high: int) -> None:
    d = echo(datatype, 2)
    answer = d.post(INFER, one([low, high], [1, 2], datatype))
    assert answer.json()["outputs"][0]["data"] == [low, high]
    assert d.post(INFER, one([0, 1.0], [1, 2], datatype)).json()["outputs"][0]["data"] == [0, 1]
    for bad in (low - 1, high + 1, 0.5, "1", None, True, [1], 1e30):
        assert d.post(INFER, one([0, bad], [1, 2], datatype)).status == 400


def test_booleans() -> None:
    d = echo("BOOL", 2)
    answer = d.post(INFER, one([True, False], [1, 2], "BOOL"))
    assert answer.json()["outputs"][0]["data"] == [True, False]
    for bad in (0, 1, 2, "true", None, 1.0):
        assert d.post(INFER, one([True, bad], [1, 2], "BOOL")).status == 400


def test_doubles_keep_their_digits() -> None:
    data = [0.1, 1e308, -5e-324, 3]
    assert echo("FP64", 4).post(INFER, one(data, [1, 4], "FP64")).json()["outputs"][0]["data"] == data


def test_half_precision_is_binary_only() -> None:
    for datatype in ("FP16", "BF16"):
        d = echo(datatype, 2)
        assert d.post(INFER, one([1, 2], [1, 2], datatype)).status == 400
        head = {"name": "IN", "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": 4}}
        raw = b"\x00\x3c\x80\x3f"
        answer = d.post(*binary({"inputs": [head]}, raw))
        assert answer.status == 400  # the answer would be JSON
        answer = d.post(*binary({"inputs": [head], "parameters": {"binary_data_output": True}}, raw))
        assert split(answer)[1] == raw


def test_non_finite_output_names_the_way_out() -> None:
    d = echo(function=lambda x: [np.array([[np.nan, np.inf, 1, 2]], np.float32)])
    answer = d.post(INFER, echo_body(id="null"))
    assert answer.status == 400
    assert "binary_data" in answer.json()["error"]
    answer = d.post(INFER, echo_body(parameters={"binary_data_output": True}))
    assert np.isnan(np.frombuffer(split(answer)[1], "<f4")[0])


def test_the_corner_of_a_slot_is_answered_in_json() -> None:
    """A variable output is a view of its slot: with a last axis of 1 its numbers do not lie side by side."""
    spec = family("echo", [tensor("IN", "FP32", 4)], [tensor("OUT", "FP32", -1, -1, max_shape=(4, 3))])
    slot = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    for corner, shape in ((slot[:, :3, :1], [1, 3, 1]), (slot[:, :3, :2], [1, 3, 2]), (slot[:, :1, :1], [1, 1, 1])):
        d = Driver(FakeView(FakeModel(spec, lambda inputs, rows=corner: [rows])))
        (output,) = d.post(INFER, echo_body()).json()["outputs"]
        assert output["shape"] == shape
        assert output["data"] == corner.flatten().tolist()


def test_json_depth() -> None:
    d = echo()
    assert d.post(INFER, b"[" * 101 + b"]" * 101).json()["error"] == "the JSON is nested too deeply"
    assert d.post(INFER, b"[" * 1_000_000).status == 400
    deep = orjson.dumps(echo_body())[:-1] + b',"x":' + b"[" * 98 + b"]" * 98 + b"}"
    assert d.post(INFER, deep).status == 200


def test_depth_counts_brackets_outside_strings_only() -> None:
    text = orjson.dumps({"a": ["[" * 500, '\\"[[', "]" * 3], "b": [[1]] * 200})
    assert within_depth(text, 3)
    assert not within_depth(text, 2)
    assert not within_depth(b'{"a":"' + b"\\" * 300 + b'"[[[', 2)
    assert within_depth(b"[]" * 70_000, 1)
    assert not within_depth(b"[[]" + b"[]" * 70_000 + b"[[", 2)
    assert not within_depth(b'{"a":"' + b"]" * 500 + b'","b":' + b"[" * 200, 100)
    assert within_depth(b'"' + b'\\"[' * 500_000, 100)  # never closed: linear all the same


def within_depth(text: bytes, depth: int) -> bool:
    return burden(text, depth, 1 << 40) == 0


# --- binary -----------------------------------------------------------------------------------------------------------


def test_binary_in_and_out() -> None:
    d = simple()
    a, b = np.arange(16, dtype="<i4"), np.ones(16, "<i4")
    inputs = simple_inputs(parameters={"binary_data_size": 64})
    path = "/v2/models/simple/infer"
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}]
    answer = d.post(*binary({"inputs": inputs, "outputs": outputs}, a.tobytes(), b.tobytes(), path=path))
    document, tail = split(answer)
    assert document["outputs"][0] == {
        "name": "OUTPUT0",
        "datatype": "INT32",
        "shape": [1, 16],
        "parameters": {"binary_data_size": 64},
    }
    assert document["outputs"][1]["data"] == (a - b).tolist()
    assert tail == (a + b).tobytes()
    everything = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    document, tail = split(d.post(*binary(everything, a.tobytes(), b.tobytes(), path=path)))
    assert tail == (a + b).tobytes() + (a - b).tobytes()
    outputs = [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}]
    document, tail = split(d.post(*binary(everything | {"outputs": outputs}, a.tobytes(), b.tobytes(), path=path)))
    assert document["outputs"][0]["data"] == (a + b).tolist()
    assert tail == (a - b).tobytes()


def test_json_and_binary_inputs_mix() -> None:
    inputs = simple_inputs()
    inputs[0]["data"] = [5] * 16
    inputs[1]["parameters"] = {"binary_data_size": 64}
    answer = simple().post(*binary({"inputs": inputs}, np.ones(16, "<i4").tobytes(), path="/v2/models/simple/infer"))
    assert answer.fields["content-type"] == "application/json"
    assert answer.json()["outputs"][0]["data"] == [6] * 16


def test_content_type_is_never_looked_at() -> None:
    d = echo()
    for field in ("Content-Type: application/octet-stream", "Content-Type: text/plain", "X: y"):
        assert d.post(INFER, echo_body(), field).status == 200


def test_binary_sizes_must_fit() -> None:
    d = echo()
    head = {"name": "IN", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    assert d.post(*binary({"inputs": [head]}, b"\0" * 16)).status == 200
    for tail in (b"", b"\0" * 15, b"\0" * 17):
        assert d.post(*binary({"inputs": [head]}, tail)).status == 400
    for size in (0, 12, 20, -1, 1.5, "16", True, 2**70):
        bad = head | {"parameters": {"binary_data_size": size}}
        assert d.post(*binary({"inputs": [bad]}, b"\0" * 16)).status == 400
    text = orjson.dumps({"inputs": [head]})
    assert d.post(INFER, text, f"Inference-Header-Content-Length: {len(text) + 1}").status == 400
    assert d.post(INFER, text + b"\0" * 16).status == 400
    assert d.post(INFER, orjson.dumps(echo_body()) + b"x", "Inference-Header-Content-Length: 3").status == 400


def test_raw_request() -> None:
    d = echo()
    raw = np.arange(4, dtype="<f4").tobytes()
    document, tail = split(d.post(INFER, raw, "Inference-Header-Content-Length: 0"))
    assert document["outputs"][0]["shape"] == [1, 4]
    assert tail == raw
    assert d.post(INFER, raw[:-1], "Inference-Header-Content-Length: 0").status == 400
    assert simple().post("/v2/models/simple/infer", b"\0" * 64, "Inference-Header-Content-Length: 0").status == 400
    d = echo("FP32", -1, max_shape=(8,))
    assert split(d.post(INFER, raw, "Inference-Header-Content-Length: 0"))[0]["outputs"][0]["shape"] == [1, 4]
    assert d.post(INFER, raw[:-1], "Inference-Header-Content-Length: 0").status == 400
    assert d.post(INFER, raw * 3, "Inference-Header-Content-Length: 0").status == 400
    d = echo("BYTES", 1, max_bytes=100)
    assert split(d.post(INFER, b"text", "Inference-Header-Content-Length: 0"))[1] == b"\4\0\0\0text"


def test_zero_size_binary_output() -> None:
    d = echo("FP32", -1, max_shape=(8,))
    head = {"name": "IN", "shape": [1, 0], "datatype": "FP32", "parameters": {"binary_data_size": 0}}
    answer = d.post(*binary({"inputs": [head], "parameters": {"binary_data_output": True}}))
    assert "inference-header-content-length" not in answer.fields
    assert answer.fields["content-type"] == "application/json"
    assert answer.json()["outputs"] == [
        {"name": "OUT", "datatype": "FP32", "shape": [1, 0], "parameters": {"binary_data_size": 0}}
    ]


def test_boolean_bytes_are_normalised() -> None:
    head = {"name": "IN", "shape": [1, 3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}
    body = {"inputs": [head], "parameters": {"binary_data_output": True}}
    assert split(echo("BOOL", 3).post(*binary(body, b"\0\1\xff")))[1] == b"\0\1\1"


# --- BYTES ------------------------------------------------------------------------------------------------------------


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_bytes() -> None:
    d = echo("BYTES", 2, max_bytes=64)
    answer = d.post(INFER, one(["a", "", "\u00e9", "d"], [2, 2], "BYTES"))
    assert answer.json()["outputs"][0] == {
        "name": "OUT",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["a", "", "\u00e9", "d"],
    }
    raw = packed(b"\xff\0", b"", b"x", b"yz")
    head = {"name": "IN", "shape": [2, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body = {"inputs": [head], "parameters": {"binary_data_output": True}}
    assert split(d.post(*binary(body, raw)))[1] == raw
    answer = d.post(*binary({"inputs": [head]}, raw))
    assert answer.status == 400
    assert "binary_data" in answer.json()["error"]
    for bad in (raw[:-1], raw + b"\0", raw[:8], raw + packed(b""), b"\xff\xff\xff\xff" + raw[4:], b""):
        head["parameters"] = {"binary_data_size": len(bad)}
        assert d.post(*binary({"inputs": [head]}, bad)).status == 400
    for bad_data in ([1, "a", "b", "c"], [None] * 4, ["a"] * 3, [["a", "b"], ["c"]], [["ab"], ["cd"]], ["ab", "cd"]):
        assert d.post(INFER, one(bad_data, [2, 2], "BYTES")).status == 400


def test_bytes_in_base64() -> None:
    d = echo("BYTES", 2, max_bytes=64)
    sent = one(["/wA=", ""], [1, 2], "BYTES", parameters={"binary_data_output": True})
    sent["inputs"][0]["parameters"] = {"content_type": "base64"}
    assert split(d.post(INFER, sent))[1] == packed(b"\xff\0", b"")
    for bad in (["/wA", ""], ["/w A=", ""], ["\u00e9", ""], [1, 2], ["/wA="]):
        sent["inputs"][0]["data"] = bad
        answer = d.post(INFER, sent)
        assert (answer.status, "input 'IN': " in answer.json()["error"]) == (400, True)
    sent["inputs"][0] |= {"data": ["/wA=", ""], "parameters": {"content_type": "str"}}
    assert split(d.post(INFER, sent))[1] == packed(b"/wA=", b"")


@pytest.mark.parametrize("rows", [(1 << 31) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_more_rows_than_there_can_be_are_refused(rows: int) -> None:
    d = Driver(FakeView(FakeModel(echo_family())))
    tensor = {"name": "IN", "shape": [rows, 4], "datatype": "FP32", "data": [0.0]}
    assert d.post(INFER, {"inputs": [tensor]}).status == 400


def test_bytes_of_variable_shape() -> None:
    d = echo("BYTES", -1, max_shape=(4,), max_bytes=64)
    assert d.post(INFER, one(["a", "b", "c"], [1, 3], "BYTES")).json()["outputs"][0]["shape"] == [1, 3]
    assert d.post(INFER, one([], [1, 0], "BYTES")).json()["outputs"][0]["shape"] == [1, 0]
    assert d.post(INFER, one(["a"] * 5, [1, 5], "BYTES")).status == 400
    assert d.post(INFER, one(["a" * 100], [1, 1], "BYTES")).status == 400


def test_an_absurd_bytes_shape_is_refused_before_work() -> None:
    d = echo("BYTES", -1, max_bytes=64)
    head = {"name": "IN", "shape": [1 << 40, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}
    assert d.post(*binary({"inputs": [head]}, packed(b"a", b"")[:8])).status == 400


# --- classification ---------------------------------------------------------------------------------------------------


def test_classification() -> None:
    d = Driver(FakeView(FakeModel(echo_family())))
    outputs = [{"name": "OUT", "parameters": {"classification": 3}}]
    answer = d.post(INFER, echo_body(0.25, 0.5, 0.25, 0.125, outputs=outputs))
    assert answer.json()["outputs"][0] == {
        "name": "OUT",
        "datatype": "BYTES",
        "shape": [1, 3],
        "data": ["0.500000:1:b", "0.250000:0:a", "0.250000:2:c"],
    }
    outputs[0]["parameters"] = {"classification": 9, "binary_data": True}
    document, tail = split(d.post(INFER, echo_body(1, 2, 3, 4, 4, 3, 2, 1, outputs=outputs)))
    assert document["outputs"][0]["shape"] == [2, 4]
    assert tail.startswith(packed(b"4.000000:3", b"3.000000:2:c"))
    assert simple().post(
        "/v2/models/simple/infer",
        {
            "inputs": simple_inputs(data=list(range(16))),
            "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}],
        },
    ).json()["outputs"][0]["data"] == ["30:15"]
    bytes_out = [{"name": "OUT", "parameters": {"classification": 1}}]
    assert echo("BYTES", 1, max_bytes=9).post(INFER, one(["a"], [1, 1], "BYTES", outputs=bytes_out)).status == 400


def test_no_more_rows_are_classified_than_one_turn_can() -> None:
    d = echo()
    for classes, most in ((1, 262_144 // 20), (3, 262_144 // 52), (10**12, 262_144 // 68)):
        outputs = [{"name": "OUT", "parameters": {"classification": classes}}]
        for rows, status in ((most, 200), (most + 1, 413)):
            head = {"name": "IN", "shape": [rows, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16 * rows}}
            answer = d.post(*binary({"inputs": [head], "outputs": outputs}, bytes(16 * rows)))
            assert answer.status == status
        assert f"at most {most} rows" in answer.json()["error"]


def test_one_row_is_classified_whatever_its_size() -> None:
    outputs = [{"name": "OUT", "parameters": {"classification": 1}}]
    head = {"name": "IN", "shape": [1, 300_000], "datatype": "UINT8", "parameters": {"binary_data_size": 300_000}}
    d = echo("UINT8", 300_000)
    assert d.post(*binary({"inputs": [head], "outputs": outputs}, bytes(300_000))).status == 200


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_reach_the_data_plane() -> None:
    d = echo()
    model = d.view.by_name["echo"]

    def sent(**parameters: Any) -> tuple[int, float]:
        assert d.post(INFER, echo_body(parameters=parameters)).status == 200
        return model.tickets[-1].timeout_ns, model.tickets[-1].min_accuracy

    assert sent() == (0, 0.0)
    assert sent(timeout=0) == (0, 0.0)
    assert sent(timeout=1500) == (1_500_000, 0.0)
    assert sent(clover_max_latency_ms=2.5) == (2_500_000, 0.0)
    assert sent(clover_max_latency_ms=2.5, timeout=1000) == (1_000_000, 0.0)
    assert sent(clover_max_latency_ms=0.5, timeout=1000) == (500_000, 0.0)
    assert sent(clover_min_accuracy=90.5) == (0, 90.5)
    assert sent(clover_min_accuracy=90) == (0, 90.0)
    assert sent(sequence_id=1, priority=3, headers="x", triton_x=1, clover_unknown=[]) == (0, 0.0)
    for bad in (
        {"timeout": -1},
        {"timeout": 1.5},
        {"timeout": "1"},
        {"timeout": True},
        {"clover_min_accuracy": "high"},
        {"clover_min_accuracy": -1},
        {"clover_max_latency_ms": True},
        {"clover_receipt": 1},
        {"binary_data_output": "yes"},
    ):
        assert d.post(INFER, echo_body(parameters=bad)).status == 400
    assert d.post(INFER, echo_body(parameters=[1])).status == 400
    for value, wanted in ((None, True), ("on", True), ("off", False)):
        given = {} if value is None else {"clover_cascade": value}
        assert d.post(INFER, echo_body(parameters=given)).status == 200
        assert model.tickets[-1].cascade is wanted
    for bad_value in (True, 0, "of", None, ["on"]):
        assert d.post(INFER, echo_body(parameters={"clover_cascade": bad_value})).status == 400
    assert sent(timeout=2**63, clover_max_latency_ms=1e300)[0] > 0


def test_receipts() -> None:
    d = echo()
    answer = d.post(INFER, echo_body())
    assert answer.fields["clover-receipt"] == (
        'variant="small", accuracy=88.7, energy-j="0.000123456", carbon-mg="0.000013700", '
        "method=modelled, intensity=400.0"
    )
    assert "parameters" not in answer.json()
    answer = d.post(INFER, echo_body(parameters={"clover_receipt": True}))
    assert answer.fields["clover-receipt"].endswith(", method=modelled, intensity=400.0, state=fresh, pue=1")
    assert answer.json()["parameters"]["clover_receipt"] == {
        "variant": "small",
        "accuracy": round(RECEIPT.accuracy, 7),
        "energy_j": RECEIPT.energy_j,
        "carbon_mg": RECEIPT.carbon_mg,
        "intensity_g_per_kwh": 400.0,
        "method": "modelled",
        "intensity_state": "fresh",
        "pue": 1.0,
        "feedback": answer.fields["x-request-id"],
    }
    assert "clover-receipt" not in d.post(INFER, b"{}").fields


def test_receipts_and_metadata_say_that_accuracy_is_a_proxy() -> None:
    spec = family("echo", [tensor("IN", "FP32", 4)], [tensor("OUT", "FP32", 4)])
    spec = msgspec.structs.replace(spec, evaluation=EvaluationSpec(loader="data:load", metric="agreement"))
    d = Driver(FakeView(FakeModel(spec)))
    answer = d.post(INFER, echo_body(parameters={"clover_receipt": True}))
    assert answer.fields["clover-receipt"].endswith("pue=1, accuracy-method=proxy")
    assert answer.json()["parameters"]["clover_receipt"]["accuracy_method"] == "proxy"
    assert d.get("/v2/models/echo").json()["parameters"]["accuracy_method"] == "proxy"
    assert "parameters" not in echo().get("/v2/models/echo").json()


def test_receipts_say_how_the_intensity_is_known() -> None:
    grid = Reading(g_per_kwh=400.0, at_s=0.0, provider="synthetic", zone="synthetic", signal="average", age_s=12.4)
    grid = msgspec.structs.replace(grid, method="synthetic")
    known = msgspec.structs.replace(RECEIPT, intensity=grid)
    assert receipt_field(known).endswith(b", intensity=400.0;method=synthetic\r\n")
    line = receipt_field(known, True).decode()
    whose = 'provider="synthetic", zone="synthetic", signal=average, scope=unknown'
    assert line.endswith(f", intensity=400.0;method=synthetic, state=fresh, pue=1, {whose}, age-s=12\r\n")
    assert "measured" not in line
    assert receipt_json(known, "made-1")["intensity"] == {
        "provider": "synthetic",
        "zone": "synthetic",
        "signal": "average",
        "scope": "unknown",
        "method": "synthetic",
        "replayed": False,
        "age_s": 12.4,
    }
    later = msgspec.structs.replace(known, intensity=msgspec.structs.replace(grid, replayed=True, age_s=13.0))
    assert receipt_field(later).endswith(b", intensity=400.0;method=synthetic;replayed\r\n")
    assert receipt_field(later, True).endswith(b", age-s=13\r\n")
    assert receipt_field(known, True).endswith(b"age-s=12\r\n")
    assert b";method" not in receipt_field(RECEIPT, True)


def test_a_name_from_a_file_cannot_break_the_line_of_a_receipt() -> None:
    odd = Reading(g_per_kwh=400.0, at_s=0.0, provider='trace:a"b\\c\r\nSet-Cookie: x', zone="Köln")
    line = receipt_field(msgspec.structs.replace(RECEIPT, intensity=odd), True)
    assert line.count(b"\r\n") == 1
    assert b'provider="trace:a\\"b\\\\c??Set-Cookie: x", zone="K?ln"' in line


def test_paths_stand_in_the_receipt() -> None:
    assert "path" not in receipt_json(RECEIPT, "made-1")
    one = msgspec.structs.replace(RECEIPT, path=("small>xlarge",))
    assert b"path" not in receipt_field(one)
    assert receipt_field(one, True).endswith(b', path="small>xlarge"\r\n')
    assert receipt_json(one, "made-1")["path"] == ["small>xlarge"]
    several = msgspec.structs.replace(RECEIPT, path=("small", "small>xlarge", "small"))
    assert receipt_field(several, True).endswith(b', path="small*2 small>xlarge*1"\r\n')
    assert receipt_json(several, "made-1")["path"] == ["small", "small>xlarge", "small"]


def test_what_is_out_of_the_ordinary_stands_in_every_receipt() -> None:
    odd = msgspec.structs.replace(RECEIPT, intensity_state="stand-in", limited=2, cached=True, version="3")
    assert receipt_field(odd).endswith(b', intensity=400.0, state=stand-in, limited=2, cached=?1, version="3"\r\n')


_ITEM = r'(?:-?[0-9]{1,12}\.[0-9]{1,3}|-?[0-9]{1,15}|"(?:[ !#-\[\]-~]|\\["\\])*"|\?[01]|[A-Za-z*][!#-\'*+.^-z|~:/]*)'


@given(
    st.floats(0.0, 100.0),
    st.floats(0.0, 1e9),
    st.floats(0.0, 1e9),
    st.floats(0.0, 5000.0),
    st.floats(1.0, 3.0),
    st.booleans(),
)
def test_every_receipt_is_a_dictionary_of_rfc_9651(
    accuracy: float, energy_j: float, carbon_mg: float, intensity: float, pue: float, everything: bool
) -> None:
    receipt = msgspec.structs.replace(
        RECEIPT,
        accuracy=accuracy,
        energy_j=energy_j,
        carbon_mg=carbon_mg,
        intensity_g_per_kwh=intensity,
        pue=pue,
        intensity=Reading(g_per_kwh=intensity, at_s=0.0, provider="trace:a.csv", zone="DE", age_s=4.0),
        path=("small>xlarge",),
    )
    text = receipt_field(receipt, everything).decode()
    member = rf"([a-z*][a-z0-9_.*-]*)=({_ITEM})(?:;[a-z]+=[a-z]+)*"
    assert re.fullmatch(rf"Clover-Receipt: {member}(?:, {member})*\r\n", text), text
    said = dict(re.findall(member, text.partition(": ")[2]))
    assert len(re.findall(rf"{member}(?:,|\r)", text)) == len(said), "each member stands once"
    if not everything:
        known = ["variant", "accuracy", "energy-j", "carbon-mg", "method", "intensity"]
        assert list(said) == (known if accuracy else [*known, "accuracy-method"])
    assert float(said["accuracy"]) == pytest.approx(accuracy, abs=5.1e-4)
    assert float(said["energy-j"].strip('"')) == pytest.approx(energy_j, abs=5.1e-10, rel=1e-12)
    assert float(said["carbon-mg"].strip('"')) == pytest.approx(carbon_mg, abs=5.1e-10, rel=1e-12)


# --- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("br", ""),
        ("*", ""),
        ("identity", ""),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
        ("GZIP;q=0.000", ""),
        ("gzip;q=1.0", "gzip"),
    ],
)
def test_answers_are_compressed_only_when_asked(field: str, coding: str) -> None:
    d = echo()
    asked = f"Accept-Encoding: {field}"
    body = echo_body(*range(400))
    answer = d.post(INFER, body, asked)
    plain = d.post(INFER, body)
    assert answer.fields.get("content-encoding", "") == coding
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}[coding]
    assert unpack(answer.body) == plain.body
    assert "content-encoding" not in plain.fields
    for other in (d.get("/openapi.json", asked), d.post(INFER, b"{}", asked), d.get("/metrics", asked)):
        assert "content-encoding" not in other.fields


def test_json_length_counts_decoded_bytes() -> None:
    raw = np.arange(4, dtype="<f4").tobytes()
    head = {"name": "IN", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    path, body, field = binary({"inputs": [head], "parameters": {"binary_data_output": True}}, raw)
    d = echo()
    assert split(d.post(path, zlib.compress(body), field, "Content-Encoding: deflate"))[1] == raw
    big = np.arange(4000, dtype="<f4")
    head |= {"shape": [1000, 4], "parameters": {"binary_data_size": big.nbytes}}
    path, body, field = binary({"inputs": [head], "parameters": {"binary_data_output": True}}, big.tobytes())
    answer = d.post(path, body, field, "Accept-Encoding: gzip")
    size = int(answer.fields["inference-header-content-length"])
    assert gzip.decompress(answer.body)[size:] == big.tobytes()


def test_chunked_infer() -> None:
    text = orjson.dumps(echo_body(id="c"))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (text[:10], text[10:]))
    data = request("POST", INFER, fields=["Transfer-Encoding: chunked"]) + chunks + b"0\r\n\r\n"
    assert echo().send(data)[0].json()["id"] == "c"


def test_write_refusal_closes_the_ticket() -> None:
    d = echo("BYTES", 1, max_bytes=8)
    model = d.view.by_name["echo"]
    assert d.post(INFER, one(["much too long"], [1, 1], "BYTES")).status == 400
    assert model.open_tickets == 0
    model.submit_refusal = BadRequest("no variant reaches that accuracy")
    assert d.post(INFER, one(["a"], [1, 1], "BYTES")).json()["error"] == "no variant reaches that accuracy"
    assert model.open_tickets == 0


def test_each_connection_is_a_client_of_its_own() -> None:
    model = FakeModel(echo_family())
    d = Driver(FakeView(model))
    for _ in range(2):
        d.post("/v2/models/echo/infer", echo_body())
    d.connect()
    d.post("/v2/models/echo/infer", echo_body())
    first, again, other = model.flows
    assert 0 < first == again < other
