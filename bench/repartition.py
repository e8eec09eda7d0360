"""What repartitioning emulated GPUs costs the requests that meet it.

    python -m bench.repartition [--gpus 2] [--changes 20] [--stage-s 12] [--runs 3] [--json FILE]

A made trace walks two emulated A100s between BASE (one whole-GPU worker each), mixed layouts and the finest one; the
production controller carries every change out through NVML while open-loop load runs at `--load` of BASE's capacity
(measured by a closed loop), which is the capacity floor as well.  Every answer is compared with what its variant says
about its row.  The emulated driver takes `--delay-s` to make or remove an instance (a real one about a second).  Many
times a second the routed workers are read: their capacity (rows/s by the profile, which is analytical here) must never
lie below the floor, and a worker that a transition keeps must keep its process.  The paces of the slices are emulated:
what is measured is the protocol, not a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.bands import SLICES
from bench.common import ServerProcess, binary_bodies, fashion_rows, served, show, write_json
from bench.load import Body, Check, closed_loop, open_loop, quantile
from bench.oracle import EXACT, expected, scorer
from bench.swap import AFTER_S, Change, changes, split
from clover.cache import cache_folder
from clover.devices import box_path, parse
from clover.emulation import emulated
from clover.planning.model.problem import services_of
from clover.types import FamilyProfile
from tests.support import disturb

SAMPLE_S = 0.05


@dataclass
class Look:
    """The workers at one instant between `asked_ns` and `at_ns`: of a busy server these may be far apart.  `pids` are
    those that are ready, by placement."""

    asked_ns: int
    at_ns: int
    routed_rows_per_s: float
    pids: dict[str, int]
    draining: frozenset[int]


class Watch(threading.Thread):
    """Looks at the workers many times a second until stopped."""

    def __init__(self, server: ServerProcess, capacity: dict[tuple[str, str], float]) -> None:
        super().__init__()
        self.looks: list[Look] = []
        self.capacity, self._server = capacity, server
        self._stop_set = threading.Event()

    def look(self) -> Look:
        """Look at the workers now."""
        asked_ns = time.monotonic_ns()
        workers = self._server.get("/v2/clover/state")["totals"]["models"]["fashion"]["workers"]
        ready = [worker for worker in workers if worker["state"] == "ready"]
        return Look(
            asked_ns,
            time.monotonic_ns(),
            sum(self.capacity[w["variant"], w["profile"]] for w in ready if w["routed"]),
            {w["placement"]: w["pid"] for w in ready},
            frozenset(w["pid"] for w in workers if w["state"] == "draining"),
        )

    def run(self) -> None:
        while not self._stop_set.wait(SAMPLE_S):
            self.looks.append(self.look())

    def finish(self) -> None:
        """Stop looking."""
        self._stop_set.set()
        self.join()


def kept_and_touched(windows: list[Change], looks: list[Look]) -> tuple[int, int]:
    """Return workers that changes kept, and how many of those were drained, gone or another process all the same at any
    look from when the change before was over until theirs was.  (The same process may serve another of its variants for
    a moment, if it alone could not serve all rows otherwise.)  Raises ValueError if nobody looked then."""
    kept = touched = 0
    for window in windows:
        over_ns = window.end_ns - int(AFTER_S * 1e9)
        own = [look for look in looks if window.still_ns <= look.asked_ns and look.at_ns <= over_ns]
        for worker in window.before & window.after:
            if not own:
                raise ValueError(f"nobody looked at the workers while {worker[1]} at {worker[0]} was kept")
            kept += 1
            pids = {look.pids.get(worker[0]) for look in own}
            touched += len(pids) > 1 or None in pids or any(pids & look.draining for look in own)
    return kept, touched


def write_trace(path: Path, stages: int) -> None:
    """Write an hourly two-column trace that steps through `SLICES`, back to BASE every other time."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    lines = ["datetime_utc,carbon_intensity_gco2_per_kwh"]
    for stage in range(stages + 2):
        at = start + datetime.timedelta(hours=stage)
        lines.append(f"{at:%Y-%m-%dT%H:%M:%SZ},{100 * (stage % len(SLICES)) + 50}")
    path.write_text("\n".join(lines) + "\n")


def capacities(cache_dir: str) -> dict[tuple[str, str], float]:
    """Return rows a second of a worker by (variant, MIG profile), as the planner takes them."""
    for path in (cache_folder(cache_dir) / "profiles").glob("fashion-*.json"):
        services = services_of(msgspec.json.decode(path.read_bytes(), type=FamilyProfile))
        found = {key: service.capacity() for key, service in services.items() if "g." in key[1]}
        if found:
            return found
    raise SystemExit("the server kept no profile of MIG shapes")


