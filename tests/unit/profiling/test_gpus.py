"""Measuring GPUs, with GPUs and workers made of Python: which instances stand when, and what is measured where."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from clover import energy, profiles
from clover.energy.board_idle import BoardIdle
from clover.errors import DeviceError, ProfileError, WorkerError
from clover.families import load_family
from clover.profiling import front_end, joules, measurement
from clover.profiling.duty import Pauses
from clover.profiling.front_end import FrontEndRun
from clover.profiling.options import CompileLimits, Effort, MeasureOptions
from clover.profiling.rig import ProgressSteps
from clover.quantities import percent
from clover.runtime.workers.completions import Completions
from clover.types import DeviceShape, EnergySample, Placement
from clover.worker.frames import HeldMemory, WorkerOrder

TOY = load_family(str(Path(__file__).resolve().parents[2] / "families" / "toy"))
SHORT = Effort(
    quick=True,
    samples=2,
    least_s=0.0,
    most_s=0.01,
    score_s=0.05,
    base_s=0.02,
    rounds=2,
    compiling=CompileLimits(cpu_s=0.0),
)
OTHERS = "python (4711) compute on gpu0"
SIZES = {"1g.5gb": 1, "3g.20gb": 4, "7g.40gb": 8}


def place(device: str, profile: str, start: int) -> Placement:
    return Placement(device=device, profile=profile, start=start, size=SIZES[profile])


class Gpu:
    """A GPU that refuses what a real one would: overlaps, and removing what is in use."""

    product = "NVIDIA A100-SXM4-40GB"
    driver = "1.2"
    emulated = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.uuid = f"GPU-{name}"
        self.session = object()
        self.standing: set[Placement] = set()
        self.made: list[str] = []
        self.users: dict[str, int] = {}
        self.looked: list[bool] = []
        self.rested: list[bool] = []

    def shape(self) -> DeviceShape:
        n = self.name
        small = (place(n, "3g.20gb", 0), *(place(n, "1g.5gb", start) for start in (4, 5, 6)))
        return DeviceShape(
            device=n, kind="mig", layouts=(small, (place(n, "7g.40gb", 0),)), slices=7, overlap=False, label="an A100"
        )

    async def create(self, placement: Placement) -> None:
        for other in self.standing:
            if placement.start < other.start + other.size and other.start < placement.start + placement.size:
                raise DeviceError(f"{other.id} is in the way")
        self.standing.add(placement)
        self.made.append(f"{placement.profile}@{placement.start}")

    async def destroy(self, placement: Placement) -> None:
        if self.users.get(self.visible(placement)):
            raise DeviceError("in use")
        self.standing.remove(placement)

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return (0,)

    def threads(self, placement: Placement) -> int:
        return 1

    def visible(self, placement: Placement) -> str:
        if placement not in self.standing:
            raise DeviceError(f"{placement.id} does not stand")
        return f"MIG-{placement.id}"

    def memory_bytes(self, placement: Placement) -> int:
        return 1 << 30


class Worker:
    """Answers every batch at once, in a thread."""

    def __init__(self, order: WorkerOrder, fd: int, gpu: Gpu) -> None:
        self.order = order
        self.ring = self
        self.state = "ready"
        self.held = (HeldMemory(variant=order.variant, weights_bytes=1 << 20, peak_bytes=1 << 19),)
        self.context_bytes = 300 << 20
        self.recorded = {order.variant: "a replay differs" if order.variant == "half" else ""}
        self._fd = fd
        self._gpu = gpu
        self._out: list[tuple[int, int, int, int, int, int]] = []
        gpu.users[order.visible_devices] = gpu.users.get(order.visible_devices, 0) + 1

    def submit(self, batch_id: int, slots: NDArray[np.uint32], n: int) -> int:
        start_ns = time.monotonic_ns()
        self._out.append((batch_id, 0, n, start_ns, start_ns + 1_000_000, 100_000))
        os.eventfd_write(self._fd, 1)
        return 1

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self._out.pop(0) if self._out else None

    def bell(self) -> None: ...

    def kill(self) -> None:
        self.state = "dead"
        self._gpu.users[self.order.visible_devices] -= 1

    async def drain_and_exit(self) -> None:
        self.kill()


class Pool:
    """Starts such workers where `fits`."""

    def __init__(self, gpus: dict[str, Gpu], fits: Callable[[WorkerOrder], bool]) -> None:
        self.completions = Completions()
        self.completed = os.eventfd(0, os.EFD_NONBLOCK)
        self.completions.watch(self.completed)
        self.orders: list[WorkerOrder] = []
        self._gpus = gpus
        self._fits = fits

    async def spawn(self, order: WorkerOrder, slab: Any) -> Worker:
        self.orders.append(order)
        if not self._fits(order):
            raise WorkerError(f"{order.variant}: out of memory on {order.place}")
        return Worker(order, self.completed, self._gpus[order.place.split(":")[0]])


class Meter:
    """Steps once a second, which is a look: by what the bare board and a context draw (50 and 35 W), and a joule more;
    the GPU keeps whether workers were on it at each look, and at each measurement of rest."""

    source = "counter"

    def __init__(self, gpu: Gpu) -> None:
        self.device = gpu.name
        self.why = "a counter of the tests"
        self.looks = 0
        self.idle = BoardIdle(50.0)
        self._gpu = gpu

    async def refresh(self) -> None:
        self._gpu.looked.append(any(self._gpu.users.values()))
        self.looks += 1

    async def measure_resident(self) -> None:
        self._gpu.rested.append(any(self._gpu.users.values()))
        self.idle.set_resident(85.0)

    def sample(self, now_ns: int) -> EnergySample:
        at_ns = self.looks * 1_000_000_000
        return EnergySample(device=self.device, at_ns=at_ns, total_j=self.looks * 86.0, idle_w=50.0, method="measured")


async def echoed(*_: Any) -> FrontEndRun:
    """What the front end costs."""
    return FrontEndRun(0.5, 0.1, 1.0, 200)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fits: Callable[[WorkerOrder], bool],
    names: Sequence[str],
    *,
    front: Any = echoed,
    others: str = "",
) -> tuple[Any, dict[str, Gpu], Pool]:
    async def build_gpu(session: Any, gpu: Gpu, config: Any) -> Meter:
        assert session is gpu.session
        return Meter(gpu)

    async def idle(*_: Any) -> float:
        return 0.0

    async def strangers(*_: Any) -> str:
        return others

    monkeypatch.setattr(joules, "others_on", strangers)
    monkeypatch.setattr(measurement, "others_on", strangers)
    monkeypatch.setattr(front_end, "measure", front)
    monkeypatch.setattr(energy, "build_gpu", build_gpu)
    monkeypatch.setattr(measurement, "busy_share", idle)
    monkeypatch.setattr(measurement, "FIRST_GPU_CELL_S", 0.01)
    monkeypatch.setattr(measurement, "GPU_CELL_S", 0.01)
    gpus = {name: Gpu(name) for name in names}
    pool = Pool(gpus, fits)
    devices: Any = gpus

    async def main() -> Any:
        return await measurement.measure(
            TOY,
            devices,
            pool,  # type: ignore[arg-type]
            MeasureOptions(backends=("eager",), cache_dir=tmp_path, effort=SHORT, key="k"),
        )

    try:
        return asyncio.run(main()), gpus, pool
    finally:
        pool.completions.close()
        os.close(pool.completed)
        assert not any(gpu.standing for gpu in gpus.values()), "what was made for measuring is removed"


def test_every_profile_is_measured_on_one_instance_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measurement, "MOST_ROWS_PER_S", 6000.0)
    profile, gpus, pool = measured(monkeypatch, tmp_path, lambda order: True, ("gpu0", "gpu1"))
    assert gpus["gpu0"].made == ["1g.5gb@4", "3g.20gb@0", "7g.40gb@0"], "one at a time, and each only once"
    assert gpus["gpu1"].made == ["7g.40gb@0"], "BASE is on every GPU"
    assert {m.profile for m in profile.latency} == set(SIZES)
    for variant in ("half", "full"):
        for name in SIZES:
            assert [m.batch for m in profiles.measurements(profile, variant, name)] == [1, 4, 8]
    assert {m.energy_method for m in profile.latency} == {"measured"}
    assert {(m.variant, m.profile, m.weights_bytes) for m in profile.memory} == {
        (variant, name, 1 << 20) for variant in ("half", "full") for name in SIZES
    }
    assert profile.context_bytes == dict.fromkeys(SIZES, 300 << 20)
    assert {(one.variant, one.profile, one.refused) for one in profile.recorded} == {
        (variant, name, refused) for variant, refused in (("half", "a replay differs"), ("full", "")) for name in SIZES
    }
    assert "half with eager on 1g.5gb runs without CUDA graphs: a replay differs" in profile.notes
    orders: dict[tuple[str, str], list[str]] = {}
    for order in pool.orders:
        orders.setdefault((order.variant, order.place.split(":")[1].split("@")[0]), []).append(order.recording)
    assert len(orders) == 6
    for (variant, _), (first, *later) in orders.items():
        assert first == "check"
        assert set(later) == {"skip" if variant == "half" else "trust"}, "compared once"
    assert {m.threads for m in profile.latency} == {1}
    assert (profile.base.profile, profile.base.count, profile.key) == ("7g.40gb", 2, "k")
    assert (profile.front_ms, profile.turn_j) == (0.5, 0.0)
    assert all(order.visible_devices == f"MIG-{order.place}" for order in pool.orders)
    assert any("energy is that of the GPU above rest with a context" in note for note in profile.notes)
    assert gpus["gpu1"].looked == [True] * 4, "a GPU where nothing runs is not in what a slice of another takes"
    assert gpus["gpu0"].rested == gpus["gpu1"].rested == [True], "once, with a worker on it"
    kept = [(tmp_path / "energy" / f"GPU-{name}.json").exists() for name in gpus]
    assert kept == [False, False], "only what NVML measured is kept"


def test_cells_of_a_gpu_are_measured_again_in_two_shuffled_rounds_at_two_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A joule above rest a window, which is a second: as a line through both loads, and with what it is off."""
    duties: set[float | None] = set()

    def before(self: Pauses, service_s: float) -> float:
        duties.add(self._duty)
        return 0.0

    monkeypatch.setattr(Pauses, "before", before)
    profile, _, pool = measured(monkeypatch, tmp_path, lambda order: True, ("gpu0",))
    assert duties == {None, 1.0, 0.3}
    starts = [order.variant for order in pool.orders if "1g" in order.place]
    assert sorted(starts) == ["full"] * 4 + ["half"] * 4, "for the backend, for cascades, and once a round"
    for m in profile.latency:
        assert (m.energy_method, m.energy_j_per_row > 0.0, 0.0 <= m.energy_error < 2.0) == ("measured", True, True)
        assert m.samples >= 2


