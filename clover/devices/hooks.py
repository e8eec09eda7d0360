"""Commands of the operator around changes of MIG instances: what holds instances is stopped before, and started after.

One pair serves all GPUs, as the programs that it stops do.  The changes of a transition come one after the other with
seconds between, so the second command runs only after none has come for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import BinaryIO

from clover.errors import DeviceError

log = logging.getLogger("clover.devices")

LINGER_S = 5.0
"""Seconds without a change after which `after_change` runs."""

RETRY_S = 600.0
"""Seconds between two tries at what is quarantined that would run the commands for that alone."""

_SAID_CHARS = 300
_SAID_BYTES = 4 * _SAID_CHARS
_DIES_S = 5.0
"""The longest wait for a command that was killed: one that runs as another user, or sleeps in the kernel, may stay."""


class ChangeHooks:
    """Runs `before` (a program with its arguments, no shell) before the first change of several, `after` once they are
    over, also if `before` failed: half of it may be done.  An empty command runs nothing."""

    def __init__(
        self,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        *,
        timeout_s: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before = tuple(before)
        self._after = tuple(after)
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._clock = clock
        self._retry_at = clock()
        self._lock = asyncio.Lock()
        self._under_way = 0
        self._quiet = asyncio.Event()  # nothing is under way
        self._quiet.set()
        self._prepared = False  # `before` ran and nothing ended the changes since
        self._due = False  # `before` was begun, and `after` was not since
        self._ending: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Carry out the change enclosed; raises DeviceError if `before` fails, and then nothing may be changed."""
        if not self._before and not self._after:
            yield
            return
        async with self._lock:
            if self._ending is not None:
                self._ending.cancel()
                self._ending = None
            self._under_way += 1
            self._quiet.clear()
            try:
                await self._prepare()
            except BaseException:
                self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def retries(self) -> bool:
        """Return whether to try again now what is quarantined: always if that runs no command, or if they run anyhow,
        and otherwise every `RETRY_S`."""
        if self._prepared or not (self._before or self._after):
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        return True

    async def close(self) -> None:
        """Run `after` now if it is due, once what is under way is over."""
        await self._quiet.wait()
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        await self._end()

    async def _prepare(self) -> None:
        if not self._prepared:
            self._due = True
            await self._run("mig.before_change", self._before)
            self._prepared = True

    def _leave(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()
            self._ending = asyncio.ensure_future(self._end_later())

    async def _end_later(self) -> None:
        await self._sleep(LINGER_S)
        self._ending = None  # from here on it is not cancelled
        await self._end()

    async def _end(self) -> None:
        async with self._lock:
            if not self._due or self._under_way:
                return
            self._prepared = self._due = False
            try:
                await self._run("mig.after_change", self._after)
            except DeviceError as error:
                log.error("%s: what it should start again may still be stopped", error)

    async def _run(self, name: str, command: tuple[str, ...]) -> None:
        """Run a command; raises DeviceError if it cannot be run, fails, or takes too long (it is killed then)."""
        if not command:
            return
        log.info("%s: %s", name, " ".join(command))
        with contextlib.ExitStack() as stack:
            try:
                # A file: what a command leaves running may hold a pipe open for as long as it likes.
                output = stack.enter_context(tempfile.TemporaryFile())
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise DeviceError(f"{name} cannot be run: {command[0]}: {error.strerror}") from error
            try:
                async with asyncio.timeout(self._timeout_s):
                    await process.wait()
            except TimeoutError:
                raise DeviceError(f"{name} took longer than {self._timeout_s:g} s (mig.hook_timeout_s)") from None
            finally:
                if process.returncode is None:
                    await _kill(process)
            if process.returncode:
                text = _end_of(output)
                raise DeviceError(f"{name} failed with status {process.returncode}{': ' if text else ''}{text}")


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and what it started, its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DIES_S):
            await process.wait()


def _end_of(output: BinaryIO) -> str:
    """Return the last that a command said, in one line."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - _SAID_BYTES))
    return " ".join(output.read(_SAID_BYTES).decode(errors="replace").split())[-_SAID_CHARS:]
