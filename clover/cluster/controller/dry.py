"""Ports that read and change nothing, for a look that only says what it would do."""

from __future__ import annotations

from collections.abc import Mapping

from clover.cluster.planning.records import NodeTarget
from clover.cluster.ports import HealthIngress, Ingress, NodeReport, Nodes, Store


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


class DryIngress:
    """An ingress that is asked, and not changed."""

    def __init__(self, ingress: Ingress) -> None:
        self._ingress = ingress

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Do nothing."""

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Do nothing."""

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Do nothing."""

    async def drain(self, name: str) -> None:
        """Do nothing."""

    async def open_connections(self, name: str) -> int:
        """Return what the ingress says."""
        return await self._ingress.open_connections(name)

    async def remove(self, name: str) -> None:
        """Do nothing."""


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
