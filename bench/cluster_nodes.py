"""Requests a second of one machine as one node, and as two nodes with half of its cores each.

    python -m bench.cluster_nodes                          # all cores, in turn, four rounds

A node's front end is one event loop, so that one node cannot use more than a core for it; two nodes have two.  Closed
loop: `--connections` clients keep one request each in flight, shared out evenly between the nodes, without an ingress.
Rounds alternate, so that what else the machine does meets both.  All of it is measured.  On a machine of two cores the
load generator and the workers share them, and two nodes have no core more than one has: that shows what a second node
costs, and only a larger machine shows what it gives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.common import binary_bodies, fashion_rows, provenance, served, show, write_json
from bench.load import Body, Result, closed_loop


def halves(cores: Sequence[int], nodes: int) -> list[str]:
    """Return the cores of each node, as `--cores` takes them."""
    size = len(cores) // nodes
    return [",".join(map(str, cores[at * size : (at + 1) * size])) for at in range(nodes)]


async def measure(urls: Sequence[str], bodies: Sequence[Body], connections: int, seconds: float) -> list[Result]:
    """Return what each node answered, all asked at once."""
    each = connections // len(urls)
    return list(
        await asyncio.gather(*(closed_loop(url, "fashion", bodies, connections=each, seconds=seconds) for url in urls))
    )


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each round [3]")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each [4]")
    parser.add_argument("--connections", type=int, default=32, help="requests in flight, of all nodes [32]")
    parser.add_argument("--json", default="", metavar="FILE", help="write what was found to a file")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two nodes need two cores")
    bodies = binary_bodies(fashion_rows()[0], 256)
    found: dict[int, list[tuple[float, float, int]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="clover-nodes-") as folder:
        for _ in range(given.rounds):
            for nodes in found:
                with contextlib.ExitStack() as stack:
                    urls = [
                        stack.enter_context(
                            served(
                                ["fashion", "--variant", "small", "--cores", part, "--cache-dir", f"{folder}/cache"],
                                log=Path(folder) / f"{nodes}-{at}.log",
                            )
                        ).url
                        for at, part in enumerate(halves(cores, nodes))
                    ]
                    asyncio.run(measure(urls, bodies, given.connections, 0.5))
                    results = asyncio.run(measure(urls, bodies, given.connections, given.seconds))
                answered = sum(len(result.samples) - result.failed() + result.lost for result in results)
                p99 = max(result.latency_ms(0.99) for result in results)
                found[nodes].append((answered / given.seconds, p99, sum(result.failed() for result in results)))
    rows = [
        (nodes, statistics.median(rate for rate, _, _ in runs), min(rate for rate, _, _ in runs),
         max(rate for rate, _, _ in runs), statistics.median(p99 for _, p99, _ in runs), sum(n for _, _, n in runs))
        for nodes, runs in found.items()
    ]  # fmt: skip
    title = f"requests/s of one machine, {provenance()['cores']} cores (measured)"
    show(title, ("nodes", "requests/s", "least", "most", "p99 ms", "failed"), rows)
    write_json(given.json, {"runs": {str(nodes): runs for nodes, runs in found.items()}})


if __name__ == "__main__":
    main()
