"""One reader for all completions: workers of every family ring the same eventfd, and each router looks at its rings.

The eventfd is cleared before the rings are read, so a completion that comes in between rings it again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Completions:
    """Calls every listener once the eventfd `fd` was rung.  Lives between `start` and `stop`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen on `loop`."""
        self._loop = loop
        loop.add_reader(self._fd, self._rung)

    def stop(self) -> None:
        """Listen no more."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None

    def add(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on."""
        self._listeners = (*self._listeners, listener)

    def remove(self, listener: Callable[[], None]) -> None:
        """Do not call it any more."""
        self._listeners = tuple(item for item in self._listeners if item != listener)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        for listener in self._listeners:
            listener()
