"""What a `ModelInferRequest` holds, found before protobuf makes objects of it (see csrc/protobuf.pyx)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIELDS, _PARAMETERS, _RAW = 4096, 64, 7
_PARAMETER = {"request": 4, "input": 4, "output": 2}
_PACKED = {("input", 3): 0, **{("contents", number): 0 for number in range(6)}, ("contents", 6): 4, ("contents", 7): 8}
"""Of packed fields the bytes of a number; 0 if they end with one below 128."""


class _Field(NamedTuple):
    key: int
    start: int
    begin: int
    end: int


def cut(message: bytes, weight: int) -> tuple[bytes, list[memoryview]]:
    rest, raws, start = [], [], 0
    view = memoryview(message)
    left, parameters = weight, 0
    for count, field in enumerate(_fields(message, 0, len(message))):
        if count == _FIELDS:
            raise OverflowError(f"it has more than {_FIELDS} fields")
        left -= 3
        parameters += _is(field, _PARAMETER["request"])
        _check(left, parameters)
        if _is(field, _RAW):
            rest.append(message[start : field.start])
            raws.append(view[field.begin : field.end])
            start = field.end
        for number, kind in ((5, "input"), (6, "output")):
            if _is(field, number):
                left = _weigh(message, field, kind, left)
    return (b"".join([*rest, message[start:]]), raws) if raws else (message, raws)


def _weigh(message: bytes, outer: _Field, kind: str, left: int) -> int:
    parameters = 0
    for field in _fields(message, outer.begin, outer.end):
        left -= 3
        each = _PACKED.get((kind, field.key >> 3)) if field.key & 7 == _BYTES else None
        if each is not None:
            held = message[field.begin : field.end]
            left -= len(held) // each if each else sum(byte < 0x80 for byte in held)
        parameters += _is(field, _PARAMETER.get(kind))
        _check(left, parameters)
        if kind == "input" and _is(field, 5):
            left = _weigh(message, field, "contents", left)
    return left


def _is(field: _Field, number: int | None) -> bool:
    return field.key & 7 == _BYTES and field.key >> 3 == number


def _check(left: int, parameters: int) -> None:
    if parameters > _PARAMETERS:
        raise OverflowError(f"it has more than {_PARAMETERS} parameters")
    if left < 0:
        raise OverflowError("it holds too many elements or fields: send tensors as raw_input_contents, or fewer rows")


def _fields(message: bytes, at: int, end: int) -> Iterator[_Field]:
    while at < end:
        start = at
        key, at = _varint(message, at, end)
        kind, size = key & 7, 0
        begin = at
        if kind == _BYTES:
            size, begin = _varint(message, at, end)
            at = begin
        elif kind == _VARINT:
            _, at = _varint(message, at, end)
        elif kind == _FIXED32:
            size = 4
        elif kind == _FIXED64:
            size = 8
        else:
            raise ValueError("it has a field of no known kind")
        if size > end - at:
            raise ValueError("it ends inside a field")
        at += size
        yield _Field(key, start, begin, at)


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for byte in message[at : min(at + 10, end)]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    raise ValueError("it ends inside a number")
