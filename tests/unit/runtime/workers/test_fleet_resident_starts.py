"""Who gets a worker that starts at a placement while members come and leave there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from clover.errors import WorkerError
from clover.types import Routing
from tests.support.fleet_fixture import House, in_a_house
from tests.support.resident_fixture import HALF, LARGE, SMALL, ask, complete, shared


@in_a_house
async def test_a_worker_that_is_ready_goes_to_those_that_are_left(house: House) -> None:
    worker = await shared(house)
    house.may_start.clear()
    worker.die()
    await house.settle()
    await house.fleet.drain(SMALL)  # the one that the worker is started for
    house.may_start.set()
    await house.settle()
    assert [one.killed for one in house.started] == [False, False]
    assert (house.slept, house.fleet.restarts) == ([0.1], 1)
    assert house.fleet.ready_assignments() == (LARGE,)
    await house.fleet.stop()


@in_a_house
async def test_a_replacement_goes_to_those_that_are_left(house: House) -> None:
    worker = await shared(house)
    house.may_start.clear()
    worker.sigterm()
    await house.settle()
    await house.fleet.drain(SMALL)
    house.may_start.set()
    await house.settle()
    assert [(one.state, one.killed) for one in house.started] == [("dead", False), ("ready", False)]
    assert house.fleet.ready_assignments() == (LARGE,)
    assert [event["what"] for event in house.fleet.events] == ["asked to end", "restarted"]
    await house.fleet.stop()


@in_a_house
async def test_a_replacement_that_does_not_hold_those_that_are_left_lets_the_old_one_serve_on(house: House) -> None:
    worker = await shared(house)
    house.holding = ()
    house.may_start.clear()
    worker.sigterm()
    await house.settle()
    await house.fleet.drain(SMALL)
    start = house.fleet.members.start
    states: list[str] = []

    async def seen(item: Any) -> Any:
        states.append(worker.state)
        return await start(item)

    house.fleet.members.start = seen
    house.may_start.set()
    await house.settle()
    assert states == ["ready"]
    assert house.started[1].killed
    assert house.fleet.ready_assignments() == (LARGE,)
    assert (worker.state, house.started[2].state) == ("dead", "ready")
    await house.fleet.stop()


@in_a_house
async def test_one_that_joins_the_old_worker_is_replaced_with_it_whoever_else_leaves(house: House) -> None:
    house.holding = ("small", "large")
    await house.fleet.spawn(SMALL)
    (worker,) = house.started
    worker.sigterm()
    house.failing, house.may_start = 1, asyncio.Event()
    await house.settle()
    await asyncio.wait_for(house.fleet.spawn(LARGE), 1.0)  # not for the start that is under way
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    house.fleet.route((SMALL, LARGE), HALF)
    for _ in range(2):
        ask(house)
    house.may_start.set()
    await house.settle()
    drain = asyncio.ensure_future(house.fleet.drain(SMALL))  # while the old one, which goes first, still has rows
    await house.settle()
    complete(house, worker)
    complete(house, worker)
    await drain
    await house.settle()
    assert house.fleet.ready_assignments() == (LARGE,)
    assert [one.state for one in house.started] == ["dead", "ready"]
    await house.fleet.stop()


@in_a_house
async def test_what_is_held_comes_at_once_while_another_worker_starts_there(house: House) -> None:
    await house.fleet.spawn(SMALL)
    house.started[0].resident = {"small": 0, "large": 1}
    house.may_start.clear()
    other = asyncio.ensure_future(house.fleet.spawn(msgspec.structs.replace(SMALL, backend="other")))
    await house.settle()
    await asyncio.wait_for(house.fleet.spawn(LARGE), 1.0)
    house.may_start.set()
    await other
    assert house.fleet.ready_assignments().count(LARGE) == 1
    await house.fleet.stop()


@in_a_house
async def test_one_that_was_drained_while_it_waited_for_a_start_takes_no_lane(house: House) -> None:
    house.holding = ("small", "large")
    house.may_start.clear()
    first = asyncio.ensure_future(house.fleet.spawn(SMALL))
    await house.settle()
    second = asyncio.ensure_future(house.fleet.spawn(LARGE))
    await house.settle()
    await house.fleet.drain(LARGE)
    house.may_start.set()
    await first
    with pytest.raises(WorkerError, match="large at cpu0:1c@0 was drained before it started"):
        await second
    assert [meter.variant for meter in house.account.workers()] == ["small"]
    await house.fleet.stop()


@in_a_house
async def test_where_a_device_takes_one_process_none_starts_beside_another(house: House) -> None:
    worker = await shared(house)
    house.fleet.members.one_process = lambda place: True
    start = house.fleet.members.start
    states: list[str] = []

    async def seen(item: Any) -> Any:
        states.append(house.started[-1].state)
        return await start(item)

    house.fleet.members.start = seen
    worker.sigterm()
    await house.settle()
    assert states == ["dead"], "the one before goes first"
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    house.holding = ("small",)
    house.started[-1].die()
    await house.settle()
    assert states == ["dead"] * 2
    assert len(house.started) == 3
    assert (house.fleet.ready_assignments(), house.fleet.missing) == ((SMALL,), 1)
    assert "large is not held by the worker at cpu0:1c@0" in house.fleet.events[-1]["reason"]
    house.holding = ("small", "large")
    house.started[-1].die()
    await house.settle()
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    assert len(house.started) == 4
    await house.fleet.stop()


@in_a_house
async def test_a_new_worker_that_holds_all_of_another_takes_its_place(house: House) -> None:
    house.holding = ("small",)
    await house.fleet.spawn(SMALL)
    house.fleet.route((SMALL,), Routing(shares={"small": 1.0}))
    house.holding = ("small", "large")  # what there was no room for, there is now
    await house.fleet.spawn(LARGE)
    await house.settle()
    first, second = house.started
    assert (first.state, second.state) == ("dead", "ready")
    assert set(house.fleet.ready_assignments()) == {SMALL, LARGE}
    assert len({member.worker for member in house.fleet.members.spawned.values()}) == 1
    ask(house)
    await house.settle()
    assert second.sent
    assert not first.sent
    complete(house, second)
    await house.fleet.stop()


@in_a_house
async def test_a_worker_that_holds_more_than_the_new_one_stays(house: House) -> None:
    house.holding = ("small",)
    await house.fleet.spawn(SMALL)
    house.holding = ("large",)
    await house.fleet.spawn(LARGE)
    await house.settle()
    assert [worker.state for worker in house.started] == ["ready", "ready"]
    await house.fleet.stop()
