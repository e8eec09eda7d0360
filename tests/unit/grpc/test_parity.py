"""One table of requests through HTTP and through gRPC: the same answers, the same errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from clover.errors import DeadlineMissed, ModelFailed, Overloaded, RequestError, Unavailable
from clover.grpc.calls import CODES
from clover.grpc.messages import ModelInferRequest
from clover.runtime.memory.bytes_codec import pack_row
from tests.support.examples import examples
from tests.support.grpc_fakes import GrpcDriver
from tests.support.http_fakes import Driver, FakeModel, FakeView, family, tensor

HTTP_OF = {code: status for status, code in CODES.items() if status != 413}
PARAMETER = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    inputs: tuple[Tensor, ...]
    model: str = "m"
    version: str = ""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[tuple[str, dict[str, Any]], ...] = ()


FLOATS = Tensor("F", "FP32", (2, 3), np.arange(6, dtype=np.float32).tobytes())
INTEGERS = Tensor("I", "INT8", (2, 2), bytes(4))
TEXTS = Tensor("S", "BYTES", (2, 1), pack_row(["one"]) + pack_row([b"\xff"]))
TRUTHS = Tensor("B", "BOOL", (2, 1), b"\x01\x00")
HALVES = Tensor("H", "FP16", (2, 1), np.ones(2, np.float16).tobytes())
GOOD = Request((FLOATS, INTEGERS, TEXTS, TRUTHS, HALVES))


def model() -> FakeModel:
    listed = [
        tensor("F", "FP32", -1, max_shape=(4,)),
        tensor("I", "INT8", 2),
        tensor("S", "BYTES", -1, max_bytes=64),
        tensor("B", "BOOL", 1),
        tensor("H", "FP16", 1),
    ]
    return FakeModel(family("m", listed, listed, version="3"), most_rows=8)


def over_http(view: FakeView, request: Request) -> tuple[int, Any]:
    """Return the status, and the error's text or the outputs."""
    inputs: list[dict[str, Any]] = [
        {
            "name": one.name,
            "shape": list(one.shape),
            "datatype": one.datatype,
            "parameters": one.parameters | {"binary_data_size": len(one.raw)},
        }
        for one in request.inputs
    ]
    document = {
        "id": request.id,
        "inputs": inputs,
        "parameters": {"binary_data_output": True, **request.parameters},
        "outputs": [{"name": name, "parameters": parameters} for name, parameters in request.outputs],
    }
    text = json.dumps(document).encode()
    version = f"/versions/{request.version}" if request.version else ""
    answer = Driver(view).post(
        f"/v2/models/{request.model}{version}/infer",
        text + b"".join(one.raw for one in request.inputs),
        f"Inference-Header-Content-Length: {len(text)}",
    )
    size = int(answer.fields.get("inference-header-content-length", len(answer.body)))
    head = json.loads(answer.body[:size])
    if answer.status != 200:
        return answer.status, head["error"]
    at, outputs = size, []
    for one in head["outputs"]:
        each = one["parameters"]["binary_data_size"]
        outputs.append((one["name"], one["datatype"], one["shape"], answer.body[at : at + each]))
        at += each
    return 200, (head.get("id", ""), head["model_version"], outputs)


def message_of(request: Request) -> Any:
    message = ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)

    def fill(into: Any, parameters: dict[str, Any]) -> None:
        for name, value in parameters.items():
            setattr(into[name], PARAMETER[type(value)], value)

    fill(message.parameters, request.parameters)
    for one in request.inputs:
        fill(message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape).parameters, one.parameters)
        message.raw_input_contents.append(one.raw)
    for name, parameters in request.outputs:
        fill(message.outputs.add(name=name).parameters, parameters)
    return message


def over_grpc(view: FakeView, request: Request) -> tuple[int, Any]:
    driver = GrpcDriver(view)
    context = driver.ask("ModelInfer", message_of(request))
    if context.details:
        return HTTP_OF[context.status], context.details
    from clover.grpc.messages import ModelInferResponse

    answer = ModelInferResponse.FromString(context.answer)
    outputs = [
        (one.name, one.datatype, list(one.shape), raw)
        for one, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]
    return 200, (answer.id, answer.model_version, outputs)


def same(request: Request) -> tuple[int, Any]:
    """Return what both say, which is the same; where only gRPC's form differs, the status alone."""
    plain, called = model(), model()
    http, grpc = over_http(FakeView(plain), request), over_grpc(FakeView(called), request)
    assert (400 if http[0] == 413 else http[0]) == grpc[0], (http, grpc)
    if http[0] == 200 or ("bytes" not in http[1] and "binary" not in http[1]):
        assert http[1] == grpc[1]
    assert plain.open_tickets == called.open_tickets == 0
    kept = [(one.timeout_ns, one.min_accuracy, one.cascade) for one in plain.tickets]
    assert kept == [(one.timeout_ns, one.min_accuracy, one.cascade) for one in called.tickets]
    return http


def changed(**others: Any) -> Request:
    return replace(GOOD, inputs=(replace(FLOATS, **others), *GOOD.inputs[1:]))


