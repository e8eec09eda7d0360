"""Cascades through real workers: scores come back with the answers, and rows of low ones are asked again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.families import load_family
from clover.profiling.rows import load
from clover.runtime.served import Served
from tests.support.toy_family import THRESHOLD, TOY, expected, settings

pytestmark = [
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two variants need two cores"),
    pytest.mark.usefixtures("forked_zygotes"),
]


def path_of(row: np.ndarray[Any, Any]) -> str:
    """Where a row ends: as sure as `half` is of it."""
    sure = float(expected("half", row[None]).astype(np.float32).max())
    return "half" if sure >= THRESHOLD else "half>full"


def near(row: np.ndarray[Any, Any]) -> bool:
    """Whether rounding may decide: such rows are left out."""
    return abs(float(expected("half", row[None]).max()) - THRESHOLD) < 1e-4


async def kill_some(served: Served, ended: asyncio.Event) -> int:
    """Kill a worker now and then, until told to end; how many.  One stays: a busy machine may take long to start the
    others again."""
    rng, killed = random.Random(1), 0
    while not ended.is_set():
        alive = [item["pid"] for item in served.fleet.describe() if item["state"] == "ready"]
        if len(alive) > 1:
            os.kill(rng.choice(alive), signal.SIGKILL)
            killed += 1
        await asyncio.sleep(0.4)
    return killed


def test_rows_end_where_their_scores_say_also_while_workers_die(toy_cache: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache)) as server:
            served = server.engine.pick(None)
            profile = served.profile
            assert profile is not None
            assert profile.cascade is not None
            assert profile.cascade.held_out_rows == len(load(load_family(TOY)).labels)
            rng = np.random.default_rng(1)
            paths: Counter[str] = Counter()

            async def ask(count: int) -> None:
                rows = np.array([row for row in rng.standard_normal((count, 4)).astype(np.float32) if not near(row)])
                answer = await server.ainfer({"INPUT0": rows})
                followed = answer.receipt.path or answer.variants  # none of `half` was there: shares dealt
                for row, path, found in zip(rows, followed, answer["OUTPUT0"], strict=True):
                    np.testing.assert_allclose(found, expected(path.rpartition(">")[2], row[None])[0], atol=1e-6)
                    paths[path] += 1
                    seen.append((path, path_of(row)))

            seen: list[tuple[str, str]] = []
            for _ in range(20):
                await asyncio.gather(*(ask(rng.integers(1, 4)) for _ in range(8)))
            assert all(path == wanted for path, wanted in seen)
            assert paths["half"] > 20
            assert paths["half>full"] > 50
            assert served.traffic.cut_short == {}
            assert served.traffic.rows == [paths["half"], paths["half>full"]]
            assert served.traffic.escalated == [paths["half>full"], 0]
            one = np.zeros((1, 4), np.float32)
            assert (await server.ainfer({"INPUT0": one}, cascade=False)).receipt.path == ()
            # Workers die meanwhile: nothing is lost, and what a receipt says is what was computed.
            seen.clear()
            ended = asyncio.Event()
            killer = asyncio.ensure_future(kill_some(served, ended))
            for _ in range(100):
                await asyncio.gather(*(ask(rng.integers(1, 4)) for _ in range(8)), return_exceptions=False)
                await asyncio.sleep(0.02)
            ended.set()
            assert await killer >= 3
            assert served.traffic.lost_workers >= 3
            short = sum((path, wanted) == ("half", "half>full") for path, wanted in seen)
            assert sum(served.traffic.cut_short.values()) >= short > 0, "what kept its answer was counted"
            assert set(served.traffic.codes) <= {200}

    asyncio.run(main())
