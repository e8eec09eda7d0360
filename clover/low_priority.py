"""A successor starts at a low priority, because it shares the cores with the running server.

A process may lower its priority at will, but raise it again only with the capability CAP_SYS_NICE or within
RLIMIT_NICE (systemd: `LimitNICE=0`).  Without either the priority is not lowered: the successor would keep it for good.
If the kernel divides the cores between sessions first, the session's group is lowered as well (`Autogroup`).

The successor's imports alone take a second of a core.  So the first lines of the program lower the priority.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clover.ancestry import descends_from

log = logging.getLogger("clover.server")

NICE = 5
"""A third of the weight of others (sched(7)): less would hold up the start on a busy machine."""
SLOWDOWN = 3.0
"""How much longer a start may take at that weight."""
_CAP_SYS_NICE = 23
_PASSES = 5
_RETRY_S = 0.1
_TRIES = 20
"""The kernel lets users without CAP_SYS_ADMIN write once in 0.1 s, all of them together."""


class Autogroup:
    """The scheduler's group of this process's session (sched(7), "The autogroup feature"), and its nice value.  `proc`
    is where the kernel shows it.

    Where the kernel makes such groups, nice values count only among the processes of one session: a group has the
    weight of a single process, however low theirs are.  So a successor in a session of its own, as another unit or
    under `setsid`, would get as much of a busy core as all of the running server.  The group has a nice value, too,
    which anybody may lower and raise again to 0.

    Control groups with CPU weights come before these groups, and have them without effect."""

    def __init__(self, proc: Path = Path("/proc"), pause: Callable[[float], None] = time.sleep) -> None:
        self._proc = proc
        self._pause = pause
        self._before: int | None = None

    def lower(self, by: int) -> bool:
        """Lower its priority by `by` until `restore`, unless others would suffer for it; return whether it was.

        Others are whatever is in the session, but for what started this process: the shell of a terminal.  The running
        server may be among them; then it has the same group, and is preferred by its own nice value.  If it started
        this process, it is found by `holds` alone."""
        group = self._group(os.getpid())
        if group is None or self._read("sys/kernel/sched_autogroup_enabled") != "1":
            return False
        name, before = group
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


def may_raise(proc: Path = Path("/proc")) -> bool:
    """Return whether this process may raise its priority again to what it is now."""
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    if limit == resource.RLIM_INFINITY or limit >= 20 - os.getpriority(os.PRIO_PROCESS, 0):
        return True
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (proc / "self/status").read_text(encoding="ascii").splitlines()
        held = next(line for line in lines if line.startswith("CapEff:"))
        return bool(int(held.split()[1], 16) >> _CAP_SYS_NICE & 1)
    return False


class LowPriority:
    """The priority of this process and of all that it starts, low from `lower` until `restore`."""

    def __init__(self, group: Autogroup | None = None) -> None:
        self.slowdown = 1.0
        """How much longer things may take now."""
        self._before: int | None = None
        self._group = Autogroup() if group is None else group

    def lower(self) -> bool:
        """Lower it below that of the running server, as far as it can be raised again; return whether it was.  Call it
        before there are threads or children."""
        lowered = self._group.lower(NICE)
        if may_raise():
            self._before = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, 0, min(self._before + NICE, 19))
            lowered = True
        if lowered:
            self.slowdown = SLOWDOWN
        return lowered

    def run_beside(self, running: int) -> None:
        """Raise the session again if the server that is taken over, the process `running`, is in it, which is not known
        when it is lowered; log it if this server starts at full priority."""
        if self._group.holds(running):
            self._group.restore()
            if self._before is None:
                self.slowdown = 1.0
        if self.slowdown == 1.0:
            log.info("this server starts at full priority: it could not raise a lowered priority again")

    def restore(self) -> None:
        """Raise it to what it was, for every thread of this process and of those that descend from it."""
        self._group.restore()
        self.slowdown = 1.0
        before, self._before = self._before, None
        if before is None:
            return
        for _ in range(_PASSES):  # what was forked meanwhile has it from its parent
            raised = [_raise(thread, before) for thread in _threads(os.getpid())]
            if not any(raised):
                return


def _raise(thread: int, priority: int) -> bool:
    """Raise the priority of a thread; return whether it was lower."""
    try:
        if os.getpriority(os.PRIO_PROCESS, thread) <= priority:
            return False
        os.setpriority(os.PRIO_PROCESS, thread, priority)
    except ProcessLookupError:
        return False
    except OSError as error:
        log.warning("a thread stays at a low priority: %s", error.strerror)
        return False
    return True


def _threads(ancestor: int, proc: Path = Path("/proc")) -> Iterator[int]:
    """Yield the threads of a process and of those that descend from it."""
    for name in os.listdir(proc):
        if name.isdecimal() and descends_from(int(name), ancestor, proc):
            with contextlib.suppress(OSError):
                yield from map(int, os.listdir(proc / name / "task"))
