"""The devices of a server over its life, on an emulated box; in processes of their own, as a process has one driver."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from clover import energy
from clover.accounting import Account
from clover.config import ServerConfig, WorkersConfig
from clover.devices.guard import GpuPolls
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.energy import NvmlMeter
from clover.energy.board_idle import BoardIdle
from clover.errors import DeviceError
from clover.server.machine import Machine, spared
from clover.types import EnergySample, Reading
from tests.support.fake_nvml import Board, FakeNvml

ROOT = Path(__file__).resolve().parents[3]


class Idle(NvmlMeter):
    """A counter's meter that knows what a context costs; `awake`: whether others are on the GPU."""

    def __init__(self, awake: bool) -> None:
        self.method = "measured"
        self.idle = BoardIdle(50.0)
        self.idle.set_resident(90.0)
        self._awake = awake

    @property
    def kept_awake(self) -> bool:
        return self._awake


def test_a_gpu_that_others_keep_awake_spares_nothing() -> None:
    config = WorkersConfig(sleep="park")
    assert spared(config, Idle(False), 0) == (40.0, "measured")
    assert spared(config, Idle(True), 0) == spared(config, Idle(False), 6) == (0.0, "modelled")
    assert spared(msgspec.structs.replace(config, sleep="off"), Idle(True), 6) == (None, "none")


def test_what_profiling_kept_is_read_once_and_not_while_gpus_are_watched() -> None:
    class Gpu:
        name, uuid = "gpu0", "GPU-1"

        async def poll(self) -> bool:
            return False

    read: list[str] = []
    machine: Any = Machine.__new__(Machine)
    machine.core_idle, machine._retry_s, machine.gpus, machine.meters = None, math.inf, [Gpu()], {"gpu0": Idle(False)}
    machine._idles = SimpleNamespace(restore=lambda uuid, meter: read.append(uuid))
    machine._polls = GpuPolls()
    asyncio.run(machine.watch())
    assert read == []
    machine.use_context_power()
    assert read == ["GPU-1"]


def test_a_gpu_whose_driver_hangs_holds_up_no_other_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Nvml] = []

    async def meter(session: Nvml, gpu: Any, config: Any, work: Any) -> Any:
        sessions.append(session)
        return SimpleNamespace(method="measured", why="")

    monkeypatch.setattr(energy, "build_gpu", meter)
    session, go = Nvml(FakeNvml(Board(), Board())), threading.Event()
    machine: Any = Machine.__new__(Machine)
    shape = SimpleNamespace(label="")
    machine.gpus = [
        SimpleNamespace(name=f"gpu{i}", uuid="", session=session.of_gpu(i), shape=lambda: shape) for i in range(2)
    ]
    machine.meters, machine._config, machine._work = {}, ServerConfig(), lambda gpu: None
    machine._gpu_guard, machine._idles = SimpleNamespace(start=lambda: None), SimpleNamespace(restore=lambda *_: None)
    machine._spare = lambda gpu: None

    async def main() -> None:
        await machine.start([])
        slow = asyncio.ensure_future(sessions[0].call(go.wait, 30))
        assert await asyncio.wait_for(sessions[1].call(lambda: 7), 10.0) == 7
        assert not slow.done()
        go.set()
        await slow

    try:
        asyncio.run(main())
    finally:
        go.set()
        session.close()


@pytest.mark.parametrize("beside", [False, True])
def test_the_window_of_a_gpu_is_closed_as_its_counter_is_read_and_that_of_the_host_last(beside: bool) -> None:
    """A counter may be waited for until it ticks; what workers of another GPU do meanwhile is of its next window."""
    done: list[str] = []

    class Meter:
        def __init__(self, name: str) -> None:
            self.name, self.ticked = name, asyncio.Event()

        async def refresh(self) -> None:
            await self.ticked.wait()
            done.append(f"{self.name} read")

        def sample(self, now_ns: int) -> EnergySample:
            return EnergySample(device=self.name, at_ns=now_ns, total_j=0.0, idle_w=0.0, method="measured")

    async def main() -> None:
        meters = {name: Meter(name) for name in ("host", "gpu0", "gpu1")}
        machine: Any = Machine.__new__(Machine)
        machine.gpus = [SimpleNamespace(name=name) for name in ("gpu0", "gpu1")]
        machine.meters, machine.beside = meters, False
        machine._samples, machine._looked_ns, machine._unreadable_ns = {}, {}, {}
        machine._spare = lambda gpu: None
        machine._host = SimpleNamespace(poll=lambda: done.append("host looked at"))
        machine._account = SimpleNamespace(close_window=lambda sample, *_: done.append(f"{sample.device} closed"))
        measuring = asyncio.ensure_future(machine.measure(Reading(g_per_kwh=300.0, at_s=0.0, provider="test")))
        for name in ("host", "gpu1", "gpu0"):
            await asyncio.sleep(0)
            machine.beside = beside
            meters[name].ticked.set()
            for _ in range(3):
                await asyncio.sleep(0)
        await measuring

    asyncio.run(main())
    if beside:
        assert done == ["host read", "gpu1 read", "gpu0 read", "host looked at"], "the counters are another server's"
    else:
        assert done == [
            "host read", "gpu1 read", "gpu1 closed", "gpu0 read", "gpu0 closed", "host looked at", "host closed",
        ]  # fmt: skip


