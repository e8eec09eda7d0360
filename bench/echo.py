"""A family whose answers are a pure function of the row, so that whatever reaches a client can be checked.

A row carries its number and its fate.  The variant at index k answers [number, answer(number, k)], and is as sure of
it as a hash of the number says: whoever knows the numbers knows where each row has to end.  Two bits of the fate for
each variant say how often the row kills a worker of that variant that computes it (`doomed`): files in the folder of
the family's parameters remember how often that was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.types import ConfidenceSpec, FamilySpec, PublishedAccuracy, TensorSpec, VariantSpec

NAMES = ("rough", "middle", "exact")
THRESHOLD = 0.5
Ints = NDArray[np.int64]

_MIX = np.uint64(0x9E3779B97F4A7C15)


def mixed(numbers: Ints, salt: int) -> NDArray[np.uint64]:
    """Return a hash of each number (splitmix64)."""
    value = (numbers.astype(np.uint64) + np.uint64(salt + 1)) * _MIX
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def answer(numbers: Ints, variants: Ints | int) -> Ints:
    """Return what the variants at these indices say of the rows with these numbers."""
    return (mixed(numbers, 0) >> np.uint64(2)).astype(np.int64) ^ np.asarray(variants, np.int64)


def sureness(numbers: Ints, fates: Ints, variant: int) -> NDArray[np.float32]:
    """Return how sure the variant at that index is of each row, in 0..1: half of the rows go on.  One with a fate
    always does."""
    chance = (mixed(numbers, 7 + variant) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return np.where(fates > 0, np.float32(0.0), chance)


def doomed(*deaths: int) -> int:
    """Return the fate of a row that kills `deaths[k]` (at most three) workers of the variant at index k."""
    return sum(times << 2 * at for at, times in enumerate(deaths))


def family(folder: str, *, max_batch: int = 32) -> FamilySpec:
    """Return the family; `folder` remembers who killed whom."""
    pair = {"datatype": "INT64", "shape": (2,)}
    return FamilySpec(
        name="echo",
        folder=str(Path(__file__).parent),
        inputs=(TensorSpec(name="row", **pair),),  # type: ignore[arg-type]
        outputs=(TensorSpec(name="answer", **pair), TensorSpec(name="sure", datatype="FP32", shape=(1,))),  # type: ignore[arg-type]
        variants=tuple(
            VariantSpec(
                name=name,
                loader="echo:load",
                kind="python",
                accuracy=PublishedAccuracy(value=80.0 + 5.0 * at, metric="none", source="made up for benches"),
                parameters={"index": at, "folder": folder},
            )
            for at, name in enumerate(NAMES)
        ),
        confidence=ConfidenceSpec(kind="echo:score", output="sure"),
        max_batch=max_batch,
    )


def score(sure: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the family's confidence."""
    return sure[:, 0]


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the function that a worker runs."""
    index, graves = int(variant.parameters["index"]), Path(str(variant.parameters["folder"]))

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        numbers, fates = inputs[0].T
        if fates.any():
            for number, times in zip(numbers.tolist(), (fates >> 2 * index & 3).tolist(), strict=True):
                for death in range(times):
                    _die(graves / f"{number}.{index}.{death}")
        answers = np.stack([numbers, answer(numbers, index)], axis=1)
        return [answers, sureness(numbers, fates, index)[:, None]]

    return run


def _die(grave: Path) -> None:
    """Die once for each file of the folder of graves."""
    try:
        os.close(os.open(grave, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


SOAK = family("/", max_batch=32)
"""The family for a server of its own (`bench.echo:SOAK`): no row of a soak has a fate, so no folder remembers any."""
