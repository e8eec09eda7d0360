"""A process that drives real workers on slices of an emulated box.

    python -m tests.support.emulated_worker FOLDER SCENARIO    or `main` in a fork

A process can use one box in its life, so every scenario is one process; it prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clover import devices, families, profiling
from clover.accounting import Account
from clover.config import FamilyConfig, ServerConfig, WorkersConfig
from clover.devices.mig import MigDevice
from clover.emulation import emulated
from clover.errors import DeviceError, WorkerError
from clover.runtime.served import Served
from clover.runtime.workers.pool import Pool, WorkerProcess
from clover.types import Assignment, FamilySpec, Placement
from clover.worker.frames import Resident, WorkerOrder
from tests.support import disturb

FAMILIES = Path(__file__).parents[1] / "families"
PACE_MS = (40.0, 47.0, 54.0, 61.0, 68.0, 75.0, 82.0, 89.0)
HEAVY = 256 << 20

BURDENS = """
name = "burdens"
max_batch = 8
inputs = [{ name = "x", datatype = "FP32", shape = [1] }]
outputs = [{ name = "y", datatype = "FP32", shape = [1] }]
[[variants]]
name = "late"
kind = "python"
loader = "burdens:late"
[[variants]]
name = "heavy"
kind = "python"
loader = "burdens:heavy"
"""
BURDENS_CODE = f"""
import time
import numpy as np

def late(variant, folder):
    def run(inputs):
        time.sleep(0.02)
        return inputs
    return run

def heavy(variant, folder):
    weights = np.ones({HEAVY}, np.uint8)
    return lambda inputs: inputs + [] * len(weights)
