"""Twin of `clover._native.route`: what each lane is owed, in floats, added up in the same order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


class Quota:
    def __init__(self, lanes: int) -> None:
        if not 1 <= lanes <= 64:
            raise ValueError("lanes")
        self._shares = [1.0] * lanes
        self.credits = [0.0] * lanes

    def set_shares(self, shares: Iterable[float]) -> None:
        values = [float(share) for share in shares]
        if len(values) != len(self._shares) or any(not math.isfinite(v) or v < 0 for v in values):
            raise ValueError("shares")
        self._shares = values
        self.credits = [credit if share > 0 else 0.0 for credit, share in zip(self.credits, values, strict=True)]

    def choose(self, mask: int) -> int:
        permitted = [lane for lane in range(len(self._shares)) if mask >> lane & 1]
        if not permitted:
            raise ValueError("the mask permits no lane")
        able = [lane for lane in permitted if self._shares[lane] > 0]
        if len(able) < 2:
            return (able or permitted)[0]
        total = 0.0
        for lane in able:
            total += self._shares[lane]
        for lane in able:
            self.credits[lane] += self._shares[lane] / total
        best = able[0]
        for lane in able:
            if self.credits[lane] > self.credits[best] + 1e-9:
                best = lane
        self.credits[best] -= 1.0
        return best

    def choose_many(self, mask: int, k: int, out: Any) -> None:
        if not 0 <= k <= len(out) or not mask & (1 << len(self._shares)) - 1:
            raise ValueError("k, or the mask permits no lane")
        for index in range(k):
            out[index] = self.choose(mask)
