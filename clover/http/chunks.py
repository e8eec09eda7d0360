"""The chunked transfer coding, read strictly and with bounds.

llhttp's own decoder has no bound on chunks, extensions or trailers, so this one replaces it: a size is 1-16 hex digits,
every line ends in CRLF, data is followed by CRLF and nothing else, trailers are checked and dropped.
"""

from __future__ import annotations

from typing import Any, Protocol

from clover.http.heads import TOKEN, MalformedError

CHUNKS = 65_536
EXTENSION_BYTES = 16 << 10
TRAILER_BYTES = 8 << 10

_HEX = b"0123456789abcdefABCDEF"
_FIELD_TEXT = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_SIZE, _DATA, _DATA_END, _TRAILER = range(4)


class Receiver(Protocol):
    """Takes a body as it comes.  `full`: no more should be read before it takes less; its length is the bytes that it
    holds."""

    @property
    def full(self) -> bool: ...

    def __len__(self) -> int: ...

    def __iadd__(self, data: memoryview) -> Receiver: ...

    def abort(self) -> None:
        """Forget the body, which will not be whole."""


class SizedDecoder:
    """Gives a `receiver` the body of `size` bytes, with the methods of `ChunkDecoder`."""

    __slots__ = ("_left", "body")

    def __init__(self, size: int, receiver: Receiver) -> None:
        self.body: Any = receiver
        self._left = size

    @property
    def done(self) -> bool:
        """Whether all of it came."""
        return not self._left

    def feed(self, data: bytes, pos: int) -> int:
        """Take bytes of `data` from `pos` on; return the position after the last one taken."""
        end = min(len(data), pos + self._left)
        if end > pos:
            self.body += memoryview(data)[pos:end]
            self._left -= end - pos
        return end


class ChunkDecoder:
    """Decodes one chunked body of at most `limit` bytes: feed it until `done`; the body grows in `body`, which may be a
    `Receiver`.

    `too_large` is the error of a longer one.
    """

    __slots__ = (
        "_chunks",
        "_extension_bytes",
        "_left",
        "_limit",
        "_line",
        "_size",
        "_state",
        "_too_large",
        "_trailer_bytes",
        "body",
        "done",
    )

    def __init__(self, limit: int, too_large: str, receiver: Receiver | None = None) -> None:
        self.body: Any = bytearray() if receiver is None else receiver
        self._size = 0
        self.done = False
        self._limit = limit
        self._too_large = too_large
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._chunks = 0
        self._extension_bytes = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes, pos: int) -> int:
        """Take bytes of `data` from `pos` on; return the position after the last one taken.  Raises MalformedError."""
        size = len(data)
        while pos < size and not self.done:
            if self._state == _DATA:
                taken = min(self._left, size - pos)
                self.body += memoryview(data)[pos : pos + taken]
                self._left -= taken
                pos += taken
                if not self._left:
                    self._state = _DATA_END
                continue
            newline = data.find(b"\n", pos)
            if newline < 0:
                self._line += data[pos:]
                self._check_partial()
                return size
            line = self._line + data[pos : newline + 1]
            self._line = b""
            pos = newline + 1
            self._take_line(line)
        return pos

    def _check_partial(self) -> None:
        """Refuse a line that has not ended yet, but cannot become acceptable; raises MalformedError."""
        if self._state == _DATA_END:
            if self._line != b"\r":
                raise MalformedError(400, "a chunk is not followed by an empty line")
        elif self._state == _SIZE:
            if len(self._line) + self._extension_bytes > EXTENSION_BYTES + 18:
                raise MalformedError(413, "the chunk extensions are too large")
            if self._line.partition(b";")[0].translate(None, _HEX + b"\r \t"):
                raise MalformedError(400, "a chunk size is not valid")
        elif len(self._line) + self._trailer_bytes > TRAILER_BYTES:
            raise MalformedError(413, "the trailers are too large")

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or line.count(b"\r") != 1:
            raise MalformedError(400, "a line of the chunked body does not end in CRLF")
        text = line[:-2]
        if self._state == _SIZE:
            self._take_size(text)
        elif self._state == _DATA_END:
            if text:
                raise MalformedError(400, "a chunk is not followed by an empty line")
            self._state = _SIZE
        elif text:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > TRAILER_BYTES:
                raise MalformedError(413, "the trailers are too large")
            name, colon, value = text.partition(b":")
            if not colon or not name or name.translate(None, TOKEN) or value.translate(None, _FIELD_TEXT):
                raise MalformedError(400, "a trailer field is not valid")
        else:
            self.done = True

    def _take_size(self, text: bytes) -> None:
        digits, semicolon, extension = text.partition(b";")
        if semicolon:
            digits = digits.rstrip(b" \t")
            self._extension_bytes += len(extension) + 1
            if self._extension_bytes > EXTENSION_BYTES:
                raise MalformedError(413, "the chunk extensions are too large")
            if extension.translate(None, _FIELD_TEXT):
                raise MalformedError(400, "a chunk extension is not valid")
        if not 0 < len(digits) <= 16 or digits.translate(None, _HEX):
            raise MalformedError(400, "a chunk size is not valid")
        self._left = int(digits, 16)
        if not self._left:
            self._state = _TRAILER
            return
        self._chunks += 1
        if self._chunks > CHUNKS:
            raise MalformedError(413, "the request body has too many chunks")
        self._size += self._left
        if self._size > self._limit:
            raise MalformedError(413, self._too_large)
        self._state = _DATA
