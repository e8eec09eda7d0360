"""Workers killed while rows of a cascade are on their way: is any row lost, answered twice, or given another's answer?

    python -m bench.chaos [--rows 1000000] [--kills 100] [--seed 0] [--json FILE]

An embedded server on four emulated A100s serves a chain of three variants (`bench.echo`), ten, ten and eight workers on
slices of their own; requests of 1 to 32 rows come from `--clients` clients, each as soon as its last was answered.
Meanwhile workers are killed with SIGKILL at random moments, until there were as many kills and as many rows as asked
for.  Beside them come rows that kill the worker which computes them, once or twice, in one stage or in two: one death
costs a row nothing, two end it with 503, in whichever stages they were.

Every row has a number of its own, every answer is held against what its variant says of that number, and its path
against where its scores send it.  `lost` rows got neither an answer nor an error, `duplicated` ones more than one,
`mismatched` ones an answer that is not theirs or not of the variant that the receipt names.  `elsewhere` are rows that
did not end where their scores send them: a stage had no worker left.  Requests with another status than 200, 429, 503
and 504 are `forbidden`.  Exit code 1 if anything was lost, duplicated, mismatched or forbidden, or if no row killed.

A worker that dies again and again is started after ever longer pauses, so kill too often (`--kill-every-s 1`) and
whole stages stay away. The controller is frozen, unless `--controller`: it leaves a configuration alone whose workers
are missing, and goes to BASE, which has no cascade. Everything is measured, but the pace of the workers, which is a
table's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import uvloop

import clover
from bench import echo
from bench.common import show, write_json
from clover.errors import RequestError
from clover.policies.plans import plan_fixed
from clover.runtime.served import Served
from clover.types import GroupCount, Plan, Routing, State

WORKERS = {"rough": 10, "middle": 10, "exact": 8}
SLICE = "1g.5gb"
MOST_ROWS = 32
FATES = {
    "once in stage 1": (echo.doomed(1), 200),
    "once in stage 2": (echo.doomed(0, 1), 200),
    "twice in stage 1": (echo.doomed(2), 503),
    "twice in stage 2": (echo.doomed(0, 2), 503),
    "in stage 1 and in stage 2": (echo.doomed(1, 1), 503),
    "in stage 2 and in stage 3": (echo.doomed(0, 1, 1), 503),
    "in stage 1 and in stage 3": (echo.doomed(1, 0, 1), 503),
}
"""Rows that kill: what they are called, their fate, and what they are to be answered."""
ALLOWED = (200, 429, 503, 504)


class ThreeStages:
    """The policy: always the same workers and the same chain; pure, as every policy."""

    name = "three-stages"

    def propose(self, state: State) -> Plan:
        """Return all slices of the boards."""
        groups = [GroupCount(variant=name, profile=SLICE, count=count) for name, count in sorted(WORKERS.items())]
        plan = plan_fixed(state, tuple(groups), policy=self.name)
        thresholds = (echo.THRESHOLD,) * (len(echo.NAMES) - 1)
        routing = Routing(shares={echo.NAMES[0]: 1.0}, chain=echo.NAMES, thresholds=thresholds)
        return msgspec.structs.replace(plan, routing=routing)


class Chaos:
    """Rows, kills, and what became of them."""

    def __init__(self, server: clover.Server, served: Served, rows: int, kills: int, seed: int) -> None:
        self.server = server
        self.served = served
        self.rows = rows
        self.kills = kills
        self.rng = random.Random(seed)
        self.next = 0
        self.answered: Counter[int] = Counter()
        """How often each number was."""
        self.mismatched = 0
        self.elsewhere = 0
        """Rows of a chain that did not end where their scores say."""
        self.dealt = 0
        """Rows that did not follow the chain, because its first variant had no worker."""
        self.ends: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.told = 0
        self.killed: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.fates: Counter[tuple[str, int]] = Counter()
        self.ended = False

    # --- rows ---------------------------------------------------------------------------------------------------------

    async def client(self) -> None:
        """Send one request after another."""
        while not self.ended:
            count = self.rng.randint(1, MOST_ROWS)
            numbers = np.arange(self.next, self.next + count, dtype=np.int64)
            self.next += count
            await self.ask(numbers, np.zeros(count, np.int64))

    async def ask(self, numbers: echo.Ints, fates: echo.Ints) -> int:
        """Send one request, and check what comes; its status."""
        try:
            found = await self.server.ainfer({"row": np.stack([numbers, fates], axis=1)})
        except RequestError as error:
            self.failed[f"{error.status} {error}"] += len(numbers)
            self.told += len(numbers)
            return error.status
        outputs = found["answer"]
        variants = np.array([echo.NAMES.index(name) for name in found.variants])
        fine = (outputs[:, 0] == numbers) & (outputs[:, 1] == echo.answer(numbers, variants))
        paths = found.receipt.path or found.variants
        for row, path in enumerate(paths):
            if path.rpartition(">")[2] != found.variants[row]:
                fine[row] = False
        sure = [echo.sureness(numbers, fates, at) >= echo.THRESHOLD for at in range(len(echo.NAMES) - 1)]
        wanted = np.where(sure[0], 0, np.where(sure[1], 1, 2))
        if found.receipt.path:
            self.elsewhere += int((variants != wanted).sum())
        else:
            self.dealt += len(numbers)
        self.mismatched += int((~fine).sum())
        self.ends.update(paths)
        self.answered.update(numbers.tolist())
        return 200

    # --- deaths -------------------------------------------------------------------------------------------------------

    async def killer(self, seconds: float) -> None:
        """Kill any worker at any moment; with a worker go the rows that it held."""
        rng = random.Random(self.rng.random())
        while sum(self.killed.values()) < self.kills:
            await asyncio.sleep(rng.expovariate(1.0 / seconds))
            alive = [item for item in self.served.fleet.describe() if item["pid"] is not None]
            if alive:
                victim = rng.choice(alive)
                self.note(victim["pid"])
                os.kill(victim["pid"], signal.SIGKILL)
                self.killed[victim["variant"]] += 1

    def note(self, pid: int) -> None:
        """Record what is under way as a worker dies: in all, and on that worker.  Only the router's own tables know."""
        router = self.served.router
        for link in router.state.lanes.links:
            for batch in link.batches.values():
                for slot in batch.slots:
                    owner = router.state.table.owner[slot]
                    if owner is None:
                        continue
                    gone_on = owner.slots.index(slot) in owner.paths
                    self.held["with any worker, gone on"] += gone_on
                    if link.worker.pid == pid:
                        self.held["with the victim"] += 1
                        self.held["with the victim, gone on"] += gone_on

    async def doomed(self, every_s: float) -> None:
        """Send rows that kill, one a request, all kinds in turn."""
        for number in range(5 * len(FATES)):
            await asyncio.sleep(every_s)
            if self.ended:
                return
            name = list(FATES)[number % len(FATES)]
            self.next += 1
            own = np.array([self.next - 1], np.int64)
            self.fates[name, await self.ask(own, np.array([FATES[name][0]], np.int64))] += 1

    # --- all of it ----------------------------------------------------------------------------------------------------

    async def run(self, clients: int, kill_every_s: float) -> None:
        """Run until there were enough rows and enough kills."""
        loads = [asyncio.ensure_future(self.client()) for _ in range(clients)]
        doomed = asyncio.ensure_future(self.doomed(2.0 * kill_every_s))
        await self.killer(kill_every_s)
        while self.next < self.rows:
            await asyncio.sleep(0.05)
        self.ended = True
        await asyncio.gather(*loads, doomed)


