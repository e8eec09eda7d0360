"""OIP tensors: from JSON values or raw bytes to arrays, and back.

JSON numbers go through `array.array`, whose C loop refuses what does not belong - 1.5 or a string in an integer tensor,
300 in UINT8 - where NumPy would quietly convert.  Booleans pass as numbers there, so a body in which the words `true`
or `false` occur at all is checked element by element.  BYTES rows have a codec of their own
(`clover.runtime.memory.bytes_codec`).

The caller must have bounded the shape: rows are made as the shape says, and its first axis comes from a client.

Clover's rule for NaN and Infinity in JSON answers: JSON has no such numbers, and `null` or a bare `NaN` would mean
something else to the client than what the model said.  The answer is a 400 that names the way out, binary output.
"""

from __future__ import annotations

import math
from array import array
from base64 import b64decode
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover import families
from clover.errors import BadRequest
from clover.runtime.memory.bytes_codec import cut_rows, pack_element, split_row

Body = bytes | bytearray | memoryview
"""A request body, or a part of one: flat bytes."""


class Datatype:
    """One OIP datatype.

    `dtype` is that of its arrays, `bytes_each` the size of an element.  `code` is its typecode in `array`; empty if its
    JSON elements are not read that way.
    """

    __slots__ = ("bytes_each", "code", "dtype", "name")

    def __init__(self, name: str, dtype: Any, code: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.code = code
        self.bytes_each = self.dtype.itemsize


_ARRAY_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}

DATATYPES = {name: Datatype(name, dtype, _ARRAY_CODES.get(name, "")) for name, dtype in families.DATATYPES.items()}

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_SUM_IS_FASTER = 64
_EXACT = 2.0**53


# --- JSON in ----------------------------------------------------------------------------------------------------------


def flatten(data: Any, shape: list[int]) -> list[Any]:
    """Return the elements of flat or nested row-major `data`; raises BadRequest unless they fill `shape`."""
    if type(data) is not list:
        raise BadRequest("its data is not an array")
    if data and type(data[0]) is list and len(shape) > 1:
        level: list[Any] = [data]
        for axis in shape:
            if set(map(type, level)) - {list} or set(map(len, level)) - {axis}:
                raise BadRequest(f"its nested data does not have the shape {shape}")
            level = list(chain.from_iterable(level))
        return level
    if len(data) != math.prod(shape):
        raise BadRequest(f"its data has {len(data)} elements, and the shape {shape} takes {math.prod(shape)}")
    return data


def numbers_from_json(datatype: Datatype, data: Any, shape: list[int], may_hold_booleans: bool) -> NDArray[Any]:
    """Return an array of `shape` from JSON values; raises BadRequest for values that are not of the datatype.

    Floating-point values are rounded to the datatype.  `may_hold_booleans` is False if the body has none for sure.
    """
    if datatype.name == "BOOL":
        flat = flatten(data, shape)
        if set(map(type, flat)) - {bool}:
            raise BadRequest("a BOOL tensor takes true and false only")
        booleans: NDArray[Any] = np.array(flat, np.bool_)
        return booleans.reshape(shape)
    if not datatype.code:
        raise BadRequest(f"{datatype.name} tensors travel as binary data only")
    flat = flatten(data, shape)
    if may_hold_booleans and bool in set(map(type, flat)):
        raise BadRequest("a tensor of numbers holds a boolean")
    try:
        try:
            packed = array(datatype.code, flat)
        except TypeError:
            packed = array(datatype.code, _integral(flat, datatype))
    except OverflowError:
        raise BadRequest(f"an element is outside the range of {datatype.name}") from None
    result: NDArray[Any] = np.frombuffer(packed, datatype.dtype) if packed else np.empty(0, datatype.dtype)
    if datatype.code == "f":
        finite = math.isfinite(sum(packed)) if len(packed) < _SUM_IS_FASTER else bool(np.isfinite(result).all())
        if not finite:
            raise BadRequest("an element is outside the range of FP32")
    return result.reshape(shape)


def _integral(flat: list[Any], datatype: Datatype) -> list[Any]:
    """Return elements as integers, of which some are written as 3.0: to JSON that is the same number.

    Raises BadRequest for others, and if a double no longer tells neighbouring integers apart.
    """
    for element in flat:
        exact = type(element) is float and element.is_integer() and abs(element) <= _EXACT
        if type(element) is not int and not exact:
            raise BadRequest(f"an element is not a number that {datatype.name} holds")
    return [int(element) for element in flat]


