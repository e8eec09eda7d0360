"""Messages in their wire form, cut up and put together so that the bytes of tensors are not copied.

A message is its fields one after the other: a key (field number and wire type), then the value.  A tensor's bytes lie
in such a value as they are, so a view of the message is the tensor; and a message is the rest of its fields, encoded by
protobuf, followed by fields of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_FIELDS = 4096
"""Most fields of a message, not counting those inside of fields: each takes a turn of a loop in Python."""


def cut(message: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Return a message without its fields `number`, and the bytes of these as views of it; raises ValueError if it is
    malformed or has too many fields."""
    view = memoryview(message)
    rest: list[bytes] = []
    cut_out: list[memoryview] = []
    at = start = fields = 0
    end = len(message)
    while at < end:
        fields += 1
        if fields > _MOST_FIELDS:
            raise ValueError(f"it has more than {_MOST_FIELDS} fields")
        begin = at
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
            if key >> 3 == number:
                rest.append(message[start:begin])
                cut_out.append(view[at : at + size])
                start = at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _FIXED32:
            at += 4
        elif kind == _FIXED64:
            at += 8
        else:
            raise ValueError("it has a field of no known kind")
    if at != end:
        raise ValueError("it ends inside a field")
    if not cut_out:
        return message, cut_out
    rest.append(message[start:])
    return b"".join(rest), cut_out


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends; raises ValueError."""
    value = shift = 0
    for byte in message[at : at + 10]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it ends inside a number")


def key_of(number: int, size: int) -> bytes:
    """Return what stands before the `size` bytes of field `number`, which is below 16."""
    out = bytearray((number << 3 | _BYTES,))
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def with_fields(rest: bytes, number: int, values: Iterable[Any]) -> bytes:
    """Return the message of the fields `rest` and, after them, of a field `number` for each of the `values`, which are
    bytes or contiguous arrays."""
    parts: list[Any] = [rest]
    for value in values:
        parts += (key_of(number, value.nbytes if hasattr(value, "nbytes") else len(value)), value)
    return b"".join(parts)
