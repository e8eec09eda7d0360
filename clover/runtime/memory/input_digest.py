"""Digests of the inputs of rows in the slab: equal inputs have equal digests, different ones nearly always differ."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from clover._native.inputs import Digests
from clover.runtime.memory.rows import Memory
from clover.types import FamilySpec


class InputDigests:
    """Computes digests of the inputs in `memory`, with a secret key of this process."""

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
