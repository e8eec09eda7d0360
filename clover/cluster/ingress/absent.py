"""A cluster without an ingress of its own: clients, or a load balancer of others, go to the nodes directly.

Rows are not steered then; nodes are still woken, given targets and released.  A node is drained by its own readiness,
which fails before it ends, so that a balancer that looks at `/v2/health/ready` stops sending.
"""

from __future__ import annotations

from collections.abc import Mapping


class NoIngress:
    """Implements `clover.cluster.ports.Ingress` by doing nothing."""

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Do nothing: whoever balances finds the node ready."""

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Do nothing: whoever balances shares as it does."""

    async def drain(self, name: str) -> None:
        """Do nothing: the node fails its readiness when it is released."""

    async def open_connections(self, name: str) -> int:
        """Return 0: the node itself answers what it has before it ends."""
        return 0

    async def remove(self, name: str) -> None:
        """Do nothing."""
