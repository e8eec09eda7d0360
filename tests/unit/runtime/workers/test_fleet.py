"""The fleet's care for its workers, with workers made of Python and time that does not pass by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from clover.errors import CloverError, DeviceError, PlanError, StartError, WorkerError
from clover.types import Assignment, Placement, Routing
from tests.support.fleet_fixture import SECOND, House, at, in_a_house


@in_a_house
async def test_spawn_route_drain(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    await fleet.spawn(at(0))  # it is there
    assert len(house.started) == 1
    assert fleet.ready_assignments() == (at(0),)
    assert not fleet.ready
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    assert fleet.ready
    await fleet.spawn(at(0, "large"))  # beside the old one, on the same placement
    fleet.route((at(0, "large"),), Routing(shares={"large": 1.0}))
    await fleet.drain(at(0))
    await fleet.drain(at(0))
    assert house.started[0].state == "dead"
    assert fleet.ready_assignments() == (at(0, "large"),)
    assert (fleet.swaps, fleet.repartitions) == (1, 0)
    await fleet.spawn(at(0, "large", 2))
    fleet.route((at(0, "large", 2),), Routing(shares={"large": 1.0}))
    assert (fleet.swaps, fleet.repartitions) == (1, 1)
    await fleet.stop()
    assert fleet.ready_assignments() == ()
    assert not fleet.ready


@in_a_house
async def test_the_whole_routing_is_checked_before_any_of_it_takes_effect(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    for knobs in ({"largest": {"huge": 2}}, {"wait_ms": {"huge": 2.0}}):
        with pytest.raises(PlanError, match="has no variant 'huge'"):
            fleet.route((), Routing(shares={"large": 1.0}, **knobs))
    assert fleet.ready
    assert fleet.shares == {"small": 1.0}


@in_a_house
async def test_a_drain_waits_for_the_rows(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    done: list[Any] = []
    router.submit(ticket, done.append)
    await house.settle()
    drain = asyncio.ensure_future(fleet.drain(at(0)))
    await house.settle()
    assert not drain.done()
    assert fleet.describe()[0]["state"] == "draining"
    (worker,) = house.started
    worker.done.append((worker.sent[0], 0, 1, house.now_ns, house.now_ns, 0))
    router.reap()
    await drain
    assert ticket.status == 200
    router.stop()


@in_a_house
async def test_a_drain_waits_for_the_rows_that_no_other_worker_may_serve(house: House) -> None:
    fleet, router = house.fleet, house.router
    router.accuracy[:] = [80.0, 90.0]
    for item in (at(0), at(1, "large")):
        await fleet.spawn(item)
    both = (at(0), at(1, "large"))
    fleet.route(both, Routing(shares={"small": 1.0}))
    fleet.decline({}, lambda: None)
    tickets = []
    for _ in range(7):  # two batches are with the worker, the others wait
        tickets.append(router.open(1))
        router.submit(tickets[-1], lambda ticket: None, min_accuracy=85.0)
        await house.settle()
    _, large = house.started
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    drain = asyncio.ensure_future(fleet.drain(at(1, "large")))
    await house.settle()
    while not drain.done():
        number = large.sent.pop(0)
        links = router.state.lanes.links
        rows = {batch.id: len(batch.slots) for link in links for batch in link.batches.values()}
        large.done.append((number, 0, rows[number], house.now_ns, house.now_ns, 0))
        router.reap()
        await house.settle()
    assert [ticket.status for ticket in tickets] == [200] * 7
    assert large.state == "dead"
    router.stop()


@in_a_house
async def test_a_dead_worker_comes_back_with_growing_patience(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    assert fleet.missing == 0
    house.failing = 8
    house.started[0].die()
    assert not fleet.ready
    assert fleet.missing == 1, "however often starts fail"
    assert house.router.hold  # rows may wait: the first restarts are quick
    house.router.close(house.router.open(1))
    await house.settle()
    assert fleet.ready
    assert house.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
    assert fleet.restarts == 9
    assert (fleet.missing, fleet.given_up) == (0, 0)
    assert not house.router.hold
    house.now_ns += 31 * SECOND
    house.slept.clear()
    house.started[-1].die()
    await house.settle()
    assert house.slept == [0.1]  # it had been well for long enough
    assert [event["what"] for event in fleet.events][-2:] == ["died", "restarted"]
    assert fleet.observe()["workers"] == 1.0


@pytest.mark.parametrize("failure", [StartError("no zygote"), DeviceError("no such core-set")])
def test_no_failure_of_a_restart_ends_the_attempts(failure: CloverError) -> None:
    async def main() -> None:
        house = House()
        fleet = house.fleet
        await fleet.spawn(at(0))
        fleet.route((at(0),), Routing(shares={"small": 1.0}))
        house.failing, house.failure = 2, failure
        house.started[0].die()
        await house.settle()
        assert fleet.ready
        assert fleet.restarts == 3
        await fleet.stop()

    asyncio.run(main())


@in_a_house
async def test_a_cancelled_drain_leaves_no_worker_behind(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    router.submit(ticket, lambda _: None)
    await house.settle()
    drain = asyncio.ensure_future(fleet.drain(at(0)))
    await house.settle()
    drain.cancel()
    await house.settle()
    (worker,) = house.started
    assert worker.killed
    worker.die()
    assert fleet.describe() == []
    router.fail_waiting("the test is over")
    router.close(ticket)
    assert fleet.observe()["free_slots"] == 8.0
    router.stop()


@in_a_house
async def test_an_old_worker_that_dies_is_not_replaced_where_a_new_one_stands(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    router.submit(router.open(1), lambda _: None)
    await house.settle()
    drain = asyncio.ensure_future(fleet.drain(at(0)))
    await house.settle()
    await fleet.spawn(at(0))  # the same assignment anew, while the old one still computes
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    house.started[0].die()
    await drain
    await house.settle()
    assert len(house.started) == 2
    assert fleet.restarts == 0
    router.fail_waiting("the test is over")
    router.stop()


@in_a_house
async def test_rows_are_refused_while_a_worker_keeps_dying(house: House) -> None:
    from clover.errors import Unavailable

    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    house.failing = 4
    seen: list[bool] = []
    sleep = house.sleep

    async def look(seconds: float) -> None:
        seen.append(house.router.hold)
        await sleep(seconds)

    fleet.members.sleep = look
    house.started[0].die()
    await house.settle()
    assert seen == [True, True, True, False, False]
    assert fleet.ready
    await fleet.stop()
    with pytest.raises(Unavailable):
        house.router.open(1)


@in_a_house
async def test_a_member_that_is_drained_is_not_restarted(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    house.started[0].die()
    with pytest.raises(WorkerError, match="restarted"):
        await fleet.spawn(at(0))
    await fleet.drain(at(0))
    await house.settle()
    assert len(house.started) == 1
    assert fleet.describe() == []


@in_a_house
async def test_a_failed_spawn_leaves_no_member(house: House) -> None:
    house.failing = 1
    with pytest.raises(WorkerError, match="asked"):
        await house.fleet.spawn(at(0))
    assert house.fleet.describe() == []
    with pytest.raises(WorkerError, match="no variant"):
        await house.fleet.spawn(at(0, "huge"))
    with pytest.raises(PlanError):
        house.fleet.route((at(0),), Routing(shares={"small": 1.0}))


@in_a_house
async def test_silence_costs_a_worker_its_life_but_rows_wait_for_its_death(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    await fleet.spawn(at(1))
    fleet.route((at(0), at(1)), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    done: list[Any] = []
    router.submit(ticket, done.append)
    await house.settle()
    fleet.watch()
    first, second = house.started
    assert (first.sent, first.killed) == ([1], False)
    house.watch_for(5)
    assert not first.killed
    house.watch_for(1)
    assert first.killed
    assert second.sent == []
    first.die("killed by SIGKILL")
    assert second.sent == [2]
    second.done.append((2, 0, 1, house.now_ns, house.now_ns, 0))
    router.reap()
    assert ticket.status == 200
    assert "silent" in fleet.events[0]["reason"]
    router.stop()


def test_a_worker_may_be_silent_for_less_than_passes_between_two_looks() -> None:
    async def main() -> None:
        house = House(silent_s=0.5)
        await house.fleet.spawn(at(0))
        house.fleet.route((at(0),), Routing(shares={"small": 1.0}))
        house.router.submit(house.router.open(1), lambda ticket: None)
        await house.settle()
        for _ in range(2):
            house.now_ns += SECOND
            house.fleet.watch()
        assert house.started[0].killed
        house.router.fail_waiting("the test is over")
        house.router.stop()

    asyncio.run(main())


@in_a_house
async def test_a_worker_that_dies_while_it_drains_ends_the_drain(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    await fleet.spawn(at(1))
    fleet.route((at(0), at(1)), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    router.submit(ticket, lambda _: None)
    await house.settle()
    first, second = house.started
    drain = asyncio.ensure_future(fleet.drain(at(0)))
    await house.settle()
    first.die()
    await drain
    await house.settle()
    assert second.sent == [2]
    assert len(house.started) == 2
    router.fail_waiting("the test is over")
    router.stop()


@in_a_house
async def test_a_lost_gpu_blames_no_request_and_slices_are_compute_slices(house: House) -> None:
    fleet, router = house.fleet, house.router
    halves = [
        Assignment(
            placement=Placement(device="gpu0", profile="3g.20gb", start=start, size=4),
            family="toy",
            variant="small",
            backend="eager",
        )
        for start in (0, 4)
    ]
    for half in halves:
        await fleet.spawn(half)
    assert [member.meter.slices for member in fleet.members.all() if member.meter is not None] == [3, 3]
    fleet.route(tuple(halves), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    done: list[Any] = []
    router.submit(ticket, done.append)
    await house.settle()
    house.failing = 1 << 30
    for worker in sorted(house.started, key=lambda worker: not worker.sent):
        worker.device_lost = True
        worker.overruns = 3
        assert 3 in [line["overruns"] for line in fleet.describe()]
        worker.die("its GPU is lost")
        await asyncio.sleep(0)
    assert (ticket.status, ticket.deaths, router.traffic.poisoned) == (0, 0, 0)
    house.failing = 0
    await house.settle()
    (worker,) = [worker for worker in house.started if worker.sent and worker.state == "ready"]
    worker.done.append((worker.sent[0], 0, 1, house.now_ns, house.now_ns, 0))
    router.reap()
    assert ticket.status == 200
    await fleet.stop()


@in_a_house
async def test_a_worker_that_is_given_up_is_ended_without_waiting_and_its_rows_go_elsewhere(house: House) -> None:
    fleet, router = house.fleet, house.router
    await fleet.spawn(at(0))
    await fleet.spawn(at(1))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    ticket = router.open(1)
    router.submit(ticket, lambda _: None)
    await house.settle()
    assert house.started[0].sent
    fleet.route((at(1),), Routing(shares={"small": 1.0}))
    fleet.forget(at(0), "gpu0 is lost")
    fleet.forget(at(0), "gpu0 is lost")  # once is enough
    assert house.started[0].killed
    assert fleet.ready_assignments() == (at(1),)
    assert not house.started[1].sent, "the old worker may write into its slots until it is dead"
    house.started[0].die()
    await house.settle()
    assert house.started[1].sent, "then they are asked elsewhere"
    assert len(house.started) == 2, "and nothing is started in its place"
    assert fleet.events[0]["what"] == "given up"
    router.fail_waiting("the test is over")
    router.stop()


@in_a_house
async def test_a_worker_on_a_gpu_that_is_back_starts_once_the_one_before_is_dead(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.forget(at(0), "gpu0 is lost")
    again = asyncio.ensure_future(fleet.spawn(at(0)))
    await house.settle()
    assert len(house.started) == 1, "it may have the GPU's memory still"
    house.started[0].die()
    await again
    assert len(house.started) == 2
    assert fleet.ready_assignments() == (at(0),)
    await fleet.stop()


@in_a_house
async def test_a_member_without_a_worker_is_given_up_for_good(house: House) -> None:
    fleet = house.fleet
    await fleet.spawn(at(0))
    fleet.route((at(0),), Routing(shares={"small": 1.0}))
    house.failing = 1000
    house.started[0].die()
    fleet.forget(at(0), "gpu0 is lost")
    house.failing = 0
    await house.settle()
    assert len(house.started) == 1
    assert not house.router.hold, "nobody waits for it"
    assert fleet.ready_assignments() == ()
    assert (fleet.missing, fleet.given_up) == (0, 1)
