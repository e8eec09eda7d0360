"""The guard of a real server: rows like the profile's change nothing, nor does one again and again; others do, and an
operator has it begin anew."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

import clover
from clover.runtime.router.audits import LEAST
from tests.support.toy_family import TOY, settings

pytestmark = [
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two variants need two cores"),
    pytest.mark.usefixtures("forked_zygotes"),
]


def test_rows_that_change_are_seen_and_audits_are_made_behind_clients(toy_cache: Path) -> None:
    async def main() -> None:
        async with clover.Server(TOY, **settings(toy_cache), audit=0.02) as server:
            served = server.engine.pick(None)
            router, rng = served.router, np.random.default_rng(3)

            async def ask(rows: int, scale: float) -> None:
                numbers = (scale * rng.standard_normal((rows, 4))).astype(np.float32)
                await server.ainfer({"INPUT0": numbers})

            for _ in range(40):
                await asyncio.gather(*(ask(8, 1.0) for _ in range(8)))
            told = router.guard_report()
            assert (told["state"], told["missing"]) == ("ok", "")
            assert told["variants"]["half"]["scores"]["rows"] >= 2500
            audits = told["audits"]
            assert audits["answered"] + audits["free"] + audits["waiting"] >= LEAST * 2560
            assert sum(served.traffic.rows) == 2560
            assert set(served.traffic.codes) == {200}
            same = (0.2 * rng.standard_normal((1, 4))).astype(np.float32)
            before = told["repeats"]
            for _ in range(30):
                await asyncio.gather(*(server.ainfer({"INPUT0": same}) for _ in range(10)))
            told = router.guard_report()
            assert (told["state"], told["alarms"], told["repeats"] - before) == ("ok", 0, 299)
            for _ in range(20):
                await asyncio.gather(*(ask(8, 0.2) for _ in range(8)))
            assert router.guard_report()["state"] == "tightened"
            state = server.engine.controller.state()["models"]["toy"]["guard"]
            assert "the scores of half" in state["why"]
            await server.engine.controller.command("guard", {"reset": True}, "test")
            assert router.guard_report()["state"] == "ok"
            assert b'clover_guard_state{model="toy"} 0.0' in server.engine.metrics()

    asyncio.run(main())
