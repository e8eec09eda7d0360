"""The pure parts of profiling: intervals, agreement, choosing backend and threads, rows, and the driver's loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover import backends, profiles
from clover.backends import CpuBudget, Target
from clover.config import EnergyConfig, ServerConfig, WorkersConfig
from clover.devices.cpu import CpuDevice
from clover.errors import DeviceError, ProfileError
from clover.families import load_family
from clover.profiles import ProfileStore
from clover.profiling import placements as places
from clover.profiling import report
from clover.profiling.candidates import Candidates
from clover.profiling.chains import Answers
from clover.profiling.choose import choose_backend, faster, in_order, times, times_behind
from clover.profiling.driver import Cell, Driver, SilentWorker
from clover.profiling.instances import TemporaryInstances
from clover.profiling.joules import EnergyMeters, EnergyWindow, busy_share, jiffies
from clover.profiling.measurement import too_slow
from clover.profiling.options import FULL, NO_LIMITS, QUICK, CompileLimits
from clover.profiling.records import accuracy_of, middle_j, pair_with_best, pool_cells, typical_p95
from clover.profiling.rig import MemoryFindings
from clover.profiling.rows import load, pack
from clover.profiling.score import agreement, answers, wilson
from clover.profiling.stored import ensure, key_of
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.completions import Completions
from clover.runtime.workers.pool import Pool
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    DeviceShape,
    EnergySample,
    FamilyProfile,
    LatencyMeasurement,
    Placement,
    RejectedBackend,
    VariantSpec,
)
from clover.worker.frames import HeldMemory
from tests.support.family_folder import fixture

FAMILIES = Path(__file__).resolve().parents[2] / "families"


def test_of_several_reports_of_memory_the_most_counts() -> None:
    found = MemoryFindings()

    def note(profile: str, backend: str, weights: int, peak: int, context: int) -> None:
        held = HeldMemory(variant="v", weights_bytes=weights, peak_bytes=peak)
        found.record(profile, backend, (held,), context)

    note("2c", "eager", 5, 9, 30)
    note("1c", "eager", 5, 7, 20)
    note("1c", "eager", 5, 8, 19)
    note("1c", "aoti", 6, 1, 10)
    assert [(m.variant, m.profile, m.backend, m.weights_bytes, m.peak_bytes) for m in found.measurements()] == [
        ("v", "1c", "aoti", 6, 1),
        ("v", "1c", "eager", 5, 8),
        ("v", "2c", "eager", 5, 9),
    ]
    assert found.context_bytes == {"1c": 20, "2c": 30}


# --- scoring ------------------------------------------------------------------------------------------------------


def test_wilson_against_published_values() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(100)
    with pytest.raises(ValueError, match="1 of 0 is not a share"):
        wilson(1, 0)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_the_share(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    low, high = wilson(right, samples)
    assert 0 <= low <= 100 * right / samples + 1e-9
    assert 100 * right / samples - 1e-9 <= high <= 100


def test_answers_and_agreement() -> None:
    rows = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert answers(rows).tolist() == [1, 0]
    assert agreement(answers(rows), answers(rows * 0.5)) == 1.0
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.75
    assert agreement(np.array([[1.0], [2.0]]), np.array([[1.0001], [3.0]])) == 0.5
    assert agreement(answers([b"a", b"b"]), answers([b"a", b"c"])) == 0.5
    assert agreement(np.array([1]), np.array([1, 2])) == 0.0


def test_accuracies_are_held_against_the_best_variant_on_the_same_rows() -> None:
    right = {"cheap": [1, 0, 0, 1, 1], "dear": [1, 1, 0, 1]}
    held_out = {(name, "eager"): Answers(np.zeros(len(own)), np.array(own, np.bool_)) for name, own in right.items()}
    known = [msgspec.structs.replace(score("eager", 60.0), variant=name) for name in right]
    known[1] = msgspec.structs.replace(known[1], value=75.0)
    cheap, dear = pair_with_best(known, held_out, dict.fromkeys(right, "eager"))
    assert cheap.against is not None
    assert cheap.against[0] == pytest.approx(-25.0)
    assert cheap.against[1] < -25.0 < cheap.against[2]
    assert dear.against == (0.0, 0.0, 0.0)
    published = [msgspec.structs.replace(item, method="published") for item in known]
    assert [item.against for item in pair_with_best(published, {}, dict.fromkeys(right, "eager"))] == [None, None]


# --- choosing -----------------------------------------------------------------------------------------------------


def score(backend: str, value: float, agrees: float = 1.0) -> AccuracyMeasurement:
    return AccuracyMeasurement(
        variant="v",
        backend=backend,
        metric="top1",
        value=value,
        low=value - 1,
        high=value + 1,
        samples=100,
        method="measured",
        agreement=agrees,
    )


def latency(backend: str, batch: int, energy: float, **changes: Any) -> LatencyMeasurement:
    values: dict[str, Any] = {
        "variant": "v",
        "profile": "1c",
        "backend": backend,
        "batch": batch,
        "threads": 1,
        "samples": 30,
        "mean_ms": 1.0,
        "cv": 0.0,
        "p50_ms": 1.0,
        "p95_ms": 1.0,
        "p99_ms": 1.0,
        "cpu_s_per_row": 0.001,
        "energy_j_per_row": energy,
        "energy_method": "modelled",
    }
    return LatencyMeasurement(**values | changes)


def test_the_cheapest_backend_that_agrees_is_elected() -> None:
    costs = [latency("eager", 1, 4.0), latency("eager", 8, 2.0), latency("x", 1, 1.0), latency("x", 8, 1.0)]
    dearer = {"eager": "a row takes 2.83 x the energy"}
    assert choose_backend([score("eager", 90), score("x", 90)], costs) == ("x", dearer)
    chosen, refused = choose_backend([score("eager", 90), score("x", 90, agrees=0.99)], costs)
    assert chosen == "eager"
    assert refused == {"x": "it agrees with eager on 99.00% of rows"}
    chosen, refused = choose_backend([score("eager", 90), score("x", 92)], costs)
    assert chosen == "eager"
    assert "outside eager's 89.00 to 91.00" in refused["x"]


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-bf16", "openvino-int8", "eager-bf16"])
def test_fewer_bits_may_differ_on_a_few_rows_if_that_pays(name: str) -> None:
    costs = [latency("eager", 1, 4.0), latency("x", 1, 2.0), latency(name, 1, 1.0)]
    exact = [score("eager", 90), score("x", 90)]
    dearer = {"eager": "a row takes 4.00 x the energy", "x": "a row takes 2.00 x the energy"}
    assert choose_backend([*exact, score(name, 89.8, agrees=0.991)], costs) == (name, dearer)
    chosen, refused = choose_backend([*exact, score(name, 89.8, agrees=0.989)], costs)
    assert chosen == "x"
    assert "agrees with eager on 98.90%" in refused[name]
    published = [msgspec.structs.replace(one, method="published") for one in (*exact, score(name, 90, agrees=0.991))]
    assert choose_backend(published, costs)[0] == "x", "without labels agreement is all that is known"
    assert choose_backend([*exact, score(name, 88.8, agrees=0.996)], costs)[0] == "x"
    costs[-1] = latency(name, 1, 1.85)  # other answers for less than a tenth of the energy
    assert choose_backend([*exact, score(name, 90)], costs)[0] == "x"


def test_what_promises_most_is_tried_first() -> None:
    every = list(backends.BACKENDS)
    heavy = in_order(every, eager_s=0.05)
    assert heavy[:3] == ["openvino-bf16", "openvino-int8", "openvino"]
    assert heavy.index("onnxruntime") < heavy.index("eager-bf16")
    assert "eager" not in heavy
    light = in_order(every, eager_s=0.0001)
    assert light[:2] == ["onnxruntime-int8", "onnxruntime"]
    assert "eager-bf16" not in light


def test_a_backend_is_behind_by_the_batch_that_is_kindest_to_it() -> None:
    assert times_behind({1: 2.0, 8: 3.0}, {1: 1.0, 4: 0.1, 8: 2.0}) == 1.5
    assert times_behind({1: 2.0}, {8: 1.0}) == 0.0
    assert times({1: 2.0, 8: 8.0}, {1: 1.0, 8: 1.0}) == pytest.approx(4.0)


def test_electing_needs_eager_and_common_batches() -> None:
    with pytest.raises(ProfileError, match="eager was not measured"):
        choose_backend([score("x", 90)], [latency("x", 1, 1.0)])
    with pytest.raises(ProfileError, match="different batch sizes"):
        choose_backend([score("eager", 90), score("x", 90)], [latency("eager", 1, 1.0), latency("x", 8, 1.0)])


def test_threads_must_be_worth_it() -> None:
    one = {1: 1.0, 8: 4.0}
    assert faster({1: 0.8, 8: 3.2}, one)
    assert not faster({1: 0.95, 8: 3.8}, one)
    assert not faster({}, one)


def test_rounds_leave_medians_and_how_batches_lay_around_them() -> None:
    quick, middling, slow = (
        Cell(8, ms=[0.9 * ms, 1.1 * ms], cpu_s=cpu_s, wall_s=0.1)
        for ms, cpu_s in ((1.0, 0.016), (2.0, 0.16), (9.0, 0.08))
    )
    found = pool_cells([quick, slow, middling])
    assert found.ms == pytest.approx([1.8, 2.2] * 3), "a slow round is not a slow batch"
    assert found.rows == 48
    assert found.cpu_s / found.rows == pytest.approx(0.08 / 16)
    assert found.wall_s == pytest.approx(0.3)


def test_joules_of_one_kind_are_compared() -> None:
    assert middle_j([(2.0, "measured"), (9.0, "modelled"), (4.0, "measured")]) == (3.0, "measured")
    assert middle_j([(2.0, "modelled"), (9.0, "modelled"), (4.0, "modelled")]) == (4.0, "modelled")


def test_batches_and_typical_p95() -> None:
    assert QUICK.batches(32) == (1, 4, 32)
    assert QUICK.batches(4) == (1, 4)
    assert QUICK.batches(1) == (1,)
    assert FULL.batches(24) == (1, 2, 4, 8, 16, 24)
    steady = np.ones(500)
    steady[:90] = 100.0  # one hiccup within the first stretch
    assert typical_p95(steady) == 1.0
    assert typical_p95(np.array([3.0])) == 3.0


# --- energy -------------------------------------------------------------------------------------------------------


class Counter:
    why = "a counter of the tests"

    def __init__(self, readings: list[float], device: str = "cpu0", idle_w: float = 0.0) -> None:
        self.readings = readings
        self.device = device
        self.idle_w = idle_w
        self.refreshed = 0
        self.epochs = [0] * len(readings)

    async def refresh(self) -> None:
        self.refreshed += 1

    def sample(self, now_ns: int) -> EnergySample:
        method: Any = "measured" if self.device == "cpu0" else "emulated"
        return EnergySample(
            device=self.device,
            at_ns=self.refreshed * 1_000_000_000,
            total_j=self.readings.pop(0),
            idle_w=self.idle_w,
            method=method,
            epoch=self.epochs.pop(0),
        )


def stretch(*meters: Counter, awake_w: Mapping[str, float] | None = None) -> EnergyWindow:
    async def at_once(seconds: float) -> None: ...

    async def main() -> EnergyWindow:
        async with EnergyWindow(meters, 8.0, awake_w, sleep=at_once) as window:
            pass
        return window

    return asyncio.run(main())


def test_a_counter_is_preferred_and_the_model_labelled() -> None:
    assert stretch(Counter([10.0, 14.0])).joules(8, 1.0) == (0.5, "measured")
    assert stretch(Counter([10.0, 10.0])).joules(4, 1.0) == (2.0, "modelled")
    assert stretch().joules(4, 1.0) == (2.0, "modelled")


def test_gpus_add_up_above_idle_and_are_never_modelled() -> None:
    """A look a second, and from one step of the counter (10 J) to another (90 J) two seconds."""
    first = Counter([9.0, 10.0, 85.0, 90.0], "gpu0", idle_w=25.0)
    second = Counter([-1.0, 0.0, 55.0, 60.0], "gpu1", idle_w=25.0)
    assert stretch(first, second).joules(4, 1.0) == (10.0, "emulated")
    assert (first.refreshed, second.refreshed) == (4, 4)
    with pytest.raises(ProfileError, match="did not rise above idle"):
        stretch(Counter([9.0, 10.0, 55.0, 60.0], "gpu0", idle_w=25.0)).joules(4, 1.0)
    awake = Counter([9.0, 10.0, 85.0, 90.0], "gpu0", idle_w=25.0)
    assert stretch(awake, awake_w={"gpu0": 5.0, "gpu1": 99.0}).joules(4, 1.0) == (5.0, "emulated")
    anew = Counter([9.0, 10.0, 85.0, 90.0], "gpu0")
    anew.epochs = [0, 0, 0, 1]
    with pytest.raises(ProfileError, match="began anew"):
        stretch(anew).joules(4, 1.0)


def test_a_window_on_a_gpu_begins_and_ends_when_its_counter_moves() -> None:
    """A counter that moves every twentieth look, from which looks a period apart would see up to two steps more or
    less."""
    looks = [float(look // 20) for look in range(100)]
    meter = Counter(looks, "gpu0")
    meter.refreshed = 7
    meter.readings = looks[7:]
    window = stretch(meter)
    cell = Cell(4, [1.0], wall_s=1.0)
    point = window.point(cell)
    assert point is not None
    assert (point.seconds, point.active_j, point.rows) == (20.0, 1.0, 8)
    stuck = Counter([5.0] * 500, "gpu0")
    assert stretch(stuck).point(cell) is not None  # it is not waited for without end
    assert stuck.refreshed < 250


def test_power_is_looked_at_all_the_while_where_a_gpu_has_no_counter() -> None:
    async def main() -> int:
        meter = Counter([float(number) for number in range(100)], "gpu0")
        meter.source = "power"  # type: ignore[attr-defined]

        async def sleep(seconds: float) -> None:
            assert seconds == 0.1
            await asyncio.sleep(0)

        async with EnergyWindow((meter,), 8.0, sleep=sleep):
            for _ in range(50):
                await asyncio.sleep(0)
        return meter.refreshed

    assert asyncio.run(main()) > 10


def test_the_label_says_why() -> None:
    joules = asyncio.run(EnergyMeters.start(EnergyConfig(meter="modelled", idle_w=1.0, core_w=5.0), 2))
    assert joules.label == "energy is modelled: 5 W a busy core (configured; watts as configured)"


# --- candidates ---------------------------------------------------------------------------------------------------


class Compiling:
    """A backend that compiles an empty file, and says where it was asked to."""

    name = "fake"
    compiles = True
    gpu_only = False

    def available(self) -> str:
        return ""

    def supports(self, family: Any, variant: Any, target: Any = None) -> str:
        return ""


def candidates_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, targets: dict[str, Target], failing: str = ""
) -> tuple[Candidates, list[tuple[str, str, int, str]], list[str]]:
    made: list[tuple[str, str, int, str]] = []

    async def compile_in_background(
        family: Any,
        variant: Any,
        backend: str,
        folder: Path,
        threads: int,
        *,
        target: Target,
        budget: CpuBudget,
        **_: Any,
    ) -> None:
        made.append((variant.name, target.profile, threads, target.visible))
        budget.used_s += 10.0
        if target.profile == failing and failing:
            raise ProfileError("no room")
        folder.mkdir(parents=True)
        (folder / backends.artifacts.MANIFEST).write_text("{}")

    monkeypatch.setattr(backends, "compile_in_background", compile_in_background)
    monkeypatch.setattr(backends, "get", lambda name: Compiling() if name == "fake" else backends.BACKENDS[name])
    notes: list[str] = []
    spec = load_family(str(FAMILIES / "toy"))
    return Candidates(spec, ("eager", "fake"), folder, notes, targets), made, notes


def test_each_thread_count_is_compiled_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, made, notes = candidates_with(monkeypatch, tmp_path, {})
    asyncio.run(found.compile(("fake",), [(1, ""), (2, "")], NO_LIMITS, lambda *_: None))
    assert sorted(made) == [(name, "", count, "") for name in ("full", "half") for count in (1, 2)]
    assert found.of == {"half": ["eager", "fake"], "full": ["eager", "fake"]}
    assert not notes
    asyncio.run(found.compile(("fake",), [(1, ""), (2, "")], NO_LIMITS, lambda *_: None))
    assert len(made) == 4, "what is there is not made again"


def test_variants_that_no_backend_compiles_are_one_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "1")
    toy = load_family(str(FAMILIES / "toy"))
    files = [VariantSpec(name=name, loader="m:load", kind="python", weights=f"{name}.onnx") for name in ("a", "b")]
    bare = VariantSpec(name="c", loader="m:load", kind="python")
    for variants, said in (
        (files, ["not compiled (onnxruntime, onnxruntime-int8): a, b: an ONNX file. ONNX Runtime runs an ONNX file"]),
        ([*files, bare], ["not compiled (onnxruntime, onnxruntime-int8): a, b: an ONNX file; c: plain Python. ONNX "]),
        ([bare], ["not compiled (onnxruntime, onnxruntime-int8): c: plain Python"]),
        (toy.variants, []),
    ):
        notes: list[str] = []
        spec = msgspec.structs.replace(toy, variants=tuple(variants))
        names = ("eager", "onnxruntime", "onnxruntime-int8")
        found = Candidates(spec, names, tmp_path, notes)
        assert [note.startswith(start) for note, start in zip(notes, said, strict=True)] == [True] * len(said)
        assert found.of == {one.name: list(names) if one.kind == "torch" else ["eager"] for one in variants}


def test_no_compilation_begins_when_the_cpu_time_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, made, notes = candidates_with(monkeypatch, tmp_path, {})
    asyncio.run(found.compile(("fake",), [(1, "")], CompileLimits(cpu_s=10.0), lambda *_: None))
    assert made == [("half", "", 1, "")]
    assert found.of == {"half": ["eager", "fake"], "full": ["eager"]}
    assert [note.startswith("fake is not compiled for full: `python -m clover profile") for note in notes] == [True]


def test_a_first_start_gives_compilations_the_time_that_they_need_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the clock, half a minute was not enough for one where four others wanted each core."""
    within: list[float] = []

    async def compile_in_background(*_: Any, budget: CpuBudget, **__: Any) -> None:
        within.append(budget.left_s)

    found, _, _ = candidates_with(monkeypatch, tmp_path, {})
    monkeypatch.setattr(backends, "compile_in_background", compile_in_background)
    asyncio.run(found.compile(("fake",), [(1, "")], QUICK.compiling, lambda *_: None))
    assert len(within) == 2
    assert min(within) > 4 * QUICK.compiling.cpu_s


