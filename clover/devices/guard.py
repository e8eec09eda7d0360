"""What a server does about the GPUs of its machine as a whole: it warns of programs that hold instances, and passes on
the errors (Xid) that the driver reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from clover.devices import clients
from clover.devices.mig import MigDevice
from clover.devices.xids import XidWatch

log = logging.getLogger("clover.devices")


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
