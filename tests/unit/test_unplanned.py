"""A family without a profile on GPUs: its one deployment, on what it was dealt, as long as that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from clover.errors import StartError
from clover.runtime.served import Served
from clover.server.unplanned import Unplanned
from clover.types import Assignment
from tests.unit.control_fixture import FakeFleet, FakeGpu, Rig
from tests.unit.mig_fixture import a100, mig_profile, slice_worker


class Plain:
    """What `Unplanned` needs of a family."""

    name = "plain"

    def __init__(self, gpus: int) -> None:
        self.fleet = FakeFleet()
        self._gpus = gpus

    def default_deployment(self) -> tuple[Assignment, ...]:
        return tuple(
            slice_worker("only", "1g.5gb", start, f"gpu{gpu}", "plain") for gpu in range(self._gpus) for start in (0, 1)
        )


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def scene(gpus: int, share: float = 1.0) -> tuple[Rig, Plain, Unplanned]:
    devices: dict[str, Any] = {f"gpu{i}": FakeGpu(a100(f"gpu{i}")) for i in range(gpus)}
    rig = Rig(devices=devices, measured=mig_profile())
    rig.controller.reserve("plain", share)
    plain = Plain(gpus)
    return rig, plain, Unplanned(cast(Served, plain), rig.controller)


def test_it_keeps_to_what_it_was_dealt() -> None:
    async def story() -> None:
        rig, plain, unplanned = scene(3, share=2.0)
        await unplanned.deploy()
        await rig.deploy()
        assert {item.placement.device for item in plain.fleet.alive} == {"gpu1", "gpu2"}
        assert rig.family.devices == {"gpu0"}
        assert set(plain.fleet.routed) == set(plain.fleet.alive)
        made = {place for name in ("gpu1", "gpu2") for place in rig.devices[name].made}
        assert made == {item.placement.id for item in plain.fleet.alive}
        for item in list(plain.fleet.alive):
            await plain.fleet.drain(item)
        await unplanned.clear()
        assert not rig.devices["gpu1"].made
        assert rig.devices["gpu0"].made, "and leaves others theirs"

    drive(story)


def test_it_goes_on_without_a_lost_gpu_and_takes_it_up_again() -> None:
    async def story() -> None:
        rig, plain, unplanned = scene(3, share=2.0)
        await unplanned.deploy()
        gpu = rig.devices["gpu2"]
        assert isinstance(gpu, FakeGpu)
        gpu.lost = True
        await unplanned.follow()
        await unplanned.follow()
        assert {item.placement.device for item in plain.fleet.routed} == {"gpu1"}
        assert [call for call in plain.fleet.calls if call.startswith("forget")] == [
            "forget gpu2:1g.5gb@0",
            "forget gpu2:1g.5gb@1",
        ]
        gpu.lost = False
        await unplanned.follow()
        assert {item.placement.device for item in plain.fleet.routed} == {"gpu1", "gpu2"}

    drive(story)


def test_without_any_device_it_does_not_start() -> None:
    async def story() -> None:
        rig, _, unplanned = scene(2)
        for name in ("gpu0", "gpu1"):
            gpu = rig.devices[name]
            assert isinstance(gpu, FakeGpu)
            gpu.lost = True
        rig.controller.reserve("plain", 1.0)
        with pytest.raises(StartError, match=r"no device is left for plain \(gpu0, gpu1 lost\)"):
            await unplanned.deploy()

    drive(story)