def test_a_missing_extra_is_said_once_with_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "")
    monkeypatch.setattr("clover.profiling.candidates._SAID", set())
    spec = load_family(str(FAMILIES / "toy"))
    for _ in range(2):
        notes: list[str] = []
        found = Candidates(spec, ("eager", "onnxruntime"), tmp_path, notes)
        assert found.of == {"half": ["eager"], "full": ["eager"]}
        assert len(notes) == 1, "each profile keeps it"
    (said,) = (record.getMessage() for record in caplog.records)
    assert "install clover-inference[onnx]" in said
    assert "more time and energy" in said


def test_a_start_with_a_kept_profile_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "")
    monkeypatch.setattr("clover.profiling.candidates._SAID", set())
    spec = load_family(str(FAMILIES / "toy"))
    config = ServerConfig(cache_dir=str(tmp_path), workers=WorkersConfig(backends=("eager", "onnxruntime")))
    kept = FamilyProfile(
        family="toy",
        key=key_of(spec, CpuDevice(), config),
        machine="a machine",
        made_at="2024-01-31T00:00:00+00:00",
        quick=True,
        accuracy=(),
        latency=(),
        backend={"half": "eager", "full": "eager"},
        base=BasePoint(
            variant="full",
            profile="1c",
            count=1,
            backend="eager",
            p95_ms=2.0,
            energy_j_per_row=0.001,
            accuracy=90,
            method="measured",
        ),
    )
    ProfileStore(tmp_path).put(kept)
    for _ in range(2):
        assert asyncio.run(ensure(spec, CpuDevice(), Pool(), config)) == kept
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("onnxruntime is not used: missing onnxruntime, onnx, onnxscript, torch")
    assert "more time and energy" in said


