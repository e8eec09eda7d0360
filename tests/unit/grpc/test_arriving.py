"""What has come of messages that are not whole is bounded by the memory that it takes."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from grpc import StatusCode

from clover.config import LimitsConfig
from clover.grpc.arriving import Arriving, memory_bytes
from tests.support.grpc_fakes import FakeContext, GrpcDriver
from tests.support.http_fakes import FakeView

LIMITS = LimitsConfig(body_bytes=1 << 20, held_bytes=4 << 20)
"""With these, four messages can come in without being too much."""


class Scene:
    """Calls whose messages do not come, and the memory that the process has."""

    def __init__(self) -> None:
        self.memory = 100 << 20
        self.driver = GrpcDriver(FakeView(), limits=LIMITS)
        self.arriving = self.driver.calls.arriving = Arriving(LIMITS, lambda: self.memory)
        self.contexts: list[FakeContext] = []
        self.calls: list[asyncio.Task[Any]] = []

    async def ask(self, count: int, peer: int, call: str = "ServerLive") -> None:
        for _ in range(count):
            self.contexts.append(FakeContext(ended=False, peer=f"ipv4:127.0.0.1:{peer}"))
            self.calls.append(asyncio.create_task(self.driver.run(call, self.contexts[-1])))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def sweep(self, memory: int) -> list[FakeContext]:
        """Return the calls that are ended once the process has `memory`."""
        self.memory = memory
        self.arriving.sweep()
        await self.settle()
        return [context for context, call in zip(self.contexts, self.calls, strict=True) if call.done()]


def played(scene: Callable[[Scene], Any]) -> None:
    async def main() -> None:
        made = Scene()
        await scene(made)
        for call in made.calls:
            call.cancel()
        await asyncio.gather(*made.calls, return_exceptions=True)
        assert made.driver.stats.open_calls == 0
        assert not made.arriving._waiting

    asyncio.run(main())


@pytest.mark.parametrize("call", ["ServerLive", "ModelInfer", "ModelStreamInfer", "grpc.health.v1.Health/Watch"])
def test_the_connection_with_most_calls_loses_them_once_memory_has_grown(call: str) -> None:
    async def scene(made: Scene) -> None:
        await made.ask(1, peer=1)
        assert await made.sweep(100 << 20) == []
        await made.ask(20, peer=2, call=call)
        await made.ask(1, peer=3)
        assert await made.sweep(104 << 20) == []
        ended = await made.sweep((104 << 20) + 1)
        assert len(ended) == 18
        assert {context.address for context in ended} == {"ipv4:127.0.0.1:2"}
        assert {context.status for context in ended} == {StatusCode.RESOURCE_EXHAUSTED}
        assert "limits.held_bytes" in ended[0].details
        assert ended[0].ends["retry-after"] == "1"
        assert len(await made.sweep(200 << 20)) == 18, "four calls cannot be what it is"

    played(scene)


def test_memory_that_grows_while_few_calls_wait_is_none_of_theirs() -> None:
    async def scene(made: Scene) -> None:
        await made.ask(4, peer=1)
        assert await made.sweep(500 << 20) == []
        await made.ask(1, peer=1)
        assert await made.sweep(501 << 20) == []
        assert len(await made.sweep(505 << 20)) == 1

    played(scene)


def test_a_call_that_has_its_message_is_none_that_waits() -> None:
    async def main() -> None:
        made = Scene()
        made.driver.calls.limits = LIMITS
        context = FakeContext(b"")
        await made.driver.run("ServerLive", context)
        assert context.status is StatusCode.OK
        assert not made.arriving._waiting

    asyncio.run(main())


def test_a_message_that_is_late_is_no_message_too_much() -> None:
    async def main() -> None:
        arriving = Arriving(LIMITS, lambda: 0)
        with pytest.raises(TimeoutError):
            await arriving.receive(FakeContext(ended=False), 0.0)
        assert not arriving._waiting

    asyncio.run(main())


def test_memory_is_that_of_this_process_alone() -> None:
    before = memory_bytes()
    with mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(b"1" * len(taken))
        assert memory_bytes() - before > 12 << 20
    with mmap.mmap(-1, 16 << 20) as shared:
        before = memory_bytes()
        for start in range(0, len(shared), mmap.PAGESIZE):
            shared[start] = 1
        assert memory_bytes() - before < 4 << 20
