"""GPUs without workers: parked when the load is known, woken at once, and never while they are needed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import msgspec
import pytest

from clover.control.state.parked import ParkedGpus, parking_words
from clover.control.state.sleep import MOST_ROOM, REST_S, Gusts
from clover.planning.search.best import ROOM
from tests.support.control_fixture import FakeDevice, FakeGpu, Rig
from tests.support.mig_fixture import a100, mig_profile, slice_worker

SPARED_W = 35.0


def rig(count: int = 3, *, rate: float = 50.0, spared_w: float | None = SPARED_W, **config: object) -> Rig:
    shapes = [msgspec.structs.replace(a100(f"gpu{i}"), sleep_w=spared_w) for i in range(count)]
    devices: dict[str, FakeDevice] = {shape.device: FakeGpu(shape) for shape in shapes}
    made = Rig(devices=devices, measured=mig_profile(), objective="floor", **config)  # type: ignore[arg-type]
    made.fleet.figures["arrival_rate"] = rate
    return made


def awake(rig: Rig) -> int:
    return len(rig.family.devices)


def capacity(rig: Rig) -> float:
    return sum(map(rig.family.capacity(1.0), rig.family.desired))


async def parked(rig: Rig, to: int = 1) -> None:
    """Let the rig's load be watched for as long as it takes."""
    await rig.settled()
    await rig.look(10.0, looks=int(REST_S / 10.0) + 2)
    assert awake(rig) == to


def test_gpus_are_parked_once_the_load_is_known_and_their_workers_and_instances_are_gone() -> None:
    async def run() -> None:
        one = rig()
        await one.settled()
        assert awake(one) == 3
        await one.look(10.0, looks=int(REST_S / 10.0) - 2)
        assert awake(one) == 3
        await one.look(10.0, looks=4)
        assert awake(one) == 1
        one.consistent()
        (busy,) = one.family.devices
        assert all(not device.made for name, device in one.devices.items() if name != busy)
        assert "is parked, which spares 35 W (modelled)" in one.last["detail"]
        await one.look(10.0, looks=2)
        await one.look(10.0, looks=10)
        state = {item["device"]: item for item in one.controller.state()["devices"]}
        json.dumps(state, allow_nan=False)
        for name, item in state.items():
            assert item["parked"] == (name != busy)
            assert item["spared_w"] == (0.0 if name == busy else SPARED_W)
            assert item["spared_j"] == pytest.approx(SPARED_W * item["parked_s"])
            assert item["spared_method"] == "modelled"
            assert (item["parked_s"] >= 100.0) == (name != busy)

    asyncio.run(run())


@pytest.mark.parametrize("spared_w", [None, 0.0])
def test_gpus_that_may_not_sleep_or_spare_nothing_keep_their_workers(spared_w: float | None) -> None:
    async def run() -> None:
        one = rig(spared_w=spared_w)
        await parked(one, to=3 if spared_w is None else awake(one) or 3)
        assert one.controller.state()["devices"][0]["parked"] is False

    asyncio.run(run())


def test_a_family_with_one_gpu_never_parks_it() -> None:
    async def run() -> None:
        one = rig(1, rate=0.0)
        await parked(one)
        assert one.controller.state()["devices"][0]["parked"] is False

    asyncio.run(run())


def test_a_load_that_rises_wakes_gpus_at_once_and_they_rest() -> None:
    async def run() -> None:
        one = rig()
        await parked(one)
        one.fleet.figures["arrival_rate"] = 1.2 * capacity(one)
        await one.look(1.0, looks=2)
        more = awake(one)
        assert more > 1
        assert "is woken" in " ".join(item["detail"] for item in one.controller.decisions(2))
        one.fleet.figures["arrival_rate"] = 50.0
        await one.look(10.0, looks=20)
        assert awake(one) == more
        await one.look(10.0, looks=20)
        assert awake(one) == 1
        one.consistent()

    asyncio.run(run())


def test_a_missed_slo_wakes_all_gpus_whatever_the_profile_says() -> None:
    async def run() -> None:
        one = rig()
        await parked(one)
        one.fleet.figures["p95_ms"] = 100.0
        for rate in (60.0, 70.0, 80.0, 80.0):
            one.fleet.figures["arrival_rate"] = rate
            await one.look(1.0)
        assert awake(one) == 3

    asyncio.run(run())


def test_a_gpu_that_is_lost_while_others_are_parked_is_replaced_by_one_of_them() -> None:
    async def run() -> None:
        one = rig()
        await parked(one)
        (busy,) = one.family.devices
        gpu = one.devices[busy]
        assert isinstance(gpu, FakeGpu)
        gpu.lost = True
        await one.look(1.0)
        assert one.fleet.alive
        assert one.family.devices
        assert busy not in one.family.devices
        assert one.fleet.routed

    asyncio.run(run())


