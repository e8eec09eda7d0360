"""A replayed day on a whole cluster of this machine: three regions, open-loop load, and then everything killed once.

    python -m bench.cluster_day --page bench/results/cluster_day.md      # ten minutes undisturbed, then the kills
    python -m bench.cluster_day --minutes 3 --parts day --traces a.csv b.csv c.csv

Three Ray nodes with addresses of their own (127.0.0.2 to .4), each a Clover server with two emulated A100s
of one box (or, with `--cores`, on core 0), HAProxy before them, the production controller.  The grids are traces, one a
region, by default three formulas whose clean hours lie eight hours apart.  All regions send alike, in open loop
(`bench.cluster_load`).

**The day.**  A day of the grids in `--minutes`, in which nothing is disturbed: where the plans wanted the rows and
where they were answered, nodes released and taken back, the accuracy of all answers against the floor, and grams beside
those of each node alone and of all awake with equal shares.

**The kills** (`bench.cluster_kills`), one after the other on the same cluster under the same load: for each the seconds
until the cluster was as before, and the tries and requests that failed until the next one.

Requests, failures, seconds and whether an answer is right are measured.  The accuracy of an answer is what its receipt
expects of its variant, which is the profile's.  Grams are modelled by the plans (profiles measured here; emulated GPUs
have the speed and watts of their table; the watts of machines are configured).  Nothing delays requests on their way:
what the ways between regions would add is declared, and added in the table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.cluster_day_page import page
from bench.cluster_day_report import Seen, document
from bench.cluster_kills import Back, Kill, kills, process_word, settled
from bench.cluster_load import Load, Question, questions
from bench.common import ROOT, busy_seconds, provenance, write_json
from clover import families
from clover.cluster import cluster_file
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller.records import ClusterStatus
from clover.cluster.nodes.frontiers import kept_frontiers
from clover.cluster.nodes.node import NodeAgent, NodeSetup
from clover.cluster.running import ClusterHandle, bring_up, take_down
from clover.errors import ClusterError

REGIONS = ("west", "middle", "east")
WAYS_MS = {("west", "middle"): 20.0, ("middle", "east"): 20.0, ("west", "east"): 40.0}
SLO_MS = 500.0
LEASE_S = 8.0
BACK_S = 300.0
"""Most seconds that a kill may take until the cluster is as before."""
CALM_S = 8.0
"""Seconds without a lost node before something is killed."""
QUESTIONS = 600
SPEEDS = {"1g.5gb": 1.0, "2g.10gb": 1.9, "3g.20gb": 2.57, "4g.20gb": 2.86, "7g.40gb": 3.06}
"""Of an A100's slices, as docs/emulated.md has them."""
BATCH_ROW = 0.6
"""What each further row of a batch takes, of the time of the first."""


@dataclass(frozen=True)
class Served:
    """A family that the cluster serves: its name, where it is, the accuracy floor of the cluster, and what a row takes
    on one slice by variant, in ms.

    The times are configured: as those of a model of which a few rows a second fill an A100, so that on two cores, too,
    rows cost watts beside what the machines do at rest, and accuracy and grids are worth something."""

    name: str
    source: str
    floor: float
    ms: dict[str, float]


FAMILIES = {
    "fashion": Served(
        "fashion", "fashion", 91.5, {"tiny": 12.0, "small": 25.0, "medium": 50.0, "large": 110.0, "xlarge": 240.0}
    ),
    "toy": Served("toy", str(ROOT / "tests" / "families" / "toy"), 72.0, {"half": 12.0, "full": 240.0}),
}


# --- the cluster ------------------------------------------------------------------------------------------------------


def write_traces(folder: Path, given: Sequence[str]) -> list[str]:
    """Return the files of three traces: those given, or formulas of a day that are written to `folder`."""
    if given:
        return [str(Path(path).resolve()) for path in given]
    start, paths = datetime(2026, 1, 1, tzinfo=UTC), []
    for at, name in enumerate(REGIONS):
        rows = ["datetime_utc,carbon_intensity_gco2_per_kwh"]
        for step in range(4 * 24):
            hours = step / 4.0
            value = 300.0 + 250.0 * math.cos(2.0 * math.pi * (hours - 8.0 * at) / 24.0)
            rows.append(f"{(start + timedelta(hours=hours)).isoformat()},{value:.1f}")
        path = folder / f"{name}.csv"
        path.write_text("\n".join(rows) + "\n")
        paths.append(str(path))
    return paths


