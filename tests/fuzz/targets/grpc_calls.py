"""Messages of gRPC calls: the first byte chooses the call, the rest is its message as it comes from the wire.

Each call ends with OK or an error of the client's, in one short printable line; slots come back; and how a message is
cut up so that tensors are not copied (`clover.grpc.wire`) agrees with protobuf's own reading of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from grpc import StatusCode

from clover.grpc import wire
from clover.grpc.messages import ModelInferRequest, message_class
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
_RAW = 7
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
    for at, call in enumerate(CALLS):
        if call.startswith("Model") and "Infer" not in call:
            kind = message_class(f"{call}Request")
            found.append(bytes([at]) + kind(name="FP32-model").SerializeToString())
        elif "/" in call or not call.startswith("Model"):
            found.append(bytes([at]))
    return found


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
    try:
        whole: Any = ModelInferRequest.FromString(message)
    except DecodeError:
        return
    try:
        rest, raws = wire.cut(message, _RAW)
    except ValueError as error:
        refusal = str(error)
    else:
        assert [bytes(raw) for raw in raws] == list(whole.raw_input_contents)
        del whole.raw_input_contents[:]
        assert ModelInferRequest.FromString(rest) == whole
        return
    assert "more than" in refusal or "no known kind" in refusal, f"protobuf takes what is refused: {refusal}"
