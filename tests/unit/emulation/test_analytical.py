"""The calculated profile of emulated slices: its theory's figures, its labels, and what it is keyed by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import profiles
from clover.config import EnergyConfig, ServerConfig, WorkersConfig
from clover.emulation.profiles import analytical, pace, stored
from clover.energy import meter_key
from clover.errors import ConfigError, ProfileError
from clover.planning.model.problem import services_of
from clover.planning.model.queueing import capacity, estimate
from clover.planning.packing import geometry
from clover.profiles import pace_of
from clover.profiling import report
from clover.profiling import stored as profiled
from clover.types import (
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    MemoryMeasurement,
    Placement,
    TensorSpec,
    VariantSpec,
)
from tests.support import profiles_fixture

SPEC = FamilySpec(
    name="toy",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
    variants=tuple(VariantSpec(name=name, loader="m:f") for name in profiles_fixture.VARIANTS),
    max_batch=8,
    digest="d",
)
A100 = (
    geometry.SliceProfile(name="1g.5gb", slices=1, size=1, starts=(0, 1, 2, 3, 4, 5, 6), most=7),
    geometry.SliceProfile(name="2g.10gb", slices=2, size=2, starts=(0, 2, 4), most=3),
    geometry.SliceProfile(name="3g.20gb", slices=3, size=4, starts=(0, 4), most=2),
    geometry.SliceProfile(name="4g.20gb", slices=4, size=4, starts=(0,), most=1),
    geometry.SliceProfile(name="7g.40gb", slices=7, size=8, starts=(0,), most=1),
)
NAMES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
NAMED = dict(zip(NAMES, (1, 2, 3, 4, 7), strict=True))


def a100(name: str) -> DeviceShape:
    return DeviceShape(
        device=name,
        kind="mig",
        layouts=geometry.layouts(A100, device=name, compute=7),
        slices=7,
        overlap=False,
        emulated=True,
        label="NVIDIA A100-SXM4-40GB, emulated",
    )


class Gpu:
    """An emulated GPU, as far as profiling asks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def shape(self) -> DeviceShape:
        return a100(self.name)


def emulated(*, gpus: int = 2, **options: Any) -> FamilyProfile:
    shapes = tuple(a100(f"gpu{index}") for index in range(gpus))
    return analytical.emulate(profiles_fixture.profile(), SPEC, shapes, key="k", **options)


def cell(profile: FamilyProfile, variant: str, shape: str, batch: int) -> LatencyMeasurement:
    (found,) = (m for m in profile.latency if (m.variant, m.profile, m.batch) == (variant, shape, batch))
    return found


# --- the constants ----------------------------------------------------------------------------------------------------


def test_small_batches_gain_nothing_large_ones_what_was_published() -> None:
    assert [analytical.speed(slices, 1, 85) for slices in range(1, 8)] == [1.0] * 7
    filled = [analytical.speed(slices, 32, 85) for slices in (2, 3, 4, 7)]
    assert filled == pytest.approx([1.88, 2.92, 3.44, 5.39], rel=0.2), "the means of the networks, BERT among them"
    assert analytical.speed(7, 1, 330) > 5, "a VGG's row fills slices by itself"
    for slices in (0, 8):
        with pytest.raises(ProfileError, match="no known speed"):
            analytical.speed(slices, 1, 1)


@given(st.integers(1, 7), st.floats(0.5, 1e4), st.floats(1.0, 10.0), st.floats(1e-4, 1e5), st.floats(1.0, 10.0))
def test_speed_and_watts_grow_with_slices_batches_and_heavier_rows(
    slices: int, growth: float, more: float, row_ms: float, heavier: float
) -> None:
    speed = analytical.speed(slices, growth, row_ms)
    assert 1 <= speed <= slices
    assert speed <= analytical.speed(slices, growth, row_ms * heavier)
    larger = analytical.speed(slices, growth * more, row_ms)
    assert speed <= larger
    assert growth / speed <= growth * more / larger * (1 + 1e-9), "a larger batch takes no less time"
    if slices < 7:
        next_speed = analytical.speed(slices + 1, growth, row_ms)
        assert speed <= next_speed
        watts, next_watts = analytical.watts(slices, speed), analytical.watts(slices + 1, next_speed)
        assert watts < next_watts
        # The same work costs more on a larger slice, which it fills less.
        assert watts / speed <= next_watts / next_speed


