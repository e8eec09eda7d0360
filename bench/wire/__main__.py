"""Clover's data plane beside reference servers of the same wire, on one core.

    python -m bench.wire [--rounds 5] [--seconds 3] [--workload w1 w2 w3] [--peers fastapi ...] [--json FILE]

Every server's whole tree inherits core 0 and cannot leave it, the load generator has core 1.  Servers of a workload
stay up together (idle ones sleep, or are stopped), rounds go through them in turn, and a ratio is taken within a round:
the table has medians.  A round in which others used more than a tenth of a core is played again, a few times.  Bodies
rotate over 512 kinds that differ in length, id and values; in a pass of its own every answer is checked for both.
Heads have the nine fields of a service mesh, with an X-Request-Id and a Traceparent of their own for each request.
Clover runs as `clover serve` starts it: policy, ledger, receipts, metrics, limits, deadlines and ids are on.  CPU is
the tree's, from the scheduler's nanosecond counters.  Requires two cores, a C compiler and taskset.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.common import ROOT, busy_seconds, cpu_seconds, free_port, provenance, show, tree, write_json
from bench.wire import peers
from bench.wire.workloads import WORKLOADS, Floats, Workload

SERVER_CORE, CLIENT_CORE = "0", "1"
FOREIGN = 0.1
_TRIES = 3
_START_S = 180.0
_WAKING_S = 1.0


class EndedError(RuntimeError):
    """A server that ended instead of serving."""


@dataclass(frozen=True)
class Peer:
    """A server: its command for a workload and a port, and the workloads it takes."""

    name: str
    command: Callable[[Workload, int], list[str]]
    workloads: tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """One line of the table.  `figure` is read out of a run; `beside` names the reference whose part it is given as, or
    nothing for the server's own first line of the workload; `must` bounds the ratio.  A `rate` is requests a second (0:
    closed loop), or below 0 so many times the requests a second of that first line.  `more` names further fields of the
    head (`workloads.FIELDS`)."""

    name: str
    workload: str
    connections: int
    rate: float
    figure: str
    beside: str
    must: float
    more: str = ""

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
    sent_p99_us: float
    """As `p99_us`, but counted from when a request was sent, not from when it was due."""
    failed: int
    unsent: int
    """Requests that still waited for a free connection, or for their answer, at the end."""
    foreign: float = field(default=0.0)


PEERS = (
    Peer(
        "clover",
        lambda work, port: [
            *(sys.executable, "-m", "clover.serve", f"bench.wire.workloads:{work.family.name.upper()}"),
            *("--port", str(port)),
        ],
        ("w1", "w2", "w3"),
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
    Measure("W1 with cookies, 64 connections, req/s", "w1", 64, 0.0, "per_s", "rawreal", 0.75, "cookies"),
    Measure("W1 with a bearer token, 64 connections, req/s", "w1", 64, 0.0, "per_s", "rawreal", 0.75, "a bearer token"),
    Measure("W2, 64 connections, req/s", "w2", 64, 0.0, "per_s", "rawreal", 0.95),
    Measure("W2, 1 connection, p50 us", "w2", 1, 0.0, "p50_us", "rawreal", 1.3),
    Measure("W2, open loop 1,000/s, p99 us", "w2", 64, 1000.0, "p99_us", "rawreal", 1.5),
    Measure("W3, 16 connections, req/CPU-s", "w3", 16, 0.0, "per_cpu_s", "rawbuf", 0.75),
    Measure("W3, 1 connection, p50 us", "w3", 1, 0.0, "p50_us", "rawbuf", 1.7),
    Measure("W1, 256 connections, req/s", "w1", 256, 0.0, "per_s", "", 0.9),
    Measure("W1, open loop at 1.5 x capacity, 200s/s", "w1", 2048, -1.5, "per_s", "", 0.7),
)


class Bench:
    """The generator, compiled, and its files."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.binary = folder / "generator"
        source = Path(__file__).with_name("generator.c")
        subprocess.run(["cc", "-O2", "-o", str(self.binary), str(source), "-lm"], check=True)

    def run(self, requests: Path, port: int, connections: int, rate: float, seconds: float, answers: str = "") -> str:
        """Send the `requests` of a file; return the generator's line."""
        words = [str(port), str(requests), str(self.folder / "times")]
        words += [str(connections), str(seconds), str(rate), *([answers] if answers else [])]
        command = ["taskset", "-c", CLIENT_CORE, str(self.binary), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def round(self, work: Workload, port: int, pid: int, measure: Measure, capacity: float) -> Round:
        """Run one round of one server, and repeat it if others disturbed it."""
        requests = work.write(self.folder, measure.more)
        rate = measure.rate if measure.rate >= 0.0 else -measure.rate * capacity
        for _ in range(_TRIES):
            pids = tree(pid)
            before, whole = cpu_seconds(pids), busy_seconds()
            client = os.times()
            words = self.run(requests, port, measure.connections, rate, self.seconds).split()
            after = os.times()
            used = cpu_seconds(pids) - before
            own = after.children_user + after.children_system - client.children_user - client.children_system
            foreign = (busy_seconds() - whole - used - own) / self.seconds
            if foreign < FOREIGN:
                break
        _, good, refused, other, lost = map(int, words[:5])
        times = np.fromfile(self.folder / "times", np.float32).reshape(-1, 2)
        if not good:
            raise RuntimeError(f"no request was answered: {' '.join(words)}")
        (p50, _), (p99, sent_p99) = np.quantile(times, (0.5, 0.99), axis=0)
        took = float(words[5])
        return Round(
            good / took,
            good / used,
            1e6 * used / good,
            float(p50),
            float(p99),
            float(sent_p99),
            refused + other,
            lost,
            foreign,
        )

    def wrong(self, work: Workload, port: int, expected: Callable[[Floats], Floats]) -> int:
        """Return wrong answers of a pass over all kinds of request."""
        path = self.folder / "answers"
        self.run(work.write(self.folder), port, 16, 0.0, 1.0, str(path))
        return work.wrong(path.read_bytes(), expected)


@contextlib.contextmanager
def started(peer: Peer, work: Workload, folder: Path) -> Iterator[tuple[int, int]]:
    """Start the peer and yield its pid and port.  One that ends at once is tried again: some open ports of their own,
    which may be taken."""
    try:
        process, port = _start(peer, work, folder)
    except EndedError as error:
        print(f"{error}\n{peer.name} is tried once more")
        process, port = _start(peer, work, folder)
    try:
        yield process.pid, port
    finally:
        _stop(process)


def _start(peer: Peer, work: Workload, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Return a peer that answers, and its port; RuntimeError (EndedError if it has ended) with the end of its log
    where it does not come to that."""
    port = free_port()
    with open(folder / f"{peer.name}.log", "ab") as log:
        process = subprocess.Popen(
            ["taskset", "-c", SERVER_CORE, *peer.command(work, port)],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder)},
            start_new_session=True,
        )
    first = work.requests()[0]
    try:
        end = time.monotonic() + _START_S
        while not answers(port, first):
            ended = process.poll() is not None
            if ended or time.monotonic() > end:
                said = (folder / f"{peer.name}.log").read_text()[-3000:]
                raise (EndedError if ended else RuntimeError)(f"{peer.name} does not serve:\n{said}")
            time.sleep(0.2)
    except BaseException:
        _stop(process)
        raise
    return process, port


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a peer with all that is below it."""
    signal_all(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):  # and whatever it left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def signal_all(pid: int, number: signal.Signals) -> None:
    """Send a signal to a whole tree."""
    for each in tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


@contextlib.contextmanager
def awake(pid: int, restless: bool) -> Iterator[None]:
    """Let a server run that is stopped between its rounds, because it works without requests as well."""
    if restless:
        signal_all(pid, signal.SIGCONT)
        time.sleep(_WAKING_S)
    yield
    if restless:
        signal_all(pid, signal.SIGSTOP)


def answers(port: int, request: bytes) -> bool:
    """Return whether a server answers a request with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(request)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def expected_of(work: Workload) -> Callable[[Floats], Floats]:
    """Return what the workload's model makes of rows."""
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
    parser.add_argument("--line", default="", help="only lines of the table with this in their name")
    known = sorted(peers.PACKAGES)
    parser.add_argument("--peers", nargs="*", choices=known, default=[], help="install and serve these")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    lines: dict[Measure, dict[str, list[Round]]] = {}
    servers = [*PEERS, *added(given.peers)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(folder, given.seconds)
        for key in given.workload:
            work = WORKLOADS[key]
            expected = expected_of(work)
            with contextlib.ExitStack() as stack:
                up = {
                    peer.name: stack.enter_context(started(peer, work, folder))
                    for peer in servers
                    if key in peer.workloads
                }
                for peer, (pid, port) in up.items():
                    with awake(pid, peer in peers.RESTLESS):
                        if peer != "raw" and (wrong := bench.wrong(work, port, expected)):
                            raise RuntimeError(f"{wrong} answers of {peer} are wrong in {key}")
                chosen = [item for item in MEASURES if item.workload == key and given.line in item.name]
                for measure in chosen:
                    # Beside their own capacity stand those that do the same as Clover in one process.
                    rounds = lines.setdefault(
                        measure, {peer: [] for peer in up if measure.beside or peer in ("clover", "rawreal")}
                    )
                    first = first_of(lines, measure)
                    for at in range(given.rounds):
                        for peer in rounds:
                            pid, port = up[peer]
                            capacity = first[peer][at].per_s if first is not rounds else 0.0
                            with awake(pid, peer in peers.RESTLESS):
                                rounds[peer].append(bench.round(work, port, pid, measure, capacity))
    report(lines)
    write_json(given.json, {"lines": {m.name: _plain(by_server) for m, by_server in lines.items()}})
    return 0


def added(names: Sequence[str]) -> list[Peer]:
    """Return the peers that could be installed; those that could not are told."""
    found = []
    for name in names:
        why = peers.install(name)
        if why:
            print(f"{name} is not there: {why}")
            continue
        found.append(
            Peer(
                name,
                lambda work, port, name=name: [  # type: ignore[misc]
                    *(str(peers.python_of(name)), "-m", f"bench.wire.peers.with_{name}", work.name, str(port))
                ],
                peers.TAKES[name],
            )
        )
    return found


def first_of(lines: dict[Measure, dict[str, list[Round]]], measure: Measure) -> dict[str, list[Round]]:
    """Return the rounds of the workload's first line, by server."""
    return next(by_server for own, by_server in lines.items() if own.workload == measure.workload)


def _plain(by_server: dict[str, list[Round]]) -> dict[str, list[dict[str, float]]]:
    return {peer: [vars(one) for one in rounds] for peer, rounds in by_server.items()}


def report(lines: dict[Measure, dict[str, list[Round]]]) -> None:
    """Print the table: medians over rounds with their range, ratios taken within rounds."""
    where = provenance()
    rows: list[list[object]] = []
    for measure, by_server in lines.items():
        reference = by_server.get(measure.beside)
        for peer, rounds in by_server.items():
            values = [getattr(one, measure.figure) for one in rounds]
            ratio, verdict = "", ""
            base = reference if measure.beside else first_of(lines, measure)[peer]
            if base is not None and rounds is not base:
                part = statistics.median(v / getattr(b, measure.figure) for v, b in zip(values, base, strict=True))
                ratio = f"{part:.2f}"
                if peer == "clover":
                    holds = part >= measure.must if measure.higher else part <= measure.must
                    verdict = f"{'>=' if measure.higher else '<='} {measure.must:g}: {'yes' if holds else 'no'}"
            cpu, p99 = (statistics.median(getattr(one, name) for one in rounds) for name in ("cpu_us", "p99_us"))
            sent = statistics.median(one.sent_p99_us for one in rounds)
            failed, unsent = sum(one.failed for one in rounds), sum(one.unsent for one in rounds)
            foreign = max(one.foreign for one in rounds)
            span = f"{min(values):.0f}..{max(values):.0f}"
            rows.append(
                [
                    measure.name,
                    peer,
                    f"{statistics.median(values):.0f}",
                    span,
                    ratio,
                    verdict,
                    f"{cpu:.0f}",
                    f"{p99:.0f}",
                    f"{sent:.0f}",
                    failed,
                    unsent,
                    f"{foreign:.2f}",
                ]
            )
    columns = ["", "server", "median", "range", "ratio", "must", "CPU us/req", "p99 us", "after sending", "failed"]
    columns += ["unsent", "foreign"]
    show(f"one core each, {where['processor']}, {where['date']}: measured", columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
