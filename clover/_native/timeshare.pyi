import numpy as np
from numpy.typing import ArrayLike, NDArray

class Outcome:
    @property
    def latency_s(self) -> NDArray[np.float64]: ...
    @property
    def rows(self) -> NDArray[np.int64]: ...
    @property
    def batches(self) -> NDArray[np.int64]: ...
    @property
    def energy_j(self) -> NDArray[np.float64]: ...

def play(
    service_s: ArrayLike,
    lanes: ArrayLike,
    kinds: ArrayLike,
    counts: ArrayLike,
    times_s: ArrayLike,
    *,
    cv: ArrayLike,
    energy_j: ArrayLike,
    largest: ArrayLike,
    shares: ArrayLike | None = None,
    last: ArrayLike | None = None,
    wait_s: ArrayLike | None = None,
    warm_up: int = 0,
    seed: int = 0,
) -> Outcome: ...