def test_each_profile_is_compiled_in_a_slice_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    targets = {name: Target(gpu="G", profile=name, driver="1") for name in ("1g.5gb", "7g.40gb")}
    inside: list[str] = []

    @contextlib.asynccontextmanager
    async def slices(profile: str) -> Any:
        inside.append(profile)
        yield msgspec.structs.replace(targets[profile], visible=f"MIG-{profile}")

    found, made, notes = candidates_with(monkeypatch, tmp_path, targets)
    makes = [(1, name) for name in targets]
    asyncio.run(found.compile(("fake",), makes, NO_LIMITS, lambda *_: None, slices))
    assert inside == ["1g.5gb", "7g.40gb"], "one after the other"
    assert sorted(made) == sorted(
        (name, profile, 1, f"MIG-{profile}") for name in ("half", "full") for profile in targets
    )
    assert found.artifact(found._spec.variants[0], "fake", 1, "1g.5gb").parent.name == "1g.5gb"
    assert not notes
    found, made, notes = candidates_with(monkeypatch, tmp_path / "other", targets, failing="7g.40gb")
    asyncio.run(found.compile(("fake",), makes, NO_LIMITS, lambda *_: None, slices))
    assert found.of == {"half": ["eager"], "full": ["eager"]}, "no candidate where a profile lacks it"
    assert any("no room" in note for note in notes)
    found, made, notes = candidates_with(monkeypatch, tmp_path / "late", targets)
    asyncio.run(found.compile(("fake",), makes, CompileLimits(clock_s=0.0), lambda *_: None, slices))
    assert not made
    assert any("--compile" in note for note in notes)


