"""Backends that fail, hang or cost too much are left out of a measurement, and the others are measured to the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clover.errors import ProfileError, WorkerError
from clover.profiling.driver import Cell, Scored, SilentWorker
from clover.profiling.grid import LatencyGrid
from clover.profiling.options import QUICK
from clover.profiling.rig import Findings
from clover.types import Placement
from tests.support.family_folder import fixture

ROWS = 64
CPU_S = {"eager": 0.004, "onnxruntime": 0.002, "openvino": 0.0015, "onnxruntime-int8": 0.004}


class PlayedRig:
    """A rig whose workers take `CPU_S` a row; those of `broken` fail in the way that it names."""

    def __init__(self, broken: dict[str, Exception]) -> None:
        self.spec = fixture("toy")
        self.effort = QUICK
        self.batches = (1, 4)
        self.on_cores = True
        self.rows = SimpleNamespace(count=ROWS, labelled=True)
        self.steps = SimpleNamespace(begin=lambda what: None)
        self.meters = self
        self.broken = broken
        self.scored: list[str] = []

    @contextlib.asynccontextmanager
    async def worker(self, setup: Any) -> AsyncIterator[str]:
        if isinstance(self.broken.get(setup.backend), WorkerError):
            raise self.broken[setup.backend]
        yield setup.backend

    @contextlib.asynccontextmanager
    async def window(self, places: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(joules=lambda rows, cpu_s, busy_s: (cpu_s / rows, "modelled"))

    def cell(self, worker: str, batch: int) -> Cell:
        return Cell(batch, ms=[1.0] * 40, cpu_s=CPU_S[worker] * batch * 40, wall_s=0.04)

    async def score(self, worker: str, *, most_s: float) -> Scored:
        self.scored.append(worker)
        if worker in self.broken:
            raise self.broken[worker]
        return Scored(
            np.zeros(ROWS, np.int64), np.ones(ROWS, np.bool_), np.ones(ROWS, np.float32), self.cell(worker, 4)
        )

    async def time_batches(self, worker: str, place: Any, batch: int, effort: Any, **_: Any) -> tuple[Cell, Any]:
        async with self.window(()) as window:
            return self.cell(worker, batch), window


def measured(names: list[str], broken: dict[str, Exception] | None = None) -> tuple[PlayedRig, Findings]:
    rig, findings = PlayedRig(broken or {}), Findings()
    place = Placement(device="cpu0", profile="1c", start=0, size=1)
    variant = rig.spec.variants[0]
    asyncio.run(LatencyGrid(rig, findings).smallest(variant, names, [place]))  # type: ignore[arg-type]
    return rig, findings


def test_a_backend_far_behind_the_cheapest_is_not_measured_to_the_end() -> None:
    rig, findings = measured(["eager", *CPU_S])
    assert rig.scored == ["eager", "openvino"], "eager costs 4 ms: openvino is tried first, and others are behind it"
    left_out = {one.backend: one for one in findings.left_out}
    assert set(left_out) == {"onnxruntime", "onnxruntime-int8"}
    assert left_out["onnxruntime"].why == "a row takes 1.3 x the CPU or more"
    assert left_out["onnxruntime"].cpu_s_per_row == pytest.approx(0.002)


@pytest.mark.parametrize(
    "error",
    [WorkerError("its worker died"), SilentWorker("no answer for 30 s"), ProfileError("the model failed on the rows")],
)
def test_a_backend_that_dies_hangs_or_fails_is_left_out_with_the_reason(error: Exception) -> None:
    _, findings = measured(["eager", "onnxruntime", "openvino"], {"openvino": error})
    assert [(one.backend, one.why) for one in findings.left_out] == [("openvino", str(error))]
    assert {m.backend for m in findings.latency} == {"eager", "onnxruntime"}
    assert [item.backend for item in findings.accuracy] == ["eager", "onnxruntime"]


@pytest.mark.parametrize("error", [WorkerError("it died"), SilentWorker("no answer for 30 s")])
def test_nothing_stands_in_for_eager(error: Exception) -> None:
    with pytest.raises(ProfileError):
        measured(["eager", "onnxruntime"], {"eager": error})
