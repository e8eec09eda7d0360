"""The infer request of the Open Inference Protocol, as pure functions over bytes; `http.oip.response` has the answer.

`decode` turns a body into rows as the family declares them (`Signature`).  The rows may be views of the body.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson

from clover._native.infer import burden
from clover.errors import BadRequest, RequestError, TooLarge
from clover.http.oip import tensors
from clover.http.oip.inputs import DeclaredInput, names_of, of_input, quote_input
from clover.http.oip.signature import (
    ID_CHARACTERS,
    NO_INPUTS,
    InferRequest,
    Placed,
    RequestedOutput,
    Rows,
    Signature,
    rows_from_binary,
)
from clover.http.oip.tensors import Body
from clover.runtime.memory.bytes_codec import pack_element
from clover.types import TensorSpec

JSON_BOUND = (
    "the JSON of an infer request",
    " (limits.json_bytes): send its tensors as binary data, with Inference-Header-Content-Length",
)
"""What `limits.json_bytes` holds for, and how to be within it."""

_NOT_FINITE = ", which has no NaN and no Infinity; a tensor that holds one is sent as binary data"
_LIGHT_BYTES = 1 << 16
_HEAVIEST_PER_BYTE = 4
_MAX_TIMEOUT_US = 1 << 53
_CLASS_WEIGHT = 16
"""What writing a class takes, in elements that are sorted."""

REQUEST_PARAMETERS = (
    *("timeout", "clover_max_latency_ms", "clover_min_accuracy", "clover_cascade", "clover_receipt"),
    "binary_data_output",
)
"""The parameters of a request that `read_parameters` reads."""
CONTENT_TYPE, BASE64 = "content_type", "base64"
"""The parameter of an input of BYTES whose strings are base64, as MLServer has it (docs.seldon.ai/mlserver, "Content
Types").  Other values say nothing that the server would need to know."""
OUTPUT_PARAMETERS = ("binary_data", "classification", "shared_memory_region")
"""The parameters of an output that `read_outputs` reads."""

# --- decoding ---------------------------------------------------------------------------------------------------------


def heaviest(most_bytes: int) -> int:
    """Return the most values that one turn of the event loop reads of a request whose texts have at most `most_bytes`
    bytes."""
    return max(_HEAVIEST_PER_BYTE * _LIGHT_BYTES, most_bytes >> 4)


def parse_json(text: Body, depth: int, most_bytes: int) -> Any:
    """Return the document of a JSON text.

    Raises BadRequest if it is not valid or nests deeper than `depth`, and TooLarge if it has more than `most_bytes`
    bytes, or more values than are parsed in one turn of the event loop: for each value an object is made.
    """
    if len(text) > most_bytes:
        raise TooLarge(f"the JSON of this request has at most {most_bytes} bytes")
    if not isinstance(text, bytes):
        text = bytes(text)
    # Most texts are so short, and hold so few brackets, that two counts are enough.
    if len(text) > _LIGHT_BYTES or text.count(b"[") + text.count(b"{") > depth:
        found = burden(text, depth, heaviest(most_bytes))
        if found == 1:
            raise BadRequest("the JSON is nested too deeply")
        if found:
            raise TooLarge("the JSON holds too many values, lists or keys; send tensors as binary data, or fewer rows")
    try:
        return orjson.loads(text)
    except ValueError:
        hint = b"NaN" in text or b"Infinity" in text
        raise BadRequest(f"the body is not valid JSON{_NOT_FINITE if hint else ''}") from None


def decode(signature: Signature, body: Body, json_length: int = -1) -> InferRequest:
    """Decode an infer body.

    `json_length` is Inference-Header-Content-Length: -1 if absent, 0 for a raw request.  Raises BadRequest or TooLarge.
    """
    if json_length == 0:
        return _decode_raw(signature, body)
    binary: Body = b""
    if json_length < 0:
        _check_json(signature, len(body))
        text = body if type(body) is bytes else bytes(body)
        if signature.plain is not None:
            plain = signature.plain.decode(text, signature.defaults[False])
            if plain is not None:
                return plain
    else:
        if json_length > len(body):
            raise BadRequest("Inference-Header-Content-Length exceeds the body")
        _check_json(signature, json_length)
        if signature.known is not None and type(body) is bytes:
            known = signature.known.decode(body, json_length)
            if known is not None:
                return known
        text = bytes(body[:json_length])
        binary = memoryview(body)[json_length:]
    return _decode(signature, text, binary)


def _check_json(signature: Signature, size: int) -> None:
    if size > signature.json_bytes:
        raise TooLarge(f"{JSON_BOUND[0]} has at most {signature.json_bytes} bytes{JSON_BOUND[1]}")


def decode_ahead(signature: Signature, text: bytes, size: int) -> InferRequest | None:
    """Decode a request of which only the JSON `text` has come; the `size` bytes of its one tensor are still to come.

    Return it without `inputs`.  None if it is not of that kind, or not valid: `decode` says why once all of it is
    there.
    """
    if not signature.is_direct:
        return None
    try:
        request = _decode(signature, text, memoryview(np.empty(size, np.uint8)))  # type: ignore[arg-type]
    except RequestError:
        return None
    _, rows = request.inputs[0]
    if isinstance(rows, list) or rows.nbytes != size:
        return None
    request.inputs = NO_INPUTS
    return request


def _decode(signature: Signature, text: bytes, binary: Body) -> InferRequest:
    document = parse_json(text, signature.json_depth, signature.json_bytes)
    if type(document) is not dict:
        raise BadRequest("the body is not a JSON object")
    request = InferRequest()
    identity = document.get("id")
    if identity is not None:
        if type(identity) is not str:
            raise BadRequest("id is not a string")
        if len(identity) > ID_CHARACTERS:
            raise BadRequest(f"id has {len(identity)} characters; at most {ID_CHARACTERS} are taken")
        request.id = identity
    default_binary = False
    parameters = document.get("parameters")
    if parameters is not None:
        default_binary = read_parameters(request, parameters)
    placed = _read_inputs(signature, request, document.get("inputs"), text, binary)
    wanted = document.get("outputs")
    if wanted is None or wanted == []:
        request.outputs = signature.defaults[default_binary]
    else:
        request.outputs = read_outputs(signature, wanted, default_binary, request.rows)
    if len(placed) == len(request.inputs):
        signature.know(text, len(binary), document, request, placed)
    return request


def _decode_raw(signature: Signature, body: Body) -> InferRequest:
    """Return a raw request: the body is the one input's one row, and all outputs are binary."""
    if len(signature.inputs) != 1:
        raise BadRequest("a raw request needs a model with exactly one input")
    entry = next(iter(signature.inputs.values()))
    request = InferRequest()
    request.rows = 1
    request.outputs = signature.defaults[True]
    shape = [1, *entry.row_shape]
    free = [axis for axis in range(1, len(shape)) if shape[axis] < 0]
    if entry.is_bytes:
        for axis in free:
            shape[axis] = 1
        if math.prod(shape) != 1:
            raise BadRequest("a raw BYTES request carries one element, and the model takes more")
        keep_shape(request, entry, shape)
        request.inputs = [(entry.index, [pack_element(bytes(body))])]
        return request
    if free:
        if len(free) > 1:
            raise BadRequest("a raw request leaves open which shape the input has")
        others = math.prod(axis for axis in shape if axis >= 0) * entry.datatype.bytes_each
        shape[free[0]] = len(body) // others if others else 0
    try:
        shape = entry.check_shape(shape, 1, 1)
        request.inputs = [(entry.index, tensors.numbers_from_binary(entry.datatype, body, shape))]
    except RequestError as error:
        raise of_input(entry, error) from None
    return request


def _whole(parameters: dict[str, Any], key: str) -> int:
    """Return a whole number, also where a client writes it as 3.0."""
    value = parameters.get(key, 0)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        raise BadRequest(f"parameter {key} is not a whole number of at least 0")
    return value


def _number(parameters: dict[str, Any], key: str) -> float:
    value = parameters.get(key, 0)
    if type(value) not in (int, float) or value < 0:
        raise BadRequest(f"parameter {key} is not a number of at least 0")
    return float(value)


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise BadRequest(f"parameter {key} is not true or false")
    return value


def read_parameters(request: InferRequest, parameters: Any) -> bool:
    """Read the request's own parameters into `request`, ignoring unknown ones; return the default of `binary_data`."""
    if type(parameters) is not dict:
        raise BadRequest("parameters is not an object")
    if not parameters:
        return False
    request.timeout_ns = min(_whole(parameters, "timeout"), _MAX_TIMEOUT_US) * 1000
    latency_ms = _number(parameters, "clover_max_latency_ms")
    if latency_ms:
        limit_ns = max(1, int(min(latency_ms, 1e12) * 1e6))
        request.timeout_ns = min(request.timeout_ns, limit_ns) if request.timeout_ns else limit_ns
    request.min_accuracy = _number(parameters, "clover_min_accuracy")
    request.cascade = _cascade(parameters)
    request.wants_receipt = _flag(parameters, "clover_receipt", False)
    return _flag(parameters, "binary_data_output", False)


def _cascade(parameters: dict[str, Any]) -> bool:
    value = parameters.get("clover_cascade", "on")
    if value not in ("on", "off") or type(value) is not str:
        raise BadRequest("parameter clover_cascade is on or off")
    return bool(value == "on")


def _read_inputs(signature: Signature, request: InferRequest, listed: Any, text: bytes, binary: Body) -> list[Placed]:
    """Read the tensors of a request; return the places of those that are binary."""
    declared = signature.inputs
    if type(listed) is not list:
        raise BadRequest("inputs is missing or not an array")
    if len(listed) > len(declared):
        raise BadRequest(f"the request has {len(listed)} inputs, and the model takes {len(declared)}")
    seen = 0
    at, end = 0, len(binary)
    body_bytes = len(text) + end
    request.inputs = []
    placed = []
    for item in listed:
        if type(item) is not dict:
            raise BadRequest(f"inputs holds {quote_input(item)}; an input is an object")
        name = item.get("name")
        entry = declared.get(name) if type(name) is str else None
        if entry is None:
            raise BadRequest(f"an input is named {quote_input(name)}; the model takes {names_of(declared)}")
        bit = 1 << entry.index
        if seen & bit:
            raise BadRequest(f"input {name!r} is given twice")
        seen |= bit
        try:
            if item.get("datatype") != entry.datatype.name:
                given = quote_input(item.get("datatype"))
                raise BadRequest(f"its datatype is {given}; the model takes {entry.datatype.name}")
            shape = entry.check_shape(item.get("shape"), signature.most_rows, body_bytes)
            if not request.rows:
                request.rows = shape[0]
            elif request.rows != shape[0]:
                raise BadRequest(f"it has {shape[0]} rows, and the inputs before it have {request.rows}")
            if entry.is_bytes:
                keep_shape(request, entry, shape)
            size = _binary_size(item.get("parameters"))
            if size is not None and size > end - at:
                raise BadRequest(f"binary_data_size is {size}, and the body has {end - at} bytes left for it")
            if (size is not None) == ("data" in item):
                raise BadRequest(f"it has {'neither data nor' if size is None else 'both data and'} binary_data_size")
            if size is None:
                rows = _rows_from_json(entry, item, shape, text)
            else:
                rows = rows_from_binary(entry, binary[at : at + size], shape)
                placed.append((entry, shape, at, size))
                at += size
            request.inputs.append((entry.index, rows))
        except RequestError as error:
            raise of_input(entry, error) from None
    if len(request.inputs) != len(declared):
        missing = [name for name, entry in declared.items() if not seen >> entry.index & 1]
        raise BadRequest(f"the request lacks {names_of(missing)} of the inputs that the model takes")
    if at != end:
        raise BadRequest(f"{end - at} bytes of binary data are left over after the last tensor")
    return placed


def keep_shape(request: InferRequest, entry: DeclaredInput, shape: list[int]) -> None:
    """Keep the shape of BYTES rows of several axes: the number of their elements does not say it."""
    if entry.variable and len(shape) > 2:
        request.shapes = {**request.shapes, entry.index: tuple(shape[1:])}


def _rows_from_json(entry: DeclaredInput, item: Any, shape: list[int], text: bytes) -> Rows:
    """Return the rows of a tensor of a checked shape from its data in the JSON `text`, in which it is `item`."""
    data = item["data"]
    if entry.is_bytes:
        parameters = item.get("parameters") or {}
        return tensors.bytes_from_json(data, shape, parameters.get(CONTENT_TYPE) == BASE64)
    booleans = text.find(b"true") >= 0 or text.find(b"false") >= 0
    return tensors.numbers_from_json(entry.datatype, data, shape, booleans)


def _binary_size(parameters: Any) -> int | None:
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise BadRequest("its parameters are not an object")
    if "shared_memory_region" in parameters:
        raise BadRequest("shared memory regions are not supported")
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise BadRequest(
            f"binary_data_size is {quote_input(size)}; it is a whole number from 0 on, such as 3 (not 3.0)"
        )
    return size


def read_outputs(signature: Signature, listed: Any, default_binary: bool, rows: int) -> list[RequestedOutput]:
    """Return the outputs that a request of `rows` rows names, whose JSON is `listed`; raises BadRequest, or TooLarge if
    more rows are to be classified than one turn of the event loop can."""
    if type(listed) is not list:
        raise BadRequest("outputs is not an array")
    if len(listed) > len(signature.outputs):
        raise BadRequest(f"the request names {len(listed)} outputs, and the model has {len(signature.outputs)}")
    result: list[RequestedOutput] = []
    seen = set()
    for item in listed:
        if type(item) is not dict:
            raise BadRequest(f"outputs holds {quote_input(item)}; an output is an object")
        name = item.get("name")
        index = signature.out_index.get(name) if type(name) is str else None
        if index is None:
            raise BadRequest(f"an output is named {quote_input(name)}; the model has {names_of(signature.out_index)}")
        if index in seen:
            raise BadRequest(f"output {name!r} is requested twice")
        seen.add(index)
        binary, classes = default_binary, 0
        parameters = item.get("parameters")
        if parameters is not None:
            if type(parameters) is not dict:
                raise BadRequest(f"output {name!r}: its parameters are not an object")
            if "shared_memory_region" in parameters:
                raise BadRequest(f"output {name!r}: shared memory regions are not supported")
            try:
                binary = _flag(parameters, "binary_data", default_binary)
                classes = _whole(parameters, "classification")
            except BadRequest as error:
                raise BadRequest(f"output {name!r}: {error.message}") from None
            if classes:
                _check_classes(signature, signature.outputs[index], classes, rows)
        result.append(RequestedOutput(index, binary, classes))
    return result


def _check_classes(signature: Signature, output: TensorSpec, classes: int, rows: int) -> None:
    """Raise BadRequest or TooLarge unless so many rows of an output can be classified at once: all their elements are
    sorted, and the text of each class is made."""
    if output.datatype in ("BYTES", "BOOL"):
        raise BadRequest(f"output {output.name!r}: only numbers can be classified")
    elements = math.prod(max(axis, 1) for axis in output.bound)
    most = heaviest(signature.json_bytes) // (elements + _CLASS_WEIGHT * min(classes, elements))
    if rows > max(most, 1):
        raise TooLarge(
            f"output {output.name!r}: it has {rows} rows to be classified; a request carries at most {max(most, 1)} "
            "rows then, or ask for fewer classes, or for the tensor"
        )
