"""The look at every GPU each second: whether it answers, without waiting for one that does not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from clover.errors import CloverError

log = logging.getLogger("clover.devices")

PATIENCE_S = 2.0
"""The longest that a look waits for GPUs."""

SILENT_S = 10.0
"""Seconds without an answer after which that is logged."""


class PolledGpu(Protocol):
    """What is needed of a GPU (`clover.devices.mig.MigDevice`)."""

    name: str

    async def poll(self) -> bool: ...


Gpu = TypeVar("Gpu", bound=PolledGpu)


class GpuPolls:
    """Looks at GPUs.  One whose driver hangs is asked nothing more until it has answered, and the others as ever."""

    def __init__(self, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._since_s: dict[str, float] = {}
        self._said: set[str] = set()

    async def answering(self, gpus: Sequence[Gpu]) -> list[Gpu]:
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
                text = "%s: the driver has not answered for %.0f s; other GPUs are looked at as ever"
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
