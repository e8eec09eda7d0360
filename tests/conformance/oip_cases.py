"""Malformed and odd infer requests of the Open Inference Protocol over HTTP, as data.

A case is a body for one of the families of `tests/families`, its header fields, and the statuses that are right.
Sources: OIP is the protocol's "required API" (github.com/kserve/open-inference-protocol, specification/protocol),
Triton
its extensions (github.com/triton-inference-server/server, docs/protocol), RFC 8259 JSON; "limits" are Clover's own.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

FAMILIES = ("identity_fp32", "identity_bytes", "identity_types", "simple")
BYTES_EACH = {"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4,
"INT64": 8,
              "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8}  # fmt: skip
LENGTH = "Inference-Header-Content-Length"
OIP, TRITON, RFC = "OIP: inference", "Triton: binary tensor data", "RFC 8259"


class OipCase(NamedTuple):
    """One infer request: `path` under /v2/models/, body and fields, the statuses that are right, and who says so."""

    name: str
    path: str
    body: bytes
    fields: tuple[str, ...]
    statuses: tuple[int, ...]
    source: str


class Raw(str):
    """JSON as it stands."""


def cases() -> list[OipCase]:
    """Return all cases; their names are different."""
    groups = (_texts, _members, _tensors, _shapes, _data, _elements, _binary, _headers, _strings, _outputs, _parameters,
              _several, _heavy, _paths, _good)  # fmt: skip
    return [case for group in groups for case in group()]


def written(value: Any) -> str:
    """Return JSON in which `Raw` stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def tensor(**changed: Any) -> dict[str, Any]:
    """Return the input of `identity_fp32` with members changed, or left out if they are None."""
    found = {"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2], **changed}
    return {name: value for name, value in found.items() if value is not None}


def fp32(document: Any, name: str, statuses: tuple[int, ...] = (400,), source: str = OIP) -> OipCase:
    """Return a case of `identity_fp32`."""
    body = document if isinstance(document, bytes) else written(document).encode("utf-8", "surrogatepass")
    return OipCase(name, "identity_fp32/infer", body, (), statuses, source)


def with_input(case: str, statuses: tuple[int, ...] = (400,), source: str = OIP, /, **changed: Any) -> OipCase:
    """Return a case of `identity_fp32` whose input is changed."""
    return fp32({"inputs": [tensor(**changed)]}, case, statuses, source)


def binary(path: str, document: Any, data: bytes, length: str = "") -> tuple[str, bytes, tuple[str, ...]]:
    """Return path, body and fields of a request with binary data."""
    text = written(document).encode()
    return f"{path}/infer", text + data, (f"{LENGTH}: {length or len(text)}",)


GOOD_TEXT = written({"inputs": [tensor()]})


def _texts() -> Iterator[OipCase]:
    wrong = (
        "", " ", "{", "}", "{}}", '{"inputs"', '{"inputs":', "{'inputs':[]}", "{inputs:[]}", '{"inputs":[],}',
        '{"inputs":[,]}',
        '{"a":1 "b":2}', '{"a":01}', '{"a":+1}', '{"a":.5}', '{"a":1.}', '{"a":1e}', '{"a":0x1}', '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}', '{"a":-}', '{"a":tru}', '{"a":True}', '{"a":nul}', '{"a":"\\x"}', '{"a":"\\u12"}',
        '{"a":"\t"}',
        '{"a":"\n"}', '{"a":"', "{/* a */}", "{}//", "\ufeff" + GOOD_TEXT, GOOD_TEXT + "x", GOOD_TEXT + GOOD_TEXT,
        GOOD_TEXT[:-1],
        GOOD_TEXT + "\0", "<xml/>", "inputs=1",
    )  # fmt: skip
    for number, text in enumerate(wrong):
        yield fp32(text.encode(), f"text {number}: {text!r:.50}", source=f"{RFC} 2-7")
    for name, body in (("a bad byte", b'{"id":"\xff"}'), ("an overlong form", b'{"id":"\xc0\xaf"}'), ("a surrogate",
    b'{"id":"\xed\xa0\x80"}'),
                       ("UTF-16", GOOD_TEXT.encode("utf-16")), ("UTF-32", GOOD_TEXT.encode("utf-32")), ("zeros",
                       bytes(64))):  # fmt: skip
        yield fp32(body, f"text with {name}", source=f"{RFC} 8.1")
    for text in ("[]", "1", '"a"', "null", "true", "1e400", "[{}]", f"[{GOOD_TEXT}]"):
        yield fp32(text.encode(), f"a document {text!r:.30}")


def _members() -> Iterator[OipCase]:
    odd: tuple[Any, ...] = (True, 1, -1.5, "a", {}, {"a": 1})
    value: Any
    for value in (None, *odd, [1], ["a"], [None], [[]], [[{}]]):
        yield fp32({"inputs": value}, f"inputs {value!r}")
    for value in (True, 1, -1.5, {}, [], ["a"]):
        yield fp32({"id": value, "inputs": [tensor()]}, f"id {value!r}")
    for value in (True, 1, "a", [], ["a"]):
        yield fp32({"parameters": value, "inputs": [tensor()]}, f"parameters {value!r}")
    for value in (*odd, ["a"], [1], [None], [[]]):
        yield fp32({"outputs": value, "inputs": [tensor()]}, f"outputs {value!r}")
    yield fp32({}, "no inputs")
    yield fp32({"inputs": []}, "empty inputs")
    yield fp32({"id": "a" * 1025, "inputs": [tensor()]}, "an id of 1,025 characters", source="limits")


def _tensors() -> Iterator[OipCase]:
    value: Any
    for member in ("name", "shape", "datatype", "data"):
        yield with_input(f"an input without {member}", **{member: None})
    for value in ("", "INPUT1", "input0", "INPUT0 ", "INPUT0\0", "../INPUT0", 0, True, [], {}, ["INPUT0"]):
        yield with_input(f"name {value!r}", name=value)
    for value in ("", "fp32", "FP64", "float32", "TYPE_FP32", "FP32 ", "FP", "BYTES", "NONE", 0, True, [], {}):
        yield with_input(f"datatype {value!r}", datatype=value)
    for value in (True, 1, "12", {}, {"0": 1}, Raw("null")):
        yield with_input(f"data {value!r}", data=value)
    for value in (True, 1, "a", []):
        yield with_input(f"parameters of an input {value!r}", parameters=value)
    for name in ("shared_memory_region", "shared_memory_offset"):
        statuses = (400,) if name.endswith("region") else (200, 400)
        yield with_input(f"{name}", statuses, "Triton: shared memory, which is not offered", parameters={name: "a"})


def _shapes() -> Iterator[OipCase]:
    odd: tuple[Any, ...] = (
        Raw("null"), 2, "1,2", True, {}, [], [2], [1, 2, 1], [0, 2], [1, -2], [-1, 2], [1, 2.0], [1.0, 2], [True, 2],
        ["1", 2], [None, 2],
        [[1], 2], [1, Raw("1e0")], [1, Raw("2E0")], [2, 2], [1, 3], [2**31, 2], [2**32, 2], [2**63, 2], [2**64, 2],
        [1, 2**63], [1, 10**30],
        [10**9, 10**9], [1, 1025], [1] * 9, [1] * 100,
    )  # fmt: skip
    for shape in odd:
        yield with_input(f"shape {shape!r:.40}", (400, 413), shape=shape)
    yield with_input("no rows of much", (400,), shape=[0, 1024], data=[])
    yield with_input("many rows of nothing", (400, 413), shape=[2**31, 0], data=[])
    yield with_input("70,000 rows of nothing", (400, 413), shape=[70_000, 0], data=[])


def _data() -> Iterator[OipCase]:
    for shape, data in (
        ([1, 2], []), ([1, 2], [1]), ([1, 2], [1, 2, 3]), ([2, 2], [[1, 2]]), ([2, 2], [[1, 2], [3]]), ([2, 2], [[1,
        2], [3, 4, 5]]),
        ([2, 2], [[1, 2], 3, 4]), ([2, 2], [1, 2, [3, 4]]), ([2, 2], [[[1, 2], [3, 4]]]), ([2, 2], [[1], [2], [3],
        [4]]), ([1, 2], [[1], [2]]),
        ([1, 2], [[[1, 2]]]), ([1, 2], [[]]), ([1, 2], [[], []]), ([2, 2], [[1, 2], {}]), ([2, 2], [[1, 2], None]),
        ([1, 1], [[[]]]),
    ):  # fmt: skip
        yield with_input(f"data {data!r} of shape {shape}", shape=shape, data=data)


def _elements() -> Iterator[OipCase]:
    """Yield elements that their datatype does not hold: one input in JSON, all others binary."""
    for datatype in BYTES_EACH:
        bad: list[Any] = ["1", None, [1], {}, Raw("1e400"), ""]
        if datatype == "BOOL":
            bad += [0, 1, 0.0]
        elif datatype.startswith(("INT", "UINT")):
            bits = BYTES_EACH[datatype] * 8
            low, high = (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            bad += [low - 1, high + 1, 0.5, True, 2**70, Raw("1e300"), Raw("-1e-400") if low == 0 else -(2**70)]
            if low == 0:
                bad.remove(bad[-1])
        elif datatype in ("FP16", "BF16"):
            bad = [1.5]
        else:
            bad += [True] + ([Raw("1e39"), Raw("-3.5e38")] if datatype == "FP32" else [])
        for element in bad:
            path, body, fields = types_request(datatype, element)
            source = (
                f"{OIP}: tensor data" if datatype not in ("FP16", "BF16") else "Triton: FP16 and BF16 are binary only"
            )
            yield OipCase(f"{datatype} {element!r:.30}", path, body, fields, (400,), source)


def types_request(changed: str, element: Any) -> tuple[str, bytes, tuple[str, ...]]:
    """Return a request of `identity_types` whose input `changed` is JSON and begins with `element`."""
    inputs, data = [], b""
    for datatype, size in BYTES_EACH.items():
        one: dict[str, Any] = {"name": f"INPUT_{datatype}", "shape": [1, 2, 3], "datatype": datatype}
        if datatype == changed:
            one["data"] = [element, *([Raw("true")] if datatype == "BOOL" else [1]) * 5]
        else:
            one["parameters"] = {"binary_data_size": 6 * size}
            data += bytes(6 * size)
        inputs.append(one)
    return binary("identity_types", {"inputs": inputs, "parameters": {"binary_data_output": True}}, data)


def _binary() -> Iterator[OipCase]:
    def case(name: str, size: Any, data: bytes, statuses: tuple[int, ...] = (400,)) -> OipCase:
        item = tensor(data=None, parameters={"binary_data_size": size})
        return OipCase(name, *binary("identity_fp32", {"inputs": [item]}, data), statuses, TRITON)

    size: Any
    for size in (-1, 8.0, 7.5, "8", True, [8], {}, 2**63, 2**64, Raw("1e400"), Raw("null"), Raw("8e0")):
        yield case(f"binary_data_size {size!r}", size, bytes(8))
    for size, length in ((0, 0), (7, 7), (9, 9), (4, 4), (16, 16), (8, 7), (8, 0), (8, 9), (8, 16), (7, 8), (2**31, 8)):
        yield case(f"binary_data_size {size} and {length} bytes", size, bytes(length))
    both = binary("identity_fp32", {"inputs": [tensor(parameters={"binary_data_size": 8})]}, bytes(8))
    yield OipCase("data and binary_data_size", *both, (400,), TRITON)
    yield case("whole", 8, bytes(8), (200,))
    yield case("binary NaN", 8, b"\0\0\xc0\x7f" * 2, (200, 400))


def _headers() -> Iterator[OipCase]:
    text = written({"inputs": [tensor(data=None, parameters={"binary_data_size": 8})]}).encode()
    for length in (
        "-1",
        "+5",
        "x",
        "1.0",
        "0x10",
        "",
        "99999999999999999999",
        "1 1",
        "1,1",
        str(len(text) + 9),
        "1",
        str(len(text) - 1),
        str(len(text) + 1),
    ):
        yield OipCase(
            f"{LENGTH} {length!r}", "identity_fp32/infer", text + bytes(8), (f"{LENGTH}: {length}",), (400,), TRITON
        )
    for path, body, statuses in (
        ("identity_fp32", b"", (200, 400)), ("identity_fp32", bytes(7), (400,)), ("identity_fp32", bytes(8), (200,)),
        ("identity_fp32", bytes(4100), (400,)),
        ("simple", bytes(64), (400,)), ("identity_types", bytes(6), (400,)), ("identity_bytes", b"abc", (200,)),
    ):  # fmt: skip
        yield OipCase(
            f"raw {len(body)} bytes for {path}",
            f"{path}/infer",
            body,
            (f"{LENGTH}: 0",),
            statuses,
            "Triton: raw binary request",
        )


def _strings() -> Iterator[OipCase]:
    def case(name: str, data: bytes, shape: list[int], statuses: tuple[int, ...] = (400,)) -> OipCase:
        item = {"name": "INPUT0", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        return OipCase(
            name,
            *binary("identity_bytes", {"inputs": [item], "parameters": {"binary_data_output": True}}, data),
            statuses,
            TRITON,
        )

    def element(text: bytes, more: int = 0) -> bytes:
        return struct.pack("<I", (len(text) + more) & 0xFFFFFFFF) + text

    yield case("an element", element(b"abc"), [1, 1], (200,))
    yield case("two elements for one", element(b"a") * 2, [1, 1])
    yield case("one element for two", element(b"a"), [1, 2])
    yield case("an element that is longer than the data", element(b"abc", 1), [1, 1])
    yield case("an element of 4 GB", element(b"abc", -4), [1, 1])
    yield case("an element and a byte", element(b"abc") + b"x", [1, 1])
    yield case("half a length", b"\1\0", [1, 1])
    yield case("nothing", b"", [1, 1])
    yield case("65 elements of 64", element(b"") * 65, [1, 65], (400, 413))
    yield case("a row beyond max_bytes", element(b"x" * 5000), [1, 1], (400, 413))
    yield case("elements of nothing", b"", [1, 0], (200, 400))
    value: Any
    for value in (1, True, None, [], {}, 1.5):
        item = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        yield OipCase(f"BYTES {value!r}", "identity_bytes/infer", written({"inputs": [item]}).encode(), (), (400,), OIP)
    body = b'{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"BYTES","data":["\\ud800"]}]}'
    yield OipCase("BYTES half a pair", "identity_bytes/infer", body, (), (400,), f"{RFC} 8.2")


def _outputs() -> Iterator[OipCase]:
    def case(name: str, outputs: Any, statuses: tuple[int, ...] = (400,)) -> OipCase:
        return fp32(
            {"inputs": [tensor()], "outputs": outputs}, name, statuses, "OIP: request output; Triton: classification"
        )

    name: Any
    value: Any
    for name in ("", "OUTPUT1", "output0", 0, None, [], {}):
        yield case(f"an output named {name!r}", [{"name": name}])
    yield case("an output without a name", [{}])
    yield case("an output twice", [{"name": "OUTPUT0"}] * 2)
    yield case("two outputs", [{"name": "OUTPUT0"}, {"name": "OUTPUT1"}])
    for value in (True, 1, "a", []):
        yield case(f"parameters of an output {value!r}", [{"name": "OUTPUT0", "parameters": value}])
    for key, value in (
        ("binary_data", 1), ("binary_data", "true"), ("binary_data", None), ("classification", -1),
        ("classification", 1.5),
        ("classification", "1"), ("classification", True), ("classification", None), ("classification", [1]),
        ("shared_memory_region", "a"),
    ):  # fmt: skip
        yield case(f"{key} {value!r}", [{"name": "OUTPUT0", "parameters": {key: value}}])
    yield case(
        "classification of more than there are",
        [{"name": "OUTPUT0", "parameters": {"classification": 10**12}}],
        (200, 400),
    )
    yield case("no outputs asked for", [], (200,))
    many = tensor(shape=[60_000, 2], data=[0] * 120_000)
    for count, statuses in ((1, (413,)), (0, (200, 413, 429))):  # the number of rows that a server takes is its own
        asked = {"inputs": [many], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": count}}]}
        yield fp32(asked, f"{count} classes of 60,000 rows", statuses, "limits")
    item = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    asked = {"inputs": [item], "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]}
    yield OipCase(
        "classification of BYTES", "identity_bytes/infer", written(asked).encode(), (), (400,), "Triton: classification"
    )


def _parameters() -> Iterator[OipCase]:
    wrong: dict[str, tuple[Any, ...]] = {
        "timeout": (-1, 0.5, "1", True, None, [], {}, Raw("-1e300")),
        "binary_data_output": (0, 1, "true", None, [], {}),
        "clover_max_latency_ms": (-1, "1", True, None, []),
        "clover_min_accuracy": (-0.5, 0.9, 1, "90", True, None, {}),
        "clover_receipt": (0, 1, "true", None),
        "clover_cascade": (True, "ON", 1, None, ""),
    }
    for key, values in wrong.items():
        for value in values:
            source = "Triton: parameters" if not key.startswith("clover") else "docs/protocol.md: Clover's parameters"
            yield fp32({"inputs": [tensor()], "parameters": {key: value}}, f"{key} {value!r}", source=source)
    for name in ("x", "", "sequence_id", "priority", "triton_x", "clover_x", "headers"):
        yield fp32(
            {"inputs": [tensor()], "parameters": {name: {"a": [1]}}},
            f"unknown parameter {name!r}",
            (200, 400),
            "OIP: parameters",
        )


def _several() -> Iterator[OipCase]:
    def simple(name: str, inputs: list[Any], statuses: tuple[int, ...] = (400,)) -> OipCase:
        return OipCase(name, "simple/infer", written({"inputs": inputs}).encode(), (), statuses, OIP)

    def one(name: str, rows: int = 1) -> dict[str, Any]:
        return {"name": name, "shape": [rows, 16], "datatype": "INT32", "data": [1] * 16 * rows}

    zero, first = one("INPUT0"), one("INPUT1")
    yield simple("both inputs", [zero, first], (200,))
    yield simple("both inputs in the other order", [first, zero], (200,))
    yield simple("one input of two", [zero])
    yield simple("an input twice", [zero, zero])
    yield simple("three inputs of two", [zero, first, first])
    yield simple("an unknown third input", [zero, first, one("INPUT2")])
    yield simple("inputs of different rows", [zero, one("INPUT1", 2)])
    yield simple("an input and a number", [zero, 1])
    yield fp32({"inputs": [tensor(), tensor()]}, "an input twice of one")


def _heavy() -> Iterator[OipCase]:
    for depth in (98, 101, 1000, 100_000):
        nested = b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
        yield fp32(nested, f"nested {depth} deep", (400, 413), "RFC 8259 9; limits")
    yield fp32(b'{"a":' * 5000 + b"1" + b"}" * 5000, "objects 5,000 deep", (400, 413), "RFC 8259 9; limits")
    yield fp32(b"[" + b"[]," * 400_000 + b"[]]", "400,000 lists", (400, 413), "limits")
    yield fp32(b'{"a":"' + b"x" * (5 << 20) + b'"}', "a string of 5 MB", (400, 413), "limits")
    yield fp32(b'{"a":' + b"9" * 100_000 + b"}", "a number of 100,000 digits", (400, 413), "RFC 8259 9")
    numbers = ",".join(["1"] * 1024)
    rows = (
        b'{"inputs":[{"name":"INPUT0","shape":[9,1024],"datatype":"FP32","data":[%b]}]}'
        % ",".join([numbers] * 9).encode()
    )
    yield fp32(rows, "more rows than a batch", (200, 413), "limits: rows of a request")


def _paths() -> Iterator[OipCase]:
    body = GOOD_TEXT.encode()
    for path in ("none/infer", "/infer", "identity_fp32/versions/7/infer", "identity_fp32/versions//infer",
    "identity_fp32/infer/", "..%2f/infer",
                 "identity_fp32%00/infer", "IDENTITY_FP32/infer", "identity_fp32@1/infer",
                 "identity_fp32 /infer".replace(" ", "%20"), "a" * 500 + "/infer",
                 "identity_fp32/generate", "identity_fp32/infer/x"):  # fmt: skip
        yield OipCase(f"path {path!r:.50}", path, body, (), (404, 405), "OIP: unknown model, version or path")


def _good() -> Iterator[OipCase]:
    odd = {
        "blanks": " \n\t\r" + GOOD_TEXT.replace(",", " ,\n ") + " \n", "escapes": GOOD_TEXT.replace("INPUT0",
        "\\u0049NPUT0"),
        "nested data": written({"inputs": [tensor(data=[[1, 2]])]}),
        "exponents": written({"inputs": [tensor(data=[Raw("1e0"), Raw("-2E-1")])]}),
        "a tiny number": written({"inputs": [tensor(data=[Raw("1e-400"), Raw("-0.0")])]}),
        "unknown keys": written({"x": [{}], "inputs": [tensor(y=1)]}),
        "model_name": written({"model_name": "other", "inputs": [tensor()]}), "an empty id": written({"id": "",
        "inputs": [tensor()]}),
        "a null id": written({"id": Raw("null"), "inputs": [tensor()]}),
        "null parameters": written({"parameters": Raw("null"), "inputs": [tensor()]}),
        "null outputs": written({"outputs": Raw("null"), "inputs": [tensor()]}),
        "an id of 1,024 characters": written({"id": "é" * 1024, "inputs": [tensor()]}),
        "another order": written(dict(reversed(tensor().items()))).join(['{"inputs":[', "]}"]),
        "no elements": written({"inputs": [tensor(shape=[1, 0], data=[])]}),
        "all elements": written({"inputs": [tensor(shape=[1, 1024], data=[0.5] * 1024)]}),
    }  # fmt: skip
    for name, text in odd.items():
        yield fp32(text.encode(), f"legal: {name}", (200,), f"{RFC}; {OIP}")
    for datatype, element in (
        ("INT8", -128),
        ("UINT64", 2**64 - 1),
        ("INT64", -(2**63)),
        ("UINT8", 255),
        ("FP64", Raw("1e308")),
        ("INT32", Raw("3.0")),
        ("BOOL", False),
    ):
        path, body, fields = types_request(datatype, element)
        yield OipCase(f"legal: {datatype} {element!r}", path, body, fields, (200,), f"{OIP}: tensor data")
    assert math.prod(BYTES_EACH.values()) > 0
