"""Zygotes forked from a process that has imported torch, where a test is about something else than how they start.

A zygote of its own costs every server more than a second of CPU time, most of it for the import of torch.  A `Nursery`
imports once and forks zygotes, each of which becomes a child of the process that asked, as if that had started it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import threading
from typing import Any

from clover import backends
from clover.backends import child_environment
from clover.runtime.workers.zygote_link import ZygoteLink
from clover.worker import frames, zygote
from tests.support.forks import Forks

_PR_SET_CHILD_SUBREAPER = 36


def fork(line: socket.socket) -> int:
    """Fork a zygote that obeys `line`, its only descriptor beyond the standard streams; its pid.  The caller has one
    thread, and torch."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        fd = os.dup2(line.fileno(), 3, inheritable=True)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        code = zygote.main(fd)
    finally:
        os._exit(code)


class Forked:
    """What `ZygoteLink` needs of a process, for a child that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def linked(pid: int, line: socket.socket) -> ZygoteLink:
    """The server's end of a forked zygote."""
    line.setblocking(False)
    process: Any = Forked(pid)
    return ZygoteLink(process, line)


def adopt() -> None:
    """Fork zygotes for the servers of this process from what it is now: it has one thread, torch, and nothing of NVML
    yet."""
    ZygoteLink.launch = Nursery(Forks.here()).launch  # type: ignore[method-assign]


IMPORTED = ("torch", *backends.get("eager").imports, "clover.worker.main")
"""What zygotes and workers of the backend `eager` import."""


def import_all() -> None:
    """Import that, for forks of this process."""
    for name in IMPORTED:
        importlib.import_module(name)


def imported() -> Forks:
    """Start a process that has imported it, in the environment of a zygote."""
    return Forks(*IMPORTED, __name__, environ=child_environment())


ZYGOTE = f"from {__name__} import fork_orphan\nfork_orphan()"


def fork_orphan() -> None:
    """Fork a zygote that obeys the socket on standard input, print its pid, and end: this process is its parent."""
    print(fork(socket.socket(fileno=os.dup(0))))


class Nursery:
    """A process that forks zygotes for this one."""

    def __init__(self, forks: Forks) -> None:
        self.forks = forks
        self._lock = threading.Lock()

    def launch(self) -> ZygoteLink:
        """In the place of `ZygoteLink.launch`; from any thread, as servers have loops of their own."""
        with self._lock:
            return self._launch()

    def _launch(self) -> ZygoteLink:
        ours, theirs = frames.socket_pair()
        read, write = os.pipe()
        with theirs, open(read) as printed:
            # The zygote's parent ends at once; until then, orphans below this process become its children.
            _inherit_orphans(True)
            try:
                parent = self.forks.start(ZYGOTE, (), child_environment(), (theirs.fileno(), write, 2))
                self.forks.wait(parent)
            except BaseException:
                ours.close()
                raise
            finally:
                os.close(write)
                _inherit_orphans(False)
            return linked(int(printed.readline()), ours)

    def close(self) -> None:
        self.forks.close()


def _inherit_orphans(on: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
