"""Inferences in protobuf: from a `ModelInferRequest` to rows, and from rows to a `ModelInferResponse`.

The rules, and where it can be the functions, are those of HTTP (`clover.http.oip`), so that a request gets the same
answer, or the same error, by both.  Raw contents are views of the message, copied once: into their slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from clover._native import protobuf
from clover.errors import BadRequest, RequestError, TooLarge
from clover.grpc import wire
from clover.grpc.messages import InferParameter, ModelInferRequest, ModelInferResponse
from clover.http.oip import tensors
from clover.http.oip.inputs import RANK, DeclaredInput, names_of, of_input, quote_input
from clover.http.oip.request import (
    OUTPUT_PARAMETERS,
    REQUEST_PARAMETERS,
    heaviest,
    keep_shape,
    read_outputs,
    read_parameters,
)
from clover.http.oip.response import output_rows
from clover.http.oip.signature import ID_CHARACTERS, InferRequest, Rows, Signature
from clover.runtime.memory.bytes_codec import pack_element, split_row

_RAW_OUT = ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of `InferTensorContents` that has a datatype's elements; FP16 and BF16 travel as raw contents only."""

Call = tuple[Any, list[memoryview], int]
"""A request whose tensors are not read yet: the message without its raw contents, these, and the size of it all."""


def parse(message: bytes, most_bytes: int) -> Call:
    """Return the parts of a request.

    Raises BadRequest if it is malformed.  Raises TooLarge if all but its raw contents has more than `most_bytes` bytes,
    or more parameters, elements or fields than are read in one turn of the event loop: of each an object is made.
    """
    try:
        head, raws = protobuf.cut(message, heaviest(most_bytes))
    except ValueError as error:
        raise BadRequest(f"the message is no ModelInferRequest: {error}") from None
    except OverflowError as error:
        raise TooLarge(f"the infer request cannot be taken: {error}") from None
    if len(head) > most_bytes:
        raise TooLarge(
            f"an infer request has at most {most_bytes} bytes (limits.json_bytes) without its raw contents: send its "
            "tensors as raw_input_contents"
        )
    try:
        return ModelInferRequest.FromString(head), raws, len(message)
    except DecodeError:
        raise BadRequest("the message is no ModelInferRequest") from None


def decode(signature: Signature, call: Call) -> InferRequest:
    """Decode a request for a family; raises BadRequest or TooLarge."""
    given, raws, size = call
    request = InferRequest()
    if len(given.id) > ID_CHARACTERS:
        raise BadRequest(f"id has {len(given.id)} characters; at most {ID_CHARACTERS} are taken")
    request.id = given.id
    raw_out = True
    if given.parameters:
        parameters = {"binary_data_output": True, **_plain(given.parameters, REQUEST_PARAMETERS)}
        raw_out = read_parameters(request, parameters)
    _read_inputs(signature, request, given.inputs, raws, size)
    if not given.outputs:
        request.outputs = signature.defaults[raw_out]
    else:
        wanted = [
            {"name": output.name, "parameters": _plain(output.parameters, OUTPUT_PARAMETERS)}
            for output in given.outputs
        ]
        request.outputs = read_outputs(signature, wanted, raw_out, request.rows)
    return request


