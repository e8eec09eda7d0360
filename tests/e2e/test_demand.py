"""A server whose plan runs a cheap variant, and requests that ask for the accurate one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import clover

TOY = str(Path(__file__).parents[1] / "families" / "toy")


@pytest.mark.alone  # its plan follows from what is measured when it starts
@pytest.mark.usefixtures("forked_zygotes")
def test_requests_that_ask_for_an_accuracy_get_the_variant_that_has_it(tmp_path: Path) -> None:
    async def main() -> None:
        server = clover.Server(
            TOY,
            cache_dir=str(tmp_path),
            http=False,
            port=0,
            carbon="static:700",
            energy_meter="modelled",
            backends=("eager",),
            objective="floor",
            accuracy_floor=10.0,
        )
        async with server:
            free = await server.ainfer({"INPUT0": [1.0, 2.0, 3.0, 4.0]})
            assert free.variants == ("half",)
            better = free.receipt.accuracy + 0.01
            began_s = time.monotonic()
            answers = [await server.ainfer({"INPUT0": [1.0, 2.0, 3.0, 4.0]}, min_accuracy=better) for _ in range(40)]
            assert {answer.variants for answer in answers} == {("full",)}
            assert time.monotonic() - began_s < 25.0  # the dwell time, a plan and the start of a worker

    asyncio.run(main())
