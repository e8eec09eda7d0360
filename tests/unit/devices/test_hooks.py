"""The operator's commands around changes of instances."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from clover.devices.hooks import LINGER_S, RETRY_S, ChangeHooks
from clover.errors import DeviceError


class Story:
    """Hooks that write a line each into a file, and a clock whose sleeps end when the test says so."""

    def __init__(self, folder: Path, before: str = "", **options: Any) -> None:
        self.file = folder / "said"
        self.file.touch()
        self.sleeps: list[asyncio.Future[None]] = []
        self.hooks = ChangeHooks(self.write(before or "before"), self.write("after"), sleep=self._sleep, **options)

    def write(self, word: str) -> list[str]:
        code = (
            "import sys; open(sys.argv[1], 'a').write(f'{sys.argv[2]} '); print('no bus'); sys.exit('fail' in sys.argv)"
        )
        return [sys.executable, "-S", "-c", code, str(self.file), word]

    async def _sleep(self, seconds: float) -> None:
        assert seconds == LINGER_S
        self.sleeps.append(asyncio.get_running_loop().create_future())
        await self.sleeps[-1]

    async def change(self, word: str = "change") -> None:
        async with self.hooks.change():
            with self.file.open("a") as file:
                file.write(f"{word} ")

    async def waits(self) -> None:
        """Until the hooks sleep."""
        while not self.sleeps or self.sleeps[-1].done():
            await asyncio.sleep(0)

    @property
    def said(self) -> str:
        return self.file.read_text().strip()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_several_changes_share_one_pair(tmp_path: Path) -> None:
    async def story() -> None:
        told = Story(tmp_path)
        await asyncio.gather(told.change(), told.change())
        await told.waits()
        await told.change("late")
        await told.waits()
        assert told.sleeps[0].cancelled()
        told.sleeps[-1].set_result(None)
        while told.said.split()[-1] != "after":
            await asyncio.sleep(0.001)
        await told.hooks.close()
        assert told.said == "before change change late after"
        await told.change()
        await told.hooks.close()
        assert told.said == "before change change late after before change after"

    run(story())


def test_a_failure_before_lets_nothing_be_changed(tmp_path: Path) -> None:
    async def story() -> None:
        told = Story(tmp_path, "fail")
        for _ in range(2):  # it is tried again
            with pytest.raises(DeviceError, match=r"mig\.before_change failed with status 1: no bus"):
                await told.change()
        await told.hooks.close()
        await told.hooks.close()
        assert told.said == "fail fail after"  # half of it may have been done

    run(story())


def test_one_that_cannot_run_or_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    async def story() -> None:
        missing = ChangeHooks([str(tmp_path / "none")])
        with pytest.raises(DeviceError, match=r"mig\.before_change cannot be run: .*none: No such file"):
            async with missing.change():
                raise AssertionError("changed")
        slow = ChangeHooks([sys.executable, "-S", "-c", "import signal; signal.pause()"], timeout_s=0.05)
        with pytest.raises(DeviceError, match=r"longer than 0\.05 s"):
            async with slow.change():
                raise AssertionError("changed")

    run(story())


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)

    def hooks(script: str, timeout_s: float) -> ChangeHooks:
        return ChangeHooks(["/bin/sh", "-c", script, str(held)], timeout_s=timeout_s)

    async def story() -> None:
        # Who reads a pipe without writers waits: until the test writes to it, or for good.
        async with hooks('cat "$0" & exit 0', 30.0).change():
            held.write_text("")
        slow = hooks('cat "$0"; true', 0.2)
        async with asyncio.timeout(20.0):
            with pytest.raises(DeviceError, match=r"longer than 0\.2 s"):
                async with slow.change():
                    raise AssertionError("changed")

    run(story())
    # The whole of it was killed, not the shell alone: the pipe has no reader, or loses the one that dies.
    with contextlib.suppress(OSError):
        writes = os.open(held, os.O_WRONLY | os.O_NONBLOCK)
        poll = select.poll()
        poll.register(writes, 0)
        assert poll.poll(10_000)
        os.close(writes)


def test_the_end_of_what_a_command_said_is_repeated() -> None:
    async def story() -> None:
        talks = ChangeHooks([sys.executable, "-S", "-c", "import sys; print('x' * 100_000, 'why'); sys.exit(3)"])
        with pytest.raises(DeviceError, match=r"failed with status 3: x{296} why$"):
            async with talks.change():
                raise AssertionError("changed")

    run(story())


def test_retries_keep_a_pace_of_their_own(tmp_path: Path) -> None:
    now = 100.0

    async def story() -> None:
        nonlocal now
        assert ChangeHooks().retries()
        assert ChangeHooks().retries()
        told = Story(tmp_path, clock=lambda: now)
        assert told.hooks.retries()
        assert not told.hooks.retries()
        async with told.hooks.change():
            assert told.hooks.retries()  # the commands run anyhow
        await told.hooks.close()
        now += RETRY_S - 1
        assert not told.hooks.retries()
        now += 1
        assert told.hooks.retries()

    run(story())


def test_the_end_waits_for_a_change_under_way(tmp_path: Path) -> None:
    async def story() -> None:
        told = Story(tmp_path)
        async with told.hooks.change():
            closing = asyncio.create_task(told.hooks.close())
            for _ in range(5):
                await asyncio.sleep(0)
            assert told.said == "before"
        await closing
        assert told.said == "before after"

    run(story())


def test_a_failure_after_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        hooks = ChangeHooks((), ["/bin/false"])
        async with hooks.change():
            pass
        await hooks.close()

    with caplog.at_level(logging.ERROR):
        run(story())
    assert "mig.after_change failed with status 1: what it should start again may still be stopped" in caplog.text


def test_without_commands_nothing_waits() -> None:
    async def story() -> None:
        hooks = ChangeHooks()
        async with hooks.change():
            pass
        await hooks.close()
        assert len(asyncio.all_tasks()) == 1

    run(story())