# --- places -------------------------------------------------------------------------------------------------------


class Gpu:
    """A GPU that knows its layouts, and which instances were made."""

    def __init__(self, name: str, layouts: tuple[tuple[Placement, ...], ...]) -> None:
        self.name = name
        self.layouts = layouts
        self.events: list[str] = []
        self.refuse = ""

    def shape(self) -> DeviceShape:
        return DeviceShape(
            device=self.name, kind="mig", layouts=self.layouts, slices=7, overlap=False, emulated=True, label="a GPU"
        )

    async def create(self, placement: Placement) -> None:
        self.events.append(f"+{placement.profile}@{placement.start}")

    async def destroy(self, placement: Placement) -> None:
        self.events.append(f"-{placement.profile}@{placement.start}")
        if placement.profile == self.refuse:
            raise DeviceError("in use")

    def cores(self, placement: Placement) -> tuple[int, ...]:
        return (0, 1)

    def threads(self, placement: Placement) -> int:
        return 1

    def visible(self, placement: Placement) -> str:
        return f"MIG-{placement.id}"

    def memory_bytes(self, placement: Placement) -> int:
        return 1 << 30


def mig(device: str, profile: str, start: int, size: int) -> Placement:
    return Placement(device=device, profile=profile, start=start, size=size)


def gpu(name: str) -> Gpu:
    whole = (mig(name, "7g.40gb", 0, 8),)
    halves = (mig(name, "3g.20gb", 4, 4), mig(name, "4g.20gb", 0, 4))
    return Gpu(name, (halves, whole))


