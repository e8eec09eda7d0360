"""A week of a cluster in several regions, simulated through its production controller, beside what others would do.

    python -m bench.cluster_week [--days 7] [--each 4] [--devices 8] [--traces a.csv,b.csv,c.csv] [--faults 6]
    python -m bench.cluster_week --regions 8 --each 125 --days 1 --no-levers         # 1,000 nodes, 8,000 devices

Regions differ by their grid and by the time of their day: clients send 0.6 to 1.4 times the mean, most at 14:00 local
time, with 2 % of noise.  Without `--traces` each grid is the synthetic duck curve of `clover.carbon.synthetic` at the
local time of its region, scaled by 0.7 to 1.3; with them, region n has the n-th file (any layout that Clover reads),
from `--start`, or from its first midnight.

Devices are A100s with MIG: the operating points that a node's own planner finds for a family of the paper (analytical,
`bench.cluster_solve.frontiers`).  It prints, all modelled:

 1. grams, rows lost, accuracy, late rows: the controller, "each region alone" (its own rows shared equally among its
    nodes, all awake) and "all awake" (all rows among all nodes), each node at the floor by its own best mix;
 2. what shifting by grid, releasing nodes, and accuracy save, each by itself (`bench.cluster_levers`);
 3. how long looks and plans took, in CPU time: measured on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.cluster_levers import LEVERS, play_levers
from bench.cluster_solve import SLO_MS, frontiers
from bench.common import provenance, show, write_json
from clover.carbon import build_source
from clover.carbon.layouts import parse_time
from clover.carbon.synthetic import duck_curve_g_per_kwh
from clover.carbon.trace import TraceSource
from clover.cluster.controller.capacity import most_rows
from clover.cluster.controller.records import ClusterTerms
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import ClusterNode, DeviceFrontier, FamilyTerms
from clover.cluster.simulate.scenario import START_S, ClusterRun, ClusterScenario, play_fixed, simulate
from clover.cluster.simulate.world import ClusterFault, SimulatedRegion

_DAY_S = 86_400.0
_SWING = 0.4
_BUSIEST_H = 14.0
_NOISE = 0.02
_WAY_MS = 60.0
"""Milliseconds that the way to the farthest region and back adds."""

Figure = Callable[[float], float]


def trace(path: str, start_s: float | None, days: float) -> Figure:
    """Return the intensities of a file as a function of simulated time; gaps keep the value before."""
    source = build_source(f"trace:{path}?loop=1")
    assert isinstance(source, TraceSource)
    first_s = math.ceil(source.start_s / _DAY_S) * _DAY_S if start_s is None else start_s
    readings = asyncio.run(source.forecast(first_s, days * _DAY_S + 7200.0))
    times = [own.at_s - first_s for own in readings]
    values = [own.g_per_kwh for own in readings]

    def at(at_s: float) -> float:
        return values[max(0, bisect.bisect_right(times, at_s - START_S) - 1)]

    return at


def synthetic(local_h: float, scale: float) -> Figure:
    """Return the duck curve of a region whose day is `local_h` hours ahead of UTC."""
    return lambda at_s: scale * duck_curve_g_per_kwh(at_s + local_h * 3600.0)


def demand(
    family: str, mean: float, local_h: float, step_s: float, seed: int
) -> Callable[[float], Mapping[str, float]]:
    """Return the rows/s that a region's clients send."""

    def at(at_s: float) -> Mapping[str, float]:
        hour = (at_s / 3600.0 + local_h) % 24.0
        noise = random.Random(f"{seed} {int(at_s // step_s)}").gauss(1.0, _NOISE)
        wave = 1.0 + _SWING * math.cos(2.0 * math.pi * (hour - _BUSIEST_H) / 24.0)
        return {family: max(0.0, mean * wave * noise)}

    return at


