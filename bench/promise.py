"""What a server without flags promises, held against what its clients see.

    python -m bench.promise [--rate 200] [--seconds 1800] [--base-s 300] [--carbon synthetic] [--flags "..."]
                            [--json FILE]

One server runs the default family as it comes, under Poisson arrivals, while one day of the grid passes: a whole
horizon of its accuracy budget.  Before and after it another one runs BASE.  Printed is

- the part of the windows of ten seconds whose client p95, from when a request was due to when its answer was there,
  is within the server's own default SLO;
- accuracy by labels, all images equally often, beside BASE's and beside what the budget promises;
- grams of CO2e saved of BASE's for the same requests at the same times: of the workers alone, of the whole server
  (front end and controller included), and with the idle power of the machine.

Energy is CPU seconds as the kernel counts them x modelled watts of a busy core; idle power is modelled or measured as
the server says.  BASE's CPU seconds a request are those of its own two stretches, priced with the day's intensities.
`--flags` are added to the server's command, to compare other settings.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from bench.cascade import Order
from bench.common import ServerProcess, binary_bodies, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.day import worker_cpu_s
from bench.load import Result, Sample, open_loop, quantile
from bench.oracle import expected, scorer
from clover.config import EnergyConfig, ServerConfig
from clover.energy import cpu_power

WINDOW_S = 10.0
WARM_S = 10.0
_LEAST_IN_WINDOW = 20


@dataclass
class Marks:
    """CPU seconds of the workers and of all processes, joules of the controller and its solver by the server's account,
    and the intensity, every `WINDOW_S` from the start on."""

    workers_s: list[float] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)
    control_j: list[float] = field(default_factory=list)
    g_per_kwh: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Stretch:
    """One server under load: what clients saw, the marks, and its state at the end."""

    result: Result
    marks: Marks
    state: dict[str, Any]

    @property
    def answered(self) -> list[Sample]:
        """Answers with status 200."""
        return [sample for sample in self.result.samples if sample.status == 200]

    def windows(self) -> list[list[Sample]]:
        """Return the answers by the window in which they were due."""
        count = len(self.marks.g_per_kwh) - 1
        found: list[list[Sample]] = [[] for _ in range(count)]
        for sample in self.result.samples:
            at = int((sample.due_ns - self.result.begin_ns) / 1e9 / WINDOW_S)
            if at < count:
                found[at].append(sample)
        return found

    def a_request(self, seconds: list[float]) -> float:
        """Return CPU seconds a request, of cumulative `seconds`."""
        requests = sum(map(len, self.windows()))
        return (seconds[-1] - seconds[0]) / max(requests, 1)


def run(words: list[str], data: Any, rate: float, seconds: float, folder: Path) -> Stretch:
    """Drive one server for `seconds`."""
    bodies, check = data
    with served(["fashion", *words], log=folder / "serve.log") as server:
        load = partial(open_loop, server.url, "fashion", rate=rate, connections=32)
        uvloop.run(load(bodies=bodies[:512], seconds=WARM_S))
        marks, stop = Marks(), threading.Event()
        used = partial(_tree_s, server)
        thread = threading.Thread(target=watch, args=(server, marks, seconds, stop, used))
        thread.start()
        try:
            result = uvloop.run(load(bodies=Order(bodies, 1), seconds=seconds, check=check, seed=2))
        finally:
            stop.set()
            thread.join()
        return Stretch(result, marks, server.get("/v2/clover/state"))


def watch(
    server: ServerProcess, marks: Marks, seconds: float, stop: threading.Event, used: Callable[[], float]
) -> None:
    """Fill `marks` until `seconds` are over; `used` returns the CPU seconds of all processes so far."""
    begin = time.monotonic()
    for number in range(round(seconds / WINDOW_S) + 1):
        if stop.wait(max(0.0, begin + number * WINDOW_S - time.monotonic())):
            return
        state = server.get("/v2/clover/state")
        marks.g_per_kwh.append(state["intensity"]["g_per_kwh"])
        marks.control_j.append(sum(line["control_j"] for line in state["totals"]["devices"].values()))
        marks.workers_s.append(worker_cpu_s(server.metrics()))
        marks.server_s.append(used())


def _tree_s(server: ServerProcess) -> float:
    """Return CPU seconds of the processes of `server` that live."""
    return cpu_seconds(tree(server.process.pid))


def within(stretch: Stretch, slo_ms: float) -> float:
    """Return the part of the windows whose client p95 is within `slo_ms`; a request that failed was late."""
    full = [window for window in stretch.windows() if len(window) >= _LEAST_IN_WINDOW]
    good = 0
    for window in full:
        times = [sample.latency_ms if sample.status == 200 else float("inf") for sample in window]
        good += sorted(times)[int(0.95 * (len(times) - 1))] <= slo_ms
    return good / max(len(full), 1)


def right(stretch: Stretch) -> float:
    """Return the percentage of right answers."""
    return 100.0 * sum(sample.correct or 0.0 for sample in stretch.answered) / max(len(stretch.answered), 1)


def saved(own: Stretch, bases: list[Stretch], core_w: float, idle_w: float) -> dict[str, float]:
    """Return the parts of BASE's grams that were saved, by boundary."""
    requests, grid = [len(window) for window in own.windows()], own.marks.g_per_kwh
    idle = sum(idle_w * WINDOW_S * g for g, _ in zip(grid, requests, strict=False))
    found = {}
    for name, cumulative in (("workers", "workers_s"), ("server", "server_s")):
        seconds: list[float] = getattr(own.marks, cumulative)
        each = sum(base.a_request(getattr(base.marks, cumulative)) for base in bases) / len(bases)
        mine = sum(core_w * (seconds[at + 1] - seconds[at]) * grid[at] for at in range(len(requests)))
        theirs = sum(core_w * each * count * grid[at] for at, count in enumerate(requests))
        found[name] = 1.0 - mine / theirs
        found[f"{name} with idle"] = 1.0 - (mine + idle) / (theirs + idle)
    return found


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second [200]")
    parser.add_argument("--seconds", type=float, default=1800.0, help="seconds that a day of the grid takes [1800]")
    parser.add_argument("--base-s", type=float, default=300.0, help="seconds of BASE, before and after [300]")
    parser.add_argument("--carbon", default="synthetic", help="source of intensities [synthetic]")
    parser.add_argument("--flags", default="", help="more flags for the server that is measured")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    images, labels = fashion_rows()
    data = binary_bodies(images, len(images)), scorer(expected(images), labels)
    carbon = ["--carbon", options.carbon, "--trace-speed", str(86_400.0 / options.seconds)]
    with tempfile.TemporaryDirectory() as name:
        play = partial(run, data=data, rate=options.rate, folder=Path(name))
        before = play([*carbon, "--policy", "base"], seconds=options.base_s)
        own = play([*carbon, *shlex.split(options.flags)], seconds=options.seconds)
        after = play([*carbon, "--policy", "base"], seconds=options.base_s)
    bases = [before, after]
    family, totals = own.state["models"]["fashion"], own.state["totals"]
    slo_ms = family["targets"]["slo_ms"]
    core_w = cpu_power(EnergyConfig()).core_w
    idle_w = sum(float(line["idle_w"]) for line in totals["devices"].values())
    best = sum(map(right, bases)) / len(bases)
    promised = best - ServerConfig().families[0].accuracy_budget
    latencies = [sample.latency_ms for sample in own.answered]
    figures = {
        "slo_ms": slo_ms,
        "windows_within_slo": within(own, slo_ms),
        "base_windows_within_slo": sum(within(base, slo_ms) for base in bases) / len(bases),
        "p95_ms": quantile(latencies, 0.95),
        "accuracy": right(own),
        "accuracy_base": best,
        "accuracy_promised": promised,
        "accuracy_by_profile": family["observed"].get("accuracy_served"),
        **{f"saved, {what}": part for what, part in saved(own, bases, core_w, idle_w).items()},
        "failed": own.result.failures(),
        "mismatched": own.result.mismatched(),
        "changes": family["changes"],
        "thresholds_moved": family["thresholds_moved"],
    }
    show(
        f"fashion {options.flags or 'as it comes'}, {options.rate:g} requests/s, {options.seconds:g} s: CPU seconds "
        f"measured, {core_w:g} W a busy core and {idle_w:g} W idle modelled",
        ("what", "figure"),
        [(what, f"{figure:.4f}" if isinstance(figure, float) else figure) for what, figure in figures.items()],
    )
    for name, item in (totals.get("saved") or {}).items():
        if isinstance(item, dict):
            print(f"the server says, {name}: {item['words']}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
