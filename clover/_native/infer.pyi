from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def burden(text: bytes, depth: int, weight: int) -> int: ...

class Plain:
    def __init__(self, name: str, shape: Sequence[int], out: NDArray[np.float32]) -> None: ...
    def parse(self, body: bytes) -> tuple[str, int] | None: ...
