"""The infer request and answer of the Open Inference Protocol, as pure functions over bytes.

`Signature` is what a family declares, compiled once: lookups, prebuilt JSON fragments, the default outputs.  `decode`
turns a body into rows; nothing of the body is kept beyond what those rows view.  `encode` turns output rows into the
parts of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover._native.infer import Plain
from clover._native.wire import quoted
from clover.errors import BadRequest
from clover.http import tensors
from clover.http.depth import within_depth
from clover.http.tensors import DATATYPES, Body, Datatype
from clover.types import FamilySpec, TensorSpec

RANK = 8
"""Most axes of a tensor, the batch axis included."""

_MAX_TIMEOUT_US = 1 << 53
_MOST_ROWS = 1 << 31
"""More than any request has, whose rows take a bit at least."""
_DESCRIBED = 256
_PLAIN_NUMBERS = 1 << 20

Rows = NDArray[Any] | list[bytes]


class Input:
    """A declared input, compiled."""

    __slots__ = ("datatype", "each", "index", "is_bytes", "row_shape", "spec", "variable")

    def __init__(self, index: int, spec: TensorSpec) -> None:
        self.index = index
        self.spec = spec
        self.datatype: Datatype = DATATYPES[spec.datatype]
        self.is_bytes = spec.datatype == "BYTES"
        self.row_shape = list(spec.shape)
        self.variable = spec.variable
        self.each = -1 if spec.variable else math.prod(spec.shape)

    def check_shape(self, shape: Any) -> list[int]:
        """The shape of a request's tensor, if this input takes it."""
        if type(shape) is list and len(shape) > 1 and shape[1:] == self.row_shape and not self.variable:
            rows = shape[0]
            if type(rows) is int and 0 < rows <= _MOST_ROWS:
                return [rows, *self.row_shape]  # not `shape` itself: 4.0 and true equal 4 and 1, but are no sizes
        if type(shape) is not list or not all(type(axis) is int and axis >= 0 for axis in shape):
            raise BadRequest("a shape is an array of whole numbers of at least 0")
        if len(shape) > RANK:
            raise BadRequest(f"a tensor has at most {RANK} axes")
        if len(shape) != len(self.row_shape) + 1:
            raise BadRequest("an input has another rank than the model declares (the first axis is the batch)")
        if shape[1:] != self.row_shape:
            if not self.variable:
                raise BadRequest("an input has another shape than the model declares")
            for axis, declared, bound in zip(shape[1:], self.row_shape, self.spec.bound, strict=True):
                if (declared >= 0 and axis != declared) or (declared < 0 <= bound < axis):
                    raise BadRequest("an input has another shape than the model declares")
        if shape[0] < 1:
            raise BadRequest("a request carries at least one row")
        if shape[0] > _MOST_ROWS:
            raise BadRequest("a request carries fewer rows than that")
        return shape


class Wanted:
    """A requested output: declared index, binary or JSON, and how many classes (0: the tensor itself)."""

    __slots__ = ("binary", "classes", "index")

    def __init__(self, index: int, binary: bool, classes: int = 0) -> None:
        self.index = index
        self.binary = binary
        self.classes = classes


# Of requests that have none, or none yet: shared, and never written to.
NO_INPUTS: list[tuple[int, Rows]] = []
_NO_OUTPUTS: list[Wanted] = []


class InferRequest:
    """A decoded request.  `inputs` holds (declared index, rows); times are 0 where the request sets none."""

    __slots__ = ("cascade", "id", "inputs", "min_accuracy", "outputs", "rows", "timeout_ns", "wants_receipt")

    def __init__(self) -> None:
        self.id = ""
        self.rows = 0
        self.inputs = NO_INPUTS
        self.outputs = _NO_OUTPUTS
        self.timeout_ns = 0
        self.min_accuracy = 0.0
        self.cascade = True
        self.wants_receipt = False


