"""Content codings: decompress request bodies in pieces up to a bound, compress answers for clients that ask for it.

A few kilobytes may decompress to a thousand times as much, or compute for long and yield nothing.  So each piece is
bounded in bytes and in time, and the event loop does other work between two pieces.
"""

from __future__ import annotations

import zlib

from clover.errors import BadRequest, TooLarge

PIECE_IN_BYTES = 32 << 10
PIECE_OUT_BYTES = 256 << 10

_WINDOW = {"gzip": 31, "deflate": 15}
_SMALLEST = 128
"""Below this size a compressed answer is not smaller."""
_LARGEST = 1 << 20
"""Above this size compressing an answer would delay all others."""


class Inflation:
    """One body being decompressed: call `step` until it returns True; then all of it is in `plain`.

    `coding` is "gzip" or "deflate" (zlib-wrapped, RFC 9110).  `too_large` is the error of a body that comes to more
    than `limit` bytes.
    """

    __slots__ = ("_at", "_body", "_coding", "_decoder", "_limit", "_rest", "_too_large", "plain")

    def __init__(self, coding: str, body: bytes, limit: int, too_large: str) -> None:
        self.plain = bytearray()
        self._coding = coding
        self._decoder = zlib.decompressobj(_WINDOW[coding])
        self._body = body
        self._at = 0
        self._rest = b""
        self._limit = limit
        self._too_large = too_large

    def step(self) -> bool:
        """Decompress one piece; return whether it was the last.

        Raises TooLarge, or BadRequest if the data is damaged, cut short or followed by more.
        """
        decoder = self._decoder
        given = self._rest
        if not given:
            given = self._body[self._at : self._at + PIECE_IN_BYTES]
            self._at += len(given)
        most = min(PIECE_OUT_BYTES, self._limit - len(self.plain) + 1)
        try:
            made = decoder.decompress(given, most)
        except zlib.error:
            raise self._report_damage() from None
        self._rest = decoder.unconsumed_tail
        self.plain += made
        if len(self.plain) > self._limit:
            raise TooLarge(f"{self._too_large}; this one has more once decompressed")
        if decoder.eof:
            if decoder.unused_data or self._at < len(self._body):
                raise self._report_damage()
            return True
        if not given and not made:
            raise self._report_damage()
        return False

    def _report_damage(self) -> BadRequest:
        return BadRequest(f"the body is not valid {self._coding} data")


def deflate(coding: str, parts: list[bytes]) -> bytes | None:
    """Return the parts joined and compressed; None if they are too small for that to save anything, or so large that
    others would wait for it."""
    if not _SMALLEST <= sum(map(len, parts)) <= _LARGEST:
        return None
    encoder = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(encoder.compress(part) for part in parts), encoder.flush()])