def slow(cache: Path, options: argparse.Namespace) -> None:
    """Let the emulated driver take its time from now on."""
    box = box_path(parse(f"emulated:a100-40gb:{options.gpus}"), cache)
    disturb.clear_faults(box)
    if options.delay_s > 0.0:
        symbols = ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceDestroy")
        disturb.inject(box, *(disturb.Fault(symbol=s, error="", delay_s=options.delay_s, count=0) for s in symbols))


def run(options: argparse.Namespace, bodies: list[Body], check: Check, folder: Path) -> dict[str, Any]:
    """Run a fresh server through `--changes` repartitions under load."""
    os.environ[emulated.LATENCY] = "0"  # --delay-s is what making and removing take
    log = folder / "serve.log"
    device = f"emulated:a100-40gb:{options.gpus}"
    shared = ["fashion", "--device", device, "--policy", "bench.bands:Slices", "--cache-dir", options.cache_dir]
    shared += ["--slo-ms", "10000", "--accuracy-floor", "1", "--accuracy-margin", "0", "--no-waits"]
    shared += ["--backends", ",".join(EXACT)]
    with served([*shared, "--carbon", "static:50"], log=log) as server:
        closed = uvloop.run(closed_loop(server.url, "fashion", bodies, connections=32 * options.gpus, seconds=6))
        base = len(closed.samples) / closed.seconds
    trace = folder / "slices.csv"
    stages = options.changes + 1
    write_trace(trace, stages)
    timing = ["--trace-speed", str(3600 / options.stage_s), "--verify-s", "0.5"]
    with served([*shared, "--carbon", f"trace:{trace}", *timing], log=log) as server:
        watch = Watch(server, capacities(options.cache_dir))
        whole = sum(watch.capacity[variant, name] * count for variant, name, count in SLICES[0])  # of BASE
        floor = options.load * whole
        slow(Path(options.cache_dir), options)
        since = time.time()
        watch.start()
        try:
            result = uvloop.run(
                open_loop(
                    server.url,
                    "fashion",
                    bodies,
                    rate=options.load * base,
                    seconds=stages * options.stage_s,
                    check=check,
                )
            )
            time.sleep(3)  # a change that began last may still be under way
        finally:
            watch.finish()
        windows = changes(server, since)
        totals = server.get("/v2/clover/state")["totals"]["models"]["fashion"]
    kept, touched = kept_and_touched(windows, watch.looks)
    during, outside = split(result, windows)
    return {
        "base_req_per_s": base,
        "rate_req_per_s": options.load * base,
        "requests": result.sent,
        "failed": result.failed(),
        "lost": result.lost,
        "mismatched": result.mismatched(),
        "repartitions": sum(change.repartition for change in windows),
        "change_s_median": quantile([(w.end_ns - w.begin_ns) / 1e9 for w in windows], 0.5),
        "restarts": totals["restarts"],
        "kept_workers": kept,
        "kept_but_touched": touched,
        "looks": len(watch.looks),
        "floor_rows_per_s": floor,
        "lowest_rows_per_s": min(look.routed_rows_per_s for look in watch.looks),
        "looks_below_floor": sum(look.routed_rows_per_s < floor - 1e-6 for look in watch.looks),
        "requests_during": len(during),
        "p50_outside_ms": quantile(outside, 0.5),
        "p50_during_ms": quantile(during, 0.5),
        "p99_outside_ms": quantile(outside, 0.99),
        "p99_during_ms": quantile(during, 0.99),
        "p99_ratio": quantile(during, 0.99) / quantile(outside, 0.99),
        "max_during_ms": max(during, default=float("nan")),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, help="emulated A100s")
    parser.add_argument("--changes", type=int, default=20, help="repartitions to force")
    parser.add_argument("--stage-s", type=float, default=12.0, help="wall seconds between two of them")
    parser.add_argument("--load", type=float, default=0.4, help="share of BASE's capacity: load and capacity floor")
    parser.add_argument("--delay-s", type=float, default=0.2, help="seconds an instance takes to be made or removed")
    parser.add_argument("--runs", type=int, default=3, help="runs whose median counts")
    parser.add_argument("--cache-dir", default="", help="profiles and the emulated box; a temporary folder otherwise")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, labels = fashion_rows()
    bodies = binary_bodies(images, 2048)
    check = scorer(expected(images[:2048]), labels)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.cache_dir = options.cache_dir or str(Path(folder) / "cache")
        for _ in range(options.runs):
            rows.append(run(options, bodies, check, Path(folder)))
            median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            figures = [[key, *(row[key] for row in rows), median[key]] for key in rows[0]]
            show("repartitioning emulated GPUs", ["figure", *map(str, range(1, len(rows) + 1)), "median"], figures)
    write_json(options.json, {"runs": rows, "median": median})


if __name__ == "__main__":
    main()
