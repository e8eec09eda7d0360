"""Cores without workers: not before the load is known, not soon after more came, and never below what arrives."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from clover.accounting import Account
from clover.control.core_need import ASK_S
from clover.control.state.sleep import REST_S
from clover.devices.cpu import CpuDevice
from clover.errors import BadRequest
from clover.planning.model.cores import cores_under
from clover.planning.model.objective import PlanningInput
from clover.planning.search.best import fewest_cores
from clover.types import EnergySample, State
from tests.support.control_fixture import FakeDevice, Rig
from tests.support.profiles_fixture import profile, reading


def rig(rate: float, *, sleep_w: float | None = 0.25) -> Rig:
    shape = CpuDevice.from_cores(tuple(range(5)), sleep_w=sleep_w).shape()
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


@pytest.mark.slow
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


LINES = {
    "cpu0": {
        "measured_j": 100.0,
        "rest_j": 93.0,
        "idle_j": 40.0,
        "unowned_j": 13.0,
        "carried_j": -3.0,
        "method": "modelled",
    }
}


def asking(rig: Rig) -> list[float]:
    """Let the rig ask how few cores would do, as a server does; return the rates it asks for."""
    rates: list[float] = []

    async def fewest(state: State) -> int | None:
        rates.append(state.arrival_rate)
        given = PlanningInput.from_state(state)
        found = fewest_cores(given.problem, given.objective)
        return None if found is None else found[0]

    rig.controller.core_need._fewest_cores = fewest
    return rates


def test_the_state_says_what_is_idle_and_how_few_cores_would_do() -> None:
    async def run() -> None:
        one = rig(300.0, sleep_w=None)
        one.fleet.figures["arrival_window_s"] = math.inf
        rates = asking(one)
        await one.settled()
        await asyncio.sleep(0)
        assert rates == [300.0]
        idle = one.controller.state(lambda: {"devices": LINES})["idle"]
        assert idle["part"] == pytest.approx(0.9)
        assert (idle["cores"], idle["cores_with_workers"], idle["cores_would_do"]) == (4, 4, 1)
        said = "idle is 90 % of this server's energy so far (modelled), one core would do"
        assert idle["words"] == f"too little load to save on: {said}"
        assert idle["light"]
        one.fleet.figures["arrival_rate"] = 320.0
        await one.look(ASK_S + 1.0)
        assert rates == [300.0], "the load is the same"
        one.fleet.figures["arrival_rate"] = 3_500.0
        await one.look(1.0, looks=2)
        await asyncio.sleep(0)
        assert rates == [300.0, 3_500.0]
        idle = one.controller.state(lambda: {"devices": LINES})["idle"]
        assert idle["cores_would_do"] == 3
        assert idle["words"].endswith("(modelled), 3 of 4 cores would do")
        idle = one.controller.state(lambda: {"devices": {"cpu0": LINES["cpu0"] | {"measured_j": 250.0}}})["idle"]
        assert not idle["light"], "most of the energy is what was served"
        assert idle["words"].endswith("(modelled); at this load 3 of 4 cores would do")
        one.fleet.figures["arrival_rate"] = 300.0
        await one.look(1.0, looks=3)
        assert len(rates) == 2, "not so soon again"
        one.fleet.figures["arrival_rate"] = 3_500.0
        one.family.learned.changed += 1
        await one.look(ASK_S + 1.0)
        await asyncio.sleep(0)
        assert rates[2:] == [3_500.0], "the same load, of a profile that was corrected"

    asyncio.run(run())


def test_all_idle_energy_is_idle_also_of_the_front_ends_core_and_of_cores_that_are_not_the_servers() -> None:
    book = Account(pue=1.5)
    book.add_device("cpu0", 3, foreign=5.0)
    for second in range(3):
        sample = EnergySample(
            device="cpu0", at_ns=second * 1_000_000_000, total_j=8.0 * second, idle_w=8.0, method="measured"
        )
        book.close_window(sample, reading(300.0))

    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        idle = one.controller.state(lambda: {"devices": book.devices()})["idle"]
        assert idle["words"].startswith("idle is 100 % of this machine's energy so far (mea")

    asyncio.run(run())


def test_the_state_says_how_long_the_load_is_watched_before_cores_sleep() -> None:
    async def run() -> None:
        one, fixed = rig(300.0), rig(300.0, sleep_w=None)
        for made in (one, fixed):
            await made.settled()
            await made.look(10.0, looks=6)
        idle = one.controller.state(lambda: {"devices": LINES})["idle"]
        assert idle["cores_with_workers"] == 4
        assert 0.0 < idle["decides_in_s"] <= REST_S - 60.0
        watched = f"watches the load for {idle['decides_in_s']:.0f} s more before cores lose their workers"
        assert idle["words"].endswith(f"; --cores auto {watched}")
        assert fixed.controller.state(lambda: {"devices": LINES})["idle"]["decides_in_s"] == 0.0
        assert "watches" not in fixed.controller.state(lambda: {"devices": LINES})["idle"]["words"]
        await one.look(10.0, looks=int(REST_S / 10.0))
        assert one.controller.state(lambda: {"devices": LINES})["idle"]["decides_in_s"] == 0.0

    asyncio.run(run())


def test_the_state_says_how_many_cores_sleep() -> None:
    async def run() -> None:
        one = rig(300.0)
        asking(one)
        await one.settled()
        await one.look(10.0, looks=int(REST_S / 10.0) + 2)
        idle = one.controller.state(lambda: {"devices": LINES})["idle"]
        assert (idle["cores_with_workers"], idle["cores_would_do"], idle["core_sleep_w"]) == (1, 1, 0.25)
        assert idle["words"].endswith("one core would do; 3 of 4 cores have no worker")

    asyncio.run(run())


def test_nothing_is_said_of_idle_before_energy_was_counted() -> None:
    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        assert one.controller.state(lambda: {"devices": {}})["idle"] is None

    asyncio.run(run())


def test_an_operator_may_pin_a_configuration_that_leaves_cores_without_workers() -> None:
    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        await one.controller.command("pin", {"configuration": {"medium@1c": 1, "small@1c": 1}}, "operator")
        assert [item.placement.id for item in one.family.desired] == ["cpu0:1c@0", "cpu0:1c@1"]
        await one.look(10.0, looks=3)
        assert awake(one) == 2
        every = rig(300.0, sleep_w=None)
        await every.settled()
        with pytest.raises(BadRequest, match="layouts leave no room"):
            await every.controller.command("pin", {"configuration": {"small@1c": 1}}, "operator")

    asyncio.run(run())


def test_all_cores_wake_where_the_slo_is_at_risk_whatever_the_profile_says() -> None:
    """And they rest for longer each time: a profile that errs once errs again."""

    async def run() -> None:
        one = rig(300.0)
        await one.settled()
        await one.look(10.0, looks=int(REST_S / 10.0) + 2)
        for rest_s in (REST_S, 2.0 * REST_S, 4.0 * REST_S):
            assert awake(one) == 1
            one.fleet.figures["p95_ms"] = 100.0
            for rate in (400.0, 600.0, 900.0, 900.0):  # each a reason to plan by itself
                one.fleet.figures["arrival_rate"] = rate
                await one.look(1.0)
            assert awake(one) == 4
            one.consistent()
            one.fleet.figures.update(p95_ms=10.0, arrival_rate=300.0)
            await one.look(10.0, looks=int(rest_s / 10.0) - 4)
            assert awake(one) == 4
            await one.look(10.0, looks=8)
        assert awake(one) == 1

    asyncio.run(run())
