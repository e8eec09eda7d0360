"""What the ingress costs: HAProxy's CPU time a request by the longest body that is sent again, and changes by nodes.

    python -m bench.cluster_ingress [--requests 2000] [--nodes 10 100 1000] [--json FILE]

One small server of this process stands for all nodes; it and the client are Python and slow, so CPU time is that of the
HAProxy process alone, from the scheduler's counters (two threads, 8 connections kept alive, bodies of 3,000 bytes).
The second table has seconds of wall time, with three origins: to admit all nodes one after the other, to change the
weights of one origin by one call, to adopt a HAProxy that runs, and from its SIGKILL until it serves again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.common import cpu_seconds, provenance, show, write_json
from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress
from tests.support.ingress_nodes import FakeNode, IngressClient, free_ports

_CONNECTIONS = 8
_BODY = bytes(3000)


@contextlib.asynccontextmanager
async def started(
    folder: str, node: FakeNode, count: int, **changes: Any
) -> AsyncIterator[tuple[HAProxyIngress, float]]:
    """Give an ingress that has `count` nodes, all of them `node`, and the seconds that admitting them took."""
    origins = tuple(
        IngressOrigin(name=name, listen=f"127.0.0.1:{port}")
        for name, port in zip(("a", "b", "c"), free_ports(3), strict=True)
    )
    ingress = HAProxyIngress(IngressSettings(folder=folder, origins=origins, nodes=count, threads=2, **changes))
    try:
        await ingress.start()
        begin = time.monotonic()
        for number in range(count):
            await ingress.admit(f"node-{number:04}", node.url, "")
        yield ingress, time.monotonic() - begin
    finally:
        await ingress.stop(drain_s=0)


async def pid_of(ingress: HAProxyIngress) -> int:
    """Return HAProxy's process."""
    return int((await ingress.information())["Pid"])


async def request_cost(body_bytes: int, requests: int) -> list[object]:
    """Return CPU time and memory of HAProxy with such a buffer."""
    node = await FakeNode("x").start()
    with tempfile.TemporaryDirectory(prefix="clover-") as folder:
        async with started(f"{folder}/i", node, 1, body_bytes=body_bytes) as (ingress, _):
            await ingress.weigh("a", {"node-0000": 1.0})
            while not await ingress.healthy("node-0000"):
                await asyncio.sleep(0.02)
            pid, port = await pid_of(ingress), int(ingress.settings.origins[0].listen.rpartition(":")[2])

            async def client(count: int) -> None:
                own = IngressClient(port)
                for _ in range(count):
                    reply = await own.infer(_BODY)
                    if reply.status != 200:
                        raise RuntimeError(f"a request was answered {reply.status}")
                await own.close()

            await asyncio.gather(*(client(20) for _ in range(_CONNECTIONS)))
            before = cpu_seconds([pid])
            await asyncio.gather(*(client(requests // _CONNECTIONS) for _ in range(_CONNECTIONS)))
            used_us = (cpu_seconds([pid]) - before) / (requests // _CONNECTIONS * _CONNECTIONS) * 1e6
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
            rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    await node.stop()
    return [body_bytes >> 10, used_us, rss / 1024]


async def change_cost(count: int) -> list[object]:
    """Return how long changes take with so many nodes."""
    node = await FakeNode("x").start()
    weighed = []
    with tempfile.TemporaryDirectory(prefix="clover-") as folder:
        async with started(f"{folder}/i", node, count) as (ingress, admitted_s):
            for _ in range(5):
                shares = {f"node-{number:04}": random.random() for number in range(count)}
                begin = time.monotonic()
                await ingress.weigh("a", shares)
                weighed.append(time.monotonic() - begin)
            await ingress.close()
            begin = time.monotonic()
            await ingress.start()
            adopted_s = time.monotonic() - begin
            pid = await pid_of(ingress)
            begin = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while ingress.restarts == 0 or not await ingress.nodes():
                await asyncio.sleep(0.01)
            back_s = time.monotonic() - begin
    await node.stop()
    return [count, admitted_s, statistics.median(weighed), adopted_s, back_s]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both parts and return the document of the JSON file."""
    bodies = [await request_cost(kib << 10, options.requests) for kib in (16, 64, 256, 1024)]
    changes = [await change_cost(count) for count in options.nodes]
    where = provenance()
    note = f"(measured; {where['cores']} cores, {where['date']})"
    show(f"HAProxy, a request {note}", ("body_bytes KiB", "CPU us", "RSS MiB"), bodies)
    show(f"changes, seconds {note}", ("nodes", "admit all", "weigh", "adopt", "back after SIGKILL"), changes)
    return {"bodies": bodies, "changes": changes}


def main() -> None:
    """Parse the command line and run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="requests to each HAProxy (default: %(default)s)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of nodes")
    parser.add_argument("--json", default="", help="file to write the figures to")
    options = parser.parse_args()
    write_json(options.json, asyncio.run(measure(options)))


if __name__ == "__main__":
    main()