def test_the_page_on_emulated_gpus_quotes_these_figures() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "emulated.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    assert f"less than {analytical.ROWS:g} times as long" in words
    eight_rows, many = analytical.speed(7, 8, 0), analytical.speed(7, 99, 0)
    assert f"gain {eight_rows:.2f} if it takes 8 times as long, and {many:.2f}" in words
    assert f"more than {analytical.HEAVY_MS:g} ms" in words
    assert f"{analytical.SLICE_RATIO:g} times *slower*" in words
    low, high = (analytical.watts(7, analytical.speed(7, growth, 0)) for growth in (1, 99))
    assert f"a slice draws {analytical.watts(1, 1):.0f} W above idle, a whole GPU {low:.0f} to {high:.0f} W" in words


# --- the table --------------------------------------------------------------------------------------------------------


def test_times_are_those_of_one_core_slowed_by_a_stated_ratio() -> None:
    measured, made = profiles_fixture.profile(), emulated()
    assert {(m.variant, m.profile, m.batch) for m in made.latency} == {
        (variant, name, batch) for variant in SPEC_NAMES for name in NAMES for batch in profiles_fixture.BATCHES
    }
    for m in made.latency:
        core = cell(measured, m.variant, "1c", m.batch)
        slices = NAMED[m.profile]
        rows = profiles.measurements(measured, m.variant, "1c")
        speed = analytical.speed(slices, core.mean_ms / rows[0].mean_ms, rows[-1].mean_ms / rows[-1].batch)
        assert m.mean_ms == pytest.approx(core.mean_ms * 64 / speed)
        assert m.p50_ms == m.p95_ms == m.p99_ms == m.mean_ms
        assert m.energy_j_per_row == pytest.approx(analytical.watts(slices, speed) * m.mean_ms / 1e3 / m.batch)
        assert (m.energy_method, m.samples, m.cv, m.threads) == ("analytical", 0, 0.0, 1)
        assert m.cpu_s_per_row == core.cpu_s_per_row
    assert made.accuracy == measured.accuracy
    assert made.backend == measured.backend
    assert (made.key, made.made_at) == ("k", measured.made_at)
    assert made.machine == "2 x NVIDIA A100-SXM4-40GB, emulated; answers by synthetic"


SPEC_NAMES = tuple(profiles_fixture.VARIANTS)


@pytest.mark.parametrize("gpus", [1, 3])
def test_base_is_the_best_variant_on_whole_gpus(gpus: int) -> None:
    made = emulated(gpus=gpus)
    service = services_of(made)["large", "7g.40gb"]
    lane = estimate((service,) * gpus, 0.6 * capacity((service,) * gpus))
    assert (made.base.variant, made.base.profile, made.base.count) == ("large", "7g.40gb", gpus)
    assert made.base.method == "analytical"
    assert made.base.p95_ms == lane.p95_ms > service.mean_ms[0]
    assert made.base.energy_j_per_row == lane.energy_j_per_row
    assert made.base.accuracy == 92.0


def test_variants_hold_on_slices_what_they_hold_on_a_core() -> None:
    assert (emulated().memory, emulated().context_bytes) == ((), {}), "nothing is known of the core"
    memory = tuple(
        MemoryMeasurement(variant="small", profile=shape, backend=backend, weights_bytes=weights, peak_bytes=2)
        for shape, backend, weights in (("1c", "eager", 1), ("2c", "eager", 5), ("1c", "aoti", 6))
    )
    measured = msgspec.structs.replace(profiles_fixture.profile(), memory=memory, context_bytes={"1c": 7, "2c": 8})
    found = analytical.emulate(measured, SPEC, (a100("gpu0"),), key="k")
    shapes = {m.profile for m in found.latency}
    assert {one.profile for one in found.memory} == shapes == found.context_bytes.keys()
    assert len(found.memory) == len(shapes)
    assert {(one.backend, one.weights_bytes, one.peak_bytes) for one in found.memory} == {("eager", 1, 2)}
    assert set(found.context_bytes.values()) == {7}


