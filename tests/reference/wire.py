"""Sending, copying and putting together, in plain Python."""

from __future__ import annotations

import json
import os
import socket
import time


def send(fd: int, data: bytes) -> int:
    """How many bytes of `data` the socket `fd` took now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as taken:
            return taken.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return 0


def part(data: bytes, start: int, stop: int) -> bytes:
    """`data[start:stop]`, all of it."""
    if not 0 <= start <= stop <= len(data):
        raise IndexError(f"{start} to {stop} of {len(data)} bytes")
    return data[start:stop]


def head_end(data: bytes, start: int) -> int:
    """Where the first CRLF CRLF from `start` on ends."""
    if not 0 <= start <= len(data):
        raise IndexError(f"{start} of {len(data)} bytes")
    found = data.find(b"\r\n\r\n", start)
    return found + 4 if found >= 0 else -1


def cut(page: bytearray, size: int) -> bytes:
    """The first `size` bytes of `page`."""
    if not 0 <= size <= len(page):
        raise IndexError(f"{size} bytes of {len(page)}")
    return bytes(page[:size])


def joined(head: list[bytes], parts: list[bytes]) -> bytes:
    """All bytes of `head`, then all of `parts`."""
    if any(type(part) is not bytes for part in (*head, *parts)):
        raise TypeError("no bytes")
    return b"".join([*head, *parts])


def quoted(text: str) -> bytes | None:
    """`text` as a string of JSON where it is as it stands."""
    found = json.dumps(text)
    return found.encode() if found == f'"{text}"' and "\x7f" not in text else None


def numbered(prefix: bytes, number: int) -> bytes:
    """`prefix` and `number` in hexadecimal."""
    if type(prefix) is not bytes:
        raise TypeError("no bytes")
    if not 0 <= number < 1 << 64:
        raise OverflowError("more than 64 bits")
    return b"%b%x" % (prefix, number)


def monotonic_ns() -> int:
    """The monotonic clock."""
    return time.monotonic_ns()