class Signature:
    """A family's tensors, compiled for decoding and encoding."""

    __slots__ = (
        "_described",
        "ahead",
        "defaults",
        "inputs",
        "limit",
        "name",
        "one",
        "out_index",
        "out_prefix",
        "outputs",
        "plain",
        "prefix",
        "told",
    )

    def __init__(self, spec: FamilySpec, json_depth: int = 100, name: str = "") -> None:
        self.name = name or spec.name
        self.limit = json_depth
        self.inputs = {tensor.name: Input(index, tensor) for index, tensor in enumerate(spec.inputs)}
        self.outputs = spec.outputs
        self.out_index = {tensor.name: index for index, tensor in enumerate(spec.outputs)}
        self.defaults = {
            binary: [Wanted(index, binary) for index in range(len(spec.outputs))] for binary in (False, True)
        }
        self.prefix = b'{"model_name":%b,"model_version":%b' % (orjson.dumps(self.name), orjson.dumps(spec.version))
        self.out_prefix = [b'{"name":%b,"datatype":"' % orjson.dumps(tensor.name) for tensor in spec.outputs]
        self._described: dict[tuple[int, str, tuple[int, ...]], bytes] = {}
        self.plain = Plainly.of(spec)
        output = spec.outputs[0]
        self.told = len(spec.outputs) == 1 and output.datatype == "FP32" and not output.variable
        """Whether answers may be told briefly (`brief`)."""
        self.one = self.lead(1) if self.told else b""
        first = spec.inputs[0]
        self.ahead = len(spec.inputs) == 1 and not first.variable and first.datatype not in ("BYTES", "BOOL")
        """Whether the bytes of a binary tensor are its rows as they lie in slots."""

    def lead(self, rows: int) -> bytes:
        """The JSON of an answer of `rows` rows whose one output is of FP32, between its id and the numbers."""
        return b',"outputs":[%b,"data":' % self.describe(0, "FP32", (rows, *self.outputs[0].shape))

    def describe(self, index: int, datatype: str, shape: tuple[int, ...]) -> bytes:
        """The JSON of an output up to its shape; the last few are remembered."""
        key = (index, datatype, shape)
        text = self._described.get(key)
        if text is None:
            axes = ",".join(map(str, shape)).encode()
            text = b'%b%b","shape":[%b]' % (self.out_prefix[index], datatype.encode(), axes)
            if len(self._described) >= _DESCRIBED:
                self._described.clear()
            self._described[key] = text
        return text


