"""A server on one emulated A100, for its energy: in a process of its own, since NVML is one library a process.

    python -m tests.support.gpu_energy_server CACHE

It rests until it knows what a context costs, answers for two seconds, and prints the slice that its worker is on as a
line of JSON.  From a line on standard input on it answers beside whoever is there then, and prints what was found.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clover.control import controller
from clover.energy.gpu_probe import Probe, Value
from tests.support.mig_server import Load, gpu, say, server

REST_S = 30.0
"""The longest that is waited for three quiet seconds."""
DEVICE = "emulated:a100-40gb:1"


async def counter_j(device: Any) -> float:
    """Return what the board's counter shows."""
    found = await device.session.call(Probe(device.uuid, time.monotonic_ns).counter)
    assert isinstance(found, Value)
    return found.number / 1e3


async def scene(cache: Path) -> None:
    async with server(cache, device=DEVICE, policy="base") as running:
        device, engine = gpu(running, "gpu0"), running.engine

        def line() -> dict[str, Any]:
            return dict(engine.totals()["devices"]["gpu0"])

        async def until(true: Callable[[dict[str, Any]], Any], seconds: float) -> dict[str, Any]:
            end_s = time.monotonic() + seconds
            while not true(line()) and time.monotonic() < end_s:
                await asyncio.sleep(0.1)
            return line()

        rested = await until(lambda found: found["resident_known"] == "rest", REST_S)
        load = Load(running)
        await asyncio.sleep(2.0)
        worked = line()
        say(slice=device.visible(engine.pick(None).fleet.ready_assignments()[0].placement))
        await asyncio.to_thread(sys.stdin.readline)
        shared = await until(lambda found: found["shared"], 5.0)
        await load.end()
        await engine.parts.windows.close()
        account = engine.account
        say(
            rested=rested,
            worked=worked,
            shared=shared,
            end=line(),
            counter_j=await counter_j(device),
            asked=load.asked,
            failed=load.failed,
            totals=account.totals("toy"),
        )


def main(cache: str) -> None:
    controller.INTERVAL_S = 0.1
    asyncio.run(scene(Path(cache)))


if __name__ == "__main__":
    main(*sys.argv[1:])
