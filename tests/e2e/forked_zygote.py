"""Zygotes forked from a process that has imported torch, where a test is about something else than how they start.

A zygote of its own costs every server more than a second of CPU time, most of it for the import of torch.  A `Nursery`
imports once and forks zygotes, each of which becomes a child of the process that asked, as if that had started it.

    python -m tests.e2e.forked_zygote FD     the nursery's process, in the environment of a zygote
"""

from __future__ import annotations

import array
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from typing import Any

from clover import backends
from clover.backends import child_environment
from clover.runtime.workers.zygote_link import ZygoteLink
from clover.worker import frames, zygote

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
    """Fork a zygote for the first server of this process, which has one thread, torch, and nothing of NVML yet."""
    ours, theirs = frames.socket_pair()
    with theirs:
        zygote = fork(theirs)
    ZygoteLink.launch = partial(linked, zygote, ours)  # type: ignore[method-assign]


def import_all() -> None:
    """Import what zygotes and workers of the backend `eager` import, for forks of this process."""
    for name in ("torch", *backends.get("eager").imports, "clover.worker.main"):
        importlib.import_module(name)


class Nursery:
    """A process that forks zygotes for this one."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._line, theirs = frames.socket_pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=child_environment(),
                pass_fds=(theirs.fileno(),),
            )

    def launch(self) -> ZygoteLink:
        """In the place of `ZygoteLink.launch`."""
        try:
            return self._launch()
        except (BrokenPipeError, ValueError):
            # Its line was closed under its number, by a test that closed a descriptor twice: that is a fault of that
            # test, and not of all that follow in this process.
            print(f"the nursery ended with status {self._process.wait(5)}: another is started", file=sys.stderr)
            self._line.detach()  # the number may be somebody else's by now
            self._start()
            return self._launch()

    def _launch(self) -> ZygoteLink:
        ours, theirs = frames.socket_pair()
        with theirs:
            # The zygote's parent ends at once; until then, orphans below this process become its children.
            _inherit_orphans(True)
            try:
                socket.send_fds(self._line, [b"?"], [theirs.fileno(), 2])
                (pid,) = array.array("i", self._line.recv(4))
            except BaseException:
                ours.close()
                raise
            finally:
                _inherit_orphans(False)
        return linked(pid, ours)

    def close(self) -> None:
        self._line.close()
        self._process.wait()


def _inherit_orphans(on: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def main(fd: int) -> None:
    """Fork a zygote for each message, which brings its socket and its standard error."""
    import_all()
    line = socket.socket(fileno=fd)
    while True:
        _, fds, _, _ = socket.recv_fds(line, 1, 2)
        if not fds:
            return
        read, write = os.pipe()
        between = os.fork()
        if not between:
            os.dup2(fds[1], 2)
            os.write(write, array.array("i", [fork(socket.socket(fileno=fds[0]))]).tobytes())
            os._exit(0)
        os.waitpid(between, 0)  # now the zygote has its parent
        line.send(os.read(read, 4))
        frames.close_all((read, write, *fds))


if __name__ == "__main__":
    main(int(sys.argv[1]))
