"""Inputs of an embedding program, checked against what the family declares: any array-like in, rows for the router out.

The rules, which are stricter than numpy's:

- An array keeps its kind of number.  Floating-point arrays of any width are taken for FP16, FP32 and FP64, integer
  arrays for any integer type, if every value fits.  An integer array for a floating-point input is refused: uint8
  pixels want the scaling that the model was trained with, and a cast would answer, wrongly.
- Python numbers have no dtype: integers in lists are taken for floating-point inputs, as in JSON.
- BF16 is given as its bits, uint16.
- NaN and infinities are data: they are passed to the model as they are, as over HTTP in binary form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.errors import BadRequest
from clover.hints import did_you_mean
from clover.runtime.memory.bytes_codec import pack_row
from clover.runtime.memory.slab import DTYPES
from clover.types import FamilySpec, TensorSpec

Prepared = tuple[NDArray[Any] | list[bytes], tuple[int, ...]]
"""Rows of one input as the router takes them, and the shape of one row."""


def prepare(spec: FamilySpec, inputs: object) -> tuple[int, list[Prepared]]:
    """Return how many rows there are, and each declared input as the router takes it.  An array of a row's rank is one
    row.

    Raises BadRequest, with what was expected and what came, if an input is missing, unknown, of another datatype or
    shape, or of another number of rows.
    """
    if not isinstance(inputs, Mapping):
        example = f"{{{spec.inputs[0].name!r}: ...}}"
        raise BadRequest(
            f"inputs is a mapping of names to arrays, as {example}, not {_describe_given(inputs)}; "
            f"this model takes {_all_wanted(spec)}"
        )
    names = [tensor.name for tensor in spec.inputs]
    for name in inputs:
        if name not in names:
            hint = did_you_mean(name, names) if isinstance(name, str) else ""
            raise BadRequest(f"unknown input {name!r}{hint}; this model takes {_all_wanted(spec)}")
    out: list[Prepared] = []
    counts: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            raise BadRequest(f"input {tensor.name!r} is missing: it must be {_describe_input(tensor)}")
        given = inputs[tensor.name]
        array = _to_array(tensor, given)
        if array.ndim == len(tensor.shape):
            array = array[np.newaxis]
        shape = array.shape[1:]
        if len(shape) != len(tensor.shape) or any(
            axis != declared if declared >= 0 else axis > most
            for axis, declared, most in zip(shape, tensor.shape, tensor.bound, strict=True)
        ):
            raise _refusal(tensor, given)
        counts[tensor.name] = len(array)
        if tensor.datatype == "BYTES":
            out.append(([_pack(tensor, row) for row in array.reshape(len(array), -1)], shape))
        else:
            out.append((array, shape))
    if len(set(counts.values())) != 1:
        rows = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BadRequest(f"the inputs differ in their number of rows: {rows}")
    return next(iter(counts.values())), out


def _to_array(tensor: TensorSpec, given: Any) -> NDArray[Any]:
    """Return `given` as an array of the declared datatype; raises BadRequest if it is none."""
    if tensor.datatype == "BYTES":
        return np.asarray(given, dtype=object)
    dtype = DTYPES[tensor.datatype]
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # ragged lists, mostly
        raise _refusal(tensor, given) from error
    if array.dtype == dtype:
        return array
    python_integers = not hasattr(given, "dtype") and array.dtype == np.int64
    kinds = "iu" if dtype.kind in "iu" else "fiu" if python_integers else dtype.kind
    if tensor.datatype == "BF16" or (array.size and (array.dtype.kind not in kinds or dtype.kind not in "fiu")):
        why = ""
        if dtype.kind == "f" and array.dtype.kind in "iu":
            why = f"; integers are not cast: scale them as in training, then give .astype('{dtype}')"
        raise _refusal(tensor, given, why)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.can_cast(array.dtype, dtype, "safe"):
        if dtype.kind == "f":
            lost = np.isinf(cast) & ~np.isinf(array)
        else:  # there and back, and with its sign: uint64 turns negative in int64, and back again
            lost = (cast.astype(array.dtype) != array) | ((cast < 0) != (array < 0))
        if lost.any():
            raise _refusal(tensor, given, f"; {array[lost].flat[0]} does not fit into {tensor.datatype}")
    return cast


def _refusal(tensor: TensorSpec, given: Any, why: str = "") -> BadRequest:
    return BadRequest(f"input {tensor.name!r} must be {_describe_input(tensor)}, not {_describe_given(given)}{why}")


def _describe_input(tensor: TensorSpec) -> str:
    """Return the declared input in words, as "FP32 of shape [1, 28, 28], or [rows, 1, 28, 28]"."""
    row = ", ".join(
        str(axis) if axis >= 0 else f"1..{most}" for axis, most in zip(tensor.shape, tensor.bound, strict=True)
    )
    several = f"[rows, {row}]" if row else "[rows]"
    bits = " (its bits, as uint16)" if tensor.datatype == "BF16" else ""
    return f"{tensor.datatype}{bits} of shape [{row}], or {several} for several rows"


def _describe_given(given: Any) -> str:
    """Return what was given in words, as "uint8 of shape [28, 28]"; never a value."""
    dtype, shape = getattr(given, "dtype", None), getattr(given, "shape", None)
    if dtype is not None and shape is not None:
        return f"{dtype} of shape {list(shape)}"
    if isinstance(given, list | tuple):
        try:
            array = np.asarray(given)
        except (TypeError, ValueError):
            return f"a {type(given).__name__} whose rows differ in length, or that holds no numbers"
        words = "text" if array.dtype.kind in "US" else "objects" if array.dtype.kind == "O" else str(array.dtype)
        return f"a {type(given).__name__} of {words}, of shape {list(array.shape)}"
    return f"a {type(given).__name__}"


def _all_wanted(spec: FamilySpec) -> str:
    """Return every declared input in words."""
    return "; ".join(f"{tensor.name!r}: {_describe_input(tensor)}" for tensor in spec.inputs)


def _pack(tensor: TensorSpec, row: Iterable[Any]) -> bytes:
    """Return a row of BYTES elements in OIP form."""
    try:
        return pack_row(row)
    except TypeError as error:
        raise BadRequest(
            f"the elements of input {tensor.name!r}, which is BYTES, are str or bytes, not {error}"
        ) from None
