from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

def evaluate(
    service_s: ArrayLike,
    cv: ArrayLike,
    energy_j: ArrayLike,
    accuracy: ArrayLike,
    counts: ArrayLike,
    rate: float,
    model: Literal["pf", "mf"],
    quantile: float,
) -> tuple[bool, NDArray[np.float64], float, float, float, float]: ...
def tail(
    service_s: ArrayLike,
    cv: ArrayLike,
    energy_j: ArrayLike,
    accuracy: ArrayLike,
    counts: ArrayLike,
    rate: float,
    model: Literal["pf", "mf"],
    quantile: float,
    t: float,
) -> float: ...