def test_emulated_devices_have_the_front_end_of_this_machine() -> None:
    measured = msgspec.structs.replace(profiles_fixture.profile(), front_ms=2.0)
    plain = emulated(gpus=1)
    made = analytical.emulate(measured, SPEC, (a100("gpu0"),), key="k")
    assert made.front_ms == 2.0
    assert made.base.p95_ms == pytest.approx(plain.base.p95_ms)
    assert profiles.base_p95_ms(made) == pytest.approx(plain.base.p95_ms + 2.0)


def test_a_gpu_that_is_not_cut_is_as_fast_as_seven_slices() -> None:
    place = Placement(device="gpu0", profile="gpu", start=0, size=1)
    shape = msgspec.structs.replace(a100("gpu0"), layouts=((place,),), slices=1)
    made = analytical.emulate(profiles_fixture.profile(), SPEC, (shape,), key="k")
    assert cell(made, "small", "gpu", 8).mean_ms == cell(emulated(), "small", "7g.40gb", 8).mean_ms
    assert made.base.profile == "gpu"


def test_without_one_core_there_is_nothing_to_calculate_from() -> None:
    whole = profiles_fixture.profile(cores=(2,))
    with pytest.raises(ProfileError, match="1c was not measured"):
        analytical.emulate(whole, SPEC, (a100("gpu0"),), key="k")


# --- given rows -------------------------------------------------------------------------------------------------------


def given_rows(*rows: tuple[str, str, int, float, float]) -> dict[str, Any]:
    made = tuple(
        pace.PaceRow(family="toy", variant=variant, profile=profile, batch=batch, ms=ms, watts=watts)
        for variant, profile, batch, ms, watts in rows
    )
    return {"rows": pace.by_place(made), "file": pace.PaceFile(method="published", source="a paper", rows=made)}


WHOLE = tuple((name, "7g.40gb", 8, 10.0, 100.0) for name in SPEC_NAMES)


def test_rows_of_a_pace_file_are_taken_as_they_are() -> None:
    made = emulated(**given_rows(*WHOLE, ("small", "1g.5gb", 1, 5.0, 10.0), ("small", "1g.5gb", 4, 8.0, 20.0)))
    assert [m.batch for m in profiles.measurements(made, "small", "1g.5gb")] == [1, 4, 8]
    for batch, ms, joules in ((1, 5.0, 0.05), (4, 8.0, 0.04)):
        found = cell(made, "small", "1g.5gb", batch)
        assert (found.mean_ms, found.energy_method) == (ms, "published")
        assert found.energy_j_per_row == pytest.approx(joules)
    beyond = cell(made, "small", "1g.5gb", 8)
    assert (beyond.mean_ms, beyond.energy_method) == (16.0, "analytical"), "in proportion, and not called published"
    assert {m.profile for m in made.latency if m.variant == "large"} == {"7g.40gb"}
    assert any("a paper" in note for note in made.notes)
    assert any("large on 1g.5gb" in note and "does not run there" in note for note in made.notes)


def test_rows_for_larger_batches_than_the_family_takes_are_cut_down() -> None:
    rows = tuple((name, "7g.40gb", batch, ms, 50.0) for name in SPEC_NAMES for batch, ms in ((4, 40.0), (16, 160.0)))
    made = emulated(**given_rows(*rows))
    assert [(m.batch, m.mean_ms) for m in profiles.measurements(made, "small", "7g.40gb")] == [(4, 40.0), (8, 80.0)]


