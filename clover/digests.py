"""Digests of files.  A file is read again only if it changed: weights are large, and a server asks at every swap.

Files of a family are opened without waiting (`open_at_once`): another process may hold a lease on them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from io import BufferedReader
from pathlib import Path

_YOUNG_NS = 2_000_000_000
"""A file that was changed so recently may change again without its times showing it."""

_known: dict[str, tuple[tuple[int, ...], str]] = {}


def open_at_once(path: str | Path) -> BufferedReader:
    """Open a file for reading.  Raises OSError, also if another process holds a lease on it, which would hold up the
    reader for as long as the kernel lets it (45 s).
    """
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except BlockingIOError as error:
        held = "another process holds a lease on it (fcntl, F_SETLEASE): try again within a minute"
        raise OSError(errno.EAGAIN, held, str(path)) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, hexadecimal.  Raises OSError if it cannot be read."""
    now_ns = time.time_ns()  # before anything is read
    name = os.path.abspath(path)
    entry = _known.get(name)
    if entry is not None and entry[0] == _signature(os.stat(path)):
        return entry[1]
    with open_at_once(path) as file:
        before = _signature(os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _signature(os.fstat(file.fileno()))
    if before == after and now_ns - max(before[-2:]) > _YOUNG_NS:
        _known[name] = (before, digest)
    return digest


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


__all__ = ["open_at_once", "sha256_of"]
