"""Joules: what the profile store measured of every variant, or what a live server uses at a given rate.

    python -m bench.energy [FAMILY] [--all-batches] [--json FILE]
    python -m bench.energy --live --rate 50 --seconds 20 [--variants small,large] [--json FILE]

The first form prints joules and CPU seconds a row for each variant, backend, shape and batch, beside the most accurate
variant on the same shape and batch; joules there are active joules, without idle power.  The second form starts a
server of the default family, drives Poisson arrivals, and reads a meter of its own around the run: RAPL where readable,
otherwise the model fed with the CPU time of the server's whole process tree, so that the receipts' sum can be held
against a figure that the server did not make.  Without --variants it is the controller that chooses.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.common import binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.load import open_loop
from clover import energy
from clover.cache import cache_folder
from clover.config import EnergyConfig
from clover.errors import CloverError, ProfileError
from clover.profiles import ProfileStore, accuracy_of, best_variant, measurements
from clover.types import FamilyProfile


def newest(folder: Path, family: str) -> FamilyProfile:
    """Return the profile of `family` that was made last; ProfileError if there is none."""
    found = []
    for path in folder.glob(f"{family}-*.json"):
        try:
            profile = msgspec.json.decode(path.read_bytes(), type=FamilyProfile)
        except msgspec.MsgspecError as error:
            raise ProfileError(f"the profile {path} is damaged ({error}): delete it") from error
        if profile.family == family:
            found.append(profile)
    if not found:
        raise ProfileError(f"no profile of {family} in {folder}: run `python -m clover profile {family}` first")
    return max(found, key=lambda profile: profile.made_at)


def by_variant(profile: FamilyProfile, *, all_batches: bool = False) -> list[dict[str, Any]]:
    """Return one row a measurement; `vs_best` is joules over those of the most accurate variant, same shape and
    batch."""
    best = best_variant(profile)
    reference = {
        (item.profile, item.batch): item
        for item in profile.latency
        if item.variant == best and item.backend == profile.backend[best]
    }
    rows = []
    for item in sorted(profile.latency, key=lambda item: (item.profile, item.batch)):
        batches = [m.batch for m in measurements(profile, item.variant, item.profile, item.backend)]
        if not all_batches and item.batch not in (batches[0], batches[-1]):
            continue
        beside = reference.get((item.profile, item.batch))
        known = beside is not None and beside.energy_j_per_row > 0
        rows.append(
            {
                "variant": item.variant,
                "backend": item.backend + ("*" if profile.backend.get(item.variant) == item.backend else ""),
                "shape": item.profile,
                "batch": item.batch,
                "accuracy": accuracy_of(profile, item.variant),
                "mean_ms": item.mean_ms,
                "cpu_ms_per_row": 1e3 * item.cpu_s_per_row,
                "mj_per_row": 1e3 * item.energy_j_per_row,
                "vs_best": item.energy_j_per_row / beside.energy_j_per_row if beside is not None and known else None,
                "method": item.energy_method,
            }
        )
    return rows


def live(variant: str, options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Serve `variant` (empty: what the controller chooses) at `options.rate` and meter the run."""
    arguments = ["fashion", "--carbon", options.carbon]
    if variant:
        arguments += ["--variant", variant, "--mode", "off"]
    bodies = binary_bodies(fashion_rows()[0], 512)
    with served(arguments, log=log) as server:
        time.sleep(options.settle_s)
        pid = server.process.pid
        meter = energy.build(
            EnergyConfig(), cores=len(os.sched_getaffinity(0)), cpu_seconds=lambda: cpu_seconds(tree(pid))
        )
        if isinstance(meter, energy.RaplMeter):
            uvloop.run(meter.rest())
        first, cpu_s = meter.sample(time.monotonic_ns()), cpu_seconds(tree(pid))
        result = uvloop.run(open_loop(server.url, "fashion", bodies, rate=options.rate, seconds=options.seconds))
        last, cpu_s = meter.sample(time.monotonic_ns()), cpu_seconds(tree(pid)) - cpu_s
    good = [sample for sample in result.samples if sample.status == 200]
    count = max(1, len(good))
    total_j = last.total_j - first.total_j
    idle_j = last.idle_w * (last.at_ns - first.at_ns) / 1e9
    served_by = sorted({sample.variant for sample in good})
    return {
        "served": variant or f"plan: {', '.join(served_by)}",
        "requests": len(result.samples),
        "failed": result.failed(),
        "p95_ms": result.latency_ms(0.95),
        "cpu_ms_per_req": 1e3 * cpu_s / count,
        "j_per_req": total_j / count,
        "active_j_per_req": max(0.0, total_j - idle_j) / count,
        "meter": last.method,
        "receipt_j_per_req": sum(sample.energy_j for sample in good) / count,
        "receipt_g_per_1000": sum(sample.carbon_mg for sample in good) / count,  # mg a request is g a thousand
        "why": meter.why,
    }


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys; what is unknown is a dash."""
    show(title, list(rows[0]), [["-" if cell is None else cell for cell in row.values()] for row in rows])


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", default="fashion", help="family whose profile is read")
    parser.add_argument("--cache-dir", default="", help="where profiles are kept; the server's default otherwise")
    parser.add_argument("--all-batches", action="store_true", help="every batch size, not the first and last alone")
    parser.add_argument("--live", action="store_true", help="drive a server of the default family instead")
    parser.add_argument("--variants", default="", help="live: variants to pin, one run each; the controller otherwise")
    parser.add_argument("--carbon", default="static:250", help="live: the carbon source")
    parser.add_argument("--rate", type=float, default=50.0, help="live: requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="live: seconds of one run")
    parser.add_argument("--settle-s", type=float, default=3.0, help="live: seconds between ready and the first request")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    if options.live:
        with tempfile.TemporaryDirectory() as folder:
            names = options.variants.split(",") if options.variants else [""]
            rows = [live(name, options, Path(folder) / "serve.log") for name in names]
        notes = {row.pop("why") for row in rows}
        table(f"{options.rate:g} requests/s for {options.seconds:g} s ({'; '.join(sorted(notes))})", rows)
        write_json(options.json, {"live": rows, "meter": sorted(notes), "rate": options.rate})
        return
    try:
        profile = newest(ProfileStore(cache_folder(options.cache_dir)).folder, options.family)
    except CloverError as error:
        parser.exit(2, f"{error}\n")
    rows = by_variant(profile, all_batches=options.all_batches)
    table(f"{profile.family} on {profile.machine}, {profile.made_at} (* the backend that serves)", rows)
    write_json(options.json, {"family": profile.family, "made_at": profile.made_at, "rows": rows})


if __name__ == "__main__":
    main()
