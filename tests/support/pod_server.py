"""A server in a pod: two MIG instances that it may use and not change, on an emulated A100, with clients asking.

    python -m tests.support.pod_server CACHE

Swaps variants on the instances, as an operator asks.  Prints one JSON object a line; the tests read them.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import clover.server
from clover.control import controller
from tests.support.mig_server import TOY, Load, answers, gpu, say, standing
from tests.support.scene_policies import TWO_INSTANCES, BestOnTwoInstances, policy_name

DEVICE = "emulated:pod-1g.10gb:2"
CONFIGURATIONS = ({"half@1g.10gb": 2}, {"full@1g.10gb": 1, "half@1g.10gb": 1}, TWO_INSTANCES)


async def serve(cache: Path) -> None:
    server = clover.Server(
        TOY,
        http=False,
        cache_dir=str(cache),
        device=DEVICE,
        backends=("eager",),
        policy=policy_name(BestOnTwoInstances),
        slo_ms=10_000.0,
        waits=False,
        accuracy_floor=1.0,
        carbon="static:300",
        verify_s=0.2,
    )
    async with server as running:
        device = gpu(running, "gpu0")
        uuids = [device.visible(place) for place in device.instances()]
        say(event="ready", answered=await answers(running), uuids=uuids, fixed=device.fixed, **standing(running))
        load = Load(running)
        for groups in CONFIGURATIONS:
            await running.engine.control().command("apply", {"configuration": groups, "force": True}, "a test")
            ready = running.engine.pick(None).fleet.ready_assignments()
            reached = sorted(f"{item.variant}@{item.placement.profile}" for item in ready)
            say(event="swapped", reached=reached, **standing(running))
        await load.end()
        assert running.engine.grid.reading is not None
        await running.engine.machine.measure(running.engine.grid.reading)
        say(
            event="done",
            asked=load.asked,
            failed=load.failed,
            reasons=load.reasons[:3],
            same=[device.visible(place) for place in device.instances()] == uuids,
            lines=running.engine.account.devices()["gpu0"],
        )


def main(cache: str) -> None:
    controller.INTERVAL_S = 0.1
    asyncio.run(serve(Path(cache)))


if __name__ == "__main__":
    main(*sys.argv[1:])
