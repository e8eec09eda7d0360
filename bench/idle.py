"""Idle cores: what a machine does differently if one core has a worker instead of all, at the same load.

    python -m bench.idle --rate 50 --seconds 60 --rounds 3 [--variant small] [--json FILE]

A server with `--cores auto` is pinned in turn to one worker on every core and to one worker on the first core.  In each
stretch the kernel's idle counters say how long each core was idle and how deep (`clover.devices.core_idle`), RAPL, if
it can be read, how many watts the machine drew, and the scheduler how much CPU time the server's process tree used.
The load generator runs on the same cores, in both halves alike.  Run it on a machine that does nothing else: what other
programs do is in idle times and watts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.common import binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.load import open_loop
from clover import energy
from clover.config import EnergyConfig
from clover.devices.core_idle import CoreIdle
from clover.devices.cpu import CpuDevice
from clover.errors import ConfigError


def stretch(server: Any, bodies: Any, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Drive the server for a stretch with one-core workers on the first `workers` cores; return what was measured."""
    configuration = [{"variant": options.variant, "profile": "1c", "count": workers}]
    server.post("/v2/clover/pin", {"configuration": configuration, "force": True})
    time.sleep(options.settle_s)
    cores = CpuDevice().worker_cores
    pids = tree(server.process.pid)
    try:
        meter = energy.build(EnergyConfig(meter="rapl"), cores=len(cores), cpu_seconds=lambda: 0.0)
    except ConfigError:
        meter = None
    idle, cpu_s, at_ns = CoreIdle(cores), cpu_seconds(pids), time.monotonic_ns()
    first = meter.sample(at_ns) if meter is not None else None
    result = uvloop.run(open_loop(server.url, "fashion", bodies, rate=options.rate, seconds=options.seconds))
    idle.poll()
    report, cpu_s, now_ns = idle.report(), cpu_seconds(pids) - cpu_s, time.monotonic_ns()
    last = meter.sample(now_ns) if meter is not None else None
    found = report["cores"] if report is not None else []
    with_worker, without = found[:workers], found[workers:]
    return {
        "workers": workers,
        "requests": len(result.samples),
        "failed": result.failed(),
        "p95_ms": result.latency_ms(0.95),
        "cpu_ms_per_req": 1e3 * cpu_s / max(1, len(result.samples)),
        "idle_with": mean(with_worker, "idle"),
        "deep_with": mean(with_worker, "deep"),
        "wakes_with": mean(with_worker, "wakes_per_s"),
        "idle_without": mean(without, "idle"),
        "deep_without": mean(without, "deep"),
        "wakes_without": mean(without, "wakes_per_s"),
        "rapl_w": None if first is None or last is None else (last.total_j - first.total_j) / (now_ns - at_ns) * 1e9,
        "counters": report["source"] if report is not None else "none",
    }


def mean(cores: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a figure over cores; None if it is not known of them."""
    values = [core[key] for core in cores if core[key] is not None]
    return sum(values) / len(values) if values else None


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of a stretch")
    parser.add_argument("--rounds", type=int, default=3, help="stretches of each kind, in turn")
    parser.add_argument("--variant", default="small", help="what the workers run")
    parser.add_argument("--settle-s", type=float, default=5.0, help="seconds between a change and what is measured")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    bodies = binary_bodies(fashion_rows()[0], 200)
    cores = len(CpuDevice().worker_cores)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(["fashion", "--cores", "auto", "--carbon", "static:250"], log=Path(folder) / "serve.log") as server,
    ):
        rows = [
            stretch(server, bodies, workers, options) for _ in range(options.rounds) for workers in sorted({cores, 1})
        ]
    sources = sorted({row.pop("counters") for row in rows})
    title = f"{options.rate:g} requests/s of {options.variant} on {cores} cores; idle times from {', '.join(sources)}"
    show(title, list(rows[0]), [["-" if cell is None else cell for cell in row.values()] for row in rows])
    write_json(options.json, {"rows": rows, "counters": sources, "rate": options.rate, "cores": cores})


if __name__ == "__main__":
    main()
