"""Completions of workers that cannot be trusted: nothing that one does to what it holds stops the server."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from clover.runtime.workers.completions import Completions
from clover.runtime.workers.handle import WorkerChannel, WorkerProcess

FULL = (1 << 64) - 2
"""As much as an eventfd holds: one more write waits, or fails."""


class TwoWorkers:
    """The watch over two workers' eventfds; `seen` counts what it reports."""

    def __init__(self) -> None:
        self.watch = Completions()
        self.seen = 0
        self.hostile, self.honest = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        for fd in (self.hostile, self.honest):
            self.watch.watch(fd)
        self.watch.add(self._count)

    def _count(self) -> None:
        self.seen += 1

    def readable(self) -> bool:
        return bool(select.select([self.watch.fd], [], [], 0)[0])

    def turn(self) -> None:
        """As the loop does: call the reader if its descriptor is readable."""
        if self.readable():
            self.watch._written()


@pytest.fixture
def two() -> Iterator[TwoWorkers]:
    found = TwoWorkers()
    yield found
    found.watch.close()
    os.close(found.hostile)
    os.close(found.honest)


def finishes(call: Callable[[], None]) -> bool:
    """Whether `call` returns (a thread that hangs is left behind)."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def test_each_write_is_one_event(two: TwoWorkers) -> None:
    assert not two.readable()
    for count in range(1, 4):
        os.eventfd_write(two.honest, 1)
        two.turn()
        assert two.seen == count
        assert not two.readable()
    os.eventfd_write(two.honest, 1)
    os.eventfd_write(two.hostile, 1)
    two.turn()
    assert (two.seen, two.readable()) == (4, False)


def test_a_worker_that_clears_the_flag_and_reads_does_not_stop_the_server(two: TwoWorkers) -> None:
    os.set_blocking(two.hostile, True)
    os.eventfd_write(two.hostile, 1)
    assert two.readable()
    os.eventfd_read(two.hostile)  # between the look and the reading, as a worker could
    assert finishes(two.watch._written)


def test_a_worker_that_fills_its_eventfd_loses_nothing_of_others(two: TwoWorkers) -> None:
    os.eventfd_write(two.hostile, FULL)
    os.set_blocking(two.hostile, True)
    two.turn()
    seen = two.seen
    os.eventfd_write(two.honest, 1)
    two.turn()
    assert two.seen == seen + 1


def test_one_that_died_is_forgotten_though_a_child_of_it_writes_still(two: TwoWorkers) -> None:
    kept = os.dup(two.hostile)
    two.watch.forget(two.hostile)
    os.eventfd_write(kept, 1)
    assert not two.readable()
    os.close(kept)


def test_more_events_than_are_taken_at_once(two: TwoWorkers) -> None:
    many = [os.eventfd(0) for _ in range(150)]
    for fd in many:
        two.watch.watch(fd)
        os.eventfd_write(fd, 1)
    turns = 0
    while two.readable():
        two.turn()
        turns += 1
    assert turns == 3
    for fd in many:
        two.watch.forget(fd)
        os.close(fd)


def test_a_worker_cannot_make_its_doorbell_block() -> None:
    rung, doorbell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    channel: Any = SimpleNamespace(ring=None, control=None, doorbell=doorbell, completed=-1, pidfd=-1)
    output: Any = None
    owner: Any = None
    order: Any = None
    worker = WorkerProcess(order, 1, channel, output=output, started_at_ns=0, pool=owner)
    os.set_blocking(rung, True)  # all that the worker can do to the end that it holds
    own = os.open(f"/proc/self/fd/{rung}", os.O_WRONLY | os.O_NONBLOCK)
    while select.select([], [own], [], 0)[1]:
        os.write(own, b"x" * 4096)
    assert finishes(worker.bell)
    os.close(own)
    os.close(rung)
    assert finishes(worker.bell)  # it is dying
    os.close(doorbell)
    assert WorkerChannel.__slots__ == ("ring", "control", "doorbell", "completed", "pidfd")


def test_on_a_loop(two: TwoWorkers) -> None:
    async def main() -> None:
        two.watch.start(asyncio.get_running_loop())
        heard = asyncio.Event()
        two.watch.add(heard.set)
        for _ in range(3):
            heard.clear()
            os.eventfd_write(two.honest, 1)
            async with asyncio.timeout(10):
                await heard.wait()
        two.watch.stop()
        two.watch.remove(heard.set)

    asyncio.run(main())
    assert two.seen == 3
