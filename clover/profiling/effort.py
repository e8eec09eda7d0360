"""How long a measurement looks: the quick one of a first start, and the full one of the command."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How long to look: the batch sizes, samples and seconds a cell, rows and seconds an accuracy pass, and in how many
    rounds everything is looked at again, each cell a `1 / rounds` of its time a round."""

    quick: bool
    samples: int
    least_s: float
    most_s: float
    score_s: float
    base_s: float
    compile_s: float
    rounds: int

    def batches(self, max_batch: int) -> tuple[int, ...]:
        """Return the batch sizes to measure; quick: 1, 4 and the largest, otherwise powers of two and the largest."""
        sizes = {1, 4} if self.quick else {1 << power for power in range(max_batch.bit_length())}
        return tuple(sorted({size for size in sizes if size < max_batch} | {max_batch}))


QUICK = Effort(quick=True, samples=30, least_s=0.1, most_s=1.0, score_s=4.0, base_s=1.6, compile_s=25.0, rounds=3)
FULL = Effort(
    quick=False, samples=200, least_s=0.5, most_s=5.0, score_s=120.0, base_s=5.0, compile_s=math.inf, rounds=5
)
