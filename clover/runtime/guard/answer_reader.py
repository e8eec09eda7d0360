"""What a variant says of a row, in the least that can be compared: the class of most outputs, else the value itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native.floats import Floats
from clover.confidence import agreement, answers
from clover.errors import ModelFailed
from clover.runtime.memory.rows import Memory, read_rows
from clover.types import FamilySpec

Said = int | NDArray[Any]
"""A class, or an array [1, ...] as `clover.confidence.answers` gives it."""


class Sayings:
    """Reads what lies in the first output of `memory`."""

    __slots__ = ("_classes", "_floats", "_memory", "_spec")

    def __init__(self, memory: Memory, spec: FamilySpec) -> None:
        self._memory = memory
        self._spec = spec
        tensor = spec.outputs[0]
        self._classes = False
        self._floats: Floats | None = None
        if tensor.datatype != "BYTES" and not tensor.variable:
            region = memory.array("output", 0)
            self._classes = region.dtype.kind == "f" and region[0].size > 1
            if self._classes and region.dtype == np.float32:
                self._floats = Floats(region)

    def of(self, slot: int) -> Said | None:
        """Return what is said of the row in `slot`; None where the worker wrote what its declaration does not allow."""
        if self._floats is not None:
            return self._floats.argmax(slot)
        if self._classes:  # nearly always, and then on every row of some kinds
            return int(self._memory.array("output", 0)[slot].argmax())
        try:
            return answers(read_rows(self._memory, self._spec, 0, [slot])).copy()
        except ModelFailed:
            return None

    def score(self, slot: int) -> float:
        """Return how sure the answer in `slot` is."""
        return float(self._memory.score[slot])


def size_of(said: NDArray[Any]) -> int:
    """Return bytes that a value takes."""
    return sum(map(len, said.ravel())) if said.dtype == object else said.nbytes


def same(one: Said, other: Said) -> bool:
    """Return whether two variants say the same of a row; numbers may differ by rounding."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return agreement(one, other) == 1.0
