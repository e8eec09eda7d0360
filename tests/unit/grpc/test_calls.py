"""Messages of calls are spread over turns of the loop, in their order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from clover.grpc.calls import Turns
from clover.http.server_state import TURN_BYTES
from tests.support.grpc_fakes import FakeContext, GrpcDriver
from tests.support.http_fakes import FakeView

CALL_BYTES = 16 << 10


async def turns_of(sizes: list[int], cancelled: frozenset[int] = frozenset()) -> list[list[int]]:
    """Return which messages are read in each turn, if all of them come in one."""
    turns, read = Turns(), list[int]()

    async def call(number: int) -> None:
        await turns.take(sizes[number])
        read.append(number)

    tasks = [asyncio.create_task(call(number)) for number in range(len(sizes))]
    done = list[list[int]]()
    for number in cancelled & set(range(len(sizes))):
        asyncio.get_running_loop().call_soon(tasks[number].cancel)
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        if read:
            done.append(list(read))
            read.clear()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done


def test_a_thousand_calls_at_once_are_begun_sixteen_a_turn() -> None:
    found = asyncio.run(turns_of([0] * 1000))
    assert max(map(len, found)) <= 17
    assert [number for turn in found for number in turn] == list(range(1000))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2 * TURN_BYTES), max_size=40), st.frozensets(st.integers(0, 39), max_size=10))
def test_turns_are_bounded_and_nobody_is_forgotten_or_overtaken(sizes: list[int], cancelled: frozenset[int]) -> None:
    found = asyncio.run(turns_of(sizes, cancelled))
    order = [number for turn in found for number in turn]
    assert order == sorted(order)
    assert set(range(len(sizes))) - set(order) <= cancelled
    for turn in found:
        assert sum(sizes[number] + CALL_BYTES for number in turn[:-1]) < 2 * TURN_BYTES


def test_calls_whose_messages_come_at_once_are_answered_in_several_turns() -> None:
    async def main() -> tuple[int, int]:
        driver = GrpcDriver(FakeView())
        contexts = [FakeContext(b"") for _ in range(200)]
        calls = [asyncio.create_task(driver.run("ServerLive", context)) for context in contexts]
        most = ended = 0
        while ended < len(calls):
            before = ended
            await asyncio.sleep(0)
            ended = driver.stats.calls["OK"]
            most = max(most, ended - before)
        await asyncio.gather(*calls)
        return most, ended

    assert asyncio.run(main()) == (16, 200)
