"""Parts of a GPU that share its memory, measured beside busy neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clover.errors import ProfileError, WorkerError
from clover.families import load_family
from clover.profiling.driver import Driver
from clover.profiling.neighbours import BesideNeighbours, rest_of
from clover.profiling.options import CompileLimits, Effort
from clover.profiling.rig import Findings, WorkerSetup
from clover.profiling.rows import load
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.completions import Completions
from clover.types import DeviceShape, LatencyMeasurement, Placement

SPEC = load_family(str(Path(__file__).resolve().parents[2] / "families" / "toy"))
SHORT = Effort(
    quick=True,
    samples=4,
    least_s=0.0,
    most_s=5.0,
    score_s=0.05,
    base_s=0.02,
    rounds=2,
    compiling=CompileLimits(cpu_s=0.0),
)


def at(parts: int, start: int) -> Placement:
    return Placement(device="gpu0", profile=f"{parts}of4", start=start, size=parts)


SHAPE = DeviceShape(
    device="gpu0",
    kind="mig",
    layouts=(
        (at(4, 0),),
        (at(1, 0), at(1, 1), at(2, 2)),
        (at(1, 0), at(3, 1)),
        (at(2, 0), at(2, 2)),
    ),
    slices=4,
    overlap=False,
)


class PartWorker:
    """Answers at once; slower while another worker of its GPU holds batches."""

    def __init__(self, board: Board, place: Placement, status: int) -> None:
        self.ring = self
        self.state = "ready"
        self.place = place
        self.sizes: list[int] = []
        self.blank = False
        self.out: list[tuple[int, int, int, int, int, int]] = []
        self._board = board
        self._status = status

    def submit(self, batch_id: int, slots: NDArray[np.uint32], n: int) -> int:
        self.blank = self.blank or not self._board.slab.input(0)[slots].any(axis=1).all()
        ms = 2.0 if any(other.out for other in self._board.there if other is not self) else 1.0
        self.sizes.append(n)
        self.out.append((batch_id, self._status, n, 0, round(ms * 1e6), 1_000))
        os.eventfd_write(self._board.fd, 1)
        return 1

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self.out.pop(0) if self.out else None

    def bell(self) -> None: ...


class Board:
    """What a measurement has, over a GPU whose parts disturb each other."""

    def __init__(self, *, parts_share: bool = True) -> None:
        self.slab = Slab.create(Layout(SPEC, 2 * SPEC.max_batch))
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.completions = Completions()
        self.completions.watch(self.fd)
        self.there: list[PartWorker] = []
        self.all: list[PartWorker] = []
        self.stood: list[tuple[str, ...]] = []
        self.refused: str = ""
        self.status = 0
        rows = load(SPEC)
        device = SimpleNamespace(shape=lambda: SHAPE, parts_share=parts_share)
        self.rig: Any = SimpleNamespace(
            spec=SPEC,
            batches=(1, 8),
            effort=SHORT,
            driver=Driver(self.completions, self.slab, rows, silent_s=5.0),
            rows=rows,
            slab=self.slab,
            instances=SimpleNamespace(device=lambda place: device, only=self._only),
            steps=SimpleNamespace(begin=lambda text: None),
            worker=self._worker,
            drive=self._drive,
        )
        self.found = Findings(latency=[cell(batch) for batch in (1, 8)])

    async def _only(self, places: tuple[Placement, ...]) -> None:
        self.stood.append(tuple(place.id for place in places))

    async def _drive(self, function: Any, *given: Any) -> Any:
        return function(*given)

    @contextlib.asynccontextmanager
    async def _worker(self, setup: WorkerSetup) -> AsyncIterator[PartWorker]:
        if setup.place.profile == self.refused:
            raise WorkerError("out of memory")
        worker = PartWorker(self, setup.place, self.status if self.there else 0)
        self.there.append(worker)
        self.all.append(worker)
        yield worker
        self.there.remove(worker)

    def measure(self, place: Placement) -> None:
        asyncio.run(BesideNeighbours(self.rig, self.found, place, 0.0).run())

    def close(self) -> None:
        self.slab.close()
        self.completions.close()
        os.close(self.fd)


def cell(batch: int) -> LatencyMeasurement:
    return LatencyMeasurement(
        variant="half",
        profile="1of4",
        backend="eager",
        batch=batch,
        threads=1,
        samples=9,
        mean_ms=1.0,
        cv=0.0,
        p50_ms=1.0,
        p95_ms=1.0,
        p99_ms=1.0,
        cpu_s_per_row=0.0,
        energy_j_per_row=0.25,
        energy_method="measured",
        energy_error=0.05,
    )


@pytest.fixture
def board() -> Iterator[Board]:
    found = Board()
    yield found
    found.close()


def test_the_rest_of_a_gpu_is_filled_in_the_fewest_parts() -> None:
    assert rest_of(SHAPE, at(1, 0)) == (at(3, 1),)
    assert rest_of(SHAPE, at(2, 0)) == (at(2, 2),)
    assert rest_of(SHAPE, at(4, 0)) == ()


def test_times_are_those_beside_a_busy_neighbour_and_joules_those_alone(board: Board) -> None:
    board.measure(at(1, 0))
    assert board.stood == [("gpu0:1of4@0", "gpu0:3of4@1")]
    mine, other = board.all
    assert (mine.place, other.place) == (at(1, 0), at(3, 1))
    for m in board.found.latency:
        assert (m.mean_ms, m.samples) == (2.0, 4)
        assert (m.energy_j_per_row, m.energy_method, m.energy_error) == (0.25, "measured", 0.05)
    assert set(other.sizes) == {8}, "always batches of the largest size"
    assert len(other.sizes) >= len(mine.sizes)
    assert not other.out, "nothing is left in its ring"
    assert not mine.blank
    assert not other.blank, "rows of the family: a model may refuse others"
    (note,) = board.found.notes
    assert note == "times on 1of4 are measured beside busy neighbours (the same variant on 3of4), joules alone"


def test_a_variant_that_does_not_run_beside_itself_keeps_its_times(board: Board) -> None:
    board.refused = "3of4"
    board.measure(at(1, 0))
    assert [m.mean_ms for m in board.found.latency] == [1.0, 1.0]
    assert "are those of the part alone: out of memory" in board.found.notes[0]


def test_a_neighbour_whose_model_fails_ends_the_measurement(board: Board) -> None:
    board.status = 1
    with pytest.raises(ProfileError, match="the model failed"):
        board.measure(at(1, 0))


@pytest.mark.parametrize(("share", "place"), [(False, at(1, 0)), (True, at(4, 0))])
def test_slices_that_do_not_disturb_each_other_and_whole_gpus_are_measured_alone(share: bool, place: Placement) -> None:
    found = Board(parts_share=share)
    found.measure(place)
    found.close()
    assert (found.stood, found.found.notes, found.all) == ([], [], [])
