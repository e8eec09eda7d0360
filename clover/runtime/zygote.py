"""The zygote: `python -m clover.runtime.zygote FD`, a process that has imported torch once and forks workers.

A fork of it is a worker within milliseconds, and shares its memory, where a fresh process would import for seconds.
That is only safe while it has one thread: a lock that another thread holds during a fork stays locked in the child for
ever.  So it is started with every thread pool off (`backends.child_environment`), touches no GPU, computes nothing,
and counts its threads before each fork.

What a backend needs beyond torch (`imports`) it imports before the first worker of that backend, which saves all those
that follow tens of milliseconds.  A fork tries it first: what fails there, or leaves a thread, stays the workers' own.

It obeys one socket: SPAWN forks a worker, STOP ends.  Being the workers' parent, it opens their pidfds (which it passes
on) and reaps them.  At the end of the socket (the server is gone, however it went) it kills what is left and exits.
"""

from __future__ import annotations

import contextlib
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

from clover import backends
from clover.errors import WorkerError
from clover.runtime import frames

_IMPORT_MS = 10_000
"""So long an import may take that is tried; workers wait for it."""

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent by terminals and service managers to the whole group; the server alone decides when its workers end."""


def thread_count() -> int:
    """Threads of this process, as the kernel counts them."""
    return len(os.listdir("/proc/self/task"))


def may_import(name: str) -> bool:
    """Whether a fork of this process could import `name` soon, and had one thread afterwards."""
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


class Zygote:
    """Forks workers on the orders of one socket."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._tried: set[str] = set()
        self._poller = select.poll()
        self._poller.register(server.fileno(), select.POLLIN)

    def forever(self) -> None:
        """Obey until told to stop, or until the server is gone."""
        try:
            while True:
                for fd, _ in self._poller.poll():
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
        threads = thread_count()
        if threads == 1:
            self._prepare(spawn.order.backend)
            threads = thread_count()
        if threads != 1:
            reason = f"the zygote has {threads} threads instead of one: a fork of it could hang"
            frames.send(self._server, frames.Refused(token=spawn.token, reason=reason))
            return
        forked_ns = time.monotonic_ns()
        try:
            pid = os.fork()
        except OSError as error:
            frames.send(self._server, frames.Refused(token=spawn.token, reason=f"fork: {error.strerror}"))
            return
        if pid == 0:
            self._become_worker(spawn, fds, forked_ns)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poller.register(pidfd, select.POLLIN)
        frames.send(self._server, frames.Spawned(token=spawn.token, pid=pid), (pidfd,))

    def _prepare(self, backend: str) -> None:
        """Import what the workers of `backend` would import, as far as that leaves no thread here."""
        if backend in self._tried or backend not in backends.BACKENDS:
            return
        self._tried.add(backend)
        for name in backends.get(backend).imports:
            if name not in sys.modules and may_import(name):
                try:
                    importlib.import_module(name)
                except Exception:  # what went well in the fork; workers say what is wrong, where it still is
                    traceback.print_exc()
        gc.freeze()

    def _become_worker(self, spawn: frames.Spawn, fds: tuple[int, ...], forked_ns: int) -> None:
        """Never returns: whatever happens, this copy of the zygote must not go on as one."""
        code = 1
        try:
            self._server.close()
            frames.close_all(list(self._children))
            gc.enable()
            from clover.runtime import worker

            code = worker.main(spawn, fds, forked_ns)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self, pidfd: int) -> None:
        pid = self._forget(pidfd)
        _, status = os.waitpid(pid, 0)
        frames.send(self._server, frames.Exited(pid=pid, code=os.waitstatus_to_exitcode(status)))

    def _forget(self, pidfd: int) -> int:
        self._poller.unregister(pidfd)
        os.close(pidfd)
        return self._children.pop(pidfd)

    def _kill_all(self) -> None:
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)  # ours and not reaped yet, so the number is still theirs
        for pidfd in list(self._children):
            os.waitpid(self._forget(pidfd), 0)


def main(fd: int) -> int:
    """Import what workers need, say hello, obey."""
    start_ns = time.monotonic_ns()
    server = socket.socket(fileno=fd)
    server.set_inheritable(False)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(name)s[%(process)d] %(levelname)s: %(message)s")
    gc.disable()  # a collection in a child would write to, and so copy, the pages it shares
    import torch  # noqa: F401 - this import is what the zygote is for

    import clover.runtime.worker  # noqa: F401

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
