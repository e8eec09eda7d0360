"""The controller's actor without Ray: it begins once, by itself if Ray has started it again, and says why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover.cluster.cluster_file import parse
from clover.cluster.controller import actor as ray_controller
from clover.cluster.controller.actor import ControllerActor, RunningCluster, remember
from clover.cluster.controller.records import ClusterStatus
from clover.cluster.ports import NodeReport
from clover.errors import ClusterError

TEXT = """
[cluster]
folder = "{folder}"
[[region]]
name = "north"
carbon = {{ source = "static:100" }}
[[node]]
name = "a"
region = "north"
devices = {{ gpu = 1 }}
[[family]]
family = "toy"
accuracy_floor = 90
slo_ms = 50
"""


class FakeNodes:
    """Nodes of which none answers, and how often they were asked."""

    asked = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    async def reports(self) -> Mapping[str, NodeReport]:
        FakeNodes.asked += 1
        return {}


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., ControllerActor]:
    FakeNodes.asked = 0
    folder = tmp_path / "c"
    remember(RunningCluster(file=parse(TEXT.format(folder=folder)), began_s=0.0))
    monkeypatch.setattr(ray_controller, "RayNodes", FakeNodes)

    def make(*, restarted: bool) -> ControllerActor:
        monkeypatch.setattr(ray_controller, "was_restarted", lambda: restarted)
        return ControllerActor(str(folder))

    return make


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not holds():
            await asyncio.sleep(0.001)


async def end(actor: ControllerActor) -> None:
    """End what the actor runs, as the end of its process would."""
    tasks = [one for one in (actor._coming_back, actor._task) if one is not None]
    for one in tasks:
        one.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def tell(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


def test_a_controller_that_ray_started_again_controls_without_being_asked(actor: Any) -> None:
    async def story() -> None:
        first = actor(restarted=False)
        await asyncio.sleep(0.01)
        assert FakeNodes.asked == 0, "up asks it to begin, and wants to hear why it cannot"
        assert first._task is None
        again = actor(restarted=True)
        await until(lambda: FakeNodes.asked > 0)
        await end(again)

    tell(story)


def test_a_controller_that_cannot_begin_again_tries_once_more_and_says_why(
    actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [ClusterError("the address is taken"), ValueError("nobody thought of this")]

    async def story() -> None:
        again = actor(restarted=True)
        wait = asyncio.Event()

        async def open_grids() -> None:
            if failures:
                raise failures.pop(0)

        async def sleep(seconds: float) -> None:
            await wait.wait()
            wait.clear()

        monkeypatch.setattr(again._grids, "open", open_grids)
        monkeypatch.setattr(ray_controller, "asyncio", _Asyncio(sleep))
        await until(lambda: len(failures) == 1)
        status = msgspec.json.decode(await _status_only(again), type=ClusterStatus)
        assert status.troubles[0] == "the controller cannot begin: the address is taken"
        assert not status.controlling
        for left in (0, 0):
            wait.set()
            await until(lambda left=left: len(failures) == left)  # type: ignore[misc]
        await until(lambda: again._task is not None)
        await end(again)

    tell(story)


class _Asyncio:
    """asyncio with a clock of the test."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


async def _status_only(actor: ControllerActor) -> bytes:
    """Return the status without a try of its own to begin."""
    start, actor.start = actor.start, _nothing  # type: ignore[method-assign]
    try:
        return await actor.status()
    finally:
        actor.start = start  # type: ignore[method-assign]


async def _nothing() -> str:
    return ""


def test_a_controller_that_several_ask_begins_once(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        one = actor(restarted=False)
        opened = []

        async def open_grids() -> None:
            opened.append(1)
            await asyncio.sleep(0)

        monkeypatch.setattr(one._grids, "open", open_grids)
        assert await asyncio.gather(one.start(), one.start(), one.start()) == ["", "", ""]
        assert len(opened) == 1
        await end(one)

    tell(story)
