"""Malformed and odd gRPC calls of the Open Inference Protocol, as data: call, message, and the codes that are right.

Sources: OIP is open_inference_grpc.proto (github.com/kserve/open-inference-protocol,
specification/protocol); Triton its
rules of raw contents ("cannot be used with contents", grpc_service.proto); gRPC its status codes (grpc.io,
Status codes)
and health checking protocol; protobuf the encoding of messages (protobuf.dev, Encoding); "limits" are Clover's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from clover.grpc.infer import CONTENTS
from clover.grpc.messages import ModelInferRequest, message_class
from tests.conformance.oip_cases import BYTES_EACH

HEALTH = "grpc.health.v1.Health/Check"
OK, INVALID, NOT_FOUND, UNIMPLEMENTED = "OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"
Change = Any
"""What changes a request: a function of it, whose result is not looked at."""


class GrpcCase(NamedTuple):
    """One call with one message; `codes` are right."""

    name: str
    call: str
    message: bytes
    codes: tuple[str, ...]
    source: str


def cases() -> list[GrpcCase]:
    """Return all cases; their names are different."""
    groups = (
        _bytes,
        _names,
        _shapes,
        _datatypes,
        _contents,
        _raw,
        _several,
        _parameters,
        _outputs,
        _heavy,
        _lacking,
        _asking,
        _good,
    )
    return [case for group in groups for case in group()]


def asked(change: Change = lambda made: None, model: str = "identity_fp32") -> Any:
    """Return a good request of `identity_fp32`, changed."""
    made = ModelInferRequest(model_name=model)
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(bytes(8))
    change(made)
    return made


def infer(name: str, change: Change, source: str = "OIP: ModelInfer", codes: tuple[str, ...] = (INVALID,)) -> GrpcCase:
    """Return a case of a good request that is changed."""
    return GrpcCase(name, "ModelInfer", asked(change).SerializeToString(), codes, source)


def _bytes() -> Iterator[GrpcCase]:
    good = asked().SerializeToString()
    source = "protobuf: encoding"
    wrong = {
        "one byte": b"\xff", "an endless varint": b"\xff" * 11, "a field of no kind": b"\x0e",
        "a field of kind 7": b"\x0f\x01", "field 0": b"\x02\x00",
        "a group": b"\x0b\x0c", "half a group": b"\x0b", "an end without a group": b"\x0c",
        "a length beyond the end": b"\x0a\x7f" + b"a" * 10,
        "a length of 2^63": b"\x0a" + b"\xff" * 8 + b"\x7f", "a length of 2^64": b"\x0a" + b"\xff" * 9 + b"\x01",
        "a name that is no UTF-8": b"\x0a\x02\xff\xfe",
        "half a fixed number": b"\x09\0\0", "half a message": good[:-9], "a byte more": good + b"\x01",
        "JSON": b'{"model_name":"identity_fp32"}',
        "zeros": bytes(40), "5,000 fields": b"\x22\x00" * 5000 + good, "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    }  # fmt: skip
    for name, message in wrong.items():
        yield GrpcCase(f"bytes: {name}", "ModelInfer", message, (INVALID,), source)
    for name, message in (("nothing", b""), ("an unknown field", good + b"\xa0\x06\x01")):
        codes = (NOT_FOUND, INVALID) if not message else (OK,)
        yield GrpcCase(f"bytes: {name}", "ModelInfer", message, codes, source)


def _names() -> Iterator[GrpcCase]:
    for name in (
        "",
        "none",
        "IDENTITY_FP32",
        "identity_fp32 ",
        "identity_fp32@1",
        "../identity_fp32",
        "a" * 5000,
        "identity_fp32/versions/1",
    ):
        message = asked(model=name).SerializeToString()
        yield GrpcCase(f"model {name!r:.40}", "ModelInfer", message, (NOT_FOUND, INVALID), "OIP: unknown model")
        for call in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            kind = message_class(f"{call}Request")
            codes = (NOT_FOUND, INVALID) if name or call != "ModelStatistics" else (OK,)
            codes = (*codes, OK) if call == "ModelReady" else codes  # which may also say that it is not ready
            yield GrpcCase(
                f"{call} {name!r:.40}", call, kind(name=name).SerializeToString(), codes, "OIP: unknown model"
            )
    for version in ("7", "-1", "latest", "a" * 100):
        yield infer(
            f"version {version!r:.20}",
            lambda made, v=version: setattr(made, "model_version", v),
            "OIP: unknown version",
            (NOT_FOUND,),
        )
    for name in ("", "INPUT1", "input0", "INPUT0 ", "é", "a" * 5000):
        yield infer(f"an input named {name!r:.20}", lambda made, n=name: setattr(made.inputs[0], "name", n))
    yield infer("an id of 1,025 characters", lambda made: setattr(made, "id", "a" * 1025), "limits")


def _shapes() -> Iterator[GrpcCase]:
    for shape in ([], [2], [1, 2, 1], [0, 2], [1, -2], [-1, 2], [1, 3], [2, 2], [1, 1], [2**31, 2], [2**62, 2], [1,
    2**62], [-(2**63), 2], [1, 1025], [1] * 9,
                  [1] * 3000, [2**31, 0], [0, 0]):  # fmt: skip
        yield infer(f"shape {shape!r:.30}", lambda made, s=shape: made.inputs[0].shape.__setitem__(slice(None), s))


def _datatypes() -> Iterator[GrpcCase]:
    for datatype in (
        "",
        "fp32",
        "FLOAT",
        "TYPE_FP32",
        "FP32 ",
        "é",
        *(name for name in BYTES_EACH if name != "FP32"),
        "BYTES",
    ):
        yield infer(f"datatype {datatype!r}", lambda made, d=datatype: setattr(made.inputs[0], "datatype", d))


def _contents() -> Iterator[GrpcCase]:
    def typed(made: Any, field: str, values: list[Any]) -> None:
        del made.raw_input_contents[:]
        made.inputs[0].contents.SetInParent()
        getattr(made.inputs[0].contents, field).extend(values)

    source = "Triton: raw_input_contents and contents exclude each other"
    yield infer("neither contents nor raw ones", lambda made: made.raw_input_contents.pop(), source)
    yield infer("both contents and raw ones", lambda made: made.inputs[0].contents.fp32_contents.extend([1, 2]), source)
    yield infer("empty contents beside raw ones", lambda made: made.inputs[0].contents.SetInParent(), source)
    yield infer("empty contents", lambda made: typed(made, "fp32_contents", []), "OIP: InferTensorContents")
    for field in (
        "bool_contents",
        "int_contents",
        "int64_contents",
        "uint_contents",
        "uint64_contents",
        "fp64_contents",
    ):
        yield infer(f"{field} for FP32", lambda made, f=field: typed(made, f, [1, 1]), "OIP: InferTensorContents")
    yield infer(
        "bytes_contents for FP32", lambda made: typed(made, "bytes_contents", [b"a", b"b"]), "OIP: InferTensorContents"
    )
    for count in (1, 3, 1000):
        yield infer(
            f"{count} elements for 2",
            lambda made, c=count: typed(made, "fp32_contents", [1] * c),
            "OIP: InferTensorContents",
        )
    for datatype, value in (
        ("INT8", 128),
        ("INT8", -129),
        ("INT16", 2**15),
        ("UINT8", 256),
        ("UINT16", 2**16),
        ("UINT8", 2**32 - 1),
    ):
        made = types_request()
        at = list(BYTES_EACH).index(datatype)
        message = _typed_among_raw(made, at, datatype, value).SerializeToString()
        yield GrpcCase(f"{datatype} {value}", "ModelInfer", message, (INVALID,), "OIP: tensor data")


def types_request() -> Any:
    """Return a good request of `identity_types` in raw contents."""
    made = ModelInferRequest(model_name="identity_types")
    for datatype, size in BYTES_EACH.items():
        made.inputs.add(name=f"INPUT_{datatype}", datatype=datatype, shape=[1, 2, 3])
        made.raw_input_contents.append(bytes(6 * size))
    return made


def _typed_among_raw(made: Any, at: int, datatype: str, value: int) -> Any:
    """Put input `at` last, and its contents as values: raw contents belong to the first inputs."""
    inputs = [one for index, one in enumerate(made.inputs) if index != at] + [made.inputs[at]]
    raws = [raw for index, raw in enumerate(made.raw_input_contents) if index != at]
    moved = ModelInferRequest(model_name=made.model_name, inputs=inputs, raw_input_contents=raws)
    getattr(moved.inputs[-1].contents, CONTENTS[datatype]).extend([value] * 6)
    return moved


def _raw() -> Iterator[GrpcCase]:
    for size in (0, 1, 4, 7, 9, 16, 4096):
        yield infer(
            f"{size} raw bytes for 8",
            lambda made, s=size: made.raw_input_contents.__setitem__(0, bytes(s)),
            "Triton: raw contents",
        )
    yield infer(
        "two raw contents for one input", lambda made: made.raw_input_contents.append(b""), "Triton: raw contents"
    )
    for at, (datatype, size) in enumerate(BYTES_EACH.items()):
        for wrong in (6 * size - 1, 6 * size + 1, 0):
            made = types_request()
            made.raw_input_contents[at] = bytes(wrong)
            yield GrpcCase(
                f"{wrong} raw bytes of {datatype}",
                "ModelInfer",
                made.SerializeToString(),
                (INVALID,),
                "Triton: raw contents",
            )
    for name, data in (("half a length", b"\1\0"), ("an element beyond the end", b"\5\0\0\0a"), ("a byte more",
    b"\1\0\0\0ab"), ("an element of 4 GB", b"\xff\xff\xff\xff"),
                       ("nothing", b""), ("two elements", b"\0\0\0\0" * 2)):  # fmt: skip
        made = ModelInferRequest(model_name="identity_bytes", raw_input_contents=[data])
        made.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1])
        yield GrpcCase(
            f"raw BYTES: {name}", "ModelInfer", made.SerializeToString(), (INVALID,), "Triton: raw contents of BYTES"
        )


def _several() -> Iterator[GrpcCase]:
    def simple(name: str, names: list[str], rows: list[int], codes: tuple[str, ...] = (INVALID,)) -> GrpcCase:
        made = ModelInferRequest(model_name="simple")
        for one, count in zip(names, rows, strict=True):
            made.inputs.add(name=one, datatype="INT32", shape=[count, 16])
            made.raw_input_contents.append(bytes(64 * count))
        return GrpcCase(name, "ModelInfer", made.SerializeToString(), codes, "OIP: ModelInfer")

    yield simple("both inputs", ["INPUT0", "INPUT1"], [1, 1], (OK,))
    yield simple("both inputs in the other order", ["INPUT1", "INPUT0"], [2, 2], (OK,))
    yield simple("one input of two", ["INPUT0"], [1])
    yield simple("no input", [], [])
    yield simple("an input twice", ["INPUT0", "INPUT0"], [1, 1])
    yield simple("three inputs of two", ["INPUT0", "INPUT1", "INPUT1"], [1, 1, 1])
    yield simple("an unknown input", ["INPUT0", "INPUT2"], [1, 1])
    yield simple("inputs of different rows", ["INPUT0", "INPUT1"], [1, 2])


def _parameters() -> Iterator[GrpcCase]:
    wrong: dict[str, tuple[tuple[str, Any], ...]] = {
        "timeout": (("int64_param", -1), ("string_param", "1"), ("bool_param", True)),
        "binary_data_output": (("int64_param", 1), ("string_param", "true")),
        "clover_max_latency_ms": (("int64_param", -1), ("string_param", "1"), ("bool_param", True)),
        "clover_min_accuracy": (("int64_param", -1), ("string_param", "90")),
        "clover_receipt": (("int64_param", 1), ("string_param", "true")),
        "clover_cascade": (("bool_param", True), ("string_param", "ON"), ("string_param", "")),
    }
    for key, values in wrong.items():
        for field, value in values:
            yield infer(
                f"{key} {value!r} as {field}",
                lambda made, k=key, f=field, v=value: setattr(made.parameters[k], f, v),
                "OIP: InferParameter",
            )
        yield infer(
            f"{key} without a value", lambda made, k=key: made.parameters[k].SetInParent(), "OIP: InferParameter"
        )
    yield infer(
        "shared memory",
        lambda made: setattr(made.inputs[0].parameters["shared_memory_region"], "string_param", "a"),
        "Triton: shared memory, not offered",
    )


def _outputs() -> Iterator[GrpcCase]:
    def output(name: str, key: str = "", field: str = "", value: Any = None) -> Change:
        def change(made: Any) -> None:
            one = made.outputs.add(name=name)
            if key:
                setattr(one.parameters[key], field, value)

        return change

    for name in ("", "OUTPUT1", "output0", "INPUT0"):
        yield infer(f"an output named {name!r}", output(name), "OIP: InferRequestedOutputTensor")
    yield infer(
        "an output twice",
        lambda made: (made.outputs.add(name="OUTPUT0"), made.outputs.add(name="OUTPUT0")),
        "OIP: InferRequestedOutputTensor",
    )
    for key, field, value in (("classification", "int64_param", -1), ("classification", "string_param", "1"),
    ("classification", "bool_param", True),
                              ("binary_data", "int64_param", 1), ("shared_memory_region", "string_param",
                              "a")):  # fmt: skip
        yield infer(
            f"{key} {value!r} of an output",
            output("OUTPUT0", key, field, value),
            "Triton: classification; shared memory",
        )


def _heavy() -> Iterator[GrpcCase]:
    def parameters(count: int, of: Callable[[Any], Any]) -> Change:
        def change(made: Any) -> None:
            holder = of(made)
            for number in range(count):
                holder.parameters[f"p{number}"].int64_param = number

        return change

    def values(field: str, count: int) -> Change:
        def change(made: Any) -> None:
            del made.raw_input_contents[:]
            getattr(made.inputs[0].contents, field).extend([b"" if field == "bytes_contents" else 1] * count)

        return change

    places: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("a request", lambda made: made),
        ("an input", lambda made: made.inputs[0]),
        ("an output", lambda made: made.outputs.add(name="OUTPUT0")),
    )
    for name, of in places:
        yield infer(f"64 parameters of {name}", parameters(64, of), "limits", (OK,))
        yield infer(f"65 parameters of {name}", parameters(65, of), "limits")
        yield infer(f"9,000 parameters of {name}", parameters(9000, of), "limits")
    for field, count in (
        *(("bool_contents", 300_000), ("int_contents", 300_000), ("int64_contents", 300_000)),
        *(("uint_contents", 300_000), ("uint64_contents", 300_000), ("fp32_contents", 300_000)),
        *(("fp64_contents", 300_000), ("bytes_contents", 100_000)),
    ):
        yield infer(f"{count:,} {field}", values(field, count), "limits")
    yield infer("300,000 axes", lambda made: made.inputs[0].shape.extend([1] * 300_000), "limits")
    yield infer(
        "300,000 fields of no meaning in an input",
        lambda made: made.inputs[0].MergeFromString(b"\x7a\x00" * 300_000),
        "limits",
    )

    def classified(rows: int) -> Change:
        def change(made: Any) -> None:
            made.inputs[0].shape[0] = rows
            made.raw_input_contents[0] = bytes(8 * rows)
            made.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 1

        return change

    yield infer("classification of 3 rows", classified(3), "Triton: classification", (OK,))
    yield infer("classification of 60,000 rows", classified(60_000), "limits")
    for call in ("ServerLive", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"):
        yield GrpcCase(f"{call} of 70 KB", call, b"\x7a\xf0\xa2\x04" + bytes(70_000), (INVALID,), "limits")
    yield GrpcCase("health of 70 KB", HEALTH, b"\x7a\xf0\xa2\x04" + bytes(70_000), (INVALID,), "limits")


def _lacking() -> Iterator[GrpcCase]:
    for call in ("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister",
                 "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings"):  # fmt: skip
        for name, message in (("", b""), (" and garbage", b"\xff\xff")):
            yield GrpcCase(f"{call}{name}", call, message, (UNIMPLEMENTED,), "gRPC: status codes")


def _asking() -> Iterator[GrpcCase]:
    for call in (
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
    ):
        for name, message in (
            ("half a field", b"\x0a\x7fa"),
            ("no UTF-8", b"\x0a\x01\xff"),
            ("a field of no kind", b"\x0e"),
        ):
            # A message without fields has nothing that could be wrong about an unknown one, but its form.
            wrong = (INVALID,) if name != "no UTF-8" else (INVALID, OK, NOT_FOUND)
            yield GrpcCase(f"{call}: {name}", call, message, wrong, "protobuf: encoding")
    for service, codes in (
        ("none", (NOT_FOUND,)),
        ("inference", (NOT_FOUND,)),
        ("a" * 5000, (NOT_FOUND,)),
        ("", (OK,)),
        ("identity_fp32", (OK, NOT_FOUND)),
    ):
        message = b"\x0a" + _varint(len(service)) + service.encode()
        yield GrpcCase(f"health of {service!r:.20}", HEALTH, message, codes, "gRPC: health checking protocol")
    yield GrpcCase("health of half a name", HEALTH, b"\x0a\x7fa", (INVALID,), "gRPC: health checking protocol")


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _good() -> Iterator[GrpcCase]:
    def values(made: Any) -> None:
        del made.raw_input_contents[:]
        made.inputs[0].contents.fp32_contents.extend([1, float("nan")])

    yield infer("legal: raw contents", lambda made: None, codes=(OK,))
    yield infer("legal: values", values, codes=(OK,))
    yield infer("legal: an id of 1,024 characters", lambda made: setattr(made, "id", "é" * 1024), codes=(OK,))
    yield infer("legal: its output by name", lambda made: made.outputs.add(name="OUTPUT0"), codes=(OK,))
    yield infer(
        "legal: an unknown parameter", lambda made: setattr(made.parameters["x"], "bool_param", True), codes=(OK,)
    )
    yield infer(
        "legal: no elements",
        lambda made: (made.inputs[0].shape.__setitem__(1, 0), made.raw_input_contents.__setitem__(0, b"")),
        codes=(OK,),
    )
    yield GrpcCase("legal: all types", "ModelInfer", types_request().SerializeToString(), (OK,), "OIP: ModelInfer")
