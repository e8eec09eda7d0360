"""Commands of the operator around changes of MIG instances: what holds instances is stopped before, and started after.

One pair serves all GPUs, as the programs that it stops do.  The changes of a transition come one after the other with
seconds between, so the second command runs only after none has come for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from clover.errors import DeviceError

log = logging.getLogger("clover.devices")

LINGER_S = 5.0
"""Seconds without a change after which `after_change` runs."""

_SAID_CHARS = 300


class ChangeHooks:
    """Runs `before` (a program with its arguments, no shell) before the first change of several, `after` once they are
    over.  An empty command runs nothing."""

    def __init__(
        self,
        before: Sequence[str] = (),
        after: Sequence[str] = (),
        *,
        timeout_s: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._before = tuple(before)
        self._after = tuple(after)
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._under_way = 0
        self._prepared = False
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
            if not self._prepared:
                await self._run("mig.before_change", self._before)
                self._prepared = True
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._ending = asyncio.ensure_future(self._end_later())

    async def close(self) -> None:
        """Run `after` now if it is due."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        await self._end()

    async def _end_later(self) -> None:
        await self._sleep(LINGER_S)
        self._ending = None  # from here on it is not cancelled
        await self._end()

    async def _end(self) -> None:
        async with self._lock:
            if not self._prepared or self._under_way:
                return
            self._prepared = False
            try:
                await self._run("mig.after_change", self._after)
            except DeviceError as error:
                log.error("%s: what it should start again may still be stopped", error)

    async def _run(self, name: str, command: tuple[str, ...]) -> None:
        """Run a command; raises DeviceError if it cannot be run, fails, or takes too long (it is killed then)."""
        if not command:
            return
        log.info("%s: %s", name, " ".join(command))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise DeviceError(f"{name} cannot be run: {command[0]}: {error.strerror}") from error
        try:
            said, _ = await asyncio.wait_for(process.communicate(), self._timeout_s)
        except TimeoutError:
            raise DeviceError(f"{name} took longer than {self._timeout_s:g} s (mig.hook_timeout_s)") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            text = " ".join(said.decode(errors="replace").split())[-_SAID_CHARS:]
            raise DeviceError(f"{name} failed with status {process.returncode}{': ' if text else ''}{text}")