def test_places_over_several_gpus() -> None:
    several = {"gpu0": gpu("gpu0"), "gpu1": gpu("gpu1"), "gpu2": Gpu("gpu2", ())}
    assert [place.profile for place in places.places_of(several)] == ["3g.20gb", "4g.20gb", "7g.40gb"]
    assert {place.device for place in places.places_of(several)} == {"gpu0"}, "alike, so measured once"
    assert [place.id for place in places.whole_layout(several)] == ["gpu0:7g.40gb@0", "gpu1:7g.40gb@0"]
    assert places.device_cores(several) == (0, 1)
    assert places.emulated(several)
    assert not places.on_cores(several)
    assert places.on_cores(CpuDevice())
    with pytest.raises(ProfileError, match="no device has room"):
        places.devices_of({"gpu2": several["gpu2"]})
    mixed: dict[str, Any] = {"gpu0": several["gpu0"], "cpu0": CpuDevice()}
    with pytest.raises(ProfileError, match="emulated and real"):
        places.emulated(mixed)


def test_only_what_is_measured_on_stands() -> None:
    async def main() -> None:
        first, second = gpu("gpu0"), gpu("gpu1")
        standing = TemporaryInstances({"gpu0": first, "gpu1": second})
        small, large = mig("gpu0", "3g.20gb", 4, 4), mig("gpu0", "7g.40gb", 0, 8)
        await standing.need(small)
        await standing.need(small)
        assert first.events == ["+3g.20gb@4"]
        async with standing.inside(large) as target:
            assert not target.cuda, "emulated GPUs have nothing compiled for them"
        assert first.events[1:] == ["-3g.20gb@4", "+7g.40gb@0"]
        await standing.only((large, mig("gpu1", "7g.40gb", 0, 8)))
        assert second.events == ["+7g.40gb@0"]
        first.refuse = "7g.40gb"
        await standing.only(())
        assert first.events[-1] == second.events[-1] == "-7g.40gb@0"
        await standing.only(())
        assert len(second.events) == 2

    asyncio.run(main())


