"""Batches in a worker: rows of a slab are gathered into arrays, and the model's answers scattered back.

If the slots are consecutive and rows fill their bound, an input is a view of the slab, not a copy.  All rows of one
batch have equal dims (the batcher keys rows by shape), so those of the first row hold for all.  Scattered rows are
gathered into new arrays, or (`stage`) into arrays that are reused for all batches, which a GPU's worker keeps
page-locked as it does the slab.  The answers of a model are checked against the family's declaration (count, dtype,
shape) before any of them is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.runtime.memory.bytes_codec import pack_row, split_row
from clover.runtime.memory.slab import DTYPES, Slab
from clover.types import TensorSpec


class OutputError(ValueError):
    """A model's answer does not match its declaration."""


class Batches:
    """Gathers and scatters the batches of one worker."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._slots = slab.layout.slots
        spec = slab.layout.spec
        # `variable` is derived from the shape, so it is read once and not for every batch.
        self._inputs = [(index, tensor, slab.input(index), tensor.variable) for index, tensor in enumerate(spec.inputs)]
        self._outputs = [
            (index, tensor, slab.output(index), tensor.variable) for index, tensor in enumerate(spec.outputs)
        ]
        self._staged: dict[int, NDArray[Any]] = {}
        self._always = False
        self._spanned: tuple[NDArray[np.uint32] | None, slice | NDArray[np.uint32]] = (None, slice(0))

    def direct_inputs(self) -> list[NDArray[Any]]:
        """Return the regions of the slab that `gather` returns views of: inputs of numbers and fixed shape."""
        return [region for _, _, region in self._fixed_inputs()]

    def stage(
        self,
        max_batch: int,
        make: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = np.zeros,
        *,
        always: bool = False,
    ) -> list[NDArray[Any]]:
        """Return arrays for inputs of fixed shape, made by `make`, into which scattered rows are gathered from now on,
        and consecutive ones too if `always`: each batch overwrites the arrays that `gather` returned for the one
        before."""
        self._staged = {
            index: make((max_batch, *region.shape[1:]), region.dtype) for index, _, region in self._fixed_inputs()
        }
        self._always = always
        return list(self._staged.values())

    def _fixed_inputs(self) -> list[tuple[int, TensorSpec, NDArray[Any]]]:
        return [
            (index, tensor, region)
            for index, tensor, region, variable in self._inputs
            if tensor.datatype != "BYTES" and not variable
        ]

    def span(self, slots: NDArray[np.uint32]) -> slice | NDArray[np.uint32]:
        """Return an index for `slots` (at least one): a slice if they are consecutive.  Raises IndexError for slots
        that the slab does not have."""
        if self._spanned[0] is not slots:  # the same array is asked for twice, before and after the model runs
            self._spanned = (slots, self._span(slots))
        return self._spanned[1]

    def _span(self, slots: NDArray[np.uint32]) -> slice | NDArray[np.uint32]:
        numbers = slots.tolist()  # for so few, a loop is faster than numpy
        first = expected = numbers[0]
        consecutive = True
        for slot in numbers:
            if slot >= self._slots:
                raise IndexError(f"a batch names a slot beyond the slab's {self._slots}")
            consecutive = consecutive and slot == expected
            expected += 1
        return slice(first, expected) if consecutive else slots

    def gather(self, slots: NDArray[np.uint32]) -> list[NDArray[Any]]:
        """Return the inputs of the rows in `slots`, each a C-contiguous array [rows, *dims]; BYTES: an object array."""
        span = self.span(slots)
        gathered = []
        for index, tensor, region, variable in self._inputs:
            gathered.append(self._gather(index, tensor, region, variable, span, slots))
        return gathered

    def _gather(
        self, index: int, tensor: TensorSpec, region: NDArray[Any], variable: bool, span: Any, slots: NDArray[np.uint32]
    ) -> NDArray[Any]:
        if tensor.datatype == "BYTES":
            return self._gather_bytes(index, slots)
        if not variable:
            staged = self._staged.get(index)
            if isinstance(span, slice) and not self._always:
                return region[span]
            if staged is None:
                return region[slots]
            # "clip" lets NumPy write straight into `out`; `span` has refused slots that do not exist.
            return np.take(region, slots, axis=0, out=staged[: len(slots)], mode="clip")
        corner = tuple(slice(axis) for axis in self._slab.dims("input", index, int(slots[0])))
        return np.ascontiguousarray(region[span][(slice(None), *corner)])

    def _gather_bytes(self, index: int, slots: NDArray[np.uint32]) -> NDArray[Any]:
        dims = self._slab.dims("input", index, int(slots[0]))
        count = math.prod(dims)
        rows = np.empty((len(slots), count), dtype=object)
        for row, slot in enumerate(slots.tolist()):
            elements = split_row(self._slab.get_bytes("input", index, slot))
            if len(elements) != count:
                raise ValueError(f"a BYTES row holds {len(elements)} elements instead of {count}")
            rows[row, :] = elements
        return rows.reshape(len(slots), *dims)

    def check(self, count: int, answers: Sequence[Any]) -> list[Any]:
        """Return a model's answers for `count` rows, ready to be written.  Raises OutputError if they do not
        match."""
        if len(answers) != len(self._outputs):
            raise OutputError(f"the model gave {len(answers)} outputs, {len(self._outputs)} are declared")
        return [
            _encode(tensor, answer, count) if tensor.datatype == "BYTES" else _check(tensor, answer, count)
            for (_, tensor, _, _), answer in zip(self._outputs, answers, strict=True)
        ]

    def scatter(
        self, slots: NDArray[np.uint32], answers: Sequence[Any], first: Callable[[], None] | None = None
    ) -> None:
        """Write a model's answers into the outputs of the rows in `slots`.  `first` is called once they match their
        declaration.  Raises OutputError, or what `first` raises; no answer is written then, so that a cascade may keep
        those of another variant that are there."""
        checked = self.check(len(slots), answers)
        span = self.span(slots)
        if first is not None:
            first()
        for (index, tensor, region, variable), answer in zip(self._outputs, checked, strict=True):
            if tensor.datatype == "BYTES":
                dims, rows = answer
                for slot, row in zip(slots.tolist(), rows, strict=True):
                    self._slab.put_bytes("output", index, slot, row)
                    self._slab.set_dims("output", index, slot, dims)
            elif variable:
                corner = tuple([slice(axis) for axis in answer.shape[1:]])
                for slot, row in zip(slots.tolist(), answer, strict=True):
                    region[(slot, *corner)] = row
                    self._slab.set_dims("output", index, slot, answer.shape[1:])
            else:
                region[span] = answer


def check_answers(tensors: Sequence[TensorSpec], count: int, answers: Sequence[Any]) -> None:
    """Raise OutputError unless a model's answers for `count` rows are `tensors`."""
    if len(answers) != len(tensors):
        raise OutputError(f"the model gave {len(answers)} outputs, {len(tensors)} are declared")
    for tensor, answer in zip(tensors, answers, strict=True):
        if tensor.datatype == "BYTES":
            _encode(tensor, answer, count)
        else:
            _check(tensor, answer, count)


