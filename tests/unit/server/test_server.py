"""What an embedded server says when it is ready, and when it cannot start."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import clover
from clover.errors import PlanError, StartError, WorkerError
from clover.families import load_family
from clover.server import server

FAMILIES = Path(__file__).parents[2] / "families"


def test_a_server_that_shows_no_banner_logs_which_variants_are_untrained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy = load_family(str(FAMILIES / "toy"))
    untrained = msgspec.structs.replace(toy.variants[0], untrained=True)
    random = msgspec.structs.replace(toy, name="random", variants=(untrained,))

    class Ready:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.served = {spec.name: SimpleNamespace(spec=spec) for spec in (toy, random)}

        async def start(self) -> None:
            return

    monkeypatch.setattr(server, "build", lambda *_, **__: None)
    monkeypatch.setattr(server, "Engine", Ready)
    monkeypatch.setattr(clover.Server, "_launch", lambda self: None)
    asyncio.run(clover.Server(toy).start())
    (line,) = caplog.messages
    assert line.startswith(f"{toy.variants[0].name} of random: UNTRAINED")
    caplog.clear()
    asyncio.run(clover.Server(toy)._start(shown=True))
    assert caplog.messages == []


async def hangs(self: clover.Server, **_: Any) -> clover.Server:
    """A start as it fails where a worker loads for too long."""
    try:
        try:
            try:
                async with asyncio.timeout(0.0):
                    await asyncio.sleep(1.0)
            except TimeoutError as error:
                raise WorkerError("fast (eager) was not ready within 60 s (--start-s 300 allows more)") from error
        except WorkerError as error:
            raise PlanError(f"no plan could be applied: {error}") from error
    except PlanError as error:
        raise StartError(f"slow: the first plan failed: {error}") from error
    return self


async def in_a_loop(server: clover.Server) -> None:
    async with server:
        raise AssertionError("it has started")


def in_a_thread(server: clover.Server) -> None:
    with server:
        raise AssertionError("it has started")


@pytest.mark.parametrize("start", [lambda server: asyncio.run(in_a_loop(server)), in_a_thread, clover.Server.run])
def test_an_embedded_caller_is_advised_in_the_words_of_python(
    start: Callable[[clover.Server], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clover.Server, "_start", hangs)
    monkeypatch.setattr(clover.Server, "_launch", lambda self: None)
    caplog.set_level(logging.DEBUG, "clover.server")
    with pytest.raises(StartError, match=r"within 60 s \(start_s=300 allows more\)") as caught:
        start(clover.Server(str(FAMILIES / "slow")))
    shown = "".join(traceback.format_exception(caught.value))
    assert "WorkerError" not in shown
    package = os.path.dirname(clover.__file__)
    ours = [frame for frame in traceback.extract_tb(caught.tb) if frame.filename.startswith(package)]
    assert len(ours) <= 3
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "TimeoutError" in logging.Formatter().format(record), "all of it is in the log at level debug"


def test_the_command_line_is_advised_by_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clover.Server, "_start", hangs)
    monkeypatch.setattr(clover.Server, "_launch", lambda self: None)
    with pytest.raises(StartError, match=r"--start-s 300 allows more"):
        clover.Server(str(FAMILIES / "slow")).run(on_ready=lambda server: None)
