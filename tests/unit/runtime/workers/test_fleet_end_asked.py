"""Workers that others ask to end (SIGTERM): they serve on until another is in their place, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from clover.runtime.workers.members import REPLACED_AFTER_S
from clover.types import Routing
from tests.support.fleet_fixture import House, Worker, at, in_a_house
from tests.support.relief_fixture import standing, with_relief

SMALL = Routing(shares={"small": 1.0})


def submit(house: House) -> tuple[Any, list[Any]]:
    done: list[Any] = []
    ticket = house.router.open(1)
    house.router.submit(ticket, done.append)
    return ticket, done


def answer(house: House, worker: Worker) -> None:
    worker.done += [(number, 0, 1, house.now_ns, house.now_ns, 0) for number in worker.sent]
    worker.sent.clear()
    house.router.reap()


async def serving(house: House, *places: int) -> None:
    for place in places:
        await house.fleet.spawn(at(place))
    house.fleet.route(tuple(at(place) for place in places), SMALL)


def states(house: House) -> list[str]:
    return [worker.state for worker in house.started]


@in_a_house
async def test_it_goes_once_another_is_in_its_place_and_has_answered(house: House) -> None:
    fleet = house.fleet
    await serving(house, 0)
    (old,) = house.started
    ticket, _ = submit(house)
    await house.settle()
    house.may_start.clear()
    old.sigterm()
    await house.settle()
    assert (fleet.ready, fleet.ready_assignments(), house.router.hold) == (True, (at(0),), False)
    other, _ = submit(house)  # it serves on while the other one starts
    await house.settle()
    assert len(old.sent) == 2
    house.may_start.set()
    await house.settle()
    assert [line["state"] for line in fleet.describe()] == ["ready", "draining"]
    assert states(house) == ["ready", "ready"]  # it still has its batches
    late, _ = submit(house)
    await house.settle()
    new = house.started[1]
    assert len(new.sent) == 1
    answer(house, old)
    await house.settle()
    answer(house, new)
    assert [item.status for item in (ticket, other, late)] == [200, 200, 200]
    assert states(house) == ["dead", "ready"]
    assert [line["pid"] for line in fleet.describe()] == [new.pid]
    assert (fleet.restarts, house.router.traffic.lost_workers, house.router.traffic.retried_rows) == (1, 0, 0)
    assert [event["what"] for event in fleet.events] == ["asked to end", "restarted"]
    # No failure is held against it: what dies next comes back as after a first death.
    house.slept.clear()
    new.die()
    await house.settle()
    assert house.slept == [0.1]


@in_a_house
async def test_asked_again_and_again_it_is_replaced_as_quickly(house: House) -> None:
    await serving(house, 0)
    for count in range(1, 8):
        house.started[-1].sigterm()
        house.started[-1].sigterm()
        await house.settle()
        assert house.fleet.restarts == count
        assert states(house) == ["dead"] * count + ["ready"]
    assert house.slept == [REPLACED_AFTER_S] * 7


@in_a_house
async def test_all_at_once(house: House) -> None:
    await serving(house, 0, 1, 2)
    for worker in house.started[:3]:
        worker.sigterm()
    await house.settle()
    assert states(house) == ["dead"] * 3 + ["ready"] * 3
    assert house.fleet.ready_assignments() == (at(0), at(1), at(2))


@in_a_house
async def test_while_the_server_stops_it_stays(house: House) -> None:
    """Who asks the whole process group asks the workers first, maybe; all that was received is still to be answered."""
    fleet = house.fleet
    await serving(house, 0)
    (worker,) = house.started
    ticket, _ = submit(house)
    worker.sigterm()
    fleet.closing = True
    await house.settle()
    assert (len(house.started), fleet.ready, fleet.restarts) == (1, True, 0)
    stopping = asyncio.ensure_future(fleet.stop())
    await house.settle()
    answer(house, worker)
    await stopping
    assert (ticket.status, worker.state) == (200, "dead")


@in_a_house
async def test_one_beside_which_no_other_starts_goes_first_and_rows_wait(house: House) -> None:
    fleet = house.fleet
    await serving(house, 0)
    (old,) = house.started
    ticket, _ = submit(house)
    await house.settle()
    house.failing = 1  # no memory for two, say
    old.sigterm()
    await house.settle()
    assert (fleet.ready, house.router.hold, old.state) == (False, True, "ready")
    late, _ = submit(house)
    answer(house, old)
    await house.settle()
    assert states(house) == ["dead", "ready"]
    answer(house, house.started[1])
    assert (ticket.status, late.status) == (200, 200)
    assert [event["what"] for event in fleet.events] == ["asked to end", "restarted"]


@in_a_house
async def test_one_that_dies_meanwhile_is_replaced_once(house: House) -> None:
    await serving(house, 0)
    (old,) = house.started
    ticket, _ = submit(house)
    await house.settle()
    house.may_start.clear()
    old.sigterm()
    await house.settle()
    old.die()
    await house.settle()
    assert house.router.hold
    house.may_start.set()
    await house.settle()
    answer(house, house.started[1])
    assert ticket.status == 200
    assert states(house) == ["dead", "ready"]
    assert [line["state"] for line in house.fleet.describe()] == ["ready"]


@in_a_house
async def test_one_that_is_drained_meanwhile_is_not_replaced(house: House) -> None:
    await serving(house, 0)
    house.may_start.clear()
    house.started[0].sigterm()
    await house.settle()
    await house.fleet.drain(at(0))
    house.may_start.set()
    await house.settle()
    assert states(house) == ["dead"]
    assert house.fleet.describe() == []


@in_a_house
async def test_one_that_still_answers_is_waited_for_by_a_stop(house: House) -> None:
    await serving(house, 0)
    (old,) = house.started
    ticket, _ = submit(house)
    await house.settle()
    old.sigterm()
    await house.settle()
    stopping = asyncio.ensure_future(house.fleet.stop())
    await house.settle()
    assert not stopping.done()
    answer(house, old)
    await stopping
    assert (ticket.status, states(house)) == (200, ["dead", "dead"])


@in_a_house
async def test_one_that_stands_by_is_replaced_as_well(house: House) -> None:
    (item,) = await with_relief(house, 0)
    _, small = house.started
    small.sigterm()
    await house.settle()
    assert states(house) == ["ready", "dead", "ready"]
    assert standing(house) == [item.placement.id]
    assert house.fleet.restarts == 0
    for _ in range(3):
        submit(house)
        await house.settle()
    assert [len(worker.sent) for worker in house.started] == [2, 0, 1]


@in_a_house
async def test_its_placement_is_free_only_once_it_is_gone_too(house: House) -> None:
    await serving(house, 0)
    (old,) = house.started
    submit(house)
    await house.settle()
    old.sigterm()
    await house.settle()
    new = house.started[1]
    drained = asyncio.get_running_loop().create_task(house.fleet.drain(at(0)))
    await house.settle()
    assert new.state == "dead"
    assert not drained.done(), "the old one still has its batch, and the instance"
    answer(house, old)
    await house.settle()
    assert drained.done()
    assert old.state == "dead"


@in_a_house
async def test_a_placement_that_is_given_up_takes_it_along(house: House) -> None:
    await serving(house, 0)
    (old,) = house.started
    submit(house)
    await house.settle()
    old.sigterm()
    await house.settle()
    house.fleet.forget(at(0), "the device is lost")
    assert [worker.killed for worker in house.started] == [True, True]
