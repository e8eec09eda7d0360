"""What a server does each second, in a task of its own for each thing, so that none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from clover.errors import CloverError

log = logging.getLogger("clover.server")

TICK_S = 1.0


async def each_second(
    turn: Callable[[], Awaitable[None]], what: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Call `turn` each second, for ever; a failure is logged as one of `what`, and ends nothing."""
    while True:
        await sleep(TICK_S)
        try:
            await turn()
        except CloverError as error:
            log.warning("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
