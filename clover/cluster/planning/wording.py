"""A plan in one plain sentence.  Without a solution: which promise fails, by how much, and what would help."""

from __future__ import annotations

from collections import defaultdict

from clover.cluster.planning.arrays import ProblemArrays
from clover.cluster.planning.baselines import Baseline
from clover.cluster.planning.solving import SolvedCluster


def reason_of(solution: SolvedCluster, apart: Baseline) -> str:
    """Return why a plan is as it is, missing promises first."""
    instance = solution.instance
    parts = [*_missing(solution), _awake(solution)]
    if solution.kept:
        parts.append("the nodes of the plan in force are kept: others would save less than changing costs")
    if apart.unserved:
        rows = ", ".join(f"{_rate(rate)} rows/s of {family}" for family, rate in sorted(apart.unserved.items()))
        parts.append(f"with each region alone, {rows} would not be served")
    del instance
    return "; ".join(parts)


def _awake(solution: SolvedCluster) -> str:
    instance, rounded = solution.instance, solution.rounded
    by_region: dict[int, int] = defaultdict(int)
    for group, count in zip(instance.groups, rounded.nodes, strict=True):
        by_region[group.region] += round(count)
    where = ", ".join(
        f"{count} in {instance.regions[region]} at {instance.intensity[region]:.0f} g/kWh"
        for region, count in sorted(by_region.items(), key=lambda item: instance.intensity[item[0]])
        if count
    )
    total = sum(group.size for group in instance.groups)
    rows = sum(stream.rate for stream in instance.streams) - float(solution.unserved.sum())
    gap = ""
    if rounded.grams_h > 0.0 and solution.bound_g_h > 0.0:
        gap = f", at most {max(0.0, rounded.grams_h / solution.bound_g_h - 1.0):.1%} more than any plan"
    return f"{sum(by_region.values())} of {total} nodes awake ({where or 'none'}) for {_rate(rows)} rows/s{gap}"


def _missing(solution: SolvedCluster) -> list[str]:
    instance = solution.instance
    phrases = []
    for at, family in enumerate(instance.families):
        if instance.asked[at] > instance.floors[at] + 1e-9:
            phrases.append(
                f"the accuracy floor {instance.asked[at]:.2f} of {family} cannot be kept: the best operating point "
                f"within its SLO has {instance.floors[at]:.2f}; lower the floor or add a better variant"
            )
    left: dict[int, float] = defaultdict(float)
    for stream, rate in zip(instance.streams, solution.unserved, strict=True):
        if rate > 0.0:
            left[stream.family] += float(rate)
    for family_at, rate in sorted(left.items()):
        phrases.append(
            f"{_rate(rate)} rows/s of {instance.families[family_at]} are not served: {_why(instance, family_at)}"
        )
    for loss, lacking in zip(solution.losses, solution.unkept, strict=True):
        what = "a node" if loss.region is None else f"region {instance.regions[loss.region]}"
        if lacking > 0.0:
            phrases.append(
                f"after the loss of {what}, {_rate(lacking)} rows/s would have no room even with all nodes awake; add "
                "nodes, lower a floor, or set survive to less"
            )
        gone = sum(stream.rate for stream, rate in zip(instance.streams, loss.rates, strict=True) if rate == 0.0)
        if gone > 0.0:
            phrases.append(
                f"{_rate(gone)} rows/s can only be answered by what is lost with {what}, so no reserve keeps them"
            )
    return phrases


def _why(instance: ProblemArrays, family: int) -> str:
    """Return what rows of a family lack: an operating point, a region that may answer, or devices."""
    name = instance.families[family]
    terms = instance.problem.terms[family]
    if not any(mode.family == family for mode in instance.modes):
        kinds = ", ".join(instance.kinds) or "no node that answers"
        return (
            f"no device ({kinds}) has an operating point of {name} within its SLO of {terms.slo_p95_ms:g} ms; profile "
            "the family on these devices or raise the SLO"
        )
    stranded = sorted(
        origin
        for stream in instance.streams
        if stream.family == family
        and not any(
            stream.allowed[group.region, m] and mode.kind in group.devices
            for group in instance.groups
            for m, mode in enumerate(instance.modes)
        )
        for origin in stream.rates
    )
    if stranded:
        return (
            f"clients of {', '.join(stranded)} may use no region that answers within {terms.slo_p95_ms:g} ms; allow "
            "them another region or raise the SLO"
        )
    return (
        f"all devices that may answer them are busy at the accuracy floor {instance.floors[family]:.2f}; add nodes or "
        "lower the floor"
    )


def _rate(rate: float) -> str:
    """Return rows/s in whole numbers, and such that a few do not read as none."""
    return f"{rate:.2g}" if rate < 10.0 else f"{rate:.0f}"
