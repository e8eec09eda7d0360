from typing import Any

import numpy as np
from numpy.typing import NDArray

class Scores:
    def __init__(self, kind: str, logits: bool, rounding: float) -> None: ...
    def score(
        self, values: NDArray[Any], into: NDArray[np.float32], slots: NDArray[np.uint32] | None = None
    ) -> int: ...
