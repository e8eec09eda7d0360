"""The backend that compiles nothing: the module, or the Python callable, as its loader gives it.

On a GPU the module is moved there and its launches are recorded per batch size (`clover.backends.cuda`); a Python
callable is left to do as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clover import families
from clover.backends import cuda
from clover.backends.targets import CPU, Target
from clover.backends.tensors import load_module, to_arrays, to_tensor, with_casts
from clover.types import FamilySpec, VariantSpec


class EagerBackend:
    """Runs every variant, and is the truth the others are compared with."""

    name = "eager"
    compiles = False
    imports: tuple[str, ...] = ("safetensors.torch",)  # what the loaders of most families read weights with

    def available(self) -> str:
        """Always usable."""
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Runs every variant anywhere; fp16 on a CPU for real, if slowly."""
        return ""

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Nothing to compile."""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
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

        module = with_casts(load_module(family, variant, device), family, variant)
        if device != "cpu":
            return cuda.Runner(module, family, variant, graphs=True, device=device)
        specs = family.inputs

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(module(*[to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        return run
