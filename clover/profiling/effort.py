"""How much a measurement samples: the quick one of a first start, and the full one of the command."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CompileLimits:
    """How long compiling may take: when `cpu_s` of CPU time are used nothing more is started, and after `clock_s`
    seconds what is not done is given up.

    A profile is kept, so what it lacks because the machine was busy when it was made would be lacking for good.
    Therefore work is what is limited, and the clock only far behind it.
    """

    cpu_s: float = math.inf
    clock_s: float = math.inf


NO_LIMITS = CompileLimits()


@dataclass(frozen=True)
class Effort:
    """How much to sample.

    Each batch size is measured at least `samples` times and `least_s` seconds, at most `most_s`; an accuracy pass takes
    at most `score_s`, BASE about `base_s`.  Everything is measured again in `rounds` rounds, each cell for `1 / rounds`
    of its time.
    """

    quick: bool
    samples: int
    least_s: float
    most_s: float
    score_s: float
    base_s: float
    rounds: int
    compiling: CompileLimits = NO_LIMITS

    def batches(self, max_batch: int) -> tuple[int, ...]:
        """Return the batch sizes to measure; quick: 1, 4 and the largest, otherwise powers of two and the largest."""
        sizes = {1, 4} if self.quick else {1 << power for power in range(max_batch.bit_length())}
        return tuple(sorted({size for size in sizes if size < max_batch} | {max_batch}))


QUICK = Effort(
    quick=True,
    samples=30,
    least_s=0.1,
    most_s=1.0,
    score_s=4.0,
    base_s=1.6,
    rounds=3,
    compiling=CompileLimits(cpu_s=50.0, clock_s=300.0),
)
FULL = Effort(quick=False, samples=200, least_s=0.5, most_s=5.0, score_s=120.0, base_s=5.0, rounds=5)
