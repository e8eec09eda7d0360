"""Between NumPy arrays and torch tensors without copies.  BF16 is uint16 in NumPy, which has no bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clover import families
from clover.errors import ProfileError
from clover.types import FamilySpec, TensorSpec, VariantSpec

if TYPE_CHECKING:
    import torch


def to_tensor(array: NDArray[Any], tensor: TensorSpec) -> torch.Tensor:
    """A tensor over the memory of `array`."""
    import torch

    made = torch.from_numpy(array)
    return made.view(torch.bfloat16) if tensor.datatype == "BF16" else made


def to_arrays(result: Any) -> list[NDArray[Any]]:
    """Arrays over the memory of a module's result: a tensor, or a tuple or list of them.  Raises TypeError."""
    import torch

    parts = list(result) if isinstance(result, (tuple, list)) else [result]
    arrays = []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"the model returned {type(part).__name__} where a tensor is declared")
        plain = part.detach()
        arrays.append((plain.contiguous().view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy())
    return arrays


def load_module(family: FamilySpec, variant: VariantSpec) -> torch.nn.Module:
    """The variant's module, in eval mode.  Raises TypeError where the loader returns something else."""
    import torch

    folder = Path(family.folder)
    module = families.resolve(variant.loader, folder)(variant, folder)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{variant.loader} returned {type(module).__name__}, not an nn.Module")
    return module.eval()


def example_inputs(family: FamilySpec, rows: int) -> list[NDArray[Any]]:
    """Zeros of the declared inputs with `rows` rows, variable axes at their bound; BYTES as empty strings."""
    made: list[NDArray[Any]] = []
    for tensor in family.inputs:
        if tensor.datatype == "BYTES":
            made.append(np.full((rows, *(max(axis, 1) for axis in tensor.shape)), b"", dtype=object))
        else:
            made.append(np.zeros((rows, *tensor.bound), families.DATATYPES[tensor.datatype]))
    return made


def export(family: FamilySpec, variant: VariantSpec) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]:
    """Module, example arguments and dynamic shapes for `torch.export`: batches of 1 .. `max_batch`, variable axes of
    1 .. their bound."""
    import torch

    if variant.kind != "torch":
        raise ProfileError(f"variant {variant.name} is of kind {variant.kind}: only eager runs it")
    # Two example rows: torch.export takes a size of one for a constant.
    rows = min(2, family.max_batch)
    arguments = tuple(
        to_tensor(array, tensor) for array, tensor in zip(example_inputs(family, rows), family.inputs, strict=True)
    )
    batch = torch.export.Dim("batch", min=1, max=family.max_batch) if family.max_batch > 1 else None
    shapes = tuple(_dynamic(index, tensor, batch) for index, tensor in enumerate(family.inputs))
    return load_module(family, variant), arguments, shapes


def _dynamic(index: int, tensor: TensorSpec, batch: Any) -> dict[int, Any]:
    import torch

    axes: dict[int, Any] = {} if batch is None else {0: batch}
    for axis, (size, most) in enumerate(zip(tensor.shape, tensor.bound, strict=True)):
        if size < 0 and most > 1:
            axes[axis + 1] = torch.export.Dim(f"axis{index}_{axis}", min=1, max=most)
    return axes


def unsupported(family: FamilySpec, variant: VariantSpec, refused: Sequence[str] = ()) -> str:
    """Why a compiling backend cannot take `variant`; "" where it can."""
    if variant.kind != "torch":
        return f"variant {variant.name} is plain Python"
    for tensor in (*family.inputs, *family.outputs):
        if tensor.datatype in ("BYTES", *refused):
            return f"tensor {tensor.name} is {tensor.datatype}"
    return ""