CASES = {
    "good": (GOOD, 200),
    "id": (replace(GOOD, id="seven"), 200),
    "id too long": (replace(GOOD, id="7" * 1025), 400),
    "version": (replace(GOOD, version="3"), 200),
    "other version": (replace(GOOD, version="4"), 404),
    "other model": (replace(GOOD, model="n"), 404),
    "outputs": (replace(GOOD, outputs=(("I", {}), ("S", {}))), 200),
    "no such output": (replace(GOOD, outputs=(("Q", {}),)), 400),
    "an output twice": (replace(GOOD, outputs=(("I", {}), ("I", {}))), 400),
    "classes": (replace(GOOD, outputs=(("F", {"classification": 2}),)), 200),
    "classes of texts": (replace(GOOD, outputs=(("S", {"classification": 2}),)), 400),
    "shared memory out": (replace(GOOD, outputs=(("F", {"shared_memory_region": "x"}),)), 400),
    "shared memory in": (changed(parameters={"shared_memory_region": "x"}), 400),
    "timeout": (replace(GOOD, parameters={"timeout": 1000, "clover_min_accuracy": 88.5, "clover_cascade": "off"}), 200),
    "latency": (replace(GOOD, parameters={"clover_max_latency_ms": 2.5}), 200),
    "bad timeout": (replace(GOOD, parameters={"timeout": "soon"}), 400),
    "bad cascade": (replace(GOOD, parameters={"clover_cascade": True}), 400),
    "unknown parameter": (replace(GOOD, parameters={"colour": "blue"}), 200),
    "an input lacks": (replace(GOOD, inputs=GOOD.inputs[:-1]), 400),
    "an input twice": (replace(GOOD, inputs=(FLOATS, FLOATS, *GOOD.inputs[2:])), 400),
    "too many inputs": (replace(GOOD, inputs=(*GOOD.inputs, FLOATS)), 400),
    "unknown input": (changed(name="G"), 400),
    "datatype": (changed(datatype="FP64"), 400),
    "too short": (changed(raw=FLOATS.raw[:-1]), 400),
    "axis too long": (changed(shape=(2, 5), raw=bytes(40)), 400),
    "axis of none": (changed(shape=(2, 0), raw=b""), 200),
    "rank": (changed(shape=(6,)), 400),
    "rank of nine": (changed(shape=(1,) * 9), 400),
    "negative": (changed(shape=(2, -3)), 400),
    "no rows": (changed(shape=(0, 3), raw=b""), 400),
    "rows differ": (changed(shape=(1, 3), raw=bytes(12)), 400),
    "too many rows": (Request((replace(FLOATS, shape=(9, 1), raw=bytes(36)),)), 413),
    "a row too long": (
        replace(GOOD, inputs=(*GOOD.inputs[:2], replace(TEXTS, raw=pack_row(["x" * 99, "y"])), TRUTHS, HALVES)),
        400,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table(name: str) -> None:
    request, status = CASES[name]
    assert same(request)[0] == status


@pytest.mark.parametrize("error", [Overloaded, Unavailable, DeadlineMissed, ModelFailed])
def test_what_the_router_refuses(error: type[RequestError]) -> None:
    for attribute in ("refusal", "submit_refusal"):
        plain, called = model(), model()
        for one in (plain, called):
            setattr(one, attribute, error("why", retry_after_s=2.2))
        http = over_http(FakeView(plain), GOOD)
        assert http == over_grpc(FakeView(called), GOOD)
        assert http[0] == error.status
        assert plain.open_tickets == called.open_tickets == 0


NAMES = st.sampled_from(["F", "I", "S", "B", "H", "x"])
TENSORS = st.sampled_from(GOOD.inputs)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Requests that are nearly good."""
    inputs = []
    for one in GOOD.inputs:
        change = draw(st.integers(0, 12))
        if change == 1:
            one = replace(one, shape=tuple(draw(st.lists(st.integers(-1, 5), max_size=4))))
        elif change == 2:
            one = replace(one, raw=draw(st.binary(max_size=30)))
        elif change == 3:
            one = replace(one, name=draw(NAMES))
        elif change == 4:
            one = replace(one, datatype=draw(st.sampled_from(["FP32", "INT8", "BYTES", "FP16", "BF16", ""])))
        elif change == 5:
            continue
        inputs.append(one)
    parameters = draw(
        st.dictionaries(
            st.sampled_from(["timeout", "clover_max_latency_ms", "clover_min_accuracy", "clover_cascade", "other"]),
            st.booleans() | st.integers(-2, 9) | st.sampled_from([0.5, -1.0, 3.0, "on", "off", ""]),
            max_size=2,
        )
    )
    outputs = draw(
        st.lists(st.tuples(NAMES, st.dictionaries(st.just("classification"), st.integers(-1, 3))), max_size=3)
    )
    return Request(tuple(inputs), parameters=parameters, outputs=tuple(outputs), id=draw(st.text(max_size=3)))


@settings(deadline=None, max_examples=examples(150))
@given(requests())
def test_any_request(request: Request) -> None:
    same(request)
