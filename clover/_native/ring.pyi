import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def RING_BYTES(max_batch: int) -> int: ...  # noqa: N802

class Ring:
    def __init__(self, buffer: Buffer, max_batch: int, *, create: bool = False) -> None: ...
    @property
    def max_batch(self) -> int: ...
    def submit(self, batch_id: int, slots: NDArray[np.uint32], n: int) -> int: ...
    def reap(
        self, confidence_out: NDArray[np.float32] | None = None
    ) -> tuple[int, int, int, int, int, int] | None: ...
    def take(self, slots_out: NDArray[np.uint32]) -> tuple[int, int] | None: ...
    def complete(
        self,
        batch_id: int,
        status: int,
        n: int,
        start_ns: int,
        end_ns: int,
        cpu_ns: int,
        confidence: NDArray[np.float32] | None = None,
    ) -> bool: ...
    def sleep(self) -> bool: ...
    def wake(self) -> None: ...
