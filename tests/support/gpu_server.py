"""Servers on emulated GPUs, each in a process of its own: NVML is one library a process.

    python -m tests.support.gpu_server CACHE parked    one family on three A30s: parked, lost and woken
    python -m tests.support.gpu_server CACHE shared    two families on one A30

Prints one JSON object; the tests read it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clover.config import CarbonConfig, ControllerConfig, FamilyConfig, ServerConfig, WorkersConfig
from clover.control import controller as looks
from clover.devices.mig import MigDevice
from clover.errors import CloverError
from clover.server.server import Server
from tests.support import disturb
from tests.support.mig_server import TOY, Load, answers, until

BOX = "a30-24gb"


def server(cache: Path, gpus: int, *names: str, **controller: Any) -> Server:
    settings = {"policy": "objective", "objective": "floor", "cascade": False, "waits": False, **controller}
    families = tuple(FamilyConfig(family=TOY, name=name, slo_ms=5_000.0, accuracy_floor=1.0) for name in names)
    config = ServerConfig(
        families=families,
        workers=WorkersConfig(device=f"emulated:{BOX}:{gpus}", backends=("eager",)),
        carbon=CarbonConfig(source="static:300"),
        controller=ControllerConfig(verify_s=0.2, **settings),
        cache_dir=str(cache),
        state_dir=str(cache),
    )
    return Server(config=config, http=False)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def pids_on(running: Server, name: str = "") -> dict[str, list[int]]:
    """Processes of workers by device."""
    found: dict[str, list[int]] = {}
    for worker in running.engine.pick(name or None).fleet.describe():
        found.setdefault(worker["device"], []).append(worker["pid"])
    return found


def instances(running: Server) -> dict[str, list[str]]:
    return {
        name: sorted(place.id for place in device.instances())
        for name, device in running.engine.devices.items()
        if isinstance(device, MigDevice)
    }


def devices(running: Server) -> dict[str, dict[str, Any]]:
    return {item["device"]: item for item in running.engine.control().state()["devices"]}


async def parked(cache: Path) -> dict[str, Any]:
    """Three GPUs, of which the load needs one."""
    async with server(cache, 3, "toy", sleep_after_s=0.5) as running:
        load = Load(running)
        before = pids_on(running)
        await until(lambda: sum(item["parked"] for item in devices(running).values()) == 2, 60.0)
        state = devices(running)
        gone = [pid for name, pids in before.items() if state[name]["parked"] for pid in pids]
        await until(lambda: not any(map(alive, gone)))
        found = {"awake_at_first": len(before), "gone": len(gone), "state": state, "standing": instances(running)}
        found["detail"] = running.engine.controller.decisions(1)[0]["detail"]
        found["metrics"] = [
            line for line in running.engine.metrics().decode().splitlines() if line.startswith("clover_device_parked")
        ]
        (busy,) = (name for name, item in state.items() if not item["parked"])
        asked, failed = load.asked, load.failed
        disturb.lose(cache / "emulated" / f"{BOX}-3.nvml", int(busy.removeprefix("gpu")))
        await until(lambda: devices(running)[busy]["lost"] and not devices(running)[busy]["layout"], 60.0)
        await until(lambda: pids_on(running), 60.0)
        await until(lambda: load.asked > asked + 20, 60.0)
        found["woken"] = sorted(name for name, item in devices(running).items() if item["layout"])
        found |= {"busy": busy, "failed_before": failed, "failed": load.failed, "reasons": load.reasons[:3]}
        await load.end()
        return found


async def shared(cache: Path) -> dict[str, Any]:
    """One GPU for two families, of which one is changed while the other answers."""
    async with server(cache, 1, "one", "two", allow_capacity_loss=True) as running:
        load = Load(running, "two")
        found: dict[str, Any] = {"state": devices(running), "standing": instances(running)}
        untouched = pids_on(running, "two")
        control = running.engine.control()
        changes = []
        for groups in ({"half@2g.12gb": 1}, {"half@1g.6gb": 2}):
            order = {"model": "one", "configuration": groups, "force": True}
            await control.command("apply", order, "a test")
            changes.append(instances(running)["gpu0"])
        found["answered"] = await answers(running, "one")
        await until(lambda: load.asked > 20)
        found |= {"changes": changes, "untouched": untouched == pids_on(running, "two")}
        found |= {"failed": load.failed, "reasons": load.reasons[:3]}
        await load.end()
        return found


def main(cache: str, story: str) -> None:
    looks.INTERVAL_S = 0.1
    stories: dict[str, Callable[[Path], Any]] = {"parked": parked, "shared": shared}
    began_s = time.monotonic()
    try:
        found = asyncio.run(stories[story](Path(cache)))
    except CloverError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps({**found, "seconds": time.monotonic() - began_s}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
