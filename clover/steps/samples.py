"""Made-up rows of the application: what a family is warmed and, without labelled rows, measured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.datatypes import DATATYPES
from clover.steps.pipeline import PlacedStep
from clover.types import TensorSpec

DISTINCT = 16
"""Rows that differ; after them come the same again, as pictures and sounds take time to make."""


def sample_rows(
    tensors: Sequence[TensorSpec], steps: Sequence[PlacedStep], rows: int, generator: np.random.Generator
) -> list[NDArray[Any]]:
    """Return `rows` made-up rows of each tensor [rows, ...], valid for the steps that read them: pictures, sounds or
    texts where a step says that it takes them, else as `numbers` makes them."""
    made = []
    for tensor in tensors:
        step = next((one.step for one in steps if one.at.source == tensor.name), None)
        values = [] if step is None else [step.sample(generator) for _ in range(min(rows, DISTINCT))]
        if not values or values[0] is None:
            made.append(numbers(tensor, rows, generator))
        elif tensor.datatype == "BYTES":
            column = np.empty((rows, 1), dtype=object)
            column[:, 0] = [values[at % len(values)] for at in range(rows)]
            made.append(column.reshape(rows, *(1 for _ in tensor.shape)))
        else:
            made.append(np.stack([values[at % len(values)] for at in range(rows)]))
    return made


def numbers(tensor: TensorSpec, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Return made-up rows of `tensor`: floats uniform in 0..1, integers and booleans zero (always a valid index),
    strings "0".

    Variable axes are as long as they may be; of strings, 1.
    """
    if tensor.datatype == "BYTES":
        text = np.empty((rows, *(1 if axis < 0 else axis for axis in tensor.shape)), dtype=object)
        text[:] = b"0"
        return text
    dtype = DATATYPES[tensor.datatype]
    shape = (rows, *tensor.bound)
    if tensor.datatype == "BF16":
        return (generator.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    return np.zeros(shape, dtype)