# --- busy machines ------------------------------------------------------------------------------------------------


def test_busy_share_counts_the_chosen_cores(tmp_path: Path) -> None:
    text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 0 10 70 10 0 0 0 5 0\ncpu1 90 0 0 10 0 0 0 0 0 0\nintr 1\n"
    assert jiffies(text, [0]) == (20, 100)
    assert jiffies(text, [0, 1]) == (110, 200)
    assert asyncio.run(busy_share([0], tmp_path / "none")) == 0.0
    path = tmp_path / "stat"
    path.write_text(text, encoding="ascii")
    assert asyncio.run(busy_share([0], path, watch_s=0.0)) == 0.0
    assert 0.0 <= asyncio.run(busy_share([0], watch_s=0.05)) <= 1.0


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "simple", "simple_string", "identity_bytes", "identity_types", "slow"])
def test_rows_of_every_kind_fit_their_slots(name: str) -> None:
    spec = load_family(str(FAMILIES / name))
    slab = Slab.create(Layout(spec, 8))
    try:
        rows = load(spec)
        rows.fill(slab, range(2, 6), rows.count - 2)  # goes around
        assert rows.labelled == (spec.evaluation is not None)
    finally:
        slab.close()


def test_pack_is_the_protocol_form() -> None:
    assert pack(np.array([[b"ab"], [b""]], dtype=object)) == b"\x02\0\0\0ab\0\0\0\0"


# --- driving ------------------------------------------------------------------------------------------------------


class EchoWorker:
    """Serves batches in a thread, `ms` each, and rings the completion descriptor."""

    def __init__(self, fd: int, ms: float, status: int = 0) -> None:
        self.ring = self
        self.state = "ready"
        self.sizes: list[int] = []
        self._fd = fd
        self._ms = ms
        self._status = status
        self._in: list[tuple[int, int]] = []
        self._out: list[tuple[int, int, int, int, int, int]] = []
        self._wake = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, batch_id: int, slots: NDArray[np.uint32], n: int) -> int:
        self._in.append((batch_id, n))
        self._wake.release()
        return 1

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self._out.pop(0) if self._out else None

    def bell(self) -> None:
        raise AssertionError("nobody asked for the bell")

    def _serve(self) -> None:
        while True:
            self._wake.acquire()
            batch, n = self._in.pop(0)
            if n < 0:
                return
            start = time.monotonic_ns()
            time.sleep(self._ms / 1e3)
            self.sizes.append(n)
            self._out.append((batch, self._status, n, start, time.monotonic_ns(), 1_000_000))
            os.eventfd_write(self._fd, 1)

    def stop(self) -> None:
        self._in.append((0, -1))
        self._wake.release()
        self._thread.join()


@pytest.fixture
def bench() -> Any:
    """A driver over the toy family, and a maker of echo workers."""
    spec = load_family(str(FAMILIES / "toy"))
    slab = Slab.create(Layout(spec, 4 * spec.max_batch))
    fd, completions = os.eventfd(0), Completions()
    completions.watch(fd)
    workers: list[EchoWorker] = []

    def make(ms: float, status: int = 0) -> EchoWorker:
        workers.append(EchoWorker(fd, ms, status))
        return workers[-1]

    yield Driver(completions, slab, load(spec), silent_s=0.3), make
    for worker in workers:
        worker.stop()
    slab.close()
    completions.close()
    os.close(fd)


