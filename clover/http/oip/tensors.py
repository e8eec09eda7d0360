"""OIP tensors: from JSON values or raw bytes to arrays, and back.

The datatypes are a table.  JSON numbers go through `array.array`, whose C loop refuses what does not belong - 1.5 or
a string in an integer tensor, 300 in UINT8 - where NumPy would quietly convert.  Booleans pass as numbers there, so
a body in which the words `true` or `false` occur at all is checked element by element.

Whoever calls has bounded the shape: rows are made as the shape says, and its first axis comes from a client.

Clover's rule for NaN and Infinity in JSON answers: JSON has no such numbers, and `null` or a bare `NaN` would reach the
client as something else than what the model said.  The answer is a 400 that names the way out, binary output.
"""

from __future__ import annotations

import math
import struct
from array import array
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover.errors import BadRequest

Body = bytes | bytearray | memoryview


class Datatype:
    """One OIP datatype.  `code` is its `array` typecode; empty where JSON cannot carry it."""

    __slots__ = ("bytes_each", "code", "dtype", "name")

    def __init__(self, name: str, dtype: Any, code: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.code = code
        self.bytes_each = self.dtype.itemsize


DATATYPES = {
    row.name: row
    for row in (
        Datatype("BOOL", np.bool_, ""),
        Datatype("UINT8", np.uint8, "B"),
        Datatype("UINT16", np.uint16, "H"),
        Datatype("UINT32", np.uint32, "I"),
        Datatype("UINT64", np.uint64, "Q"),
        Datatype("INT8", np.int8, "b"),
        Datatype("INT16", np.int16, "h"),
        Datatype("INT32", np.int32, "i"),
        Datatype("INT64", np.int64, "q"),
        Datatype("FP16", np.float16, ""),
        Datatype("FP32", np.float32, "f"),
        Datatype("FP64", np.float64, "d"),
        Datatype("BF16", np.uint16, ""),
        Datatype("BYTES", np.object_, ""),
    )
}

_LENGTH = struct.Struct("<I")
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_SUM_IS_FASTER = 64
_EXACT = 2.0**53


# --- JSON in ----------------------------------------------------------------------------------------------------------


def flatten(data: Any, shape: list[int]) -> list[Any]:
    """Return the elements of flat or nested row-major `data`; raises BadRequest where they do not fill `shape`."""
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
    """Return an array of `shape` from JSON values; raises BadRequest for what the datatype cannot hold exactly or
    nearly."""
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
    """Return elements in which some integers are written as 3.0: to JSON the same number.  Raises BadRequest for
    others, and where a double no longer tells neighbouring integers apart."""
    for element in flat:
        exact = type(element) is float and element.is_integer() and abs(element) <= _EXACT
        if type(element) is not int and not exact:
            raise BadRequest(f"an element is not a number that {datatype.name} holds")
    return [int(element) for element in flat]


def bytes_from_json(data: Any, shape: list[int]) -> list[bytes]:
    """Return BYTES rows in OIP form (uint32 length + bytes an element) from JSON strings."""
    flat = flatten(data, shape)
    if set(map(type, flat)) - {str}:
        raise BadRequest("a BYTES tensor takes strings only; other bytes travel as binary data")
    rows = shape[0]
    each = len(flat) // rows
    try:
        elements = [pack_element(text.encode()) for text in flat]
    except UnicodeEncodeError:
        raise BadRequest("a string is not valid Unicode") from None
    return [b"".join(elements[row * each : (row + 1) * each]) for row in range(rows)]


def pack_element(element: bytes) -> bytes:
    """Return one BYTES element in OIP form."""
    return _LENGTH.pack(len(element)) + element


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
    """Return BYTES rows, cut at the row boundaries; raises BadRequest where `raw` is not exactly that many elements."""
    rows = shape[0]
    each = math.prod(shape[1:])
    if rows * each > len(raw) // 4:
        raise BadRequest("the binary data is shorter than its BYTES elements")
    size, at = len(raw), 0
    unpack = _LENGTH.unpack_from
    result = []
    for _ in range(rows):
        start = at
        for _ in range(each):
            if at + 4 > size:
                raise BadRequest("the binary data is shorter than its BYTES elements")
            at += 4 + unpack(raw, at)[0]
        if at > size:
            raise BadRequest("the binary data is shorter than its BYTES elements")
        result.append(bytes(raw[start:at]))
    if at != size:
        raise BadRequest("the binary data is longer than its BYTES elements")
    return result


# --- out --------------------------------------------------------------------------------------------------------------


def split_elements(row: bytes) -> list[bytes]:
    """Return the elements of one BYTES row in OIP form; raises ValueError where it is damaged."""
    result, at, size = [], 0, len(row)
    while at < size:
        if at + 4 > size:
            raise ValueError("truncated BYTES element")
        length = _LENGTH.unpack_from(row, at)[0]
        at += 4
        if at + length > size:
            raise ValueError("truncated BYTES element")
        result.append(row[at : at + length])
        at += length
    return result


def numbers_to_json(datatype: str, values: NDArray[Any]) -> bytes:
    """Return the flat JSON array of `values`; raises BadRequest for FP16, BF16 and non-finite numbers (see above)."""
    if datatype in ("FP16", "BF16"):
        raise BadRequest(f"an output is {datatype}, which travels as binary data only: ask for binary_data")
    text = orjson.dumps(values.reshape(-1), option=_NUMPY)
    if b"null" in text:
        raise BadRequest("an output holds NaN or Infinity, which JSON cannot carry: ask for binary_data")
    return text


def bytes_to_json(rows: list[bytes]) -> bytes:
    """Return the flat JSON array of BYTES rows; raises BadRequest where an element is not UTF-8."""
    try:
        return orjson.dumps([element.decode() for row in rows for element in split_elements(row)])
    except UnicodeDecodeError:
        raise BadRequest("an output holds bytes that are not UTF-8: ask for binary_data") from None


def numbers_to_binary(values: NDArray[Any]) -> bytes:
    """Little-endian row-major bytes."""
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.tobytes()


def classify(datatype: str, values: NDArray[Any], classes: int, labels: tuple[str, ...]) -> list[list[bytes]]:
    """Return the classification extension: per row the `classes` largest values, as `value:index[:label]`, largest
    first and the lower index first among equals."""
    rows = values.reshape(values.shape[0], -1)
    if datatype == "BF16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    count = min(classes, rows.shape[1])
    real = rows.dtype.kind == "f"
    result = []
    for row in rows:
        line = []
        for index in np.argsort(-row.astype(np.float64), kind="stable")[:count].tolist():
            text = f"{float(row[index]):f}:{index}" if real else f"{int(row[index])}:{index}"
            line.append((f"{text}:{labels[index]}" if index < len(labels) else text).encode())
        result.append(line)
    return result
