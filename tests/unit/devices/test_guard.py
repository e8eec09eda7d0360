"""What a server does about its GPUs as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clover.devices import clients
from clover.devices.clients import GpuClient
from clover.devices.guard import GpuGuard
from clover.devices.mig import MigDevice
from clover.devices.nvml import Nvml
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
