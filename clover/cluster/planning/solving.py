"""Solve a cluster's problem: relax it, round to whole nodes and devices, and compare with the plan in force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clover.cluster.planning.arrays import EPSILON, Floats, ProblemArrays
from clover.cluster.planning.branching import Allowance, search
from clover.cluster.planning.exact import ExactSearch, searchable
from clover.cluster.planning.relaxation import ClusterRelaxation
from clover.cluster.planning.reserve import Loss, Reserve, confined, kept_with_all, losses, spare_rates
from clover.cluster.planning.rounding import Rounded, Rounding

_SOME = 1e-7  # of all rows: what counts as not served
_MOVING = 0.005  # part of all grams that another choice of nodes must save, as rows and devices move for it


@dataclass(frozen=True)
class SolvedCluster:
    """A solved instance: whole nodes, devices and rows; what is not served and not kept; the bound.

    `unkept`: for each loss that is wanted to be survived, the rows/s that its reserve lacks.  `kept`: the nodes that
    were awake stay so because others would save too little."""

    instance: ProblemArrays
    rounded: Rounded
    losses: tuple[Loss, ...]
    unkept: tuple[float, ...]
    unserved: Floats
    bound_g_h: float
    kept: bool


def solve(instance: ProblemArrays) -> SolvedCluster:
    """Return the whole nodes, devices and rows of an instance, and the bound."""
    spare = spare_rates(instance)
    reserve = Reserve(instance, spare)
    every = losses(instance, spare)
    wanted = tuple(loss for loss in every if loss.rates.any())
    rates = np.array([stream.rate for stream in instance.streams])
    relaxed, served, kept_losses, unkept = _relax(instance, spare, reserve, wanted, rates)
    made: dict[bytes, Rounded] = {}
    best, bound = search(
        instance,
        relaxed,
        _allowance(instance),
        lambda opened: Rounding(instance, relaxed, opened, reserve, kept_losses, served).rounded(made),
    )
    exact: ExactSearch | None = None
    if searchable(instance):
        tight = (*kept_losses, *confined(instance, spare, kept_losses))
        counted = ClusterRelaxation(instance, spare, tight, served, counted=True)
        rounding = Rounding(instance, counted, best.opened, reserve, kept_losses, served)
        exact = ExactSearch(instance, counted, rounding)
        best, proven = exact.better(best)
        bound = max(bound, proven * _least_correction(instance))
    best, kept = _with_before(
        instance, Rounding(instance, relaxed, best.opened, reserve, kept_losses, served), best, exact
    )
    lacking = rates - served
    for stream, rate in best.unserved.items():
        lacking[stream] += rate
    if best.unserved:
        # Whole devices serve less than divisible ones: bound what is served.
        lowered = _relax(instance, spare, reserve, wanted, np.maximum(0.0, rates - lacking))[0]
        bound = lowered.bound([stream.allowed for stream in instance.streams], {})
    short = iter(unkept)
    return SolvedCluster(
        instance, best, every, tuple(next(short) if loss.rates.any() else 0.0 for loss in every), lacking, bound, kept
    )


def _least_correction(instance: ProblemArrays) -> float:
    """Return the least that a node's own correction is of its group's, which a group is planned with."""
    return min(
        (
            node.correction.get(family, 1.0) / float(group.correction[at])
            for group in instance.groups
            for node in group.nodes
            for at, family in enumerate(instance.families)
        ),
        default=1.0,
    )


def _allowance(instance: ProblemArrays) -> Allowance:
    """Return how long to search: the fewer nodes, the more each of them matters, and the quicker a program is
    solved."""
    total = sum(group.size for group in instance.groups)
    if searchable(instance):
        return Allowance(80, 2, 20)  # the exact search makes better plans; what is wanted is the bound and a good start
    return Allowance(80, 4, 40) if total <= 150 else Allowance(30, 1)


def _relax(
    instance: ProblemArrays, spare: Floats, reserve: Reserve, wanted: tuple[Loss, ...], rates: Floats
) -> tuple[ClusterRelaxation, Floats, tuple[Loss, ...], list[float]]:
    """Return the solved relaxation of what can be had: its rows/s by stream, its losses, and what each lacks."""
    some = _SOME * max(1.0, float(rates.sum()))
    while True:
        kept, lacking = kept_with_all(instance, reserve, wanted, rates)
        relaxed = ClusterRelaxation(instance, spare, (*kept, *confined(instance, spare, kept)), rates)
        missing = np.where(relaxed.missing() > some / max(1, len(rates)), relaxed.missing(), 0.0)
        if not missing.any():
            return relaxed, rates, kept, [item if item > some else 0.0 for item in lacking]
        rates = np.maximum(0.0, rates - missing * (1.0 + 1e-9))


def _with_before(
    instance: ProblemArrays, rounding: Rounding, best: Rounded, exact: ExactSearch | None
) -> tuple[Rounded, bool]:
    """Return the best plan on the nodes of the plan in force, if another one saves too little; say whether it is kept.

    Nodes that another plan releases have to be woken again some day: what that emits, spread over the horizon, and a
    small part of all grams for moving rows, is what the other plan must save more."""
    before = {target.node for target in instance.problem.before if target.awake}
    if not before:
        return best, False
    nodes = np.array([float(sum(node.name in before for node in group.nodes)) for group in instance.groups])
    if not nodes.any() or (nodes == best.nodes).all() or rounding.lacking(nodes)[0] > 0.0:
        return best, False
    same = rounding.round_devices(nodes, grow=False)
    if exact is not None:
        same = exact.better(same, nodes)[0]
    if sum(same.unserved.values()) > sum(best.unserved.values()) + EPSILON:
        return best, False
    again = 0.0
    for group, count, had in zip(instance.groups, best.nodes, nodes, strict=True):
        wake_w = group.nodes[0].wake_j / instance.problem.horizon_s
        again += max(0.0, had - count) * wake_w * float(instance.intensity[group.region]) / 1000.0
    if same.grams_h - best.grams_h <= again + _MOVING * same.grams_h:
        return same, True
    return best, False
