"""Two emulated A100s at work, in a process of their own, since a process has one NVML for life.

    python -m tests.support.energy_scene FOLDER work SEED
    python -m tests.support.energy_scene FOLDER awake SEED
    python -m tests.support.energy_scene FOLDER trouble

"work": workers on MIG slices draw power as real ones would; the production meters read the boards' counters and the
production account splits them.  `gpu0` draws what the profile says; on `gpu1` every variant draws up to 20 % more or
less, which neither meter nor account is told.  What each slice truly drew comes from the emulator.  The clock of the
box is moved ahead from event to event, so minutes take a second.  These boards are exact: no context draws anything,
and their counters have no grain.

"awake": the same on boards as real ones are, with the price of a context measured while the workers rest.

"trouble": a meter of a board that hangs, is lost and comes back, and meters of boards that show less than all.

Both print what was found as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import json
import os
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from clover import devices, energy
from clover.accounting import Account, ProfiledEnergy, WorkerMeter
from clover.config import EnergyConfig, WorkersConfig
from clover.emulation import emulated
from clover.errors import DeviceError
from clover.types import Placement, Reading
from tests.support import disturb

COUNTER = "nvmlDeviceGetTotalEnergyConsumption"
DEVICE = "emulated:a100-40gb:2"
SPREAD = 0.2
SECONDS = 240.0
WINDOW_S = 10.0
ROWS = 8
WATTS = {"small": 14.0, "medium": 19.0, "large": 25.0}  # above idle, by compute slice
WORK_S = {"small": 1.0, "medium": 2.0, "large": 4.0}  # of a batch on one compute slice
REST_S = 0.6
GRID = Reading(g_per_kwh=300.0, at_s=0.0, provider="test")
LAYOUT = (("3g.20gb", 0, 4, "large"), ("2g.10gb", 4, 2, "medium"), ("1g.5gb", 6, 1, "small"))
SWAP_S, SWAP_TO = SECONDS / 2, "small"  # then the slice of two changes its variant

_ahead_s = 0.0


def now_ns() -> int:
    """The clock of the box."""
    return time.monotonic_ns() + round(_ahead_s * 1e9)


def go_to(box: Path, at_ns: int) -> None:
    """Let the box's time pass until `at_ns`."""
    global _ahead_s
    ahead_s = (at_ns - now_ns()) / 1e9
    if ahead_s > 0:
        disturb.advance(box, ahead_s)
        _ahead_s += ahead_s


class Worker:
    """One variant on one slice: it works on a batch, rests, and works on."""

    def __init__(self, box: Path, device: Any, place: Placement, variant: str, factor: float, account: Account) -> None:
        self.place = place
        self.uuid = device.visible(place)
        self.work_s = WORK_S[variant] / place.slices
        modelled_w = WATTS[variant] * place.slices
        self.draws_w = modelled_w * factor
        self.busy_since_ns = 0
        self.slice = emulated.Attachment(str(emulated.library()), str(box.resolve()), self.uuid)
        self.meter = account.attach(
            WorkerMeter(
                family="toy",
                variant=variant,
                device=place.device,
                placement=place.id,
                slices=place.slices,
                profiled=ProfiledEnergy([modelled_w * self.work_s / max(rows, 1) for rows in range(ROWS + 1)]),
            )
        )

    def turn(self) -> None:
        """From rest to work, or back."""
        if self.busy_since_ns:
            self.slice.draw(0.0)
            self.meter.add(ROWS, now_ns() - self.busy_since_ns, 0)
            self.busy_since_ns = 0
        else:
            self.slice.draw(self.draws_w)
            self.busy_since_ns = now_ns()

    def leave(self, account: Account) -> None:
        if self.busy_since_ns:
            self.turn()
        self.slice.close()
        account.detach(self.meter)


def drawn_j(uuid: str) -> float:
    """What the slice truly drew above idle."""
    microjoules = ctypes.c_ulonglong()
    library = ctypes.CDLL(str(emulated.library()))
    assert library.clover_nvml_slice_energy(uuid.encode(), ctypes.byref(microjoules)) == 0
    return microjoules.value / 1e6


