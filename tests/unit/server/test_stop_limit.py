"""A stop that hangs ends the process within its bound, and one that does not is left alone."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from clover.server import stop_limit
from clover.server.loading import Loading
from clover.server.stop_limit import EXIT_CODE, StopLimit


def test_a_stop_that_hangs_ends_the_process(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ended, codes = threading.Event(), list[int]()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    limit = StopLimit(end)
    limit.start(0.0)
    assert ended.wait(30.0)
    limit.disarm()
    assert codes == [EXIT_CODE]
    assert "the stop took more than 0 s" in caplog.text
    assert "test_a_stop_that_hangs_ends_the_process" in caplog.text, "what hangs is shown"
    assert capfd.readouterr().err == "", "only the log's thread waits for who reads it"


def test_a_stop_that_hangs_ends_the_process_though_its_stacks_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor() -> str:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(stop_limit, "_stacks", no_descriptor)
    codes: list[int] = []
    with pytest.raises(OSError, match="too many"):
        StopLimit(codes.append)._wait(0.0)
    assert codes == [EXIT_CODE]


def test_a_stop_in_time_ends_nothing() -> None:
    codes: list[int] = []
    for begun in (True, False):
        limit = StopLimit(codes.append)
        if begun:
            limit.start(3600.0)
        limit.disarm()
    assert codes == []
    assert not any(thread.name == "clover-stop" for thread in threading.enumerate())


def test_the_interpreter_does_not_wait_for_a_thread_that_hangs() -> None:
    """As one of `clover-nvml` in a call of the driver."""
    script = """
from concurrent.futures import ThreadPoolExecutor
import threading
from clover import bounded_exit
ThreadPoolExecutor(1).submit(threading.Event().wait)
bounded_exit.EXIT_S = 0.05
bounded_exit.bound_exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 7


def test_all_that_a_stop_waits_for_has_one_drain_time() -> None:
    """It was one each: of the front end, of requests of this process, of the workers of each family."""

    class Clock(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            super().__init__()
            self.passed_s = 0.0

        def time(self) -> float:
            return super().time() + self.passed_s

    async def stop(loop: Clock) -> None:
        loading: Any = Loading(None, {}, drain_s=30.0, changed=lambda: None)  # type: ignore[arg-type]
        busy = SimpleNamespace(idle=False, fail_waiting=lambda reason: None, closed_reason="")

        async def hang() -> None:
            loop.passed_s += 1000.0
            await asyncio.Event().wait()

        loading.stop()
        loop.passed_s += 29.999  # what the front end waited
        before_s = time.monotonic()
        assert not await loading.wait_answered([busy])
        served = SimpleNamespace(name="toy", router=busy, fleet=SimpleNamespace(stop=hang))
        await loading.retire(served, "the server is shutting down")
        assert time.monotonic() - before_s < 20.0

    loop = Clock()
    try:
        loop.run_until_complete(stop(loop))
    finally:
        loop.close()


def test_the_bounds_are_within_what_the_units_and_manifests_wait() -> None:
    """`TimeoutStopSec` and `terminationGracePeriodSeconds` are 60 s, and 90 s with GPUs; the delay is at most 10 s."""
    assert 10.0 + 30.0 + stop_limit.STOP_S < 60.0
    assert 10.0 + 30.0 + stop_limit.GPU_STOP_S < 90.0