def _encode(tensor: TensorSpec, answer: Any, count: int) -> tuple[tuple[int, ...], list[bytes]]:
    array = np.asarray(answer)
    if array.dtype.kind not in "OSU":
        raise OutputError(f"output {tensor.name!r} is {array.dtype}, not an array of bytes or str")
    _check_shape(tensor, array.shape, count)
    try:
        rows = [pack_row(row.ravel().tolist()) for row in array]
    except TypeError as error:
        raise OutputError(f"an element of output {tensor.name!r} is {error}, not bytes or str") from None
    longest = max(map(len, rows))
    if longest > tensor.max_bytes:
        raise OutputError(f"a row of output {tensor.name!r} takes {longest} bytes, more than its {tensor.max_bytes}")
    return array.shape[1:], rows


def _check(tensor: TensorSpec, answer: Any, count: int) -> NDArray[Any]:
    if not isinstance(answer, np.ndarray):
        raise OutputError(f"output {tensor.name!r} is {type(answer).__name__}, not an array")
    wanted = DTYPES[tensor.datatype]
    if answer.dtype != wanted:
        raise OutputError(f"output {tensor.name!r} is {answer.dtype}, declared {tensor.datatype} ({wanted})")
    _check_shape(tensor, answer.shape, count)
    return answer


def _check_shape(tensor: TensorSpec, shape: tuple[int, ...], count: int) -> None:
    fits = len(shape) == len(tensor.shape) + 1 and shape[0] == count
    if fits and shape[1:] != tensor.shape:
        for axis, declared, most in zip(shape[1:], tensor.shape, tensor.bound, strict=True):
            fits = fits and (axis == declared if declared >= 0 else axis <= most)
    if not fits:
        raise OutputError(f"output {tensor.name!r} has shape {list(shape)}, declared {[count, *tensor.shape]}")
