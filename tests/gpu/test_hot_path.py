"""How long a batch takes, in the ways it can be run: figures to compare, not bounds (but for what must be faster)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from clover import families
from clover.backends.artifacts import CompileOrder

from .conftest import Slice, act

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["tiny", "xlarge"])
def test_a_batch_in_every_way(slice_: Slice, tmp_path: Path, figures: dict[str, Any], name: str) -> None:
    spec = families.load_family("fashion")
    order = CompileOrder(
        family=spec, variant=name, backend="eager", folder=str(tmp_path), threads=1, target=slice_.target
    )
    figures |= act(
        "hot_path",
        slice_.visible,
        order=msgspec.to_builtins(order),
        backends=["eager", "eager-tf32", "eager-fp16"],
        sizes=[1, 8, 32],
    )
    assert figures["eager, replayed, 1 rows"] < figures["eager, launched, 1 rows"]


@pytest.mark.parametrize("name", ["tiny", "xlarge"])
def test_two_batches_in_flight_answer_the_same_and_take_no_longer(
    slice_: Slice, tmp_path: Path, figures: dict[str, Any], name: str
) -> None:
    spec = families.load_family("fashion")
    order = CompileOrder(
        family=spec, variant=name, backend="eager", folder=str(tmp_path), threads=1, target=slice_.target
    )
    figures |= act("overlapped", slice_.visible, order=msgspec.to_builtins(order), sizes=[1, 8, 32])
    for size in (1, 8, 32):
        assert figures[f"wrong, {size} rows"] == 0
    assert figures["two in flight, 32 rows"] < 1.1 * figures["alone, 32 rows"]
