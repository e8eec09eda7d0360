"""Content codings: decompress request bodies up to a bound, compress answers for clients that ask for it."""

from __future__ import annotations

import zlib

from clover.errors import BadRequest, TooLarge

_WINDOW = {"gzip": 31, "deflate": 15}
_SMALLEST = 128
"""Below this size a compressed answer is not smaller."""


def inflate(coding: str, body: bytes | bytearray, limit: int) -> bytes:
    """Return the decoded body, at most `limit` bytes.

    `coding` is "gzip" or "deflate" (zlib-wrapped, RFC 9110).  Raises TooLarge, or BadRequest if the data is damaged,
    cut short or followed by more.
    """
    decoder = zlib.decompressobj(_WINDOW[coding])
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest(f"the body is not valid {coding} data") from None
    if len(plain) > limit:
        raise TooLarge("the request body is too large once decoded")
    if not decoder.eof or decoder.unused_data:
        raise BadRequest(f"the body is not valid {coding} data")
    return plain


def deflate(coding: str, parts: list[bytes]) -> bytes | None:
    """Return the parts joined and compressed; None if they are too small for that to save anything."""
    if sum(map(len, parts)) < _SMALLEST:
        return None
    encoder = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*(encoder.compress(part) for part in parts), encoder.flush()])
