"""One reader for all completions: each worker writes an eventfd of its own, and each router reads its rings.

A worker is not trusted: it may change the flags and the content of an open file that it shares.  So each worker has an
eventfd of its own, and the server never reads one, since a read could block.  It watches all of them by one epoll
instance, edge-triggered, so that each write is one event whatever the eventfd holds.  Events are taken before the rings
are read, so a completion that comes in between is another event.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

from clover._native.wakeups import take_events


class Completions:
    """Calls every listener when a worker whose eventfd is watched has written it, between `start` and `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()

    @property
    def fd(self) -> int:
        """A descriptor that is readable while there is an event; `clear` takes it.  -1 once it is closed."""
        return self._fd

    def watch(self, eventfd: int) -> None:
        """Watch the eventfd of a worker; before it is closed, `forget` it."""
        self._epoll.register(eventfd, select.EPOLLIN | select.EPOLLET)

    def forget(self, eventfd: int) -> None:
        """Watch an eventfd no more.  Does nothing once this is closed."""
        if not self._epoll.closed:
            self._epoll.unregister(eventfd)

    def clear(self) -> None:
        """Take the events that there are; never waits.  OSError once it is closed."""
        take_events(self._fd)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen on `loop`."""
        self._loop = loop
        loop.add_reader(self.fd, self._written)

    def stop(self) -> None:
        """Stop listening."""
        if self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None

    def close(self) -> None:
        """Stop listening, close the descriptor and let go of the listeners, which hold shared memory.  Idempotent."""
        self.stop()
        self._fd = -1  # the number may be another descriptor's soon
        self._epoll.close()
        self._listeners = ()

    def add(self, listener: Callable[[], None]) -> None:
        """Call `listener` from now on."""
        self._listeners = (*self._listeners, listener)

    def remove(self, listener: Callable[[], None]) -> None:
        """Stop calling `listener`."""
        self._listeners = tuple(item for item in self._listeners if item != listener)

    def _written(self) -> None:
        take_events(self._fd)
        for listener in self._listeners:
            listener()
