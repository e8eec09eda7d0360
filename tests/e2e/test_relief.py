"""Workers that stand by, in a server: nobody sees them in calm, and a burst goes to them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import clover
from clover.runtime.served import Served

SLOW = str(Path(__file__).parents[1] / "families" / "slow")


async def until(met: object, told: object) -> None:
    """Wait until `met()` holds."""
    end_s = time.monotonic() + 30.0
    while not met():  # type: ignore[operator]
        assert time.monotonic() < end_s, told()  # type: ignore[operator]
        await asyncio.sleep(0.05)


def standing(served: Served) -> list[str]:
    return [variant for item in served.fleet.describe() for variant in item["standby"]]


@pytest.mark.alone
@pytest.mark.usefixtures("forked_zygotes", "short_profiling")
def test_a_burst_goes_to_those_that_stand_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of `slow` take 20 ms a batch, those of `fast` 2 ms; what is late is late by hundreds of milliseconds."""
    monkeypatch.setattr("clover.control.controller.INTERVAL_S", 60.0)  # no plan for the burst: relief is the router's

    async def main() -> None:
        server = clover.Server(
            SLOW,
            http=False,
            cache_dir=str(tmp_path),
            backends=("eager",),
            profile="wait",
            energy_meter="modelled",
            policy="static:slow",
            relief="auto",
            slo_ms=100.0,
            waits=False,
        )
        async with server:
            served = server.engine.pick(None)
            workers = len(served.fleet.ready_assignments())
            await until(lambda: len(standing(served)) == workers, served.fleet.describe)
            assert set(standing(served)) == {"fast"}
            assert len(served.fleet.ready_assignments()) == workers

            async def ask(number: int) -> str:
                answer = await server.ainfer({"INPUT0": np.full((1, 1), number, np.float32)})
                assert answer["OUTPUT0"][0, 0] == number
                assert answer.receipt.variant == ("fast", "slow")[answer["VARIANT"][0, 0]]
                return answer.receipt.variant

            assert [await ask(number) for number in range(3)] == ["slow"] * 3
            burst = Counter(await asyncio.gather(*(ask(number) for number in range(400 * workers))))
            assert burst["fast"] > 300 * workers
            assert served.traffic.relieved_rows == burst["fast"]
            assert served.traffic.reliefs == 1
            assert 'clover_rerouted_rows_total{model="slow",why="relief"}' in server.engine.metrics().decode()
            await asyncio.sleep(0.3)
            await ask(0)  # this turn sees that the burst is over
            assert await ask(1) == "slow"
            assert served.fleet.observe()["relief"] == 0.0
            assert (served.traffic.lost_workers, served.fleet.restarts, served.fleet.swaps) == (0, 0, 0)
        assert not served.fleet.describe()

    asyncio.run(main())
