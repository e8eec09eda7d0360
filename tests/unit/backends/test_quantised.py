"""Eight bits by ONNX Runtime: what is asked of its quantiser, what is refused, and answers close to the module's."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clover import backends, families
from clover.backends import artifacts, quantised
from clover.errors import ProfileError
from clover.families.onnx_files import external_files
from clover.types import TensorSpec
from tests.support.triton_models import affine, branching

FAMILIES = Path(__file__).parents[2] / "families"


@pytest.fixture(scope="module")
def toy():
    return families.load_family(str(FAMILIES / "toy"))


def compiled(family, variant, cache):
    folder = backends.artifact_dir(cache, family, variant, "onnxruntime-int8", 1)
    order = artifacts.CompileOrder(
        family=family, variant=variant.name, backend="onnxruntime-int8", folder=str(folder), threads=1
    )
    artifacts.build(backends.get("onnxruntime-int8"), order)
    return folder


@pytest.mark.slow
def test_a_quantised_model_is_made_from_the_exported_one_and_answers_nearly_the_same(toy, tmp_path):
    if reason := backends.get("onnxruntime-int8").available():
        pytest.skip(reason)
    import onnx

    variant = toy.variant("full")
    folder = compiled(toy, variant, tmp_path)
    assert [path.name for path in folder.iterdir() if path.name != artifacts.MANIFEST] == [quantised.MODEL]
    plain = backends.artifact_dir(tmp_path, toy, variant, "onnxruntime", 1)
    assert backends.is_compiled(plain), "what was exported is kept for the backend that runs it as it is"
    nodes = {node.op_type for node in onnx.load(folder / quantised.MODEL).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes
    inputs, _ = families.load_evaluation(toy, "held_out")
    exact = backends.get("onnxruntime").load(toy, variant, plain, 1)(inputs)[0]
    rounded = backends.get("onnxruntime-int8").load(toy, variant, folder, 1)(inputs)[0]
    assert rounded.dtype == exact.dtype
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


def test_calibration_rows_come_in_batches_that_cover_them_once(toy):
    rows = [np.arange(20.0, dtype=np.float32).reshape(10, 2)]
    feed = quantised.CalibrationFeed(rows, ["x"], msgspec.structs.replace(toy, max_batch=4))
    batches = []
    while (batch := feed.get_next()) is not None:
        batches.append(batch["x"])
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(feed) == 3
    np.testing.assert_array_equal(np.concatenate(batches), rows[0])


def test_weights_beside_a_file_that_only_its_branches_use_are_put_into_it(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    model = onnx.load_from_string(branching(2.0))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "scratch").mkdir()
    whole = quantised._in_one_file(tmp_path / "model.onnx", tmp_path / "scratch")
    assert whole.parent.name == "scratch"
    assert external_files(whole) == []
    assert whole.read_bytes() == onnx.load(tmp_path / "model.onnx").SerializeToString()


def test_weights_of_more_than_a_file_may_hold_are_refused_with_the_reason_and_not_read(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 100)
    model = onnx.load_from_string(affine(width=256))
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0)
    os.truncate(tmp_path / "large.data", 0)  # which would be an error of its own if it were read
    with pytest.raises(ProfileError, match=r"^with its weights it has 0\.0 GB, and what is quantised has 2 GB at most"):
        quantised.quantise(tmp_path / "large.onnx", tmp_path / "made.onnx", None)
    assert not (tmp_path / "made.onnx").exists()


def test_what_cannot_be_quantised_is_refused_with_the_reason(toy):
    backend = backends.get("onnxruntime-int8")
    full = toy.variant("full")
    assert backend.supports(toy, full) == ""
    bare = msgspec.structs.replace(toy, evaluation=None)
    assert "toy has no evaluation rows on which to compare answers" in backend.supports(bare, full)
    rounded = msgspec.structs.replace(full, precision="tf32")
    assert "is tf32 by itself" in backend.supports(toy, rounded)
    whole = (TensorSpec(name="n", datatype="INT64", shape=()),)
    assert "no outputs of floating-point numbers" in backend.supports(msgspec.structs.replace(toy, outputs=whole), full)
    simple = families.load_family(str(FAMILIES / "simple"))
    assert "plain Python" in backend.supports(simple, simple.variants[0])
    with pytest.raises(ProfileError, match="no evaluation rows"):
        backend.compile(bare, full, Path("unused"), 1)


def test_a_quantiser_that_fails_gives_a_reason(toy, tmp_path):
    pytest.importorskip("onnxruntime.quantization")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    feed = quantised.CalibrationFeed([np.zeros((1, 4), np.float32)], ["x"], toy)
    with pytest.raises(ProfileError, match="ONNX Runtime does not quantise it: "):
        quantised.quantise(tmp_path / "broken.onnx", tmp_path / "made.onnx", feed)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_weights_take_seven_bits_where_sums_would_overflow():
    assert quantised.saturates("x86_64 avx2 fma sse4_2")
    assert not quantised.saturates("x86_64 avx2 avx512_vnni")
    assert not quantised.saturates("aarch64 asimd asimddp")


def test_the_same_artifact_serves_any_number_of_threads(toy, tmp_path):
    one, four = (backends.artifact_dir(tmp_path, toy, toy.variants[0], "onnxruntime-int8", n) for n in (1, 4))
    assert one == four
    assert one != backends.artifact_dir(tmp_path, toy, toy.variants[0], "onnxruntime", 1)
