"""The memory that processes hold: their own pages, and their part of those that they share (PSS)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def held_bytes(pids: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Return the bytes that these processes hold together; one that is gone holds none.  Takes milliseconds a
    process."""
    return sum(_pss(proc / str(pid) / "smaps_rollup") for pid in pids)


def _pss(file: Path) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
