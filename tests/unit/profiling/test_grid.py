"""Which cells are measured again in rounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from clover.profiling.driver import Cell
from clover.profiling.grid import LatencyGrid
from clover.profiling.options import FULL, QUICK
from clover.profiling.records import latency_of
from clover.profiling.rig import Findings
from clover.types import Placement, VariantSpec

PLACE = Placement(device="cpu", profile="1c", start=0, size=1)


@pytest.mark.parametrize("quick", [True, False])
def test_a_measurement_repeats_the_cells_of_the_backends_that_were_chosen(quick: bool) -> None:
    begun: Counter[str] = Counter()

    class Rig:
        effort = replace(QUICK if quick else FULL, rounds=3)
        batches = (1, 4)
        spec = SimpleNamespace(variant=lambda name: VariantSpec(name=name, loader="m:load"))
        steps = SimpleNamespace(begin=lambda text: None)

        @contextlib.asynccontextmanager
        async def worker(self, setup: Any) -> AsyncIterator[None]:
            begun[setup.backend] += 1
            yield

        async def time_batches(self, worker: Any, place: Any, batch: int, effort: Any) -> Any:
            return Cell(batch, ms=[5.0], cpu_s=0.005, wall_s=0.005), SimpleNamespace(
                joules=lambda *_: (5.0, "modelled")
            )

    found = Findings()
    for backend in ("eager", "fast", "small"):
        for batch in Rig.batches:
            cell = Cell(batch, ms=[1.0], cpu_s=0.001, wall_s=0.001)
            found.latency.append(latency_of(cell, "v", "1c", backend, 1, (1.0, "modelled")))
    grid = LatencyGrid(Rig(), found)  # type: ignore[arg-type]
    asyncio.run(grid.again([PLACE], {"v": "fast"}))
    assert begun == {"fast": 3}
    again = {m.backend for m in found.latency if m.mean_ms == 5.0}
    assert again == {"fast"}
