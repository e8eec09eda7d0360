"""What `clover cluster status` and `plan` print, in tables that fit 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from clover import terminal
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller.records import ClusterLook, ClusterNodeStatus, ClusterRegionStatus, ClusterStatus
from clover.cluster.planning.records import ClusterPlan, RegionFlow
from clover.terminal import Column

_REGIONS = (
    Column("region", right=False),
    Column("g/kWh", "carbon intensity now"),
    Column("how known", right=False, spare=3),
    Column("awake", "nodes that are awake, of all"),
    Column("devices", "of the awake nodes", spare=2),
    Column("sent/s", "rows a second that the region's clients send"),
    Column("answered/s", "rows a second that its nodes answer by the plan"),
    Column("g/h reported", "grams an hour by its nodes' own accounts, without awake_w"),
)
_NODES = (
    Column("node", right=False),
    Column("region", right=False),
    Column("phase", right=False),
    Column("share", "part of all rows by the weights in force"),
    Column("rows/s", "as the node counts them"),
    Column("accuracy", "least mean accuracy it is to keep, percent", spare=3),
    Column("p95 ms", "as the node measures it, without the way there and back"),
    Column("devices", right=False, spare=4),
    Column("note", right=False, spare=1),
)
_FAMILIES = (
    Column("model", right=False),
    Column("rows/s"),
    Column("accuracy", "mean of all rows within the budget's horizon, percent"),
    Column("floor", "what was promised"),
    Column("p95 ms"),
    Column("SLO ms"),
    Column("rows", "answered since the controller counts", spare=2),
    Column("g reported", "grams by the nodes' own accounts", spare=1),
)


def show_status(status: ClusterStatus, file: ClusterFile, width: int) -> str:
    """Return the status of a cluster in lines of `width` columns."""
    parts = [_head(status, file), _emissions(status)]
    parts += _table(_REGIONS, [_region(region) for region in status.regions], width)
    parts += _table(_NODES, [_node(node) for node in status.nodes], width)
    parts += _table(_FAMILIES, [
        (family.family, _short(family.rate), _number(family.accuracy), f"{family.accuracy_floor:g}",
         f"{family.p95_ms:.1f}", f"{family.slo_p95_ms:g}", f"{family.rows:.0f}", _short(family.reported_g, 3))
        for family in status.families
    ], width)  # fmt: skip
    parts += _flows(status.flows)
    parts += [f"! {trouble}" for trouble in status.troubles]
    return wrapped(parts, width)


def show_plan(look: ClusterLook, file: ClusterFile, width: int) -> str:
    """Return what the controller would do now, in lines of `width` columns."""
    plan = look.plan
    troubles = [f"! {trouble}" for trouble in look.troubles]
    if look.stopped:
        return wrapped([f"nothing would be done: {look.stopped}"], width)
    if plan is None:
        why = "" if troubles else ": no node has reported what it can do"
        return wrapped([f"no plan can be made yet{why}", *troubles], width)
    reason = look.decision.reason if look.decision is not None else plan.reason
    parts = [f"plan of {file.cluster.name}: {reason}", _of_plan(plan)]
    rows = [
        (target.node, file.region_of(target.node).name if target.node in {n.name for n in file.node} else "",
         "awake" if target.awake else "released", _short(sum(target.rates.values())),
         " ".join(f"{target.accuracy[name]:.2f}" for name in target.rates if name in target.accuracy))
        for target in plan.targets
    ]  # fmt: skip
    columns = (
        Column("node", right=False), Column("region", right=False), Column("target", right=False),
        Column("rows/s"), Column("accuracy", "least mean accuracy of its own rows, percent"),
    )  # fmt: skip
    parts += _table(columns, rows, width)
    parts += _flows(plan.flows)
    parts += [f"! {name}: {_short(rate)} rows/s cannot be served" for name, rate in plan.unserved.items() if rate > 0.0]
    steps = [f"{step.kind} {step.node or f'{step.origin} {step.family}'.strip()}: {step.why}" for step in look.steps]
    parts += ["", "steps now:" if steps else "steps now: none", *(f"  {step}" for step in steps)]
    return wrapped([*parts, *troubles], width)


def _head(status: ClusterStatus, file: ClusterFile) -> str:
    awake = sum(node.phase in ("ready", "partitioned", "draining") for node in status.nodes)
    what = f"epoch {status.epoch}" if status.controlling else "not controlling"
    return f"{file.cluster.name}: {awake} of {len(status.nodes)} nodes awake, {what}; {status.reason}"


def _emissions(status: ClusterStatus) -> str:
    now = _saved_text(status.grams_h, status.alone_g_h, status.awake_g_h, "g/h by the plan (modelled)")
    totals = status.totals
    hours = totals.planned_s / 3600.0
    if totals.alone_g <= 0.0:
        return now
    since = _saved_text(totals.planned_g, totals.alone_g, totals.awake_g, f"g in {hours:.3g} h")
    return f"{now}\n{since}"


def _of_plan(plan: ClusterPlan) -> str:
    gap = f", at most {100 * (plan.grams_h / plan.bound_g_h - 1):.2g} % above the least" if plan.bound_g_h > 0.0 else ""
    return _saved_text(plan.grams_h, plan.alone_g_h, plan.awake_g_h, "g/h (modelled)") + gap


def _saved_text(grams: float, alone: float, awake: float, unit: str) -> str:
    words = [f"{_short(grams, 3)} {unit}"]
    words += [f"{_less(grams, alone)} than {_short(alone, 3)} of each region alone"] if alone > 0.0 else []
    words += [f"{_less(grams, awake)} than {_short(awake, 3)} with all nodes awake"] if awake > 0.0 else []
    return ", ".join(words)


def _region(region: ClusterRegionStatus) -> tuple[str, ...]:
    return (
        region.name,
        "" if region.intensity is None else f"{region.intensity:.0f}",
        region.method,
        f"{region.awake}/{region.nodes}",
        str(region.devices),
        _short(region.sent),
        _short(region.answered),
        _short(region.grams_h, 3),
    )


def _node(node: ClusterNodeStatus) -> tuple[str, ...]:
    target = node.target
    accuracy = " ".join(f"{value:.2f}" for value in target.accuracy.values()) if target is not None else ""
    note = f"held: {node.hold}" if node.hold is not None else node.why
    return (
        node.name,
        node.region,
        node.phase,
        f"{100 * node.share:.0f} %" if node.share else "",
        _short(sum(node.rates.values())) if node.rates else "",
        accuracy,
        " ".join(f"{value:.1f}" for value in node.p95_ms.values()),
        " ".join(f"{count} x {kind}" for kind, count in node.devices.items()),
        note,
    )


def _flows(flows: Sequence[RegionFlow]) -> list[str]:
    """Return the flows between regions, largest first; those within a region only if there is one to another."""
    away = sorted((flow for flow in flows if flow.rate > 0.0), key=lambda flow: -flow.rate)
    if not any(flow.origin != flow.region for flow in away):
        return []
    return ["", "rows/s from where to where:"] + [
        f"  {flow.family}: {flow.origin} -> {flow.region} {_short(flow.rate)}" for flow in away[:20]
    ]


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    if not rows:
        return []
    lines, left = terminal.plain(columns, rows, width)
    return ["", *lines, *([f"(not shown: {', '.join(left)}; --json has all)"] if left else [])]


def _less(grams: float, other: float) -> str:
    part = 100.0 * (1.0 - grams / other)
    return f"{part:.0f} % less" if part > -0.5 else f"{-part:.0f} % more"


def _short(value: float, digits: int = 4) -> str:
    """Return a figure with so many digits, all of its whole part included."""
    return f"{value:.{digits}g}" if abs(value) < 10.0**digits - 0.5 else f"{value:.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def wrapped(parts: Iterable[str], width: int) -> str:
    """Return the parts as lines; those that are too long are wrapped."""
    lines = [line for part in parts for line in part.split("\n")]
    out = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        out += textwrap.wrap(line, max(20, width), subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(out)
