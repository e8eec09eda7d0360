"""HAProxy as the ingress of a controller: a node counts as admitted once HAProxy itself finds it ready.

A controller gives a node its share as soon as it is admitted, and may take all of it from another one.  HAProxy's own
check of a new server takes up to a second more; until then it would have nobody to give rows to, and answer 503.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from clover.cluster.haproxy import HAProxyIngress
from clover.cluster.haproxy_config import IngressSettings
from clover.errors import ClusterError

_POLL_S = 0.1
_CHECKS = 5.0
"""Intervals of the check within which it has to pass."""


class CheckedIngress(HAProxyIngress):
    """Implements `clover.cluster.ports.Ingress` by HAProxy, with nodes that its check has passed."""

    def __init__(
        self,
        settings: IngressSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(settings)
        self._monotonic, self._sleep = monotonic, sleep

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Add a node, or take a drained one back, and return once HAProxy finds it ready.  ClusterError if it does not:
        it is to be admitted again then."""
        await super().admit(name, url, grpc_url)
        end_s = self._monotonic() + _CHECKS * self.settings.check_s
        while not await self.healthy(name):
            if self._monotonic() > end_s:
                raise ClusterError(f"HAProxy does not find the node {name} ready at {url}")
            await self._sleep(_POLL_S)