def _plain(parameters: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return those of the parameters that have one of the `names`, as JSON would have them; one without a value is
    None."""
    out = {}
    for name in names:
        if name in parameters:
            chosen = parameters[name].WhichOneof("parameter_choice")
            out[name] = getattr(parameters[name], chosen) if chosen else None
    return out


def _read_inputs(
    signature: Signature, request: InferRequest, listed: Any, raws: list[memoryview], body_bytes: int
) -> None:
    declared = signature.inputs
    if len(listed) > len(declared):
        raise BadRequest(f"the request has {len(listed)} inputs, and the model takes {len(declared)}")
    seen = set()
    request.inputs = []
    for at, item in enumerate(listed):
        name = item.name
        entry = declared.get(name)
        if entry is None:
            raise BadRequest(f"an input is named {quote_input(name)}; the model takes {names_of(declared)}")
        if name in seen:
            raise BadRequest(f"input {name!r} is given twice")
        seen.add(name)
        try:
            if item.datatype != entry.datatype.name:
                raise BadRequest(f"its datatype is {quote_input(item.datatype)}; the model takes {entry.datatype.name}")
            if len(item.shape) > RANK:
                raise BadRequest(f"its shape has {len(item.shape)} axes; a tensor has at most {RANK}")
            shape = entry.check_shape(list(item.shape), signature.most_rows, body_bytes)
            if not request.rows:
                request.rows = shape[0]
            elif request.rows != shape[0]:
                raise BadRequest(f"it has {shape[0]} rows, and the inputs before it have {request.rows}")
            if entry.is_bytes:
                keep_shape(request, entry, shape)
            if "shared_memory_region" in item.parameters:
                raise BadRequest("shared memory regions are not supported")
            raw = raws[at] if at < len(raws) else None
            request.inputs.append((entry.index, _rows(entry, item, shape, raw)))
        except RequestError as error:
            raise of_input(entry, error) from None
    if len(seen) != len(declared):
        missing = [name for name in declared if name not in seen]
        raise BadRequest(f"the request lacks {names_of(missing)} of the inputs that the model takes")
    if len(raws) > len(listed):
        raise BadRequest(f"there are {len(raws)} raw_input_contents for {len(listed)} inputs")


def _rows(entry: DeclaredInput, item: Any, shape: list[int], raw: memoryview | None) -> Rows:
    """Return the rows of a tensor of a checked shape, from raw contents or from its own."""
    typed = item.HasField("contents")
    if typed == (raw is not None):
        raise BadRequest(f"it has {'both contents and' if typed else 'neither contents nor'} raw_input_contents")
    if raw is not None:
        if entry.is_bytes:
            return tensors.bytes_from_binary(raw, shape)
        return tensors.numbers_from_binary(entry.datatype, raw, shape)
    datatype = entry.datatype.name
    field = CONTENTS.get(datatype)
    if field is None:
        raise BadRequest(f"{datatype} tensors travel as raw contents only")
    data = getattr(item.contents, field)
    if len(data) != math.prod(shape):
        raise BadRequest(f"its {field} has {len(data)} elements, and the shape {shape} takes {math.prod(shape)}")
    if entry.is_bytes:
        each = len(data) // shape[0]
        elements = [pack_element(one) for one in data]
        return [b"".join(elements[row * each : (row + 1) * each]) for row in range(shape[0])]
    if entry.datatype.dtype.kind == "f":  # NaN and infinities are data, as in raw contents
        numbers: NDArray[Any] = np.fromiter(data, entry.datatype.dtype, len(data))
        return numbers.reshape(shape)
    return tensors.numbers_from_json(entry.datatype, list(data), shape, False)


def encode(
    signature: Signature,
    version: str,
    request: InferRequest,
    read: Callable[[int], Rows],
    parameters: dict[str, Any] | None = None,
) -> bytes:
    """Return the answer.  `read(index)` returns the rows of an output; `parameters` are the answer's, by name: truth
    values, whole numbers, texts, and objects, which become JSON.

    Its tensors are raw contents, unless the request has `binary_data_output: false`, or `binary_data: false` at every
    output.  Raises BadRequest for FP16 and BF16 then.
    """
    answer = ModelInferResponse(model_name=signature.name, model_version=version, id=request.id)
    for name, value in (parameters or {}).items():
        answer.parameters[name].CopyFrom(_parameter(value))
    is_raw = any(wanted.binary for wanted in request.outputs)
    raws: list[Any] = []
    for wanted in request.outputs:
        datatype, shape, rows = output_rows(signature, wanted, read)
        tensor = answer.outputs.add(name=signature.outputs[wanted.index].name, datatype=datatype, shape=shape)
        if is_raw:
            raws.append(b"".join(rows) if isinstance(rows, list) else _little_endian(rows))
        else:
            _fill(tensor, datatype, rows)
    return wire.with_fields(answer.SerializeToString(), _RAW_OUT, raws)


def _parameter(value: Any) -> Any:
    """Return a parameter of an answer."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value)
    return InferParameter(string_param=value if isinstance(value, str) else orjson.dumps(value).decode())


def _little_endian(values: NDArray[Any]) -> NDArray[Any] | bytes:
    """Return the elements of `values`, row-major and little-endian; the array itself if it is that already."""
    if values.flags.c_contiguous and values.dtype.byteorder != ">" and values.size:
        return values
    return tensors.numbers_to_binary(values)


def _fill(tensor: Any, datatype: str, rows: Rows) -> None:
    """Put the rows of an output into its `contents`; raises BadRequest if its datatype has none."""
    field = CONTENTS.get(datatype)
    if field is None:
        raise BadRequest(f"an output is {datatype}, which travels as raw contents only")
    contents = tensor.contents
    contents.SetInParent()
    into = getattr(contents, field)
    if isinstance(rows, list):
        for row in rows:
            into.extend(split_row(row))
    else:
        into.extend(rows.ravel().tolist())
