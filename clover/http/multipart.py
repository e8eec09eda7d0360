"""The body of an upload (`multipart/form-data`, RFC 7578), read as it comes: bytes in, fields and a file's bytes out.

A body begins with its delimiter, as those of all clients do, so the first line says what that is.  Everything but the
file is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from clover.errors import BadRequest

_MOST_BOUNDARY = 70
_BOUNDARY = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'()+_,-./:=? "
_MOST_PARTS = 16
_HEAD_BYTES = 4096
_FIELD_BYTES = 1024
_PARAMETER = re.compile(r';[ \t]*(name|filename)=(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)
_NO_FORM = "the body is no multipart/form-data with the fields purpose and file"
_FIRST, _HEAD, _BODY, _AFTER, _END = range(5)


class FormReader:
    """Reads one body.  `take` is called with the bytes of the part `file`; the other parts are in `fields`.  Raises
    BadRequest."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """The name that the client gave the file; None before a file came."""
        self._take = take
        self._state = _FIRST
        self._rest = b""
        self._delimiter = b""
        self._parts = 0
        self._field = ""
        self._value = b""

    @property
    def complete(self) -> bool:
        """Whether the closing delimiter came."""
        return self._state == _END

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        data = self._rest + data
        self._rest = b""
        while data and self._state != _END:
            step = (self._first, self._head, self._body, self._after)[self._state]
            left = step(data)
            if left is None:
                return
            data = left

    def _first(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n")
        line = data[:end] if end >= 0 else data.removesuffix(b"\r")
        begins = b"--".startswith(line[:2]) and len(line) <= 2 + _MOST_BOUNDARY and not line.translate(None, _BOUNDARY)
        if not begins or (end >= 0 and len(line) < 3):
            raise BadRequest(_NO_FORM)
        if end < 0:
            self._rest = data
            return None
        self._delimiter = b"\r\n" + line
        self._state = _HEAD
        return data[end + 2 :]

    def _head(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end > _HEAD_BYTES or (end < 0 and len(data) > _HEAD_BYTES):
            raise BadRequest("the head of a part is too large")
        if end < 0:
            self._rest = data
            return None
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise BadRequest(f"the form has more than {_MOST_PARTS} parts")
        self._begin(data[:end].decode("utf-8", "replace"))
        self._state = _BODY
        return data[end + 4 :]

    def _begin(self, head: str) -> None:
        """Begin the part of these header fields."""
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                found = {match[1].lower(): match[2] or match[3] or "" for match in _PARAMETER.finditer(value)}
                self._field, self._value = found.get("name", ""), b""
                if self._field == "file":
                    if self.filename is not None:
                        raise BadRequest("the form has more than one file")
                    self.filename = found.get("filename", "")
                elif self._field in self.fields:
                    raise BadRequest(_NO_FORM)
                return
        raise BadRequest(_NO_FORM)

    def _body(self, data: bytes) -> bytes | None:
        end = data.find(self._delimiter)
        if end >= 0:
            self._add(data[:end])
            if self._field != "file":
                self.fields[self._field] = self._value.decode("utf-8", "replace")
            self._state = _AFTER
            return data[end + len(self._delimiter) :]
        kept = len(data) - len(self._delimiter) + 1  # what may be the beginning of a delimiter waits
        if kept > 0:
            self._add(data[:kept])
            data = data[kept:]
        self._rest = data
        return None

    def _add(self, data: bytes) -> None:
        if self._field == "file":
            if data:
                self._take(data)
            return
        self._value += data
        if len(self._value) > _FIELD_BYTES:
            raise BadRequest(f"a field of the form has at most {_FIELD_BYTES} bytes")

    def _after(self, data: bytes) -> bytes | None:
        """Read what follows a delimiter: another part, or the end of the body."""
        if len(data) < 2:
            self._rest = data
            return None
        if data[:2] not in (b"--", b"\r\n"):
            raise BadRequest(_NO_FORM)
        self._state = _END if data[:2] == b"--" else _HEAD
        return data[2:]
