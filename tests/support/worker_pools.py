"""Pools of real workers in tests, and a client that sends them batches as the router does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from clover import families
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.handle import WorkerProcess
from clover.runtime.workers.pool import Pool
from clover.types import FamilySpec
from clover.worker.frames import WorkerOrder

T = TypeVar("T")


FAMILIES = Path(__file__).parents[1] / "families"
CORE = min(os.sched_getaffinity(0))


def until(condition: Callable[[], bool], within_s: float) -> bool:
    """Wait for `condition`, without an event loop; return whether it came true in time."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Dead and reaped: not even a zombie is left."""
    return not os.path.exists(f"/proc/{pid}")


def run(main: Coroutine[Any, Any, T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run `main`, and fail where the loop had anything to complain about."""
    complaints: list[Any] = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        result = runner.run(main)
    assert not complaints
    return result


@contextlib.asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[Pool]:
    pool = Pool.launch(**settings)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.stop()


@contextlib.contextmanager
def slab_of(name: str, slots: int = 32) -> Iterator[tuple[FamilySpec, Slab]]:
    spec = families.load_family(name if name == "fashion" else str(FAMILIES / name))
    slab = Slab.create(Layout(spec, slots))
    try:
        yield spec, slab
    finally:
        slab.close()


def order(spec: FamilySpec, variant: str = "", **changes: Any) -> WorkerOrder:
    found = WorkerOrder(
        family=spec,
        variant=variant or spec.variants[0].name,
        backend="eager",
        cores=(CORE,),
        max_batch=spec.max_batch,
    )
    return msgspec.structs.replace(found, **changes)


class Client:
    """Sends batches to workers of one pool and waits for them, as the router does."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._done = asyncio.Event()
        self._id = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pool.completions.fd, self._rung)

    def _rung(self) -> None:
        self._pool.completions.clear()
        self._done.set()

    def close(self) -> None:
        self._loop.remove_reader(self._pool.completions.fd)

    def submit(self, worker: WorkerProcess, *slots: int, lane: int = 0) -> int:
        self._id += 1
        outcome = worker.ring.submit(self._id, np.array(slots, np.uint32), len(slots), lane)
        assert outcome
        if outcome == 2:
            worker.bell()
        return self._id

    async def answer(self, worker: WorkerProcess, within_s: float = 10.0) -> tuple[int, int, int, int, int, int]:
        found: tuple[int, int, int, int, int, int] | None
        async with asyncio.timeout(within_s):
            while (found := worker.ring.reap()) is None:
                self._done.clear()
                await self._done.wait()
        return found

    async def infer(self, worker: WorkerProcess, *slots: int, lane: int = 0) -> int:
        number = self.submit(worker, *slots, lane=lane)
        batch, status, count, start_ns, end_ns, cpu_ns = await self.answer(worker)
        assert (batch, count) == (number, len(slots))
        assert 0 < start_ns <= end_ns <= time.monotonic_ns()
        assert cpu_ns >= 0
        return status


@contextlib.asynccontextmanager
async def client_of(pool: Pool) -> AsyncIterator[Client]:
    client = Client(pool)
    try:
        yield client
    finally:
        client.close()
