"""A family without a profile on GPUs: its one deployment, on what it was dealt, as long as that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from clover.errors import StartError, WorkerError
from clover.runtime.served import Served
from clover.server.unplanned import Unplanned
from clover.types import Assignment, Placement
from tests.support.control_fixture import FakeFleet, FakeGpu, Rig
from tests.support.mig_fixture import a100, mig_profile, slice_worker


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
    return rig, plain, Unplanned(cast(Served, plain), rig.controller.context)


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


def test_workers_on_a_gpu_that_was_lost_and_is_back_already_start_anew() -> None:
    async def story() -> None:
        rig, plain, unplanned = scene(3, share=2.0)
        await unplanned.deploy()
        gpu = rig.devices["gpu2"]
        assert isinstance(gpu, FakeGpu)
        gpu.losses += 1
        calls = len(plain.fleet.calls)
        await unplanned.follow()
        await unplanned.follow()
        seen = [call for call in plain.fleet.calls[calls:] if not call.startswith("route")]
        assert [call for call in seen if call.startswith("forget")] == ["forget gpu2:1g.5gb@0", "forget gpu2:1g.5gb@1"]
        assert not any("gpu1" in call for call in seen)
        assert {item.placement.device for item in plain.fleet.routed} == {"gpu1", "gpu2"}

    drive(story)


def test_it_leaves_a_gpu_that_is_another_familys_by_now() -> None:
    async def story() -> None:
        rig, plain, unplanned = scene(3, share=2.0)
        await unplanned.deploy()
        await rig.deploy()
        gpu = rig.devices["gpu0"]
        assert isinstance(gpu, FakeGpu)
        gpu.lost = True
        await rig.look()
        assert not rig.fleet.alive, "the other one waits until it has left"
        assert {item.placement.device for item in plain.fleet.alive} == {"gpu1", "gpu2"}
        await unplanned.follow()
        await rig.look(10.0, looks=2)
        mine, other = ({item.placement.device for item in fleet.alive} for fleet in (plain.fleet, rig.fleet))
        assert sorted([*mine, *other]) == ["gpu1", "gpu2"]
        assert set(plain.fleet.routed) == set(plain.fleet.alive)
        gpu.lost = False
        await rig.look(10.0, looks=2)
        await unplanned.follow()
        assert set(plain.fleet.routed) == set(plain.fleet.alive)

    drive(story)


def test_what_an_earlier_run_left_and_cannot_be_removed_is_left_out() -> None:
    class Haunted(FakeGpu):
        async def reconcile(self, keep: Sequence[Placement] = ()) -> tuple[Placement, ...]:
            self.quarantined = ["gpu1:1g.5gb@0"]
            return await super().reconcile(keep)

    class Finest(Plain):
        def default_deployment(self) -> tuple[Assignment, ...]:
            layout = max(haunted.shape().layouts, key=len)
            return tuple(slice_worker("only", place.profile, place.start, "gpu1", "plain") for place in layout)

    haunted = Haunted(a100("gpu1"), lambda shape: a100(shape.device, blocked=[(0, 1)]))

    async def story() -> None:
        rig = Rig(devices={"gpu0": FakeGpu(a100("gpu0")), "gpu1": haunted}, measured=mig_profile())
        rig.controller.reserve("plain", 1.0)
        plain = Finest(2)
        await Unplanned(cast(Served, plain), rig.controller.context).deploy()
        assert sorted(item.placement.start for item in plain.fleet.alive) == [1, 2, 3, 4, 5, 6]

    drive(story)


def test_an_instance_that_stays_does_not_keep_the_others() -> None:
    async def story() -> None:
        rig, _, unplanned = scene(2)
        await unplanned.deploy()
        gpu = rig.devices["gpu1"]
        assert isinstance(gpu, FakeGpu)
        gpu.stuck = True
        await unplanned.clear()
        assert sorted(gpu.quarantined) == ["gpu1:1g.5gb@0", "gpu1:1g.5gb@1"], "each was tried"

    drive(story)


def test_a_start_that_fails_half_way_leaves_nothing() -> None:
    async def story() -> None:
        rig, plain, unplanned = scene(2)
        plain.fleet.fail = {"only"}
        with pytest.raises(WorkerError):
            await unplanned.deploy()
        await unplanned.clear()
        assert not any(rig.devices[name].made for name in ("gpu0", "gpu1"))

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