def test_what_a_context_costs_is_measured_before_the_first_row_if_it_is_not_known() -> None:
    class Unknown(Idle):
        def __init__(self, known: bool) -> None:
            super().__init__(False)
            self.idle = BoardIdle(50.0, resident_w=80.0 if known else None)

        async def measure_resident(self, sleep: Any = None) -> None:
            self.idle.set_resident(87.0)

    machine: Any = Machine.__new__(Machine)
    gpus = [SimpleNamespace(name=f"gpu{i}", uuid=f"GPU-{i}") for i in range(3)]
    machine.gpus, machine.meters = gpus, {"gpu0": Unknown(False), "gpu1": Unknown(True), "gpu2": Unknown(False)}
    machine._account = SimpleNamespace(workers=lambda: [SimpleNamespace(device=f"gpu{i}") for i in range(2)])
    saved: list[str] = []
    spared: list[str] = []
    machine._idles = SimpleNamespace(save=lambda uuid, meter: saved.append(uuid))
    machine._spare = lambda gpu: spared.append(gpu.name)
    asyncio.run(machine.rest())
    assert [meter.idle.resident_w for meter in machine.meters.values()] == [87.0, 80.0, 50.0], "gpu2 has no worker"
    assert (saved, spared) == (["GPU-0"], ["gpu0"])


STORY = """
import asyncio, sys
from pathlib import Path
import msgspec
from clover.accounting import Account
from clover.config import EnergyConfig, ServerConfig, WorkersConfig
from clover.server.machine import CONTEXT_W, Machine
from clover.types import Reading

reading = Reading(g_per_kwh=300.0, at_s=0.0, provider="static", method="configured")

async def life(keep, make=()):
    sleep = "off" if keep else "park"
    workers = WorkersConfig(device="emulated:a100-40gb:2", keep_instances=keep, sleep=sleep)
    account = Account(pue=1.0)
    machine = Machine(ServerConfig(workers=workers, energy=EnergyConfig(meter="modelled")), Path(sys.argv[1]), account)
    try:
        await machine.start([])
        found = [place.id for gpu in machine.gpus for place in gpu.instances()]
        shape = machine.devices["gpu0"].shape()
        for profile, start in make:
            place = next(p for l in shape.layouts for p in l if (p.profile, p.start) == (profile, start))
            await machine.devices["gpu0"].create(place)
        assert shape.sleep_w == (None if keep else CONTEXT_W), shape.sleep_w
        assert shape.sleep_method == ("none" if keep else "modelled")
        await machine.watch()
        await machine.measure(reading)
        await asyncio.sleep(0.3)
        await machine.measure(reading)
        lines = account.devices()
        assert set(lines) == {"gpu0", "gpu1", "host"}, lines
        for name, line in lines.items():
            assert line["measured_j"] > 0.0, lines
            assert line["method"] == ("modelled" if name == "host" else "emulated"), lines
        assert lines["host"]["front_end_j"] > 0.0, lines
    finally:
        await machine.leave()
    return found

print(asyncio.run(life(True, [("2g.10gb", 0), ("1g.5gb", 6)])))
print(asyncio.run(life(False)))
print(asyncio.run(life(False)))
"""


@pytest.mark.slow
def test_a_clean_stop_leaves_gpus_as_they_were_unless_told_to_keep_instances(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STORY, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "['gpu0:2g.10gb@0', 'gpu0:1g.5gb@6']", "[]"]
    assert "Traceback" not in done.stderr


class Gpu:
    """One whose retry takes until `ends`."""

    name, uuid = "gpu0", "GPU-a"

    def __init__(self) -> None:
        self.polls = self.retries = 0
        self.ends = asyncio.Event()

    async def poll(self) -> bool:
        self.polls += 1
        return True

    async def retry_quarantined(self) -> None:
        self.retries += 1
        await self.ends.wait()
        raise DeviceError("the driver did not answer in time")


def test_gpus_are_watched_while_a_retry_waits_for_the_driver(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        machine = Machine(ServerConfig(), tmp_path, Account(pue=1.0))
        gpu = Gpu()
        machine.gpus = [cast("MigDevice", gpu)]
        machine.core_idle = None
        for _ in range(3):
            machine._retry_s = 0.0
            await machine.watch()
            await asyncio.sleep(0)
        assert (gpu.polls, gpu.retries) == (3, 1)
        gpu.ends.set()
        assert machine._retrying is not None
        await machine._retrying
        await machine.watch()
        await asyncio.sleep(0)
        assert (gpu.polls, gpu.retries) == (4, 2)
        machine.gpus = []
        machine.close()

    asyncio.run(story())
    assert "gpu0: the driver did not answer in time" in caplog.text
