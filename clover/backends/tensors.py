"""Between NumPy arrays and torch tensors without copies, and modules in the precision of their variant.

BF16 is uint16 in NumPy, which has no bfloat16.  A variant in fp16 has its module halved once, here; what goes in and
comes out keeps its declared type (`with_casts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Return a tensor over the memory of `array`."""
    import torch

    made = torch.from_numpy(array)
    return made.view(torch.bfloat16) if tensor.datatype == "BF16" else made


def to_arrays(result: Any) -> list[NDArray[Any]]:
    """Return arrays over the memory of a module's result: a tensor, or a tuple or list of them.  Raises TypeError."""
    import torch

    parts = list(result) if isinstance(result, (tuple, list)) else [result]
    arrays = []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"the model returned {type(part).__name__} where a tensor is declared")
        plain = part.detach()
        arrays.append((plain.contiguous().view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy())
    return arrays


def torch_dtype(tensor: TensorSpec) -> torch.dtype:
    """Return the torch type of a numeric tensor."""
    import torch

    if tensor.datatype == "BF16":
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, families.DATATYPES[tensor.datatype])).dtype


def load_module(family: FamilySpec, variant: VariantSpec, device: str = "cpu") -> torch.nn.Module:
    """Return the variant's module, in eval mode and its precision, on `device`.  Raises TypeError if the loader returns
    something else."""
    import torch

    folder = Path(family.folder)
    module = families.resolve(variant.loader, folder)(variant, folder)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{variant.loader} returned {type(module).__name__}, not an nn.Module")
    module = module.eval()
    if variant.precision == "fp16":
        module = module.half()
    return module if device == "cpu" else module.to(device)


def with_casts(
    call: Callable[..., Any], family: FamilySpec, variant: VariantSpec, dtype: torch.dtype | None = None
) -> Callable[..., Any]:
    """Return `call`, which computes in `dtype` (by default the variant's precision), as a function of tensors of the
    declared types; `call` itself if that is float32."""
    if dtype is None and variant.precision != "fp16":
        return call
    import torch

    computed = dtype or torch.half
    gives = family.model_outputs(variant)
    declared = [torch_dtype(tensor) if tensor.datatype != "BYTES" else None for tensor in gives]

    def casting(*inputs: torch.Tensor) -> tuple[Any, ...]:
        made = call(*[tensor.to(computed) if tensor.is_floating_point() else tensor for tensor in inputs])
        parts = made if isinstance(made, (tuple, list)) else (made,)
        return tuple(
            part.to(dtype) if isinstance(part, torch.Tensor) and part.is_floating_point() and dtype else part
            for part, dtype in zip(parts, [*declared, *[None] * len(parts)], strict=False)
        )

    return casting


def with_weights(
    run: Callable[[list[NDArray[Any]]], list[NDArray[Any]]], module: torch.nn.Module
) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return `run` with the bytes of the module's parameters and buffers as its attribute `weights_bytes`, which a
    worker reports."""
    run.weights_bytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))  # type: ignore[attr-defined]
    return run


def example_inputs(family: FamilySpec, variant: VariantSpec, rows: int) -> list[NDArray[Any]]:
    """Return zeros of what the model of `variant` takes, with `rows` rows, variable axes at their bound; BYTES as empty
    strings."""
    made: list[NDArray[Any]] = []
    for tensor in family.model_inputs(variant):
        if tensor.datatype == "BYTES":
            made.append(np.full((rows, *(max(axis, 1) for axis in tensor.shape)), b"", dtype=object))
        else:
            made.append(np.zeros((rows, *tensor.bound), families.DATATYPES[tensor.datatype]))
    return made


def export(
    family: FamilySpec, variant: VariantSpec, device: str = "cpu"
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...], Any]:
    """Return module, example arguments and dynamic shapes for `torch.export`: batches of 1 .. `max_batch`, variable
    axes of 1 .. their bound.  The arguments of a variant in fp16 are halved too: casting stays outside (`with_casts`).
    """
    import torch

    if variant.kind != "torch":
        raise ProfileError(f"variant {variant.name} is of kind {variant.kind}: only eager runs it")
    # Two example rows: torch.export takes a size of one for a constant.
    rows, takes = min(2, family.max_batch), family.model_inputs(variant)
    arguments = tuple(
        to_tensor(array, tensor).to(device)
        for array, tensor in zip(example_inputs(family, variant, rows), takes, strict=True)
    )
    if variant.precision == "fp16":
        arguments = tuple(item.half() if item.is_floating_point() else item for item in arguments)
    batch = torch.export.Dim("batch", min=1, max=family.max_batch) if family.max_batch > 1 else None
    shapes = tuple(_dynamic(index, tensor, batch) for index, tensor in enumerate(takes))
    return load_module(family, variant, device), arguments, shapes


def _dynamic(index: int, tensor: TensorSpec, batch: Any) -> dict[int, Any]:
    import torch

    axes: dict[int, Any] = {} if batch is None else {0: batch}
    for axis, (size, most) in enumerate(zip(tensor.shape, tensor.bound, strict=True)):
        if size < 0 and most > 1:
            axes[axis + 1] = torch.export.Dim(f"axis{index}_{axis}", min=1, max=most)
    return axes


def unsupported(family: FamilySpec, variant: VariantSpec, refused: Sequence[str] = (), *, half: bool = True) -> str:
    """Return why a compiling backend cannot take `variant`; "" if it can.  `half`: whether it computes in fp16."""
    if variant.kind != "torch":
        return f"variant {variant.name} is plain Python"
    if variant.precision == "fp16" and not half:
        return f"variant {variant.name} is fp16, which only eager computes on CPU cores"
    for tensor in (*family.model_inputs(variant), *family.model_outputs(variant)):
        if tensor.datatype in ("BYTES", *refused):
            return f"tensor {tensor.name} is {tensor.datatype}"
    return ""


def cannot_round(family: FamilySpec, variant: VariantSpec) -> str:
    """Return why `variant` may not be computed in fewer bits; "" if it may.  What that does to its answers shows on
    evaluation rows alone: on made-up ones nearly all answers are ties."""
    if variant.precision != "fp32":
        return f"variant {variant.name} is {variant.precision} by itself"
    if family.evaluation is None:
        return f"family {family.name} has no evaluation rows on which to compare answers"
    return ""