"""


def burdens(folder: Path) -> str:
    """A family that is slow, or that takes a quarter of a GiB."""
    home = folder / "burdens"
    home.mkdir()
    (home / "family.toml").write_text(BURDENS)
    (home / "burdens.py").write_text(BURDENS_CODE)
    return str(home)


def pace_file(folder: Path, spec: FamilySpec, drawn_watts: float) -> str:
    rows = [
        {"family": spec.name, "variant": v.name, "profile": p, "batch": b, "ms": PACE_MS[b - 1], "watts": 50.0}
        | {"drawn_watts": drawn_watts}
        for v in spec.variants
        for p in ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
        for b in (1, 8)
    ]
    path = folder / "pace.json"
    path.write_text(json.dumps({"method": "analytical", "source": "tests", "rows": rows}))
    return str(path)


class House:
    """An emulated box, a pool, and a family on both."""

    def __init__(self, folder: Path, family: str = "", *, gpus: int = 1) -> None:
        self.cache = folder / "cache"
        self.spec = families.load_family(family or str(FAMILIES / "toy"))
        self.config = ServerConfig(
            cache_dir=str(self.cache),
            workers=WorkersConfig(
                device=f"emulated:a100-40gb:{gpus}", backends=("eager",), pace=pace_file(folder, self.spec, 100.0)
            ),
        )
        self.devices = devices.build(self.config.workers, self.cache)
        gpu = self.devices["gpu0"]
        assert isinstance(gpu, MigDevice)
        self.gpu = gpu
        self.box = devices.box_path(devices.parse(self.config.workers.device), self.cache)
        self.pool = Pool()
        self.served = Served(
            self.spec,
            FamilyConfig(family=self.spec.name),
            pool=self.pool,
            devices=self.devices,
            account=Account(pue=1.0),
            workers=self.config.workers,
            cache=self.cache,
            loop=asyncio.get_running_loop(),
        )
        self.served.use(None, profiling.paces_of(self.spec, self.config))
        self.rung = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.pool.completions.fd, self._ring)
        self.number = 0

    def _ring(self) -> None:
        self.pool.completions.clear()
        self.rung.set()

    def order(self, place: Placement, variant: str = "full") -> WorkerOrder:
        return self.served.order(Assignment(placement=place, family=self.spec.name, variant=variant, backend="eager"))

    async def worker(
        self, place: Placement, variant: str = "full", also: tuple[Resident, ...] = (), **changes: Any
    ) -> WorkerProcess:
        order = self.order(place, variant)
        assert order.emulated is not None
        emulated = msgspec.structs.replace(order.emulated, **changes)
        return await self.pool.spawn(msgspec.structs.replace(order, emulated=emulated, also=also), self.served.slab)

    async def infer(self, worker: WorkerProcess, *slots: int, lane: int = 0) -> tuple[float, float]:
        """Run one batch; milliseconds it took and of CPU time."""
        self.number += 1
        if worker.ring.submit(self.number, np.array(slots, np.uint32), len(slots), lane) == 2:
            worker.bell()
        async with asyncio.timeout(20):
            while (done := worker.ring.reap()) is None:
                self.rung.clear()
                await self.rung.wait()
        batch, status, count, start_ns, end_ns, cpu_ns = done
        assert (batch, status, count) == (self.number, 0, len(slots))
        return (end_ns - start_ns) / 1e6, cpu_ns / 1e6

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pool.completions.fd)
        await self.pool.stop()
        self.served.close()
        devices.close(self.devices)


def place(profile: str, start: int, size: int) -> Placement:
    return Placement(device="gpu0", profile=profile, start=start, size=size)


async def destroyed(house: House, where: Placement) -> str:
    try:
        await house.gpu.destroy(where)
    except DeviceError as error:
        return str(error)
    return ""


async def holds(folder: Path) -> dict[str, Any]:
    """A worker holds its slice until it is gone, however it goes."""
    house = House(folder)
    house.gpu._work._back_off_s = (0.01, 0.01)  # a refusal is final sooner
    await house.pool.start()
    small, large = place("1g.5gb", 6, 1), place("3g.20gb", 0, 4)
    found: dict[str, Any] = {}
    try:
        for where in (small, large):
            await house.gpu.create(where)
        worker = await house.worker(small)
        beside = await house.worker(small)  # a swap: both on one instance
        found["held"] = await destroyed(house, small)
        found["quarantined"] = [item.id for item in (small,) if item not in house.gpu.instances()]
        await worker.drain_and_exit()
        found["held by one"] = await destroyed(house, small)
        os.kill(beside.pid, signal.SIGKILL)
        await beside.dead(5)
        found["after kill -9"] = await destroyed(house, small)
        found["left"] = [item.id for item in house.gpu.instances()]
        try:
            await house.worker(large, uuid="MIG-none")
        except WorkerError as error:
            found["no such slice"] = str(error)
    finally:
        await house.close()
    return found


async def answers(folder: Path) -> dict[str, Any]:
    """Outputs are the CPU's, times the slice's, watts the board's."""
    house = House(folder)
    await house.pool.start()
    where = place("2g.10gb", 2, 2)
    try:
        await house.gpu.create(where)
        inputs, _ = families.load_evaluation(house.spec, "held_out")
        slab = house.served.slab
        slab.input(0)[:16] = inputs[0][:16]
        cores = house.order(where)
        plain = await house.pool.spawn(msgspec.structs.replace(cores, emulated=None, place=""), slab)
        for first in (0, 8):
            await house.infer(plain, *range(first, first + 8))
        truth = slab.output(0)[:16].copy()
        slab.output(0)[:16] = 0
        worker = await house.worker(where)
        before_j = energy_j(house, where)
        timed = [await house.infer(worker, *range(first, first + 8)) for first in (0, 8)]
        timed.append(await house.infer(worker, 3))
        used_j = energy_j(house, where) - before_j
        await asyncio.sleep(0.05)
        idle_j = energy_j(house, where) - before_j - used_j
        same = bool((slab.output(0)[:16] == truth).all()) and bool(truth.any())
        slow = Resident(variant="half", backend="eager", pace_ms=(2 * PACE_MS[7],) * 8, watts=(200.0,) * 8)
        both = await house.worker(where, also=(slow,))
        before_j = energy_j(house, where)
        lanes = [await house.infer(both, *range(8), lane=lane) for lane in (1, 0, 1)]
        return {
            "lanes": [ms for ms, _ in lanes],
            "joules of lanes": energy_j(house, where) - before_j,
            "resident": both.resident,
            "same": same,
            "ms": [ms for ms, _ in timed],
            "cpu_ms": [cpu for _, cpu in timed],
            "joules": used_j,
            "idle joules": idle_j,
            "visible": cores.visible_devices,
            "paced": list(cores.emulated.pace_ms) if cores.emulated else [],
        }
    finally:
        await house.close()


