"""Clover's ingress with two nodes beside Ray Serve with two replicas behind its HAProxy: the same model, one machine.

    python -m bench.cluster_peers [--variant small] [--rounds 3] [--seconds 4] [--kill-seconds 12] [--json FILE]

Both stand all the time, each with a HAProxy of the same number of threads, and are measured in turn; a ratio is taken
within a round, and the table has medians.  Clover is two servers of one pinned variant, each on cores of its own,
behind `HAProxyIngress`, without Ray.  Ray Serve has RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1,
and batches on the replica; it is installed into `.venv-peers`, as by `make bench-peers`.  Requests are one image as
JSON; every answer is checked for its id.

`closed`  requests a second and latency with so many connections that each have one request in flight
`open`    latency of a Poisson process, from when a request was due, at a third of the lower of both rates
`kill`    the same open loop with a SIGKILL after a third of the time: of a Ray replica, of one of Clover's worker
          processes (what a replica is there), and of a node's whole server, which this bench starts again at once as
          systemd would.  `failed` counts answers that are not 200, and none at all.  `back s`: until a process that was
          not there before answers (Ray), until the server's workers are complete again (worker), until the ingress
          finds the node healthy again (node).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from bench.common import ROOT, fashion_rows, free_port, json_bodies, provenance, show, tree, write_json
from bench.load import Body, Result, Sample, closed_loop, open_loop
from bench.wire import peers
from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress

ORIGIN = "here"
_START_S = 180.0


@dataclass(slots=True)
class Node:
    """A Clover server and how it is started."""

    name: str
    port: int
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, or start it again."""
        self.process = launch(self.command, self.log)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """Return the processes of the server's workers that are ready."""
        with urllib.request.urlopen(f"{self.url}/v2/clover/state", timeout=10) as answer:
            state = orjson.loads(answer.read())
        found = state["totals"]["models"]["fashion"]["workers"]
        return [worker["pid"] for worker in found if worker.get("ready", True)]


@dataclass(slots=True)
class Kill:
    """What a kill cost."""

    what: str
    sent: int
    failed: str
    p99_ms: float
    longest_ms: float
    back_s: float


def cores() -> list[list[int]]:
    """Return the cores in two halves; the same for both if there is only one."""
    own = sorted(os.sched_getaffinity(0))
    half = max(1, len(own) // 2)
    return [own[:half], own[half:] or own[:half]]


@contextlib.asynccontextmanager
async def clover_cluster(folder: Path, variant: str, threads: int) -> AsyncIterator[tuple[str, list[Node], Any]]:
    """Give the address of an ingress before two nodes, these, and the ingress."""
    port = free_port()
    origin = IngressOrigin(name=ORIGIN, listen=f"127.0.0.1:{port}")
    ingress = HAProxyIngress(
        IngressSettings(folder=str(folder / "ingress"), origins=(origin,), threads=threads, nodes=2)
    )
    nodes = []
    for number, own in enumerate(cores()):
        at = free_port()
        command = ["taskset", "-c", ",".join(map(str, own)), sys.executable, "-m", "clover.serve", "fashion"]
        command += ["--variant", variant, "--port", str(at), "--ledger", "off", "--carbon", "static:300"]
        command += ["--cache-dir", str(folder / f"cache-{number}")]
        nodes.append(Node(f"node-{number}", at, command, folder / f"node-{number}.log"))
    try:
        await ingress.start()
        for node in nodes:
            node.start()
            await ingress.admit(node.name, node.url, "")
        await ingress.weigh(ORIGIN, {node.name: 1.0 for node in nodes})
        for node in nodes:
            await until(lambda node=node: ingress.healthy(node.name), _START_S)  # type: ignore[misc]
        yield f"http://127.0.0.1:{port}", nodes, ingress
    finally:
        for node in nodes:
            if node.process is not None:
                node.process.terminate()
        for node in nodes:
            if node.process is not None:
                await asyncio.to_thread(end, node.process)
        await ingress.stop(drain_s=0)


@contextlib.asynccontextmanager
async def ray_serve(folder: Path, variant: str, threads: int) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """Give the address of Ray Serve's HAProxy and the process that everything of Ray is below."""
    port = free_port()
    own = folder / "r"  # Ray adds a long name, and a socket has a short one
    settings = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(threads),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
    }
    command = [str(peers.python_of("ray")), "-m", "bench.cluster_peer_ray", variant, str(port), "2"]
    process = launch(command, folder / "ray.log", {**os.environ, **settings})
    below: set[int] = set()
    try:
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"Ray Serve ended:\n{(folder / 'ray.log').read_text()[-3000:]}")
            result = await closed_loop(url, "fashion", json_bodies(fashion_rows()[0], 1), connections=1, seconds=0.05)
            return result.failed() == 0 and bool(result.samples)

        await until(answers, _START_S)
        yield url, process
    finally:
        below |= {*tree(process.pid)}
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(end, process)
        for pid in below:  # what Ray left
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def launch(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own."""
    with open(log, "ab") as sink:
        return subprocess.Popen(command, stdout=sink, stderr=sink, cwd=ROOT, env=environment, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was asked to end; kill it if it does not."""
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float) -> float:
    """Return after how many seconds a condition holds; NaN if it does not in time."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        with contextlib.suppress(OSError, KeyError):
            if await condition():
                return time.monotonic() - begin
        await asyncio.sleep(0.05)
    return float("nan")


def replicas(root: int) -> list[int]:
    """Return the processes of Ray's replicas."""
    found = []
    for pid in tree(root):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                found.append(pid)
    return found


