"""How much other programs use the cores while nothing of ours runs on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

_WATCH_S = 0.4
_IDLE_FIELDS = (3, 4)
"""Of a line of /proc/stat: idle and waiting for I/O."""


def jiffies(text: str, cores: Iterable[int]) -> tuple[int, int]:
    """Return busy and total jiffies of `cores` in the text of /proc/stat."""
    wanted = {f"cpu{core}" for core in cores}
    busy = total = 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name in wanted:
            values = [int(field) for field in fields[:8]]  # guest time is counted in user time already
            total += sum(values)
            busy += sum(values) - sum(values[index] for index in _IDLE_FIELDS)
    return busy, total


async def busy_share(cores: Iterable[int], path: Path = Path("/proc/stat"), watch_s: float = _WATCH_S) -> float:
    """Return the share of `cores` that is busy (or stolen by the hypervisor) for the next `watch_s` seconds.

    0 if `path`, the kernel's counters, cannot be read.
    """
    chosen = tuple(cores)
    try:
        before = jiffies(path.read_text(encoding="ascii"), chosen)
        await asyncio.sleep(watch_s)
        after = jiffies(path.read_text(encoding="ascii"), chosen)
    except (OSError, ValueError):
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1]) if after[1] > before[1] else 0.0
