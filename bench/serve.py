"""Closed and open loop against a server of its own: requests a second, latency, and CPU a request of the whole tree.

    python -m bench.serve [--seconds 5] [--rounds 3] [--json FILE]

The default family serves with one pinned variant, so that no plan changes during a round; receipts, metrics, limits,
deadlines and ids are on.  Medians over the rounds are printed; every answer is checked for its id.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.common import binary_bodies, cpu_seconds, fashion_rows, json_bodies, served, show, tree, write_json
from bench.load import Result, closed_loop, open_loop


def measure(run: Callable[[], Any], pid: int, rounds: int) -> dict[str, float]:
    """Return medians of `rounds` runs of one workload."""
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        pids = tree(pid)
        before = cpu_seconds(pids)
        result: Result = uvloop.run(run())
        used = cpu_seconds(pids) - before
        answered = len(result.samples)
        row = {
            "req_per_s": answered / result.seconds,
            "p50_ms": result.latency_ms(0.5),
            "p95_ms": result.latency_ms(0.95),
            "p99_ms": result.latency_ms(0.99),
            "cpu_us_per_req": 1e6 * used / max(1, answered),
            "failed": result.failed(),
            "mismatched": result.mismatched(),
        }
        for key, value in row.items():
            figures.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in figures.items()}


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small", help="variant to pin")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of one round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, _ = fashion_rows()
    bodies = {"binary": binary_bodies(images, 512), "json": json_bodies(images, 512)}
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["fashion", "--variant", options.variant, "--mode", "off"]
        with served(arguments, log=Path(folder) / "serve.log") as server:
            pid = server.process.pid
            run: Callable[[], Any]
            for form, prepared in bodies.items():
                for connections in (1, 16, 64):
                    run = partial(
                        closed_loop, server.url, "fashion", prepared, connections=connections, seconds=options.seconds
                    )
                    rows[f"closed {form} x{connections}"] = measure(run, pid, options.rounds)
                capacity = rows[f"closed {form} x64"]["req_per_s"]
                for share in (0.3, 0.6):
                    run = partial(
                        open_loop, server.url, "fashion", prepared, rate=share * capacity, seconds=options.seconds
                    )
                    rows[f"open {form} {share:.0%}"] = measure(run, pid, options.rounds)
    columns = list(next(iter(rows.values())))
    table = [[name, *(row[column] for column in columns)] for name, row in rows.items()]
    show(f"fashion/{options.variant}, medians of {options.rounds} (measured)", ["workload", *columns], table)
    write_json(options.json, {"variant": options.variant, "workloads": rows})


if __name__ == "__main__":
    main()
