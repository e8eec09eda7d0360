"""A server whose two variants do not fit into a slice together, in a process of its own, as an emulated box needs.

    python -m tests.support.memory_full FOLDER cpu         one core, where the memory of a worker is limited
    python -m tests.support.memory_full FOLDER emulated    seven slices of an emulated A100, of 4.75 GiB each

It serves `light`, is made to serve `bulk` and `light` again while clients ask, and prints as one JSON object what it
planned, what happened, and when each process began and ended.  On the core less memory is given afterwards, so that
`bulk` does not even fit alone, and is asked for twice.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import clover.server
from clover.control import controller
from clover.errors import CloverError, RequestError
from clover.profiling import stored
from clover.runtime.workers.pool import Pool, WorkerProcess
from tests.support.scene_policies import LightEverywhere, policy_name
from tests.support.servers import SHORT

TOY = Path(__file__).parents[1] / "families" / "toy"
BALLAST = """\
import torch

from . import model

def load(variant, folder):
    found = model.load(variant, folder)
    found.register_buffer("ballast", torch.empty(int(variant.parameters["mib"]) << 20, dtype=torch.uint8))
    return found
"""
VARIANT = """
[[variants]]
name = "{name}"
loader = "ballast:load"
parameters = {{ seen = {seen}, layers = {layers}, mib = {mib} }}
"""
SCENES: dict[str, dict[str, Any]] = {
    "cpu": {"profile": "1c", "count": 1, "device": "cpu", "cores": "0"},
    "emulated": {"profile": "1g.5gb", "count": 7, "device": "emulated:a100-40gb:1"},
}
SLICE_MIB = 2400
"""What each variant holds on an emulated slice: more than half.  Nothing touches it, so a small machine will do."""
SPARE_MIB = 190


def family(folder: Path, light_mib: int, bulk_mib: int) -> str:
    """Write the family: `toy` with ballast, under the names `bulk` and `light`."""
    home = folder / "bulky"
    shutil.copytree(TOY, home)
    text = (home / "family.toml").read_text().replace('name = "toy"', 'name = "bulky"')
    head, _, rest = text.partition("[[variants]]")
    tail = rest[rest.index("[evaluation]") :]
    variants = VARIANT.format(name="light", seen=2, layers=1, mib=light_mib)
    variants += VARIANT.format(name="bulk", seen=4, layers=8, mib=bulk_mib)
    (home / "family.toml").write_text(head + variants + "\n" + tail)
    (home / "ballast.py").write_text(BALLAST)
    return str(home)


def mapped_mib() -> int:
    """Return the MiB of addresses of a process that has imported torch: of this one, whose forks zygotes are."""
    import torch  # noqa: F401

    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() >> 20


class Clients:
    """Ask one row after another, and count how that ends: by variant, or by the status of the error."""

    def __init__(self, server: clover.Server) -> None:
        self.ends: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._server = server
        self._tasks = [asyncio.ensure_future(self._ask()) for _ in range(3)]

    async def _ask(self) -> None:
        row = np.array([[0.1, 0.2, 3.0, 0.4]], np.float32)
        while True:
            began_s = time.monotonic()
            try:
                answer = await self._server.ainfer({"INPUT0": row})
                self.ends[answer.receipt.variant] += 1
            except RequestError as error:
                self.ends[str(error.status)] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def watch_processes(lives: list[dict[str, Any]]) -> None:
    """Note in `lives` when each worker was ordered and when it had ended (monotonic seconds)."""
    spawn, forget = Pool.spawn, Pool.forget

    async def spawned(self: Pool, order: Any, *args: Any, **named: Any) -> WorkerProcess:
        life = {"variant": order.variant, "place": order.place, "began_s": time.monotonic(), "ended_s": None}
        lives.append(life)
        worker = await spawn(self, order, *args, **named)
        life["pid"] = worker.pid
        life["resident"] = sorted(worker.resident)
        life["ready_s"] = time.monotonic()
        return worker

    def forgot(self: Pool, worker: WorkerProcess, completed: int) -> None:
        forget(self, worker, completed)
        for life in lives:
            if life.get("pid") == worker.pid:
                life["ended_s"] = time.monotonic()

    Pool.spawn = spawned  # type: ignore[method-assign]
    Pool.forget = forgot  # type: ignore[method-assign]


def settings_of(what: str, folder: Path) -> tuple[str, dict[str, Any], int]:
    """Return the family and the settings of a scene, and the bytes that let only `light` start (0: none)."""
    scene = {key: value for key, value in SCENES[what].items() if key in ("device", "cores")}
    if what == "emulated":
        return family(folder, SLICE_MIB, SLICE_MIB), scene, 0
    mapped = mapped_mib()
    bulk = max(1200, mapped * 9 // 10 + 600)  # so that both are more than 92 % of what one of them needs as addresses
    light = bulk - 400
    scene["memory_bytes"] = mapped + bulk + SPARE_MIB << 20
    return family(folder, light, bulk), scene, mapped + light + SPARE_MIB << 20


async def pin(server: clover.Server, variant: str, scene: dict[str, Any]) -> dict[str, Any]:
    """Have one variant served on all slices; return what became of it."""
    control, began_s, error = server.engine.control(), time.monotonic(), ""
    wanted = {f"{variant}@{scene['profile']}": scene["count"]}
    try:
        await control.command("pin", {"configuration": wanted, "force": True}, "a test")
    except CloverError as refusal:
        error = str(refusal)
    decision = json.loads(control.decisions_json(1))[0]
    inputs = {key: decision["inputs"].get(key) for key in ("memory", "loses_s", "loses_how", "lowest_capacity")}
    return {"error": error, "action": decision["action"], "took_s": time.monotonic() - began_s, **inputs}


async def exchange(folder: Path, what: str) -> dict[str, Any]:
    """Swap and swap back while clients ask."""
    scene = SCENES[what]
    lives: list[dict[str, Any]] = []
    watch_processes(lives)
    served, settings, too_little = settings_of(what, folder)
    async with clover.Server(
        served,
        http=False,
        cache_dir=str(folder / "cache"),
        profile="wait",
        backends=("eager",),
        policy=policy_name(LightEverywhere),
        slo_ms=10_000.0,
        waits=False,
        accuracy_floor=1.0,
        carbon="static:300",
        allow_capacity_loss=True,
        energy_meter="modelled",
        verify_s=0.2,
        **settings,
    ) as server:
        first = len(lives) - scene["count"]
        clients = Clients(server)
        swaps = []
        for variant in ("bulk", "light"):
            await asyncio.sleep(0.3)
            swaps.append(await pin(server, variant, scene))
        await asyncio.sleep(0.3)
        found: dict[str, Any] = {"swaps": swaps, "slowest_s": clients.slowest_s, "lives": lives[first:]}
        if too_little:
            house = server.engine.pick(None)
            house._workers = msgspec.structs.replace(house._workers, memory_bytes=too_little)
            found["misfits"] = []
            for _ in range(2):
                before = len(lives)
                swaps_failed = await pin(server, "bulk", scene)
                tried = [life["variant"] for life in lives[before:]]
                found["misfits"].append({**swaps_failed, "tried": tried})
            await asyncio.sleep(1.0)  # ten looks of the controller
            found["tried_at_all"] = [life["variant"] for life in lives[first:]]
        await clients.end()
        state = server.engine.control().state()["models"]["bulky"]
        return {**found, "ends": dict(clients.ends), "refused": state["refused"]}


def main(folder: str, what: str) -> None:
    controller.INTERVAL_S = 0.1
    setattr(stored, "QUICK", SHORT)  # noqa: B010  (it is not exported)
    print(json.dumps(asyncio.run(exchange(Path(folder), what))))


if __name__ == "__main__":
    main(*sys.argv[1:])
