"""How long a plan of a cluster takes, and how far it is from the bound: 10 to 1,000 nodes with eight GPUs each.

    python -m bench.cluster_solve                                     # 10, 30, 100, 300, 1,000 nodes, 10 problems each
    python -m bench.cluster_solve --nodes 1000 --problems 30 --json growth.json

Families are the three of the paper with their table of an A100 (analytical, in the package), whose frontiers are made
by the planner of one machine.  Problems are drawn at random: three to eight regions with intensities of 20 to 700
g/kWh, latencies of 5 to 150 ms between them, a fifth of the clients confined to some regions, accuracy floors one
point below the best variant or up to four, a fifth to three fifths of the GPUs busy, corrections of 3 % (one a node,
the same for its families), a third of the nodes released, and the loss of any node to survive (`--survive`).  Seconds
are CPU seconds of one process with one thread, of the whole call: reading the problem, plan, bound and both baselines.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.common import provenance, show, write_json
from clover.cluster.planning.frontiers import device_frontier
from clover.cluster.planning.planner import plan_cluster
from clover.cluster.planning.records import (
    ClusterNode,
    ClusterProblem,
    DeviceFrontier,
    FamilyTerms,
    RegionDemand,
    RegionGrid,
)
from clover.research.simulate import families
from clover.types import ObjectiveConfig

NODES = (10, 30, 100, 300, 1000)
GPUS = 8
SLO_MS = {"efficientnet": 900.0, "yolov5": 1200.0, "albert": 500.0}
IDLE_W = 52.0
HOST_W = 350.0
WAKE_J = 60.0 * 500.0


@dataclass
class Solved:
    """What one problem took: CPU and wall seconds, grams/h, the gap to the bound, parts saved, rows/s left."""

    seconds: float
    wall_s: float
    gap: float
    saved_alone: float
    saved_awake: float
    unserved: float
    regions: int


def main(argv: Sequence[str] | None = None) -> int:
    """Plan random clusters of each size; print and perhaps write time and gap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=list(NODES), help="sizes of clusters")
    parser.add_argument("--problems", type=int, default=10, help="random problems of each size")
    parser.add_argument("--survive", choices=("none", "node", "region"), default="node", help="what may be lost")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem")
    parser.add_argument("--json", default="", metavar="FILE", help="write every problem's figures to FILE, for plots")
    asked = parser.parse_args(argv)
    frontiers()  # not a part of a plan: a node makes them once
    plan_cluster(problem(8, 0, asked.survive))
    found = {}
    for nodes in asked.nodes:
        found[nodes] = [solved(nodes, asked.seed + at, asked.survive) for at in range(asked.problems)]
    rows = [_row(nodes, runs) for nodes, runs in found.items()]
    columns = (
        "nodes",
        "GPUs",
        "s median",
        "s worst",
        "gap median",
        "gap worst",
        "saves: alone",
        "all awake",
        "unserved",
    )
    title = f"plans of clusters, {asked.problems} random problems each, survive {asked.survive}"
    show(title, columns, rows)
    if asked.json:
        document = {**provenance(), "survive": asked.survive, "gpus_a_node": GPUS}
        document["problems"] = {str(nodes): [vars(run) for run in runs] for nodes, runs in found.items()}
        write_json(asked.json, document)
    return 0


def _row(nodes: int, runs: Sequence[Solved]) -> tuple[object, ...]:
    seconds, gaps = [run.seconds for run in runs], [run.gap for run in runs]
    return (
        f"{nodes:,}",
        f"{nodes * GPUS:,}",
        f"{np.median(seconds):.2f}",
        f"{max(seconds):.2f}",
        f"{np.median(gaps):.2%}",
        f"{max(gaps):.2%}",
        f"{np.median([run.saved_alone for run in runs]):.0%}",
        f"{np.median([run.saved_awake for run in runs]):.0%}",
        f"{max(run.unserved for run in runs):.2%}",
    )


def solved(nodes: int, seed: int, survive: str) -> Solved:
    """Plan one random cluster."""
    asked = problem(nodes, seed, survive)
    gc.collect()
    wall, began = time.perf_counter(), time.process_time()
    plan = plan_cluster(asked)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    return Solved(
        seconds=seconds,
        wall_s=wall,
        gap=float(plan.grams_h / plan.bound_g_h - 1.0),
        saved_alone=float(1.0 - plan.grams_h / plan.alone_g_h),
        saved_awake=float(1.0 - plan.grams_h / plan.awake_g_h),
        unserved=sum(plan.unserved.values()) / sum(demand.rate for demand in asked.demands),
        regions=len(asked.regions),
    )


@cache
def frontiers() -> tuple[DeviceFrontier, ...]:
    """Return what an A100 does for each of the paper's families."""
    found = []
    for name, slo_ms in SLO_MS.items():
        known = families.load(name, families.gpus(1))
        aims = ObjectiveConfig(form="floor", slo_ms=slo_ms, accuracy_floor=0.0, lam=None, reference_g_per_kwh=250.0)
        found.append(device_frontier(known.profile, families.gpus(1)[0], aims, kind="a100", idle_w=IDLE_W))
    return tuple(found)


def problem(nodes: int, seed: int, survive: str) -> ClusterProblem:
    """Draw a cluster of some nodes."""
    draw = np.random.default_rng([seed, nodes])
    count = int(draw.integers(3, 9)) if nodes >= 30 else 3
    names = [f"region{at}" for at in range(count)]
    made = tuple(
        ClusterNode(
            name=f"node{at:04d}",
            region=names[at % count],
            devices={"a100": GPUS},
            awake_w=HOST_W,
            wake_j=WAKE_J,
            state="ready" if draw.random() < 2 / 3 else "released",
            correction=dict.fromkeys(SLO_MS, round(float(np.exp(draw.normal(0.0, 0.03))), 4)),
        )
        for at in range(nodes)
    )
    busy = draw.uniform(0.2, 0.6) * draw.dirichlet(np.full(len(SLO_MS), 4.0))
    demands, terms = [], []
    for frontier, part in zip(frontiers(), busy, strict=True):
        best = max(point.accuracy for point in frontier.points)
        floor = best - float(draw.uniform(1.0, 4.0))
        within = {name: tuple(sorted({name, *draw.choice(names, max(2, count // 2))})) for name in names}
        terms.append(
            FamilyTerms(
                family=frontier.family,
                accuracy_floor=floor,
                slo_p95_ms=SLO_MS[frontier.family],
                regions={name: allowed for name, allowed in within.items() if draw.random() < 0.2},
            )
        )
        serves = max(point.rate for point in frontier.points if point.accuracy >= floor)
        rows = float(part * nodes * GPUS * serves)
        for name, share in zip(names, draw.dirichlet(np.full(count, 2.0)), strict=True):
            demands.append(RegionDemand(family=frontier.family, origin=name, rate=rows * float(share)))
    latency = {a: {b: 0.0 if a == b else float(draw.uniform(5.0, 150.0)) for b in names} for a in names}
    return ClusterProblem(
        at_s=0.0,
        regions=tuple(RegionGrid(name=name, intensity=float(draw.uniform(20.0, 700.0))) for name in names),
        nodes=made,
        frontiers=frontiers(),
        demands=tuple(demands),
        terms=tuple(terms),
        latency_ms=latency,
        survive=survive,  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # NumPy reads it when it is imported.  A second thread that waits for a busy core is counted as CPU time too.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    raise SystemExit(main())
