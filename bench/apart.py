"""A bench apart from other work of its machine: a session of its own, a weight, and what the others used meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common import busy_seconds

GROUPS = Path("/sys/fs/cgroup")
LOADED_CORES = 0.1
"""A run is loaded if other work used more than this."""
_USUAL_SHARES, _USUAL_WEIGHT = 1024, 100
"""What other groups have, by cgroup v1 and v2."""


def own_session() -> None:
    """Go on in a session of its own; the process that called waits for that one and ends as it does.

    Where the kernel schedules by session, a load generator would otherwise share one server's weight with all that was
    started from the same terminal, and its delays would look like the server's.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        return
    while True:
        try:
            _, status = os.waitpid(child, 0)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGINT)
        else:
            sys.exit(os.waitstatus_to_exitcode(status))


@contextlib.contextmanager
def preferred(weight: float, root: Path = GROUPS) -> Iterator[None]:
    """Have the kernel prefer this process and those that it starts to all other work, `weight` to 1; 0: no.

    Raises OSError without the right to make a control group."""
    if not weight:
        yield
        return
    over = root / "cpu" if (root / "cpu").is_dir() else root
    group = over / f"clover-bench-{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.shares").exists():
            (group / "cpu.shares").write_text(str(round(weight * _USUAL_SHARES)))
        else:
            (group / "cpu.weight").write_text(str(round(weight * _USUAL_WEIGHT)))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (over / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


class OtherWork:
    """What processes other than this one and its children used since it was made."""

    def __init__(self) -> None:
        self._busy_s, self._own_s, self._since_s = busy_seconds(), _own_seconds(), time.monotonic()

    def report(self, weight: float = 0.0) -> dict[str, Any]:
        """Return the cores that others used, the load average, and what that makes of the run; children must have
        ended."""
        own_s, seconds = _own_seconds() - self._own_s, time.monotonic() - self._since_s
        cores = max(0.0, (busy_seconds() - self._busy_s - own_s) / seconds)
        return {
            "cores used by other work": round(cores, 2),
            "load average (1, 5, 15 minutes)": " ".join(f"{one:.1f}" for one in os.getloadavg()),
            "run": label(cores, weight),
        }


def label(cores: float, weight: float) -> str:
    """Return what a run is that others used `cores` of during."""
    if cores <= LOADED_CORES:
        return "quiet"
    return f"loaded, preferred {weight:g} to 1" if weight else "loaded"


def _own_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)