async def kill_run(
    what: str, url: str, bodies: Sequence[Body], rate: float, seconds: float, strike: Callable[[], Any]
) -> Kill:
    """Play an open loop, strike in it, and say what that cost.  `strike` kills and returns a coroutine that ends once
    all is as before, with the seconds that took."""
    seen: dict[str, int] = {}

    def check(_: Body, sample: Sample, answer: bytes) -> None:
        version = str(orjson.loads(answer).get("model_version", ""))
        seen.setdefault(version, sample.done_ns)

    load = asyncio.create_task(open_loop(url, "fashion", bodies, rate=rate, seconds=seconds, check=check))
    await asyncio.sleep(seconds / 3)
    before = {*seen}
    struck_ns = time.monotonic_ns()
    recovery = asyncio.create_task(strike())
    result: Result = await load
    back_s = await recovery
    if back_s is None:

        async def answered() -> bool:
            if {*seen} <= before:
                await closed_loop(url, "fashion", bodies, connections=8, seconds=0.2, check=check)
            return not {*seen} <= before

        await until(answered, 60.0)
        new = [at_ns for version, at_ns in seen.items() if version not in before]
        back_s = (min(new) - struck_ns) / 1e9 if new else float("nan")
    latencies = [sample.latency_ms for sample in result.samples]
    return Kill(what, result.sent, result.failures(), result.latency_ms(0.99), max(latencies), back_s)


async def kills(
    ours: tuple[str, list[Node], HAProxyIngress],
    theirs: tuple[str, Any],
    bodies: Sequence[Body],
    rate: float,
    seconds: float,
) -> list[Kill]:
    """Kill a replica, a worker and a node, one after the other, each under the same load."""
    url, nodes, ingress = ours
    node = nodes[0]

    async def replica() -> None:
        os.kill(replicas(theirs[1].pid)[0], signal.SIGKILL)

    async def worker() -> float:
        complete = await asyncio.to_thread(node.workers)
        os.kill(complete[0], signal.SIGKILL)

        async def back() -> bool:
            now = await asyncio.to_thread(node.workers)
            return len(now) >= len(complete) and complete[0] not in now

        return await until(back, 60.0)

    async def server() -> float:
        assert node.process is not None
        node.process.kill()
        begin = time.monotonic()
        await asyncio.to_thread(node.process.wait)
        node.start()

        async def gone() -> bool:
            return not await ingress.healthy(node.name)

        await until(gone, 10.0)
        await until(lambda: ingress.healthy(node.name), 60.0)
        return time.monotonic() - begin

    return [
        await kill_run("Ray Serve: a replica", theirs[0], bodies, rate, seconds, replica),
        await kill_run("Clover: a worker", url, bodies, rate, seconds, worker),
        await kill_run("Clover: a node's server", url, bodies, rate, seconds, server),
    ]


