"""Rows of BYTES tensors in the form of the Open Inference Protocol (OIP form).

Each element is its length (uint32, little-endian) and then its bytes; a row is its elements one after the other.  Slabs
hold rows in this form, binary request and response bodies carry it, and workers decode it for the model.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

_LENGTH = struct.Struct("<I")
_UNPACK = _LENGTH.unpack_from


def pack_element(element: bytes) -> bytes:
    """Return one element in OIP form."""
    return _LENGTH.pack(len(element)) + element


def pack_row(elements: Iterable[Any]) -> bytes:
    """Return a row of elements (str, encoded as UTF-8, or bytes, bytearray, memoryview) in OIP form.

    Raises TypeError, whose text is the name of the type, for an element of any other type."""
    parts = []
    for element in elements:
        if isinstance(element, str):
            element = element.encode()
        elif not isinstance(element, (bytes, bytearray, memoryview)):
            raise TypeError(type(element).__name__)
        else:
            element = bytes(element)
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def split_row(row: bytes) -> list[bytes]:
    """Return the elements of a row in OIP form; raises ValueError if it ends inside one."""
    found = []
    at, size = 0, len(row)
    while at < size:
        if at + 4 > size:
            raise ValueError("a BYTES row ends inside an element's length")
        start = at + 4
        at = start + _UNPACK(row, at)[0]
        if at > size:
            raise ValueError("a BYTES row ends inside an element")
        found.append(row[start:at])
    return found


def count_elements(row: bytes) -> int:
    """Return how many elements a row in OIP form has; raises ValueError if it ends inside one."""
    at, count, size = 0, 0, len(row)
    while at < size:
        if at + 4 > size:
            raise ValueError("a BYTES row ends inside an element's length")
        at += 4 + _UNPACK(row, at)[0]
        count += 1
    if at != size:
        raise ValueError("a BYTES row ends inside an element")
    return count


def cut_rows(data: bytes | bytearray | memoryview, rows: int, elements: int) -> list[bytes]:
    """Return copies of the `rows` rows of `elements` elements each that `data` holds one after the other in OIP form;
    raises ValueError if it does not hold exactly these."""
    size, at = len(data), 0
    if rows * elements > size // 4:
        raise ValueError("the binary data is shorter than its BYTES elements")
    found = []
    for _ in range(rows):
        start = at
        for _ in range(elements):
            if at + 4 > size:
                raise ValueError("the binary data is shorter than its BYTES elements")
            at += 4 + _UNPACK(data, at)[0]
        if at > size:
            raise ValueError("the binary data is shorter than its BYTES elements")
        found.append(bytes(data[start:at]))
    if at != size:
        raise ValueError("the binary data is longer than its BYTES elements")
    return found