def test_rows_that_are_measured_lie_in_no_order() -> None:
    spec = load_family(str(FAMILIES / "toy"))
    rows = load(spec)
    with contextlib.closing(Slab.create(Layout(spec, 32))) as slab, contextlib.closing(Completions()) as completions:
        driver = Driver(completions, slab, rows, silent_s=0.3)
        found = [driver._slots(8) for _ in range(4)]
        assert all(len(set(slots)) == 8 and max(slots) < spec.max_batch for slots in found)
        assert all(np.diff(slots).tolist() != [1] * 7 for slots in found), "a worker has to gather them"
        rows.fill(slab, found[0], 0)
        np.testing.assert_array_equal(slab.input(0)[found[0]], rows.take(0, 8)[0])


def test_closed_loop_counts_batches(bench: Any) -> None:
    driver, make = bench
    worker = make(1.0)
    cell = driver.cell(worker, 4, samples=5, least_s=0.0, most_s=5.0)
    assert len(cell.ms) == 5
    assert cell.rows == 20
    assert cell.cpu_s == pytest.approx(0.005)
    assert min(cell.ms) >= 1.0
    assert set(worker.sizes) == {4}


def test_scoring_passes_over_every_row_once(bench: Any) -> None:
    driver, make = bench
    scored = driver.score(make(0.0), 8, most_rows=20, most_s=5.0)
    assert len(scored.answers) == 20
    assert len(scored.cell.ms) == 2, "the short last batch is not a sample of full ones"


@pytest.mark.parametrize(("patient", "rows"), [(False, 16), (True, 80)])
def test_a_pass_on_a_machine_without_a_free_core_is_not_cut_short_at_once(
    bench: Any, monkeypatch: pytest.MonkeyPatch, patient: bool, rows: int
) -> None:
    driver, make = bench
    now_s = 0.0

    def one(_worker: Any, count: int, *_: Any) -> tuple[int, int]:
        """Take a second for a batch, in which the worker has a core for a tenth."""
        nonlocal now_s
        now_s += 1.0
        driver._next_row += count
        return 1_000_000_000, 100_000_000

    monkeypatch.setattr(driver, "_serve_batch", one)
    monkeypatch.setattr("clover.profiling.driver.time.monotonic", lambda: now_s)
    worker = make(0.0)
    assert len(driver.score(worker, 8, most_rows=80, most_s=1.5, patient=patient).answers) == rows
    few = driver.score(worker, 8, most_rows=80, most_s=0.25, patient=patient).answers
    assert len(few) == (24 if patient else 8), "ten times that at most, and the batch that is out then"


def test_an_accuracy_that_was_cut_short_is_said_to_be() -> None:
    spec = load_family(str(FAMILIES / "toy"))
    right = np.ones(900, np.bool_)
    part, whole = (accuracy_of(spec, spec.variants[0], "eager", right, right, right, rows) for rows in (5000, 900))
    assert profiles.cut_short(part) == "900 of 5,000 rows"
    assert profiles.cut_short(whole) == ""
    assert profiles.cut_short(msgspec.structs.replace(part, of=0)) == "", "a profile of before says nothing"


def test_open_loop_answers_every_arrival_and_batches_under_load(bench: Any) -> None:
    driver, make = bench
    workers = [make(2.0), make(2.0)]
    run = driver.open_loop(workers, 8, rate=2000.0, seconds=0.3)
    assert run.rows == 600
    assert sum(sum(worker.sizes) for worker in workers) == 600
    assert run.ms.min() > 0
    assert max(max(worker.sizes) for worker in workers) > 1
    assert all(worker.sizes for worker in workers)


def test_failures_end_the_measurement(bench: Any) -> None:
    driver, make = bench
    with pytest.raises(ProfileError, match="the model failed"):
        driver.cell(make(0.0, status=1), 1, samples=1, least_s=0.0, most_s=1.0)
    with pytest.raises(SilentWorker, match=r"no answer for 0\.3 s"):
        driver.cell(make(1500.0), 1, samples=1, least_s=0.0, most_s=1.0)
    dead = make(1500.0)
    dead.state = "dead"
    with pytest.raises(ProfileError, match="died"):
        driver.cell(dead, 1, samples=1, least_s=0.0, most_s=1.0)


def test_of_a_variant_that_is_too_slow_it_is_said_which_and_what_to_do() -> None:
    spec = load_family(str(FAMILIES / "toy"))
    known = [msgspec.structs.replace(latency("eager", 1, 0.1), variant=name) for name in ("tiny", "small")]
    first = too_slow(spec, "tiny with eager on 1c", 30.0, known[:1])
    assert first == (
        f"toy (tiny with eager on 1c): a batch of up to {spec.max_batch} rows took more than 30 s: raise --silent-s"
    )
    later = too_slow(spec, "BASE: small on 2 x 1c at 60% load", 30.0, known)
    assert later.endswith("raise --silent-s, or leave slow variants out: --only tiny")