def write_cluster(folder: Path, given: argparse.Namespace) -> tuple[ClusterFile, dict[str, int]]:
    """Return the cluster that is to be brought up, and the port of each region."""
    ports = _free_ports(6)
    day_s = 60.0 * given.minutes
    hour_s = day_s / 24.0
    lines = [
        "[cluster]", 'name = "day"', f'folder = "{folder}/c"', "step_s = 1.0", f"lease_s = {LEASE_S}", "lost_s = 5.0",
        "drain_s = 10.0", 'survive = "node"', "max_changes = 0.5", f"plan_s = {hour_s / 2.0}",
        f"dwell_s = {hour_s}", f"release_after_s = {hour_s / 2.0}", f"budget_s = {day_s}",
        f"horizon_s = {hour_s}", "[ingress]",
    ]  # fmt: skip
    traces = write_traces(folder, given.traces)
    family = FAMILIES[given.family]
    pace = ["--pace", write_pace(folder, family)] if not given.cores else []
    for at, name in enumerate(REGIONS):
        ways = ((*pair, ms) for pair, ms in WAYS_MS.items() if name in pair)
        others = ", ".join(f"{b if a == name else a} = {ms}" for a, b, ms in ways)
        lines += ["[[region]]", f'name = "{name}"', f'listen = "127.0.0.1:{ports[at]}"']
        lines += [f"latency_ms = {{ {others} }}"]
        source = f'source = "trace:{traces[at]}?loop=1", trace_speed = {86_400.0 / day_s}, trace_start = "first"'
        lines += [f"carbon = {{ {source} }}"]
    for at, name in enumerate(REGIONS):
        device = ["--cores", "0"] if given.cores else ["--device", f"emulated:a100-40gb:6:{2 * at}-{2 * at + 1}"]
        words = [*device, "--cache-dir", given.cache or f"{folder}/cache", "--backends", "eager"]
        # The floor is one of expected accuracy: nodes add no margin of their own for the size of the evaluation set.
        words += ["--slo-ms", str(given.slo), "--accuracy-margin", "0", *pace]
        lines += ["[[node]]", f'name = "{name}-1"', f'region = "{name}"', f'address = "127.0.0.{at + 2}"']
        lines += [f"port = {ports[3 + at]}", "awake_w = 100", "wake_s = 15", f"arguments = {words!r}"]
    lines += ["[[family]]", f'family = "{family.name}"', f'source = "{family.source}"', f"slo_ms = {SLO_MS}"]
    lines += [f"accuracy_floor = {given.floor or family.floor}"]
    path = folder / "cluster.toml"
    path.write_text("\n".join(lines) + "\n")
    return cluster_file.read(path), dict(zip(REGIONS, ports, strict=False))


def write_pace(folder: Path, family: Served) -> str:
    """Return a file of how long a family takes on the slices of an emulated A100, and what that draws."""
    rows = [
        {
            "family": family.name,
            "variant": variant,
            "profile": profile,
            "batch": batch,
            "ms": ms * (1.0 + BATCH_ROW * (batch - 1)) / speed,
            "watts": 17.0 * int(profile[0]),
        }
        for variant, ms in family.ms.items()
        for profile, speed in SPEEDS.items()
        for batch in (1, 8)
    ]
    path = folder / "pace.json"
    document = {"method": "configured", "source": "bench.cluster_day", "rows": rows}
    path.write_text(json.dumps(document))
    return str(path)


def evaluation(family: Served) -> list[Question]:
    """Return requests of one row each, from the rows that the family was not tuned on."""
    spec = families.load_family(family.source)
    inputs, labels = families.load_evaluation(spec, "held_out")
    return questions(spec.inputs[0].name, inputs[0], labels, QUESTIONS)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """A part of the run: seconds of the load at which it began and ended, and the part of all cores that was busy."""

    began_s: float = 0.0
    ended_s: float = 0.0
    busy: float = 0.0


