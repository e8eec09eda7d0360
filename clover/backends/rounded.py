"""Eager in fewer bits on a GPU: the products of a float32 variant in TF32, or all of it in half precision.

A GPU computes these several times as fast, with less energy, and most models give the same answers.  Whether one does
is measured: as with any backend, the profiler compares answers and accuracy with eager, and keeps the backend for a
variant only if both agree and it takes less energy (`clover.profiling.choose`).  A variant whose own `precision` is not
fp32 says itself how it is to be computed, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from clover.backends.eager import EagerBackend
from clover.backends.targets import CPU, Target
from clover.errors import WorkerError
from clover.types import FamilySpec, Precision, VariantSpec


class RoundedBackend(EagerBackend):
    """Runs float32 torch variants in `precision`, on GPUs only."""

    gpu_only = True

    def __init__(self, precision: Precision) -> None:
        self.name = f"eager-{precision}"
        self._precision = precision

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" for a float32 torch variant on a GPU, else why not."""
        if not target.cuda:
            return f"{self.name} is for GPUs"
        if variant.kind != "torch":
            return f"variant {variant.name} is of kind {variant.kind}"
        return f"variant {variant.name} is {variant.precision} by itself" if variant.precision != "fp32" else ""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the model (see `clover.interfaces.Backend`); `folder` is not used.  Raises WorkerError on a CPU."""
        if device == "cpu":
            raise WorkerError(f"{self.name} is for GPUs: {variant.name} runs with eager here")
        return super().load(
            family, msgspec.structs.replace(variant, precision=self._precision), folder, threads, device
        )
