"""The answer of the Open Inference Protocol: from output rows to the body, in JSON or with binary tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import orjson

from clover._native.wire import quoted
from clover.http.oip import tensors
from clover.http.oip.signature import InferRequest, RequestedOutput, Rows, Signature
from clover.runtime.memory.bytes_codec import count_elements, pack_element
from clover.types import TensorSpec


def _bytes_shape(spec: TensorSpec, rows: list[bytes]) -> tuple[int, ...]:
    """Return the shape of a BYTES output; its first variable axis follows from the number of elements, others are 1."""
    shape = list(spec.shape)
    free = [axis for axis, size in enumerate(shape) if size < 0]
    if free:
        fixed = math.prod(size for size in shape if size >= 0)
        for axis in free[1:]:
            shape[axis] = 1
        shape[free[0]] = count_elements(rows[0]) // fixed if rows and fixed else 0
    return (len(rows), *shape)


def brief(signature: Signature, request: InferRequest, text: bytes) -> list[bytes]:
    """Return the parts of an answer in JSON whose one output has the numbers `text`, and which has no parameters."""
    rows = request.rows
    lead = signature.lead_of_one if rows == 1 else signature.lead(rows)
    if request.id:
        name = quoted(request.id)
        return [signature.prefix, b',"id":', name if name is not None else orjson.dumps(request.id), lead, text, b"}]}"]
    return [signature.prefix, lead, text, b"}]}"]


def output_rows(
    signature: Signature, wanted: RequestedOutput, read: Callable[[int], Rows]
) -> tuple[str, tuple[int, ...], Rows]:
    """Return the datatype, the shape and the rows of a requested output: its tensor, or its classes."""
    spec = signature.outputs[wanted.index]
    rows = read(wanted.index)
    if wanted.classes:
        assert not isinstance(rows, list)
        table = tensors.classify(spec.datatype, rows, wanted.classes, spec.labels)
        lines = [b"".join(map(pack_element, line)) for line in table]
        return "BYTES", (len(table), len(table[0]) if table else 0), lines
    return spec.datatype, _bytes_shape(spec, rows) if isinstance(rows, list) else rows.shape, rows


def encode(
    signature: Signature,
    request: InferRequest,
    read: Callable[[int], Rows],
    receipt: dict[str, Any] | None = None,
) -> tuple[int, list[bytes]]:
    """Return the length of the answer's JSON (-1 if it is JSON alone) and the parts of its body.

    `read(index)` returns the rows of an output.  Raises BadRequest if JSON cannot carry what was asked for in JSON.
    """
    pieces = [signature.prefix]
    if request.id:
        pieces.append(b',"id":' + orjson.dumps(request.id))
    if receipt is not None:
        pieces.append(b',"parameters":{"clover_receipt":%b}' % orjson.dumps(receipt))
    pieces.append(b',"outputs":[')
    tail: list[bytes] = []
    first = True
    for wanted in request.outputs:
        datatype, shape, rows = output_rows(signature, wanted, read)
        raw = text = b""
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
