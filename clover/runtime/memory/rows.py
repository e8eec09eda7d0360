"""Rows in and out of a slab: whole arrays if the slots are consecutive, row by row if shapes vary.

The front end copies a request's rows once, here, or receives them into their slots (`FixedRows.view`).  What a worker
wrote is not trusted: a shape or length beyond its declaration fails the request, not the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clover._native.floats import Floats
from clover._native.inputs import Digests
from clover.errors import BadRequest, ModelFailed
from clover.runtime.memory.bytes_codec import count_elements
from clover.steps import row_weights
from clover.types import FamilySpec, TensorSpec

_PREFIX = 4
"""Bytes that an element of BYTES has in front of it, in OIP form: its length."""


class Memory(Protocol):
    """What rows need of a `clover.runtime.memory.slab.Slab`."""

    @property
    def score(self) -> NDArray[np.float32]: ...
    def array(self, kind: Any, index: int) -> NDArray[Any]: ...
    def dims(self, kind: Any, index: int, slot: int) -> tuple[int, ...]: ...
    def set_dims(self, kind: Any, index: int, slot: int, dims: Sequence[int]) -> None: ...
    def length(self, kind: Any, index: int, slot: int) -> int: ...
    def get_bytes(self, kind: Any, index: int, slot: int) -> bytes: ...
    def put_bytes(self, kind: Any, index: int, slot: int, data: bytes | bytearray | memoryview) -> None: ...
    def refusals(self, slots: Sequence[int]) -> dict[int, str]: ...


def _span(slots: list[int]) -> Any:
    """Return an index for `slots`: a slice if they are consecutive, else an integer array."""
    first, count = slots[0], len(slots)
    # The ends alone would do for the slots of a ticket, which rise; profiles are measured in slots of any order.
    if slots[-1] - first == count - 1 and (count < 3 or slots == list(range(first, first + count))):
        return slice(first, first + count)
    return np.asarray(slots, np.intp)


def write_array(memory: Memory, tensor: TensorSpec, index: int, slots: list[int], rows: NDArray[Any]) -> None:
    """Copy `rows` [len(slots), *shape] into input `index`; raises BadRequest if their shape is not the declared one."""
    shape = rows.shape[1:]
    if rows.ndim == 0 or len(rows) != len(slots):
        raise BadRequest(f"input {tensor.name!r} holds {len(rows) if rows.ndim else 0} rows instead of {len(slots)}")
    region = memory.array("input", index)
    if rows.dtype != region.dtype:
        raise BadRequest(f"input {tensor.name!r} must be {tensor.datatype}")
    if not tensor.variable:
        if shape != region.shape[1:]:
            raise BadRequest(f"input {tensor.name!r} has rows of shape {list(shape)} instead of {list(tensor.shape)}")
        region[_span(slots)] = rows
        return
    corner: tuple[Any, ...] = tuple(slice(axis) for axis in shape)
    for slot, row in zip(slots, rows, strict=True):
        _set_dims(memory, tensor, index, slot, shape)
        region[(slot, *corner)] = row


def write_bytes(
    memory: Memory,
    tensor: TensorSpec,
    index: int,
    slots: list[int],
    rows: Sequence[bytes],
    dims: tuple[int, ...] | None,
) -> None:
    """Copy rows of a BYTES tensor, already in OIP form; `dims` is the shape of each row's elements if it varies."""
    if len(rows) != len(slots):
        raise BadRequest(f"input {tensor.name!r} holds {len(rows)} rows instead of {len(slots)}")
    for slot, row in zip(slots, rows, strict=True):
        if tensor.variable:
            _set_dims(memory, tensor, index, slot, dims if dims is not None else (_elements(row),))
        if len(row) > tensor.max_bytes:
            raise BadRequest(f"a row of input {tensor.name!r} takes {len(row)} bytes; at most {tensor.max_bytes} fit")
        memory.put_bytes("input", index, slot, row)


def _set_dims(memory: Memory, tensor: TensorSpec, index: int, slot: int, dims: tuple[int, ...]) -> None:
    try:
        memory.set_dims("input", index, slot, dims)
    except ValueError as error:
        bound = list(tensor.bound)
        raise BadRequest(f"input {tensor.name!r} has rows of shape {list(dims)}, which does not fit {bound}") from error


def _elements(row: bytes) -> int:
    try:
        return count_elements(row)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def read_rows(memory: Memory, spec: FamilySpec, index: int, slots: list[int]) -> NDArray[Any] | list[bytes]:
    """Return output `index` of `slots`: one array [rows, *shape], a view if the slots are consecutive and the shape
    is fixed; BYTES: OIP form a row.  Raises ModelFailed if the worker wrote what its declaration does not allow."""
    tensor = spec.outputs[index]
    try:
        if tensor.datatype == "BYTES":
            return [memory.get_bytes("output", index, slot) for slot in slots]
        region = memory.array("output", index)
        if not tensor.variable:
            rows: NDArray[Any] = region[_span(slots)]
            return rows
        shapes = {memory.dims("output", index, slot) for slot in slots}
    except ValueError as error:
        raise ModelFailed("the model wrote an output that its declaration does not allow") from error
    if len(shapes) != 1:
        raise ModelFailed(f"output {tensor.name!r} differs in shape between the rows of one request; send them apart")
    corner = tuple(slice(axis) for axis in shapes.pop())
    picked: NDArray[Any] = region[(_span(slots), *corner)]
    return picked


