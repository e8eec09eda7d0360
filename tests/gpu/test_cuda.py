"""Eager and aoti on a GPU: the answers of the CPU in every precision, recorded launches, page-locked slabs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from clover import backends, families
from clover.backends import parity
from clover.backends.artifacts import CompileOrder
from clover.types import FamilySpec, VariantSpec

from .conftest import Slice, act

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def in_precision(name: str, precision: Any) -> tuple[FamilySpec, VariantSpec]:
    """A rung of `fashion` in `precision`, as a variant of its own."""
    fashion = families.load_family("fashion")
    rung = fashion.variant(name)
    variant = msgspec.structs.replace(
        rung, name=f"{name}-{precision}", precision=precision, parameters={"layers": name}
    )
    return families.load_family(msgspec.structs.replace(fashion, variants=(variant,), digest="")), variant


def on_gpu(
    place: Slice, spec: FamilySpec, variant: VariantSpec, backend: str, folder: Path, work: Path, *, check: bool = True
) -> tuple[dict[int, list[NDArray[Any]]], dict[str, Any]]:
    """Answers by batch size from a process on the GPU, and what it says of itself."""
    rows = parity.rows_of(spec, variant)
    inputs: dict[str, Any] = {f"{index:03}": array for index, array in enumerate(rows)}
    np.savez(work / "in.npz", **inputs)
    order = CompileOrder(
        family=spec, variant=variant.name, backend=backend, folder=str(folder), threads=1, target=place.target
    )
    said = act(
        "answers",
        place.visible,
        order=msgspec.to_builtins(order),
        inputs=str(work / "in.npz"),
        sizes=list(parity.batches_of(spec)),
        out=str(work / "out.npz"),
        check=check,
    )
    with np.load(work / "out.npz") as found:
        made = {
            size: [found[f"{size}.{index}"] for index in range(len(spec.outputs))] for size in parity.batches_of(spec)
        }
    return made, said


def on_cpu(spec: FamilySpec, variant: VariantSpec) -> dict[int, list[NDArray[Any]]]:
    """The truth: float32, eager, on this machine's CPU."""
    rows = parity.rows_of(spec, variant)
    exact = msgspec.structs.replace(variant, precision="fp32")
    run = backends.get("eager").load(spec, exact, Path(), 1)
    return {size: run([array[:size] for array in rows]) for size in parity.batches_of(spec)}


def check(spec: FamilySpec, variant: VariantSpec, made: dict[int, list[NDArray[Any]]]) -> float:
    """The largest difference from the truth as a share of what the precision allows."""
    worst = 0.0
    for size, truth in on_cpu(spec, variant).items():
        found, wrong = parity.compare(spec.outputs, made[size], truth, variant.precision)
        assert not wrong, f"{variant.name}, {size} rows: {wrong}"
        worst = max(worst, found)
    return worst


@pytest.mark.parametrize("precision", families.PRECISIONS)
@pytest.mark.parametrize("name", ["tiny", "xlarge"])
def test_eager_on_the_gpu_agrees_with_the_cpu(slice_: Slice, tmp_path: Path, name: str, precision: str) -> None:
    spec, variant = in_precision(name, precision)
    made, said = on_gpu(slice_, spec, variant, "eager", tmp_path, tmp_path)
    assert said["device"].startswith(slice_.target.gpu)
    assert check(spec, variant, made) <= 1.0
    # Powers of two and the largest are always recorded; the others as time allows.
    assert {1, 2, 4, 8, 16, 32} <= set(said["recorded"])


def test_recorded_launches_are_faster_and_can_be_turned_off(slice_: Slice, tmp_path: Path) -> None:
    spec, variant = in_precision("xlarge", "fp32")
    _, with_graphs = on_gpu(slice_, spec, variant, "eager", tmp_path, tmp_path)
    off = msgspec.structs.replace(variant, parameters=variant.parameters | {"cuda_graphs": False})
    spec = families.load_family(msgspec.structs.replace(spec, variants=(off,), digest=""))
    made, without = on_gpu(slice_, spec, off, "eager", tmp_path, tmp_path)
    assert check(spec, off, made) <= 1.0
    assert without["recorded"] == []
    assert with_graphs["ms"]["1"] < without["ms"]["1"]


def test_launches_that_were_compared_are_recorded_sooner(slice_: Slice, tmp_path: Path) -> None:
    spec, variant = in_precision("xlarge", "fp32")
    _, compared = on_gpu(slice_, spec, variant, "eager", tmp_path, tmp_path)
    made, trusted = on_gpu(slice_, spec, variant, "eager", tmp_path, tmp_path, check=False)
    assert check(spec, variant, made) <= 1.0
    assert trusted["recorded"] == compared["recorded"] != []
    assert (compared["replay_fault"], trusted["replay_fault"]) == ("", None)
    assert trusted["load_ms"] < compared["load_ms"]


@pytest.mark.parametrize("precision", families.PRECISIONS)
def test_aoti_on_the_gpu_agrees_with_the_cpu(slice_: Slice, tmp_path: Path, precision: str) -> None:
    spec, variant = in_precision("large", precision)
    backend = backends.get("aoti")
    if reason := backend.available() or backend.supports(spec, variant, slice_.target):
        pytest.skip(f"needs what aoti needs for a GPU: {reason}")
    folder = backends.artifact_dir(tmp_path, spec, variant, "aoti", 1, target=slice_.target)
    asyncio.run(backends.compile_in_background(spec, variant, "aoti", folder, target=slice_.target))
    made, said = on_gpu(slice_, spec, variant, "aoti", folder, tmp_path)
    assert said["device"].startswith(slice_.target.gpu)
    assert check(spec, variant, made) <= 1.0


def test_tf32_is_off_where_it_is_not_asked_for(slice_: Slice, tmp_path: Path) -> None:
    """Torch rounds the factors of convolutions to TF32 by itself; fp32 must not."""
    spec, exact = in_precision("xlarge", "fp32")
    made, _ = on_gpu(slice_, spec, exact, "eager", tmp_path, tmp_path)
    assert check(spec, exact, made) <= 1.0
    spec, rounded = in_precision("xlarge", "tf32")
    others, _ = on_gpu(slice_, spec, rounded, "eager", tmp_path, tmp_path)
    most = spec.max_batch
    truth = on_cpu(spec, exact)[most][0]
    assert np.abs(made[most][0] - truth).max() <= np.abs(others[most][0] - truth).max()


def test_a_slab_is_page_locked_and_a_refusal_harms_nothing(slice_: Slice) -> None:
    said = act("pinned", slice_.visible)
    assert (said["registered"], said["refused"]) == (said["size"], [])
    assert said["pinned"]
    assert said["again"], "memory is registered once"
    assert said["works"], "the refusal of the driver's call must not reach torch's next launch"
