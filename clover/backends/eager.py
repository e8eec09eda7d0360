"""The backend that compiles nothing: the module, or the Python callable, as its loader returns it.

On a GPU the module is moved there and its launches are recorded per batch size (`clover.backends.cuda`); a Python
callable is left as it is.

The weights of wide convolutions are kept channels last, an order that convolutions pass on from one to the next:
without it their library brings every activation into an order of its own and back.  Narrow ones have little to gain,
and so has float32 on a GPU, whose tensor cores (tf32, fp16) are what wants that order.  A module that does not work
with it (one that views an activation as flat, say) is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from clover import families
from clover.backends import cuda
from clover.backends.artifacts import lacks_bf16
from clover.backends.targets import CPU, Target
from clover.backends.tensors import (
    cannot_round,
    example_inputs,
    load_module,
    to_arrays,
    to_tensor,
    unsupported,
    with_casts,
    with_weights,
)
from clover.errors import WorkerError
from clover.types import FamilySpec, Precision, VariantSpec

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("clover.backends")


WIDE = 32
"""Input channels from which a convolution gains by channels last: measured by `bench.backends`."""


class EagerBackend:
    """Runs every variant, and is the reference that the other backends are compared with."""

    name = "eager"
    compiles = False
    gpu_only = False
    imports: tuple[str, ...] = ("safetensors.torch",)  # what the loaders of most families read weights with

    def available(self) -> str:
        """Return "": it is always usable."""
        return ""

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "": it runs every variant anywhere; fp16 on a CPU in real half precision, if slowly."""
        return ""

    def compile(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, target: Target = CPU
    ) -> None:
        """Do nothing: there is nothing to compile."""

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the model (see `clover.interfaces.Backend`); `folder` is not used."""
        if variant.kind == "python":
            place = Path(family.folder)
            function: Any = families.resolve(variant.loader, place)(variant, place)
            if not callable(function):
                raise TypeError(f"{variant.loader} returned {type(function).__name__}; a callable is needed")

            def run_python(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
                return list(function(inputs))

            return run_python

        import torch

        module = load_module(family, variant, device)
        call = with_casts(module, family, variant)
        specs = family.model_inputs(variant)

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(call(*[to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        def run_there(inputs: list[NDArray[Any]]) -> None:
            with torch.inference_mode():
                call(*[to_tensor(a, s).to(device) for a, s in zip(inputs, specs, strict=True)])

        if device == "cpu":
            channels_last(module, family, variant, run)
            return with_weights(run, module)
        if variant.precision != "fp32":
            channels_last(module, family, variant, run_there)
        return with_weights(cuda.Runner(call, family, variant, graphs=True, device=device), module)


def channels_last(
    module: torch.nn.Module, family: FamilySpec, variant: VariantSpec, run: Callable[[list[NDArray[Any]]], Any]
) -> None:
    """Keep the weights of convolutions channels last, if some are wide and `run`, which runs `module`, works then."""
    import torch

    wide = wide_convolutions(module)
    if not wide:
        return
    for part in wide:
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        run(example_inputs(family, variant, min(2, family.max_batch)))  # of one row any view of it is contiguous
    except Exception as error:
        _log.debug("%s does not run channels last: %s", variant.name, error)
        for part in wide:
            part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def wide_convolutions(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return all convolutions of a module if any of them is wide enough for channels last; they pass the order on."""
    import torch

    found = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    return list(found) if any(part.in_channels >= WIDE for part in found) else []


class Bf16Backend(EagerBackend):
    """Runs float32 torch variants in bfloat16 on CPU cores that have instructions for it: for heavy ones that cannot be
    exported.  Whether the answers still are right is measured (`clover.profiling.choose`)."""

    name = "eager-bf16"

    def available(self) -> str:
        """Return "" if the processor has instructions for bfloat16, else what it lacks."""
        return lacks_bf16()

    def supports(self, family: FamilySpec, variant: VariantSpec, target: Target = CPU) -> str:
        """Return "" for a float32 torch variant of a family with evaluation rows, on CPU cores; else why not."""
        if target.cuda:
            return f"{self.name} is for CPU cores"
        return unsupported(family, variant) or cannot_round(family, variant)

    def load(
        self, family: FamilySpec, variant: VariantSpec, folder: Path, threads: int, device: str = "cpu"
    ) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
        """Load the model (see `clover.interfaces.Backend`); `folder` is not used.  Raises WorkerError on a GPU."""
        if device != "cpu":
            raise WorkerError(f"{self.name} is for CPU cores: {variant.name} runs with eager here")
        import torch

        module = load_module(family, variant).bfloat16()
        call = with_casts(module, family, variant, torch.bfloat16)
        specs = family.model_inputs(variant)

        def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return to_arrays(call(*[to_tensor(a, s) for a, s in zip(inputs, specs, strict=True)]))

        channels_last(module, family, variant, run)
        return with_weights(run, module)


class RoundedBackend(EagerBackend):
    """Runs float32 torch variants in `precision`, on GPUs only: products in TF32, or all of it in half precision.

    A GPU computes these several times as fast, with less energy, and most models give the same answers.  Whether one
    does is measured: as with any backend, the profiler compares answers and accuracy with eager, and keeps the backend
    for a variant only if both agree and it takes less energy (`clover.profiling.choose`).  A variant whose own
    `precision` is not fp32 says itself how it is to be computed, and is left alone."""

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