class Day:
    """One run (`bench.cluster_kills.Killed`)."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.file, self.ports = write_cluster(folder, given)
        self.folder = folder / "c"
        self.kills: list[Kill] = []
        self.seen: list[Seen] = []
        self.parts: dict[str, Part] = {}
        self.servers: dict[str, str] = {}
        """The node of each server, by the word with which its ids begin."""
        family = FAMILIES[given.family]
        self.load = Load(self.ports, given.rate, evaluation(family), family.name)
        self.handle: ClusterHandle | None = None
        self._looking = threading.Event()

    def run(self) -> None:
        """Bring the cluster up, have it live through its parts, and end it."""
        started = False
        servers = threading.Thread(target=self._learn_servers, name="servers")
        try:
            asyncio.run(self._measure())
            self.handle = bring_up(self.file, "", say=say)
            say("waiting for the nodes")
            status = self.handle.wait_ready(300.0)
            say(", ".join(f"{node.name} {node.phase}" for node in status.nodes))
            self._await_plan()
            servers.start()
            self.load.start()
            started = True
            self._settle()
            if "day" in self.given.parts:
                with self._part("day"):
                    self._watch(self.load.now_s() + 60.0 * self.given.minutes)
            if "kills" in self.given.parts:
                with self._part("kills"):
                    self._kill_all()
        finally:
            self._looking.set()
            if started:
                self.load.stop()
                servers.join()
            take_down(self.file, keep=False, say=say)

    def busiest(self) -> str:
        """Return the node that has most rows."""
        return max(self.seen[-1].status.nodes, key=lambda node: node.share).name

    def awake(self) -> list[str]:
        """Return the nodes that are ready."""
        return [node.name for node in self.seen[-1].status.nodes if node.phase == "ready"]

    def wait(self, seconds: float) -> None:
        """Watch for so long."""
        self._watch(self.load.now_s() + seconds)

    def again(self) -> None:
        """Bring the cluster up again."""
        self.handle = bring_up(self.file, "", say=say)

    async def _measure(self) -> None:
        """Start one server alone, which measures what it serves and keeps it for the others, as the operating points of
        its devices are kept for all nodes."""
        kept = self.folder / "frontiers"
        if self.given.cache:
            self.folder.mkdir(parents=True)
            kept.symlink_to(Path(self.given.cache).resolve() / "frontiers")
            kept.readlink().mkdir(parents=True, exist_ok=True)
        agent = NodeAgent(
            NodeSetup.from_cluster(self.file, self.file.node[0].name, self.folder),
            frontiers=lambda told: kept_frontiers(told, kept),
        )
        say("a server measures what it serves")
        await agent.start()
        end_s = time.monotonic() + 900.0
        while not (await agent.report()).healthy and time.monotonic() < end_s:
            await agent.revive()  # on a machine with other work a first plan may come too late
            await asyncio.sleep(1.0)
        say("what its devices can do is worked out")
        await agent.wait_learned()
        await agent.release()

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        part = self.parts[name] = Part(self.load.now_s())
        busy_s, since_s = busy_seconds(), time.monotonic()
        say(f"{name}: from second {part.began_s:.0f} of the load")
        try:
            yield
        finally:
            part.ended_s = self.load.now_s()
            cores = len(os.sched_getaffinity(0))
            part.busy = (busy_seconds() - busy_s) / (time.monotonic() - since_s) / cores

    def _await_plan(self) -> None:
        """Wait until there is a plan and the nodes that are ready follow it: rows before that would be answered by the
        nodes' own policies, and count for the accuracy of the cluster all the same."""
        assert self.handle is not None
        end_s = time.monotonic() + BACK_S
        while time.monotonic() < end_s:
            with contextlib.suppress(ClusterError):
                status = self.handle.status()
                ready = [node for node in status.nodes if node.phase == "ready"]
                planned = any(decision.action == "applied" for decision in status.decisions)
                if planned and ready and all(node.epoch > 0 for node in ready):
                    return
            time.sleep(1.0)
        say(f"the nodes follow no plan after {BACK_S:g} s")

    def _settle(self) -> None:
        """Wait until there is a plan for the load, no node is lost, and another one is ready to take over."""
        end_s = self.load.now_s() + BACK_S
        calm_s = None
        while self.load.now_s() < end_s:
            status = self._look()
            calm = status is not None and settled(status) and bool(status.flows) and len(self.awake()) > 1
            calm_s = (calm_s if calm_s is not None else self.load.now_s()) if calm else None
            if calm_s is not None and self.load.now_s() - calm_s >= CALM_S:
                return
            time.sleep(1.0)
        say(f"the cluster is not calm after {BACK_S:g} s")

    def _kill_all(self) -> None:
        for what, act in kills(self):
            if self.given.only and not any(word in what for word in self.given.only):
                continue
            self._settle()
            before = self.seen[-1].status
            say(f"kill: {what} (the busiest node is {self.busiest()})")
            kill = Kill(what, self.load.now_s())
            self.kills.append(kill)
            kill.back_s = self._until(act(), kill.at_s)
            after = self.seen[-1].status
            kill.epochs, kill.rows = (before.epoch, after.epoch), (before.totals.rows, after.totals.rows)
            say(f"  as before after {kill.back_s} s")
        self.wait(CALM_S)

    def _watch(self, until_s: float) -> None:
        while self.load.now_s() < until_s:
            self._look()
            time.sleep(1.0)

    def _until(self, back: Back, since_s: float) -> float | None:
        """Return the seconds since a kill until the cluster is as before; None if it is not within `BACK_S`."""
        while self.load.now_s() < since_s + BACK_S:
            status = self._look()
            if status is not None and back(status):
                return self.load.now_s() - since_s
            time.sleep(0.2)
        return None

    def _look(self) -> ClusterStatus | None:
        assert self.handle is not None
        try:
            status = self.handle.status()
        except ClusterError:
            with contextlib.suppress(ClusterError):
                self.handle = ClusterHandle.attach(self.file)
            return None
        self.seen.append(Seen(self.load.now_s(), status, os.getloadavg()[0]))
        return status

    def _learn_servers(self) -> None:
        """Ask each node's server every second by which word its ids begin, as a server that starts has another one."""
        while not self._looking.wait(1.0):
            for node in self.file.node:
                if word := process_word(node):
                    self.servers[word] = node.name


