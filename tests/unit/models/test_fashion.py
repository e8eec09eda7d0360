"""The default family is what its README says: the split is fixed, weights reach their accuracy, rungs are in order.

Weights are scored on the first 1,000 held-out images.  The README's accuracies are of all 10,000: 2.5 points either way
is more than two standard errors of a thousand images for the least accurate rung, and nearly three for the others.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from clover import families
from clover.types import FamilySpec
from tests.support.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

ROWS = 1000
TOLERANCE = 2.5
SPLIT_DIGESTS = {
    "calibration": "b5caeea5f51b8525ecc548737c94a3df78082ddb375e85f45a93572e39506676",
    "held_out": "978fd35742a93bd7045289a6a3a4ed2fcb4b367ef3e36847eb3c22665050e1a6",
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spec() -> FamilySpec:
    return families.load_family("fashion")


@pytest.fixture(scope="module")
def models(spec: FamilySpec, one_thread: None) -> dict[str, torch.nn.Module]:
    folder = Path(spec.folder)
    return {v.name: families.resolve(v.loader, folder)(v, folder) for v in spec.variants}


@pytest.fixture(scope="module")
def published(spec: FamilySpec) -> dict[str, tuple[float, float]]:
    """Top-1 in percent and multiply-adds in millions of every rung, from the table in the family's README."""
    page = (Path(spec.folder) / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) % .*?\| [\d,]+ \| ([\d.]+) M \|", page, re.MULTILINE)
    return {name: (float(accuracy), float(cost)) for name, accuracy, cost in rows}


def answers(model: torch.nn.Module, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        parts = [model(torch.from_numpy(part)).argmax(1).numpy() for part in np.array_split(images, 20)]
    return np.concatenate(parts)


def multiply_adds(model: torch.nn.Module) -> int:
    """Multiply-adds of one image, counted from the shapes that pass through it."""
    total = 0

    def count(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, torch.nn.Conv2d):
            total += layer.weight.numel() * output.shape[-1] * output.shape[-2]
        elif isinstance(layer, torch.nn.Linear):
            total += layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    with torch.inference_mode():
        model(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return total


def test_the_split_is_fixed_disjoint_and_whole(spec: FamilySpec) -> None:
    split_indices = families.resolve("data:split_indices", spec.folder)
    chosen = {split: split_indices(split) for split in SPLIT_DIGESTS}
    assert all(len(indices) == 5000 for indices in chosen.values())
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(10_000))
    digests = {split: hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest() for split, indices in chosen.items()}
    assert digests == SPLIT_DIGESTS
    with pytest.raises(ValueError, match="unknown split 'train'"):
        split_indices("train")


@pytest.mark.parametrize("split", families.SPLITS)
def test_evaluation_rows_are_images_in_the_declared_form(spec: FamilySpec, split: str) -> None:
    (images,), labels = families.load_evaluation(spec, split)
    assert images.shape == (5000, *spec.inputs[0].shape)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert set(labels.tolist()) == set(range(10))
    assert np.bincount(labels).min() > 400


def test_labels_and_licence_come_with_the_images(spec: FamilySpec) -> None:
    data = sys.modules[families.resolve("data:load", spec.folder).__module__]
    assert spec.outputs[0].labels == data.LABELS
    notice = (Path(spec.folder) / "data" / "LICENSE").read_text()
    assert "MIT License" in notice
    assert "2017 Zalando SE" in notice


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x02\0\0\0\x02\0\0\0\x02\0\0\0", "holds 3 elements, its header promises"),
    ],
)
def test_a_broken_idx_file_is_refused(spec: FamilySpec, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        families.resolve("data:read_idx", spec.folder)(path)


@pytest.mark.slow
def test_weights_reach_the_accuracy_of_the_readme_in_order(
    spec: FamilySpec, models: dict[str, torch.nn.Module], published: dict[str, tuple[float, float]]
) -> None:
    names = [variant.name for variant in spec.variants]
    assert list(published) == names
    (images,), labels = families.load_evaluation(spec, "held_out")
    measured = [100 * float((answers(models[name], images[:ROWS]) == labels[:ROWS]).mean()) for name in names]
    for name, value in zip(names, measured, strict=True):
        assert abs(value - published[name][0]) < TOLERANCE, name
    expected = [published[name][0] for name in names]
    assert expected == sorted(expected)
    assert expected[-1] >= 93
    # Neighbours are closer than a thousand images can tell apart; every second rung is not.
    assert all(dear > cheap for cheap, dear in zip(measured, measured[2:], strict=False))


@pytest.mark.slow
def test_cost_rises_from_rung_to_rung(
    spec: FamilySpec, models: dict[str, torch.nn.Module], published: dict[str, tuple[float, float]]
) -> None:
    costs = {variant.name: multiply_adds(models[variant.name]) for variant in spec.variants}
    values = list(costs.values())
    assert all(dear > 3 * cheap for cheap, dear in itertools.pairwise(values))
    for name, cost in costs.items():
        assert cost / 1e6 == pytest.approx(published[name][1], abs=0.0005, rel=0.02), name


@pytest.mark.slow
def test_the_dearest_rung_costs_ten_times_the_cpu_of_small(models: dict[str, torch.nn.Module]) -> None:
    def cpu_s(name: str) -> float:
        batch = torch.rand(32, 1, 28, 28)
        spent = []
        with torch.inference_mode():
            for _ in range(8):
                started = time.thread_time()
                models[name](batch)
                spent.append(time.thread_time() - started)
        return min(spent)

    assert cpu_s("xlarge") > 10 * cpu_s("small")


@pytest.mark.slow
def test_outputs_are_probabilities_and_rows_do_not_influence_each_other(models: dict[str, torch.nn.Module]) -> None:
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for model in models.values():
        assert not model.training
        with torch.inference_mode():
            together = model(images)
            alone = torch.cat([model(image[None]) for image in images])
        assert together.shape == (5, 10)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together.sum(1), torch.ones(5))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_rungs_export_with_a_dynamic_batch(models: dict[str, torch.nn.Module]) -> None:
    batch = torch.export.Dim("batch", min=1, max=32)
    for name in ("tiny", "xlarge"):
        program = torch.export.export(models[name], (torch.rand(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
        images = torch.rand(7, 1, 28, 28)
        with torch.inference_mode():
            torch.testing.assert_close(program.module()(images), models[name](images))
