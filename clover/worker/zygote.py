"""The zygote: `python -m clover.worker.zygote FD`, a process that has imported torch once and forks workers.

A fork of it is a worker within milliseconds and shares its memory; a fresh process would import for seconds.
That is only safe while it has one thread: a lock that another thread holds during a fork stays locked in the child for
ever.  So it is started with every thread pool off (`backends.child_environment`), touches no GPU, computes nothing,
and counts its threads before each fork.

A fork still takes ten milliseconds and more.  So, after it has had orders and then none for a moment, it forks a
*spare*, which waits for an order and becomes the next worker.  (That costs two MiB; the rest is shared.)  The spare
ends when its socket does, however the zygote ends.  Nothing else is forked while there is a spare, because every child
would hold a copy of the zygote's end of that socket.

What a backend needs beyond torch (`imports`) is imported here before the first worker of that backend, which saves tens
of milliseconds for each later one.  A fork tries the import first: if it fails there, or leaves a thread, workers
import it themselves.  A spare that was forked before lacks it, and is ended.

It takes commands from one socket: SPAWN makes a worker, STOP ends the zygote.  As the workers' parent it opens their
pidfds (which it passes on) and reaps them.  At the end of the socket (the server has ended) it kills its children and
exits.

What a worker forked ends with it, however often it forked and whatever session it is in: the kernel gives the children
of a dead worker to the zygote (`clover.worker.orphans`), which ends every child that it did not fork itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import msgspec

from clover import backends
from clover.errors import WorkerError
from clover.worker import frames, oom_score, orphans, sandbox

_PR_SET_PDEATHSIG = 1
_IMPORT_MS = 10_000
"""How long a trial import may take; workers wait for it."""

_SPARE_AFTER_MS = 250
"""How long there must have been no orders before a spare is forked: ordered workers need the cores first."""

_STRAYS_S = 5.0
"""How long the zygote, at its own end, hunts processes that workers left behind."""

_Ordered = Callable[[], tuple[frames.Spawn, tuple[int, ...]] | None]
"""Returns the order and descriptors of a child, once they have come; None if there will be none."""

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by terminals and service managers to the whole process group; the server alone decides when its workers end.
The zygote and its spare serve no requests and need not be replaced; workers pass SIGTERM on (`worker.main`)."""


def thread_count() -> int:
    """Return how many threads this process has, as the kernel counts them."""
    return len(os.listdir("/proc/self/task"))


def may_import(name: str) -> bool:
    """Return whether a fork of this process could import `name` soon, and had one thread afterwards."""
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid == 0:
        code = 1
        try:
            importlib.import_module(name)
            code = 0 if thread_count() == 1 else 1
        finally:
            os._exit(code)
    watch = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        if not poller.poll(_IMPORT_MS):
            signal.pidfd_send_signal(watch, signal.SIGKILL)
        return os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(watch)


class Spare(NamedTuple):
    """A fork that waits for its order at the far end of `line`."""

    pid: int
    pidfd: int
    line: socket.socket


