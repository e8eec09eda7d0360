"""Clover's data plane beside reference servers of the same wire, on one core.

    python -m bench.wire [--rounds 5] [--seconds 3] [--workload w1 w2 w3] [--json FILE]

Every server's whole tree inherits core 0 and cannot leave it, the load generator has core 1.  Servers of a workload
stay up together (idle ones sleep), rounds go through them in turn, and a ratio is taken within a round: the table has
medians.  A round in which others used more than a tenth of a core is played again, a few times.  Bodies rotate over 512
kinds that differ in length, id and values; in a pass of its own every answer is checked for both.  Clover runs with its
defaults and one pinned variant, so that nothing changes meanwhile: receipts, metrics, limits, deadlines and ids are on.
CPU is the tree's, from the scheduler's nanosecond counters.  Requires two cores, a C compiler and taskset.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.common import ROOT, cpu_seconds, free_port, provenance, show, tree, write_json
from bench.wire.workloads import WORKLOADS, Floats, Workload

SERVER_CORE, CLIENT_CORE = "0", "1"
FOREIGN = 0.1
_TRIES = 3
_START_S = 180.0


@dataclass(frozen=True)
class Peer:
    """A server: its command for a workload and a port; `ready` is a path that answers 200 once it serves."""

    name: str
    command: Callable[[Workload, int], list[str]]
    workloads: tuple[str, ...]
    ready: str = ""


@dataclass(frozen=True)
class Measure:
    """One line of the table.  `figure` is read out of a run, `beside` the reference whose part it is given as; `higher`
    is better or not; `must` bounds the ratio."""

    name: str
    workload: str
    connections: int
    rate: float
    figure: str
    beside: str
    must: float

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.figure in ("per_s", "per_cpu_s")


@dataclass
class Round:
    """What one run of the generator gave."""

    per_s: float
    per_cpu_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    failed: int
    foreign: float = field(default=0.0)


PEERS = (
    Peer(
        "clover",
        lambda work, port: [
            *(sys.executable, "-m", "clover.serve", f"bench.wire.workloads:{work.family.name.upper()}"),
            *("--policy", "static:only", "--port", str(port)),
        ],
        ("w1", "w2", "w3"),
        "/v2/health/ready",
    ),
    *(
        Peer(
            kind,
            lambda work, port, kind=kind: [  # type: ignore[misc]
                *(sys.executable, "-m", "bench.wire.reference", kind, "--workload", work.name, "--port", str(port))
            ],
            workloads,
        )
        for kind, workloads in (("raw", ("w1",)), ("rawreal", ("w1", "w2")), ("rawbuf", ("w3",)))
    ),
)

MEASURES = (
    Measure("W1, 64 connections, req/s", "w1", 64, 0.0, "per_s", "rawreal", 0.75),
    Measure("W1, 1 connection, p50 us", "w1", 1, 0.0, "p50_us", "rawreal", 2.2),
    Measure("W2, 64 connections, req/s", "w2", 64, 0.0, "per_s", "rawreal", 0.95),
    Measure("W2, 1 connection, p50 us", "w2", 1, 0.0, "p50_us", "rawreal", 1.3),
    Measure("W2, open loop 1,000/s, p99 us", "w2", 64, 1000.0, "p99_us", "rawreal", 1.5),
    Measure("W3, 16 connections, req/CPU-s", "w3", 16, 0.0, "per_cpu_s", "rawbuf", 0.75),
    Measure("W3, 1 connection, p50 us", "w3", 1, 0.0, "p50_us", "rawbuf", 1.7),
    Measure("W1, 256 connections, req/s", "w1", 256, 0.0, "per_s", "", 0.9),
)


class Bench:
    """The generator, compiled, and its files."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.binary = folder / "generator"
        source = Path(__file__).with_name("generator.c")
        subprocess.run(["cc", "-O2", "-o", str(self.binary), str(source), "-lm"], check=True)

    def run(self, work: Workload, port: int, connections: int, rate: float, seconds: float, answers: str = "") -> str:
        """The generator's line."""
        words = [str(port), str(self.folder / f"{work.name}.requests"), str(self.folder / "times")]
        words += [str(connections), str(seconds), str(rate), *([answers] if answers else [])]
        command = ["taskset", "-c", CLIENT_CORE, str(self.binary), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def round(self, work: Workload, port: int, pid: int, measure: Measure) -> Round:
        """One round of one server, again where others disturbed it."""
        for _ in range(_TRIES):
            pids = tree(pid)
            before, whole = cpu_seconds(pids), busy_seconds()
            client = os.times()
            words = self.run(work, port, measure.connections, measure.rate, self.seconds).split()
            after = os.times()
            used = cpu_seconds(pids) - before
            own = after.children_user + after.children_system - client.children_user - client.children_system
            foreign = (busy_seconds() - whole - used - own) / self.seconds
            if foreign < FOREIGN:
                break
        _, good, refused, other, lost = map(int, words[:5])
        times = np.fromfile(self.folder / "times", np.float32)
        if not good:
            raise RuntimeError(f"no request was answered: {' '.join(words)}")
        p50, p99 = np.quantile(times, (0.5, 0.99))
        took = float(words[5])
        return Round(
            good / took, good / used, 1e6 * used / good, float(p50), float(p99), refused + other + lost, foreign
        )

    def wrong(self, work: Workload, port: int, expected: Callable[[Floats], Floats]) -> int:
        """Wrong answers of a pass over all kinds of request."""
        path = self.folder / "answers"
        self.run(work, port, 16, 0.0, 1.0, str(path))
        return work.wrong(path.read_bytes(), expected)


def busy_seconds() -> float:
    """CPU seconds used on this machine so far."""
    with open("/proc/stat") as lines:
        words = next(iter(lines)).split()
    ticks = sum(map(int, words[1:4])) + sum(map(int, words[6:8]))  # user, nice, system, irq, softirq
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(peer: Peer, work: Workload, folder: Path) -> Iterator[tuple[int, int]]:
    """The peer's pid and port while it runs."""
    port = free_port()
    with open(folder / f"{peer.name}.log", "ab") as log:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, *peer.command(work, port)], stdout=log, stderr=log, cwd=ROOT
        )
    try:
        end = time.monotonic() + _START_S
        while not serving(port, peer.ready):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{peer.name} does not serve:\n{(folder / f'{peer.name}.log').read_text()[-3000:]}")
            time.sleep(0.2)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serving(port: int, path: str) -> bool:
    """Whether a server answers there."""
    try:
        if not path:
            with socket.create_connection(("127.0.0.1", port), 1):
                return True
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def expected_of(work: Workload) -> Callable[[Floats], Floats]:
    """What the workload's model makes of rows."""
    import torch

    from bench.wire import models

    model = getattr(models, work.family.name)()

    def found(rows: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(rows)).numpy())

    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workload", nargs="*", choices=sorted(WORKLOADS), default=sorted(WORKLOADS))
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    lines: dict[Measure, dict[str, list[Round]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder, given.seconds)
        for key in given.workload:
            work = WORKLOADS[key]
            work.write(folder)
            expected = expected_of(work)
            with contextlib.ExitStack() as stack:
                up = {
                    peer.name: stack.enter_context(started(peer, work, folder))
                    for peer in PEERS
                    if key in peer.workloads
                }
                for peer, (_, port) in up.items():
                    if peer != "raw" and (wrong := bench.wrong(work, port, expected)):
                        raise RuntimeError(f"{wrong} answers of {peer} are wrong in {key}")
                for measure in (item for item in MEASURES if item.workload == key):
                    rounds = lines.setdefault(measure, {peer: [] for peer in up})
                    for _ in range(given.rounds):
                        for peer, (pid, port) in up.items():
                            rounds[peer].append(bench.round(work, port, pid, measure))
    report(lines)
    write_json(given.json, {"lines": {m.name: _plain(peers) for m, peers in lines.items()}})
    return 0


def _plain(peers: dict[str, list[Round]]) -> dict[str, list[dict[str, float]]]:
    return {peer: [vars(one) for one in rounds] for peer, rounds in peers.items()}


def report(lines: dict[Measure, dict[str, list[Round]]]) -> None:
    """The table: medians over rounds with their range, ratios taken within rounds."""
    where = provenance()
    rows: list[list[object]] = []
    for measure, peers in lines.items():
        reference = peers.get(measure.beside)
        for peer, rounds in peers.items():
            values = [getattr(one, measure.figure) for one in rounds]
            ratio, verdict = "", ""
            base = reference
            if peer == "clover" and not measure.beside:  # beside its own figure at 64 connections
                base = next(p["clover"] for m, p in lines.items() if m.workload == measure.workload)
            if base is not None and rounds is not base:
                part = statistics.median(
                    v / getattr(b, measure.figure) for v, b in zip(values, base, strict=True)
                )
                ratio = f"{part:.2f}"
                if peer == "clover":
                    holds = part >= measure.must if measure.higher else part <= measure.must
                    verdict = f"{'>=' if measure.higher else '<='} {measure.must:g}: {'yes' if holds else 'no'}"
            cpu = statistics.median(one.cpu_us for one in rounds)
            failed, foreign = sum(one.failed for one in rounds), max(one.foreign for one in rounds)
            span = f"{min(values):.0f}..{max(values):.0f}"
            rows.append(
                [measure.name, peer, f"{statistics.median(values):.0f}", span, ratio, verdict, f"{cpu:.0f}", failed,
                 f"{foreign:.2f}"]
            )
    columns = ["", "server", "median", "range", "ratio", "must", "CPU us/req", "failed", "foreign"]
    show(f"one core each, {where['processor']}, {where['date']}: measured", columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