def test_base_needs_the_best_variant_on_whole_gpus() -> None:
    rows = (("small", "7g.40gb", 8, 10.0, 9.0), ("medium", "7g.40gb", 8, 10.0, 9.0), ("large", "4g.20gb", 8, 1.0, 9.0))
    with pytest.raises(ProfileError, match=r"large of toy has no row for 7g\.40gb"):
        emulated(**given_rows(*rows))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 1e3), st.floats(0, 300)), min_size=1, max_size=5))
def test_workers_are_paced_as_the_profile_expects(values: list[tuple[int, float, float]]) -> None:
    own = {batch: (ms, watts) for batch, ms, watts in values}
    rows = [(name, "7g.40gb", batch, ms, watts) for name in SPEC_NAMES for batch, (ms, watts) in own.items()]
    options = given_rows(*rows)
    made = emulated(gpus=1, **options)
    expected = pace_of(made, "small", "7g.40gb", "eager")
    assert expected is not None
    ms, watts = expected.table(SPEC.max_batch)
    drawn_ms, drawn_watts = pace.as_pace(options["rows"]["small", "7g.40gb"]).table(SPEC.max_batch)
    assert ms == pytest.approx(drawn_ms)
    assert watts == pytest.approx(drawn_watts)


# --- stored -----------------------------------------------------------------------------------------------------------


def config_of(folder: Path, **workers: Any) -> ServerConfig:
    return ServerConfig(
        cache_dir=str(folder), workers=WorkersConfig(device="emulated:a100-40gb:2", backends=("eager",), **workers)
    )


def written(folder: Path, *rows: tuple[str, str, int, float, float], name: str = "pace.json") -> str:
    path = folder / name
    keys = ("variant", "profile", "batch", "ms", "watts")
    made = [{"family": "toy", **dict(zip(keys, row, strict=True))} for row in rows]
    path.write_text(json.dumps({"method": "analytical", "source": "tests", "rows": made}))
    return str(path)


@pytest.mark.slow
def test_the_key_tells_devices_paces_and_the_cpu_apart(tmp_path: Path) -> None:
    one: dict[str, Any] = {"gpu0": Gpu("gpu0")}
    two: dict[str, Any] = one | {"gpu1": Gpu("gpu1")}
    config = config_of(tmp_path)
    paced = config_of(tmp_path, pace=written(tmp_path, *WHOLE))
    keys = [profiled.key_of(SPEC, devices, config) for devices in (one, two, stored.cpu_of(config))]
    keys.append(profiled.key_of(SPEC, two, paced))
    written(tmp_path, *WHOLE[:2])  # the same path with other rows
    keys.append(profiled.key_of(SPEC, two, paced))
    assert len(set(keys)) == 5
    assert profiled.key_of(SPEC, two, config) == keys[1]
    cores = stored.cpu_of(config).worker_cores
    assert keys[2] == profiles.profile_key(SPEC, cores, ("eager",), meter_key(EnergyConfig())), "as without any GPU"


@pytest.mark.slow
def test_what_is_calculated_is_kept_and_never_older_than_what_it_was_made_from(tmp_path: Path) -> None:
    devices: dict[str, Any] = {"gpu0": Gpu("gpu0")}
    config = config_of(tmp_path)
    shapes = (a100("gpu0"),)
    measured = profiles_fixture.profile()
    made = stored.keep_emulated(SPEC, devices, config, measured, stored.rows_of(SPEC, shapes, config))
    store = profiles.ProfileStore(tmp_path)
    assert store.get("toy", made.key) == made
    later = msgspec.structs.replace(measured, made_at="2027-01-01T00:00:00Z")
    again = stored.keep_emulated(SPEC, devices, config, later, stored.rows_of(SPEC, shapes, config))
    assert again.key == made.key
    assert store.get("toy", made.key) == again != made
    store.path("toy", made.key).write_text("{")
    assert stored.keep_emulated(SPEC, devices, config, later, (None, {}, "")) == again, "damaged: made anew"


