"""The server's end of the zygote: launches the process, orders workers, and receives its reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from clover.backends import child_environment
from clover.errors import StartError, WorkerError
from clover.worker import frames

_log = logging.getLogger("clover.pool")

_SEND_RETRY_S = 0.005


class ZygoteLink:
    """One zygote process.  `bind` it to a loop before anything else; `dead` once its socket or process ended."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self._socket = sock
        self._pidfd = os.pidfd_open(process.pid)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_exit: Callable[[int, int], None] = lambda pid, code: None
        self.on_end: Callable[[], None] = lambda: None
        """Called once it has ended, if it was ready before and nobody stopped it."""
        self._hello: asyncio.Future[frames.Hello] | None = None
        self._gone: asyncio.Event = asyncio.Event()
        self._asked: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._stopping = False
        self.pid = process.pid
        self.dead = False
        self.killed = False

    @classmethod
    def launch(cls) -> ZygoteLink:
        """Start a zygote; needs no loop.  Raises StartError."""
        if not sys.executable:
            raise StartError("the Python interpreter does not know its own path (sys.executable is empty)")
        ours, theirs = frames.socket_pair()
        try:
            process = subprocess.Popen(
                # -P: the working directory is no place to import from, unless this process does too (PYTHONPATH).
                [sys.executable, "-P", "-m", "clover.worker.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what models print is a log; standard output is the server's
                env=child_environment(),
                pass_fds=(theirs.fileno(),),
            )
        except OSError as error:
            ours.close()
            raise StartError(f"the zygote cannot start: {error.strerror}") from error
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours)

    @property
    def bound(self) -> bool:
        """Whether `bind` was called."""
        return self._loop is not None

    def bind(self, loop: asyncio.AbstractEventLoop, on_exit: Callable[[int, int], None]) -> None:
        """Listen on `loop`; `on_exit(pid, code)` is called for every worker that ended."""
        self._loop = loop
        self._on_exit = on_exit
        self._hello = loop.create_future()
        loop.add_reader(self._socket.fileno(), self._readable)
        loop.add_reader(self._pidfd, self._on_end)

    async def ready(self, within_s: float) -> None:
        """Wait for its hello.  Raises WorkerError if it dies first, takes longer, or has threads."""
        assert self._hello is not None
        try:
            async with asyncio.timeout(within_s):  # Python 3.11's `wait_for` loses a cancellation if it is here already
                hello = await asyncio.shield(self._hello)
        except TimeoutError as error:
            self.kill()
            text = f"the zygote did not import torch within {within_s:g} s (--start-s {5 * within_s:g} allows more)"
            raise WorkerError(text) from error
        if hello.threads != 1:
            self.kill()
            raise WorkerError(f"the zygote has {hello.threads} threads after its imports; it must have one")

    async def spawn(self, order: frames.Spawn, fds: tuple[int, ...], within_s: float) -> tuple[int, int]:
        """Order a worker; return its pid and a pidfd, which the caller owns.  Raises WorkerError."""
        assert self._loop is not None
        answer: asyncio.Future[tuple[int, int]] = self._loop.create_future()
        self._asked[order.token] = answer
        try:
            async with asyncio.timeout(within_s):
                await self._ask(order, fds)
                await asyncio.wait([answer])
        except BaseException as error:
            if answer.done() and answer.exception() is None:
                _end_unwanted(answer.result()[1])
            if isinstance(error, TimeoutError):
                self.kill()  # a fork takes milliseconds, so it hangs; the next spawn starts another
                raise WorkerError(f"the zygote made no worker within {within_s:g} s") from error
            raise
        finally:
            self._asked.pop(order.token, None)
        return answer.result()

    async def _ask(self, order: frames.Spawn, fds: tuple[int, ...]) -> None:
        while not self.dead:
            try:
                frames.send(self._socket, order, fds)
                return
            except BlockingIOError:  # dozens of orders are waiting in its socket
                await asyncio.sleep(_SEND_RETRY_S)
            except OSError as error:
                raise WorkerError("the zygote is gone") from error
        raise WorkerError("the zygote is gone")

    def _readable(self) -> None:
        try:
            while not self.dead:
                frame = frames.receive(self._socket, 1)
                if frame is None:
                    assert self._loop is not None
                    self._loop.remove_reader(self._socket.fileno())  # the end of the process follows
                    return
                self._on_frame(*frame)
        except BlockingIOError:
            return
        except (OSError, WorkerError) as error:
            if not self._stopping:  # else it may end before it has read or sent all
                _log.error("the zygote is ended: %s", error)
            self.kill()

    def _on_frame(self, kind: frames.Kind, payload: bytes, fds: tuple[int, ...]) -> None:
        if kind is frames.Kind.SPAWNED:
            spawned = frames.decode(payload, frames.Spawned)
            if len(fds) != 1:
                raise WorkerError("a new worker came without its pidfd")
            asked = self._asked.pop(spawned.token, None)
            if asked is None or asked.done():
                _end_unwanted(fds[0])
            else:
                asked.set_result((spawned.pid, fds[0]))
            return
        frames.close_all(fds)
        if kind is frames.Kind.EXITED:
            exited = frames.decode(payload, frames.Exited)
            self._on_exit(exited.pid, exited.code)
        elif kind is frames.Kind.REFUSED:
            refused = frames.decode(payload, frames.SpawnRefused)
            asked = self._asked.pop(refused.token, None)
            if asked is not None and not asked.done():
                asked.set_exception(WorkerError(refused.reason))
        elif kind is frames.Kind.HELLO:
            assert self._hello is not None
            if not self._hello.done():
                self._hello.set_result(frames.decode(payload, frames.Hello))
        else:
            raise WorkerError(f"it sent {kind.name}")

    def _on_end(self) -> None:
        """Clear up after the zygote's death: read what it still sent, reap it, and fail the orders that wait."""
        assert self._loop is not None
        assert self._hello is not None
        self._readable()
        self.dead = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._pidfd)
        self._socket.close()
        os.close(self._pidfd)
        status = self._process.wait()
        error = WorkerError(f"the zygote ended (status {status}); standard error says more")
        waiting: list[asyncio.Future[Any]] = [self._hello, *self._asked.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
        served = self._hello.exception() is None and not self._stopping
        if self._hello.exception() is not None and not self._stopping:  # retrieved, so that asyncio does not warn
            _log.error("%s", error)
        self._gone.set()
        if served:
            self.on_end()

    def kill(self) -> None:
        """Send SIGKILL; its end is handled as usual."""
        if not self.dead:
            self.killed = True
            self._process.kill()

    async def wait_ended(self, within_s: float) -> None:
        """Wait until it is reaped after `kill`; raises WorkerError if that takes longer."""
        try:
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        except TimeoutError as error:
            raise WorkerError(f"the zygote was killed and has not ended within {within_s:g} s") from error

    async def stop(self, within_s: float) -> None:
        """End it by a STOP frame, or by SIGKILL after `within_s`; return once it is reaped and all is closed, or the
        kernel has not ended it within as long again."""
        if self.dead:
            return
        self._stopping = True
        try:
            frames.send(self._socket, frames.Stop())
            async with asyncio.timeout(within_s):
                await self._gone.wait()
        except (OSError, TimeoutError):
            self.kill()
            try:
                await self.wait_ended(within_s)
            except WorkerError as error:  # it is in a call of a driver, which no signal ends
                _log.error("%s", error)


def _end_unwanted(pidfd: int) -> None:
    """End a worker whose order was given up."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
