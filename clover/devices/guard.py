"""Watches over the GPUs of the machine as a whole.

Each second it checks whether they answer.  It warns of programs that hold instances, and passes on the errors (Xid)
that the driver reports.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from clover.devices import clients
from clover.devices.mig import MigDevice
from clover.devices.xids import XidWatch
from clover.errors import CloverError

log = logging.getLogger("clover.devices")

PATIENCE_S = 2.0
"""The longest that a poll waits for GPUs."""

SILENT_S = 10.0
"""Seconds without an answer after which that is logged."""


class GpuPolls:
    """Polls every GPU each second: whether it answers, without waiting for one that does not.  If the driver of one
    hangs, that GPU is asked nothing more until it has answered, and the others are polled as before."""

    def __init__(self, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._since_s: dict[str, float] = {}
        self._said: set[str] = set()

    async def answering(self, gpus: Sequence[MigDevice]) -> list[MigDevice]:
        """Return those of `gpus` that are there; one that does not answer in time is not."""
        for gpu in gpus:
            if gpu.name not in self._asked:
                self._asked[gpu.name] = asyncio.ensure_future(gpu.poll())
                self._since_s[gpu.name] = self._clock()
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=self._patience_s)
        return [gpu for gpu in gpus if self._there(gpu.name)]

    def _there(self, name: str) -> bool:
        task = self._asked[name]
        if not task.done():
            silent_s = self._clock() - self._since_s[name]
            if silent_s >= SILENT_S and name not in self._said:
                self._said.add(name)
                text = "%s: the driver has not answered for %.0f s; other GPUs are polled as before"
                log.error(text, name, silent_s)
            return False
        del self._asked[name]
        if name in self._said:
            self._said.discard(name)
            log.warning("%s: the driver answers again", name)
        try:
            return task.result()
        except CloverError as error:
            log.warning("%s: %s", name, error)
            return False


class GpuGuard:
    """Guards `gpus`, which share one NVML session.  Call `start` on the event loop that changes them."""

    def __init__(self, gpus: Sequence[MigDevice]) -> None:
        self._gpus = {gpu.index: gpu for gpu in gpus}
        self._watch: XidWatch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Warn of what would hinder, and begin to watch for errors."""
        if not self._gpus:
            return
        self._warn()
        self._loop = asyncio.get_running_loop()
        library = next(iter(self._gpus.values())).session.library
        self._watch = XidWatch(library, tuple(self._gpus), self._on_xid)
        self._watch.start()

    def close(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.close()

    def _warn(self) -> None:
        nodes = {node for gpu in self._gpus.values() if gpu.mig for node in gpu.nodes}
        found = [client for client in clients.find(tuple(nodes)) if client.known] if nodes else []
        if found:
            log.warning(
                "%s may hold GPU instances, which cannot be removed then: %s (docs/mig.md: what must not run beside)",
                clients.names(found),
                clients.remedy(found),
            )

    def _on_xid(self, index: int, number: int, gi: int | None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._gpus[index].take_xid, number, gi)
