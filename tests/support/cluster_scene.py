"""A simulated world of two regions for tests of a cluster's controller, and controllers of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from clover.cluster.controller.controller import ClusterController
from clover.cluster.controller.records import ClusterLook, ClusterTerms
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterNode, ClusterPlan, ClusterProblem
from clover.cluster.simulate.world import (
    ClusterFault,
    SimulatedGrids,
    SimulatedIngress,
    SimulatedNodes,
    SimulatedStore,
    SimulatedWorld,
    WorldRules,
)
from tests.support.cluster_fixture import frontier, node, region, terms

NODES = [node("n1", "north"), node("n2", "north"), node("s1", "south"), node("s2", "south")]


class Scene:
    """A world of two regions, the north cleaner, and its controllers; a step is a look and 60 seconds."""

    def __init__(self, nodes: list[ClusterNode] | None = None, rate: float = 150.0, **other: Any) -> None:
        self.rate = rate
        self.intensity = {"north": 100.0, "south": 400.0}
        regions = [
            region(name, lambda _, own=name: self.intensity[own], lambda _: self.rate)  # type: ignore[misc]
            for name in ("north", "south")
        ]
        self.terms: ClusterTerms = terms(nodes or NODES, release_after_s=120.0, dwell_s=60.0, **other)
        rules = WorldRules(self.terms.families, (frontier(),), wake_spread=0.0)
        self.world = SimulatedWorld(regions, nodes or NODES, rules, 1_640_995_200.0)
        self.nodes, self.ingress = SimulatedNodes(self.world), SimulatedIngress(self.world)
        self.store, self.grids = SimulatedStore(self.world), SimulatedGrids(self.world)
        self.plan: Callable[[ClusterProblem], ClusterPlan] = plan_cluster

    def controller(self, holder: str = "one", nodes: Any = None, ingress: Any = None) -> ClusterController:
        async def solve(problem: ClusterProblem) -> ClusterPlan:
            return self.plan(problem)

        return ClusterController(
            self.terms, nodes or self.nodes, ingress or self.ingress, self.store, self.grids, solve,
            lambda: self.world.now_s, holder,
        )  # fmt: skip

    async def steps(self, controller: ClusterController, count: int = 10) -> list[ClusterLook]:
        looks = []
        for _ in range(count):
            looks.append(await controller.step())
            self.world.advance(60.0)
        return looks

    def serving(self) -> set[str]:
        return {name for name, own in self.world.nodes.items() if own.rates}

    def fault(self, kind: str, name: str = "", seconds: float = 600.0) -> None:
        self.world.strike(ClusterFault(at_s=0.0, kind=kind, name=name, seconds=seconds))  # type: ignore[arg-type]


def play(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]