class Zygote:
    """Makes workers on the orders of one socket."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._tried: set[str] = set()
        self._spare: Spare | None = None
        self._wants_spare = False
        self._unordered: set[int] = set()  # pidfds of children that are no workers: their end is not reported
        self._poller = select.poll()
        self._poller.register(server.fileno(), select.POLLIN)

    def forever(self) -> None:
        """Carry out orders until STOP comes or the server ends."""
        try:
            while True:
                ready = self._poller.poll(_SPARE_AFTER_MS if self._wants_spare else None)
                if not ready:
                    self._fork_spare()
                for fd, _ in ready:
                    if fd in self._children:
                        self._reap(fd)
                    elif not self._obey():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._kill_all()

    def _obey(self) -> bool:
        frame = frames.receive(self._server, frames.SPAWN_FDS)
        if frame is None:
            return False
        kind, payload, fds = frame
        try:
            if kind is frames.Kind.STOP:
                return False
            if kind is not frames.Kind.SPAWN or len(fds) != frames.SPAWN_FDS:
                raise WorkerError(f"frame {kind.name} with {len(fds)} descriptors")
            self._spawn(frames.decode(payload, frames.Spawn), fds)
        finally:
            frames.close_all(fds)
        return True

    def _spawn(self, spawn: frames.Spawn, fds: tuple[int, ...]) -> None:
        self._wants_spare = True
        if thread_count() == 1:
            for backend in dict.fromkeys((spawn.order.backend, *(resident.backend for resident in spawn.order.also))):
                self._prepare(backend)
        spawn = msgspec.structs.replace(spawn, begun_ns=time.monotonic_ns())
        child = self._order_spare(spawn, fds)
        if child is None:
            if (threads := thread_count()) != 1:
                self._refuse(spawn, f"the zygote has {threads} threads instead of one: a fork of it could hang")
                return
            try:
                child = self._fork(lambda: (spawn, fds))
            except OSError as error:
                self._refuse(spawn, f"fork: {error.strerror}")
                return
        pid, pidfd = child
        frames.send(self._server, frames.Spawned(token=spawn.token, pid=pid), (pidfd,))

    def _refuse(self, spawn: frames.Spawn, reason: str) -> None:
        frames.send(self._server, frames.SpawnRefused(token=spawn.token, reason=reason))

    def _prepare(self, backend: str) -> None:
        """Import what the workers of `backend` would import, as far as that leaves no thread here."""
        if backend in self._tried or backend not in backends.BACKENDS:
            return
        self._tried.add(backend)
        missing = [name for name in backends.get(backend).imports if name not in sys.modules]
        if missing:
            self._end_spare()
        for name in missing:
            if name not in sys.modules and may_import(name):
                try:
                    importlib.import_module(name)
                except Exception:  # it worked in the fork; workers report the error if it persists
                    traceback.print_exc()
        gc.freeze()

    # --- the spare ------------------------------------------------------------------------------------------------

    def _fork_spare(self) -> None:
        """Fork the next worker before it is ordered.  After a failure, the next order tries again and reports why."""
        self._wants_spare = False
        if self._spare is not None or thread_count() != 1:
            return
        with contextlib.ExitStack() as mine, contextlib.suppress(OSError):
            line, far = frames.socket_pair()
            mine.callback(line.close)
            own = os.getpid()
            with far:
                pid, pidfd = self._fork(lambda: _wait_for_order(line, far, own))
            self._unordered.add(pidfd)
            self._spare = Spare(pid, pidfd, line)
            mine.pop_all()

    def _order_spare(self, spawn: frames.Spawn, fds: tuple[int, ...]) -> tuple[int, int] | None:
        """Send the order to the spare; return its pid and pidfd, or None if there is no living spare."""
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        with spare.line:
            try:
                frames.send(spare.line, spawn, fds)
            except (OSError, WorkerError):  # it died, or the order is too large for a frame
                return None
        self._unordered.discard(spare.pidfd)
        return spare.pid, spare.pidfd

    def _end_spare(self) -> None:
        """End the spare by closing its socket."""
        if self._spare is not None:
            self._spare.line.close()
            self._spare = None

    # --- children -------------------------------------------------------------------------------------------------

    def _fork(self, ordered: _Ordered) -> tuple[int, int]:
        """Fork a child that becomes the worker that is `ordered`; return its pid, and its pidfd, which is watched.
        Raises OSError."""
        assert self._spare is None, "it would not hear of the zygote's end any more"
        pid = os.fork()
        if pid == 0:
            self._live(ordered)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = pid
        self._poller.register(pidfd, select.POLLIN)
        return pid, pidfd

    def _live(self, ordered: _Ordered) -> NoReturn:
        """Become the worker that is `ordered`.  Whatever happens, this copy of the zygote must not continue as one."""
        code = 1
        try:
            self._server.close()
            frames.close_all(list(self._children))
            gc.enable()
            from clover.worker import main as worker

            order = ordered()
            code = 0 if order is None else worker.main(*order)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self, pidfd: int) -> None:
        ordered = pidfd not in self._unordered
        pid = self._forget(pidfd)
        _, status = os.waitpid(pid, 0)
        self._end_strays()
        if ordered:
            frames.send(self._server, frames.Exited(pid=pid, code=os.waitstatus_to_exitcode(status)))

    def _end_strays(self) -> None:
        """Kill the children that dead workers left to this process; once they are reaped, their own children come."""
        ours = set(self._children.values())
        for pid in orphans.children():
            if pid in ours:
                continue
            # It is not reaped yet, so the number is still its.  Without a descriptor left, the next look finds it.
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                pidfd = os.pidfd_open(pid)
                self._children[pidfd] = pid
                self._unordered.add(pidfd)
                self._poller.register(pidfd, select.POLLIN)

    def _forget(self, pidfd: int) -> int:
        if self._spare is not None and self._spare.pidfd == pidfd:
            self._end_spare()
        self._unordered.discard(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        return self._children.pop(pidfd)

    def _kill_all(self) -> None:
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)  # ours and not reaped yet, so the number is still theirs
        for pidfd in list(self._children):
            os.waitpid(self._forget(pidfd), 0)
        until_s = time.monotonic() + _STRAYS_S
        while (strays := orphans.children()) and time.monotonic() < until_s:
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):  # reaped meanwhile by whoever started it
                    os.waitpid(pid, 0)


def _wait_for_order(
    line: socket.socket, far: socket.socket, zygote: int
) -> tuple[frames.Spawn, tuple[int, ...]] | None:
    """Wait for an order at the `far` end of the `line`, as a spare of the process `zygote`; close the zygote's end."""
    line.close()
    # The end of the line is not heard by one that is stopped.  The zygote has one thread, which this signal follows.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != zygote:
        return None
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("clover-spare")
    oom_score.volunteer()
    with far:
        frame = frames.receive(far, frames.SPAWN_FDS)
    if frame is None:
        return None
    libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)  # a worker outlives its zygote
    _, payload, fds = frame
    return frames.decode(payload, frames.Spawn), fds


def main(fd: int) -> int:
    """Import what workers need, send HELLO, and carry out orders."""
    start_ns = time.monotonic_ns()
    server = socket.socket(fileno=fd)
    server.set_inheritable(False)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(name)s[%(process)d] %(levelname)s: %(message)s")
    orphans.adopt()
    gc.disable()  # a collection in a child would write to, and so copy, the pages it shares
    import torch  # noqa: F401 - this import is what the zygote is for

    import clover.worker.main  # noqa: F401 - so that what a worker needs is there before it is forked

    sandbox.everywhere()  # kept for its forks
    gc.freeze()
    import_ms = (time.monotonic_ns() - start_ns) / 1e6
    try:
        frames.send(server, frames.Hello(pid=os.getpid(), threads=thread_count(), import_ms=import_ms))
    except BrokenPipeError:
        return 0
    Zygote(server).forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