# --- the report ---------------------------------------------------------------------------------------------------


def profile_of_v() -> FamilyProfile:
    return FamilyProfile(
        family="toy",
        key="k",
        machine="a machine",
        made_at="2024-01-31T00:00:00+00:00",
        quick=True,
        accuracy=(score("eager", 90), msgspec.structs.replace(score("x", 90), samples=0, method="published")),
        latency=(latency("eager", 1, 0.004), latency("x", 1, 0.001)),
        backend={"v": "x"},
        base=BasePoint(
            variant="v",
            profile="1c",
            count=1,
            backend="x",
            p95_ms=2.0,
            energy_j_per_row=0.001,
            accuracy=90,
            method="measured",
        ),
        notes=("the front end shares the workers' cores",),
    )


def test_table_marks_the_choice_and_labels_figures() -> None:
    profile = profile_of_v()
    text = report.table(profile, 120)
    rows = [line.split() for line in text.splitlines()]
    assert ["v", "1c", "x", "1", "1", "1.000", "1.000", "1.000", "1.000", "90.00", "(published)"] in rows
    assert ["v", "x", "1.000", "1.000", "90.00", "100.00%", "chosen"] in rows
    assert ["v", "eager", "1.000", "1.000", "90.00", "100.00%"] in rows
    assert "energy modelled" in text
    figures = "p95 2.00 ms (measured), 1.000 mJ/row (modelled), 90.00 % (published)"
    assert f"BASE: v with x on 1 x 1 core at 60 % load: {figures}" in text
    assert "note: the front end shares" in text
    assert "slices: 1c is 1 core" in text
    slow = msgspec.structs.replace(profile.base, load=0.0055)
    seen = report.table(msgspec.structs.replace(profile, base=slow, front_ms=0.59), 120)
    client = "p95 2.59 ms for a client over HTTP, where HTTP itself takes 0.59"
    workers = "and BASE 2.00 ms in its workers (measured)"
    assert f"BASE: v with x on 1 x 1 core at 0.55 % load: {client} {workers}, " in seen
    untrained = tuple(msgspec.structs.replace(item, value=0.0, method="none") for item in profile.accuracy)
    random = report.table(msgspec.structs.replace(profile, accuracy=untrained), 120)
    assert "0.00 (UNTRAINED)" in random
    assert "0.00 (published)" not in random
    narrow = report.table(profile, 75)
    assert max(map(len, narrow.partition("\n\n")[0].splitlines())) <= 75
    assert "p50 ms  p95 ms  mJ/row  accuracy %" in narrow
    assert "left out at 75 columns: threads, CPU ms/row; a wider terminal or --json FILE shows" in narrow
    assert "left out" not in text


def test_backends_that_were_left_out_are_in_the_table_with_the_reason() -> None:
    gone = (
        RejectedBackend(
            variant="v", backend="y", why="a row takes 1.4 x the CPU or more", batch=1, cpu_s_per_row=0.0014
        ),
        RejectedBackend(variant="v", backend="z", why="its worker died"),
    )
    faster_x = (latency("eager", 1, 0.004, cpu_s_per_row=0.004), latency("x", 1, 0.001))
    profile = msgspec.structs.replace(profile_of_v(), latency=faster_x, left_out=gone)
    text = report.table(profile, 120)
    assert "1.400" in text
    assert "1.4 x the CPU or more" in text
    assert "z" in text
    assert "its worker died" in text
    assert "x takes 4.0 x less CPU a row than eager (v), with the same answers; leave it out of --backends" in text
    alone = msgspec.structs.replace(profile, latency=faster_x[:1], backend={"v": "eager"}, left_out=())
    assert "backends that were tried" not in report.table(alone, 120), "there was no choice"


def test_notes_are_wrapped_and_commands_in_them_stay_whole() -> None:
    command = "`python -m clover profile /a/folder/of/mine --force`"
    note = f"others used 60% of the cores meanwhile: measure again with {command}"
    long = msgspec.structs.replace(profile_of_v(), notes=(note,))
    text = report.table(long, 60, columns=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert command in text
    assert command in report.table(long, 60, columns=20)
    assert report.table(long, 60).count("\n") < text.count("\n"), "a pipe gets whole lines"


def test_an_onnx_file_is_said_to_run_by_itself() -> None:
    file = VariantSpec(name="v", loader="model:load", kind="python", weights="weights/v.onnx")
    spec = msgspec.structs.replace(fixture("toy"), variants=(file,))
    text = report.table(msgspec.structs.replace(profile_of_v(), backend={"v": "eager"}), 120, spec=spec)
    assert ["v", "1c", "ONNX", "file"] in [line.split()[:4] for line in text.splitlines()]
    assert "BASE: v with x on" in text, "other backends keep their name"
    assert "cascades" not in text
