"""Rows of floats in a slab, in plain Python."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Floats:
    """Rows of the array `region`: float32 [slots, *shape], in C order and writable."""

    def __init__(self, region: NDArray[np.float32]) -> None:
        if region.dtype != np.float32:
            raise ValueError("the rows are not float32")
        self._region = region

    def _row(self, slot: int) -> list[float]:
        if not 0 <= slot < len(self._region):
            raise IndexError(f"slot {slot} is outside 0..{len(self._region) - 1}")
        row: list[float] = self._region[slot].ravel().tolist()
        return row

    def put(self, slots: list[int], rows: NDArray[Any]) -> bool:
        if rows.dtype != np.float32 or rows.shape != (len(slots), *self._region.shape[1:]):
            return False
        if not rows.flags.c_contiguous:
            return False
        for slot in slots:
            self._row(slot)
        for at, slot in enumerate(slots):
            self._region[slot] = rows[at]
        return True

    def text(self, slots: list[int]) -> bytes | None:
        numbers = [number for slot in slots for number in self._row(slot)]
        if not all(map(math.isfinite, numbers)):
            return None
        return json.dumps(numbers).encode()

    def argmax(self, slot: int) -> int:
        row = self._row(slot)
        if not row:
            raise ValueError("a row without numbers has no largest")
        for at, number in enumerate(row):
            if math.isnan(number):
                return at
        return row.index(max(row))
