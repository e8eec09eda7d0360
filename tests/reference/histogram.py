"""Twin of `clover._native.histogram`: a dictionary from a bucket's largest value to its count."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Histogram:
    def __init__(self, lowest: int = 1, highest: int = 3_600_000_000_000, digits: int = 2) -> None:
        if lowest < 1 or highest < 2 * lowest or not 1 <= digits <= 4:
            raise ValueError("layout")
        self.lowest, self.highest, self.digits = lowest, highest, digits
        self._unit: int = 2 ** math.floor(math.log2(lowest))
        self._exact: int = 2 ** math.ceil(math.log2(2 * 10**digits))  # this many units are counted one by one
        self._counts: dict[int, int] = {}
        self.sum = 0

    @property
    def _layout(self) -> tuple[int, int, int]:
        return self.lowest, self.highest, self.digits

    def _top(self, value: float) -> int:
        """Return the largest value that shares a bucket with `value`."""
        units = int(min(value, self.highest)) // self._unit
        width = 1
        while units // width >= self._exact:
            width *= 2
        return min((units // width + 1) * width * self._unit - 1, self.highest)

    def record(self, value: int, count: int = 1) -> None:
        if value < 0 or count < 0:
            raise ValueError("negative")
        top = self._top(value)
        self._counts[top] = self._counts.get(top, 0) + count
        self.sum += value * count

    @property
    def count(self) -> int:
        return sum(self._counts.values())

    def quantile(self, q: float) -> int:
        if not 0.0 <= q <= 1.0:
            raise ValueError("q")
        rank, seen = max(1, math.ceil(q * self.count)), 0
        for top in sorted(self._counts):
            seen += self._counts[top]
            if seen >= rank:
                return top
        return 0

    def buckets(self, bounds: Iterable[float]) -> list[int]:
        bounds = list(bounds)
        if any(math.isnan(bound) for bound in bounds) or bounds != sorted(bounds):
            raise ValueError("bounds must ascend")
        limits = [self._top(bound) if bound >= 0 else -1 for bound in bounds]
        return [sum(n for top, n in self._counts.items() if top <= limit) for limit in limits]

    def merge(self, other: Histogram) -> None:
        self._same(other)
        for top, n in other._counts.items():
            self._counts[top] = self._counts.get(top, 0) + n
        self.sum += other.sum

    def subtract(self, other: Histogram) -> None:
        self._same(other)
        if other.sum > self.sum or any(n > self._counts.get(top, 0) for top, n in other._counts.items()):
            raise ValueError("no part of this one")
        for top, n in other._counts.items():
            self._counts[top] -= n
        self.sum -= other.sum

    def _same(self, other: Histogram) -> None:
        if self._layout != other._layout:
            raise ValueError("layouts differ")

    def copy(self) -> Histogram:
        twin = Histogram(*self._layout)
        twin.merge(self)
        return twin

    def reset(self) -> None:
        self._counts.clear()
        self.sum = 0