def test_whose_rows_count(tmp_path: Path) -> None:
    shapes = (a100("gpu0"),)
    file, rows, note = stored.rows_of(SPEC, shapes, config_of(tmp_path))
    assert (rows, note) == ({}, ""), "no table knows this family"
    path = written(tmp_path, *WHOLE)
    file, rows, note = stored.rows_of(SPEC, shapes, config_of(tmp_path, pace=path))
    assert file is not None
    assert sorted(rows) == [(name, "7g.40gb") for name in sorted(SPEC_NAMES)]
    other = msgspec.structs.replace(SPEC, name="other")
    file, rows, note = stored.rows_of(other, shapes, config_of(tmp_path, pace=path))
    assert (file, rows) == (None, {})
    assert note.endswith("pace.json has no rows of other")
    names = ("efficientnet-b1", "efficientnet-b3", "efficientnet-b5", "efficientnet-b7")
    variants = tuple(VariantSpec(name=name, loader="m:f") for name in names)
    paper = msgspec.structs.replace(SPEC, name="efficientnet", variants=variants)
    file, rows, note = stored.rows_of(paper, shapes, config_of(tmp_path))
    assert len(rows) == 20
    assert not note
    namesake = msgspec.structs.replace(SPEC, name="efficientnet")
    file, rows, note = stored.rows_of(namesake, shapes, config_of(tmp_path))
    assert (file, rows) == (None, {})
    assert "names a variant" in note
    with pytest.raises(ConfigError, match=r"pace\.json has no row"):
        stored.rows_of(SPEC, shapes, config_of(tmp_path, pace=written(tmp_path, *WHOLE[:1])))


def test_a_pace_that_would_be_taken_for_silence_is_refused(tmp_path: Path) -> None:
    devices: dict[str, Any] = {"gpu0": Gpu("gpu0")}
    measured = profiles_fixture.profile()  # 18 ms a batch of 8 on a core: 1.15 s on one slice
    stored.keep_emulated(SPEC, devices, config_of(tmp_path, silent_s=2.0), measured, (None, {}, ""))
    with pytest.raises(ProfileError, match=r"batch of 8 of large is paced at 1 s on 1g\.5gb.*--silent-s"):
        stored.keep_emulated(SPEC, devices, config_of(tmp_path, silent_s=1.0), measured, (None, {}, ""))


def test_boards_that_draw_something_else_are_known_to_workers_only(tmp_path: Path) -> None:
    path = tmp_path / "pace.json"
    rows = [
        {"family": "toy", "variant": name, "profile": "7g.40gb", "batch": 8, "ms": 10.0, "watts": 50.0}
        for name in SPEC_NAMES
    ]
    rows[0]["drawn_watts"] = 80.0
    path.write_text(json.dumps({"method": "analytical", "source": "tests", "rows": rows}))
    config = config_of(tmp_path, pace=str(path))
    drawn = profiled.paces_of(SPEC, config)
    assert drawn["small", "7g.40gb"].watts == (80.0,)
    assert drawn["large", "7g.40gb"].watts == (50.0,)
    devices: dict[str, Any] = {"gpu0": Gpu("gpu0")}
    given = stored.rows_of(SPEC, (a100("gpu0"),), config)
    made = stored.keep_emulated(SPEC, devices, config, profiles_fixture.profile(), given)
    assert cell(made, "small", "7g.40gb", 8).energy_j_per_row == pytest.approx(50.0 * 0.010 / 8)
    assert profiled.paces_of(SPEC, config_of(tmp_path)) == {}


def test_the_report_says_that_nothing_was_measured() -> None:
    text = report.table(emulated(), 120)
    assert "times and energy of slices are analytical: nothing of them was measured on a GPU" in text
    assert "BASE: large with eager on 2 x 7g.40gb at 60 % load" in text
    assert "(analytical)" in text
    assert "64 times slower than one core" in text
    assert "accuracy by the quick measurement" in text
    published = tuple(msgspec.structs.replace(item, method="published", samples=0) for item in emulated().accuracy)
    text = report.table(msgspec.structs.replace(emulated(), accuracy=published), 120)
    assert "accuracy by" not in text
    assert "agreement by the quick measurement" in text
