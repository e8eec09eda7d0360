"""A replayed day on a whole cluster of this machine: three regions, open-loop load, and everything killed once.

    python -m bench.cluster_day --minutes 10               # a day of the grids in ten minutes, with kills
    python -m bench.cluster_day --minutes 3 --no-kills --cores

Three Ray nodes with addresses of their own (127.0.0.2 to .4), each a Clover server with two emulated A100s of one box
(or, with `--cores`, on core 0), HAProxy before them, the production controller.  The grids are traces of 24 hours, by
default three formulas whose clean hours lie eight hours apart; `--traces` takes files, one a region.  Load is open
loop: requests are due at fixed times whatever becomes of those before.  All regions send alike.

What is killed, one after the other: a node's server, its actor, the controller, HAProxy, a whole node (server, actor
and Ray node), the way between controller and a node (its actor is stopped for longer than the lease), Ray's head.  For
each the requests that failed until the next one, and the seconds until the cluster was as before.

Requests, failures and seconds are measured; grams are modelled by the plans (of profiles measured here; emulated GPUs
have the speed and watts of their table); the traces are formulas unless files are given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import itertools
import math
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from bench.common import show, write_json
from clover.cluster import cluster_file
from clover.cluster.cluster_records import ClusterFile
from clover.cluster.controller_records import ClusterStatus
from clover.cluster.node import NodeAgent, NodeSetup
from clover.cluster.ray_support import LocalRay
from clover.cluster.running import ClusterHandle, bring_up, take_down
from clover.cluster.server_process import ServerProcess
from clover.errors import ClusterError

ROOT = Path(__file__).parents[1]
REGIONS = ("west", "middle", "east")
THREADS = 24
SLO_MS = 500.0
FLOOR = 80.0
LEASE_S = 8.0
_CLOSED = ("BrokenPipeError (rested)", "RemoteDisconnected (rested)", "ConnectionResetError (rested)")
BODY = msgspec.json.encode(
    {"inputs": [{"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}]}
)


# --- the cluster ------------------------------------------------------------------------------------------------------


def write_traces(folder: Path, given: Sequence[str]) -> list[str]:
    """Return the files of three traces: those given, or formulas that are written to `folder`."""
    if given:
        return [str(Path(path).resolve()) for path in given]
    start, paths = datetime(2026, 1, 1, tzinfo=UTC), []
    for at, name in enumerate(REGIONS):
        rows = ["datetime_utc,carbon_intensity_gco2_per_kwh"]
        for step in range(4 * 24 * 2):
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
    speed = 86_400.0 / (given.minutes * 60.0)
    lines = [
        "[cluster]", 'name = "day"', f'folder = "{folder}/c"', "step_s = 1.0", f"lease_s = {LEASE_S}", "lost_s = 5.0",
        "drain_s = 10.0", 'survive = "node"', "max_changes = 0.5", f"plan_s = {given.minutes * 60.0 / 48.0}",
        f"dwell_s = {given.minutes * 2.0}", f"release_after_s = {given.minutes}", f"budget_s = {given.minutes * 60.0}",
        "horizon_s = 30.0", "[ingress]",
    ]  # fmt: skip
    traces = write_traces(folder, given.traces)
    for at, name in enumerate(REGIONS):
        others = ", ".join(f"{other} = 20" for other in REGIONS if other != name)
        lines += ["[[region]]", f'name = "{name}"', f'listen = "127.0.0.1:{ports[at]}"']
        lines += [f"latency_ms = {{ {others} }}"]
        lines += [f'carbon = {{ source = "trace:{traces[at]}", trace_speed = {speed}, trace_start = "first" }}']
    for at, name in enumerate(REGIONS):
        device = ["--cores", "0"] if given.cores else ["--device", f"emulated:a100-40gb:6:{2 * at}-{2 * at + 1}"]
        words = [*device, "--cache-dir", f"{folder}/cache", "--backends", "eager", "--slo-ms", "300"]
        lines += ["[[node]]", f'name = "{name}-1"', f'region = "{name}"', f'address = "127.0.0.{at + 2}"']
        lines += [f"port = {ports[3 + at]}", "awake_w = 100", "wake_s = 20", f"arguments = {words!r}"]
    lines += ["[[family]]", 'family = "toy"', f'source = "{ROOT}/tests/families/toy"']
    lines += [f"accuracy_floor = {FLOOR}", f"slo_ms = {SLO_MS}"]
    path = folder / "cluster.toml"
    path.write_text("\n".join(lines) + "\n")
    return cluster_file.read(path), dict(zip(REGIONS, ports, strict=False))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in sockets]


# --- load -------------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """What became of the requests: by second of the bench when they were due, with their latency or why they failed."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    reconnected: int = 0
    """Requests that were sent again at once, as the connection had been closed while it rested."""


