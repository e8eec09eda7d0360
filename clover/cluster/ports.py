"""What a cluster's controller sees of the world: Protocols, so that Ray, HAProxy and a simulation are alike to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from clover.cluster.planning.records import ClusterNode, DeviceFrontier, NodeTarget
from clover.types import Reading, Record


class FamilyReport(Record, frozen=True, kw_only=True):
    """What a node's server says of one family: rows/s that came, by the client's region, and how it does.

    Counters (`rows`, `accuracy_rows`, `joules`, `grams`) only grow while `NodeReport.started_s` stays the same.
    `accuracy_rows` sums the accuracy, in points, expected of each row that was answered; of rows that do not count
    (`clover.control.state.counted`), the mean of those that did at the time."""

    family: str
    rates: dict[str, float]
    p95_ms: float
    rows: int
    accuracy_rows: float
    joules: float
    grams: float


class NodeReport(Record, frozen=True, kw_only=True):
    """What a node said when it was last asked.  `node` has its devices, its state and what it learned.

    `target_epoch`: the epoch of the target that it follows; 0 if it follows its own policy alone.  `newest_epoch`: the
    newest of which it ever took a target, below which it takes none, also while it follows its own policy."""

    node: ClusterNode
    at_s: float
    started_s: float
    url: str
    grpc_url: str = ""
    families: tuple[FamilyReport, ...] = ()
    frontiers: tuple[DeviceFrontier, ...] = ()
    target_epoch: int = 0
    newest_epoch: int = 0
    healthy: bool = True
    why: str = ""


class Nodes(Protocol):
    """The machines, however they are reached."""

    async def reports(self) -> Mapping[str, NodeReport]:
        """Return the newest report of every node that answers, by name; one that does not answer is left out."""

    async def follow(self, target: NodeTarget, epoch: int) -> None:
        """Give a node its target; ClusterError if it does not take it.  A target of an older epoch is ignored."""

    async def wake(self, name: str) -> None:
        """Start the node's server (and its machine, through the autoscaler's hook); returns before it is ready."""

    async def release(self, name: str) -> None:
        """End a node that has drained; its machine may be given back."""


class Ingress(Protocol):
    """What stands before the nodes and takes the clients' connections."""

    async def admit(self, name: str, url: str, grpc_url: str) -> None:
        """Add a node, which gets rows once it is healthy and has a weight; a known one has its address changed, and a
        drained one is taken back."""

    async def weigh(self, origin: str, weights: Mapping[str, float]) -> None:
        """Set how the rows that clients of a region send are shared; a node without a weight gets none."""

    async def drain(self, name: str) -> None:
        """Give a node nothing new; what it has is answered."""

    async def open_connections(self, name: str) -> int:
        """Return how many requests or connections a node still has from here."""

    async def remove(self, name: str) -> None:
        """Forget a node."""


@runtime_checkable
class FamilyIngress(Protocol):
    """An ingress that also shares the rows of each family by themselves.  A cluster of one family does not need it."""

    async def weigh_family(self, origin: str, family: str, weights: Mapping[str, float]) -> None:
        """Set how the rows of one family that clients of a region send are shared."""


@runtime_checkable
class HealthIngress(Protocol):
    """An ingress whose own checks tell a node that is dead from one that only the controller does not reach."""

    async def healthy(self, name: str) -> bool:
        """Return whether the ingress finds the node ready now."""


class Store(Protocol):
    """Keeps the controller's state where another controller finds it, after this one or its machine died."""

    async def load(self) -> bytes | None:
        """Return what was saved last, or None."""

    async def save(self, state: bytes) -> None:
        """Replace what is kept; returns once a controller started elsewhere would find it."""


class RegionGrids(Protocol):
    """The grids of all regions."""

    async def readings(self, at_s: float) -> Mapping[str, Reading]:
        """Return the newest reading of each region."""

    async def forecasts(self, at_s: float, horizon_s: float) -> Mapping[str, Sequence[Reading]]:
        """Return each region's forecast from `at_s` on; empty if there is none."""
