"""Messages in their wire form, put together so that the bytes of tensors are copied once.

A message is its fields one after the other: a key (field number and wire type), then the value.  A tensor's bytes are
such a value unchanged.  So protobuf encodes the other fields, and the tensors are appended as fields of bytes.
`clover._native.protobuf` has the other direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_BYTES = 2


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
