"""A server on an emulated GPU that MPS parts, in a process of its own: NVML is one library a process.

    python -m tests.support.mps_server CACHE live       re-parted, hurt and killed at, with clients asking all the while
    python -m tests.support.mps_server CACHE found      beside a daemon that runs already, without static partitions

Prints one JSON object a line; the tests read them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import clover.server
from clover import devices
from clover.devices import boxes
from clover.devices.mps import MpsDevice
from clover.devices.mps_control import MpsControl
from tests.support import mig_server
from tests.support.mig_server import Load, answers, say, until
from tests.support.scene_policies import BestOnAllParts, policy_name

DEVICE = "emulated:rtx-4090:1/mps"
HALVES = {"full@2of4": 1, "half@2of4": 1}
MIXED = {"full@2of4": 1, "half@1of4": 2}


def server(cache: Path) -> clover.Server:
    policy = policy_name(BestOnAllParts)
    # Plans only when an operator asks: what is reached is to stay.
    return mig_server.server(cache, device=DEVICE, policy=policy, allow_capacity_loss=True, interval_s=600.0)


def gpu(running: clover.Server) -> MpsDevice:
    device = running.engine.devices["gpu0"]
    assert isinstance(device, MpsDevice)
    return device


def daemon(running: clover.Server) -> MpsControl:
    found = gpu(running).control
    assert found is not None
    return found


def workers(running: clover.Server) -> dict[int, str]:
    """Ready workers with their variant and profile, by process id."""
    found = running.engine.pick(None).fleet.describe()
    return {item["pid"]: f"{item['variant']}@{item['profile']}" for item in found if item["state"] == "ready"}


def chunks(running: clover.Server) -> list[int]:
    """Chunks of the static partitions, smallest first."""
    table = daemon(running).table(gpu(running).uuid)
    return sorted(partition.chunks for partition in table.partitions) if table is not None else []


async def change(running: clover.Server, groups: dict[str, int]) -> None:
    await running.engine.control().command("apply", {"configuration": groups, "force": True}, "a test")


def kept(found: dict[int, str]) -> list[str]:
    return sorted(found.values())


async def live(cache: Path) -> None:
    async with server(cache) as running:
        control, load = daemon(running), Load(running)
        say(event="start", workers=kept(workers(running)), chunks=chunks(running), report=gpu(running).report())
        for groups in (HALVES, MIXED):
            await change(running, groups)
            clients = sorted(control.clients())
            say(
                event="parted",
                workers=kept(workers(running)),
                chunks=chunks(running),
                clients=clients == sorted(workers(running)),
                failed=load.failed,
                reasons=load.reasons[:3],
            )

        # A fatal error of one client ends all of the GPU, idle ones included, and all come back.
        before = workers(running)
        control.ask(f"fault {next(pid for pid, name in before.items() if name == 'full@2of4')}")
        await until(lambda: len(workers(running)) == 3 and not set(before) & set(workers(running)), 40.0)
        asked = load.asked
        await until(lambda: load.asked > asked + 10)
        poisoned = running.engine.pick(None).router.traffic.poisoned
        say(
            event="fault",
            workers=kept(workers(running)),
            report=gpu(running).report()["mps"],
            poisoned=poisoned,
            failed=load.failed,
            reasons=load.reasons[:3],
        )

        # A worker that is ended by the server while it computes: its work is ended first, and its neighbours stay.
        before = workers(running)
        (victim,) = (pid for pid, name in before.items() if name == "full@2of4")
        pool = running.engine._pool
        (worker,) = (one for one in pool.workers if one.pid == victim)
        os.kill(victim, signal.SIGSTOP)  # it neither ends by itself nor leaves its batch
        worker.kill()
        await until(lambda: victim not in workers(running) and len(workers(running)) == 3, 40.0)
        say(
            event="killed",
            stayed=len(set(before) & set(workers(running))),
            faults=gpu(running).report()["mps"]["faults"],
            failed=load.failed,
            reasons=load.reasons[:3],
        )
        await load.end()
    say(event="end", asked=load.asked, failed=load.failed, daemon=control.runs())


async def found(cache: Path) -> None:
    """Serve beside a daemon of somebody else, in percentages, as it runs without static partitions."""
    choice = devices.parse(DEVICE)
    path = devices.box_path(choice, cache)
    boxes._enter(choice, cache)
    program = boxes._program(choice, path)
    theirs = MpsControl(Path(program.shared), Path(program.shared), program=program.program, environment={})
    theirs.start("", static=False)
    try:
        async with server(cache) as running:
            await change(running, HALVES)
            about = gpu(running).report()["mps"]
            (place, *_) = gpu(running).instances()
            say(
                event="found",
                workers=kept(workers(running)),
                report=about,
                clients=len(theirs.clients()),
                environment=gpu(running).environment(place),
                answered=await answers(running),
            )
        say(event="end", daemon=theirs.runs(), clients=len(theirs.clients()))
    finally:
        theirs.quit()


def main(cache: str, story: str) -> None:
    stories: dict[str, Any] = {"live": live, "found": found}
    asyncio.run(stories[story](Path(cache)))


if __name__ == "__main__":
    main(*sys.argv[1:])