def scenario(options: argparse.Namespace, devices: DeviceFrontier) -> ClusterScenario:
    """Return the scenario that the flags ask for."""
    count = options.regions
    files = [item for item in options.traces.split(",") if item]
    start_s = parse_time(options.start) if options.start else None
    best = max(point.accuracy for point in devices.points)
    slo_ms = 1.2 * max(point.p95_ms for point in devices.points) + _WAY_MS
    names = [f"region{number}" for number in range(count)]
    nodes = [
        ClusterNode(
            name=f"{name}-{number:03d}", region=name, devices={devices.kind: options.devices},
            awake_w=options.awake_w, wake_s=options.wake_s, wake_j=options.awake_w * options.wake_s,
        )
        for name in names
        for number in range(options.each)
    ]  # fmt: skip
    mean = options.level * options.each * options.devices * most_rows(devices.points, best)
    regions = []
    for number, name in enumerate(names):
        local_h = 24.0 * number / count
        scale = 0.7 + 0.6 * number / max(1, count - 1)
        grid = trace(files[number % len(files)], start_s, options.days) if files else synthetic(local_h, scale)
        sent = demand(devices.family, mean, local_h, options.step_s, options.seed + number)
        regions.append(SimulatedRegion(name, grid, sent))
    ways = {
        one: {other: _WAY_MS * min(abs(a - b), count - abs(a - b)) * 2.0 / count for b, other in enumerate(names)}
        for a, one in enumerate(names)
    }
    family = FamilyTerms(family=devices.family, accuracy_floor=best - options.points, slo_p95_ms=slo_ms)
    terms = ClusterTerms(
        nodes=tuple(nodes), families=(family,), frontiers=(devices,), latency_ms=ways, survive=options.survive,
        look_s=options.step_s, plan_s=options.plan_s, release_after_s=options.step_s, dwell_s=900.0,
    )  # fmt: skip
    faults = _faults(options, nodes, names)
    return ClusterScenario(terms, regions, options.days * _DAY_S, options.step_s, faults=faults, seed=options.seed)


def _faults(options: argparse.Namespace, nodes: Sequence[ClusterNode], regions: Sequence[str]) -> list[ClusterFault]:
    """Return faults at random times: kills, partitions, stragglers, killed controllers, and one lost region."""
    draw = random.Random(options.seed)
    kinds = ("kill", "partition", "slow", "controller", "region")
    found = []
    for number in range(options.faults):
        kind: Any = kinds[number % len(kinds)]
        name = draw.choice(regions) if kind == "region" else draw.choice(nodes).name
        at_s = draw.uniform(0.05, 0.9) * options.days * _DAY_S
        found.append(ClusterFault(at_s=at_s, kind=kind, name=name, seconds=draw.uniform(600.0, 7200.0), factor=3.0))
    return found


def _row(name: str, run: ClusterRun, family: str, against: float, nodes: int) -> list[object]:
    sums = run.sums
    saved = f"{1.0 - sums.grams / against:.1%}" if against else ""
    return [
        name, f"{sums.grams / 1000.0:,.1f}", saved, f"{sums.active_g / sums.grams:.0%}",
        f"{sums.idle_g / sums.grams:.0%}", f"{sums.wake_g / sums.grams:.1%}",
        f"{sums.accuracy(family):.2f}", f"{sums.refused:,.0f}", f"{sums.in_flight:,.0f}",
        f"{sums.late / max(sums.answered, 1.0):.3%}", sums.wakes, sums.releases,
        f"{sums.awake_node_s / (run_seconds(run) * nodes):.0%}" if run.hours else "100%",
    ]  # fmt: skip


