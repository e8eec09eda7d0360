"""What everything else stands on: the zygote has one thread with this torch, its forks start CUDA, two share a GPU."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from clover.runtime.workers.handle import WorkerProcess
from tests.support.worker_pools import client_of, order, run, slab_of, started

from .conftest import Slice

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


def parts(worker: WorkerProcess) -> dict[str, float]:
    return {
        "fork_ms": worker.fork_ms,
        "load_ms": worker.load_ms,
        "warm_ms": worker.warm_ms,
        "ready_ms": worker.ready_ms,
    }


def test_workers_start_on_the_gpu_alone_and_side_by_side(slice_: Slice, figures: dict[str, Any]) -> None:
    """The zygote refuses to serve with more than one thread, so a pool that starts has one.  CUDA starts in a process
    that was forked from it and may gain no privileges."""

    async def main() -> None:
        began_s = time.monotonic()
        async with started(start_s=120.0) as pool, client_of(pool) as client:
            figures["zygote_ready_ms"] = (time.monotonic() - began_s) * 1e3
            with slab_of("fashion") as (spec, slab):
                wanted = [order(spec, variant, visible_devices=slice_.visible) for variant in ("tiny", "medium")]
                first = await pool.spawn(wanted[0], slab)
                figures["alone"] = parts(first)
                assert await client.infer(first, 0, 1, 2) == 0
                two = await asyncio.gather(*(pool.spawn(item, slab) for item in wanted))
                figures["two_beside"] = [parts(worker) for worker in two]
                for worker in (first, *two):
                    assert await client.infer(worker, 0, 1, 2, 3, 4) == 0

    run(main())
