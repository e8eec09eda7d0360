"""Whole servers in tests: embedded ones, what they leave behind, and waiting for a condition."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import clover
from clover.profiling.options import CompileLimits, Effort

SHORT = Effort(
    quick=True,
    samples=10,
    least_s=0.03,
    most_s=0.3,
    score_s=4.0,
    base_s=0.4,
    rounds=2,
    compiling=CompileLimits(cpu_s=0.0),
)
"""What a first start measures in a third of its time: for tests that are not about what it finds."""

ROOT = Path(__file__).parents[2]
FAMILIES = ROOT / "tests" / "families"


def family(name: str) -> str:
    return str(FAMILIES / name)


def serve(name: str, cache: Path, **settings: Any) -> clover.Server:
    """A server pinned to one variant, which needs no profile to start."""
    chosen = {"variant": "fast", "http": False, "port": 0, "carbon": "static:300", "energy_meter": "modelled"}
    return clover.Server(family(name), cache_dir=str(cache), **{**chosen, **settings})


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`, and fail where the loop had anything to complain about."""
    complaints: list[Any] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        runner.run(main)
    assert not complaints


def children() -> set[int]:
    """Every process below this one."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        above = waiting.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found.update(below)
        waiting.extend(below)
    return found


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Any, within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about in time"
        await asyncio.sleep(0.02)
