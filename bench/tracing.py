"""What a span costs a request: CPU of the event loop and of the exporting thread, with tracing off and on.

    python -m bench.tracing [--rounds 7] [--requests 4000] [--instructions] [--json FILE]

One process: the server's own connection, HTTP parser, decoder and router, a worker that answers at once within the
process, and a transport that throws answers away.  So the loop's figures are all that the server itself spends on a
request of one row, without the kernel's part of a socket.  Each way is asked in turn, with requests on one connection:

    off                no tracer
    unsampled          a tracer, no traceparent, ratio 0
    sampled            a tracer, no traceparent, ratio 1
    parent, unsampled  each request brings a traceparent of its own, which is not sampled
    parent, sampled    the same, sampled

`loop` is CPU of the loop's thread by request (median of rounds).  `thread` is what the thread `clover-otel` uses for
each span, beside it: making it, encoding it, and sending it to a collector on the loopback that takes all.  `new head`
is off with a head of its own for each request (an x-request-id), which is filled in from the one before, as one with a
traceparent is.
`--instructions` counts the loop's instead, by valgrind (the thread does not run then).  Everything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from bench import echo
from bench.common import ROOT, show, write_json
from bench.hop import House, InProcess
from bench.instructions import collected_by
from clover.config import LimitsConfig, ListenConfig, OtelConfig, ServerConfig
from clover.http.access import Access
from clover.http.api.routes import Routes
from clover.http.connection import Connection
from clover.http.server_state import HttpStats, RequestTracer, ServerState
from clover.runtime.memory.slab import Layout, Slab
from clover.telemetry import otel
from clover.telemetry.otel.tracer import Tracer
from clover.types import FamilySpec

_AT_ONCE = 1000
_SHORT, _LONG = 300, 1300
"""Requests of the two runs whose instructions are counted."""
WAYS = ("off", "new head", "unsampled", "sampled", "parent, unsampled", "parent, sampled")
_BODY = json.dumps(
    {"inputs": [{"name": "row", "shape": [1, 2], "datatype": "INT64", "data": [1, 0]}]}, separators=(",", ":")
).encode()


class NoSocket:
    """A transport whose answers go nowhere."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the address of the peer."""
        return ("127.0.0.1", 50000) if name == "peername" else default

    def write(self, data: bytes) -> None:
        """Check that it is an answer, and forget it."""
        if not data.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(data[:200].decode("latin-1"))

    def get_write_buffer_size(self) -> int:
        """Return 0: nothing waits."""
        return 0

    def is_closing(self) -> bool:
        """Return False."""
        return False


class View:
    """What routes need of a server to find its model."""

    def __init__(self, house: House) -> None:
        self._models = {house.spec.name: house.router}

    def models(self) -> dict[str, Any]:
        """Return the one model."""
        return self._models


