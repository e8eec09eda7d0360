"""More requests than a server can serve, for minutes: how many are answered in time, and what becomes of the others.

    python -m bench.overload [--minutes 2] [--times 1.1 1.5 3] [--timeouts 1 30] [--json FILE]

One family whose workers only wait, `SERVICE_MS` for a batch of up to four rows, so that hardly anything else on this
machine moves its capacity, which a closed loop of 64 clients measures before each run.  Then Poisson arrivals at so
many times the capacity, each with that timeout, on as many connections as wait for an answer.  `goodput` is the rate of
answers with 200 that came within the timeout, counted from when the request was due, over the capacity; `worst` is the
lowest of its ten-second parts from the tenth second on.  `late` are answers with 200 that came later.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.common import ServerProcess, served, show, write_json
from bench.load import Body, OpenLoop, Result, closed_loop
from clover.types import FamilySpec, PublishedAccuracy, TensorSpec, VariantSpec

PART_S = 10
CONNECTIONS = 8000  # below what a server takes by default
SERVICE_MS = 40.0
_ROW = TensorSpec(name="x", datatype="FP32", shape=(4,))

Rows = list[NDArray[Any]]


def waiting(variant: VariantSpec, folder: Path) -> Callable[[Rows], Rows]:
    """Return a model that takes its time and returns the rows as they came."""

    def run(inputs: Rows) -> Rows:
        time.sleep(SERVICE_MS / 1e3)
        return inputs

    return run


FAMILY = FamilySpec(
    name="waiting",
    inputs=(_ROW,),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(4,)),),
    variants=(
        VariantSpec(
            name="only",
            loader="bench.overload:waiting",
            kind="python",
            accuracy=PublishedAccuracy(value=90.0, metric="top1", source="none: a bench"),
        ),
    ),
    max_batch=4,
)


def bodies(timeout_s: float) -> list[Body]:
    """Return requests of one row with that timeout."""
    made = []
    for number in range(64):
        document = {
            "id": f"row-{number}",
            "parameters": {"timeout": round(timeout_s * 1e6)},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number, 1.0, 2.0, 3.0]}],
        }
        made.append(Body(json.dumps(document).encode(), f"row-{number}", number))
    return made


def figures(result: Result, timeout_s: float, seconds: float, capacity: float) -> dict[str, float]:
    """Return what became of one run."""
    parts: Counter[int] = Counter()
    statuses: Counter[int] = Counter()
    late, waited_ms, refused_ms = 0, [], []
    for sample in result.samples:
        statuses[sample.status] += 1
        if sample.status == 200:
            waited_ms.append(sample.latency_ms)
            if sample.latency_ms <= 1e3 * timeout_s:
                parts[int((sample.done_ns - result.begin_ns) / 1e9 / PART_S)] += 1
            else:
                late += 1
        elif sample.status == 429:
            refused_ms.append(sample.latency_ms)
    whole = range(1, int(seconds / PART_S))
    per_s = [parts[part] / PART_S / capacity for part in whole]
    return {
        "goodput": float(np.mean(per_s)),
        "worst": min(per_s),
        "late": late,
        "429": statuses[429],
        "504": statuses[504],
        "lost": result.lost,
        "p50_s": float(np.median(waited_ms)) / 1e3 if waited_ms else float("nan"),
        "refused_ms": float(np.median(refused_ms)) if refused_ms else float("nan"),
    }


def capacity_of(server: ServerProcess, seconds: float) -> float:
    """Return the rows a second that a closed loop gets answered, once the workers of the first plan have started."""
    uvloop.run(closed_loop(server.url, FAMILY.name, bodies(30.0), connections=64, seconds=10.0))
    result = uvloop.run(closed_loop(server.url, FAMILY.name, bodies(30.0), connections=64, seconds=seconds))
    return sum(sample.status == 200 for sample in result.samples) / result.seconds


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="length of each run")
    parser.add_argument("--times", type=float, nargs="+", default=[1.1, 1.5, 3.0], help="loads, in capacities")
    parser.add_argument("--timeouts", type=float, nargs="+", default=[1.0, 30.0], help="timeouts of requests, seconds")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    table: list[list[object]] = []
    runs: list[dict[str, Any]] = []
    capacity = 0.0
    for timeout_s in options.timeouts:
        for times in options.times:
            with (
                tempfile.TemporaryDirectory() as folder,
                served(["bench.overload:FAMILY", "--policy", "static:only"], log=Path(folder) / "log") as server,
            ):
                capacity = capacity_of(server, 5.0)
                seconds = 60.0 * options.minutes
                loop = OpenLoop(
                    server.url, FAMILY.name, bodies(timeout_s), rate=times * capacity, most_connections=CONNECTIONS
                )
                found = figures(uvloop.run(loop.run(seconds)), timeout_s, seconds, capacity)
            runs.append({"times": times, "timeout_s": timeout_s, "capacity": capacity, **found})
            table.append([f"{times:g} x", timeout_s, capacity, *found.values()])
            print(json.dumps(runs[-1]), flush=True)
    columns = ("load", "timeout s", "capacity/s", "goodput", "worst", "late", "429", "504", "lost", "p50 s", "429 ms")
    show(f"overload for {options.minutes:g} minutes (measured)", columns, table)
    write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