class Load:
    """Requests to each region in turn, each due at its time; `THREADS` connections are kept alive, as clients do."""

    def __init__(self, ports: dict[str, int], per_s: float) -> None:
        self.asked = Asked()
        self.began_s = time.monotonic()
        self._ports, self._per_s = list(ports.values()), per_s
        self._next = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for the answers that are under way."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        """Ask once; return why it failed, empty if it did not.  A connection that failed is closed."""
        rested = connection.sock is not None
        try:
            connection.request("POST", "/v2/models/toy/infer", BODY, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            return "" if response.status == 200 else str(response.status)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"{type(error).__name__}{' (rested)' if rested else ''}"

    def _run(self) -> None:
        open_ones: dict[int, http.client.HTTPConnection] = {}
        while not self._ended.is_set():
            with self._lock:
                number, self._next = self._next, self._next + 1
            due_s = number / self._per_s
            if self._ended.wait(max(0.0, self.began_s + due_s - time.monotonic())):
                break
            port = self._ports[number % len(self._ports)]
            connection = open_ones.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=30.0))
            why = self._ask(connection)
            if why in _CLOSED and connection.sock is None:  # it was closed while it rested: a client connects again
                self.asked.reconnected += 1
                why = self._ask(connection)
            if why:
                self.asked.failed.append((due_s, why))
            else:
                self.asked.answered.append((due_s, time.monotonic() - self.began_s - due_s))
        for connection in open_ones.values():
            connection.close()


# --- kills ------------------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """Something that was killed: when (seconds of the load), and how long until the cluster was as before."""

    what: str
    at_s: float
    back_s: float | None = None


class Day:
    """One run."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given = given
        self.file, self.ports = write_cluster(folder, given)
        self.folder = folder / "c"
        self.kills: list[Kill] = []
        self.seen: list[tuple[float, ClusterStatus]] = []
        self.load: Load | None = None
        self.handle: ClusterHandle | None = None

    def run(self) -> None:
        """Bring the cluster up, have it live through its day, and end it."""
        try:
            asyncio.run(self._measure())
            self.handle = bring_up(self.file, "", say=_say)
            _say("waiting for the nodes")
            status = self.handle.wait_ready(300.0)
            _say(", ".join(f"{node.name} {node.phase}" for node in status.nodes))
            self.load = Load(self.ports, self.given.rate)
            seconds = 60.0 * self.given.minutes
            events = self._events() if self.given.kills else []
            for at, (what, act) in enumerate(events):
                self._watch(seconds * (0.1 + 0.8 * at / len(events)))
                _say(f"kill: {what}")
                kill = Kill(what, self._now())
                self.kills.append(kill)
                kill.back_s = self._until(act(), kill.at_s)
            self._watch(seconds)
        finally:
            if self.load is not None:
                self.load.stop()
            take_down(self.file, keep=False, say=_say)

    async def _measure(self) -> None:
        """Start one server alone, which measures what it serves and keeps it for the others."""
        _say("a server measures what it serves")
        agent = NodeAgent(NodeSetup.of(self.file, self.file.node[0].name, self.folder))
        await agent.start()
        end_s = time.monotonic() + 300.0
        while not (await agent.report()).healthy and time.monotonic() < end_s:
            await asyncio.sleep(1.0)
        await agent.release()

    def _events(self) -> list[tuple[str, Callable[[], Callable[[ClusterStatus], bool]]]]:
        """Return what is killed, and by what it is known to be back."""
        return [
            ("a node's server", self._kill_server),
            ("its actor", self._kill_actor),
            ("the controller", self._kill_controller),
            ("HAProxy", self._kill_haproxy),
            ("a whole node", self._kill_node),
            ("the way to a node, for longer than the lease", self._part),
            ("Ray's head", self._kill_head),
        ]

    def _actors(self, kind: str) -> list[int]:
        """Return the processes of actors of a kind, of the bench's own Ray."""
        found = (ServerProcess(path).find() for path in (self.folder / "ray").iterdir() if path.is_dir())
        own = {pid for record in found if record is not None for pid in _below(record.pid)}
        return [pid for pid in _programs(kind) if pid in own]

    def _awake(self) -> str:
        """Return the node that has most rows."""
        return max(self.seen[-1][1].nodes, key=lambda node: node.share).name

    def _kill_server(self) -> Callable[[ClusterStatus], bool]:
        name = self._awake()
        process = ServerProcess(self.folder / name)
        old = process.find()
        _kill(*([old.pid] if old else []))
        port = next(node.port for node in self.file.node if node.name == name)
        address = next(node.address for node in self.file.node if node.name == name)

        def back(status: ClusterStatus) -> bool:
            return process.find() not in (None, old) and _ready(address, port) and _settled(status)

        return back

    def _kill_actor(self) -> Callable[[ClusterStatus], bool]:
        before = self._actors("ray::NodeActor")
        _kill(before[0])
        return lambda status: len(set(self._actors("ray::NodeActor")) - {before[0]}) >= len(before) and _settled(status)

    def _kill_controller(self) -> Callable[[ClusterStatus], bool]:
        _kill(*self._actors("ray::ControllerActor"))
        return lambda status: status.controlling and _settled(status)

    def _kill_haproxy(self) -> Callable[[ClusterStatus], bool]:
        old = _programs(f"{self.folder}/ingress/")
        _kill(*old)
        port = next(iter(self.ports.values()))
        return lambda status: not set(_programs(f"{self.folder}/ingress/")) & set(old) and _ready("127.0.0.1", port)

    def _kill_node(self) -> Callable[[ClusterStatus], bool]:
        """Kill everything of the node that has most rows, and have its machine come back after five seconds."""
        name = self._awake()
        node = next(one for one in self.file.node if one.name == name)
        ray = ServerProcess(self.folder / "ray" / node.address).find()
        record = ServerProcess(self.folder / name).find()
        below = _below(ray.pid) if ray is not None else []
        _kill(*([record.pid] if record else []), *below, *([ray.pid] if ray else []))
        self._watch(self._now() + 5.0)
        LocalRay(self.folder).start([one.address for one in self.file.node])
        return lambda status: _settled(status) and ServerProcess(self.folder / name).find() not in (None, record)

    def _part(self) -> Callable[[ClusterStatus], bool]:
        """Stop the actor of a node for longer than its lease: nobody reaches the node but its clients."""
        pid = self._actors("ray::NodeActor")[0]
        os.kill(pid, signal.SIGSTOP)
        self._watch(self._now() + LEASE_S + 4.0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return _settled

    def _kill_head(self) -> Callable[[ClusterStatus], bool]:
        """Kill Ray's head with all of Ray that is below it, and bring the cluster up again on a new Ray."""
        import ray

        head = ServerProcess(self.folder / "ray" / "head").find()
        if head is not None:
            _kill(*(pid for pid in _below(head.pid) if not _has(pid, "haproxy")), head.pid)
        time.sleep(5.0)
        ray.shutdown()
        self.handle = bring_up(self.file, "", say=_say)
        return _settled

    def _now(self) -> float:
        assert self.load is not None
        return time.monotonic() - self.load.began_s

    def _watch(self, until_s: float) -> None:
        while self._now() < until_s:
            self._look()
            time.sleep(1.0)

    def _until(self, back: Callable[[ClusterStatus], bool], since_s: float) -> float | None:
        """Return the seconds since a kill until the cluster is as before; None if it is not within two minutes."""
        while self._now() < since_s + 120.0:
            status = self._look()
            if status is not None and back(status):
                return self._now() - since_s
            time.sleep(0.5)
        return None

    def _look(self) -> ClusterStatus | None:
        assert self.handle is not None
        try:
            status = self.handle.status()
        except ClusterError:
            with contextlib.suppress(ClusterError):
                self.handle = ClusterHandle.attach(self.file)
            return None
        self.seen.append((self._now(), status))
        return status


def _settled(status: ClusterStatus) -> bool:
    """Return whether a controller is in charge, and no node is lost or on its way."""
    lost = ("waking", "lost", "partitioned")
    return status.controlling and not any(node.phase in lost for node in status.nodes)


def _ready(address: str, port: int) -> bool:
    try:
        connection = http.client.HTTPConnection(address, port, timeout=2.0)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _programs(word: str) -> list[int]:
    """Return the processes of this machine whose command line has `word`, but for this one."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != os.getpid() and _has(pid, word)]


def _has(pid: int, word: str) -> bool:
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return False


def _below(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found, waiting = [], [pid]
    while waiting:
        above = waiting.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found += below
        waiting += below
    return found


# --- what it showed ---------------------------------------------------------------------------------------------------


def report(day: Day) -> dict[str, Any]:
    """Print the tables, and return what they show."""
    assert day.load is not None
    asked = day.load.asked
    last = day.seen[-1][1]
    latencies = sorted(1e3 * latency for _, latency in asked.answered)
    failures = Counter(why for _, why in asked.failed)
    (family,) = last.families
    totals = last.totals
    phases = [{node.name: node.phase for node in status.nodes} for _, status in day.seen]
    pairs = list(itertools.pairwise(phases))
    released = sum(now[name] == "released" != before[name] for before, now in pairs for name in now)
    woken = sum(before[name] == "released" != now[name] for before, now in pairs for name in now)
    found: dict[str, Any] = {
        "requests": len(asked.answered) + len(asked.failed),
        "answered": len(asked.answered),
        "failed": dict(failures),
        "reconnected": asked.reconnected,
        "p50_ms": _at(latencies, 0.5),
        "p95_ms": _at(latencies, 0.95),
        "accuracy": family.accuracy,
        "accuracy_floor": family.accuracy_floor,
        "released": released,
        "woken": woken,
        "planned_g": totals.planned_g,
        "alone_g": totals.alone_g,
        "awake_g": totals.awake_g,
        "saved_against_alone": totals.saved_against_alone,
        "saved_against_awake": totals.saved_against_awake,
        "follows_the_grid": _follows(day.seen),
        "kills": [],
    }
    show("a replayed day", ("what", "value"), [(name, str(value)) for name, value in found.items() if name != "kills"])
    for at, kill in enumerate(day.kills):
        end_s = day.kills[at + 1].at_s if at + 1 < len(day.kills) else float("inf")
        failed = Counter(why for due_s, why in asked.failed if kill.at_s - 1.0 <= due_s < end_s - 1.0)
        found["kills"].append({"what": kill.what, "at_s": kill.at_s, "back_s": kill.back_s, "failed": dict(failed)})
    rows = [
        (kill["what"], f"{kill['at_s']:.0f}", "never" if kill["back_s"] is None else f"{kill['back_s']:.1f}",
         ", ".join(f"{count} {why}" for why, count in kill["failed"].items()) or "0")
        for kill in found["kills"]
    ]  # fmt: skip
    if rows:
        show("what was killed", ("what", "at s", "as before after s", "failed until the next"), rows)
    heads = ("hour", *(f"{name} g/kWh" for name in REGIONS), *(f"{name} rows/s" for name in REGIONS))
    show("by hour of the grid", heads, _hours(day))
    return found


def _follows(seen: Sequence[tuple[float, ClusterStatus]]) -> float | None:
    """Return the correlation of the regions' intensities with the rows/s that they answer, over all looks."""
    points = [
        (region.intensity, region.answered)
        for _, status in seen
        for region in status.regions
        if region.intensity is not None and sum(other.answered for other in status.regions) > 0.0
    ]
    if len(points) < 3 or len({x for x, _ in points}) < 2 or len({y for _, y in points}) < 2:
        return None
    return statistics.correlation([x for x, _ in points], [y for _, y in points])


def _hours(day: Day) -> list[tuple[object, ...]]:
    """Return mean intensity and rows/s of the regions by two hours of the day."""
    out: list[tuple[object, ...]] = []
    span_s = 60.0 * day.given.minutes / 12.0
    for at in range(12):
        here = [status for at_s, status in day.seen if at * span_s <= at_s < (at + 1) * span_s]
        if not here:
            continue
        by_name = [{region.name: region for region in status.regions} for status in here]
        known = [one for one in by_name if all(one[name].intensity is not None for name in REGIONS)]
        grams = [
            statistics.mean(one[name].intensity or 0.0 for one in known) if known else math.nan for name in REGIONS
        ]
        rows = [statistics.mean(one[name].answered for one in by_name) for name in REGIONS]
        out.append((2 * at, *(f"{value:.0f}" for value in grams), *(f"{value:.1f}" for value in rows)))
    return out


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="real minutes that the day takes [10]")
    parser.add_argument("--rate", type=float, default=30.0, help="requests a second, of all regions together [30]")
    parser.add_argument("--traces", nargs=3, default=(), metavar="CSV", help="a trace for each region")
    parser.add_argument("--cores", action="store_true", help="nodes on core 0 instead of emulated A100s")
    parser.add_argument("--no-kills", dest="kills", action="store_false", help="kill nothing")
    parser.add_argument("--json", default="", metavar="FILE", help="write what was found to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clover-day-") as folder:
        day = Day(given, Path(folder))
        day.run()
        write_json(given.json, report(day))


if __name__ == "__main__":
    main()
