"""Where an ONNX file keeps its weights, read without the package `onnx`.

An ONNX file is a protobuf message; tensors that are large may lie in other files ("external data"), which it names.
Tensors stand among the initializers of a graph and in attributes of nodes (a Constant's value), and graphs inside each
other (the branches of an If, the body of a Loop) and in functions.  A server asks what a family consists of, and has no
package that reads such files: the few messages that lead to tensors are walked here, and everything else is skipped
without being read.  Numbers of fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clover.digests import open_at_once

_VARINT, _EIGHT, _SIZED, _FOUR = 0, 1, 2, 5
"""Wire types of protobuf."""

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Of each message, the fields that lead to tensors, and what they hold."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_KEY, _VALUE = 1, 2


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose numbers lie in the file `location`, from `offset` on; `length`: bytes, -1 for all that follow."""

    location: str
    offset: int = 0
    length: int = -1


def external_tensors(file: Path) -> list[ExternalTensor]:
    """Return the tensors of an ONNX file that lie in other files, wherever in it they are used.

    Raises OSError, and ValueError if it is no ONNX file.
    """
    tensors = []
    with open_at_once(file) as opened:
        waiting = [("model", 0, os.fstat(opened.fileno()).st_size)]
        while waiting:
            kind, start, end = waiting.pop()
            if kind == "tensor":
                tensors += _tensor(opened, start, end)
                continue
            inside = _INSIDE[kind]
            for number, wire, value, size in _fields(opened, start, end):
                if number in inside and wire == _SIZED:
                    waiting.append((inside[number], value, value + size))
    return tensors


def external_files(file: Path) -> list[str]:
    """Return the files, by their names as the ONNX file gives them, that hold its external tensors; sorted.

    Raises OSError, and ValueError if it is no ONNX file.
    """
    return sorted({tensor.location for tensor in external_tensors(file)})


def external_bytes(file: Path) -> int:
    """Return the bytes of the external tensors of an ONNX file.  Raises OSError, and ValueError if it is none."""
    total = 0
    for tensor in external_tensors(file):
        total += tensor.length if tensor.length >= 0 else (file.parent / tensor.location).stat().st_size - tensor.offset
    return total


def _tensor(file: BinaryIO, start: int, end: int) -> list[ExternalTensor]:
    """Return the tensor between two places of a file if it is external, or none."""
    external, entries = False, []
    for number, wire, value, size in _fields(file, start, end):
        if number == _DATA_LOCATION and wire == _VARINT:
            external = value == _EXTERNAL
        elif number == _EXTERNAL_DATA and wire == _SIZED:
            entries.append((value, value + size))
    if not external:
        return []
    said = dict(_entry(file, *entry) for entry in entries)
    return [ExternalTensor(said.get("location", ""), int(said.get("offset", 0)), int(said.get("length", -1)))]


def _entry(file: BinaryIO, start: int, end: int) -> tuple[str, str]:
    """Return the key and the value of an entry of a map between two places of a file."""
    texts = {_KEY: "", _VALUE: ""}
    for number, wire, value, size in _fields(file, start, end):
        if number in texts and wire == _SIZED:
            file.seek(value)
            texts[number] = file.read(size).decode()
    return texts[_KEY], texts[_VALUE]


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type and value of each field of the message between two places of a file, which the caller may
    seek in meanwhile.

    The value of a sized field is where it begins, and its size follows.  Raises ValueError if it is no message.
    """
    at = start
    while at < end:
        file.seek(at)
        tag, at = _varint(file, at, end)
        number, wire, value, size = tag >> 3, tag & 7, 0, 0
        if wire in (_VARINT, _SIZED):
            value, at = _varint(file, at, end)
        if wire == _SIZED:
            value, size = at, value
        elif wire in (_EIGHT, _FOUR):
            size = 8 if wire == _EIGHT else 4
        elif wire != _VARINT:
            raise ValueError(f"there is no wire type {wire}, at byte {at}")
        at += size
        if not number or at > end:
            raise ValueError(f"a field ends at byte {at}, outside its message of {end - start} bytes")
        yield number, wire, value, size


def _varint(file: BinaryIO, at: int, end: int) -> tuple[int, int]:
    """Return a number of variable length, and the place after it.  Raises ValueError if there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1) if at < end else b""
        if not byte:
            break
        at += 1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value, at
    raise ValueError(f"no number ends before byte {at}")


__all__ = ["ExternalTensor", "external_bytes", "external_files", "external_tensors"]
