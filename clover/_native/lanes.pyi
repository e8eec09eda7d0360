from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

class Found(NamedTuple):
    counts: NDArray[np.int64]
    used: NDArray[np.int64]
    value: float

class Solution(NamedTuple):
    found: list[Found]
    feasible: bool
    nearest: Found
    evaluations: int
    proposals: int

class Judged(NamedTuple):
    feasible: bool
    value: float
    shares: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    energy_j: NDArray[np.float64]

class Problem:
    def __init__(
        self,
        *,
        devices: Sequence[int],
        kind_of: ArrayLike,
        partitions: ArrayLike,
        idle_w: ArrayLike,
        spare: ArrayLike,
        slice_of: ArrayLike,
        lane_of: ArrayLike,
        capacity: ArrayLike,
        energy_j: ArrayLike,
        late: ArrayLike,
        family_of: ArrayLike,
        accuracy: ArrayLike,
        quality: ArrayLike,
        rate: ArrayLike,
        peak: ArrayLike,
        wake: ArrayLike,
        floor: ArrayLike,
        miss: ArrayLike,
        limit: ArrayLike,
        price: ArrayLike,
        watt: float,
        least: float = 0.0,
        running: ArrayLike | None = None,
        switching: ArrayLike | None = None,
    ) -> None: ...
    def judge(self, counts: ArrayLike, used: ArrayLike) -> Judged: ...
    def judge_many(self, counts: ArrayLike, used: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]: ...

def solve(
    problem: Problem,
    seed: int,
    evaluations: int,
    starts: Sequence[tuple[Any, Any]],
    restarts: int = 1,
    keep: int = 16,
) -> Solution: ...