def test_base_below_a_third_of_its_load_costs_what_its_batches_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(ProgressSteps, "report", lambda _, what, *__: steps.append(what))
    profile, _, _ = measured(monkeypatch, tmp_path, lambda order: True, ("gpu0", "gpu1"))
    full = profiles.measurements(profile, profile.base.variant, "7g.40gb")[-1]
    [step] = [step for step in steps if step.startswith("BASE: ")]
    # The load that it is measured at, not the one that is aimed for.
    assert step == f"BASE: {profile.base.variant} on 2 x 7g.40gb at {percent(profile.base.load)} load"
    assert profile.base.load < 0.3
    assert profile.base.energy_j_per_row == full.energy_j_per_row
    assert any("joules of a row of BASE are those of batches of 8" in note for note in profile.notes)
    assert any("4000 rows/s, below 60 % load" in note for note in profile.notes)


def test_nothing_is_measured_beside_others_at_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"python \(4711\) compute on gpu0: their energy would be taken for"):
        measured(monkeypatch, tmp_path, lambda order: True, ("gpu0",), others=OTHERS)


def test_others_that_came_meanwhile_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def nobody(*_: Any) -> str:
        return ""

    began = joules.EnergyMeters.start

    def start(*given: Any) -> Any:
        monkeypatch.setattr(joules, "others_on", nobody)
        return began(*given)

    monkeypatch.setattr(joules.EnergyMeters, "start", start)
    profile, _, _ = measured(monkeypatch, tmp_path, lambda order: True, ("gpu0",), others=OTHERS)
    assert f"{OTHERS} meanwhile: joules are too many" in profile.notes