def bytes_from_json(data: Any, shape: list[int], as_base64: bool) -> list[bytes]:
    """Return BYTES rows in OIP form from JSON strings, which are the elements themselves, or `as_base64`; raises
    BadRequest for anything else."""
    flat = flatten(data, shape)
    if set(map(type, flat)) - {str}:
        raise BadRequest(
            "a BYTES tensor takes strings only; other bytes travel as binary data, or in base64 if the input has "
            'parameters {"content_type": "base64"}'
        )
    rows = shape[0]
    each = len(flat) // rows
    try:
        elements = [pack_element(b64decode(text, validate=True) if as_base64 else text.encode()) for text in flat]
    except UnicodeEncodeError:
        raise BadRequest("a string is not valid Unicode") from None
    except ValueError as error:
        raise BadRequest(f"an element is not base64: {error}") from None
    return [b"".join(elements[row * each : (row + 1) * each]) for row in range(rows)]


# --- binary in --------------------------------------------------------------------------------------------------------


def numbers_from_binary(datatype: Datatype, raw: Body, shape: list[int]) -> NDArray[Any]:
    """Return a view of little-endian `raw` as an array of `shape`; raises BadRequest for a wrong size."""
    count = math.prod(shape)
    if len(raw) != count * datatype.bytes_each:
        needed = f"{datatype.name} of the shape {shape} takes {count * datatype.bytes_each}"
        raise BadRequest(f"its binary data has {len(raw)} bytes, and {needed}")
    if not count:
        return np.empty(shape, datatype.dtype)
    if datatype.name == "BOOL":
        return np.not_equal(np.frombuffer(raw, np.uint8), 0).reshape(shape)
    view: NDArray[Any] = np.frombuffer(raw, datatype.dtype)
    return view.reshape(shape)


def bytes_from_binary(raw: Body, shape: list[int]) -> list[bytes]:
    """Return BYTES rows in OIP form, cut at the row boundaries; raises BadRequest unless `raw` is exactly these."""
    elements = math.prod(shape[1:])
    try:
        if elements > len(raw):  # it may be more than 64 bits hold
            raise ValueError("the binary data is shorter than its BYTES elements")
        return cut_rows(raw, shape[0], elements)
    except ValueError as error:
        raise BadRequest(str(error)) from None


# --- out --------------------------------------------------------------------------------------------------------------


def numbers_to_json(datatype: str, values: NDArray[Any]) -> bytes:
    """Return the flat JSON array of `values`; raises BadRequest for FP16, BF16 and non-finite numbers."""
    if datatype in ("FP16", "BF16"):
        raise BadRequest(f"an output is {datatype}, which travels as binary data only: ask for binary_data")
    text = orjson.dumps(values.ravel(), option=_NUMPY)  # contiguous, as the corner of a slot need not be
    if b"null" in text:
        raise BadRequest("an output holds NaN or Infinity, which JSON cannot carry: ask for binary_data")
    return text


def bytes_to_json(rows: list[bytes]) -> bytes:
    """Return the flat JSON array of BYTES rows; raises BadRequest if an element is not UTF-8."""
    try:
        return orjson.dumps([element.decode() for row in rows for element in split_row(row)])
    except UnicodeDecodeError:
        raise BadRequest("an output holds bytes that are not UTF-8: ask for binary_data") from None


def numbers_to_binary(values: NDArray[Any]) -> bytes:
    """Return the elements of `values`, row-major and little-endian."""
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.tobytes()


def classify(datatype: str, values: NDArray[Any], classes: int, labels: tuple[str, ...]) -> list[list[bytes]]:
    """Return the `classes` largest values of each row as `value:index[:label]`, as the classification extension has it.

    The largest comes first, and among equals the one of the lower index.
    """
    rows = values.reshape(values.shape[0], -1)
    if datatype == "BF16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    count = min(classes, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    form = "{:f}:{}" if rows.dtype.kind == "f" else "{}:{}"
    names = [f":{label}" for label in labels] + [""] * (rows.shape[1] - len(labels))
    return [
        [(form.format(value, index) + names[index]).encode() for value, index in zip(*line, strict=True)]
        for line in zip(np.take_along_axis(rows, order, 1).tolist(), order.tolist(), strict=True)
    ]
