"""Which process was started by which."""

from __future__ import annotations

from pathlib import Path


def descends_from(pid: int, ancestor: int, proc: Path = Path("/proc")) -> bool:
    """Return whether `pid` is `ancestor` or one of its children, their children and so on; False if it has ended."""
    for _ in range(64):
        if pid == ancestor:
            return True
        try:
            stat = (proc / str(pid) / "stat").read_bytes()
        except OSError:
            return False
        # The second field is the command, which may hold spaces and brackets of its own.
        pid = int(stat.rpartition(b") ")[2].split()[1])
        if pid <= 1 < ancestor:
            return False
    return False
