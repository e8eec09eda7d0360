"""Calls whose message has not come whole, and what they may make the server hold.

grpcio keeps the received part of a message, up to `limits.body_bytes`, and does not say how large it is.  So the memory
of the process is watched instead.  While so few calls wait that their messages cannot exceed `limits.held_bytes`
together, `Arriving` records the memory in use.  Once more calls wait and the memory has grown by more than
`limits.held_bytes`, the calls of the connection with most of them are ended, as HTTP connections are.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clover.config import LimitsConfig
from clover.errors import Overloaded

log = logging.getLogger("clover.grpc")

SWEEP_S = 0.5
_STATM = Path("/proc/self/statm")


def memory_bytes() -> int:
    """Return the bytes of memory that this process has for itself: neither files nor what it shares."""
    _, resident, shared, *_ = _STATM.read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


class Arriving:
    """The calls that wait for a message."""

    def __init__(self, limits: LimitsConfig, memory: Callable[[], int] = memory_bytes) -> None:
        self._limits = limits
        self._memory = memory
        self._rest = memory()
        """The memory in use when so few calls waited that their messages could not be too much."""
        self._waiting: dict[asyncio.Timeout, str] = {}
        """The connection of each call that waits."""

    async def receive(self, context: Any, limit_s: float | None) -> Any:
        """Return the next message of a call.

        Raises TimeoutError after `limit_s` seconds, and Overloaded if the call is one of those that make the server
        hold too much.
        """
        try:
            async with asyncio.timeout(limit_s) as timeout:
                self._waiting[timeout] = context.peer()
                return await context.read()
        except TimeoutError:
            if timeout in self._waiting:
                raise
            raise Overloaded(
                "messages that have not come whole come to more than limits.held_bytes: try again later",
                retry_after_s=1.0,
            ) from None
        finally:
            self._waiting.pop(timeout, None)

    def sweep(self) -> None:
        """End calls if what has come of their messages is too much."""
        limits, waiting = self._limits, self._waiting
        most = max(1, limits.held_bytes // limits.body_bytes)
        memory = self._memory()
        if len(waiting) <= most:
            self._rest = memory
        elif memory - self._rest > limits.held_bytes:
            counts = Counter(waiting.values())
            listed = sorted(waiting, key=lambda timeout: counts[waiting[timeout]])
            ended = [timeout for timeout in listed[most:] if not timeout.expired()]
            now_s = asyncio.get_running_loop().time()
            for timeout in ended:
                del waiting[timeout]
                timeout.reschedule(now_s)
            self._rest = memory  # if these calls did not hold it, no others are ended for it
            log.warning(
                "%d gRPC calls were ended: their incomplete messages took more than limits.held_bytes = %d",
                len(ended),
                limits.held_bytes,
            )
