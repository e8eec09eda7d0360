"""Work with a driver that must not be left half done: finished although its caller is cancelled, and tried again if the
driver refuses it as in use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from clover.devices import nvml
from clover.devices.nvml import NvmlError

T = TypeVar("T")


class DriverWork:
    """`back_off_s`: seconds to wait before each further try."""

    def __init__(self, back_off_s: Sequence[float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._back_off_s = tuple(back_off_s)
        self._sleep = sleep
        self._tasks: set[asyncio.Future[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish `work` even if its caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Wait for all work that has begun."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def tried(self, work: Callable[[], Awaitable[T]], *, anything: bool = False) -> T:
        """Return the result of `work`, tried again after each wait if it was refused as in use, or for `anything` but
        a want of permission."""
        for wait_s in self._back_off_s:
            try:
                return await work()
            except NvmlError as error:
                if error.code == nvml.NO_PERMISSION or not (anything or error.code == nvml.IN_USE):
                    raise
            await self._sleep(wait_s)
        return await work()
