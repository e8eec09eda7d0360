from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

class Solution(NamedTuple):
    counts: NDArray[np.int64]
    f: float
    feasible: bool
    evaluations: int
    proposals: int
    accepted: int
    trace: NDArray[np.float64]

class Problem:
    def __init__(
        self,
        n_gpus: int,
        rate: float,
        service_s: ArrayLike,
        cv: ArrayLike,
        energy_j: ArrayLike,
        accuracy: ArrayLike,
        fits: ArrayLike,
        slice_of: ArrayLike,
        partitions: ArrayLike,
        model: Literal["pf", "mf"],
        sla_s: float,
        quantile: float,
        lam: float,
        intensity: float,
        reference_intensity: float,
        idle_w: float,
        base_energy_j: float,
        base_accuracy: float,
        *,
        running: ArrayLike | None = None,
        switching: ArrayLike | None = None,
        accuracy_floor: float = 0.0,
        utilisation_limit: float = 1.0,
    ) -> None: ...
    @property
    def n_gpus(self) -> int: ...
    @property
    def closed_form(self) -> bool: ...
    def tiles(self, counts: ArrayLike) -> bool: ...
    def score(self, counts: ArrayLike) -> tuple[bool, float]: ...

def feasible(partitions: ArrayLike, slices: ArrayLike, n_gpus: int) -> bool: ...
def decompose(partitions: ArrayLike, slices: ArrayLike, n_gpus: int) -> NDArray[np.int64] | None: ...
def solve(
    problem: Problem,
    seed: int,
    time_limit_s: float,
    evaluations: int = 0,
    start: ArrayLike | None = None,
    restarts: int = 1,
    *,
    cpu_time: bool = False,
) -> Solution: ...