def pace(path: Path) -> str:
    """Return a pace file: what a batch takes on a slice, by variant."""
    rows = [
        {"family": "echo", "variant": name, "profile": profile, "batch": batch, "ms": ms * (1 + at), "watts": 17.0}
        for at, name in enumerate(echo.NAMES)
        for profile in (SLICE, "7g.40gb")
        for batch, ms in ((1, 1.0), (MOST_ROWS, 5.0))
    ]
    path.write_text(json.dumps({"method": "configured", "source": "bench.chaos", "rows": rows}))
    return str(path)


async def play(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run once and return the figures."""
    (folder / "graves").mkdir()
    server = clover.Server(
        echo.family(str(folder / "graves"), max_batch=MOST_ROWS),
        http=False,
        device="emulated:a100-40gb:4",
        pace=pace(folder / "pace.json"),
        sandbox_write=(str(folder / "graves"),),
        cache_dir=str(folder),
        backends=("eager",),
        policy=f"bench.chaos:{ThreeStages.__name__}",
        slo_ms=1000.0,
        accuracy_floor=1.0,
        verify_s=0.1,
        carbon="static:300",
    )
    async with server:
        served = server.engine.pick(None)
        if not options.controller:
            await server.engine.controller.command("freeze", {"on": True}, "bench.chaos")
        chaos = Chaos(server, served, options.rows, options.kills, options.seed)
        begun_s = time.monotonic()
        await chaos.run(options.clients, options.kill_every_s)
        seconds = time.monotonic() - begun_s
        traffic, slots = served.traffic, served.router.observe()["free_slots"]
        restarts: Counter[str] = Counter()
        for item in served.fleet.describe():
            restarts[item["variant"]] += item["restarts"]
        once = sum(times == 1 for times in chaos.answered.values())
        twice = sum(times > 1 for times in chaos.answered.values())
        return {
            "seconds": round(seconds, 1),
            "rows": chaos.next,
            "answered once": once,
            "failed with an error": chaos.told,
            "lost": chaos.next - once - twice - chaos.told,
            "duplicated": twice,
            "mismatched": chaos.mismatched,
            "ended at each variant": {name: traffic.rows[at] for at, name in enumerate(echo.NAMES)},
            "paths": dict(chaos.ends),
            "elsewhere": chaos.elsewhere,
            "dealt by shares (nobody in stage 1)": chaos.dealt,
            "cut short, by the router": dict(traffic.cut_short),
            "SIGKILLs by stage": dict(chaos.killed),
            "deaths heard": traffic.lost_workers,
            "restarts by stage": dict(restarts),
            "rows in flight at the SIGKILLs": dict(chaos.held),
            "rows retried": traffic.retried_rows,
            "requests ended by two deaths": traffic.poisoned,
            "errors": dict(chaos.failed),
            "rows that kill, as answered": {
                name: f"{chaos.fates[name, status]} of {sum(n for (own, _), n in chaos.fates.items() if own == name)} "
                f"{'answered' if status == 200 else '503'}"
                for name, (_, status) in FATES.items()
            },
            "decisions": dict(Counter(item["action"] for item in server.engine.controller.decisions(1000))),
            "slots free at the end": f"{slots:.0f} of {served.slab.layout.slots}",
            "requests by status": {str(code): count for code, count in sorted(traffic.codes.items())},
            "forbidden": sum(count for code, count in traffic.codes.items() if code not in ALLOWED),
            "deaths by rows that kill": traffic.lost_workers - sum(chaos.killed.values()),
        }


def wrong(figures: dict[str, Any]) -> list[str]:
    """Return the names of the figures that are not as they should be."""
    found = [name for name in ("lost", "duplicated", "mismatched", "forbidden") if figures[name]]
    return found if figures["deaths by rows that kill"] else [*found, "deaths by rows that kill"]


def main() -> int:
    """Run the bench; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows, at least [1000000]")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, at least [100]")
    parser.add_argument("--clients", type=int, default=32, help="requests under way at once [32]")
    parser.add_argument("--kill-every-s", type=float, default=2.2, help="mean seconds between two SIGKILLs [2.2]")
    parser.add_argument("--controller", action="store_true", help="let the controller act on what it sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the figures to this file")
    options = parser.parse_args()
    logging.getLogger("clover").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as folder:
        figures = uvloop.run(play(options, Path(folder)))
    title = "SIGKILLs with rows of a cascade on their way (measured; emulated paces)"
    show(title, ["figure", "value"], [[name, _said(value)] for name, value in figures.items()])
    write_json(options.json, figures)
    return 1 if wrong(figures) else 0


def _said(value: Any) -> Any:
    return "\n".join(f"{name}: {number}" for name, number in value.items()) if isinstance(value, dict) else value


if __name__ == "__main__":
    raise SystemExit(main())
