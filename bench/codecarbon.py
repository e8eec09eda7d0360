"""The server's account of energy and carbon beside codecarbon's, over the same minutes of the same load.

    python -m bench.codecarbon [--packages FOLDER] [--seconds 240] [--rate 200] [--carbon trace:FILE] [--json FILE]

codecarbon is looked for in FOLDER too (`pip install --target FOLDER codecarbon`).  Its trackers run in the process that
starts the server, with its own defaults: one for the machine, one for that process and its children.  The load is
Poisson arrivals for the default family, from another process.  Twice:

`rapl`      on an emulated RAPL tree that both read: a tmpfs over /sys/class in a mount namespace of its own (root).
            The counters rise by `IDLE_W`, `CORE_W` a busy core of this machine, and `DRAM_W`, and wrap once; what they
            rose by is known (`true`)
`modelled`  without a tree, as on a virtual machine: each by its own model

`--trace-speed` lets a day of the grid pass meanwhile, so that grams follow the hours.  The last columns go line by line
from codecarbon's figure to Clover's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.common import ServerProcess, binary_bodies, busy_seconds, fashion_rows, served, show, write_json
from bench.load import OpenLoop

SOURCES = ("rapl", "modelled")
COUNTRY = "GBR"
IDLE_W, CORE_W, DRAM_W, PSYS_W = 12.0, 6.0, 2.5, 20.0
RANGE_UJ = 262_143_328_850
BEFORE_WRAP_J = 600.0
"""Joules before the package's counter wraps."""
WARM_S = 15.0
JOULES_PER_KWH = 3.6e6
RUNNING = ("active", "front_end", "control")
IDLE = ("idle", "idle_no_request", "awake", "unowned", "foreign")
REST = ("unattributed", "carried")


def main(argv: Sequence[str] | None = None) -> int:
    """Run both, or what one of the processes is told to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", default="", metavar="FOLDER", help="where codecarbon is, if not in this environment"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of each measurement [240]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second [200]")
    parser.add_argument("--carbon", default="synthetic", help="as of `clover serve` [synthetic]")
    parser.add_argument("--trace-speed", type=float, default=360.0, help="grid seconds a second [360: a day in 240 s]")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--be", choices=("measured", "tracked"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.be == "tracked":
        return tracked(given)
    if given.be == "measured":
        print(json.dumps(measured(given, given.sources[0])))
        return 0
    found = {source: _in_namespace(given, source) for source in given.sources}
    for source, figures in found.items():
        _print(source, figures)
    write_json(given.json, {"arguments": vars(given), "measured": found})
    return 0


def _options(given: argparse.Namespace) -> list[str]:
    names = ("packages", "seconds", "rate", "carbon", "trace_speed")
    return [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]


def _in_namespace(given: argparse.Namespace, source: str) -> dict[str, Any]:
    """Return the figures of one source, measured in a process that may mount a tree of its own."""
    apart = ["unshare", "--mount"] if source == "rapl" else []
    command = [*apart, sys.executable, "-m", "bench.codecarbon", "--be=measured", f"--sources={source}"]
    done = subprocess.run([*command, *_options(given)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{source} could not be measured (root and `unshare` are needed for rapl)")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


# --- an emulated tree -------------------------------------------------------------------------------------------------


class RaplTree:
    """Counters in the files of the kernel's powercap, raised ten times a second by what this machine does."""

    def __init__(self, root: Path) -> None:
        zones = root / "intel-rapl"
        self.joules = dict.fromkeys(("package-0", "core", "dram", "psys"), 0.0)
        self._files: dict[str, int] = {}
        for name, place in (
            ("package-0", "intel-rapl:0"),
            ("core", "intel-rapl:0/intel-rapl:0:0"),
            ("dram", "intel-rapl:0/intel-rapl:0:1"),
            ("psys", "intel-rapl:1"),
        ):
            zone = zones / place
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            self._files[name] = os.open(zone / "energy_uj", os.O_CREAT | os.O_RDWR)
            (root / zone.name).symlink_to(zone)
        (zones / "subsystem").symlink_to(root)
        self._at, self._busy_s = time.monotonic(), busy_seconds()
        self.raise_counters()
        threading.Thread(target=self._run, daemon=True).start()

    def raise_counters(self) -> None:
        """Raise the counters to what they are now."""
        now, busy_s = time.monotonic(), busy_seconds()
        seconds, core_j = now - self._at, CORE_W * max(0.0, busy_s - self._busy_s)
        self._at, self._busy_s = now, busy_s
        rises = {"package-0": IDLE_W * seconds + core_j, "core": core_j, "dram": DRAM_W * seconds}
        rises["psys"] = rises["package-0"] + rises["dram"] + PSYS_W * seconds
        for name, rise in rises.items():
            self.joules[name] += rise
            uj = round(RANGE_UJ - 1e6 * BEFORE_WRAP_J + 1e6 * self.joules[name]) % RANGE_UJ
            os.pwrite(self._files[name], f"{uj:012d}\n".encode(), 0)  # never shorter: no reader finds half a number

    def _run(self) -> None:
        while True:
            time.sleep(0.1)
            self.raise_counters()


