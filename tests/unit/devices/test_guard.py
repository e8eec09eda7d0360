"""What a server does about its GPUs as a whole; looks at some of which one does not answer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from clover.devices import clients
from clover.devices.clients import GpuClient
from clover.devices.guard import GpuGuard, GpuPolls
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
from clover.errors import DeviceError
from tests.support.fake_nvml import Board, FakeNvml


def test_a_server_warns_of_monitors_and_hands_errors_to_their_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dcgm = GpuClient(pid=3, name="nv-hostengine", unit="nvidia-dcgm")
    monkeypatch.setattr(clients, "find", lambda nodes: (dcgm, GpuClient(pid=4, name="trainer")))
    session = Nvml(FakeNvml(Board("GPU-a"), Board("GPU-b", mig=None)))
    gpus = [MigDevice.open(session, index, tmp_path, cores=()) for index in (0, 1)]

    async def story() -> None:
        guard = GpuGuard(gpus)
        guard.start()
        guard._on_xid(1, 79, None)
        while not gpus[1].lost:
            await asyncio.sleep(0)
        guard.close()

    asyncio.run(story())
    assert not gpus[0].lost
    assert "nv-hostengine (process 3) may hold GPU instances" in caplog.text
    assert "systemctl stop nvidia-dcgm" in caplog.text
    assert "trainer" not in caplog.text
    for gpu in gpus:
        gpu.close()
    session.close()


def test_without_gpus_there_is_nothing_to_guard() -> None:
    async def story() -> None:
        guard = GpuGuard([])
        guard.start()
        guard.close()

    asyncio.run(story())


class FakeGpu:
    def __init__(self, name: str) -> None:
        self.name = name
        self.polls = 0
        self.there = True
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.error = ""

    async def poll(self) -> bool:
        self.polls += 1
        await self.hangs.wait()
        if self.error:
            raise DeviceError(self.error)
        return self.there


def test_a_gpu_that_hangs_is_waited_for_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]

    async def main() -> None:
        one: Any = FakeGpu("gpu0")
        two: Any = FakeGpu("gpu1")
        polls = GpuPolls(patience_s=0.0, clock=lambda: now[0])

        async def look() -> list[str]:
            await polls.answering((one, two))  # begins what the next one finds, as it has no patience
            return [gpu.name for gpu in await polls.answering((one, two))]

        assert await look() == ["gpu0", "gpu1"]
        one.hangs.clear()
        assert await look() == ["gpu1"]
        assert not caplog.records
        now[0] = 11.0
        assert await look() == ["gpu1"]
        assert await look() == ["gpu1"]
        assert [record.getMessage() for record in caplog.records] == [
            "gpu0: the driver has not answered for 11 s; other GPUs are polled as before"
        ]
        assert one.polls < two.polls - 2, "it is not asked again meanwhile"
        one.hangs.set()
        assert await look() == ["gpu0", "gpu1"]
        assert caplog.records[-1].getMessage() == "gpu0: the driver answers again"
        one.there = False
        two.error = "refused"
        await look()
        assert await look() == []
        assert caplog.records[-1].getMessage() == "gpu1: refused"

    with caplog.at_level(logging.WARNING, "clover.devices"):
        asyncio.run(main())
