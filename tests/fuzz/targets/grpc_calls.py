"""Messages of gRPC calls: the first byte chooses the call, the rest is its message as it comes from the wire.

Each call ends with OK or an error of the client's, in one short printable line; slots come back; and how a message is
cut up so that tensors are not copied (`clover._native.protobuf`) agrees with its twin and with protobuf's own reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from grpc import StatusCode

from clover._native import protobuf
from clover.grpc.messages import ModelInferRequest, message_class
from clover.http.oip.request import heaviest
from tests.reference import protobuf as reference
from tests.support.grpc_fakes import GrpcDriver
from tests.support.http_fakes import FakeModel, FakeView, family, tensor

INSTRUMENTED = ("clover.grpc", "clover.http.oip", "clover.http.inference")
CALLS = (
    *("ModelInfer", "ModelInfer", "ModelInfer", "ModelInfer", "ModelStreamInfer", "ServerLive", "ServerReady",
      "ModelReady"),
    *("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad"),
    *("RepositoryModelUnload", "grpc.health.v1.Health/Check"),
)  # fmt: skip
_BAD = {StatusCode.UNKNOWN, StatusCode.INTERNAL, StatusCode.DATA_LOSS, StatusCode.ABORTED, StatusCode.CANCELLED}
_WEIGHTS = (0, 60, heaviest(1 << 10))
DATATYPES = ("FP32", "BYTES", "INT8", "BOOL")

DICTIONARY = (
    *(name.encode() for name in DATATYPES), b"IN", b"OUT", b"FP32-model", b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a",
    b"\x3a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80\x08", b"clover_receipt",
    b"binary_data_size",
    b"classification", b"timeout", b"shared_memory_region", b"\x0b", b"\x0c", b"\x08\x01",
)  # fmt: skip


def _view() -> tuple[FakeView, list[FakeModel]]:
    models = [
        FakeModel(family(f"{name}-model", [tensor("IN", name, 2)], [tensor("OUT", name, 2, labels=("a", "b"))]))
        for name in DATATYPES
    ]
    return FakeView(*models), models


def seeds() -> list[bytes]:
    """Return requests of each datatype, typed and raw, and the calls that ask about a model."""
    found = []
    for name in DATATYPES:
        for raw in (False, True):
            asked: Any = ModelInferRequest(model_name=f"{name}-model", id="a")
            asked.parameters["clover_receipt"].bool_param = True
            one = asked.inputs.add(name="IN", datatype=name, shape=[1, 2])
            asked.outputs.add(name="OUT").parameters["classification"].int64_param = 1
            if raw:
                size = {"FP32": 8, "INT8": 2, "BOOL": 2}.get(name, 0)
                asked.raw_input_contents.append(bytes(size) if size else b"\1\0\0\0a\0\0\0\0")
            else:
                field = {"FP32": "fp32", "BYTES": "bytes", "INT8": "int", "BOOL": "bool"}[name]
                values = [b"a", b""] if name == "BYTES" else np.array([1, 0]).tolist()
                getattr(one.contents, f"{field}_contents").extend(values)
            found += [bytes([call]) + asked.SerializeToString() for call in (0, 4)]
    found += [b"\0" + asked.SerializeToString(deterministic=True) for asked in _heavy()]
    found += [bytes([call]) + found[0][1:] + b"\x2a\x03\x0b\x0c\x0c" for call in (0, 4)]  # a group within an input
    for at, call in enumerate(CALLS):
        if call.startswith("Model") and "Infer" not in call:
            kind = message_class(f"{call}Request")
            found.append(bytes([at]) + kind(name="FP32-model").SerializeToString())
        elif "/" in call or not call.startswith("Model"):
            found.append(bytes([at]))
    return found


def _heavy() -> Iterator[Any]:
    """Yield requests of many parameters, elements or classes, as small as they can be."""
    for place in ("request", "input", "output"):
        asked: Any = ModelInferRequest(model_name="INT8-model")
        holder = {"request": lambda made: made, "input": lambda made: made.inputs.add(name="IN"),
                  "output": lambda made: made.outputs.add(name="OUT")}[place](asked)  # fmt: skip
        for number in range(65):
            holder.parameters[f"{number}"].SetInParent()
        yield asked
    for name, field, value in (("BYTES", "bytes", b""), ("INT8", "int", 1), ("FP32", "fp32", 0.0)):
        asked = ModelInferRequest(model_name=f"{name}-model")
        one = asked.inputs.add(name="IN", datatype=name, shape=[100, 2])
        getattr(one.contents, f"{field}_contents").extend([value] * 200)
        yield asked
    asked = ModelInferRequest(model_name="INT8-model", raw_input_contents=[bytes(800)])
    asked.inputs.add(name="IN", datatype="INT8", shape=[400, 2])
    asked.outputs.add(name="OUT").parameters["classification"].int64_param = 1 << 62
    yield asked


def check(data: bytes) -> str:
    """Make one call."""
    call = CALLS[(data[:1] or b"\0")[0] % len(CALLS)]
    message = data[1:]
    view, models = _view()
    driver = GrpcDriver(view)
    said = driver.ask(call, message)
    assert said.status not in _BAD, (said.status, said.details)
    assert len(said.details) < 2000, said.details
    assert said.details.isprintable(), said.details
    for model in models:
        assert model.open_tickets == 0, "slots are lost"
    assert driver.stats.open_calls == 0
    if "Infer" in call:
        _check_cut(message)
    return repr((said.status, said.details, said.answer and len(said.answer)))


def _check_cut(message: bytes) -> None:
    """Compare how a message is cut up with what protobuf makes of it."""
    found: list[tuple[Any, Any]] = []
    for weight in _WEIGHTS:
        for cut in (protobuf.cut, reference.cut):
            try:
                rest, raws = cut(message, weight)
            except (ValueError, OverflowError) as error:
                found.append((type(error), str(error)))
            else:
                found.append((rest, [bytes(raw) for raw in raws]))
        assert found[-2] == found[-1], "the kernel and its twin disagree"
    try:
        whole: Any = ModelInferRequest.FromString(message)
    except DecodeError:
        return
    if isinstance(found[-1][0], bytes):
        rest, raws = found[-1]
        assert raws == list(whole.raw_input_contents)
        del whole.raw_input_contents[:]
        assert ModelInferRequest.FromString(rest) == whole
        return
    refusal = found[-1][1]
    assert "more than" in refusal or "too many" in refusal or "no known kind" in refusal, (
        f"protobuf takes what is refused: {refusal}"
    )
