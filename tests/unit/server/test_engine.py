"""The start of a server, before anything is asked of the grid or of workers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from clover.config import FamilyConfig
from clover.server.engine import Engine
from clover.server.periodic import Periodic, each_second
from tests.support.control_fixture import Rig


def test_families_on_the_same_cores_divide_memory_by_their_shares() -> None:
    class Reached(Exception):
        """The start has come as far as the test wants."""

    async def reached(grid_s: float) -> None:
        raise Reached

    async def story() -> None:
        rig = Rig(family={"share": 1.0})
        engine: Any = object.__new__(Engine)
        engine._stack = engine.frontend = engine.parts = None
        engine.controller = rig.controller
        engine.grid = SimpleNamespace(now=lambda: 0.0)
        engine.chain = SimpleNamespace(open=reached)
        engine.served = {
            name: SimpleNamespace(name=name, config=FamilyConfig(family=name, share=share), memory_share=1.0)
            for name, share in (("toy", 1.0), ("other", 3.0))
        }
        with pytest.raises(Reached):
            await engine.start()
        assert [served.memory_share for served in engine.served.values()] == [0.25, 0.75]

    asyncio.run(story())


def test_workers_are_looked_at_each_second_while_a_meter_takes_its_time() -> None:
    """Else the looks are so far apart that they are taken for pauses of the server, and a stuck worker is left."""

    async def story() -> None:
        looks: list[str] = []

        def look() -> None:
            looks.append("")
            if len(looks) == 2:
                raise RuntimeError("one that fails ends nothing")

        async def hang() -> None:
            await asyncio.Event().wait()

        served = {"toy": SimpleNamespace(fleet=SimpleNamespace(watch=look))}
        watched: Any = SimpleNamespace(look=lambda: None)
        parts: dict[str, Any] = {
            "windows": SimpleNamespace(count=hang),
            "families": SimpleNamespace(served=served, follow=lambda context: None),
            "machine": SimpleNamespace(watch=hang),
            "controller": SimpleNamespace(context=None),
            "loading": None,
            "sleeper": SimpleNamespace(poll=hang),
        }
        periodic = Periodic(**parts, rollouts=watched, cluster=watched)
        turning = [each_second(turn, what, lambda _: asyncio.sleep(0)) for turn, what in periodic.turns()]
        tasks = [asyncio.create_task(one) for one in turning]
        while len(looks) < 5:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(story(), 10.0))
