"""Sending and copying, in plain Python."""

from __future__ import annotations

import os
import socket


def send(fd: int, data: bytes) -> int:
    """How many bytes of `data` the socket `fd` took now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as taken:
            return taken.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return 0


def cut(page: bytearray, size: int) -> bytes:
    """The first `size` bytes of `page`."""
    if not 0 <= size <= len(page):
        raise IndexError(f"{size} bytes of {len(page)}")
    return bytes(page[:size])
