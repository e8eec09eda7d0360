"""What a change of configuration costs the requests that meet it.

    python -m bench.swap [--stages 26] [--stage-s 4] [--load 0.6] [--json FILE]

A made trace, replayed at speed, walks through the bands of `bench.bands`; the production controller swaps variants
and repartitions the cores for each.  Open-loop load runs all the while at a share of the capacity of the smallest
configuration among them, which a closed loop measures first.  Every answer is compared with what its variant should
say about its row.  "During" is from when a decision begins to be made to 100 ms after the old worker's exit; latency
counts from when a request was due.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.bands import BANDS
from bench.common import ServerProcess, binary_bodies, fashion_rows, served, show, write_json
from bench.load import Result, closed_loop, open_loop, quantile
from bench.oracle import EXACT, expected, scorer

ORDER = (1, 2, 3, 0, 5, 4)
"""Bands in the order the trace visits them: variant swaps in place and repartitions both ways."""
AFTER_S = 0.1


@dataclass(slots=True)
class Change:
    """One applied decision: its window in monotonic nanoseconds, and what stood before and after.  From `still_ns`
    on, 100 ms after whatever was done before it was over, until `begin_ns` nothing was changed."""

    still_ns: int
    begin_ns: int
    end_ns: int
    before: set[tuple[str, str]]
    after: set[tuple[str, str]]

    @property
    def repartition(self) -> bool:
        """Whether the placements changed."""
        return {place for place, _ in self.before} != {place for place, _ in self.after}

    @property
    def swaps(self) -> int:
        """Placements whose variant was exchanged, and new placements with a variant no worker had before."""
        return len(self.after - self.before)


def write_trace(path: Path, stages: int) -> None:
    """Write an hourly two-column trace that steps through `ORDER`."""
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    lines = ["datetime_utc,carbon_intensity_gco2_per_kwh"]
    for stage in range(stages + 2):
        at = start + datetime.timedelta(hours=stage)
        lines.append(f"{at:%Y-%m-%dT%H:%M:%SZ},{100 * ORDER[stage % len(ORDER)] + 50}")
    path.write_text("\n".join(lines) + "\n")


def placements(deployment: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return (placement, variant) of each worker of a deployment in JSON form."""
    return {("{device}:{profile}@{start}".format(**item["placement"]), item["variant"]) for item in deployment}


def changes(server: ServerProcess, since: float) -> list[Change]:
    """Return the applied decisions that were begun after wall time `since`, oldest first, on the monotonic clock."""
    decisions = server.get("/v2/clover/decisions?limit=1000")
    return windows(decisions[::-1], since, time.monotonic_ns() - time.time_ns())


def windows(decisions: Sequence[dict[str, Any]], since: float, offset_ns: int) -> list[Change]:
    """Return what `changes` does of `decisions`, oldest first; `offset_ns`: the monotonic clock less the wall's.

    A decision is recorded once all of it is done, and took `seconds` until then."""
    found: list[Change] = []
    before: set[tuple[str, str]] | None = None  # not known
    still_ns = 0
    for decision in decisions:
        if decision["action"] not in ("applied", "routed", "rolled back", "failed") or decision["plan"] is None:
            continue
        over_ns = int(datetime.datetime.fromisoformat(decision["last_at"]).timestamp() * 1e9) + offset_ns
        begin_ns = over_ns - int(decision["seconds"] * 1e9)
        if decision["action"] == "failed":
            before = None
        elif decision["action"] != "rolled back" or decision["trigger"] == "verification":
            after = placements(decision["plan"]["deployment"])
            if decision["action"] == "applied" and before and before != after and begin_ns >= since * 1e9 + offset_ns:
                found.append(Change(still_ns, begin_ns, over_ns + int(AFTER_S * 1e9), before, after))
            before = after
        still_ns = over_ns + int(AFTER_S * 1e9)
    return found


def split(result: Result, windows: list[Change]) -> tuple[list[float], list[float]]:
    """Return latencies of requests that were alive during a change, and of all the others."""
    during: list[float] = []
    outside: list[float] = []
    for sample in result.samples:
        if sample.status == 200:
            met = any(sample.due_ns <= w.end_ns and sample.done_ns >= w.begin_ns for w in windows)
            (during if met else outside).append(sample.latency_ms)
    return during, outside


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=26, help="configurations to walk through")
    parser.add_argument("--stage-s", type=float, default=4.0, help="wall seconds of one of them")
    parser.add_argument("--load", type=float, default=0.6, help="share of the smallest configuration's capacity")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, labels = fashion_rows()
    bodies = binary_bodies(images, 2048)
    check = scorer(expected(images[:2048]), labels)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        trace = Path(folder) / "bands.csv"
        write_trace(trace, options.stages)
        exact = ["fashion", "--backends", ",".join(EXACT)]
        pinned = [*exact, "--policy", "bench.bands:Bands", "--carbon", "static:50", "--mode", "active"]
        with served(pinned, log=log) as server:
            closed = uvloop.run(closed_loop(server.url, "fashion", bodies, connections=16, seconds=4))
        capacity = len(closed.samples) / closed.seconds
        rate = options.load * capacity
        arguments = [*exact, "--policy", "bench.bands:Bands", "--carbon", f"trace:{trace}"]
        arguments += ["--trace-speed", str(3600 / options.stage_s), "--verify-s", "0.5"]
        arguments += ["--slo-ms", "1000", "--accuracy-floor", "1", "--no-waits"]
        with served(arguments, log=log) as server:
            since = time.time()
            result = uvloop.run(
                open_loop(
                    server.url, "fashion", bodies, rate=rate, seconds=options.stages * options.stage_s, check=check
                )
            )
            time.sleep(2)
            found = changes(server, since)
    during, outside = split(result, found)
    seen = sorted({s.variant for s in result.samples})
    figures: dict[str, Any] = {
        "smallest configuration": " + ".join(f"{n} x {v}@{p}" for v, p, n in BANDS[0]),
        "capacity_req_per_s": capacity,
        "rate_req_per_s": rate,
        "requests": result.sent,
        "failed": result.failed(),
        "lost": result.lost,
        "mismatched": result.mismatched(),
        "changes": len(found),
        "swaps": sum(change.swaps for change in found),
        "repartitions": sum(change.repartition for change in found),
        "variants in receipts": " ".join(seen),
        "change_s_median": quantile([(w.end_ns - w.begin_ns) / 1e9 for w in found], 0.5),
        "requests_during": len(during),
        "p50_outside_ms": quantile(outside, 0.5),
        "p50_during_ms": quantile(during, 0.5),
        "p99_outside_ms": quantile(outside, 0.99),
        "p99_during_ms": quantile(during, 0.99),
        "p99_ratio": quantile(during, 0.99) / quantile(outside, 0.99),
        "max_outside_ms": max(outside, default=float("nan")),
        "max_during_ms": max(during, default=float("nan")),
    }
    show("swap under load (measured)", ["figure", "value"], [[k, v] for k, v in figures.items()])
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
