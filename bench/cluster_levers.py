"""How much of a cluster's saving each lever has: the grid's shift, the release of nodes, and accuracy.

Each lever is switched off by posing the planner another problem, and every one of the eight combinations is played
through the production controller:

    shift      off: rows may be answered in the region of their clients only
    release    off: all nodes are awake, and what they use by being so is no part of a plan
    accuracy   off: the floor is that of the most accurate operating point

A lever's share is its mean gain over all orders in which the three can be switched on (the Shapley value), so that the
shares add up to the whole saving whatever the levers do to each other.  Rows that a combination refuses are counted,
too: one that serves less emits less.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import msgspec

from clover.cluster.controller.problem import Plan
from clover.cluster.planning.records import ClusterPlan, ClusterProblem, NodeTarget
from clover.cluster.simulate.scenario import ClusterRun, ClusterScenario, simulate

LEVERS = ("shift", "release", "accuracy")


@dataclass
class ClusterLevers:
    """Runs by the levers that are on, and each lever's part of the grams of the run with none."""

    runs: dict[frozenset[str], ClusterRun]
    shares: dict[str, float]

    @property
    def saved(self) -> float:
        """Part of the grams of the run without levers that all three together save."""
        most = self.runs[frozenset()].sums.grams
        return 1.0 - self.runs[frozenset(LEVERS)].sums.grams / most if most > 0.0 else 0.0


def play_levers(scenario: ClusterScenario, plan: Plan) -> ClusterLevers:
    """Play all combinations of levers."""
    runs = {}
    for count in range(len(LEVERS) + 1):
        for names in itertools.combinations(LEVERS, count):
            on = frozenset(names)
            runs[on] = simulate(with_levers(scenario, on), plan if "release" in on else all_awake(plan))
    return ClusterLevers(runs, shapley({on: run.sums.grams for on, run in runs.items()}))


def shapley(grams: dict[frozenset[str], float]) -> dict[str, float]:
    """Return each lever's mean gain over all orders, as a part of the grams without any."""
    most = grams[frozenset()]
    if most <= 0.0:
        return dict.fromkeys(LEVERS, 0.0)
    found = dict.fromkeys(LEVERS, 0.0)
    orders = list(itertools.permutations(LEVERS))
    for order in orders:
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            found[name] += (grams[before] - grams[before | {name}]) / (most * len(orders))
    return found


def with_levers(scenario: ClusterScenario, on: frozenset[str]) -> ClusterScenario:
    """Return the scenario with the other levers switched off, but for `release` (`all_awake`)."""
    terms = scenario.terms
    families = terms.families
    if "shift" not in on:
        origins = [own.name for own in scenario.regions]
        families = tuple(msgspec.structs.replace(own, regions={name: (name,) for name in origins}) for own in families)
    if "accuracy" not in on:
        best = {
            own.family: max(
                (point.accuracy for known in terms.frontiers if known.family == own.family for point in known.points),
                default=-math.inf,
            )
            for own in families
        }
        families = tuple(msgspec.structs.replace(own, accuracy_floor=best[own.family]) for own in families)
    return ClusterScenario(
        msgspec.structs.replace(terms, families=families),
        scenario.regions,
        scenario.seconds,
        scenario.step_s,
        scenario.start_s,
        scenario.faults,
        scenario.wake_spread,
        scenario.seed,
    )


def all_awake(plan: Plan) -> Plan:
    """Return a planner that keeps every node awake, to which idle watts are no matter, since they cannot be spared."""

    def keep(problem: ClusterProblem) -> ClusterPlan:
        nodes = tuple(msgspec.structs.replace(node, awake_w=0.0, wake_j=0.0) for node in problem.nodes)
        frontiers = tuple(msgspec.structs.replace(own, idle_w=0.0) for own in problem.frontiers)
        found = plan(msgspec.structs.replace(problem, nodes=nodes, frontiers=frontiers))
        named = {own.node: own for own in found.targets}
        return msgspec.structs.replace(found, targets=tuple(_awake(node.name, named) for node in problem.nodes))

    return keep


def _awake(name: str, targets: dict[str, NodeTarget]) -> NodeTarget:
    own = targets.get(name)
    return msgspec.structs.replace(own, awake=True) if own is not None else NodeTarget(node=name, awake=True)
