"""Profiling with real workers on small families, and what a server finds at its next start."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from clover import profiles, profiling
from clover.config import ServerConfig, WorkersConfig
from clover.devices.cpu import CpuDevice
from clover.errors import ProfileError, WorkerError
from clover.families import load_family
from clover.profiling import grid, records
from clover.profiling.driver import Cell
from clover.profiling.options import QUICK, CompileLimits, Effort, MeasureOptions, Progress
from clover.runtime.workers.pool import Pool
from clover.runtime.workers.zygote_link import ZygoteLink
from clover.types import FamilyProfile, FamilySpec
from clover.worker.frames import WorkerOrder
from tests.e2e.forked_zygote import Nursery

pytestmark = pytest.mark.usefixtures("forked_zygotes")
FAMILIES = Path(__file__).resolve().parents[1] / "families"
SHORT = Effort(
    quick=True,
    samples=5,
    least_s=0.01,
    most_s=0.2,
    score_s=0.5,
    base_s=0.2,
    rounds=2,
    compiling=CompileLimits(cpu_s=0.0),
)


def measure(spec: FamilySpec, folder: Path, progress: Progress | None = None) -> FamilyProfile:
    async def main() -> FamilyProfile:
        pool = Pool()
        await pool.start()
        try:
            return await profiling.measure(
                spec,
                CpuDevice(),
                pool,
                MeasureOptions(backends=("eager", "onnxruntime"), cache_dir=folder, effort=SHORT, progress=progress),
            )
        finally:
            await pool.stop()

    return asyncio.run(main())


class Measured(NamedTuple):
    """A measurement of `toy` that nothing disturbed: what was measured, and how it went."""

    profile: FamilyProfile
    folder: Path
    progress: list[tuple[str, int, int]]
    rounds: list[list[Cell]]
    """The cells that were pooled, of one batch size of a variant each."""
    orders: list[tuple[str, str, str]]
    """Variant, backend and place of every worker, in turn."""


@pytest.fixture(scope="module")
def measured(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("measured")
    told: list[tuple[str, int, int]] = []
    rounds: list[list[Cell]] = []
    orders: list[tuple[str, str, str]] = []
    spawn = Pool.spawn

    def pool_cells(cells: list[Cell]) -> Cell:
        rounds.append(cells)
        return records.pool_cells(cells)

    async def spawned(self: Pool, order: WorkerOrder, *of: Any, **how: Any) -> Any:
        orders.append((order.variant, order.backend, order.place))
        return await spawn(self, order, *of, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZygoteLink, "launch", nursery.launch)
        patch.setattr(grid, "pool_cells", pool_cells)
        patch.setattr(Pool, "spawn", spawned)
        profile = measure(load_family(str(FAMILIES / "toy")), folder, progress=lambda *what: told.append(what))
    return Measured(profile, folder, told, rounds, orders)


def test_toy_is_measured_whole(measured: Measured) -> None:
    profile, told = measured.profile, measured.progress
    assert profile.backend == {"half": "eager", "full": "eager"}
    half, full = (profiles.accuracy(profile, name) for name in ("half", "full"))
    assert half.value < full.value
    assert (full.samples, full.method, full.agreement) == (400, "measured", 1.0)
    assert full.low < full.value < full.high
    shapes = {placement.profile for layout in CpuDevice().shape().layouts for placement in layout}
    for name in profile.backend:
        for shape in shapes:
            found = profiles.measurements(profile, name, shape)
            assert [m.batch for m in found] == [1, 4, 8]
            for m in found:
                assert 0 < m.p50_ms <= m.p95_ms <= m.p99_ms
                assert m.samples >= 5
                assert m.cpu_s_per_row > 0
                assert m.energy_j_per_row > 0
                assert m.threads <= int(shape[:-1])
    assert {(one.variant, one.profile, one.backend) for one in profile.memory} == {
        (name, shape, "eager") for name in profile.backend for shape in shapes
    }
    assert all(0 < one.weights_bytes < 1 << 20 and one.peak_bytes >= 0 for one in profile.memory)
    assert profile.context_bytes.keys() == shapes
    assert all(1 << 20 < held < 1 << 29 for held in profile.context_bytes.values())
    assert (profile.base.variant, profile.base.method) == ("full", "measured")
    assert profile.base.p95_ms > 0
    assert 0.0 < profile.front_ms < 20.0
    assert len({item.wake_j for item in profile.latency}) == 1
    assert 0.0 < profile.turn_j < 0.1, "microseconds of a core, not seconds"
    assert not any("light load" in note for note in profile.notes)
    assert any("onnxruntime is not" in note for note in profile.notes)
    store = profiles.ProfileStore(measured.folder)
    store.put(profile)
    assert store.get("toy", profile.key) == profile
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert all(done < total for _, done, total in told)


def test_everything_is_measured_again_in_rounds_and_medians_are_kept(measured: Measured) -> None:
    profile = measured.profile
    assert len(measured.rounds) == len(profile.latency)
    for m, cells in zip(profile.latency, measured.rounds, strict=True):
        assert [cell.batch for cell in cells] == [m.batch] * SHORT.rounds
        assert m.mean_ms == pytest.approx(statistics.median(statistics.fmean(cell.ms) for cell in cells))
        assert m.samples == sum(len(cell.ms) for cell in cells)


def test_a_round_takes_every_cell_before_the_next(measured: Measured) -> None:
    profile, orders = measured.profile, measured.orders
    kinds = len({(m.variant, m.backend, m.profile) for m in profile.latency})
    of_base = profile.base.count
    again = orders[-of_base - SHORT.rounds * kinds : -of_base]
    assert len(set(again)) == kinds
    assert again == SHORT.rounds * again[:kinds]


def test_a_worker_that_does_not_come_again_leaves_what_was_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, seen = Pool.spawn, dict[tuple[str, str], int]()

    async def once(self: Pool, order: WorkerOrder, *of: Any, **how: Any) -> Any:
        key = order.variant, order.place
        seen[key] = seen.get(key, 0) + 1
        if order.variant == "half" and seen[key] == 3:  # measured, calibrated, and then
            raise WorkerError("no room")
        return await spawn(self, order, *of, **how)

    monkeypatch.setattr(Pool, "spawn", once)
    profile = measure(load_family(str(FAMILIES / "toy")), tmp_path)
    assert any("half with eager on 1c was measured once only: no room" in note for note in profile.notes)
    assert [m.batch for m in profiles.measurements(profile, "half", "1c")] == [1, 4, 8]


def test_published_accuracy_stands_in_for_an_evaluation_set(tmp_path: Path) -> None:
    spec = load_family(str(FAMILIES / "slow"))
    profile = measure(msgspec.structs.replace(spec, variants=spec.variants[:1]), tmp_path)
    (accuracy,) = profile.accuracy
    assert (accuracy.value, accuracy.method, accuracy.samples) == (80.0, "published", 0)
    assert accuracy.source == "made up for tests"


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    spec = load_family(str(FAMILIES / "simple"))
    bare = msgspec.structs.replace(spec, variants=(msgspec.structs.replace(spec.variants[0], accuracy=None),))
    with pytest.raises(ProfileError, match=r"no evaluation set .* for exact"):
        measure(bare, tmp_path)
    crashy = load_family(str(FAMILIES / "crashy"))
    with pytest.raises(ProfileError, match="unloadable of crashy cannot be measured"):
        measure(msgspec.structs.replace(crashy, variants=crashy.variants[1:]), tmp_path)


def test_a_start_finds_what_the_last_one_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clover.profiling.stored.QUICK", SHORT)
    spec = load_family(str(FAMILIES / "simple"))
    config = ServerConfig(cache_dir=str(tmp_path), workers=WorkersConfig(backends=("eager",)))

    async def main() -> None:
        pool = Pool()
        await pool.start()
        try:
            require = msgspec.structs.replace(config, profile="require")
            with pytest.raises(ProfileError, match="never measured here"):
                await profiling.ensure(spec, CpuDevice(), pool, require)
            first = await profiling.ensure(spec, CpuDevice(), pool, config)
            assert await profiling.ensure(spec, CpuDevice(), pool, require) == first
            assert first.key == profiling.key_of(spec, CpuDevice(), config)
            forced = await profiling.ensure(spec, CpuDevice(), pool, msgspec.structs.replace(config, profile="force"))
            assert forced.latency != first.latency
            # A profile whose compiled artifacts are gone is as good as none.
            profiles.ProfileStore(tmp_path).put(msgspec.structs.replace(first, backend={"exact": "aoti"}))
            with pytest.raises(ProfileError, match="aoti of exact"):
                await profiling.ensure(spec, CpuDevice(), pool, require)
        finally:
            await pool.stop()

    asyncio.run(main())


def test_a_cancelled_measurement_leaves_nothing_behind(tmp_path: Path) -> None:
    spec = load_family(str(FAMILIES / "slow"))

    async def main() -> None:
        pool = Pool()
        await pool.start()
        try:
            reached = asyncio.Event()
            task = asyncio.create_task(
                profiling.measure(
                    spec,
                    CpuDevice(),
                    pool,
                    MeasureOptions(
                        backends=("eager",),
                        cache_dir=tmp_path,
                        effort=QUICK,
                        progress=lambda what, done, total: reached.set(),
                    ),
                )
            )
            await reached.wait()
            while not any(worker.state == "ready" for worker in pool.workers):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while pool.workers:  # a killed worker is gone in a moment
                await asyncio.sleep(0.01)
        finally:
            await pool.stop()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_quick_is_quick() -> None:
    assert QUICK.quick
    assert QUICK.compiling.cpu_s <= 60