class Turns:
    """The event loop as far as the data plane needs it, turned by hand."""

    def __init__(self) -> None:
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Keep a call for the next turn."""
        self._soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., None]) -> Turns:
        """Drop the call: no timer fires here."""
        return self

    def cancel(self) -> None:
        """Do nothing."""

    def turn(self) -> None:
        """Make all calls that are due, and those that they ask for."""
        while self._soon:
            soon, self._soon = self._soon, []
            for callback, arguments in soon:
                callback(*arguments)


class Plane:
    """The data plane behind one connection."""

    def __init__(self, spec: FamilySpec) -> None:
        self.turns = Turns()
        self._slab = Slab.create(Layout(spec, 256))
        self._house = House(spec, self._slab, cast("Any", self.turns))
        self._house.add(cast("Any", InProcess(1, self._slab)), 0)
        self._house.route("direct")

    def connect(self, tracer: RequestTracer | None) -> Connection:
        """Return a new connection."""
        loop, config = cast("Any", self.turns), ServerConfig()
        routes = Routes(cast("Any", View(self._house)), config, loop, Access(ListenConfig(), control=False))
        state = ServerState(routes.judge, LimitsConfig(), loop, HttpStats(), tracer=tracer)
        connection = Connection(state, routes, set())
        connection.connection_made(cast("Any", NoSocket()))
        return connection

    def ask(self, connection: Connection, way: str, requests: int) -> None:
        """Send requests one after another, each with its answer."""
        name, router, turns = self._house.spec.name, self._house.router, self.turns
        head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(_BODY)}\r\n".encode()
        same = head + b"\r\n" + _BODY
        flag = 1 if way == "parent, sampled" else 0
        for number in range(1, requests + 1):
            if way.startswith("parent"):
                data = b"%btraceparent: 00-%032x-%016x-%02x\r\n\r\n%b" % (head, number, number, flag, _BODY)
            elif way == "new head":
                data = b"%bx-request-id: 00-%032x-%016x-%02x\r\n\r\n%b" % (head, number, number, flag, _BODY)
            else:
                data = same
            connection.feed(data)
            turns.turn()
            router.reap()
            turns.turn()


def ratio_of(way: str) -> float:
    """Return the ratio of requests without a parent that are sampled."""
    return 1.0 if way == "sampled" else 0.0


def timed(plane: Plane, collector: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return CPU of the loop's thread by request, and of the exporting thread by span (0 for none): us."""
    loop_us: dict[str, list[float]] = {way: [] for way in WAYS}
    thread_us: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            built = None
            if way not in ("off", "new head"):
                config = OtelConfig(endpoint=collector, sample=ratio_of(way))
                built = otel.build(config, cast("Any", plane.turns), tuple)
            connection = plane.connect(built.tracer if built is not None else None)
            plane.ask(connection, way, 200)
            if built is not None:
                built.start()
            # Few at a time, as the queue holds only so many; the thread sends between them.
            own_ns, spent_ns, asked = 0, 0, 0
            if built is not None:
                wait_until_sent(built, 200 if traced(way) else 0)
                spent_ns = -exporting_ns()
            while asked < options.requests:
                begun_ns = time.thread_time_ns()
                plane.ask(connection, way, _AT_ONCE)
                own_ns += time.thread_time_ns() - begun_ns
                asked += _AT_ONCE
                if built is not None:
                    wait_until_sent(built, 200 + asked if traced(way) else 0)
            if built is not None:
                spent_ns += exporting_ns()
                counts = built.counts()
                if counts["failed"] or counts["dropped"]:
                    raise RuntimeError(f"spans were lost: {counts}")
                asyncio.run(built.close())
            loop_us[way].append(own_ns / asked / 1e3)
            thread_us[way].append(spent_ns / asked / 1e3)
    return {way: [statistics.median(loop_us[way]), statistics.median(thread_us[way])] for way in WAYS}


def traced(way: str) -> bool:
    """Return whether each request of that way gives a span."""
    return way in ("sampled", "parent, sampled")


def wait_until_sent(built: otel.OpenTelemetry, spans: int) -> None:
    """Wait until so many spans are sent, or lost."""
    while sum(built.counts().values()) < spans:
        time.sleep(0.01)


def exporting_ns() -> int:
    """Return the CPU time of the exporting thread so far."""
    (thread,) = [one.ident for one in threading.enumerate() if one.name == "clover-otel"]
    assert thread is not None
    return time.clock_gettime_ns(time.pthread_getcpuclockid(thread))


def counted() -> dict[str, list[float]]:
    """Return instructions of a request by way: one interpreter under valgrind forks a short and a long run of each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={folder}/%p"),
            *(sys.executable, "-m", "bench.tracing", "--forked"),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        pids: dict[str, list[int]] = json.loads(ran.stdout)
        collected = {way: [collected_by(Path(folder, str(pid))) for pid in pair] for way, pair in pids.items()}
    return {way: [(long - short) / (_LONG - _SHORT)] for way, (short, long) in collected.items()}


def forked(plane: Plane) -> dict[str, list[int]]:
    """Return, for each way, the pids of its short and its long run.  Notes of spans are thrown away."""
    pids: dict[str, list[int]] = {}
    for way in WAYS:
        for requests in (_SHORT, _LONG):
            pid = os.fork()
            if not pid:
                tracer = None if way in ("off", "new head") else Tracer(lambda note: None, ratio_of(way))
                plane.ask(plane.connect(tracer), way, requests)
                os._exit(0)
            if os.waitpid(pid, 0)[1]:
                raise RuntimeError(f"a run of {way} failed")
            pids.setdefault(way, []).append(pid)
    return pids


class _Sink(BaseHTTPRequestHandler):
    """Takes whatever is sent."""

    def do_POST(self) -> None:
        """Answer 200."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--forked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plane = Plane(echo.family(folder))
        if options.forked:
            print(json.dumps(forked(plane)))
            return
        if options.instructions:
            found, columns = counted(), ["way", "instructions by request"]
        else:
            server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            found = timed(plane, f"http://127.0.0.1:{server.server_port}", options)
            columns = ["way", "loop, us by request", "thread, us by span"]
            server.shutdown()
    show("what a span costs a request (measured)", columns, [[way, *values] for way, values in found.items()])
    write_json(options.json, {"columns": columns, "found": found})


if __name__ == "__main__":
    main()
