"""A successor gets ready at a low priority, as the running server's requests have the same cores.

A process may lower its priority at will, and raise it again only with the capability CAP_SYS_NICE or within
RLIMIT_NICE (systemd: `LimitNICE=0`).  Without either it is not lowered: it would serve like that for good.  Where the
kernel shares the cores out by session first, its session's group is lowered as well (`clover.autogroup`).

Its imports alone take a second of a core, so it is lowered before them, by the first lines of the program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from clover.ancestry import descends_from
from clover.autogroup import Autogroup

log = logging.getLogger("clover.server")

NICE = 5
"""A third of the weight of others (sched(7)): less would hold up the start on a busy machine."""
SLOWDOWN = 3.0
"""How much longer a start may take at that weight."""
_CAP_SYS_NICE = 23
_PASSES = 5


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

    def beside(self, running: int) -> None:
        """Raise the session again if the server that is taken over, the process `running`, is in it, which is not known
        when it is lowered; log it if this server starts at full priority."""
        if self._group.holds(running):
            self._group.restore()
            if self._before is None:
                self.slowdown = 1.0
        if self.slowdown == 1.0:
            log.info("this server starts at full priority beside the running one: it could not raise it again")

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
