"""OpenVINO: answers like the module's, fewer bits where the processor has them, and no telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clover import backends, families
from clover.backends import artifacts
from clover.errors import ProfileError, WorkerError

FAMILIES = Path(__file__).parents[2] / "families"
NAMES = ("openvino", "openvino-bf16", "openvino-int8")


@pytest.fixture(scope="module")
def toy():
    return families.load_family(str(FAMILIES / "toy"))


@pytest.fixture
def processor(monkeypatch):
    """Give a function that makes this processor one with these flags."""

    def with_flags(flags: str) -> None:
        monkeypatch.setattr(artifacts, "machine_key", lambda: f"x86_64 {flags}")

    return with_flags


def build(family, variant, backend, cache):
    folder = backends.artifact_dir(cache, family, variant, backend, 1)
    order = artifacts.CompileOrder(family=family, variant=variant.name, backend=backend, folder=str(folder), threads=1)
    artifacts.build(backends.get(backend), order)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "allowed"), [("openvino", 1e-5), ("openvino-bf16", 0.02), ("openvino-int8", 0.02)])
def test_answers_are_those_of_the_module_in_every_batch(toy, tmp_path, name, allowed):
    backend = backends.get(name)
    if reason := backend.available():
        pytest.skip(reason)
    variant = toy.variant("full")
    folder = build(toy, variant, name, tmp_path)
    inputs, _ = families.load_evaluation(toy, "held_out")
    eager = backends.get("eager").load(toy, variant, folder, 1)
    run = backend.load(toy, variant, folder, 1)
    for rows in (1, 3, toy.max_batch, 1):
        batch = [np.ascontiguousarray(array[:rows]) for array in inputs]
        exact, mine = eager(batch)[0], run(batch)[0]
        assert mine.dtype == exact.dtype
        assert mine.shape == exact.shape
        assert np.abs(mine - exact).max() <= allowed * np.abs(exact).max()


def test_a_processor_without_bfloat16_is_said_to_have_none(processor, monkeypatch):
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "1")
    monkeypatch.setattr("clover.backends.openvino.package_version", lambda name: "1")
    processor("avx2 avx512f")
    said = "this processor has no instructions for bfloat16 (AVX-512 BF16 or AMX)"
    assert {name: backends.get(name).available() for name in (*NAMES, "eager-bf16")} == {
        "openvino": "", "openvino-bf16": said, "openvino-int8": "", "eager-bf16": said
    }  # fmt: skip
    for flag in ("avx512_bf16", "amx_bf16"):
        processor(f"avx2 {flag}")
        assert not any(backends.get(name).available() for name in (*NAMES, "eager-bf16"))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("clover.backends.onnxruntime.package_version", lambda name: "1")
    monkeypatch.setattr("clover.backends.openvino.package_version", lambda name: "")
    for name in NAMES:
        assert "install clover-inference[openvino]" in backends.get(name).available()


def test_fewer_bits_need_rows_on_which_answers_are_compared(toy):
    bare = msgspec.structs.replace(toy, evaluation=None)
    full = toy.variant("full")
    halved = msgspec.structs.replace(full, precision="fp16")
    for name in ("openvino-bf16", "openvino-int8", "eager-bf16"):
        backend = backends.get(name)
        assert backend.supports(toy, full) == ""
        assert "toy has no evaluation rows on which to compare answers" in backend.supports(bare, full)
        assert "is fp16" in backend.supports(toy, halved)
    assert backends.get("openvino").supports(bare, full) == ""


def test_it_runs_on_cores_alone(toy, tmp_path):
    slice_of = backends.Target(gpu="NVIDIA A100", profile="1g.5gb", driver="550.1")
    for name in (*NAMES, "eager-bf16"):
        backend = backends.get(name)
        assert "CPU cores" in backend.supports(toy, toy.variant("full"), slice_of)
        with pytest.raises(WorkerError, match="CPU cores"):
            backend.load(toy, toy.variant("full"), tmp_path, 1, device="cuda")


def test_what_is_not_compiled_is_named_with_the_command(toy, tmp_path):
    with pytest.raises(WorkerError, match=r"not compiled for openvino-bf16 here: run `python -m clover profile"):
        backends.get("openvino-bf16").load(toy, toy.variant("full"), tmp_path, 1)


def test_a_model_that_openvino_does_not_read_is_refused_with_its_reason(toy, tmp_path, monkeypatch):
    backend = backends.get("openvino")
    if reason := backend.available():
        pytest.skip(reason)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    monkeypatch.setattr("clover.backends.quantised.made", lambda *_: tmp_path)
    with pytest.raises(ProfileError, match="OpenVINO does not take it"):
        backend.compile(toy, toy.variant("full"), tmp_path, 1)


def test_eager_bf16_answers_in_the_declared_type(toy, tmp_path):
    inputs, _ = families.load_evaluation(toy, "held_out")
    batch = [np.ascontiguousarray(array[:4]) for array in inputs]
    exact, mine = (
        backends.get(name).load(toy, toy.variant("full"), tmp_path, 1)(batch)[0] for name in ("eager", "eager-bf16")
    )
    assert mine.dtype == exact.dtype
    assert not np.array_equal(mine, exact)
    assert np.abs(mine - exact).max() <= 0.02 * np.abs(exact).max()


@pytest.mark.slow
def test_compiling_and_running_leave_no_trace_in_the_home_folder(tmp_path):
    if reason := backends.get("openvino").available():
        pytest.skip(reason)
    home, folder = tmp_path / "home", tmp_path / "artifact"
    home.mkdir()
    folder.mkdir()
    code = f"""
import sys
from pathlib import Path
from clover import backends, families
family, backend = families.load_family({str(FAMILIES / "toy")!r}), backends.get("openvino")
folder = Path({str(folder)!r})
backend.compile(family, family.variant("full"), folder, 1)
backend.load(family, family.variant("full"), folder, 1)
assert sys.modules["openvino"] and not sys.modules["openvino_telemetry"]
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(home)}, check=True)
    assert [path for path in home.rglob("*") if "openvino" in path.name or "intel" in path.name] == []


@pytest.mark.parametrize(("limit", "lacks"), [("AVX2", True), ("avx512_core", True), ("AVX512_CORE_AMX", False)])
def test_a_limit_of_onednn_counts_as_the_processors(processor, monkeypatch, limit, lacks):
    processor("avx512_bf16 amx_bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bool(artifacts.lacks_bf16()) is lacks