def energy_j(house: House, where: Placement) -> float:
    import ctypes

    library = emulated._functions(str(emulated.library()))
    microjoules = ctypes.c_ulonglong()
    assert library.clover_nvml_slice_energy(house.gpu.visible(where).encode(), ctypes.byref(microjoules)) == 0
    return microjoules.value / 1e6


async def bounds(folder: Path) -> dict[str, Any]:
    """Memory is the slice's; a slow CPU is told of; a lost GPU ends its workers and blames no request."""
    house = House(folder, burdens(folder))
    await house.pool.start()
    where = place("1g.5gb", 0, 1)
    found: dict[str, Any] = {}
    try:
        await house.gpu.create(where)
        order = house.order(where, "heavy")
        assert order.emulated is not None
        found["memory"] = order.emulated.memory_bytes
        roomy = await house.worker(where, "heavy", memory_bytes=2 * HEAVY)
        await roomy.drain_and_exit()
        try:
            await house.worker(where, "heavy", memory_bytes=HEAVY // 2)
        except WorkerError as error:
            found["misfit"] = str(error)
        room = Resident(variant="heavy", backend="eager", pace_ms=(10.0,) * 8, watts=(1.0,) * 8)
        crowded = await house.worker(where, "late", (room,), memory_bytes=HEAVY // 2)
        found["left out"] = [crowded.resident, crowded.left_out.get("heavy", "")]
        await house.infer(crowded, 0)
        await crowded.drain_and_exit()
        hurried = await house.worker(where, "late", pace_ms=(10.0,) * 8)
        timed = []
        loop = asyncio.get_running_loop()
        until = loop.time() + 15
        while not hurried.overruns and loop.time() < until:
            timed.append((await house.infer(hurried, *range(8)))[0])
            await asyncio.sleep(0.1)
        found["overruns"] = [hurried.overruns, hurried.paced_batches, min(timed)]
        worker = await house.worker(where, "late")
        deaths: list[str] = []
        died = asyncio.Event()

        def on_death(_: WorkerProcess, reason: str) -> None:
            deaths.append(reason)
            died.set()

        worker.on_death = on_death
        disturb.lose(house.box, 0)
        house.number += 1
        if worker.ring.submit(house.number, np.array([1], np.uint32), 1) == 2:
            worker.bell()
        await asyncio.wait_for(died.wait(), 10)
        found["lost"] = [*deaths, worker.device_lost, worker.ring.reap()]
    finally:
        await house.close()
    return found


async def many(folder: Path) -> dict[str, Any]:
    """How long dozens of workers take, and what memory they take together; for people to look at."""
    house = House(folder, "fashion", gpus=10)
    await house.pool.start()
    try:
        places = [
            Placement(device=f"gpu{gpu}", profile="1g.5gb", start=start, size=1)
            for gpu in range(10)
            for start in range(7)
        ]
        for where in places:
            await house.devices[where.device].create(where)
        began = time.monotonic()
        workers = await asyncio.gather(*(house.worker(where, "xlarge") for where in places))
        seconds = time.monotonic() - began
        return {
            "seconds": seconds,
            "slowest_ms": max(worker.ready_ms for worker in workers),
            "pss_mb": sum(memory_mb(worker.pid, "Pss:") for worker in workers),
            "own_mb": sum(memory_mb(worker.pid, "Private_Dirty:") for worker in workers),
        }
    finally:
        await house.close()


def memory_mb(pid: int, what: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {what}")


SCENARIOS: dict[str, Callable[[Path], Awaitable[dict[str, Any]]]] = {
    "holds": holds,
    "answers": answers,
    "bounds": bounds,
    "many": many,
}


def main(folder: str, scenario: str) -> None:
    """Play a scenario and print what it found."""
    print(json.dumps(asyncio.run(SCENARIOS[scenario](Path(folder)))))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
