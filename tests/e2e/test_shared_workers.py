"""Workers that hold all variants: plans swap them without a process, and a killed one comes back with all."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

import clover
from clover.types import Routing
from tests.support.servers import children, until
from tests.support.toy_family import THRESHOLD, TOY, expected, settings

SWAPS = 40


class Load:
    """Clients that ask one after another until told to end, and hold every answer against its own rows."""

    def __init__(self, server: clover.Server) -> None:
        self.variants: Counter[str] = Counter()
        self.first_ns: dict[str, int] = {}
        """When each variant first answered, since this was cleared."""
        self.ended = False
        self._server = server

    async def client(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        while not self.ended:
            rows = random.standard_normal((random.integers(1, 4), 4)).astype(np.float32)
            answer = await self._server.ainfer({"INPUT0": rows})
            for index, variant in enumerate(answer.variants):
                wanted = expected(variant, rows[index : index + 1])
                np.testing.assert_allclose(answer["OUTPUT0"][index : index + 1], wanted, rtol=1e-4, atol=1e-6)
                self.variants[variant] += 1
                self.first_ns.setdefault(variant, time.monotonic_ns())
            await asyncio.sleep(0.002)


async def a_cascade_on_one_worker(server: clover.Server) -> None:
    """Both stages run in one process, and all of its rows end where their scores say."""
    served = server.engine.pick(None)
    first = served.fleet.routed[0]
    stages = tuple(msgspec.structs.replace(first, variant=name) for name in ("half", "full"))
    for item in stages:
        await served.fleet.spawn(item)
    chain = Routing(shares={"half": 1.0}, chain=("half", "full"), thresholds=(THRESHOLD,))
    served.fleet.route(stages, chain)
    (worker,) = [one for one in served.fleet.describe() if one["routed"]]
    assert worker["variants"] == ["half", "full"]
    paths: Counter[str] = Counter()

    async def ask(seed: int) -> None:
        rows = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
        answer = await server.ainfer({"INPUT0": rows})
        for row, path, found in zip(rows, answer.receipt.path, answer["OUTPUT0"], strict=True):
            np.testing.assert_allclose(found, expected(path.rpartition(">")[2], row[None])[0], rtol=1e-4, atol=1e-6)
            sure = float(expected("half", row[None]).max())
            assert abs(sure - THRESHOLD) < 1e-4 or path == ("half" if sure >= THRESHOLD else "half>full")
            paths[path] += 1

    await asyncio.gather(*(ask(seed) for seed in range(60)))
    assert paths.keys() == {"half", "half>full"}
    by_variant = {meter.variant: meter.rows for meter in server.engine.account.workers() if meter.pid == worker["pid"]}
    assert by_variant["full"] >= paths["half>full"]


@pytest.mark.usefixtures("forked_zygotes", "short_profiling")  # one core is not what `toy_cache` was measured on
def test_plans_swap_variants_that_workers_hold_without_a_process(toy_cache: Path) -> None:
    before = children()

    async def main() -> None:
        one_core = str(min(os.sched_getaffinity(0)))  # so that no plan changes the layout
        chosen = settings(toy_cache) | {"policy": "static:half", "cores": one_core}
        async with clover.Server(TOY, **chosen) as server:
            served = server.engine.pick(None)
            pin = server.engine.controller.command
            await pin("pin", {"variant": "half", "force": True}, "me")
            (first, *_) = workers = served.fleet.describe()
            assert all(set(worker["resident"]) == {"half", "full"} for worker in workers)
            processes = {worker["pid"] for worker in workers}
            load = Load(server)
            clients = [asyncio.ensure_future(load.client(seed)) for seed in range(4)]
            took_ms = []
            for swap in range(SWAPS):
                variant = ("full", "half")[swap % 2]
                await asyncio.sleep(0.02)
                load.first_ns.clear()
                begun_ns = time.monotonic_ns()
                await pin("pin", {"variant": variant, "force": True}, "me")
                await until(lambda wanted=variant: wanted in load.first_ns)
                took_ms.append((load.first_ns[variant] - begun_ns) / 1e6)
            workers = served.fleet.describe()
            assert {worker["pid"] for worker in workers} == processes
            assert [worker["variants"] for worker in workers] == [["half"]] * len(workers)
            print("from the command to the first new answer, ms:", sorted(took_ms)[:: SWAPS // 8])

            os.kill(first["pid"], signal.SIGKILL)
            await until(lambda: first["pid"] not in {worker["pid"] for worker in served.fleet.describe()})
            await until(lambda: not served.fleet.missing)
            load.ended = True
            await asyncio.gather(*clients)
            assert load.variants["half"] > 0 < load.variants["full"]
            assert served.fleet.restarts == 1
            assert all(set(worker["resident"]) == {"half", "full"} for worker in served.fleet.describe())
            assert served.traffic.lost_workers == 1

            await pin("freeze", {"on": True}, "me")
            await a_cascade_on_one_worker(server)
            assert served.traffic.codes.keys() == {200}

    asyncio.run(main())
    assert children() == before
