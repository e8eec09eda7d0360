"""Ports that change nothing: for a look that only says what it would do, and for a cluster without an ingress."""

from __future__ import annotations

from collections.abc import Mapping

from clover.cluster.planning.records import NodeTarget
from clover.cluster.ports import HealthIngress, Ingress, NodeReport, Nodes, Store


class NoIngress:
    """A cluster without an ingress of its own: clients, or a load balancer of others, go to the nodes directly.

    Rows are not steered then; nodes are still woken, given targets and released.  A node is drained by its own
    readiness, which fails before it ends, so that a balancer that looks at `/v2/health/ready` stops sending."""

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


class DryNodes:
    """Nodes that are asked, and given nothing to do."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def reports(self) -> Mapping[str, NodeReport]:
        """Return what the nodes report."""
        return await self._nodes.reports()

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        """Do nothing."""

    async def wake(self, name: str) -> None:
        """Do nothing."""

    async def release(self, name: str) -> None:
        """Do nothing."""


class DryIngress(NoIngress):
    """An ingress that is asked, and not changed."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Do nothing."""

    async def open_connections(self, name: str) -> int:
        """Return what the ingress says."""
        return await self._ingress.open_connections(name)


class DryHealthIngress(DryIngress):
    """The same of an ingress that knows who is healthy."""

    def __init__(self, ingress: Ingress, checks: HealthIngress) -> None:
        super().__init__(ingress)
        self._checks = checks

    async def healthy(self, name: str) -> bool:
        """Return what the ingress says."""
        return await self._checks.healthy(name)


def dry_ingress(ingress: Ingress) -> DryIngress:
    """Return an ingress that changes nothing and knows what `ingress` knows."""
    return DryHealthIngress(ingress, ingress) if isinstance(ingress, HealthIngress) else DryIngress(ingress)


class DryStore:
    """A store that is read only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self) -> bytes | None:
        """Return what is kept."""
        return await self._store.load()

    async def save(self, state: bytes) -> None:
        """Do nothing."""
