"""Looks at GPUs, of which one does not answer."""

from __future__ import annotations

import asyncio
import logging

import pytest

from clover.devices.polls import GpuPolls
from clover.errors import DeviceError


class FakeGpu:
    def __init__(self, name: str) -> None:
        self.name = name
        self.polls = 0
        self.there = True
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.error = ""

    async def poll(self) -> bool:
        self.polls += 1
        await self.hangs.wait()
        if self.error:
            raise DeviceError(self.error)
        return self.there


def test_a_gpu_that_hangs_is_waited_for_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]

    async def main() -> None:
        one, two = FakeGpu("gpu0"), FakeGpu("gpu1")
        polls = GpuPolls(patience_s=0.0, clock=lambda: now[0])

        async def look() -> list[str]:
            await polls.answering((one, two))  # begins what the next one finds, as it has no patience
            return [gpu.name for gpu in await polls.answering((one, two))]

        assert await look() == ["gpu0", "gpu1"]
        one.hangs.clear()
        assert await look() == ["gpu1"]
        assert not caplog.records
        now[0] = 11.0
        assert await look() == ["gpu1"]
        assert await look() == ["gpu1"]
        assert [record.getMessage() for record in caplog.records] == [
            "gpu0: the driver has not answered for 11 s; other GPUs are looked at as ever"
        ]
        assert one.polls < two.polls - 2, "it is not asked again meanwhile"
        one.hangs.set()
        assert await look() == ["gpu0", "gpu1"]
        assert caplog.records[-1].getMessage() == "gpu0: the driver answers again"
        one.there = False
        two.error = "refused"
        await look()
        assert await look() == []
        assert caplog.records[-1].getMessage() == "gpu1: refused"

    with caplog.at_level(logging.WARNING, "clover.devices"):
        asyncio.run(main())