def test_a_gpu_that_lost_its_workers_is_not_called_parked_until_a_plan_leaves_it_without() -> None:
    async def run() -> None:
        one = rig()
        await one.settled()
        assert awake(one) == 3
        gpu = one.devices["gpu1"]
        assert isinstance(gpu, FakeGpu)
        gpu.lost = True
        one.family.frozen = True  # nothing is planned for what happened
        await one.look(1.0)
        assert awake(one) == 2
        gpu.lost = False
        await one.look(1.0, looks=3)
        state = {item["device"]: item for item in one.controller.state()["devices"]}
        assert awake(one) == 2
        assert state["gpu1"]["parked"] is False
        assert state["gpu1"]["spared_j"] == 0.0

    asyncio.run(run())


def test_an_operator_may_pin_a_configuration_that_leaves_gpus_parked() -> None:
    async def run() -> None:
        one = rig(allow_capacity_loss=True)
        await one.settled()
        await one.controller.command("pin", {"configuration": {"large@7g.40gb": 1}}, "operator")
        assert awake(one) == 1
        await one.look(10.0, looks=3)
        assert awake(one) == 1
        every = rig(spared_w=None)
        await every.settled()
        with pytest.raises(Exception, match="no layout"):
            await every.controller.command("pin", {"configuration": {"large@7g.40gb": 1}}, "operator")

    asyncio.run(run())


def test_the_room_for_gusts_is_what_the_load_rose_within_a_start() -> None:
    gusts = Gusts()
    assert gusts.room(0.0, 10.0) == ROOM
    for second in range(0, 600, 5):
        gusts.record(float(second), 1000.0 if second < 300 else 2200.0)
    assert gusts.room(600.0, 10.0) == pytest.approx(2.2, rel=0.05)
    for second in range(600, 4300, 5):
        gusts.record(float(second), 2200.0 + second)  # a load that drifts has no gusts
    assert gusts.room(4300.0, 10.0) == ROOM
    gusts.record(4305.0, 1e6)
    assert gusts.room(4305.0, 10.0) == MOST_ROOM
    few = Gusts()
    for second in range(0, 600, 5):
        few.record(float(second), 1.0 + 0.6 * (second // 5 % 2))
    assert few.room(600.0, 10.0) == ROOM, "counts that chance moves"


def test_the_words_of_a_change_name_what_is_parked_and_woken() -> None:
    shapes = [msgspec.structs.replace(a100(f"gpu{i}"), sleep_w=SPARED_W) for i in range(2)]
    first, second = (slice_worker("small", "7g.40gb", 0, f"gpu{i}") for i in range(2))
    assert parking_words(shapes, [first, second], [second]) == ["gpu0 is parked, which spares 35 W (modelled)"]
    assert parking_words(shapes, [second], [first, second]) == ["gpu0 is woken"]
    assert parking_words(shapes, [], [first]) == []


def test_what_was_spared_counts_by_what_was_known_when_it_began_and_is_labelled_so() -> None:
    parked = ParkedGpus()
    modelled = msgspec.structs.replace(a100("gpu0"), sleep_w=35.0, sleep_method="modelled")
    measured = msgspec.structs.replace(modelled, sleep_w=50.0, sleep_method="measured")
    for now_s, shape in ((0.0, modelled), (10.0, measured), (20.0, measured)):
        parked.observe({"gpu0": shape}, {"gpu0"}, {"gpu1"}, now_s)
    assert parked.known["gpu0"].spared_j == {"modelled": 350.0, "measured": 500.0}
    found = parked.report(measured)
    assert (found["spared_j"], found["spared_w"], found["spared_method"]) == (850.0, 50.0, "measured + modelled")


def test_a_gpu_whose_workers_failed_is_not_parked() -> None:
    """Of a family with one GPU, or before there is a deployment, a GPU without workers is no decision."""

    async def run() -> None:
        one = rig(1)
        one.controller.context.unplanned["other"] = {slice_worker("small", "7g.40gb", 0, "gpu9").placement}
        one.controller.context.count_parked()
        assert one.controller.state()["devices"][0]["parked"] is False, "there is no deployment yet"
        await one.settled()
        assert one.family.deployed is not None
        one.family.deployed = replace(one.family.deployed, deployment=(slice_worker("small", "7g.40gb", 0, "gpu9"),))
        one.controller.context.count_parked()
        assert one.controller.state()["devices"][0]["parked"] is False, "a family never parks its one GPU"

    asyncio.run(run())
