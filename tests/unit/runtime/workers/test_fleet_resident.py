"""Members at one placement share a worker that holds their variants: one process, one life."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.accounting.host import HostCpu
from clover.control.state.family import Family
from clover.errors import WorkerError
from clover.runtime.router.lane_pace import ProfiledPace
from clover.types import CpuTimes
from tests.support.fleet_fixture import House, at, in_a_house
from tests.support.relief_fixture import StandbyChooser
from tests.support.resident_fixture import HALF, LARGE, ONLY, SMALL, ask, complete, shared


@in_a_house
async def test_a_variant_that_a_worker_holds_is_ready_at_once(house: House) -> None:
    worker = await shared(house)
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    for _ in range(2):
        ask(house)
    await house.settle()
    assert sorted(worker.lanes) == [0, 1]  # one batch a variant, and no more than two in all
    ask(house)
    await house.settle()
    assert len(worker.sent) == 2
    complete(house, worker)
    assert len(worker.sent) == 1
    complete(house, worker)
    await house.fleet.stop()


@in_a_house
async def test_one_worker_is_one_for_people(house: House) -> None:
    worker = await shared(house)
    await house.fleet.spawn(at(1))
    first, second = house.fleet.describe()
    assert (first["pid"], first["variants"], first["resident"]) == (worker.pid, ["small", "large"], ["small", "large"])
    assert (first["variant"], first["state"], first["routed"]) == ("small", "ready", True)
    assert second["variants"] == ["small"]
    assert house.fleet.observe()["workers"] == 2.0
    await house.fleet.stop()


@in_a_house
async def test_a_swap_to_what_is_held_needs_no_process_and_the_last_one_ends_it(house: House) -> None:
    worker = await shared(house)
    await house.fleet.drain(SMALL)
    house.fleet.route((LARGE,), ONLY["large"])
    assert worker.state == "ready"
    for _ in range(50):
        await house.fleet.spawn(SMALL)
        house.fleet.route((SMALL,), ONLY["small"])
        await house.fleet.drain(LARGE)
        await house.fleet.spawn(LARGE)
        house.fleet.route((LARGE,), ONLY["large"])
        await house.fleet.drain(SMALL)
    assert len(house.started) == 1
    assert len(house.account.workers()) == 1
    await house.fleet.drain(LARGE)
    assert worker.state == "dead"
    assert house.fleet.describe() == []
    assert house.account.workers() == ()


@in_a_house
async def test_rows_of_a_lane_that_leaves_are_answered_first(house: House) -> None:
    worker = await shared(house)
    house.fleet.route((SMALL, LARGE), ONLY["large"])
    ask(house)
    await house.settle()
    house.fleet.route((SMALL,), ONLY["small"])
    drain = asyncio.ensure_future(house.fleet.drain(LARGE))
    await house.settle()
    assert not drain.done()
    complete(house, worker)
    await drain
    assert worker.state == "ready"
    await house.fleet.stop()


@in_a_house
async def test_a_lane_that_comes_back_before_it_has_left_ends_the_wait(house: House) -> None:
    worker = await shared(house)
    house.fleet.route((SMALL, LARGE), ONLY["large"])
    ask(house)
    await house.settle()
    house.fleet.route((SMALL,), ONLY["small"])
    drain = asyncio.ensure_future(house.fleet.drain(LARGE))
    await house.settle()
    await house.fleet.spawn(LARGE)
    house.fleet.route((SMALL, LARGE), HALF)
    await drain
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    assert len(house.account.workers()) == 2
    complete(house, worker)
    meters = {meter.variant: meter.rows for meter in house.account.workers()}
    assert meters == {"small": 0, "large": 1}
    await house.fleet.stop()


@in_a_house
async def test_a_cancelled_drain_does_not_kill_what_others_need(house: House) -> None:
    worker = await shared(house)
    house.fleet.route((SMALL, LARGE), ONLY["large"])
    ask(house)
    await house.settle()
    house.fleet.route((SMALL,), ONLY["small"])
    drain = asyncio.ensure_future(house.fleet.drain(LARGE))
    await house.settle()
    drain.cancel()
    await house.settle()
    assert not worker.killed
    complete(house, worker)
    await house.fleet.stop()
    assert worker.state == "dead"


@in_a_house
async def test_both_drained_at_once_end_the_process_once(house: House) -> None:
    worker = await shared(house)
    await asyncio.gather(house.fleet.drain(SMALL), house.fleet.drain(LARGE))
    assert worker.state == "dead"
    assert house.fleet.describe() == []


@in_a_house
async def test_all_drained_at_once_take_along_who_answers_audits_there(house: House) -> None:
    house.holding = ("small", "large")
    other = msgspec.structs.replace(SMALL, backend="other")
    await house.fleet.spawn(SMALL)
    await house.fleet.spawn(other)
    house.fleet.route((SMALL, other), ONLY["small"])
    crew: Any = house.fleet.standby_crew
    crew._auditors = lambda: [LARGE]
    house.fleet.watch()
    assert [len(house.started), len(house.fleet.members.spawned)] == [2, 3]
    await asyncio.gather(house.fleet.drain(SMALL), house.fleet.drain(other))
    assert [worker.state for worker in house.started] == ["dead", "dead"]
    assert house.fleet.describe() == []


@in_a_house
async def test_the_last_drain_waits_for_lanes_that_are_leaving(house: House) -> None:
    worker = await shared(house)
    house.fleet.route((SMALL, LARGE), ONLY["large"])
    ask(house)
    await house.settle()
    house.fleet.route((SMALL,), ONLY["small"])
    first, last = (asyncio.ensure_future(house.fleet.drain(item)) for item in (LARGE, SMALL))
    await house.settle()
    assert [first.done(), last.done()] == [False, False], "the process is there, and the instance in use"
    complete(house, worker)
    await asyncio.gather(first, last)
    assert worker.state == "dead"


@in_a_house
async def test_a_drain_that_is_cancelled_as_it_begins_leaves_no_process(house: House) -> None:
    worker = await shared(house)
    drains = [asyncio.ensure_future(house.fleet.drain(item)) for item in (SMALL, LARGE)]
    await asyncio.sleep(0)
    for drain in drains:
        drain.cancel()
    await house.settle()
    assert worker.killed
    worker.die()
    assert house.fleet.describe() == []


@in_a_house
async def test_other_backends_and_other_variants_need_a_process_of_their_own(house: House) -> None:
    house.holding = ("small",)
    await house.fleet.spawn(SMALL)
    house.started[0].resident, house.started[0].backends = {"small": 0, "large": 1}, {"large": "other"}
    await house.fleet.spawn(LARGE)
    assert len(house.started) == 2
    await house.fleet.stop()


@in_a_house
async def test_those_that_start_together_share_the_first(house: House) -> None:
    house.holding = ("small", "large")
    house.may_start.clear()
    spawns = [asyncio.ensure_future(house.fleet.spawn(item)) for item in (SMALL, LARGE)]
    await house.settle()
    house.may_start.set()
    await asyncio.gather(*spawns)
    assert len(house.started) == 1
    await house.fleet.stop()


@in_a_house
async def test_those_that_start_together_do_not_share_a_failure(house: House) -> None:
    house.holding = ("small", "large")
    house.failing = 1
    first, second = await asyncio.gather(house.fleet.spawn(SMALL), house.fleet.spawn(LARGE), return_exceptions=True)
    assert isinstance(first, WorkerError)
    assert second is None
    assert house.fleet.ready_assignments() == (LARGE,)
    await house.fleet.stop()


@in_a_house
async def test_a_death_is_one_for_all_and_one_process_comes_back(house: House) -> None:
    worker = await shared(house)
    tickets = [ask(house) for _ in range(4)]
    await house.settle()
    house.fleet.route((LARGE,), ONLY["large"])  # large is routed, so it is what the new one is started for
    house.failing = 2
    worker.die()
    assert house.fleet.observe()["restarting"] == 1.0
    house.fleet.route((SMALL, LARGE), HALF)
    assert house.fleet.missing == 1  # the process, not each of its variants
    family: Any = SimpleNamespace(fleet=house.fleet, desired=(SMALL, LARGE, at(1)))
    assert Family.missing.__get__(family) == 2
    house.fleet.route((LARGE,), ONLY["large"])
    await house.settle()
    assert len(house.started) == 2
    assert house.fleet.restarts == 3
    assert list(house.started[1].resident) == ["large", "small"]
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    assert Counter(event["what"] for event in house.fleet.events) == {"died": 1, "failed": 2, "restarted": 1}
    house.fleet.route((SMALL, LARGE), HALF)
    while any(ticket.status == 0 for ticket in tickets):
        complete(house, house.started[1])
    assert {ticket.status for ticket in tickets} == {200}
    assert house.router.traffic.lost_workers == 1
    await house.fleet.stop()


@in_a_house
async def test_what_the_new_worker_leaves_out_gets_one_of_its_own(house: House) -> None:
    worker = await shared(house)
    house.holding = ()
    worker.die()
    await house.settle()
    assert len(house.started) == 3
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    assert house.fleet.observe()["workers"] == 2.0
    await house.fleet.stop()


@in_a_house
async def test_one_that_is_drained_while_all_restart_does_not_stop_the_others(house: House) -> None:
    worker = await shared(house)
    house.may_start.clear()
    worker.die()
    await house.settle()
    await house.fleet.drain(SMALL)  # the one that the worker is started for
    house.may_start.set()
    await house.settle()
    assert house.fleet.ready_assignments() == (LARGE,)
    await house.fleet.stop()


@in_a_house
async def test_sigterm_replaces_the_process_for_all(house: House) -> None:
    worker = await shared(house)
    worker.sigterm()
    await house.settle()
    assert [one.state for one in house.started] == ["dead", "ready"]
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    assert house.fleet.restarts == 1
    assert len(house.account.workers()) == 2
    await house.fleet.stop()


@in_a_house
async def test_sigterm_where_no_other_starts_beside_it(house: House) -> None:
    worker = await shared(house)
    house.failing = 1
    worker.sigterm()
    await house.settle()
    assert worker.state == "dead"
    assert len(house.started) == 2
    assert house.fleet.ready_assignments() == (SMALL, LARGE)
    await house.fleet.stop()


@in_a_house
async def test_a_lost_placement_is_one_worker_given_up(house: House) -> None:
    worker = await shared(house)
    for item in (SMALL, LARGE):
        house.fleet.forget(item, "the device is lost")
    assert worker.killed
    worker.die()
    await house.settle()
    assert (house.fleet.given_up, len(house.started)) == (1, 1)
    assert house.fleet.describe() == []


@in_a_house
async def test_a_silent_process_is_killed_once(house: House) -> None:
    worker = await shared(house)
    for _ in range(2):
        ask(house)
    await house.settle()
    house.watch_for(6)
    assert worker.killed
    assert Counter(event["what"] for event in house.fleet.events) == {"killed": 1}
    worker.die()
    await house.settle()
    house.router.fail_waiting("the test is over")
    house.router.stop()


@in_a_house
async def test_relief_stands_by_in_the_worker_that_holds_it(house: House) -> None:
    house.holding = ("small", "large")
    house.fleet.standby_crew.chooser = StandbyChooser()
    await house.fleet.spawn(LARGE)
    house.fleet.route((LARGE,), ONLY["large"])
    house.fleet.watch()
    await house.settle()
    assert len(house.started) == 1
    assert house.fleet.ready_assignments() == (LARGE,)
    (described,) = house.fleet.describe()
    assert (described["state"], described["variants"], described["standby"]) == ("ready", ["large"], ["small"])
    held = {meter.variant: meter.holds for meter in house.account.workers()}
    assert held == {"large": True, "small": False}
    for _ in range(3):
        ask(house)
        await house.settle()
    assert house.router.observe()["relief"] == 1.0
    complete(house, house.started[0])
    assert house.started[0].lanes[-1] == 1  # small
    await house.fleet.spawn(SMALL)
    assert all(meter.holds for meter in house.account.workers())
    complete(house, house.started[0])
    await house.fleet.stop()


@in_a_house
async def test_the_best_variant_answers_audits_where_it_is_held(house: House) -> None:
    house.holding = ("small", "large")
    await house.fleet.spawn(SMALL)
    house.fleet.route((SMALL,), ONLY["small"])
    crew: Any = house.fleet.standby_crew
    crew._auditors = lambda: [LARGE]
    house.fleet.watch()
    lanes = house.router.state.lanes
    assert (lanes.live, lanes.asked) == (0b01, 0b11)
    assert house.fleet.ready_assignments() == (SMALL,)
    assert len(house.started) == 1
    await house.fleet.spawn(LARGE)  # a plan wants it
    house.fleet.route((SMALL, LARGE), HALF)
    assert lanes.live == 0b11
    await house.fleet.drain(SMALL)
    crew._auditors = list
    house.fleet.watch()
    await house.settle()
    assert house.fleet.ready_assignments() == (LARGE,)
    await house.fleet.drain(LARGE)
    assert house.started[0].state == "dead"


@in_a_house
async def test_who_answers_audits_and_is_wanted_for_relief_does_both(house: House) -> None:
    house.holding = ("small", "large")
    await house.fleet.spawn(LARGE)
    house.fleet.route((LARGE,), ONLY["large"])
    crew: Any = house.fleet.standby_crew
    crew._auditors = lambda: [SMALL]
    house.fleet.watch()
    assert "relief" not in house.router.observe()
    crew.chooser = StandbyChooser()
    house.fleet.watch()
    lanes = house.router.state.lanes
    assert (house.router.observe()["relief"], lanes.live, lanes.asked) == (0.0, 0b10, 0b11)
    assert house.fleet.observe()["relief_workers"] == 1.0
    for _ in range(3):
        ask(house)
        await house.settle()
    assert (house.router.observe()["relief"], lanes.live) == (1.0, 0b11)
    crew.chooser = None
    house.fleet.watch()
    assert (lanes.live, lanes.asked) == (0b10, 0b11)
    while house.started[0].sent:
        complete(house, house.started[0])
    await house.fleet.stop()


@in_a_house
async def test_relief_by_a_variant_of_the_plan_needs_no_other_member(house: House) -> None:
    worker = await shared(house)
    chooser: Any = StandbyChooser()
    house.fleet.standby_crew.chooser = chooser
    house.fleet.watch()
    assert house.router.observe()["relief"] == 0.0
    assert house.fleet.observe()["relief_workers"] == 0.0
    (described,) = house.fleet.describe()
    assert (described["variants"], described["standby"]) == (["small", "large"], [])
    house.fleet.route((SMALL, LARGE), ONLY["large"])
    for _ in range(3):
        ask(house)
        await house.settle()
    assert house.router.observe()["relief"] == 1.0
    while worker.sent:
        complete(house, worker)
    assert worker.lanes[-1] == 0  # small
    await house.fleet.stop()


@in_a_house
async def test_nothing_is_attached_for_audits_if_the_plan_has_the_best_variant(house: House) -> None:
    """A worker that takes one row at a time would take rows of clients too."""
    house.holding = ("small", "large")
    await house.fleet.spawn(SMALL)
    await house.fleet.spawn(at(1, "large"))
    house.fleet.route((SMALL, at(1, "large")), HALF)
    crew: Any = house.fleet.standby_crew
    crew._router = SimpleNamespace(
        guard=SimpleNamespace(best=1),
        audits=SimpleNamespace(on=True),
        traffic=SimpleNamespace(variants=("small", "large")),
        spare=None,
    )
    assert crew._auditors() == []
    house.fleet.route((SMALL,), ONLY["small"])
    assert crew._auditors() == [LARGE]
    crew._router.audits.on = False
    assert crew._auditors() == []
    crew._router.spare = SimpleNamespace(lanes_wanted=lambda: {0, 1})  # rows of batch jobs want the best variant, too
    assert crew._auditors() == [LARGE]
    await house.fleet.stop()


@in_a_house
async def test_lanes_of_one_worker_are_expected_to_share_its_time(house: House) -> None:
    """Of a row each, `small` takes a second and `large` three: one of either in four seconds."""
    paces = {"small": ProfiledPace(1.0), "large": ProfiledPace(1.0 / 3.0)}
    house.fleet.pace = lambda item: paces[item.variant]
    await shared(house)
    assert [pace.wait_ns(0, 1) for pace in house.router.state.lanes.paces] == pytest.approx([4e9, 4e9])
    house.fleet.route((SMALL, LARGE), ONLY["small"])
    assert [pace.wait_ns(0, 1) for pace in house.router.state.lanes.paces] == pytest.approx([1e9, 3e9])
    await house.fleet.stop()


@in_a_house
async def test_cpu_time_of_a_process_is_counted_once(house: House) -> None:
    clock = {1: 0}
    host = HostCpu(lambda pids: CpuTimes(tree_ns=sum(clock.values()) + 7, server_ns=7), clock.get)
    house.account.add_host("cpu0", host)
    await shared(house)
    small, large = house.account.workers()
    clock[1] = 1000
    small.add(1, 100, 100)
    large.add(1, 300, 300)
    host.poll()
    assert host.parts.workers == [(small, 250), (large, 750)]
    house.account.detach(small)
    clock[1] = 1400
    host.poll()
    assert host.parts.workers == [(small, 350), (large, 1050)]
    host.close()
    clock[1] = 1500
    host.poll()
    assert host.parts.workers == [(large, 100)]
    await house.fleet.stop()
