"""Hot spares: where they stand, who takes them, and that none is left behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from clover.errors import WorkerError
from clover.runtime.workers.hot_spares import AGAIN_NS, SLOW_S, HotSpares
from clover.types import Placement


def at(start: int) -> Placement:
    return Placement(device="gpu0", profile="1g.5gb", start=start, size=1)


class Spare:
    def __init__(self, pid: int) -> None:
        self.pid, self.state, self.on_death = pid, "spare", None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def drain_and_exit(self) -> None:
        self.state = "draining"
        await self.may_end.wait()
        self.state = "dead"

    def kill(self) -> None:
        self.state = "killed"


class Room:
    """Where spares are started; `now_ns` is its clock."""

    def __init__(self, mode: Any = "on") -> None:
        self.now_ns = 0
        self.made: list[Any] = []
        self.fails = False
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.spares = HotSpares("toy", mode, self.start, clock=lambda: self.now_ns)

    async def start(self, placement: Placement) -> Spare:
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            self.made.append("cancelled")
            raise
        if self.fails:
            raise WorkerError("no room")
        self.made.append(Spare(100 + len(self.made)))
        return self.made[-1]

    async def tend(self, *wanted: Placement) -> None:
        self.spares.tend(wanted)
        for _ in range(5):
            await asyncio.sleep(0)


def test_one_stands_at_each_place_until_it_is_taken_and_the_next_follows() -> None:
    async def run() -> None:
        room = Room()
        await room.tend(at(0), at(1))
        await room.tend(at(0), at(1))
        assert room.spares.places == {at(0), at(1)}
        assert room.spares.pids("gpu0") == {100, 101}
        assert room.spares.pids("gpu1") == frozenset()
        taken = room.spares.take(at(0))
        assert taken is room.made[0]
        assert taken.on_death is None
        assert room.spares.take(at(0)) is None
        await room.tend(at(0), at(1))
        assert len(room.made) == 3
        assert room.spares.taken == 1
        await room.spares.stop()
        assert [spare.state for spare in room.made] == ["spare", "dead", "dead"]

    asyncio.run(run())


def test_a_place_that_is_left_keeps_none_also_not_one_that_starts() -> None:
    async def run() -> None:
        room = Room()
        await room.tend(at(0))
        await room.tend()  # no worker is there any more
        assert room.made[0].state == "dead"
        room.may_start.clear()
        await room.tend(at(1))
        await room.spares.leave(at(1))
        assert room.made[1] == "cancelled"
        assert room.spares.places == frozenset()

    asyncio.run(run())


def test_a_place_is_left_once_the_one_that_ends_there_already_is_gone() -> None:
    async def run() -> None:
        room = Room()
        await room.tend(at(0))
        (spare,) = room.made
        spare.may_end.clear()
        await room.tend()
        assert spare.state == "draining"
        leaving = asyncio.ensure_future(room.spares.leave(at(0)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not leaving.done(), "its process still holds the instance"
        spare.may_end.set()
        await leaving
        assert spare.state == "dead"

    asyncio.run(run())


def test_those_on_a_lost_gpu_are_killed_and_none_is_taken_there() -> None:
    async def run() -> None:
        room = Room()
        await room.tend(at(0))
        room.may_start.clear()
        await room.tend(at(0), at(1))
        room.spares.forget(at(0))
        room.spares.forget(at(1))
        room.spares.forget(at(2))
        for _ in range(5):
            await asyncio.sleep(0)
        assert room.made[0].state == "killed"
        assert room.made[0].on_death is None
        assert room.made[1:] == ["cancelled"]
        assert room.spares.take(at(0)) is None
        room.may_start.set()
        await room.tend(at(0))
        assert room.spares.places == {at(0)}
        await room.spares.stop()

    asyncio.run(run())


def test_after_a_failure_or_a_death_a_minute_passes(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        room = Room()
        room.fails = True
        await room.tend(at(0))
        room.fails = False
        await room.tend(at(0))
        assert room.made == []
        room.now_ns = AGAIN_NS
        await room.tend(at(0))
        (spare,) = room.made
        spare.state = "dead"
        spare.on_death(spare, "killed by SIGKILL")
        await room.tend(at(0))
        assert room.spares.take(at(0)) is None
        assert len(room.made) == 1
        room.now_ns *= 2
        await room.tend(at(0))
        assert len(room.made) == 2
        await room.spares.stop()

    asyncio.run(run())
    assert "no hot spare at gpu0:1g.5gb@0 for a minute: no room" in caplog.text
    assert "is gone, the next comes in a minute: killed by SIGKILL" in caplog.text


@pytest.mark.parametrize(
    ("mode", "cold_s", "left_bytes", "pays"),
    [
        ("off", 9.0, None, False),
        ("on", 0.1, 0, True),
        ("auto", SLOW_S, None, True),
        ("auto", SLOW_S, 800, True),
        ("auto", SLOW_S, 799, False),
        ("auto", SLOW_S / 2, None, False),
    ],
)
def test_where_one_pays(mode: Any, cold_s: float, left_bytes: int | None, pays: bool) -> None:
    async def run() -> None:
        spares = Room(mode).spares
        spares.cold_s["1g.5gb"] = cold_s
        workers = {at(0): SimpleNamespace(context_bytes=400)}
        assert spares.wanted(workers, lambda place: left_bytes) == ({at(0)} if pays else set())

    asyncio.run(run())
