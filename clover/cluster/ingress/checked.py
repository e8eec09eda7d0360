"""HAProxy as the ingress of a controller: nodes are admitted once HAProxy finds them ready, and spare ones stand in.

A controller gives a node its share as soon as it is admitted, and may take all of it from another one.  HAProxy's own
check of a new server takes up to a second more; until then it would have nobody to give rows to, and answer 503.

A node that is awake without a share is there for the loss of another one.  With a weight of 0 HAProxy would not use it
before the controller has noticed the loss, seconds later.  So it gets the least weight there is (1 beside 256): if the
others do not answer, HAProxy sends their rows there at once.  Only nodes that may answer the rows of an origin stand in
for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from clover.cluster.ingress.config import IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.errors import ClusterError

_POLL_S = 0.1
_CHECKS = 5.0
"""Intervals of the check within which it has to pass."""
_LEAST_SHARE = 1e-6
"""Of all shares: it becomes the least weight."""


class CheckedIngress(HAProxyIngress):
    """Implements `clover.cluster.ports.Ingress` by HAProxy, with nodes that its check has passed.

    `may_answer`: by origin, and by origin and family, the nodes that its rows may be answered by.  `resident`: by
    origin, the nodes at which all data of its clients may be (all, if it is not named); requests whose family HAProxy
    cannot see (streams over gRPC, a name with escapes) go to no others."""

    def __init__(
        self,
        settings: IngressSettings,
        may_answer: Mapping[tuple[str, str], frozenset[str]] | None = None,
        resident: Mapping[str, frozenset[str]] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(settings)
        self._may_answer = may_answer or {}
        self._resident = resident or {}
        self._shares: dict[tuple[str, str], Mapping[str, float]] = {}
        """By origin and family ("": all that are not shared by themselves), what the controller last gave."""
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
        for (origin, family), shares in list(self._shares.items()):
            if name in self._may_answer.get((origin, family), ()) and not shares.get(name):
                await (self.weigh_family(origin, family, shares) if family else self.weigh(origin, shares))

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Set how the rows of an origin are shared; spare nodes get the least weight."""
        self._shares[origin, ""] = dict(weights)
        if (resident := self._resident.get(origin)) is not None:
            weights = {name: own for name, own in weights.items() if name in resident}
            if not sum(weights.values()):
                weights = {name: 1.0 for name in sorted(resident) if name in await self.nodes()}
        await super().weigh(origin, await self._with_spares(origin, "", weights))

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Set how the rows of one family of an origin are shared; spare nodes get the least weight."""
        self._shares[origin, family] = dict(weights)
        await super().weigh_family(origin, family, await self._with_spares(origin, family, weights))

    async def _with_spares(self, origin: str, family: str, weights: Mapping[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        spares = self._may_answer.get((origin, family), frozenset()) - {
            name for name, own in weights.items() if own > 0.0
        }
        if total <= 0.0 or not spares:
            return dict(weights)
        here = await self.nodes()
        return {**weights, **{name: _LEAST_SHARE * total for name in sorted(spares) if name in here}}