def per_s(run: Result) -> float:
    """Return the requests a second that were answered."""
    return len(run.samples) / run.seconds


def p50_ms(run: Result) -> float:
    """Return the median of latency."""
    return run.latency_ms(0.5)


def p99_ms(run: Result) -> float:
    """Return the 99th percentile of latency."""
    return run.latency_ms(0.99)


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything and return what is written to the JSON file."""
    bodies = json_bodies(fashion_rows()[0], 64)
    names = ("Clover", "Ray Serve")
    closed: dict[str, list[Result]] = {name: [] for name in names}
    opened: dict[str, list[Result]] = {name: [] for name in names}
    async with (
        clover_cluster(folder, options.variant, options.threads) as ours,
        ray_serve(folder, options.variant, options.threads) as theirs,
    ):
        urls = dict(zip(names, (ours[0], theirs[0]), strict=True))
        for url in urls.values():
            await closed_loop(url, "fashion", bodies, connections=options.connections, seconds=1.0)
        for _ in range(options.rounds):
            for name in names:
                closed[name].append(
                    await closed_loop(
                        urls[name], "fashion", bodies, connections=options.connections, seconds=options.seconds
                    )
                )
        rates = {name: [*map(per_s, closed[name])] for name in names}
        rate = options.rate or min(map(statistics.median, rates.values())) / 3
        for _ in range(options.rounds):
            for name in names:
                opened[name].append(await open_loop(urls[name], "fashion", bodies, rate=rate, seconds=options.seconds))
        struck = await kills(ours, theirs, bodies, rate, options.kill_seconds)
    rows: list[tuple[object, ...]] = []
    for title, runs, figure in (
        ("closed, requests/s", closed, per_s),
        ("closed, p50 ms", closed, p50_ms),
        ("closed, p99 ms", closed, p99_ms),
        (f"open at {rate:.0f}/s, p50 ms", opened, p50_ms),
        (f"open at {rate:.0f}/s, p99 ms", opened, p99_ms),
    ):
        pairs = [(figure(a), figure(b)) for a, b in zip(*(runs[name] for name in names), strict=True)]
        medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
        rows.append((title, *medians, statistics.median(a / b for a, b in pairs)))
    failed = {name: sum(run.failed() + run.mismatched() for run in closed[name] + opened[name]) for name in names}
    rows.append(("failed or mismatched", failed["Clover"], failed["Ray Serve"], ""))
    where = provenance()
    show(
        f"fashion/{options.variant}, one image as JSON, 2 nodes beside 2 replicas, {options.connections} connections, "
        f"{options.rounds} rounds of {options.seconds:g} s (measured; {where['cores']} cores, {where['date']})",
        ("", *names, "ratio"),
        rows,
    )
    show(
        f"SIGKILL under {rate:.0f} requests/s for {options.kill_seconds:g} s (measured)",
        ("killed", "sent", "failed", "p99 ms", "longest ms", "back s"),
        [(one.what, one.sent, one.failed, one.p99_ms, one.longest_ms, one.back_s) for one in struck],
    )
    return {"rows": rows, "kills": [{key: getattr(one, key) for key in Kill.__slots__} for one in struck]}


def main() -> None:
    """Parse the command line and run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small", help="variant of fashion (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each loop (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of a loop (default: %(default)s)")
    parser.add_argument("--kill-seconds", type=float, default=12.0, help="seconds of a loop with a kill in it")
    parser.add_argument("--connections", type=int, default=32, help="connections of the closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s of the open loop; 0: found out")
    parser.add_argument("--threads", type=int, default=2, help="threads of each HAProxy (default: %(default)s)")
    parser.add_argument("--json", default="", help="file to write the figures to")
    options = parser.parse_args()
    if why := peers.install("ray"):
        raise SystemExit(f"Ray Serve cannot be installed: {why}")
    with tempfile.TemporaryDirectory(prefix="clover-") as folder:
        write_json(options.json, uvloop.run(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
