"""The start of a server, before anything is asked of the grid or of workers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from clover.config import FamilyConfig
from clover.server.engine import Engine
from tests.support.control_fixture import Rig


def test_families_on_the_same_cores_divide_memory_by_their_shares() -> None:
    class Reached(Exception):
        """The start has come as far as the test wants."""

    async def reached(grid_s: float) -> None:
        raise Reached

    async def story() -> None:
        rig = Rig(family={"share": 1.0})
        engine: Any = object.__new__(Engine)
        engine._stack = None
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
