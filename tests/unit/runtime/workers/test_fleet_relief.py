"""Those that stand by, as the fleet keeps them: at every placement that is routed to, gone before it is unmade."""

from __future__ import annotations

import asyncio

import msgspec

from clover.types import Assignment
from tests.support.fleet_fixture import House, at, in_a_house
from tests.support.relief_fixture import LARGE, SMALL, StandbyChooser, standing, with_relief


@in_a_house
async def test_one_stands_by_at_every_placement_and_nobody_sees_it(house: House) -> None:
    items = await with_relief(house, 0, 1)
    assert house.fleet.ready_assignments() == tuple(items)
    assert standing(house) == [item.placement.id for item in items]
    figures = house.fleet.observe()
    assert (figures["workers"], figures["relief_workers"], figures["restarting"]) == (2.0, 2.0, 0.0)
    house.fleet.watch()
    await house.settle()
    assert len(house.started) == 4


@in_a_house
async def test_they_are_called_in_a_burst(house: House) -> None:
    await with_relief(house, 0)
    large, small = house.started
    for _ in range(3):  # two batches of one row are out; the third row would wait 30 ms
        house.router.submit(house.router.open(1), lambda _: None)
        await house.settle()
    assert (len(large.sent), len(small.sent)) == (2, 1)
    assert house.router.observe()["relief"] == 1.0


@in_a_house
async def test_without_an_slo_nobody_is_called(house: House) -> None:
    await with_relief(house, 0)
    reserve = house.fleet.standby_crew.chooser
    assert isinstance(reserve, StandbyChooser)
    reserve.ms = 0.0
    house.fleet.watch()
    assert "relief" not in house.router.observe()
    reserve.ms = 5.0
    house.fleet.watch()
    assert house.router.observe()["relief"] == 0.0


@in_a_house
async def test_the_placement_is_free_once_its_worker_is_drained(house: House) -> None:
    (item,) = await with_relief(house, 0)
    await house.fleet.drain(item)
    assert [worker.state for worker in house.started] == ["dead", "dead"]
    assert house.fleet.describe() == []


@in_a_house
async def test_a_swap_keeps_who_stands_by(house: House) -> None:
    (item,) = await with_relief(house, 0)
    other = msgspec.structs.replace(item, backend="onnxruntime")
    await house.fleet.spawn(other)
    house.fleet.route((other,), LARGE)
    await house.fleet.drain(item)
    assert [worker.state for worker in house.started] == ["dead", "ready", "ready"]
    # It stood by beside the other backend; now another one does.
    house.fleet.watch()
    await house.settle()
    assert len(standing(house)) == 1


@in_a_house
async def test_one_that_is_spawned_is_there_at_once(house: House) -> None:
    (item,) = await with_relief(house, 0)
    await house.fleet.spawn(at(0, "small"))
    assert len(house.started) == 2
    assert house.fleet.ready_assignments() == (item, at(0, "small"))
    house.fleet.route((at(0, "small"),), SMALL)
    await house.fleet.drain(item)
    house.fleet.watch()
    await house.settle()
    assert [worker.state for worker in house.started] == ["dead", "ready"]
    assert house.fleet.ready
    assert standing(house) == []


@in_a_house
async def test_one_that_died_is_restarted_and_counts_as_no_trouble_of_the_plan(house: House) -> None:
    await with_relief(house, 0)
    house.started[1].die()
    assert standing(house) == []
    await house.settle()
    assert len(house.started) == 3
    assert len(standing(house)) == 1
    assert house.fleet.restarts == 0


@in_a_house
async def test_one_that_cannot_start_is_tried_again_and_bars_nothing(house: House) -> None:
    house.fleet.standby_crew.chooser = StandbyChooser()
    await house.fleet.spawn(at(0, "large"))
    house.fleet.route((at(0, "large"),), LARGE)
    house.failing = 3
    house.fleet.watch()
    await house.settle()
    assert house.fleet.ready
    assert len(standing(house)) == 1
    assert house.slept == [0.1, 0.2, 0.4]


@in_a_house
async def test_with_a_lost_device_goes_who_stands_by(house: House) -> None:
    (item,) = await with_relief(house, 0)
    house.fleet.forget(item, "its GPU is lost")
    assert [worker.killed for worker in house.started] == [True, True]
    house.fleet.watch()
    await house.settle()
    assert len(house.started) == 2


@in_a_house
async def test_stop_ends_them_all(house: House) -> None:
    await with_relief(house, 0, 1)
    await house.fleet.stop()
    assert {worker.state for worker in house.started} == {"dead"}


@in_a_house
async def test_drained_while_one_starts(house: House) -> None:
    house.fleet.standby_crew.chooser = StandbyChooser()
    await house.fleet.spawn(at(0, "large"))
    house.fleet.route((at(0, "large"),), LARGE)
    gate = asyncio.Event()
    start = house.fleet.members.start

    async def slow(assignment: Assignment) -> object:
        await gate.wait()
        return await start(assignment)

    house.fleet.members.start = slow  # type: ignore[assignment]
    house.fleet.watch()
    await asyncio.sleep(0)
    await house.fleet.drain(at(0, "large"))
    gate.set()
    await house.settle()
    assert len(house.started) == 1
    assert house.fleet.describe() == []
