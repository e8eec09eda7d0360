"""Whether a compiled model gives the same answers as the module it was made from.

The reference is the module run eagerly in float32 without TF32.  Rounding differs with the precision, so the tolerance
does: `TOLERANCE` times the largest magnitude in an output is what any element of it may differ by.  The figures allow
for several layers of rounding (2^-24 a product in fp32, 2^-11 in tf32 and fp16) and for sums taken in another order; a
wrong kernel, a missing layer or an overflow is far outside.  Outputs that are not floating-point may differ where two
were all but equal, in 1 % of the elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import families, steps
from clover.types import FamilySpec, Precision, TensorSpec, VariantSpec

TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2}
"""The largest difference, as a share of the largest magnitude in the output, by precision."""

UNEQUAL = 0.01
"""The largest share of unequal elements in an output of whole numbers or booleans."""


def difference(mine: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the largest difference of two floating-point arrays, as a share of the largest magnitude in `truth`;
    infinite if the shapes differ, or if an element is finite in one of them only."""
    if mine.shape != truth.shape:
        return float("inf")
    if not mine.size:
        return 0.0
    a, b = mine.astype(np.float64), truth.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    if not (same | finite).all():
        return float("inf")
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
    apart = np.subtract(a, b, out=np.zeros_like(a), where=finite)
    return float(np.abs(apart).max() / scale)


def compare(
    tensors: Sequence[TensorSpec], mine: Sequence[NDArray[Any]], truth: Sequence[NDArray[Any]], precision: Precision
) -> tuple[float, str]:
    """Return the largest difference of all outputs as a share of what is allowed, and what is wrong ("" if
    nothing is)."""
    if len(mine) != len(truth):
        return float("inf"), f"it gives {len(mine)} outputs instead of {len(truth)}"
    worst, wrong = 0.0, ""
    for tensor, a, b in zip(tensors, mine, truth, strict=True):
        floating = tensor.datatype in ("FP16", "BF16", "FP32", "FP64")
        if floating:
            found, allowed = difference(_plain(tensor, a), _plain(tensor, b)), TOLERANCE[precision]
            text = f"{tensor.name} differs by {found:.2g} of its largest value, {allowed:g} is allowed in {precision}"
        else:
            found, allowed = float(np.mean(a != b)) if a.shape == b.shape else float("inf"), UNEQUAL
            text = f"{found:.1%} of {tensor.name} is unequal, {allowed:.0%} is allowed"
        worst = max(worst, found / allowed)
        if found > allowed:
            wrong = wrong or text
    return worst, wrong


def rows_of(family: FamilySpec, variant: VariantSpec, most: int = 256) -> list[NDArray[Any]]:
    """Return rows to compare on, as the model of `variant` takes them: of the calibration split if there is one,
    otherwise made up: floats uniform in 0..1, whole numbers and booleans zero, which is a valid index everywhere."""
    generator = np.random.default_rng(0)
    if family.evaluation is not None:
        inputs, labels = families.load_evaluation(family, "calibration")
        chosen = generator.permutation(len(labels))[:most]
        if len(chosen) >= family.max_batch:
            sent = steps.as_sent(family, [array[chosen] for array in inputs])
            return steps.as_modelled(family, variant, sent)
    return [made_up(tensor, max(most, family.max_batch), generator) for tensor in family.model_inputs(variant)]


def made_up(tensor: TensorSpec, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Return `rows` made-up rows of a numeric tensor, variable axes at their bound."""
    shape = (rows, *tensor.bound)
    dtype = families.DATATYPES[tensor.datatype]
    if tensor.datatype == "BF16":
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    return np.zeros(shape, dtype)


def batches_of(family: FamilySpec) -> tuple[int, ...]:
    """Return the batch sizes to compare: the ends of the range and what lies between them."""
    most = family.max_batch
    return tuple(sorted({1, min(2, most), max(1, most // 2), most}))


def _plain(tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if tensor.datatype != "BF16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)
