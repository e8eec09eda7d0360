"""Servers that began, or failed, together do not ask a provider together."""

from __future__ import annotations

import asyncio
import random

from clover.carbon.chain import SourceChain
from clover.carbon.chained import Jitter, no_jitter
from clover.errors import CarbonError
from clover.types import Reading

STEP = 300.0


class Provider:
    """A remote source, or a local one, that fails or has the value of now."""

    name = "a"
    step_s = STEP

    def __init__(self, *, remote: bool = True, fails: float = 0.0) -> None:
        self.remote = remote
        self.retry_after_s = fails
        self.calls: list[float] = []

    async def read(self, grid_s: float) -> Reading:
        self.calls.append(grid_s)
        if self.retry_after_s:
            raise CarbonError("a: down", retry_after_s=self.retry_after_s)
        return Reading(g_per_kwh=100.0 + len(self.calls), at_s=grid_s // STEP * STEP, provider="a", method="published")

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        return []


def calls(source: Provider, jitter: Jitter | None, until_s: float) -> list[float]:
    """When `source` is asked, if its chain is read once a second; real time is grid time."""
    now_s = 0.0
    chain = SourceChain([source], monotonic=lambda: now_s, backoff_s=(8.0, 300.0))
    if jitter is not None:
        chain.links[0].jitter = jitter

    async def walk() -> None:
        nonlocal now_s
        while now_s < until_s:
            await chain.read(now_s)
            now_s += 1.0

    asyncio.run(walk())
    return source.calls


def test_a_wait_is_longer_by_a_random_part_and_never_shorter() -> None:
    assert calls(Provider(fails=1e-9), Jitter(lambda: 0.0), 60.0) == [0.0, 8.0, 24.0, 56.0]
    assert calls(Provider(fails=1e-9), Jitter(lambda: 1.0), 60.0) == [0.0, 10.0, 30.0]  # 8 and 2, 16 and 4, 32 and 8
    assert calls(Provider(fails=100.0), Jitter(lambda: 0.5), 240.0) == [0.0, 113.0, 226.0]  # 100 and 12.5, what it asks
    assert Jitter(lambda: 1.0).beyond(3600.0) == 30.0
    drawn = {Jitter(random.Random(seed).random).beyond(300.0) for seed in range(9)}
    assert len(drawn) == 9
    assert max(drawn) - min(drawn) > 5.0


def test_a_new_value_is_asked_for_some_seconds_after_the_step() -> None:
    assert calls(Provider(), Jitter(lambda: 0.0), 2 * STEP + 9.0) == [0.0, STEP, 2 * STEP]
    assert calls(Provider(), Jitter(lambda: 0.9), 2 * STEP + 9.0) == [0.0, STEP + 3.0, 2 * STEP + 3.0]


def test_a_local_source_is_asked_by_the_clock() -> None:
    source = Provider(remote=False)
    assert calls(source, None, 2 * STEP + 9.0) == [0.0, STEP, 2 * STEP]
    assert no_jitter().beyond(300.0) == 0.0
