"""Cores without workers: not before the load is known, not soon after more came, and never below what arrives."""

from __future__ import annotations

import asyncio
import random

from clover.control.core_sleep import REST_S
from clover.devices.cpu import CpuDevice
from clover.planning.model.cores import cores_under
from tests.support.control_fixture import FakeDevice, Rig
from tests.support.profiles_fixture import profile


def rig(rate: float) -> Rig:
    shape = CpuDevice.of(tuple(range(5)), sleep_w=0.25).shape()
    family = {"slo_ms": 60.0, "accuracy_floor": 80.0}
    made = Rig(devices={"cpu0": FakeDevice(shape)}, measured=profile((1, 2, 4)), family=family, objective="floor")
    made.fleet.figures["arrival_rate"] = rate
    return made


def awake(rig: Rig) -> int:
    return cores_under(rig.family.desired)


def test_the_first_workers_are_on_all_cores_until_the_load_is_known() -> None:
    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        assert awake(one) == 4
        await one.look(10.0, looks=int(REST_S / 10.0) - 2)
        assert awake(one) == 4
        await one.look(10.0, looks=4)
        assert awake(one) == 1
        one.consistent()

    asyncio.run(run())


def test_more_load_wakes_cores_at_once_and_they_stay_awake_for_a_while() -> None:
    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        await one.look(10.0, looks=int(REST_S / 10.0) + 2)
        assert awake(one) == 1
        one.fleet.figures["arrival_rate"] = 2_500.0
        await one.look(1.0, looks=12)
        more = awake(one)
        assert more > 1
        one.fleet.figures["arrival_rate"] = 300.0
        await one.look(10.0, looks=20)
        assert awake(one) == more
        await one.look(10.0, looks=15)
        assert awake(one) == 1

    asyncio.run(run())


def test_a_load_that_swings_starts_few_workers() -> None:
    async def run() -> None:
        rng, one = random.Random(7), rig(300.0)
        await one.settled()
        before = len([call for call in one.fleet.calls if call.startswith("spawn")])
        changes = []
        for _ in range(360):  # an hour
            one.fleet.figures["arrival_rate"] = rng.choice([200.0, 1_200.0, 2_500.0])
            was = awake(one)
            await one.look(10.0)
            changes.append(awake(one) - was)
            one.consistent()
        spawned = len([call for call in one.fleet.calls if call.startswith("spawn")]) - before
        falls = sum(change < 0 for change in changes)
        assert falls <= 3600.0 / REST_S
        assert spawned <= 24, "without the rest 124"

    asyncio.run(run())