class Plainly:
    """Requests in the plain form (`clover._native.infer`), for families that have it: one FP32 tensor whose rows have
    one shape.  The rows of one lie in an array that the next overwrites: they are copied into slots before."""

    __slots__ = ("_array", "_one", "_plain")

    def __init__(self, tensor: TensorSpec, rows: int) -> None:
        out = np.zeros(rows * math.prod(tensor.shape), np.float32)
        self._array = out.reshape(rows, *tensor.shape)
        self._one: list[tuple[int, Rows]] = [(0, self._array[:1])]
        self._plain = Plain(tensor.name, tensor.shape, out)

    @classmethod
    def of(cls, spec: FamilySpec) -> Plainly | None:
        """For a family; None where its inputs are others."""
        tensor = spec.inputs[0]
        fixed = len(spec.inputs) == 1 and tensor.datatype == "FP32" and all(axis > 0 for axis in tensor.shape)
        if not fixed or not 1 <= len(tensor.shape) < RANK:
            return None
        return cls(tensor, max(1, min(spec.max_batch, _PLAIN_NUMBERS // math.prod(tensor.shape))))

    def decode(self, body: bytes, outputs: list[Wanted]) -> InferRequest | None:
        """The request; None where it is not plain."""
        found = self._plain.parse(body)
        if found is None:
            return None
        request = InferRequest()
        request.id, rows = found
        request.rows = rows
        request.inputs = self._one if rows == 1 else [(0, self._array[:rows])]
        request.outputs = outputs
        return request


# --- request ----------------------------------------------------------------------------------------------------------


def parse_json(text: Body, depth: int) -> Any:
    """Bounded JSON; raises BadRequest."""
    if not isinstance(text, bytes):
        text = bytes(text)
    if not within_depth(text, depth):
        raise BadRequest("the JSON is nested too deeply")
    try:
        return orjson.loads(text)
    except ValueError:
        raise BadRequest("the body is not valid JSON") from None


def decode(signature: Signature, body: Body, json_length: int = -1) -> InferRequest:
    """Decode an infer body.  `json_length` is Inference-Header-Content-Length, -1 where absent, 0 for a raw request.
    Raises BadRequest."""
    if json_length == 0:
        return _decode_raw(signature, body)
    binary: Body = b""
    if json_length < 0:
        text = body if type(body) is bytes else bytes(body)
        if signature.plain is not None:
            plain = signature.plain.decode(text, signature.defaults[False])
            if plain is not None:
                return plain
    else:
        if json_length > len(body):
            raise BadRequest("Inference-Header-Content-Length exceeds the body")
        text = bytes(body[:json_length])
        binary = memoryview(body)[json_length:]
    return _decode(signature, text, binary)


def decode_ahead(signature: Signature, text: bytes, size: int) -> InferRequest | None:
    """The request whose JSON is `text` and whose one tensor are the `size` bytes after it, which are still to come: all
    of it but `inputs`.  None where it is not of that kind, or wrong, which is for `decode` to say once it is there."""
    if not signature.ahead:
        return None
    try:
        request = _decode(signature, text, memoryview(np.empty(size, np.uint8)))  # type: ignore[arg-type]
    except BadRequest:
        return None
    _, rows = request.inputs[0]
    if isinstance(rows, list) or rows.nbytes != size:
        return None
    request.inputs = NO_INPUTS
    return request


def _decode(signature: Signature, text: bytes, binary: Body) -> InferRequest:
    document = parse_json(text, signature.limit)
    if type(document) is not dict:
        raise BadRequest("the body is not a JSON object")
    request = InferRequest()
    identity = document.get("id")
    if identity is not None:
        if type(identity) is not str:
            raise BadRequest("id is not a string")
        request.id = identity
    default_binary = False
    parameters = document.get("parameters")
    if parameters is not None:
        default_binary = _read_parameters(request, parameters)
    _read_inputs(signature, request, document.get("inputs"), text, binary)
    wanted = document.get("outputs")
    if wanted is None or wanted == []:
        request.outputs = signature.defaults[default_binary]
    else:
        request.outputs = _read_outputs(signature, wanted, default_binary)
    return request


def _decode_raw(signature: Signature, body: Body) -> InferRequest:
    """A raw request: the body is the one input's one row, and all outputs are binary."""
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
        request.inputs = [(entry.index, [tensors.pack_element(bytes(body))])]
        return request
    if free:
        if len(free) > 1:
            raise BadRequest("a raw request leaves open which shape the input has")
        others = math.prod(axis for axis in shape if axis >= 0) * entry.datatype.bytes_each
        shape[free[0]] = len(body) // others if others else 0
        entry.check_shape(shape)
    request.inputs = [(entry.index, tensors.numbers_from_binary(entry.datatype, body, shape))]
    return request


def _whole(parameters: dict[str, Any], key: str) -> int:
    """A whole number, also where a client writes it as 3.0."""
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


def _read_parameters(request: InferRequest, parameters: Any) -> bool:
    """The request's own parameters; gives the default of `binary_data`.  Unknown ones are ignored."""
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


def _read_inputs(signature: Signature, request: InferRequest, listed: Any, text: bytes, binary: Body) -> None:
    declared = signature.inputs
    if type(listed) is not list:
        raise BadRequest("inputs is missing or not an array")
    if len(listed) > len(declared):
        raise BadRequest("the request has more inputs than the model")
    may_hold_booleans = b"true" in text or b"false" in text
    seen = 0
    at, end = 0, len(binary)
    request.inputs = []
    for item in listed:
        if type(item) is not dict:
            raise BadRequest("an input is not an object")
        name = item.get("name")
        entry = declared.get(name) if type(name) is str else None
        if entry is None:
            raise BadRequest("an input is not one the model declares")
        bit = 1 << entry.index
        if seen & bit:
            raise BadRequest("an input is given twice")
        seen |= bit
        if item.get("datatype") != entry.datatype.name:
            raise BadRequest("an input has another datatype than the model declares")
        shape = entry.check_shape(item.get("shape"))
        if not request.rows:
            request.rows = shape[0]
        elif request.rows != shape[0]:
            raise BadRequest("the inputs differ in their number of rows")
        size = _binary_size(item.get("parameters"))
        if size is None:
            if "data" not in item:
                raise BadRequest("an input has neither data nor binary_data_size")
            data = item["data"]
            rows: Rows
            if entry.is_bytes:
                rows = tensors.bytes_from_json(data, shape)
            else:
                rows = tensors.numbers_from_json(entry.datatype, data, shape, may_hold_booleans)
        else:
            if "data" in item:
                raise BadRequest("an input has both data and binary_data_size")
            if size > end - at:
                raise BadRequest("the binary data ends before its tensors do")
            raw = binary[at : at + size]
            at += size
            if entry.is_bytes:
                rows = tensors.bytes_from_binary(raw, shape)
            else:
                rows = tensors.numbers_from_binary(entry.datatype, raw, shape)
        request.inputs.append((entry.index, rows))
    if at != end:
        raise BadRequest("binary data is left over after the last tensor")
    if len(request.inputs) != len(declared):
        raise BadRequest("an input the model needs is missing")


def _binary_size(parameters: Any) -> int | None:
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise BadRequest("parameters is not an object")
    if "shared_memory_region" in parameters:
        raise BadRequest("shared memory regions are not supported")
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise BadRequest("binary_data_size is not a whole number of at least 0")
    return size


def _read_outputs(signature: Signature, listed: Any, default_binary: bool) -> list[Wanted]:
    if type(listed) is not list:
        raise BadRequest("outputs is not an array")
    if len(listed) > len(signature.outputs):
        raise BadRequest("the request has more outputs than the model")
    result: list[Wanted] = []
    seen = set()
    for item in listed:
        name = item.get("name") if type(item) is dict else None
        index = signature.out_index.get(name) if type(name) is str else None
        if index is None:
            raise BadRequest("an output is not one the model declares")
        if index in seen:
            raise BadRequest("an output is requested twice")
        seen.add(index)
        binary, classes = default_binary, 0
        parameters = item.get("parameters")
        if parameters is not None:
            if type(parameters) is not dict:
                raise BadRequest("parameters is not an object")
            if "shared_memory_region" in parameters:
                raise BadRequest("shared memory regions are not supported")
            binary = _flag(parameters, "binary_data", default_binary)
            classes = _whole(parameters, "classification")
            if classes and signature.outputs[index].datatype in ("BYTES", "BOOL"):
                raise BadRequest("only numbers can be classified")
        result.append(Wanted(index, binary, classes))
    return result


# --- answer -----------------------------------------------------------------------------------------------------------


def _bytes_shape(spec: TensorSpec, rows: list[bytes]) -> tuple[int, ...]:
    """The shape of a BYTES output; a variable axis follows from the number of elements."""
    shape = list(spec.shape)
    free = [axis for axis, size in enumerate(shape) if size < 0]
    if free:
        fixed = math.prod(size for size in shape if size >= 0)
        for axis in free[1:]:
            shape[axis] = 1
        shape[free[0]] = len(tensors.split_elements(rows[0])) // fixed if rows and fixed else 0
    return (len(rows), *shape)


def brief(signature: Signature, request: InferRequest, text: bytes) -> list[bytes]:
    """The parts of an answer in JSON whose one output is `text`, and which carries nothing else."""
    rows = request.rows
    lead = signature.one if rows == 1 else signature.lead(rows)
    if request.id:
        name = quoted(request.id)
        return [signature.prefix, b',"id":', name if name is not None else orjson.dumps(request.id), lead, text, b"}]}"]
    return [signature.prefix, lead, text, b"}]}"]


def encode(
    signature: Signature,
    request: InferRequest,
    read: Callable[[int], Rows],
    receipt: dict[str, Any] | None = None,
) -> tuple[int, list[bytes]]:
    """The answer's parts, and the length of its JSON, or -1 where it is JSON alone.  `read(index)` gives an output's
    rows.  Raises BadRequest where JSON cannot carry what was asked for in JSON."""
    pieces = [signature.prefix]
    if request.id:
        pieces.append(b',"id":' + orjson.dumps(request.id))
    if receipt is not None:
        pieces.append(b',"parameters":{"clover_receipt":%b}' % orjson.dumps(receipt))
    pieces.append(b',"outputs":[')
    tail: list[bytes] = []
    first = True
    for wanted in request.outputs:
        spec = signature.outputs[wanted.index]
        rows = read(wanted.index)
        datatype = spec.datatype
        raw = text = b""
        if wanted.classes:
            assert not isinstance(rows, list)
            table = tensors.classify(datatype, rows, wanted.classes, spec.labels)
            datatype = "BYTES"
            shape: tuple[int, ...] = (len(table), len(table[0]) if table else 0)
            rows = [b"".join(map(tensors.pack_element, line)) for line in table]
        elif isinstance(rows, list):
            shape = _bytes_shape(spec, rows)
        else:
            shape = rows.shape
        if wanted.binary:
            raw = b"".join(rows) if isinstance(rows, list) else tensors.numbers_to_binary(rows)
            if raw:
                tail.append(raw)
        else:
            text = tensors.bytes_to_json(rows) if isinstance(rows, list) else tensors.numbers_to_json(datatype, rows)
        if not first:
            pieces.append(b",")
        first = False
        pieces.append(signature.describe(wanted.index, datatype, shape))
        if wanted.binary:
            pieces.append(b',"parameters":{"binary_data_size":%d}}' % len(raw))
        else:
            pieces += (b',"data":', text, b"}")
    pieces.append(b"]}")
    header = b"".join(pieces)
    return (len(header), [header, *tail]) if tail else (-1, [header])