def test_a_profile_without_what_http_adds_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def refused(*_: Any) -> FrontEndRun:
        raise ProfileError("the front end ended the connection")

    profile, _, _ = measured(monkeypatch, tmp_path, lambda order: True, ("gpu0",), front=refused)
    assert profile.front_ms == 0.0
    assert profile.notes[-1].startswith("what HTTP adds was not measured")
    assert profile.notes[-1].endswith("the front end ended the connection")
    assert "in its workers" in profiles.default_slo_source(profile)


def test_a_variant_starts_with_the_smallest_instance_it_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fits(order: WorkerOrder) -> bool:
        return order.variant == "half" or "1g" not in order.place

    profile, _, _ = measured(monkeypatch, tmp_path, fits, ("gpu0",))
    assert {m.profile for m in profile.latency if m.variant == "half"} == set(SIZES)
    assert {m.profile for m in profile.latency if m.variant == "full"} == {"3g.20gb", "7g.40gb"}
    assert any("full does not run on 1g.5gb" in note and "out of memory" in note for note in profile.notes)


def test_a_variant_that_fits_nowhere_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="full of toy cannot be measured"):
        measured(monkeypatch, tmp_path, lambda order: order.variant == "half", ("gpu0",))


def test_gpus_on_which_a_name_means_different_things_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shape = Gpu.shape

    def labelled(self: Gpu) -> DeviceShape:
        return msgspec.structs.replace(shape(self), label="an H100" if self.name == "gpu1" else "an A100")

    monkeypatch.setattr(Gpu, "shape", labelled)
    with pytest.raises(ProfileError, match=r"of gpu0 \(an A100\) is not that of gpu1 \(an H100\).*--device nvidia:0"):
        measured(monkeypatch, tmp_path, lambda order: True, ("gpu0", "gpu1"))


def test_emulated_gpus_are_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Gpu, "shape", lambda self: DeviceShape(
        device="gpu0", kind="mig", layouts=((place("gpu0", "7g.40gb", 0),),), slices=7, overlap=False, emulated=True
    ))  # fmt: skip
    with pytest.raises(ProfileError, match="calculated, not measured"):
        measured(monkeypatch, tmp_path, lambda order: True, ("gpu0",))
