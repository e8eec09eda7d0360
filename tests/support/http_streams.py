"""Streams of HTTP/1.1 read from outside: the answers in one, and how many requests another holds."""

from __future__ import annotations

import re

from tests.support.http_fakes import Answer


def parse(data: bytes) -> list[Answer]:
    """Return the answers in a stream, which must hold nothing else; those to HEAD have no body."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"no whole answer: {head[:80]!r}"
        lines = head.decode("latin-1").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [ -~]*", lines[0]), lines[0]
        status = int(lines[0][9:12])
        fields: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in fields, line
            fields[name.lower()] = value
        size = 0 if status == 100 else int(fields["content-length"])
        bodiless = not data or data.startswith(b"HTTP/1.1 ")  # no body of ours begins so
        size = 0 if bodiless else size
        assert len(data) >= size, f"an answer says {size} bytes and has {len(data)}"
        answers.append(Answer(status, fields, data[:size]))
        data = data[size:]
    return answers


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.I)
_LAST_CHUNK = re.compile(rb"\n0+[ \t]*(?:;[^\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*(?=\r\n)", re.I)


def requests_in(stream: bytes) -> int:
    """Return at most how many requests a stream holds wholly, read as leniently as anybody could."""
    count = at = 0
    while True:
        while stream.startswith(b"\r\n", at):
            at += 2
        end = stream.find(b"\r\n\r\n", at)
        if end < 0:
            return count
        head, at = stream[at : end + 2], end + 4
        if _CHUNKED.search(head):
            last = _LAST_CHUNK.search(stream, at - 1)  # it may be the first one, too: with the line's end before it
            if last is None:
                return count
            at = last.end()
        elif (length := _LENGTH.search(head)) is not None:
            at += int(length[1])
            if at > len(stream):
                return count
        count += 1
