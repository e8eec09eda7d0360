"""How much a measurement samples: the quick one of a first start, and the full one of the command."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much to sample.

    Each batch size is measured at least `samples` times and `least_s` seconds, at most `most_s`; an accuracy pass takes
    at most `score_s`, BASE about `base_s`, and no compilation is started after `compile_s`.  Everything is measured
    again in `rounds` rounds, each cell for `1 / rounds` of its time.
    """

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
