"""Answers in the smallest form that can be compared: the class if outputs are scores of classes, else the value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native.floats import Floats
from clover.confidence import agreement, answers
from clover.errors import ModelFailed
from clover.runtime.memory.rows import Memory, read_rows
from clover.types import FamilySpec

RowAnswer = int | NDArray[Any]
"""A class, or an array [1, ...] as `clover.confidence.answers` gives it."""


class AnswerReader:
    """Reads answers from the first output in `memory`."""

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

    def read(self, slot: int) -> RowAnswer | None:
        """Return the answer in `slot`; None if the worker wrote an output that its declaration does not allow."""
        if self._floats is not None:
            return self._floats.argmax(slot)
        if self._classes:
            return int(self._memory.array("output", 0)[slot].argmax())
        try:
            return answers(read_rows(self._memory, self._spec, 0, [slot])).copy()
        except ModelFailed:
            return None

    def score(self, slot: int) -> float:
        """Return the confidence score of the answer in `slot`."""
        return float(self._memory.score[slot])


def answer_bytes(answer: NDArray[Any]) -> int:
    """Return the bytes that an answer takes."""
    return sum(map(len, answer.ravel())) if answer.dtype == object else answer.nbytes


def same_answer(one: RowAnswer, other: RowAnswer) -> bool:
    """Return whether two answers are the same; numbers may differ by rounding."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one == other
    return agreement(one, other) == 1.0
