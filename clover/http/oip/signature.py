"""What a family declares of its requests, compiled once (`Signature`), and a decoded request (`InferRequest`).

`Signature` has lookups, prebuilt JSON fragments, the default outputs, and two short cuts of decoding: `PlainDecoder`
for JSON in its most common form, and `KnownJson` for binary requests whose JSON came before.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover._native.infer import Plain, between
from clover.errors import RequestError
from clover.http.oip import tensors
from clover.http.oip.inputs import RANK, DeclaredInput, of_input
from clover.http.oip.tensors import Body
from clover.types import FamilySpec, TensorSpec

JSON_BYTES = 4 << 20
JSON_DEPTH = 100
"""The deepest nesting of JSON: rows of a tensor need as many levels as it has axes, and a few around them."""
"""Most bytes of the JSON of an infer request, unless the configuration says otherwise."""

ID_CHARACTERS = 1024
"""Longest id of a request: it is kept until the answer, and stands in it."""
_DESCRIBED = 256
_KNOWN_BYTES = 1024
"""Longest JSON that is kept: one without tensors rarely has more than 200."""
_KEPT_OF = 16
"""Of requests whose JSON is not known, one in so many has it kept."""
_PLAIN_NUMBERS = 1 << 20
_PLAIN_DEPTH = 4
"""How deep a plain body nests whose rows are numbers: object, inputs, tensor, data.  Each axis of a row adds one."""

Rows = NDArray[Any] | list[bytes]


class RequestedOutput:
    """A requested output: declared index, binary or JSON, and how many classes (0: the tensor itself)."""

    __slots__ = ("binary", "classes", "index")

    def __init__(self, index: int, binary: bool, classes: int = 0) -> None:
        self.index = index
        self.binary = binary
        self.classes = classes


Placed = tuple[DeclaredInput, list[int], int, int]
"""A tensor in the binary part of a body: its input, its shape, its offset and its size in bytes."""

# Of requests that have none, or none yet: shared, and never changed.
NO_INPUTS: list[tuple[int, Rows]] = []
NO_SHAPES: dict[int, tuple[int, ...]] = {}
NO_OUTPUTS: list[RequestedOutput] = []


class InferRequest:
    """A decoded request.

    `inputs` holds (declared index, rows).  `shapes` has the shape of each row of those BYTES inputs whose rows do not
    say it themselves.  `timeout_ns` and `min_accuracy` are 0 if the request sets none.
    """

    __slots__ = ("cascade", "id", "inputs", "min_accuracy", "outputs", "rows", "shapes", "timeout_ns", "wants_receipt")

    def __init__(self) -> None:
        self.id = ""
        self.rows = 0
        self.inputs = NO_INPUTS
        self.shapes = NO_SHAPES
        self.outputs = NO_OUTPUTS
        self.timeout_ns = 0
        self.min_accuracy = 0.0
        self.cascade = True
        self.wants_receipt = False

    def without_inputs(self) -> InferRequest:
        """Return a request for the same, whose inputs are still to come."""
        other = InferRequest()
        other.id = self.id
        other.rows = self.rows
        other.shapes = self.shapes
        other.outputs = self.outputs
        other.timeout_ns = self.timeout_ns
        other.min_accuracy = self.min_accuracy
        other.cascade = self.cascade
        other.wants_receipt = self.wants_receipt
        return other


class Signature:
    """A family's tensors, compiled for decoding and encoding.

    A request carries at most `most_rows` rows, and its JSON has at most `json_bytes` bytes and nests at most
    `json_depth` deep.  `plain` decodes requests in the most common form; None if the family has no such form.  `known`
    is the JSON of a binary request that came before.
    """

    __slots__ = (
        "_described",
        "_unknown",
        "defaults",
        "inputs",
        "is_brief",
        "is_direct",
        "json_bytes",
        "json_depth",
        "known",
        "lead_of_one",
        "most_rows",
        "name",
        "out_index",
        "out_prefix",
        "outputs",
        "plain",
        "prefix",
    )

    def __init__(
        self,
        spec: FamilySpec,
        most_rows: int,
        json_depth: int = JSON_DEPTH,
        name: str = "",
        json_bytes: int = JSON_BYTES,
    ) -> None:
        self.name = name or spec.name
        self.most_rows = most_rows
        self.json_depth = json_depth
        self.json_bytes = json_bytes
        self.inputs = {tensor.name: DeclaredInput(index, tensor) for index, tensor in enumerate(spec.inputs)}
        self.outputs = spec.outputs
        self.out_index = {tensor.name: index for index, tensor in enumerate(spec.outputs)}
        self.defaults = {
            binary: [RequestedOutput(index, binary) for index in range(len(spec.outputs))] for binary in (False, True)
        }
        self.prefix = b'{"model_name":%b,"model_version":%b' % (orjson.dumps(self.name), orjson.dumps(spec.version))
        self.out_prefix = [b'{"name":%b,"datatype":"' % orjson.dumps(tensor.name) for tensor in spec.outputs]
        self._described: dict[tuple[int, str, tuple[int, ...]], bytes] = {}
        self.plain = PlainDecoder.from_family(spec, most_rows, json_depth)
        self.known: KnownJson | None = None
        self._unknown = 0
        output = spec.outputs[0]
        self.is_brief = len(spec.outputs) == 1 and output.datatype == "FP32" and not output.variable
        """Whether answers may be encoded by `brief`."""
        self.lead_of_one = self.lead(1) if self.is_brief else b""
        first = spec.inputs[0]
        self.is_direct = len(spec.inputs) == 1 and not first.variable and first.datatype not in ("BYTES", "BOOL")
        """Whether the bytes of a binary request's tensor are its rows as they lie in slots."""

    def know(
        self, text: bytes, size: int, document: dict[str, Any], request: InferRequest, placed: list[Placed]
    ) -> None:
        """Keep the JSON of a request whose tensors are all binary (see `KnownJson`), unless it is long.

        Of those that are not known it is the first and each sixteenth: where all differ, little time is lost.
        """
        if self._unknown % _KEPT_OF == 0 and len(text) <= _KNOWN_BYTES:
            self.known = KnownJson(text, size, document, request, placed)
        self._unknown += 1

    def lead(self, rows: int) -> bytes:
        """Return the JSON between the id and the numbers of an answer of `rows` rows whose one output is FP32."""
        return b',"outputs":[%b,"data":' % self.describe(0, "FP32", (rows, *self.outputs[0].shape))

    def describe(self, index: int, datatype: str, shape: tuple[int, ...]) -> bytes:
        """Return the JSON of an output from its name to its shape; the last few are cached."""
        key = (index, datatype, shape)
        text = self._described.get(key)
        if text is None:
            axes = ",".join(map(str, shape)).encode()
            text = b'%b%b","shape":[%b]' % (self.out_prefix[index], datatype.encode(), axes)
            if len(self._described) >= _DESCRIBED:
                self._described.clear()
            self._described[key] = text
        return text


