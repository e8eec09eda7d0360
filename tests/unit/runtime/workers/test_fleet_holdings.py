"""What a fleet says of the variants and the memory that its processes hold, and of how long they took to start."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.errors import WorkerError
from clover.planning.transition.memory import MemoryAware
from clover.runtime.workers.fleet import StepTimes
from clover.runtime.workers.member import held_bytes
from clover.types import Assignment, Placement
from clover.worker.frames import HeldMemory
from tests.support.fleet_fixture import SECOND, House, Worker, at


def holding(*variants: str) -> Any:
    held = tuple(HeldMemory(variant=name, weights_bytes=100, peak_bytes=10) for name in variants)
    return SimpleNamespace(held=held, context_bytes=7, backend_of=lambda variant: "eager")


def test_what_processes_hold_is_known_if_each_of_them_said_it() -> None:
    assert held_bytes([holding("small", "medium")]) == 227
    assert held_bytes([holding("small"), holding("large")]) == 234
    assert held_bytes([holding("small"), Worker(1)]) == 0
    assert held_bytes([]) == 0


def test_a_fleet_knows_what_is_resident_where_and_what_it_takes_to_start() -> None:
    async def story() -> None:
        house = House()
        assert isinstance(house.fleet, MemoryAware)

        async def start(item: Assignment) -> Worker:
            house.now_ns += 3 * SECOND
            worker = await house.start(item)
            vars(worker).update(vars(holding("small", "large")), resident={"small": 0, "large": 2})
            return worker

        async def slowly() -> None:
            house.now_ns += 2 * SECOND

        house.fleet.members.start = house.fleet._timed_start(start)
        await house.fleet.spawn(at(0, "small"))
        assert house.fleet.resident(at(0, "large"))
        assert not house.fleet.resident(at(1, "large"))
        assert house.fleet.held_bytes(at(0).placement) == 227
        assert house.fleet.held_bytes(at(1).placement) == 0
        both = Placement(device="cpu0", profile="2c", start=0, size=2)
        assert [house.fleet.overlapped(place) for place in (at(0).placement, at(1).placement, both)] == [1, 0, 1]
        assert not house.fleet.overlapped(msgspec.structs.replace(both, device="cpu1"))
        assert house.fleet.start_seconds() == {("small", "eager", "1c"): 3.0}
        assert house.fleet.memory.needs.process_bytes([at(0, "small"), at(0, "large")]) == 227
        assert house.fleet.memory.needs.process_bytes([at(0, "medium")]) is None
        assert house.fleet.drain_seconds() is None
        house.started[0].drain_and_exit = slowly  # type: ignore[method-assign]
        await house.fleet.drain(at(0, "small"))
        assert house.fleet.drain_seconds() == 2.0
        assert not house.fleet.resident(at(0, "large"))
        house.slab.close()

    asyncio.run(story())


def test_a_worker_that_starts_beside_another_says_nothing_new_of_contexts() -> None:
    """On a GPU it cannot tell another one's memory from its context."""

    async def story() -> None:
        house = House()
        contexts = [7, 1000, 9]

        async def start(item: Assignment) -> Worker:
            worker = await house.start(item)
            worker.held, worker.context_bytes = holding(item.variant).held, contexts.pop(0)
            worker.resident = {item.variant: 0}
            return worker

        house.fleet.members.start = house.fleet._timed_start(start)
        needs = house.fleet.memory.needs
        await house.fleet.spawn(at(0, "small"))
        await house.fleet.spawn(at(0, "large"))
        assert needs.process_bytes([at(0, "small"), at(0, "large")]) == 227, "not 1,220"
        assert house.fleet.held_bytes(at(0).placement) == 2 * 117
        await house.fleet.drain(at(0, "small"))
        assert house.fleet.held_bytes(at(0).placement) == 117, "also once it is alone"
        await house.fleet.spawn(at(1, "small"))
        assert needs.context_bytes("1c") == 9
        house.slab.close()

    asyncio.run(story())


def test_newer_starts_count_more() -> None:
    times = StepTimes()
    times.record_start(at(0), 1.0)
    times.record_start(at(1), 2.0)
    times.record_start(at(0), 0.0)
    assert times.starts == {("small", "eager", "1c"): pytest.approx(1.3)}
    assert times.drain is None
    times.record_drain(2.0)
    times.record_drain(1.0)
    assert times.drain == pytest.approx(1.7)


def test_a_start_that_found_no_room_beside_another_is_remembered() -> None:
    async def story() -> None:
        house = House()
        await house.fleet.spawn(at(0, "large"))
        house.failing, house.failure = 2, WorkerError("small (eager): MemoryError: ")
        for start in (0, 1):
            with pytest.raises(WorkerError):
                await house.fleet.spawn(at(start, "small"))
        assert house.fleet.found_no_room(at(0, "large"), at(0, "small"))
        assert not house.fleet.found_no_room(at(0, "large"), at(1, "small"))
        assert not house.fleet.found_no_room(at(0, "small"), at(0, "large"))
        house.now_ns += 601 * SECOND
        assert not house.fleet.found_no_room(at(0, "large"), at(0, "small")), "others may have had the memory"
        house.slab.close()

    asyncio.run(story())