# --- one measurement --------------------------------------------------------------------------------------------------


def measured(given: argparse.Namespace, source: str) -> dict[str, Any]:
    """Return what Clover, codecarbon and (of `rapl`) the tree say of `given.seconds` of load."""
    tree = None
    if source == "rapl":
        subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/class"], check=True)
        tree = RaplTree(Path("/sys/class/powercap"))
    command = [sys.executable, "-m", "bench.codecarbon", "--be=tracked", f"--sources={source}", *_options(given)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        server = ServerProcess(helper, json.loads(helper.stdout.readline())["url"], Path())  # type: ignore[arg-type]

        def tell(word: str) -> str:
            assert helper.stdin is not None
            assert helper.stdout is not None
            print(word, file=helper.stdin, flush=True)
            return helper.stdout.readline()

        async def run() -> tuple[str, list[dict[str, Any]], str]:
            load = OpenLoop(server.url, "fashion", binary_bodies(fashion_rows()[0], 512), given.rate, 32, 1, None)
            running = asyncio.create_task(load.run(given.seconds + 2 * WARM_S))
            await asyncio.sleep(WARM_S)
            await asyncio.to_thread(tell, "start")
            states = [await asyncio.to_thread(_state, server, tree)]
            await asyncio.sleep(given.seconds)
            trackers = await asyncio.to_thread(tell, "stop")
            states.append(await asyncio.to_thread(_state, server, tree))
            result = await running
            return result.failures(), states, trackers

        failures, (before, after), trackers = uvloop.run(run())
        tell("end")
    return {
        "failed": failures,
        "clover": {key: after["clover"][key] - before["clover"][key] for key in after["clover"]},
        "true": {key: after["true"][key] - before["true"][key] for key in after["true"]},
        "seconds": after["at"] - before["at"],
        "busy_s": after["busy_s"] - before["busy_s"],
        "codecarbon": json.loads(trackers),
        "meter": after["meter"],
    }


def _state(server: ServerProcess, tree: RaplTree | None) -> dict[str, Any]:
    """Return sums of the server's account and of the tree at this moment."""
    state = server.get("/v2/clover/state")
    (line,) = state["totals"]["devices"].values()
    sums = {key: value for key, value in line.items() if key.endswith(("_j", "_g")) and isinstance(value, float)}
    if tree is not None:
        tree.raise_counters()
    return {
        "at": time.monotonic(),
        "busy_s": busy_seconds(),
        "clover": sums,
        "true": dict(tree.joules) if tree is not None else {},
        "meter": line.get("method"),
    }


def tracked(given: argparse.Namespace) -> int:
    """Start the server below trackers of codecarbon, which start and stop as the lines of standard input say."""
    if given.packages:
        sys.path.append(given.packages)
    from codecarbon import OfflineEmissionsTracker, __version__

    meter = "rapl" if given.sources == ["rapl"] else "modelled"
    arguments = [f"--energy-meter={meter}", f"--carbon={given.carbon}", f"--trace-speed={given.trace_speed}"]
    with tempfile.TemporaryDirectory() as folder, served(arguments, log=Path(folder) / "log") as server:
        print(json.dumps({"url": server.url}), flush=True)
        trackers = {
            mode: OfflineEmissionsTracker(
                country_iso_code=COUNTRY,
                tracking_mode=mode,
                save_to_file=False,
                log_level="critical",
                allow_multiple_runs=True,
            )
            for mode in ("machine", "process")
        }
        for line in sys.stdin:
            if line == "start\n":
                for tracker in trackers.values():
                    tracker.start()
                print("started", flush=True)
            elif line == "stop\n":
                said = {}
                for mode, tracker in trackers.items():
                    tracker.stop()
                    data = tracker.final_emissions_data
                    said[mode] = {
                        "cpu_j": data.cpu_energy * JOULES_PER_KWH,
                        "ram_j": data.ram_energy * JOULES_PER_KWH,
                        "total_j": data.energy_consumed * JOULES_PER_KWH,
                        "grams": data.emissions * 1e3,
                        "seconds": data.duration,
                        "pue": data.pue,
                        "cpu": str(next(item for item in tracker._hardware if type(item).__name__ == "CPU")),
                        "tdp_w": next(item._tdp for item in tracker._hardware if type(item).__name__ == "CPU"),
                    }
                print(json.dumps({"version": __version__, **said}), flush=True)
            else:
                print("ended", flush=True)
                break
    return 0


# --- line by line -----------------------------------------------------------------------------------------------------


def _print(source: str, found: dict[str, Any]) -> None:
    clover, machine, process = found["clover"], found["codecarbon"]["machine"], found["codecarbon"]["process"]
    seconds, true = found["seconds"], found["true"]
    running, idle, rest = (sum(clover.get(f"{name}_j", 0.0) for name in names) for names in (RUNNING, IDLE, REST))
    title = f"{source}: {seconds:.0f} s, codecarbon {found['codecarbon']['version']}, failed requests {found['failed']}"
    lines = [[f"Clover: {name}", clover.get(f"{name}_j", 0.0)] for name in (*RUNNING, *IDLE, *REST)]
    lines = [[name, f"{joules:.1f}"] for name, joules in lines if abs(joules) > 0.05]
    show(title, ["line", "J"], [*lines, ["Clover: all", f"{clover['measured_j']:.1f}"]])
    bridge: list[tuple[str, float]] = [("codecarbon, machine: all", machine["total_j"])]
    bridge.append(("- RAM by codecarbon's estimate", -machine["ram_j"]))
    if true:
        bridge.append(("+ DRAM by its counter", true["dram"]))
        bridge.append(("+ package: true less codecarbon's", true["package-0"] - machine["cpu_j"]))
        explained = sum(joules for _, joules in bridge)
        bridge.append(("+ Clover's less true", clover["measured_j"] - explained))
    else:
        floor_j = 0.1 * machine["tdp_w"] * seconds
        bridge.append((f"- rest: a tenth of {machine['tdp_w']:g} W", -floor_j))
        bridge.append((f"- load of the machine ({found['busy_s']:.0f} CPU s), cubed", floor_j - machine["cpu_j"]))
        bridge.append(("+ rest by published watts a thread", idle))
        bridge.append(("+ the server's CPU seconds by published watts", running + rest))
    show("From codecarbon's joules to Clover's", ["line", "J"], [[name, f"{joules:+.1f}"] for name, joules in bridge])
    energy = clover["measured_j"] / machine["total_j"]
    theirs = machine["grams"] / machine["total_j"] * JOULES_PER_KWH
    ours = clover["total_g"] / clover["measured_j"] * JOULES_PER_KWH
    rows: list[list[object]] = [
        ["codecarbon, machine: g", machine["grams"]],
        ["x joules", energy],
        [f"x g/kWh with PUE: {theirs:.1f} of {COUNTRY} to {ours:.1f} of the hours", ours / theirs],
        ["= Clover: g", clover["total_g"]],
    ]
    show("From codecarbon's grams to Clover's", ["line", ""], rows)
    show(
        "codecarbon, process and its children",
        ["CPU J", "RAM J", "all J", "g", "CPU", "Clover: running lines J"],
        [[process["cpu_j"], process["ram_j"], process["total_j"], process["grams"], process["cpu"], running]],
    )


if __name__ == "__main__":
    raise SystemExit(main())
