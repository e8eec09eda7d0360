"""The families of the tests, and the one of the documents, do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clover import families
from clover.types import EvaluationSpec
from tests.support.family_folder import ROOT, fixture, model_of


def test_simple_adds_and_subtracts() -> None:
    left, right = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    total, difference = model_of(fixture("simple"))([left, right])
    assert total.dtype == difference.dtype == np.int32
    np.testing.assert_array_equal(total, left + 1)
    np.testing.assert_array_equal(difference, left - 1)


@pytest.mark.slow
def test_simple_string_adds_and_subtracts_decimal_strings() -> None:
    left = np.array([[b"%d" % n for n in range(16)]], np.object_)
    right = np.full((1, 16), b"1", np.object_)
    total, difference = model_of(fixture("simple_string"))([left, right])
    assert total.shape == difference.shape == (1, 16)
    assert total.dtype == np.object_
    assert total[0, :3].tolist() == [b"1", b"2", b"3"]
    assert difference[0, :3].tolist() == [b"-1", b"0", b"1"]
    with pytest.raises(ValueError, match="invalid literal"):
        model_of(fixture("simple_string"))([np.full((1, 16), b"x", np.object_), right])


@pytest.mark.parametrize("name", ["identity_bytes", "identity_fp32", "identity_types"])
def test_identities_echo(name: str) -> None:
    spec = fixture(name)
    arrays = [np.zeros((2, *tensor.bound), families.DATATYPES[tensor.datatype]) for tensor in spec.inputs]
    echoed = model_of(spec)(arrays)
    assert [id(array) for array in echoed] == [id(array) for array in arrays]
    assert [tensor.datatype for tensor in spec.inputs] == [tensor.datatype for tensor in spec.outputs]


def test_identity_types_has_every_numeric_datatype() -> None:
    declared = {tensor.datatype for tensor in fixture("identity_types").inputs}
    assert declared | {"BYTES"} == set(families.DATATYPES)


def test_slow_waits_as_long_as_its_variant_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    spec = fixture("slow")
    row = [np.ones((3, 1), np.float32)]
    answers = [model_of(spec, variant.name)(row)[1].ravel().tolist() for variant in spec.variants]
    assert answers == [[0, 0, 0], [1, 1, 1]]
    assert slept == [0.002, 0.02]


def test_crashy_fails_as_asked() -> None:
    spec = fixture("crashy")
    model = model_of(spec, "always")
    assert model([np.zeros((2, 1), np.int32)])[0].tolist() == [[0], [0]]
    with pytest.raises(ValueError, match="asked to raise"):
        model([np.array([[0], [1]], np.int32)])
    assert model([np.array([[5]], np.int32)])[0].shape == (1, 2)
    with pytest.raises(RuntimeError, match="asked not to load"):
        model_of(spec, "unloadable")


@pytest.mark.slow
def test_toy_trades_accuracy_for_cost() -> None:
    import torch

    spec = fixture("toy")
    (numbers,), labels = families.load_evaluation(spec, "held_out")
    accuracy = {}
    for variant in spec.variants:
        with torch.inference_mode():
            answers = model_of(spec, variant.name)(torch.from_numpy(numbers)).argmax(1).numpy()
        accuracy[variant.name] = float((answers == labels).mean())
    assert 0.4 < accuracy["half"] < 0.7
    assert accuracy["full"] > 0.85


@pytest.mark.slow
def test_the_documented_family_is_twenty_lines_and_runs(tmp_path: Path) -> None:
    import torch

    page = (ROOT / "docs" / "families.md").read_text()
    files = dict(re.findall(r"```\w+ ([\w.]+)\n(.*?)```", page, re.DOTALL))
    assert set(files) == {"family.toml", "model.py", "data.py"}
    assert sum(1 for text in files.values() for line in text.splitlines() if line.strip()) <= 20
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    spec = families.load_family(str(tmp_path))
    assert spec.evaluation == EvaluationSpec(loader="data:load")
    (points,), labels = families.load_evaluation(spec, "held_out")
    accuracy = []
    for variant in spec.variants:
        with torch.inference_mode():
            probabilities = model_of(spec, variant.name)(torch.from_numpy(points)).numpy()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        accuracy.append(float((probabilities.argmax(1) == labels).mean()))
    assert 0.7 < accuracy[0] < 0.85
    assert accuracy[1] == 1
