"""What it costs to send a row on: the data plane's part of a cascade's hop, beyond queue and model.

    python -m bench.hop [--rounds 9] [--requests 1000] [--pause-ms 1] [--json FILE]

Three variants that all take as long and are never sure (`bench.echo`) are asked one after another, in real workers
behind the server's own router, with one request under way at a time, and a pause before the next: nothing queues, and
every worker sleeps when a row comes (one that is asked again at once does not, and is cheaper to reach).  `direct`
asks one variant, `one hop` two of them, `two hops` all three; rounds of the three take turns, and figures are medians
over rounds.

`latency` is from submission to answer.  `in workers` is the time that workers had the batch: gathering the rows, the
model, scoring, writing the answers.  `plane` is what is left: routing, rings, waking workers and being woken by them.
`server CPU` is this process's, the client in it included, which asks alike in all three; `worker CPU` all that worker
processes used, `beyond` less what they used while they had a batch.  A hop's cost is the difference, by hop and row.

The server has a core of its own and workers share the others, as on machines of three cores and more; with `--shared`
they share all, and a worker on the server's core runs when the server sleeps.

`router alone` is the same with workers that answer at once within this process: what the router's own code takes.
Everything is measured, CPU by the kernel's nanosecond counters.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import uvloop

from bench import echo
from bench.common import cpu_seconds, show, write_json
from clover.accounting import Account, WorkerMeter
from clover.config import FamilyConfig
from clover.families import load_family
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.lanes import Entry
from clover.runtime.router.links import WorkerHandle
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import RouterTicket
from clover.runtime.workers.pool import Pool
from clover.types import FamilySpec, Routing
from clover.worker.frames import WorkerOrder

SIZES = (1, 32)
"""Rows of a request."""
WAYS = ("direct", "one hop", "two hops")
_SLOTS = 256
_UNSURE = echo.doomed(0, 0, 0, 1)  # of variants that do not exist: it harms nobody, and is never sure


class Meter(WorkerMeter):
    """Remembers what the last batch took."""

    last_ns = 0

    def add(self, rows: int, busy_ns: int, cpu_ns: int, pause_ns: int = 0, failed: int = 0) -> float:
        """See `WorkerMeter.add`."""
        self.last_ns = busy_ns
        return super().add(rows, busy_ns, cpu_ns, pause_ns, failed)


class InProcess:
    """A worker that answers at once, never sure: what is left is the router's work."""

    def __init__(self, pid: int, slab: Slab) -> None:
        self.pid = pid
        self.resident: dict[str, int] = {}
        self._slab = slab
        self._done: list[tuple[int, int, int, int, int, int]] = []

    @property
    def ring(self) -> InProcess:
        """Itself."""
        return self

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int:
        """See `Ring.submit`."""
        self._slab.score[slots[:n]] = 0.0
        self._done.append((batch_id, 0, n, 0, 0, 0))
        return 1

    def untaken(self) -> int:
        """See `Ring.untaken`."""
        return 0

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        """See `Ring.reap`."""
        return self._done.pop() if self._done else None

    def bell(self) -> None:
        """Do nothing: the worker is awake."""


@dataclass(frozen=True)
class Round:
    """Medians of latency over the requests of a round, and CPU by request: microseconds."""

    latency_us: float
    in_workers_us: float
    plane_us: float
    server_us: float
    worker_us: float
    beyond_us: float


