"""Spreads the messages of calls over turns of the event loop, as `clover.http.server_state` does bodies of requests.

A thousand calls whose messages come at once would otherwise be answered in one turn, and delay everybody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque

from clover.http.server_state import TURN_BYTES

_CALL_BYTES = 16 << 10
"""Bytes that answering any call takes as long as, so that sixteen calls are begun in a turn."""


class Turns:
    """Lets messages of `TURN_BYTES` altogether, but one at least, be read in one turn of the loop, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._left = TURN_BYTES
        self._scheduled = False

    async def take(self, size: int) -> None:
        """Return in the turn in which a message of `size` bytes may be read."""
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled = True
            self._left = TURN_BYTES
            loop.call_soon(self._next)
        weight = size + _CALL_BYTES
        if self._left > 0 and not self._waiting:
            self._left -= weight
            return
        future = loop.create_future()
        self._waiting.append((future, weight))
        await future

    def _next(self) -> None:
        """Begin a turn."""
        self._left = TURN_BYTES
        self._scheduled = bool(self._waiting)
        if not self._waiting:
            return
        asyncio.get_running_loop().call_soon(self._next)
        while self._waiting and self._left > 0:
            future, weight = self._waiting.popleft()
            if not future.done():  # its call may be cancelled
                self._left -= weight
                future.set_result(None)
