"""More requests than a server can serve, for minutes: how many are answered in time, and what becomes of the others.

    python -m bench.overload [--minutes 2] [--times 3] [--slo-ms 150] [--rows 1] [--json FILE]
    python -m bench.overload --family fashion --variant xlarge --slo-ms 20 --rows 32
    python -m bench.overload --front w1 w3 [--times 1.1 1.5 3] [--deadline-s 1 30] [--neighbour]

A server of one pinned variant: by default of a family whose workers only wait, `SERVICE_MS` for a batch of up to four
rows, so that hardly anything else on this machine moves its capacity, which a closed loop of 64 clients measures first.
Then new requests come as a Poisson process at so many times the capacity, on `CONNECTIONS` connections, whatever
becomes of the earlier ones.  Each has an `x-request-id`; one that is answered 429 comes back once, with the same id,
when its `Retry-After` says, also after no new ones come.  Four things are measured, by the client:

`p95`       of answers with 200, from when the request was due, over the SLO
`goodput`   rows answered with 200 a second while new requests come, over the capacity, from the second second on
`holds`     of the requests that came back, the part that was answered with 200; `told s` is the longest Retry-After
`recovery`  seconds from the last new request until, with `PROBE` of the capacity in new requests and the retries still
            coming, the p95 of a second is within the SLO for good

`--front`: models so cheap that the front end is what is overloaded (`bench.wire`: w1 small bodies, w3 588 KiB).  Server
and workers share core 0; the generator of `bench.wire` has core 1, asks on `CONNECTIONS` connections and heeds no
`Retry-After`; `--neighbour` has a busy process on core 0 as well.  Of each ten seconds: the 200s for a CPU second of
the whole server, over those of a server beside it that refuses none for its SLO (`--max-wait-slo 0`), which is asked in
turn, and over those in a closed loop of 64 clients just before; the part of all answers that were refusals; and how
long the health of the server took meanwhile, at the most.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.common import ServerProcess, cpu_seconds, fashion_rows, served, show, tree, write_json
from bench.load import Alarm, Body, closed_loop, quantile
from bench.wire.__main__ import PEERS, SERVER_CORE, Bench, Peer, started
from bench.wire.workloads import WORKLOADS, Workload
from clover.types import FamilySpec, PublishedAccuracy, TensorSpec, VariantSpec

CONNECTIONS = 256
SERVICE_MS = 40.0
PROBE = 0.1
WINDOW_S = 10.0
PROBE_S = 5.0
"""New requests come so long after the overload, to see whether they are answered within the SLO."""
_ROW = TensorSpec(name="x", datatype="FP32", shape=(4,))

Rows = list[NDArray[Any]]


def waiting(variant: VariantSpec, folder: Path) -> Callable[[Rows], Rows]:
    """Return a model that takes its time and returns the rows as they came."""

    def run(inputs: Rows) -> Rows:
        time.sleep(SERVICE_MS / 1e3)
        return inputs

    return run


FAMILY = FamilySpec(
    name="waiting",
    inputs=(_ROW,),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(4,)),),
    variants=(
        VariantSpec(
            name="only",
            loader="bench.overload:waiting",
            kind="python",
            accuracy=PublishedAccuracy(value=90.0, metric="top1", source="none: a bench"),
        ),
    ),
    max_batch=4,
)


def body_of(family: str, rows: int) -> Body:
    """Return one request of so many rows, in binary form."""
    if family == "fashion":
        name, data = "image", np.ascontiguousarray(np.resize(fashion_rows()[0], (rows, 1, 28, 28)), dtype="<f4")
    else:
        name, data = "x", np.ones((rows, 4), "<f4")
    tensor = {"name": name, "datatype": "FP32", "shape": list(data.shape)}
    head = json.dumps(
        {"id": "row-0", "inputs": [{**tensor, "parameters": {"binary_data_size": data.nbytes}}]}, separators=(",", ":")
    ).encode()
    return Body(head + data.tobytes(), "row-0", 0, headers=b"Inference-Header-Content-Length: %d\r\n" % len(head))


@dataclass(slots=True)
class Request:
    """One request: when it was due, first and now; when its retry is, and what was answered last."""

    number: int
    first_ns: int
    due_ns: int
    retry: bool = False
    status: int = 0
    done_ns: int = 0
    retry_after_s: int = 0


class Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, owner: Crowd) -> None:
        self.owner = owner
        self.request: Request | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: Request) -> None:
        """Send one request."""
        self.request, self.retry_after_s = request, 0
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(self.owner.text(request))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self.retry_after_s = int(value)

    def on_message_complete(self) -> None:
        request = self.request
        assert request is not None
        self.request = None
        request.done_ns = time.monotonic_ns()
        request.status, request.retry_after_s = self.parser.get_status_code(), self.retry_after_s
        self.owner.finished(self, request)


class Crowd:
    """Clients that come at a rate, and come back once when they are asked to."""

    def __init__(self, server: ServerProcess, family: str, body: Body) -> None:
        self.host, _, port = server.url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.path = f"POST /v2/models/{family}/infer HTTP/1.1\r\nHost: {self.host}\r\n".encode() + body.headers
        self.rest = b"Content-Length: %d\r\n\r\n" % len(body.payload) + body.payload
        self.answers: list[Request] = []  # first answers and answers to retries, apart
        self.idle: list[Client] = []
        self.waiting: list[Request] = []
        self.retries: list[tuple[int, int, int]] = []  # due, number, first due
        self.open = 0

    def text(self, request: Request) -> bytes:
        """Return the request as it goes over the wire."""
        return self.path + b"x-request-id: request-%d\r\n" % request.number + self.rest

    def finished(self, client: Client, request: Request) -> None:
        """Note an answer, and when its request comes back."""
        self.open -= 1
        self.answers.append(request)
        if request.status == 429 and not request.retry:
            due_ns = request.done_ns + request.retry_after_s * 1_000_000_000
            heapq.heappush(self.retries, (due_ns, request.number, request.first_ns))
        if self.waiting:
            client.send(self.waiting.pop(0))
        else:
            self.idle.insert(0, client)  # in turn, as many clients would

    def ask(self, request: Request) -> None:
        """Send a request, once a connection is free."""
        self.open += 1
        if self.idle:
            self.idle.pop().send(request)
        else:
            self.waiting.append(request)

    async def play(self, rate: float, seconds: float, probe: float) -> int:
        """Let new requests come at `rate` for `seconds` and then at `probe` for `PROBE_S`, with their retries; return
        when the first of the latter came (ns)."""
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            self.idle.append((await loop.create_connection(lambda: Client(self), self.host, self.port))[1])
        rng, alarm, number = random.Random(1), Alarm(), 0
        begin_ns = time.monotonic_ns()
        turn_ns = begin_ns + round(seconds * 1e9)
        end_ns = turn_ns + round(PROBE_S * 1e9)
        new_ns = begin_ns + round(rng.expovariate(rate) * 1e9)
        while new_ns < end_ns or self.retries or self.open:
            due_ns = min(new_ns if new_ns < end_ns else 1 << 62, self.retries[0][0] if self.retries else 1 << 62)
            await alarm.at(min(due_ns, time.monotonic_ns() + 20_000_000))  # an answer may bring an earlier retry
            now_ns = time.monotonic_ns()
            while new_ns <= min(now_ns, end_ns):
                number += 1
                self.ask(Request(number, new_ns, new_ns))
                new_ns += round(rng.expovariate(rate if new_ns < turn_ns else probe) * 1e9)
            while self.retries and self.retries[0][0] <= now_ns:
                due_ns, again, first_ns = heapq.heappop(self.retries)
                self.ask(Request(again, first_ns, due_ns, retry=True))
            await asyncio.sleep(0)
        alarm.close()
        return turn_ns


def figures(crowd: Crowd, rows: int, turn_ns: int, seconds: float, capacity: float, slo_ms: float) -> dict[str, Any]:
    """Return what became of one run; the capacity is in rows a second."""
    begin_ns = turn_ns - round(seconds * 1e9)
    good = [answer for answer in crowd.answers if answer.status == 200]
    during = [answer for answer in good if begin_ns + 1_000_000_000 <= answer.done_ns < turn_ns]
    p95_ms = quantile([(answer.done_ns - answer.due_ns) / 1e6 for answer in good if answer.due_ns < turn_ns], 0.95)
    retries = [answer for answer in crowd.answers if answer.retry]
    kept = sum(answer.status == 200 for answer in retries)
    back_s = 0.0
    for second in range(int(PROBE_S)):
        since_ns = turn_ns + second * 1_000_000_000
        here = [(a.done_ns - a.due_ns) / 1e6 for a in good if since_ns <= a.due_ns < since_ns + 1_000_000_000]
        if here and quantile(here, 0.95) > slo_ms:
            back_s = second + 1.0
    return {
        "p95_of_slo": p95_ms / slo_ms,
        "goodput": len(during) * rows / (seconds - 1.0) / capacity,
        "holds": kept / len(retries) if retries else float("nan"),
        "recovery_s": back_s,
        "retries": len(retries),
        "told_s": max((answer.retry_after_s for answer in crowd.answers), default=0),
        "p50_ms": quantile([(answer.done_ns - answer.due_ns) / 1e6 for answer in good], 0.5),
        "refused_ms": quantile([(a.done_ns - a.due_ns) / 1e6 for a in crowd.answers if a.status == 429], 0.5),
        "statuses": dict(Counter(answer.status for answer in crowd.answers)),
    }


def capacity_of(server: ServerProcess, family: str, body: Body, rows: int, slo_ms: float) -> float:
    """Return the rows a second that closed loops get answered, once the workers have started: the most of 8 to 64
    clients whose p95 is within twice the SLO, or of 8 if none is."""
    best = 0.0
    for clients in (64, 8, 16, 32, 64):
        result = uvloop.run(closed_loop(server.url, family, [body], connections=clients, seconds=4.0))
        here = rows * sum(sample.status == 200 for sample in result.samples) / result.seconds
        print(f"{clients} clients: {here:.1f} rows/s, p95 {result.latency_ms(0.95):.1f} ms", flush=True)
        if result.latency_ms(0.95) <= 2.0 * slo_ms or not best:
            best = max(best, here)
    return best


def overload_front(options: argparse.Namespace) -> None:
    """Run the bench of an overloaded front end, and print its table."""
    table: list[list[object]] = []
    for name in options.front:
        for deadline_s in options.deadline_s:
            with tempfile.TemporaryDirectory() as folder:
                table += _front_lines(WORKLOADS[name], deadline_s, Path(folder), options)
    show(
        f"a front end overloaded for {options.minutes:g} minutes (measured)",
        (
            *("bodies", "deadline s", "load", "200s/CPU-s: median", "least", "of 64 clients': median", "least"),
            *("refused: median", "most", "other", "p95 ms", "health ms at most", "recovery s"),
        ),
        table,
    )
    write_json(options.json, {"lines": table})


def _front_lines(work: Workload, deadline_s: float, folder: Path, options: argparse.Namespace) -> list[list[object]]:
    """Return the table's lines of one pair of servers, which are asked in turn."""
    bench = Bench(folder, WINDOW_S)
    lines: list[list[object]] = []
    requests = work.write(folder)
    settings = ("--timeout-ms", str(1e3 * deadline_s), *(part for text in options.settings for part in text.split("=")))
    with contextlib.ExitStack() as stack:
        pair = []
        for name, more in (("clover", ()), ("unrefusing", ("--max-wait-slo", "0"))):
            peer = Peer(name, partial(_command, (*settings, *more)), (work.name,))
            pair.append(stack.enter_context(started(peer, work, folder)))
        if options.neighbour:
            busy = subprocess.Popen(["taskset", "-c", SERVER_CORE, sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        (pid, port), other = pair
        front_window(bench, requests, port, pid, 64, 0.0, 3.0)
        capacity = front_window(bench, requests, port, pid, 64, 0.0, WINDOW_S)
        for times in options.times:
            rate, windows, rates, of_closed = times * capacity["per_s"], [], [], []
            for _ in range(max(1, round(60.0 * options.minutes / WINDOW_S))):
                closed = front_window(bench, requests, port, pid, 64, 0.0, WINDOW_S / 2)
                windows.append(front_window(bench, requests, port, pid, CONNECTIONS, rate, WINDOW_S))
                of_closed.append(windows[-1]["per_cpu_s"] / closed["per_cpu_s"])
                beside = front_window(bench, requests, other[1], other[0], CONNECTIONS, rate, WINDOW_S)
                rates.append(windows[-1]["per_cpu_s"] / beside["per_cpu_s"])
            refused = [window["refused"] for window in windows]
            after = [front_window(bench, requests, port, pid, 8, PROBE * capacity["per_s"], 1.0) for _ in range(3)]
            calm_ms = after[-1]["p95_ms"]
            back_s = sum(1.0 for window in after[:2] if window["refused"] or window["p95_ms"] > 2.0 * calm_ms + 1.0)
            lines.append(
                [
                    *(work.name, deadline_s, f"{times:g} x", statistics.median(rates), min(rates)),
                    *(statistics.median(of_closed), min(of_closed), statistics.median(refused), max(refused)),
                    *(sum(window["other"] for window in windows), max(window["p95_ms"] for window in windows)),
                    *(max(window["health_ms"] for window in windows), back_s),
                ]
            )
            print(lines[-1], f"capacity {capacity['per_s']:.0f}/s, {capacity['per_cpu_s']:.0f}/CPU-s", flush=True)
    return lines


def _command(settings: Sequence[str], work: Workload, port: int) -> list[str]:
    return [*PEERS[0].command(work, port), *settings]


def front_window(
    bench: Bench, requests: Path, port: int, pid: int, connections: int, rate: float, seconds: float
) -> dict[str, float]:
    """Run the generator once, asking for the server's health beside it; return what became of the requests."""
    worst_ms, ended = 0.0, threading.Event()

    def ask() -> None:
        nonlocal worst_ms
        while not ended.wait(0.25):
            begin = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30) as answer:
                answer.read()
            worst_ms = max(worst_ms, 1e3 * (time.monotonic() - begin))

    asking = threading.Thread(target=ask)
    pids = tree(pid)
    before = cpu_seconds(pids)
    asking.start()
    try:
        words = bench.run(requests, port, connections, rate, seconds).split()
    finally:
        ended.set()
        asking.join()
    used = cpu_seconds(pids) - before
    answered, good, refused, other, _ = map(int, words[:5])
    sent_us = np.fromfile(bench.folder / "times", np.float32).reshape(-1, 2)[:, 1]
    return {
        "per_s": good / float(words[5]),
        "per_cpu_s": good / used,
        "refused": refused / max(answered, 1),
        "other": other,
        "p95_ms": float(np.quantile(sent_us, 0.95)) / 1e3 if good else math.inf,
        "health_ms": worst_ms,
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="length of each run, before the last retries")
    parser.add_argument("--times", type=float, nargs="+", default=[3.0], help="loads, in capacities")
    parser.add_argument("--family", default="", help="a family instead of the one that waits: fashion")
    parser.add_argument("--variant", default="xlarge", help="its variant")
    parser.add_argument("--slo-ms", type=float, default=150.0)
    parser.add_argument("--rows", type=int, default=1, help="rows of a request")
    parser.add_argument("--settings", nargs="*", default=[], help="more of the server's, as max-wait-slo=0")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    parser.add_argument("--front", nargs="+", choices=("w1", "w3"), help="overload the front end with these bodies")
    parser.add_argument("--deadline-s", type=float, nargs="+", default=[30.0], help="with --front: time limits")
    parser.add_argument("--neighbour", action="store_true", help="with --front: a busy process on the server's core")
    options = parser.parse_args()
    if options.front:
        overload_front(options)
        return
    family = options.family or FAMILY.name
    what = [options.family or "bench.overload:FAMILY"]
    policy = f"static:{options.variant if options.family else 'only'}"
    settings = [part for item in options.settings for part in (f"--{item.partition('=')[0]}", item.partition("=")[2])]
    body = body_of(options.family, options.rows)
    table: list[list[object]] = []
    runs: list[dict[str, Any]] = []
    for times in options.times:
        arguments = [*what, "--policy", policy, "--slo-ms", str(options.slo_ms), "--limit-idle-s", "900", *settings]
        with tempfile.TemporaryDirectory() as folder, served(arguments, log=Path(folder) / "log") as server:
            capacity = capacity_of(server, family, body, options.rows, options.slo_ms)
            crowd = Crowd(server, family, body)
            rate, seconds = capacity / options.rows, 60.0 * options.minutes
            turn_ns = uvloop.run(crowd.play(times * rate, seconds, PROBE * rate))
            found = figures(crowd, options.rows, turn_ns, seconds, capacity, options.slo_ms)
        runs.append({"times": times, "slo_ms": options.slo_ms, "rows": options.rows, "capacity": capacity, **found})
        table.append([f"{times:g} x", capacity, *found.values()])
        print(json.dumps(runs[-1]), flush=True)
    columns = ("load", "rows/s", "p95/SLO", "goodput", "holds", "recovery s", "retries", "told s", "p50 ms", "429 ms")
    show(f"overload for {options.minutes:g} minutes (measured)", (*columns, "statuses"), table)
    write_json(options.json, {"runs": runs})


if __name__ == "__main__":
    main()