def say(text: str) -> None:
    """Tell who watches how far it is."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="real minutes that the day takes [10]")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, of all regions together [20]")
    parser.add_argument(
        "--family",
        choices=tuple(FAMILIES),
        default="toy",
        help="what is served; fashion takes longer to be ready [toy]",
    )
    parser.add_argument(
        "--floor", type=float, default=0.0, help="accuracy floor of the cluster, percent [the family's]"
    )
    parser.add_argument("--slo", type=float, default=300.0, help="SLO of the nodes' own servers, ms [300]")
    parser.add_argument("--traces", nargs=3, default=(), metavar="CSV", help="a trace for each region")
    parser.add_argument("--cores", action="store_true", help="nodes on core 0 instead of emulated A100s")
    parser.add_argument("--cache", default="", metavar="DIR", help="folder of what servers measured [made anew]")
    parser.add_argument("--parts", nargs="+", choices=("day", "kills"), default=("day", "kills"), help="[both]")
    parser.add_argument("--only", nargs="+", default=(), metavar="WORD", help="of the kills, those with such a word")
    parser.add_argument("--page", default="", metavar="FILE", help="write the result page to a file")
    parser.add_argument("--json", default="", metavar="FILE", help="write what was found to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clover-day-") as folder:
        day = Day(given, Path(folder))
        try:
            day.run()
        finally:  # what was seen until something failed is shown, too
            found = document(day)
            write_json(given.json, found)
            text = page(found, provenance())
            print(text)
            if given.page:
                Path(given.page).write_text(text)


if __name__ == "__main__":
    main()