class House:
    """A router with workers, one a variant."""

    def __init__(self, spec: FamilySpec, slab: Slab, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.loop = loop
        self.router = Router(spec, slab, _SLOTS, FamilyConfig(family=spec.name), None, Account(pue=1.0), loop=loop)
        self.meters: list[Meter] = []
        self.entries: list[Entry] = []
        self.pids: list[int] = []

    def add(self, worker: WorkerHandle, lane: int) -> None:
        """Let a worker serve the variant at that index."""
        name = self.spec.variants[lane].name
        meter = Meter(family=self.spec.name, variant=name, device="bench", placement=f"place{lane}", slices=1)
        self.meters.append(meter)
        self.entries.append((worker, lane, self.spec.max_batch, meter))
        self.pids.append(worker.pid)

    def route(self, way: str) -> None:
        """Take requests from now on."""
        hops = WAYS.index(way)
        chain = echo.NAMES[: hops + 1] if hops else ()
        shares = {echo.NAMES[0]: 1.0}
        self.router.route(self.entries, Routing(shares=shares, chain=chain, thresholds=(echo.THRESHOLD,) * hops))

    async def ask(self, rows: np.ndarray[Any, Any], seen: Callable[[RouterTicket], None]) -> None:
        """Send one request and wait for its answer."""
        done: asyncio.Future[None] = self.loop.create_future()

        def answered(ticket: RouterTicket) -> None:
            if ticket.status != 200:
                raise RuntimeError(ticket.error)
            seen(ticket)
            self.router.close(ticket)
            done.set_result(None)

        ticket = self.router.open(len(rows))
        self.router.write(ticket, 0, rows)
        self.router.submit(ticket, cast("Any", answered))
        await done

    async def round(self, way: str, size: int, requests: int, pause_s: float) -> Round:
        """Send requests one after another, `pause_s` apart; return the round."""
        hops = WAYS.index(way)
        self.route(way)
        rows = np.stack([np.arange(size), np.full(size, _UNSURE)], axis=1).astype(np.int64)
        latency_ns, busy_ns = [], []

        def seen(ticket: RouterTicket) -> None:
            latency_ns.append(ticket.done_ns - ticket.submit_ns)
            busy_ns.append(sum(meter.last_ns for meter in self.meters[: hops + 1]))
            if set(ticket.variants) != {hops}:
                raise RuntimeError("a row ended elsewhere")

        for _ in range(50):
            await self.ask(rows, seen)
        latency_ns.clear()
        busy_ns.clear()
        within_ns = sum(meter.cpu_ns for meter in self.meters)
        own_ns, theirs_s = time.process_time_ns(), cpu_seconds(self.pids)
        for _ in range(requests):
            await asyncio.sleep(pause_s)
            await self.ask(rows, seen)
        own_ns, theirs_s = time.process_time_ns() - own_ns, cpu_seconds(self.pids) - theirs_s
        within_ns = sum(meter.cpu_ns for meter in self.meters) - within_ns
        return Round(
            latency_us=statistics.median(latency_ns) / 1e3,
            in_workers_us=statistics.median(busy_ns) / 1e3,
            plane_us=statistics.median(all_ - busy for all_, busy in zip(latency_ns, busy_ns, strict=True)) / 1e3,
            server_us=own_ns / requests / 1e3,
            worker_us=1e6 * theirs_s / requests,
            beyond_us=1e6 * theirs_s / requests - within_ns / requests / 1e3,
        )


async def live(spec: FamilySpec, options: argparse.Namespace) -> dict[int, dict[str, list[Round]]]:
    """Measure rounds in real workers, by rows of a request and way."""
    loop = asyncio.get_running_loop()
    slab = Slab.create(Layout(spec, _SLOTS))
    pool = Pool.launch()
    completions = pool.completions
    house = House(spec, slab, loop)
    try:
        await pool.start()
        cores = options.cores
        for lane, variant in enumerate(spec.variants):
            order = WorkerOrder(
                family=spec,
                variant=variant.name,
                backend="eager",
                cores=(cores[lane % len(cores)],),
                max_batch=spec.max_batch,
            )
            house.add(await pool.spawn(order, slab), lane)
        completions.add(house.router.reap)
        completions.start(loop)
        found: dict[int, dict[str, list[Round]]] = {size: {way: [] for way in WAYS} for size in SIZES}
        for _ in range(options.rounds):
            for size in SIZES:
                for way in WAYS:
                    found[size][way].append(await house.round(way, size, options.requests, 1e-3 * options.pause_ms))
        return found
    finally:
        completions.stop()
        house.router.stop()
        await pool.stop()
        slab.close()


async def alone(spec: FamilySpec, options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Return CPU (us) of the router by row, with workers in this process: by rows of a request and way."""
    slab = Slab.create(Layout(spec, _SLOTS))
    house = House(spec, slab, asyncio.get_running_loop())
    try:
        for lane in range(len(spec.variants)):
            house.add(cast("Any", InProcess(lane + 1, slab)), lane)
        found: dict[int, dict[str, list[float]]] = {size: {way: [] for way in WAYS} for size in SIZES}
        for _ in range(options.rounds):
            for size in SIZES:
                for way in WAYS:
                    found[size][way].append(_turned(house, way, size, options.requests))
        return {size: {way: statistics.median(us) for way, us in ways.items()} for size, ways in found.items()}
    finally:
        house.router.stop()
        slab.close()


def _turned(house: House, way: str, size: int, requests: int) -> float:
    """Return CPU (us) of a row; its turns are taken by hand, as the loop would."""
    house.route(way)
    router = house.router
    rows = np.stack([np.arange(size), np.full(size, _UNSURE)], axis=1).astype(np.int64)
    answered: list[RouterTicket] = []
    on_done = cast("Any", answered.append)
    begun_ns = time.process_time_ns()
    for _ in range(requests):
        ticket = router.open(size)
        router.write(ticket, 0, rows)
        router.submit(ticket, on_done)
        router.dispatch.run_turn()  # what the loop calls at the end of the turn
        while not answered:
            router.reap()
        router.close(answered.pop())
    return (time.process_time_ns() - begun_ns) / requests / size / 1e3


def by_hop(values: Sequence[float]) -> str:
    """Return what a hop adds: between direct and one hop, and between one and two."""
    return f"{values[1] - values[0]:.1f} / {values[2] - values[1]:.1f}"


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=1000, help="requests of a round [1000]")
    parser.add_argument("--pause-ms", type=float, default=1.0, help="before each request [1]")
    parser.add_argument("--shared", action="store_true", help="workers on every core, the server's too")
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    options.cores = sorted(os.sched_getaffinity(0))
    if not options.shared and len(options.cores) > 1:
        os.sched_setaffinity(0, {options.cores.pop()})
    with tempfile.TemporaryDirectory() as folder:
        spec = load_family(echo.family(folder))
        router_us = asyncio.run(alone(spec, options))
        found = uvloop.run(live(spec, options))
    names = ("latency_us", "in_workers_us", "plane_us", "server_us", "worker_us", "beyond_us")
    words = ("latency", "in workers", "plane", "server CPU", "worker CPU", "beyond")
    table, document = [], {}
    for size in SIZES:
        medians = {
            name: [statistics.median(getattr(item, name) for item in found[size][way]) for way in WAYS]
            for name in names
        }
        for name, word in zip(names, words, strict=True):
            row = [f"{value:.1f}" for value in medians[name]]
            added = statistics.median(
                (two - one) / 2.0 / size
                for one, two in zip(
                    (getattr(item, name) for item in found[size]["direct"]),
                    (getattr(item, name) for item in found[size]["two hops"]),
                    strict=True,
                )
            )
            table.append([size, word, *row, by_hop(medians[name]), f"{added:.2f}"])
        own = [router_us[size][way] * size for way in WAYS]
        table.append(
            [
                size,
                "router alone, CPU",
                *(f"{us:.1f}" for us in own),
                by_hop(own),
                f"{(own[2] - own[0]) / 2 / size:.2f}",
            ]
        )
        document[str(size)] = {**medians, "router_us": own}
    show(
        f"a request, microseconds; medians of {options.rounds} rounds of {options.requests} requests (measured)",
        ("rows", "figure", *WAYS, "first / second hop adds", "a hop, by row"),
        table,
    )
    write_json(options.json, {"requests": document})


if __name__ == "__main__":
    main()
