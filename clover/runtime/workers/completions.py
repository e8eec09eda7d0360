"""One reader for all completions: workers of every family write the same eventfd, and each router reads its rings.

The eventfd is cleared before the rings are read, so a completion that comes in between sets it again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Completions:
    """Calls every listener when the eventfd `fd` was written, between `start` and `stop`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen on `loop`."""
        self._loop = loop
        loop.add_reader(self._fd, self._written)

    def stop(self) -> None:
        """Stop listening."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None

    def add(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on."""
        self._listeners = (*self._listeners, listener)

    def remove(self, listener: Callable[[], None]) -> None:
        """Stop calling `listener`."""
        self._listeners = tuple(item for item in self._listeners if item != listener)

    def _written(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
        for listener in self._listeners:
            listener()
