"""The scheduler's group of a session (sched(7), "The autogroup feature"), and its nice value.

Where the kernel makes such groups, nice values count only among the processes of one session: a group has the weight
of a single process, however low theirs are.  So a successor in a session of its own, as another unit or under
`setsid`, would get as much of a busy core as all of the running server.  The group has a nice value, too, which
anybody may lower and raise again to 0.

Control groups with CPU weights come before these groups, and have them without effect.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clover.ancestry import descends_from

log = logging.getLogger("clover.server")

_RETRY_S = 0.1
_TRIES = 20
"""The kernel lets users without CAP_SYS_ADMIN write once in 0.1 s, all of them together."""


class Autogroup:
    """The group of this process's session; `proc` is where the kernel shows it."""

    def __init__(self, proc: Path = Path("/proc"), pause: Callable[[float], None] = time.sleep) -> None:
        self._proc = proc
        self._pause = pause
        self._before: int | None = None

    def lower(self, by: int) -> bool:
        """Lower its priority by `by` until `restore`, unless others would suffer for it; return whether it was.

        Others are whatever is in the session, but for what started this process: the shell of a terminal.  The running
        server may be among them; then it has the same group, and is preferred by its own nice value.  If it started
        this process, it is found by `holds` alone."""
        own = self._group(os.getpid())
        if own is None or self._read("sys/kernel/sched_autogroup_enabled") != "1":
            return False
        name, before = own
        if before < 0:
            return False  # an administrator raised it, and what is below 0 takes a capability to write again
        if any(self._others(name)):
            return False
        if not self._write(min(before + by, 19)):
            return False
        self._before = before
        return True

    def holds(self, pid: int) -> bool:
        """Return whether a process is in the group of this one."""
        own, other = self._group(os.getpid()), self._group(pid)
        return own is not None and other is not None and own[0] == other[0]

    def restore(self) -> None:
        """Raise its priority to what it was."""
        before, self._before = self._before, None
        if before is not None and not self._write(before):
            log.warning("this session stays at a low priority: write %d to /proc/%d/autogroup", before, os.getpid())

    def _others(self, name: str) -> Iterator[int]:
        """Yield the processes of the group `name` that neither started this one nor were started by it."""
        own = os.getpid()
        for entry in os.listdir(self._proc):
            if not entry.isdecimal() or (group := self._group(int(entry))) is None or group[0] != name:
                continue
            pid = int(entry)
            if not descends_from(pid, own, self._proc) and not descends_from(own, pid, self._proc):
                yield pid

    def _group(self, pid: int) -> tuple[str, int] | None:
        """Return the name and the nice value of a process's group; None if it has ended, or has none."""
        words = self._read(f"{pid}/autogroup").split()  # /autogroup-58 nice 0
        return (words[0], int(words[2])) if len(words) == 3 else None

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    def _write(self, nice: int) -> bool:
        for _ in range(_TRIES):
            try:
                (self._proc / f"{os.getpid()}/autogroup").write_text(str(nice), encoding="ascii")
                return True
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    return False  # a process that hides its memory may not write there, nor one in a sandbox
            self._pause(_RETRY_S)
        return False
