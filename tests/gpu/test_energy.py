"""NVML's energy counter, as the production meter reads it, against power integrated beside it."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest

from clover import energy
from clover.backends.environment import child_environment
from clover.config import EnergyConfig
from clover.devices.mig import MigDevice
from clover.energy.gpu_probe import Probe, Value

from .conftest import ROOT, Slice

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

BURN_S = 20.0
REST_S = 10.0
SETTLE_S = 3.0
STEP_S = 0.05
AGREE = 0.05
"""The largest relative difference.  Power is sampled twenty times a second and the counter moves ten times."""


def test_the_counter_agrees_with_the_integral_of_power(box: dict[str, Any], slice_: Slice) -> None:
    if refusal := box["gpus"][0]["counter"]:
        pytest.skip(f"needs a GPU with an energy counter: {refusal}")
    device = slice_.device
    assert isinstance(device, MigDevice)

    probe = Probe(device.uuid, time.monotonic_ns)

    async def main() -> tuple[float, float, float]:
        meter = await energy.build_gpu(device.session, device, EnergyConfig())
        assert (meter.method, meter.source) == ("measured", "counter"), meter.why
        burning = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop yet
            [sys.executable, "-m", "tests.gpu.on_gpu"],
            cwd=ROOT,
            env=child_environment() | {"CUDA_VISIBLE_DEVICES": slice_.visible},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert burning.stdin is not None
            with burning.stdin:
                burning.stdin.write(json.dumps({"do": "burn", "seconds": BURN_S}).encode())
            await meter.refresh()
            start, readings = meter.sample(0), [await power()]
            while burning.poll() is None:
                await asyncio.sleep(STEP_S)
                readings.append(await power())
            await meter.refresh()
            end = meter.sample(0)
        finally:
            burning.kill()
            burning.wait()
        assert burning.returncode == 0
        assert end.epoch == start.epoch
        integrated = sum(
            (one.number + two.number) / 2e3 * (two.at_ns - one.at_ns) / 1e9 for one, two in itertools.pairwise(readings)
        )
        return end.total_j - start.total_j, integrated, start.idle_w * (end.at_ns - start.at_ns) / 1e9

    async def power() -> Value:
        found = await device.session.call(probe.power)
        assert isinstance(found, Value), found
        return found

    counted, integrated, idle = asyncio.run(main())
    assert counted > idle * 1.2, "the load drew nothing"
    assert counted == pytest.approx(integrated, rel=AGREE)


def test_idle_power_is_seen_before_there_is_work(box: dict[str, Any], slice_: Slice) -> None:
    device = slice_.device
    assert isinstance(device, MigDevice)
    meter = asyncio.run(energy.build_gpu(device.session, device, EnergyConfig()))
    assert 1.0 < meter.idle_w < 500.0, meter.why
    assert "idle" in meter.why


def test_what_a_context_alone_draws(slice_: Slice, figures: dict[str, Any]) -> None:
    """A process that holds a context and does nothing: its watts are the price of being awake."""
    device = slice_.device
    assert isinstance(device, MigDevice)
    probe = Probe(device.uuid, time.monotonic_ns)

    async def watts() -> float:
        readings = []
        for _ in range(int(REST_S / STEP_S)):
            found = await device.session.call(probe.power)
            assert isinstance(found, Value), found
            readings.append(found.number / 1e3)
            await asyncio.sleep(STEP_S)
        return statistics.median(readings)

    async def main() -> None:
        figures["bare_w"] = await watts()
        holding = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.gpu.on_gpu"),
            cwd=ROOT,
            env=child_environment() | {"CUDA_VISIBLE_DEVICES": slice_.visible},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert holding.stdin is not None
            assert holding.stdout is not None
            holding.stdin.write(json.dumps({"do": "context", "seconds": 4 * REST_S}).encode())
            holding.stdin.close()
            figures["context"] = json.loads(await holding.stdout.readline())
            await asyncio.sleep(SETTLE_S)
            figures["resident_w"] = await watts()
        finally:
            holding.kill()
            await holding.wait()

    asyncio.run(main())
    assert figures["resident_w"] > figures["bare_w"] * 0.9
