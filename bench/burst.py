"""Bursts of 2.5 times the load, live: how many rows are late with and without workers that stand by.

    python -m bench.burst [--device emulated:a100-40gb:1] [--policy static:large] [--rate R] [--rounds 3] [--json FILE]

Rounds take turns: `none` (no relief) and `--relief` (auto by default).  Each is a server of its own and a minute of
open loop: calm for 20 s, 2.5 times as much for 12 s, calm again.  Every request carries one row of the default family's
held-out images; a row is late where its answer comes later than the SLO after it was *due*, or does not come.  The
calm rate is planned for (`--design-rate`), and printed as a part of what the deployment serves within the SLO by its
profile (in batches that take half of the SLO at most).

`simulated` is the same minute of the same deployment, row by row through the same router
(`clover.research.simulate.minutes`).  Server, workers and load share the cores of this machine; on an emulated device
paces are a table's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.common import ServerProcess, binary_bodies, fashion_rows, served, show, write_json
from bench.load import Result, open_loop
from clover.research.simulate import families, loads, minutes, world
from clover.research.simulate.minutes import GUST_FROM_S, GUST_S, back_s, gusty
from clover.research.simulate.world import Case, Rules, SimulatedMachine, World
from clover.runtime.workers.standby import StandbyPolicy
from clover.types import Assignment, Placement

SECONDS = 60.0
GUST = 2.5  # times the load
CONNECTIONS = 64


@dataclass(frozen=True)
class Round:
    """What became of one minute."""

    late: float
    gust_late: float
    p95_ms: float
    gust_p95_ms: float
    back_s: float
    accuracy: float
    relieved: float


def round_of(result: Result, slo_ms: float, relieved: float) -> Round:
    """Return the figures of a minute, by the time at which requests were due."""
    at_s = np.array([(sample.due_ns - result.begin_ns) / 1e9 for sample in result.samples])
    ms = np.array([sample.latency_ms if sample.status == 200 else np.inf for sample in result.samples])
    gust = (at_s >= GUST_FROM_S) & (at_s < GUST_FROM_S + GUST_S)
    by_second = [minutes.quantile(ms[(at_s >= second) & (at_s < second + 1)], 0.95) for second in range(int(SECONDS))]
    accuracies = [sample.accuracy for sample in result.samples if sample.status == 200]
    return Round(
        late=float((np.sum(ms > slo_ms) + result.lost) / max(1, result.sent)),
        gust_late=float(np.mean(ms[gust] > slo_ms)),
        p95_ms=minutes.quantile(ms, 0.95),
        gust_p95_ms=minutes.quantile(ms[gust], 0.95),
        back_s=back_s(by_second, slo_ms),
        accuracy=statistics.fmean(accuracies),
        relieved=relieved / max(1, len(ms)),
    )


def machine_of(device: str) -> SimulatedMachine:
    """Return the simulated devices that stand for `device`."""
    return world.cpu() if device == "cpu" else world.gpus(int(device.rpartition(":")[2]))


def world_of(device: str, slo_ms: float | None) -> World:
    """Return the default family there, by the profile that its server keeps."""
    machine = machine_of(device)
    return World(machine, families.load("fashion", machine.shapes), Rules(noise=False, slo_ms=slo_ms))


def serves(own: World, state: dict[str, Any]) -> float:
    """Return the rows a second that the deployment serves within its SLO, by the profile."""
    profile = own.known.profile
    family = state["models"]["fashion"]
    slo_ms: float = family["targets"]["slo_ms"]
    reserve = StandbyPolicy(list(profile.backend), "auto", lambda: slo_ms)
    reserve.use(profile)
    deployment = [
        Assignment(
            placement=Placement(device=item["device"], profile=item["profile"], start=0, size=1),
            family="fashion",
            variant=item["variant"],
            backend=item["backend"],
        )
        for item in family["deployment"]
    ]
    return sum(map(reserve.rows_per_s, deployment))


def live(server: ServerProcess, bodies: Sequence[Any], rate: float, slo_ms: float, seed: int) -> Round:
    """Run one minute against a server and return its figures."""
    run = partial(
        open_loop, server.url, "fashion", bodies, rate=gusty(rate, GUST), seconds=SECONDS, connections=CONNECTIONS
    )
    result = uvloop.run(run(seed=seed))
    return round_of(result, slo_ms, server.metrics()['clover_rerouted_rows_total{model="fashion",why="relief"}'])


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulated:a100-40gb:1", help="cpu, or emulated:BOARD:N")
    parser.add_argument("--policy", default="static:large", help="policy of the server")
    parser.add_argument("--relief", default="auto", help="who stands by: a variant, or auto")
    parser.add_argument("--rate", type=float, default=850.0, help="calm requests a second [850]")
    parser.add_argument("--slo-ms", type=float, default=0.0, help="p95 target; the server's default otherwise")
    parser.add_argument("--rounds", type=int, default=3, help="minutes of each")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    bodies = binary_bodies(fashion_rows()[0], 512)
    rounds: dict[str, list[Round]] = {"none": [], options.relief: []}
    rate, slo_ms, deployment, part = options.rate, options.slo_ms, "", 0.0
    own: World | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for relief, found in rounds.items():
                words = ["fashion", "--device", options.device, "--policy", options.policy]
                words += ["--relief", relief] if relief != "none" else []
                words += ["--slo-ms", str(options.slo_ms)] if options.slo_ms else []
                words += ["--design-rate", str(rate), "--no-waits"]
                with served(words, log=Path(folder) / "serve.log") as server:
                    state = server.get("/v2/clover/state")
                    own = own or world_of(options.device, options.slo_ms or None)
                    part = rate / serves(own, state)
                    slo_ms = state["models"]["fashion"]["targets"]["slo_ms"]
                    groups = state["models"]["fashion"]["configuration"]
                    deployment = " + ".join(f"{g['count']} x {g['variant']}@{g['profile']}" for g in groups)
                    uvloop.run(open_loop(server.url, "fashion", bodies, rate=0.5 * rate, seconds=3.0))  # warm
                    found.append(live(server, bodies, rate, slo_ms, seed=number + 1))
    assert own is not None
    trace = world.traces([], "", 1.0)[0]
    case = Case(own, trace, loads.parse(f"constant:{rate}/s"), world.scheme(options.policy), 0)
    played = {
        relief: minutes.play(case, seconds=SECONDS, gust=GUST, relief=relief if relief != "none" else "")
        for relief in rounds
    }
    columns = ("relief", "", "late", "late in gust", "p95 ms", "p95 in gust", "back s", "accuracy", "relieved")
    table: list[list[object]] = []
    for relief, found in rounds.items():
        for name in ("median", "worst"):
            pick = statistics.median if name == "median" else max
            figures = [pick([getattr(item, field) for item in found]) for field in Round.__dataclass_fields__]
            table.append([relief, f"live, {name}", *figures])
        simulated = played[relief]
        gust_ms = [second.p95_ms for second in simulated.by_second[int(GUST_FROM_S) : int(GUST_FROM_S + GUST_S)]]
        table.append(
            [
                relief,
                "simulated",
                simulated.late / simulated.rows,
                simulated.gust_late / simulated.gust_rows,
                simulated.p95_ms,
                max(gust_ms),
                simulated.back_s,
                simulated.accuracy,
                simulated.relieved / simulated.rows,
            ]
        )
    show(
        f"{options.device}, {deployment} (simulated: {played['none'].deployment}), {rate:.0f} requests/s ({part:.0%}), "
        f"for {GUST_S:g} s {GUST:g} times; SLO {slo_ms:.1f} ms; {options.rounds} rounds (measured)",
        columns,
        table,
    )
    write_json(
        options.json,
        {
            "device": options.device,
            "rate": rate,
            "slo_ms": slo_ms,
            "live": {name: [vars(item) for item in found] for name, found in rounds.items()},
        },
    )


if __name__ == "__main__":
    main()
