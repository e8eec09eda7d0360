"""Twin of `clover._native.infer`: the same plain form, by a general reader of JSON and checks of what it read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = 8
_STRING = re.compile(rb'"([ !#-\[\]-~]*)"')
_NUMBER = re.compile(rb"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")
_WHOLE = re.compile(rb"(?:0|[1-9][0-9]{0,8})(?![0-9.eE])")
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING_OR_SIGN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{},:]', re.DOTALL)
_WEIGHTS = {b",": 1, b":": 4, b"[": 4, b"{": 4}
_MOST = float(np.finfo(np.float32).max)


def burden(text: bytes, depth: int, weight: int) -> int:
    level = total = 0
    for match in _STRING_OR_SIGN.finditer(text):
        sign = match[0]
        total += 2 if sign[0] == 34 else _WEIGHTS.get(sign, 0)
        if total > weight:
            return 2
        if sign in (b"[", b"{"):
            level += 1
            if level > depth:
                return 1
        elif sign in (b"]", b"}"):
            level -= 1
    return 0


def between(body: bytes, size: int, head: bytes, tail: bytes) -> str | None:
    """Return what stands between `head` and `tail` if it is a JSON string as it stands, in printable ASCII."""
    if not 0 <= size <= len(body):
        raise IndexError(f"{size} of {len(body)} bytes")
    text = body[:size]
    inner = text[len(head) : len(text) - len(tail)]
    if len(text) < len(head) + len(tail) or text != head + inner + tail:
        return None
    return inner.decode() if re.fullmatch(rb"[ !#-\[\]-~]*", inner) else None


class _Other(Exception):
    """The body is not plain."""


class Plain:
    """See the kernel."""

    def __init__(self, name: str, shape: Sequence[int], out: NDArray[np.float32]) -> None:
        if not 1 <= len(shape) < AXES or any(axis < 1 for axis in shape):
            raise ValueError(f"rows of shape {list(shape)} cannot be parsed here")
        if body_of(out) is None:
            raise TypeError("out is a float array of one axis")
        self._name = name.encode()
        self._row = list(shape)
        self._each = math.prod(shape)
        self._out = out

    def parse(self, body: bytes) -> tuple[str, int] | None:
        try:
            return self._document(_Reader(body))
        except _Other:
            return None

    def _document(self, text: _Reader) -> tuple[str, int]:
        seen: dict[bytes, Any] = {}
        for key in text.members():
            if key in seen:
                raise _Other
            if key == b"id":
                seen[key] = text.string()
            elif key == b"inputs":
                text.sign(b"[")
                seen[key] = self._tensor(text)
                text.sign(b"]")
            else:
                raise _Other
        if not text.at_end() or b"inputs" not in seen:
            raise _Other
        numbers, rows = seen[b"inputs"]
        self._out[: len(numbers)] = numbers
        return seen.get(b"id", b"").decode(), rows

    def _tensor(self, text: _Reader) -> tuple[list[float], int]:
        seen: dict[bytes, Any] = {}
        for key in text.members():
            if key in seen:
                raise _Other
            if key in (b"name", b"datatype"):
                seen[key] = text.string()
            elif key == b"shape":
                seen[key] = text.shape()
            elif key == b"data":
                seen[key] = text.data(len(self._row))
            else:
                raise _Other
        shape = seen.get(b"shape")
        if seen.get(b"name") != self._name or seen.get(b"datatype") != b"FP32" or not shape or b"data" not in seen:
            raise _Other
        if shape[1:] != self._row or not 1 <= shape[0] <= len(self._out) // self._each:
            raise _Other
        found, data = seen[b"data"]
        if found is not None and found != shape:
            raise _Other
        if len(data) != shape[0] * self._each:
            raise _Other
        return data, shape[0]


def body_of(out: NDArray[np.float32]) -> memoryview | None:
    """Return a flat view of a float array; None for another."""
    return out.data if out.dtype == np.float32 and out.ndim == 1 else None


class _Reader:
    """A cursor in a body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        match = pattern.match(self._body, self._at)
        if match is None:
            raise _Other
        self._at = match.end()
        return match

    def next(self) -> bytes:
        self._take(_SPACE)
        return self._body[self._at : self._at + 1]

    def sign(self, wanted: bytes) -> None:
        if self.next() != wanted:
            raise _Other
        self._at += 1

    def at_end(self) -> bool:
        return not self.next()

    def string(self) -> bytes:
        self.next()
        return self._take(_STRING)[1]

    def members(self) -> Any:
        """Yield the keys of an object; the caller takes each value."""
        self.sign(b"{")
        while True:
            key = self.string()
            self.sign(b":")
            yield key
            if self.next() != b",":
                self.sign(b"}")
                return
            self._at += 1

    def _items(self) -> Any:
        """Yield once for each item of an array that has one at least."""
        self.sign(b"[")
        while True:
            yield
            if self.next() != b",":
                self.sign(b"]")
                return
            self._at += 1

    def shape(self) -> list[int]:
        found = []
        for _ in self._items():
            self.next()
            found.append(int(self._take(_WHOLE)[0]))
        return found

    def data(self, axes: int) -> tuple[list[int] | None, list[float]]:
        """Return the shape of nested data (None for flat), and the numbers."""
        start = self._at
        self.sign(b"[")
        nested = self.next() == b"["
        self._at = start
        numbers: list[float] = []
        if not nested:
            for _ in self._items():
                numbers.append(self.number())
            return None, numbers
        shape = self._nested(axes, numbers)
        return shape, numbers

    def _nested(self, depth: int, numbers: list[float]) -> list[int]:
        sizes = set()
        count = 0
        for _ in self._items():
            count += 1
            if depth == 0:
                numbers.append(self.number())
            else:
                sizes.add(tuple(self._nested(depth - 1, numbers)))
        if len(sizes) > 1:
            raise _Other
        return [count, *(sizes.pop() if sizes else ())]

    def number(self) -> float:
        self.next()
        match = self._take(_NUMBER)
        negative, whole, after, sign, power = match.groups()
        digits = whole + (after or b"")
        mantissa = int(digits)
        if len(digits.lstrip(b"0")) > 18 or len(after or b"") > 40 or len(power or b"") > 3:
            raise _Other
        exponent = int((sign or b"") + (power or b"0")) - len(after or b"")
        if mantissa > 2**53 or (mantissa and abs(exponent) > 22):
            raise _Other
        found = float(Fraction(mantissa) * Fraction(10) ** exponent) if mantissa else 0.0
        if found > _MOST:
            raise _Other
        if negative and not (mantissa == 0 and after is None and power is None):
            found = -found
        return float(np.float32(found))