def machine(folder: Path, power: emulated.BoardPower) -> tuple[Path, dict[str, Any]]:
    """Make the boards; return the box and the devices."""
    choice = devices.parse(DEVICE)
    box = devices.box_path(choice, folder)
    emulated.create_box(box, choice.name, choice.count, power=power)
    return box, dict(devices.build(WorkersConfig(device=DEVICE), folder))


async def work(folder: Path, seed: int, power: emulated.BoardPower = emulated.EXACT) -> dict[str, Any]:
    luck = random.Random(seed)
    box, boards = machine(folder, power)
    account = Account(pue=1.0)
    meters = []
    for name, gpu in boards.items():
        ours = energy.OurWork(partial(account.busy_ns, name), lambda: frozenset({os.getpid()}), lambda pid: True)
        meter = await energy.build_gpu(gpu.session, gpu, EnergyConfig(), work=ours, clock=now_ns)
        assert isinstance(meter, energy.NvmlMeter)
        meter._patience_s = 60.0  # of real time, however busy the machine is
        meters.append(meter)
    for name, gpu in boards.items():
        account.add_device(name, gpu.shape().slices)
    for meter in meters:
        account.close_window(meter.sample(now_ns()), GRID)
    hidden = {variant: 1.0 + luck.choice((-SPREAD, SPREAD, luck.uniform(-SPREAD, SPREAD))) for variant in WATTS}
    start_ns = now_ns()
    workers: list[Worker] = []
    left: list[Worker] = []
    events: list[tuple[int, int, Worker]] = []
    for name, gpu in boards.items():
        for profile, start, size, variant in LAYOUT:
            place = Placement(device=name, profile=profile, start=start, size=size)
            await gpu.create(place)
            factor = 1.0 if name == "gpu0" else hidden[variant]
            workers.append(Worker(box, gpu, place, variant, factor, account))
    for meter in meters:
        await meter.measure_resident()
        while not meter.idle.awake:  # a look may come to nothing on a busy machine, or within a grain of the counter
            go_to(box, now_ns() + 2 * 10**8)
            await meter.refresh()
        account.close_window(meter.sample(now_ns()), GRID)
    first = {name: dict(line) for name, line in account.devices().items()}
    order = 0
    for worker in workers:
        order += 1
        events.append((start_ns + round(luck.uniform(0, REST_S) * 1e9), order, worker))
    heapq.heapify(events)

    async def close_windows() -> None:
        for meter in meters:
            await meter.refresh()
            account.close_window(meter.sample(now_ns()), GRID)

    end_ns, window_ns, swap_ns = (start_ns + round(s * 1e9) for s in (SECONDS, WINDOW_S, SWAP_S))
    swapped = False
    while events[0][0] < end_ns:
        at_ns, _, worker = heapq.heappop(events)
        while window_ns <= at_ns:
            go_to(box, window_ns)
            await close_windows()
            window_ns += round(WINDOW_S * 1e9)
        go_to(box, at_ns)
        if not swapped and at_ns >= swap_ns:
            swapped = True
            for old in [item for item in workers if item.place.profile == "2g.10gb"]:
                factor = 1.0 if old.place.device == "gpu0" else hidden[SWAP_TO]
                old.leave(account)
                workers.remove(old)
                left.append(old)
                workers.append(Worker(box, boards[old.place.device], old.place, SWAP_TO, factor, account))
                order += 1
                events.append((at_ns, order, workers[-1]))
            events = [event for event in events if event[2] in workers]
            heapq.heapify(events)
            if worker not in workers:
                continue
        worker.turn()
        pause_s = worker.work_s if worker.busy_since_ns else luck.expovariate(1 / REST_S)
        order += 1
        heapq.heappush(events, (at_ns + round(pause_s * 1e9), order, worker))
    go_to(box, end_ns)
    for worker in workers:
        if worker.busy_since_ns:
            worker.turn()
    await close_windows()
    placed: dict[tuple[str, bool], float] = {}
    for key, line in account.booked.items():
        where = (key.placement, key.line == "active")
        placed[where] = placed.get(where, 0.0) + line.joules
    found = {
        "lines": account.devices(),
        "first": first,
        "methods": sorted({key.method for key in account.booked}),
        "why": [meter.why for meter in meters],
        "hidden": hidden,
        "slices": {
            worker.place.id: {
                "device": worker.place.device,
                "true_j": drawn_j(worker.uuid),
                "attributed_j": placed[worker.place.id, True],
                "idle_j": placed[worker.place.id, False],
                "modelled_j": sum(
                    item.meter.modelled_j for item in (*workers, *left) if item.place.id == worker.place.id
                ),
            }
            for worker in workers
        },
    }
    for worker in workers:
        worker.leave(account)
    devices.close(boards)
    return found