def run_seconds(run: ClusterRun) -> float:
    """Return the simulated seconds of a run, in whole hours."""
    return 3600.0 * len(run.hours)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print tables, and return 0, or 1 if the controller broke a rule."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster_week", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--family", choices=list(SLO_MS), default="efficientnet", help="one of the paper's families [efficientnet]")
    add("--days", type=float, default=7.0, help="days that are simulated [7]")
    add("--regions", type=int, default=3, help="regions [3]")
    add("--each", type=int, default=4, help="nodes in each region [4]")
    add("--devices", type=int, default=8, help="devices in each node [8]")
    add("--level", type=float, default=0.5, help="mean demand over what all serve at the best accuracy [0.5]")
    add("--points", type=float, default=1.0, help="points that the accuracy floor is below the best [1]")
    add("--traces", default="", help="files of intensities, one a region, with commas; synthetic if empty")
    add("--start", default="", help="time of the traces to start at [their first midnight]")
    add("--survive", choices=("none", "node", "region"), default="node", help="what may be lost [node]")
    add("--awake-w", type=float, default=400.0, help="watts of a node beside its devices [400]")
    add("--wake-s", type=float, default=180.0, help="seconds that waking takes, with up to 30 %% spread [180]")
    add("--step-s", type=float, default=300.0, help="simulated seconds of a step, and between looks [300]")
    add("--plan-s", type=float, default=900.0, help="seconds between plans if nothing happens [900]")
    add("--faults", type=int, default=0, help="faults that are injected [0]")
    add("--seed", type=int, default=0, help="of noise, wake times and faults [0]")
    add("--no-levers", action="store_true", help="leave out what each lever saves (eight more runs)")
    add("--json", metavar="FILE", default="", help="write figures there")
    options = parser.parse_args(argv)
    devices = next(own for own in frontiers() if own.family == options.family)
    own = scenario(options, devices)
    family, nodes = devices.family, len(own.terms.nodes)
    began = time.perf_counter()
    run = simulate(own, plan_cluster)
    seconds = time.perf_counter() - began
    fixed = {"each region alone": play_fixed(own, "alone"), "all awake, equal shares": play_fixed(own, "equal")}
    columns = ("", "kg", "controller saves", "active", "idle", "wake", "accuracy %", "refused", "in flight", "late",
               "wakes", "releases", "awake")  # fmt: skip
    title = (
        f"{options.days:g} days, {options.regions} regions, {nodes} nodes x {options.devices} devices, {family}, floor "
        f"{own.terms.families[0].accuracy_floor:.2f} %, {run.sums.sent / 1e6:,.1f} million rows (simulated)"
    )
    rows = [_row("controller", run, family, 0.0, nodes)]
    for name, other in fixed.items():
        row = _row(name, other, family, 0.0, nodes)
        row[2] = f"{1.0 - run.sums.grams / other.sums.grams:.1%}"
        rows.append(row)
    show(title, columns, rows)
    document: dict[str, Any] = {"grams": {"controller": run.sums.grams}}
    document["grams"] |= {name: other.sums.grams for name, other in fixed.items()}
    if not options.no_levers:
        document["levers"] = _levers(own, family)
    applied = sum(decision.action == "applied" for decision in run.decisions)
    show(
        f"Speed ({provenance()['cores']} cores, {provenance()['processor']}): {seconds:.0f} s in all (measured)",
        ("looks", "mean ms CPU", "longest", "plans", "mean ms CPU", "longest", "applied", "controllers", "planned g"),
        [
            [
                len(run.look_s), 1e3 * statistics.fmean(run.look_s), 1e3 * max(run.look_s), len(run.plan_s),
                1e3 * statistics.fmean(run.plan_s), 1e3 * max(run.plan_s), applied, run.controllers,
                f"{run.planned_g / run.sums.grams:.1%}",
            ]
        ],
    )  # fmt: skip
    for text in run.misdeeds[:5]:
        print(f"broken rule: {text}", file=sys.stderr)
    write_json(options.json, document)
    return int(bool(run.misdeeds))


def _levers(own: ClusterScenario, family: str) -> dict[str, Any]:
    levers = play_levers(own, plan_cluster)
    most = levers.runs[frozenset()].sums.grams
    rows = []
    for on, run in levers.runs.items():
        name = " + ".join(item for item in LEVERS if item in on) or "none"
        saved = f"{1.0 - run.sums.grams / most:.1%}"
        rows.append(
            [
                name,
                f"{run.sums.grams / 1000.0:,.1f}",
                saved,
                f"{run.sums.accuracy(family):.2f}",
                f"{run.sums.refused:,.0f}",
            ]
        )
    show("Levers by themselves and together (simulated)", ("levers on", "kg", "saved", "accuracy %", "refused"), rows)
    shares = [[name, f"{share:.1%}"] for name, share in levers.shares.items()]
    shares.append(["together", f"{levers.saved:.1%}"])
    show("Saved by each lever, mean over all orders, of the grams without any", ("lever", "saved"), shares)
    return {"shares": levers.shares, "grams": {"+".join(sorted(on)): run.sums.grams for on, run in levers.runs.items()}}


if __name__ == "__main__":
    sys.exit(main())
