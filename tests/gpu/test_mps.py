"""A GPU in parts by MPS: parted while it serves, hurt by a fault, and left without a daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clover
from clover.devices.mps import MpsDevice
from clover.errors import CloverError

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture
def whole(box: dict[str, Any]) -> None:
    """GPU 0 without MIG, and the daemon's program."""
    if box["gpus"][0]["mig"]:
        pytest.skip("needs GPU 0 without MIG mode, which tests do not turn")
    if shutil.which("nvidia-cuda-mps-control") is None:
        pytest.skip("needs nvidia-cuda-mps-control, which comes with the driver (in containers: capability compute)")


def test_a_gpu_in_parts_serves_and_comes_back_after_a_worker_is_killed(
    whole: None, tmp_path: Path, figures: dict[str, Any]
) -> None:
    async def run() -> None:
        settings: dict[str, Any] = {
            "device": "nvidia:0/mps",
            "backends": ("eager",),
            "cache_dir": str(tmp_path),
            "carbon": "static:300",
            "http": False,
            "start_s": 300.0,
            "allow_capacity_loss": True,
        }
        row = np.zeros((1, 1, 28, 28), np.float32)
        async with clover.Server("fashion", **settings) as server:
            gpu = server.engine.devices["gpu0"]
            assert isinstance(gpu, MpsDevice)
            assert gpu.control is not None
            figures["mps"] = gpu.report()["mps"]
            served = server.engine.pick(None)
            assert served.profile is not None
            figures["notes"] = [note for note in served.profile.notes if "busy neighbours" in note]
            figures["ms"] = {f"{m.variant}@{m.profile}, {m.batch}": m.mean_ms for m in served.profile.latency}
            control = server.engine.control()
            for profile, count in (("2of4", 2), ("1of4", 4)):
                began_s = time.monotonic()
                groups = {f"tiny@{profile}": count}
                await control.command("apply", {"configuration": groups, "force": True}, "a test")
                figures[f"{count} x {profile} s"] = time.monotonic() - began_s
                await server.ainfer({"image": row})
                here = {item["pid"] for item in served.fleet.describe()}
                assert set(gpu.control.clients()) == here, "every worker is a client, and nobody else is"
            victim = min(here)
            os.kill(victim, signal.SIGKILL)  # from outside, as nothing of ours would: it may or may not be a fault
            end_s = time.monotonic() + 120.0
            while len(served.fleet.ready_assignments()) < 4 or victim in {
                one["pid"] for one in served.fleet.describe()
            }:
                assert time.monotonic() < end_s, served.fleet.describe()
                await asyncio.sleep(0.1)
                try:
                    await server.ainfer({"image": row})
                except CloverError as error:
                    figures.setdefault("refused meanwhile", []).append(str(error))
            figures["after SIGKILL"] = gpu.report()["mps"]
            daemon = gpu.control
        assert figures["mps"]["daemon"] == "found" or not daemon.runs()

    asyncio.run(run())
