"""How much of what a cluster saves comes from accuracy, from the grids, and from released nodes.

A ladder of plans of the same rows on the same nodes, each with one freedom more than the one before:

1. `best_g_h`    each region serves its own clients, all nodes are awake, and no accuracy is spent (`baselines`).
2. `alone_g_h`   accuracy may be spent down to the floors, each node by itself.
3. `shifted_g_h` rows may go to any region that may answer them, and the floors hold for the cluster together; all nodes
                 are awake.
4. `plan_g_h`    nodes may be released.

What each step saves is that lever's part.  Levers depend on each other, so their parts depend on the order: released
nodes save more if rows may be moved first, for then whole regions need no nodes.  The first two rungs take devices as
divisible (see `baselines`), the last two do not.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from clover.planning.cluster.arrays import ProblemArrays, read
from clover.planning.cluster.baselines import alone
from clover.planning.cluster.records import ClusterProblem, DeviceFrontier
from clover.planning.cluster.solving import solve
from clover.types import Record


class Levers(Record, frozen=True, kw_only=True):
    """Grams/h of four plans, each with one lever more; see the module.

    `unserved`: rows/s by family that a region alone has no room for; the ladder is not fair if there are any."""

    best_g_h: float
    alone_g_h: float
    shifted_g_h: float
    plan_g_h: float
    unserved: dict[str, float] = {}

    @property
    def by_accuracy(self) -> float:
        """The grams/h that spending accuracy saves."""
        return self.best_g_h - self.alone_g_h

    @property
    def by_shift(self) -> float:
        """The grams/h that moving rows between regions saves."""
        return self.alone_g_h - self.shifted_g_h

    @property
    def by_release(self) -> float:
        """The grams/h that releasing nodes saves."""
        return self.shifted_g_h - self.plan_g_h


def levers(problem: ClusterProblem) -> Levers:
    """Return the ladder of a problem, planned afresh: what was in force before does not matter."""
    fresh = replace(problem, before=())
    instance = read(fresh)
    apart = alone(instance)
    # Nodes that are awake in any case draw nothing that a plan can change.
    idle_free = replace(
        fresh,
        nodes=tuple(replace(node, awake_w=0.0, wake_j=0.0) for node in fresh.nodes),
        frontiers=tuple(replace(frontier, idle_w=0.0) for frontier in _same_idle(fresh)),
        survive="none",
    )
    shifted = solve(read(idle_free))
    return Levers(
        best_g_h=float(alone(instance, best=True).grams_h),
        alone_g_h=float(apart.grams_h),
        shifted_g_h=float(_idle(instance) + shifted.rounded.grams_h),
        plan_g_h=float(solve(instance).rounded.grams_h),
        unserved={family: float(rate) for family, rate in apart.unserved.items()},
    )


def _idle(instance: ProblemArrays) -> float:
    return float(np.sum([instance.idle_grams(node, waking=False) for group in instance.groups for node in group.nodes]))


def _same_idle(problem: ClusterProblem) -> list[DeviceFrontier]:
    """Return the frontiers with what a family's idle watts are above the least of its kind put into its points."""
    least = {
        kind: min(item.idle_w for item in problem.frontiers if item.kind == kind)
        for kind in {item.kind for item in problem.frontiers}
    }
    return [
        replace(
            item,
            points=tuple(replace(point, watts=point.watts + item.idle_w - least[item.kind]) for point in item.points),
        )
        for item in problem.frontiers
    ]