class PlainDecoder:
    """Decodes requests in the plain form (`clover._native.infer`), for families with one FP32 tensor of fixed shape.

    The rows are views of one array, which the next request overwrites: copy them into slots first.
    """

    __slots__ = ("_array", "_one", "_plain")

    def __init__(self, tensor: TensorSpec, rows: int) -> None:
        out = np.zeros(rows * math.prod(tensor.shape), np.float32)
        self._array = out.reshape(rows, *tensor.shape)
        self._one: list[tuple[int, Rows]] = [(0, self._array[:1])]
        self._plain = Plain(tensor.name, tensor.shape, out)

    @classmethod
    def from_family(cls, spec: FamilySpec, most_rows: int, json_depth: int) -> PlainDecoder | None:
        """Return the decoder of a family; None if its inputs are others, or if plain bodies would nest too deep."""
        tensor = spec.inputs[0]
        fixed = len(spec.inputs) == 1 and tensor.datatype == "FP32" and all(axis > 0 for axis in tensor.shape)
        if not fixed or not 1 <= len(tensor.shape) < RANK or json_depth < _PLAIN_DEPTH + len(tensor.shape):
            return None
        return cls(tensor, max(1, min(spec.max_batch, most_rows, _PLAIN_NUMBERS // math.prod(tensor.shape))))

    def decode(self, body: bytes, outputs: list[RequestedOutput]) -> InferRequest | None:
        """Return the request; None if it is not in the plain form."""
        found = self._plain.parse(body)
        if found is None:
            return None
        request = InferRequest()
        request.id, rows = found
        if len(request.id) > ID_CHARACTERS:
            return None  # the general way says what is wrong
        request.rows = rows
        request.inputs = self._one if rows == 1 else [(0, self._array[:rows])]
        request.outputs = outputs
        return request


class KnownJson:
    """The JSON `text` of a binary request of `size` bytes of tensors, which was decoded from `document` as `request`.

    Clients send the same JSON again and again: only the id and the bytes of the tensors differ.  It is kept as what
    stands before the id and after it.
    """

    __slots__ = ("_head", "_named", "_placed", "_request", "_size", "_tail")

    def __init__(
        self, text: bytes, size: int, document: dict[str, Any], request: InferRequest, placed: list[Placed]
    ) -> None:
        at, end = _place_of_id(text, document, request.id)
        self._head = text[:at]
        self._tail = text[end:]
        self._named = at < end
        self._size = size
        self._request = request.without_inputs()
        self._placed = placed

    def decode(self, body: bytes, json_length: int) -> InferRequest | None:
        """Return the request; None if its JSON or the size of its tensors is another.  Raises BadRequest if the bytes
        of a tensor are not of its datatype."""
        if json_length + self._size != len(body):
            return None
        identity = between(body, json_length, self._head, self._tail)
        if identity is None or len(identity) > (ID_CHARACTERS if self._named else 0):
            return None
        if self._request.rows > len(body):  # the id is shorter now (`DeclaredInput.check_shape`)
            return None
        request = self._request.without_inputs()
        if self._named:
            request.id = identity
        inputs: list[tuple[int, Rows]] = []
        for entry, shape, at, size in self._placed:
            at += json_length
            if size and entry.is_numeric:
                inputs.append((entry.index, np.ndarray(shape, entry.datatype.dtype, body, at)))
                continue
            try:
                inputs.append((entry.index, rows_from_binary(entry, body[at : at + size], shape)))
            except RequestError as error:
                raise of_input(entry, error) from None
        request.inputs = inputs
        return request


def _place_of_id(text: bytes, document: dict[str, Any], identity: str) -> tuple[int, int]:
    """Return where the id stands in the JSON `text` of `document`, without its quotes; twice the end if it has none, or
    if another id could not be read there as it stands."""
    at = text.find(b'"%b"' % identity.encode()) + 1 if identity else 0
    if at:
        end = at + len(identity.encode())
        other = f"{identity}~"  # no JSON outside of a string
        with contextlib.suppress(ValueError):
            if orjson.loads(text[:at] + other.encode() + text[end:]) == {**document, "id": other}:
                return at, end
    return len(text), len(text)


def rows_from_binary(entry: DeclaredInput, raw: Body, shape: list[int]) -> Rows:
    """Return the rows of a tensor of a checked shape; raises BadRequest if `raw` is not exactly these."""
    if entry.is_bytes:
        return tensors.bytes_from_binary(raw, shape)
    return tensors.numbers_from_binary(entry.datatype, raw, shape)
