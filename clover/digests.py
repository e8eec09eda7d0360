"""Digests of files, read again only where a file changed: weights are large, and a server asks at every swap."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

_YOUNG_NS = 2_000_000_000
"""A file that was changed so lately may be changed again without its times showing it."""

_known: dict[str, tuple[tuple[int, ...], str]] = {}


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, hexadecimal.  Raises OSError where it cannot be read."""
    found = os.stat(path)
    signature = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    name = os.path.abspath(path)
    known = _known.get(name)
    if known is not None and known[0] == signature:
        return known[1]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _YOUNG_NS:
        _known[name] = (signature, digest)
    return digest


__all__ = ["sha256_of"]
