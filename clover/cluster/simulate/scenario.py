"""A cluster simulated through its production controller: weeks in minutes, a thousand nodes, and what goes wrong.

    scenario = ClusterScenario(terms, regions, seconds=86_400.0)
    run = simulate(scenario, plan_cluster)
    run.sums.grams, run.sums.accuracy("fashion"), run.sums.refused

`simulate` plays a scenario through `clover.cluster.controller.controller.ClusterController` as it runs on a real
cluster; only what is behind its ports is simulated (`simulate.world`).  `play_fixed` plays the same world without a
controller, for what others would have done: all nodes awake, with equal shares of all rows, or of those of their own
region.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from clover.cluster.controller.controller import ClusterController
from clover.cluster.controller.problem import Plan
from clover.cluster.controller.records import ClusterDecision, ClusterStatus, ClusterTerms
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, NodeTarget
from clover.cluster.simulate.world import (
    ClusterFault,
    ClusterSums,
    SimulatedGrids,
    SimulatedIngress,
    SimulatedNodes,
    SimulatedRegion,
    SimulatedStore,
    SimulatedWorld,
    WorldRules,
)
from clover.errors import ConfigError

START_S = 1_640_995_200.0
"""2022-01-01T00:00Z, a Saturday."""


@dataclass
class ClusterScenario:
    """What is simulated: the controller's terms, the regions, how long, in steps of `step_s` seconds (a look each), and
    the faults.  `wake_spread` and `seed` as in `WorldRules`."""

    terms: ClusterTerms
    regions: Sequence[SimulatedRegion]
    seconds: float
    step_s: float = 60.0
    start_s: float = START_S
    faults: Sequence[ClusterFault] = ()
    wake_spread: float = 0.3
    seed: int = 0

    def world(self) -> SimulatedWorld:
        """Return the world at the start; ConfigError if the scenario cannot be played."""
        self._check()
        rules = WorldRules(
            self.terms.families, self.terms.frontiers, self.terms.latency_ms, self.wake_spread, self.seed
        )
        return SimulatedWorld(self.regions, self.terms.nodes, rules, self.start_s)

    def _check(self) -> None:
        if not (self.step_s > 0.0 and self.seconds > 0.0):
            raise ConfigError(
                f"a simulation takes more than 0 s, in steps of more, not {self.seconds} and {self.step_s}"
            )
        regions = {region.name for region in self.regions}
        nodes = {node.name for node in self.terms.nodes}
        for node in self.terms.nodes:
            if node.region not in regions:
                raise ConfigError(f"node {node.name} is in region {node.region}, which is none of {', '.join(regions)}")
        for fault in self.faults:
            names = {"region": regions, "kill": nodes, "partition": nodes, "slow": nodes}.get(fault.kind)
            if names is not None and fault.name not in names:
                kind = "region" if fault.kind == "region" else "node"
                raise ConfigError(f"a fault ({fault.kind}) names the {kind} {fault.name!r}, which there is not")
            if not (fault.at_s >= 0.0 and fault.seconds > 0.0 and fault.factor > 0.0):
                raise ConfigError(f"a fault ({fault.kind}) needs a time from 0 s on, a length and a factor above 0")


@dataclass
class ClusterRun:
    """What came of a scenario.  `planned_g`: what the plans in force said it would emit; `look_s`: CPU seconds that
    each look took, the plan included; `plan_s` those of plans alone; `hours`: grams, rows/s answered and nodes awake of
    each hour."""

    sums: ClusterSums
    status: ClusterStatus | None = None
    decisions: list[ClusterDecision] = field(default_factory=list)
    planned_g: float = 0.0
    misdeeds: list[str] = field(default_factory=list)
    troubles: list[tuple[float, str]] = field(default_factory=list)
    look_s: list[float] = field(default_factory=list)
    plan_s: list[float] = field(default_factory=list)
    epochs: int = 0
    controllers: int = 1
    hours: list[tuple[float, float, float]] = field(default_factory=list)


def simulate(scenario: ClusterScenario, plan: Plan) -> ClusterRun:
    """Play a scenario through the production controller, whose plans `plan` makes."""
    return asyncio.run(_Player(scenario, plan).play())


class _Player:
    """One run."""

    def __init__(self, scenario: ClusterScenario, plan: Plan) -> None:
        self.scenario = scenario
        self.world = scenario.world()
        self.run = ClusterRun(self.world.sums)
        self._plan = plan
        self._store = SimulatedStore(self.world)
        self._down_until_s = -math.inf

    def controller(self) -> ClusterController:
        """Return a new controller of this world."""
        return ClusterController(
            self.scenario.terms,
            SimulatedNodes(self.world),
            SimulatedIngress(self.world),
            self._store,
            SimulatedGrids(self.world),
            self._solve,
            lambda: self.world.now_s,
            holder=f"controller-{self.run.controllers}",
        )

    async def _solve(self, problem: ClusterProblem) -> ClusterPlan:
        began = time.process_time()
        plan = self._plan(problem)
        self.run.plan_s.append(time.process_time() - began)
        return plan

    async def play(self) -> ClusterRun:
        """Play all steps."""
        scenario, world, run = self.scenario, self.world, self.run
        controller = self.controller()
        hour: tuple[float, float, float] = (0.0, 0.0, 0.0)
        for _ in range(math.ceil(scenario.seconds / scenario.step_s)):
            if world.now_s >= self._down_until_s:
                began = time.process_time()
                look = await controller.step()
                run.look_s.append(time.process_time() - began)
                if look.decision is not None:
                    run.decisions.append(look.decision)
                status = controller.status()
                run.troubles += [(world.now_s, text) for text in status.troubles]
                run.status = status
            world.advance(scenario.step_s)
            if run.status is not None:
                run.planned_g += run.status.grams_h * scenario.step_s / 3600.0
            if self._strike():
                run.controllers += 1
                controller = self.controller()
            if (world.now_s - scenario.start_s) % 3600.0 < scenario.step_s:
                sums = (world.sums.grams, world.sums.answered, world.sums.awake_node_s)
                run.hours.append((sums[0] - hour[0], (sums[1] - hour[1]) / 3600.0, (sums[2] - hour[2]) / 3600.0))
                hour = sums
        run.misdeeds = world.misdeeds
        run.epochs = run.status.epoch if run.status is not None else 0
        return run

    def _strike(self) -> bool:
        """Let faults begin and end that are due; return whether the controller was killed."""
        world, killed = self.world, False
        now_s, step_s = world.now_s - self.scenario.start_s, self.scenario.step_s
        for fault in self.scenario.faults:
            if now_s - step_s < fault.at_s <= now_s:
                if fault.kind == "controller":
                    self._down_until_s, killed = world.now_s + fault.seconds, True
                else:
                    world.strike(fault)
            if now_s - step_s < fault.at_s + fault.seconds <= now_s:
                world.heal(fault)
        return killed


def play_fixed(scenario: ClusterScenario, how: Literal["alone", "equal"]) -> ClusterRun:
    """Play a scenario without a controller: all nodes awake and at their floors.  "alone": each region's rows are
    shared equally among its own nodes; "equal": all rows among all nodes."""
    world = scenario.world()
    for node in world.nodes.values():
        node.state, node.started_s = "serving", world.now_s
        floors = {own.family: own.accuracy_floor for own in scenario.terms.families}
        node.target = NodeTarget(node=node.machine.name, awake=True, accuracy=floors)
        world.admitted.add(node.machine.name)
    sizes = {name: float(sum(node.machine.devices.values())) for name, node in world.nodes.items()}
    for region in world.regions:
        own = {name: size for name, size in sizes.items() if world.nodes[name].machine.region == region}
        world.weights["", region] = dict(sizes) if how == "equal" or not own else own
    for _ in range(math.ceil(scenario.seconds / scenario.step_s)):
        world.advance(scenario.step_s)
    return ClusterRun(world.sums)