async def trouble(folder: Path) -> dict[str, Any]:
    start_s = time.monotonic()
    box, boards = machine(folder, emulated.EXACT)
    gpu, account = boards["gpu0"], Account(pue=1.0)
    place = Placement(device="gpu0", profile="7g.40gb", start=0, size=8)
    meter = await energy.build_gpu(gpu.session, gpu, EnergyConfig(), clock=now_ns)
    account.add_device("gpu0", 7)
    account.close_window(meter.sample(now_ns()), GRID)
    await gpu.create(place)
    slice_ = emulated.Attachment(str(emulated.library()), str(box.resolve()), gpu.visible(place))
    slice_.draw(100.0)
    found: dict[str, Any] = {}

    async def look(name: str, seconds: float, other: energy.GpuMeter | None = None) -> None:
        """Let time pass, and note what the meter says then and how the account stands."""
        go_to(box, now_ns() + round(seconds * 1e9))
        used = other or meter
        await used.refresh()
        sample = used.sample(now_ns())
        assert isinstance(used, energy.NvmlMeter)
        found[name] = {"state": used.state, "total_j": sample.total_j, "epoch": sample.epoch, "why": used.why}
        if other is None:
            account.close_window(sample, GRID)
            found[name] |= account.devices()["gpu0"]

    await look("well", 10)
    disturb.inject(box, disturb.Fault(symbol=COUNTER, error="STUCK"))
    await look("hangs", 1)  # the first reading of a board that hangs is a good one
    await look("still hangs", 11)
    disturb.clear_faults(box)
    await look("moves again", 0)
    disturb.lose(box, 0)
    await look("lost", 20)
    disturb.restore(box, 0)
    await look("back", 0)
    slice_.close()

    disturb.inject(box, disturb.Fault(symbol=COUNTER, error="NOT_SUPPORTED", count=0))
    busy_ns = 0
    work = energy.OurWork(busy_ns=lambda: busy_ns, workers=frozenset, owns=lambda pid: True)
    power = await energy.build_gpu(gpu.session, gpu, EnergyConfig(), clock=now_ns, work=work)
    await gpu.reconcile()
    await gpu.create(place)
    slice_ = emulated.Attachment(str(emulated.library()), str(box.resolve()), gpu.visible(place))
    await look("power at rest", 8, power)
    slice_.draw(100.0)
    await look("power at a step", 0, power)
    for _ in range(10):
        busy_ns += 10**9
        await look("power at work", 1, power)
    disturb.inject(box, disturb.Fault(symbol="nvmlDeviceGetPowerUsage", error="STUCK"))
    for second in range(12):
        busy_ns += second % 2 * 10**9
        await look("power hangs", 1, power)
    disturb.clear_faults(box)
    disturb.inject(box, disturb.Fault(symbol="nvmlDeviceGet*", error="NOT_SUPPORTED", count=0, gpu=1))
    for name, gpu in boards.items():
        if name == "gpu0":
            disturb.lose(box, 0)
        try:
            await energy.build_gpu(gpu.session, gpu, EnergyConfig(gpu_meter="nvml"), clock=now_ns)
        except DeviceError as error:
            found[f"start of {name}"] = str(error)
    modelled = await energy.build_gpu(gpu.session, gpu, EnergyConfig(), clock=now_ns)
    go_to(box, now_ns() + 10 * 10**9)
    await modelled.refresh()
    found["modelled"] = {"why": modelled.why, **msgspec.to_builtins(modelled.sample(now_ns()))}
    slice_.close()
    devices.close(boards)
    found["slack_s"] = time.monotonic() - start_s  # the box's clock went on by itself for so long
    return found


if __name__ == "__main__":
    folder, what, *seed = sys.argv[1:]
    if what == "trouble":
        scene = trouble(Path(folder))
    else:
        scene = work(Path(folder), int(*seed), emulated.EXACT if what == "work" else emulated.LIFELIKE)
    print(json.dumps(asyncio.run(scene)))
