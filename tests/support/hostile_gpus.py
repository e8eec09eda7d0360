"""Servers on emulated GPUs that the field does not treat well, each in a process of its own (see `mig_server`).

    python -m tests.support.hostile_gpus CACHE mig         a monitor that holds instances, GPUs that are lost in every
                                                           way, critical errors
    python -m tests.support.hostile_gpus CACHE exclusive   a GPU without MIG that takes one process, then none
    python -m tests.support.hostile_gpus CACHE laptop      a GPU that sleeps, and shows no energy, power or limit

Clients ask all the while.  Prints one JSON object a line; the tests read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import clover.server
from clover import devices
from clover.control import controller
from clover.devices.mig import MigDevice
from clover.emulation import emulated
from clover.errors import CloverError
from tests.support import disturb, mig_server
from tests.support.mig_server import BASE, BOX, MIXED, Load, gpu, say, settled, standing, until
from tests.support.scene_policies import BestOnAGpu, policy_name

PLAIN = "rtx-4090"
SHORT_WAITS_S = (0.02, 0.04)


def monitor(state: Path) -> int:
    """Start a monitor that this process is no ancestor of, and return its process id once it holds the instances."""
    command = f"{sys.executable} -m tests.support.disturb {state} nv-hostengine & echo $!"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        assert "holds the instances" in shell.stdout.readline()
        return pid


def only_on(running: clover.Server, device: str) -> bool:
    ready = running.engine.pick(None).fleet.ready_assignments()
    return bool(ready) and all(item.placement.device == device for item in ready)


async def change(running: clover.Server, groups: dict[str, int]) -> str:
    """Ask for another configuration; "" or why it was not reached."""
    try:
        await running.engine.control().command("apply", {"configuration": groups, "force": True}, "a test")
    except CloverError as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def mig(cache: Path) -> None:
    state = cache / "emulated" / f"{BOX}-2.nvml"
    async with mig_server.server(cache) as running:
        for device in running.engine.devices.values():
            assert isinstance(device, MigDevice)
            device._work._back_off_s = SHORT_WAITS_S
        load = Load(running)
        holder = monitor(state)
        try:
            outcome = await change(running, MIXED)
            say(event="monitor", outcome=outcome, failed=load.failed, **standing(running))
        finally:
            os.kill(holder, signal.SIGTERM)
        await settled(running, MIXED)
        say(event="monitor stopped", failed=load.failed, **standing(running))
        await settled(running, BASE)
        for error in disturb.LOSSES:
            disturb.lose(state, 1, error)
            await lost(running, load, error)
            disturb.restore(state, 1)
            await settled(running, BASE)
        disturb.report_xid(state, 1, 95)  # and it still answers
        await lost(running, load, "Xid 95")
        disturb.lose(state, 1)
        await until(lambda: not gpu(running, "gpu1")._reports.condemned)
        disturb.restore(state, 1)
        await settled(running, BASE)
        await load.end()
        say(event="end", asked=load.asked, failed=load.failed, reasons=load.reasons[:3], **standing(running))


async def lost(running: clover.Server, load: Load, how: str) -> None:
    """Wait until gpu1 is known to be lost and given up, and say how the service goes on."""
    await until(lambda: gpu(running, "gpu1").lost)
    await until(lambda: only_on(running, "gpu0"))
    asked = load.asked
    await until(lambda: load.asked >= asked + 5)
    say(event="lost", how=how, failed=load.failed, reasons=load.reasons[:3], **standing(running))


async def exclusive(cache: Path) -> None:
    state = devices.box_path(devices.parse(f"emulated:{PLAIN}:1"), cache)
    emulated.create_box(state, PLAIN, 1)
    disturb.set_compute_mode(state, 0, "exclusive")
    settings: dict[str, Any] = {
        "device": f"emulated:{PLAIN}:1",
        "policy": policy_name(BestOnAGpu),
        "relief": "half",
        "allow_capacity_loss": True,  # nothing serves between the old worker's end and the new one's start
    }
    async with mig_server.server(cache, **settings) as running:
        load = Load(running)
        outcomes = []
        for groups in ({"half@gpu": 1}, {"full@gpu": 1}):
            outcomes.append(await change(running, groups))
            outcomes += [item.variant for item in running.engine.pick(None).fleet.ready_assignments()]
        await load.end()
        shape = running.engine.devices["gpu0"].shape()
        spawned = running.engine.pick(None).fleet.members.spawned
        standbys = [item.variant for item, member in spawned.items() if member.standby]
        say(event="exclusive", outcomes=outcomes, one_process=shape.one_process, standbys=standbys)
        say(event="end", asked=load.asked, failed=load.failed, reasons=sorted(set(load.reasons)))
    disturb.set_compute_mode(state, 0, "prohibited")
    try:
        async with mig_server.server(cache, **settings):
            say(event="prohibited", refused="")
    except CloverError as error:
        say(event="prohibited", refused=str(error))


async def laptop(cache: Path) -> None:
    state = devices.box_path(devices.parse("emulated:laptop:1"), cache)
    emulated.create_box(state, "laptop", 1)
    disturb.advance(state, 60.0)  # it sleeps
    policy = policy_name(BestOnAGpu)
    async with mig_server.server(cache, device="emulated:laptop:1", policy=policy) as running:
        load = Load(running)
        await until(lambda: load.asked > 30)
        await load.end()
        await until(lambda: float(running.engine.account.devices()["gpu0"]["active_j"]) > 0.0)
        line = running.engine.account.devices()["gpu0"]
        about = running.engine.machine.about("gpu0")
        say(event="laptop", asked=load.asked, failed=load.failed, line=line, meter=about["meter"])


def main(cache: str, story: str) -> None:
    controller.INTERVAL_S = 0.1
    with contextlib.suppress(KeyboardInterrupt):
        stories = {"mig": mig, "exclusive": exclusive, "laptop": laptop}
        asyncio.run(stories[story](Path(cache)))


if __name__ == "__main__":
    main(*sys.argv[1:])
