"""What control takes of an event loop's thread is counted, and does what it did."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from clover.control_time import CONTROL, ControlTime, control_task


def test_each_step_of_a_timed_coroutine_counts_and_what_others_do_meanwhile_does_not() -> None:
    now_ns = 0

    def takes(ns: int) -> None:
        nonlocal now_ns
        now_ns += ns

    async def control() -> str:
        takes(5)
        await asyncio.sleep(0)
        takes(7)
        return "planned"

    async def main() -> str:
        task = asyncio.ensure_future(time.timed(control()))
        await asyncio.sleep(0)
        takes(1000)  # a request
        return await task

    time = ControlTime(lambda: now_ns)
    assert asyncio.run(main()) == "planned"
    assert time.used_ns == 12


def test_a_timed_coroutine_is_cancelled_and_fails_as_it_would_untimed() -> None:
    clock = itertools.count()
    time = ControlTime(lambda: next(clock))
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise ValueError("no plan")

    async def main() -> None:
        task = asyncio.ensure_future(time.timed(waits()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ValueError, match="no plan"):
            await asyncio.ensure_future(time.timed(fails()))

    asyncio.run(main())
    assert ended == ["waits"]
    assert time.used_ns == 3  # the first step, the cancelled one and the one that failed


def test_a_control_task_counts_in_this_process() -> None:
    async def main() -> None:
        task = control_task(asyncio.sleep(0, "done"), name="clover-test")
        assert task.get_name() == "clover-test"
        assert await task == "done"

    before_ns = CONTROL.used_ns
    asyncio.run(main())
    assert CONTROL.used_ns > before_ns
