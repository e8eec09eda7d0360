"""Live against simulated: the same minutes of the same plan, served and played.

    python -m bench.twin [--device emulated:a100-40gb:1] [--policy objective] [--lam 0.05] [--rate 300] [--minutes 10]
                         [--json FILE]

A server under open-loop load (Poisson, one row a request) at a constant intensity, and the same plan row by row through
the same router before simulated workers (`clover.research.simulate.minutes`).  Compared are the mix of variants with
the plan's, the p95 from the arrival of a request in the server to its answer (as the server observes it over ten
seconds: the median; the client's stands beside it), and joules a row above idle.  Server, workers and load share the
cores of this machine; on an emulated device paces and watts are a table's, on cores joules are modelled from CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import uvloop

from bench.burst import world_of
from bench.common import ServerProcess, binary_bodies, fashion_rows, served, show, write_json
from bench.load import open_loop
from clover.research.simulate import loads, minutes, world
from clover.research.simulate.world import Case, Scheme

INTENSITY = "static:300"


def of_family(metrics: dict[str, float], name: str) -> dict[str, float]:
    """Return the samples of a metric, by their labels as text."""
    return {key[len(name) :]: value for key, value in metrics.items() if key.startswith(name + "{")}


def active_j(metrics: dict[str, float]) -> float:
    """Return joules above idle so far."""
    found = of_family(metrics, "clover_energy_joules_total")
    return sum(value for labels, value in found.items() if 'line="active"' in labels)


class Watch(threading.Thread):
    """Asks for the p95 of the trailing ten seconds, every ten seconds."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.p95_ms: list[float] = []
        self._server = server
        self._over = threading.Event()

    def run(self) -> None:
        """Run until `stop`."""
        while not self._over.wait(10.0):
            observed = self._server.get("/v2/clover/state")["models"]["fashion"]["observed"]
            self.p95_ms.append(observed.get("p95_ms", float("nan")))

    def stop(self) -> float:
        """Return the median of what was told."""
        self._over.set()
        self.join()
        return statistics.median(self.p95_ms)


def mix(metrics: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Return part of the rows that each variant answered between two looks."""
    old, new = (of_family(item, "clover_rows_total") for item in (before, metrics))
    rows = {labels.split('variant="')[1].split('"')[0]: value - old[labels] for labels, value in new.items()}
    return {name: count / max(1.0, sum(rows.values())) for name, count in rows.items()}


def settled(server: ServerProcess) -> dict[str, float]:
    """Return the metrics, once the energy window that is open has closed."""
    time.sleep(2.0)
    return server.metrics()


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulated:a100-40gb:1", help="cpu, or emulated:BOARD:N")
    parser.add_argument("--policy", default="objective", help="policy of the server")
    parser.add_argument("--lam", type=float, default=0.05, help="lambda of the paper's objective")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--slo-ms", type=float, default=0.0, help="p95 target; the server's default otherwise")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    bodies = binary_bodies(fashion_rows()[0], 2048)
    words = ["fashion", "--device", options.device, "--policy", options.policy, "--lam", str(options.lam)]
    words += ["--design-rate", str(options.rate), "--carbon", INTENSITY, "--no-cascade", "--no-waits"]
    words += ["--slo-ms", str(options.slo_ms)] if options.slo_ms else []
    with tempfile.TemporaryDirectory() as folder, served(words, log=Path(folder) / "serve.log") as server:
        run = partial(open_loop, server.url, "fashion", bodies, rate=options.rate, connections=64)
        uvloop.run(run(seconds=10.0))
        before = settled(server)
        watch = Watch(server)
        watch.start()
        result = uvloop.run(run(seconds=60.0 * options.minutes))
        p95_ms = watch.stop()
        after = settled(server)
        state = server.get("/v2/clover/state")["models"]["fashion"]
    own = world_of(options.device, options.slo_ms or None)
    trace = world.traces([INTENSITY], "", 1.0)[0]
    scheme = Scheme(options.policy, options.policy, lam=options.lam)
    case = Case(own, trace, loads.parse(f"constant:{options.rate}/s"), scheme, 0)
    played = minutes.play(case, seconds=60.0 * options.minutes)
    accuracy = {item.variant: item.value for item in own.known.profile.accuracy}
    live = mix(after, before)
    rows = sum(1 for sample in result.samples if sample.status == 200)
    planned = state["routing"]["shares"]
    points = sum(share * accuracy[name] for name, share in live.items())
    energy_j = (active_j(after) - active_j(before)) / max(1, rows)
    simulated_j = played.active_j / max(1, played.rows)
    groups = " + ".join(f"{g['count']} x {g['variant']}@{g['profile']}" for g in state["configuration"])
    by_plan = sum(share * accuracy[name] for name, share in planned.items())
    table: list[list[object]] = [
        ["accuracy, % (by shares)", by_plan, points, played.accuracy, points - by_plan, played.accuracy - by_plan],
        ["p95, ms", state["plan"]["prediction"]["p95_ms"], p95_ms, played.p95_ms, p95_ms / played.p95_ms - 1.0, ""],
        ["J/row above idle", "", energy_j, simulated_j, energy_j / simulated_j - 1.0, ""],
        ["client's p95, ms", "", result.latency_ms(0.95), "", "", ""],
        ["requests", "", len(result.samples), played.rows, "", ""],
        ["failed", "", result.failed(), played.unanswered, "", ""],
    ]
    table += [
        [f"share of {name}, %", 100 * planned.get(name, 0.0), 100 * share, 100 * played.shares.get(name, 0.0), "", ""]
        for name, share in live.items()
        if share or planned.get(name)
    ]
    show(
        f"{options.device}, {groups} (simulated: {played.deployment}), {options.rate:g} requests/s, "
        f"{options.minutes:g} min; changes {state['changes']} (measured, simulated)",
        ("", "plan", "live", "simulated", "live - plan; live/sim. - 1", "sim. - plan"),
        table,
    )
    write_json(options.json, {"options": vars(options), "rows": table})


if __name__ == "__main__":
    main()
