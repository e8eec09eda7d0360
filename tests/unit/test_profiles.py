"""The profile store keeps what it is given, notices damage, and forgets what no longer holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover import profiles
from clover.errors import ProfileError
from clover.profiles import Pace, ProfileStore, pace_of, profile_key
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    TensorSpec,
    VariantSpec,
)
from tests.support import profiles_fixture

KEY = "0123456789abcdef" * 4


def measurement(variant: str, backend: str, batch: int, mean_ms: float, **changes: Any) -> LatencyMeasurement:
    values: dict[str, Any] = {
        "variant": variant,
        "profile": "1c",
        "backend": backend,
        "batch": batch,
        "threads": 1,
        "samples": 30,
        "mean_ms": mean_ms,
        "cv": 0.1,
        "p50_ms": mean_ms,
        "p95_ms": mean_ms * 1.2,
        "p99_ms": mean_ms * 1.3,
        "cpu_s_per_row": mean_ms / 1e3 / batch,
        "energy_j_per_row": 8 * mean_ms / 1e3 / batch,
        "energy_method": "modelled",
    }
    return LatencyMeasurement(**values | changes)


def score(variant: str, backend: str, value: float) -> AccuracyMeasurement:
    return AccuracyMeasurement(
        variant=variant,
        backend=backend,
        metric="top1",
        value=value,
        low=value - 1,
        high=value + 1,
        samples=100,
        method="measured",
    )


def profile_of(**changes: Any) -> FamilyProfile:
    profile = FamilyProfile(
        family="toy",
        key=KEY,
        machine="a machine",
        made_at="2024-01-31T00:00:00+00:00",
        quick=True,
        accuracy=(score("small", "eager", 80), score("small", "aoti", 79), score("large", "eager", 90)),
        latency=(
            measurement("small", "eager", 1, 1.0),
            measurement("small", "eager", 4, 2.5),
            measurement("small", "eager", 8, 4.5),
            measurement("small", "aoti", 1, 0.5),
            measurement("large", "eager", 1, 10.0),
        ),
        backend={"small": "eager", "large": "eager"},
        base=BasePoint(
            variant="large",
            profile="1c",
            count=1,
            backend="eager",
            p95_ms=12.0,
            energy_j_per_row=0.08,
            accuracy=90,
            method="measured",
        ),
    )
    return msgspec.structs.replace(profile, **changes)


def spec_of(digest: str = "d") -> FamilySpec:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(1,))
    return FamilySpec(
        name="toy", inputs=(tensor,), outputs=(tensor,), variants=(VariantSpec(name="a", loader="m:f"),), digest=digest
    )


# --- the store ----------------------------------------------------------------------------------------------------


def test_keeps_and_gives_back(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    assert store.get("toy", KEY) is None
    path = store.put(profile_of())
    assert store.get("toy", KEY) == profile_of()
    store.put(profile_of(quick=False))
    again = store.get("toy", KEY)
    assert again is not None
    assert not again.quick
    assert list(path.parent.iterdir()) == [path], "no draft is left behind"


def test_a_profile_from_before_memory_was_measured_is_read_as_one_that_does_not_know_it(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path = store.put(profile_of(context_bytes={"1c": 5}))
    kept = store.get("toy", KEY)
    assert kept is not None
    assert kept.context_bytes == {"1c": 5}
    old = msgspec.json.decode(path.read_bytes())
    del old["memory"], old["context_bytes"], old["recorded"]
    path.write_bytes(msgspec.json.encode(old))
    found = store.get("toy", KEY)
    assert found is not None
    assert (found.memory, found.context_bytes, found.recorded) == ((), {}, ())
    assert found == profile_of()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"family": "toy"}', b"\xff\xfe"])
def test_damage_names_the_file_and_the_way_out(tmp_path: Path, damage: bytes) -> None:
    store = ProfileStore(tmp_path)
    path = store.put(profile_of())
    path.write_bytes(damage)
    with pytest.raises(ProfileError) as caught:
        store.get("toy", KEY)
    assert str(path) in str(caught.value)
    assert "--force" in str(caught.value)


def test_a_file_of_another_key_is_not_believed(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    path = store.put(profile_of())
    path.rename(store.path("toy", "f" * 64))
    with pytest.raises(ProfileError, match="another family or machine"):
        store.get("toy", "f" * 64)


@pytest.mark.parametrize("family", ["../toy", "", "a/b", "a" * 129])
def test_names_never_leave_the_folder(tmp_path: Path, family: str) -> None:
    with pytest.raises(ProfileError):
        ProfileStore(tmp_path).get(family, KEY)


def test_an_unwritable_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("in the way", encoding="utf-8")
    with pytest.raises(ProfileError, match="--cache-dir"):
        ProfileStore(tmp_path).put(profile_of())


# --- the key ------------------------------------------------------------------------------------------------------


def test_key_changes_with_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        profile_key(spec_of(), (0, 1), ("eager",)),
        profile_key(spec_of("e"), (0, 1), ("eager",)),
        profile_key(spec_of(), (0,), ("eager",)),
        profile_key(spec_of(), (0, 1), ("eager", "aoti")),
        profile_key(spec_of(), (0, 1), ("eager",), "RAPL of package-0"),
        profile_key(spec_of(), (0, 1), ("eager",), "modelled, 5 W a busy CPU"),
        profile_key(spec_of(), (0, 1), ("eager",), device="other"),
    ]
    monkeypatch.setattr(profiles, "processor", lambda: "another")
    keys.append(profile_key(spec_of(), (0, 1), ("eager",)))
    monkeypatch.undo()
    monkeypatch.setattr(profiles, "versions", lambda backends: {"eager/torch": "0"})
    keys.append(profile_key(spec_of(), (0, 1), ("eager",)))
    monkeypatch.undo()
    monkeypatch.setattr(profiles, "MEASURING_VERSION", 0)
    keys.append(profile_key(spec_of(), (0, 1), ("eager",)))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert profile_key(spec_of(), (0, 1), ("eager",)) == keys[0]


def test_key_needs_no_torch() -> None:
    code = (
        "import sys; from clover import profiles; profiles.versions(('eager', 'aoti', 'onnxruntime', 'none'));"
        "profiles.processor(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


# --- questions ----------------------------------------------------------------------------------------------------


def test_questions() -> None:
    profile = profile_of()
    assert profiles.accuracy_of(profile, "small") == 80
    assert profiles.best_variant(profile) == "large"
    assert [m.batch for m in profiles.measurements(profile, "small", "1c")] == [1, 4, 8]
    assert profiles.measurements(profile, "small", "1c", "aoti")[0].mean_ms == 0.5
    assert profiles.latency(profile, "small", "1c", 2).batch == 4
    assert profiles.latency(profile, "small", "1c", 100).batch == 8


def test_missing_answers_say_how_to_measure() -> None:
    with pytest.raises(ProfileError, match="--profile force measures again"):
        profiles.measurements(profile_of(), "small", "2c")
    with pytest.raises(ProfileError, match="unknown"):
        profiles.accuracy_of(profile_of(backend={"small": "onnxruntime"}), "small")


# --- the default SLO ----------------------------------------------------------------------------------------------


def with_base(*, front_ms: float = 0.0, **figures: float) -> FamilyProfile:
    known = profiles_fixture.profile()
    base = msgspec.structs.replace(known.base, **figures)
    return msgspec.structs.replace(known, base=base, front_ms=front_ms)


def test_the_default_slo_follows_from_what_a_client_sees_of_base() -> None:
    seen = with_base(p95_ms=11.3, front_ms=0.8)
    assert profiles.default_slo_ms(seen) == pytest.approx(1.2 * 12.1)
    assert profiles.default_slo_source(seen) == "1.2 x BASE's p95 of 12.1 ms over HTTP at 60 % load, measured"
    unseen = with_base(p95_ms=10.0)
    assert profiles.default_slo_ms(unseen) == pytest.approx(1.2 * 10.0)
    assert "10 ms in its workers (over HTTP it was not measured)" in profiles.default_slo_source(unseen)


def test_the_default_slo_is_at_least_some_milliseconds() -> None:
    echo = with_base(p95_ms=0.14, front_ms=0.76)
    assert profiles.default_slo_ms(echo) == profiles.LEAST_SLO_MS
    assert profiles.default_slo_source(echo).startswith("the least default of 5 ms: ")


# --- paces ------------------------------------------------------------------------------------------------------------


def test_between_the_rows_of_a_table_time_and_energy_are_linear() -> None:
    ms, watts = Pace(batches=(2, 4), ms=(10.0, 20.0), watts=(100.0, 50.0)).table(8)
    assert ms == pytest.approx((10, 10, 15, 20, 25, 30, 35, 40))
    joules = [time * power / 1e3 for time, power in zip(ms, watts, strict=True)]
    assert joules == pytest.approx((1, 1, 1, 1, 1.25, 1.5, 1.75, 2))
    assert Pace(batches=(8,), ms=(21.0,), watts=(17.0,)).table(8) == ((21.0,) * 8, pytest.approx((17.0,) * 8))


@given(st.integers(1, 40), st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(0, 400)), min_size=1, max_size=6))
def test_a_table_holds_its_own_rows(max_batch: int, values: list[tuple[float, float]]) -> None:
    batches = tuple(1 << power for power in range(len(values)))
    pace = Pace(batches=batches, ms=tuple(ms for ms, _ in values), watts=tuple(watts for _, watts in values))
    ms, watts = pace.table(max_batch)
    assert len(ms) == len(watts) == max_batch
    assert min(ms) > 0
    for batch, (own_ms, own_watts) in zip(batches, values, strict=True):
        if batch <= max_batch:
            assert ms[batch - 1] == pytest.approx(own_ms)
            assert watts[batch - 1] == pytest.approx(own_watts)


def test_a_profile_gives_its_own_pace_back() -> None:
    profile = profiles_fixture.profile()
    pace = pace_of(profile, "small", "1c", "eager")
    assert pace is not None
    rows = sorted((m for m in profile.latency if (m.variant, m.profile) == ("small", "1c")), key=lambda m: m.batch)
    assert pace.batches == tuple(m.batch for m in rows)
    assert pace.ms == tuple(m.mean_ms for m in rows)
    for watts, m in zip(pace.watts, rows, strict=True):
        assert watts * m.mean_ms / 1e3 / m.batch == pytest.approx(m.energy_j_per_row)
    assert pace_of(profile, "small", "1c", "aoti") is None
    assert pace_of(None, "small", "1c", "eager") is None
