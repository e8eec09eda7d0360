"""Forms of uploads (multipart/form-data): the first byte says in which pieces the rest comes.

However it is cut, a form is refused with a text of ours, or has the same fields and the same file.
"""

from __future__ import annotations

from clover.errors import BadRequest
from clover.http.multipart import FormReader

INSTRUMENTED = ("clover.http.multipart",)

DICTIONARY = (
    *(b"--X", b"\r\n--X", b"\r\n--X--", b"\r\n\r\n", b"\r\n", b"--"),
    *(b"Content-Disposition: form-data;", b'; name="file"', b'; filename="a"', b"name=purpose", b'"', b"\\"),
)


def seeds() -> list[bytes]:
    """Return a form of each kind, in pieces of several sizes."""
    purpose = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n\r\n-\r\n--Y\r\n'
    ends = b"--X--\r\n", b"--X--", b"--X"
    bodies = (*(purpose + file + end for end in ends), file + purpose + ends[0], file + file + ends[0], b"--\r\n")
    return [bytes([size]) + body for body in bodies for size in (0, 1, 7)]


def check(data: bytes) -> str:
    """Read one form, whole and in pieces."""
    size, body = (data[:1] or b"\0")[0], data[1:]
    whole, pieces = _read(body, len(body) or 1), _read(body, size or 64)
    assert whole == pieces, (whole, pieces)
    return whole


def _read(body: bytes, size: int) -> str:
    taken: list[bytes] = []
    reader = FormReader(taken.append)
    try:
        for at in range(0, len(body), size):
            reader.feed(body[at : at + size])
    except BadRequest as error:
        return f"refused: {error.message}"
    assert all(len(name) + len(value) < 6000 for name, value in reader.fields.items())
    if not reader.complete:
        return "not complete"
    return repr((sorted(reader.fields.items()), reader.filename, b"".join(taken)))
