"""The backend that compiles nothing: the module, or the Python callable, as its loader gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clover import families
from clover.backends.tensors import load_module, to_arrays, to_tensor
from clover.types import FamilySpec, VariantSpec


class EagerBackend:
    """Runs every variant, and is the truth the others are compared with."""

    name = "eager"
    compiles = False

    def available(self) -> str:
        """Always usable."""
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec) -> str:
        """Runs every variant."""
        return ""

    def compile(self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int) -> None:
        """Nothing to compile."""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """See `clover.interfaces.Backend`; `folder` is not used."""
        if variant.kind == "python":
            place = Path(family.folder)
            function: Any = families.resolve(variant.loader, place)(variant, place)
            if not callable(function):
                raise TypeError(f"{variant.loader} returned {type(function).__name__}; a callable is needed")

            def run_python(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
                return list(function(inputs))

            return run_python

        import torch

        module = load_module(family, variant)
        specs = family.inputs

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(module(*[to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        return run
