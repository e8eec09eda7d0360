"""A number for the input of a row in the slab: equal inputs, equal number; others, another one nearly always."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from clover._native.inputs import Digests
from clover.runtime.rows import Memory
from clover.types import FamilySpec


class Inputs:
    """Digests of the inputs in `memory`, by a key of this process that nobody is told."""

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
        """The number of the row in `slot`."""
        found = self._digests.row(slot) if self._some else 0
        for index, text in self._others:
            try:
                found = self._digests.more(found, self._row(slot, index, text))
            except ValueError:  # a worker wrote over it: all such rows count as one
                return 0
        return found

    def _row(self, slot: int, index: int, text: bool) -> bytes:
        """The row of an input whose rows differ in size, with its shape, in bytes."""
        dims = self._memory.dims("input", index, slot)
        head = repr(dims).encode()
        if text:
            return head + self._memory.get_bytes("input", index, slot)
        corner: tuple[Any, ...] = (slot, *map(slice, dims))
        row: bytes = self._memory.array("input", index)[corner].tobytes()
        return head + row
