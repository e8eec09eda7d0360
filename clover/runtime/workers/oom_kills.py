"""Whether the kernel's out-of-memory killer has ended a process: a worker that it ends only shows SIGKILL.

The kernel counts for each control group (version 2) the processes in it that were ended for want of memory, and for the
whole machine.  Which process it was is said in the kernel's log only, which needs rights; a SIGKILL that the server did
not send, with the count higher than before, is taken for one.
"""

from __future__ import annotations

from pathlib import Path

_SELF = "proc/self/cgroup"
_MOUNT = "sys/fs/cgroup"
_WHOLE = "proc/vmstat"
_FIELD = "oom_kill"


class OomKills:
    """The count of processes that were ended for want of memory, under `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [root / _WHOLE]
        if own := _own_group(root):
            self._files.insert(0, root / _MOUNT / own / "memory.events")
        self._count = self._read()

    def risen(self) -> bool:
        """Return whether the count is higher than when this was last asked, or at the beginning."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        for path in self._files:
            try:
                lines = path.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, count = line.partition(" ")
                if name == _FIELD and count.isdecimal():
                    return int(count)
        return 0


def _own_group(root: Path) -> str:
    """Return the path of this process's control group below the mount of version 2; empty if there is none."""
    try:
        lines = (root / _SELF).read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::").lstrip("/") or "." for line in lines if line.startswith("0::")), "")