class FixedRows:
    """A tensor whose rows are numbers of one shape: the whole array of the slab.  `floats` is set if it is float32."""

    __slots__ = ("_dtype", "_region", "_shape", "floats")

    def __init__(self, region: NDArray[Any]) -> None:
        self.floats = Floats(region) if region.dtype == np.float32 else None
        self._region = region
        self._shape = region.shape[1:]
        self._dtype = region.dtype

    @classmethod
    def from_tensors(cls, memory: Memory, kind: str, tensors: Sequence[TensorSpec]) -> list[FixedRows | None]:
        """Return the fixed rows of each tensor; None for tensors whose rows vary in size."""
        return [
            cls(memory.array(kind, index)) if tensor.datatype != "BYTES" and not tensor.variable else None
            for index, tensor in enumerate(tensors)
        ]

    def put(self, slots: list[int], rows: NDArray[Any]) -> bool:
        """Write `rows` into these slots; return False, and write nothing, if they are not as declared."""
        if self.floats is not None and self.floats.put(slots, rows):
            return True
        if rows.shape[1:] != self._shape or rows.dtype != self._dtype or len(rows) != len(slots):
            return False
        if len(slots) == 1:
            self._region[slots[0]] = rows[0]
        else:
            self._region[_span(slots)] = rows
        return True

    def get(self, slots: list[int]) -> NDArray[Any]:
        """Return the rows of these slots; a view if they are consecutive."""
        rows: NDArray[Any] = self._region[slots[0] : slots[0] + 1] if len(slots) == 1 else self._region[_span(slots)]
        return rows

    def view(self, slots: list[int]) -> memoryview | None:
        """Return the bytes of the rows of these rising slots, to be written; None if they are not neighbours."""
        first, last = slots[0], slots[-1]
        if last - first != len(slots) - 1:
            return None
        return memoryview(self._region[first : last + 1].reshape(-1).view(np.uint8))  # type: ignore[arg-type]


class RowWeights:
    """How much work the steps of a family have with its rows (`clover.steps.row_weights`): `on` says whether that
    differs between rows."""

    __slots__ = ("_index", "_memory", "_weight", "on")

    def __init__(self, memory: Memory, spec: FamilySpec) -> None:
        found = row_weights(spec)
        self.on = found is not None
        self._index = 0
        self._weight: Callable[[memoryview], int] | None = None
        if found is not None:
            self._index, self._weight = found
        self._memory = memory

    def weigh(self, slot: int) -> int:
        """Return as how many ordinary rows the one in `slot` counts, while `on`."""
        assert self._weight is not None
        row = self._memory.array("input", self._index)[slot]
        element = row[_PREFIX : self._memory.length("input", self._index, slot)]
        return max(1, self._weight(memoryview(element)))


class ShapeKeys:
    """Numbers for the shapes of rows: rows of different shapes never have the same number, and rows of one number may
    share a batch.  Families without variable inputs have the one number 0."""

    __slots__ = ("_keys", "_last", "_memory", "_variable")

    _REMEMBERED = 4096

    def __init__(self, memory: Memory, spec: FamilySpec) -> None:
        self._memory = memory
        self._variable = [i for i, tensor in enumerate(spec.inputs) if tensor.variable]
        self._keys: dict[tuple[tuple[int, ...], ...], int] = {}
        self._last = 0

    def number_of(self, slots: list[int]) -> int:
        """Return the number of the rows in `slots`; raises BadRequest if they differ in shape."""
        if not self._variable:
            return 0
        dims = self._dims(slots[0])
        if any(self._dims(slot) != dims for slot in slots[1:]):
            raise BadRequest("the rows of one request must have one shape")
        key = self._keys.get(dims)
        if key is None:
            if len(self._keys) >= self._REMEMBERED:
                self._keys.clear()  # numbers keep rising, so forgetting one never makes a wrong batch
            self._last += 1
            key = self._keys[dims] = self._last
        return key

    def _dims(self, slot: int) -> tuple[tuple[int, ...], ...]:
        return tuple(self._memory.dims("input", i, slot) for i in self._variable)


class InputDigests:
    """Computes digests of the inputs in `memory`, with a secret key of this process: equal inputs have equal digests,
    different ones nearly always differ."""

    __slots__ = ("_digests", "_memory", "_others", "_some")

    def __init__(self, memory: Memory, spec: FamilySpec, key: int | None = None) -> None:
        fixed: list[NDArray[Any]] = []
        others = []
        for index, tensor in enumerate(spec.inputs):
            if tensor.datatype == "BYTES" or tensor.variable:
                others.append(index)
            else:
                fixed.append(memory.array("input", index))
        self._memory = memory
        self._digests = Digests(fixed, int.from_bytes(os.urandom(8), "little") if key is None else key)
        self._some = bool(fixed)
        self._others = tuple((index, spec.inputs[index].datatype == "BYTES") for index in others)

    def digest(self, slot: int) -> int:
        """Return the digest of the inputs of the row in `slot`."""
        found = self._digests.row(slot) if self._some else 0
        for index, text in self._others:
            try:
                found = self._more(found, slot, index, text)
            except ValueError:  # a worker overwrote its shape; all such rows count as the same
                return 0
        return found

    def _more(self, before: int, slot: int, index: int, text: bool) -> int:
        """Return the digest `before`, continued over an input whose rows differ in size, with its shape.  The row may
        be large, so it is not copied."""
        memory = self._memory
        dims = memory.dims("input", index, slot)
        parts = (memory.length("input", index, slot),) if text else dims
        corner: tuple[Any, ...] = (slot, *map(slice, parts))
        found = self._digests.more(before, repr(dims).encode())
        return self._digests.more(found, memory.array("input", index)[corner])
