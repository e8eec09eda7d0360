"""Page-locked memory for workers on a GPU.

CUDA copies to a device straight out of pageable memory only by way of a buffer of its own; registered with the driver,
the same memory is read by the device itself, and a copy may overlap with work.  So a worker whose model lives on a GPU
registers the slab and the arrays scattered rows are gathered into: a backend that says `tensor.to(device,
non_blocking=True)` for the arrays it is given then has its rows copied from where the server wrote them.  Backends need
to know nothing of this; if it does not work they are slower, not wrong.

Registering makes the whole slab resident in memory.  It ends with the process.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.runtime.memory.slab import Slab
from clover.worker.batches import Batches

_log = logging.getLogger("clover.worker")


def pin(slab: Slab, batches: Batches, max_batch: int) -> int:
    """Lock the pages that rows pass through, if the loaded model is on a GPU; return the bytes registered."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        _log.debug("nothing was loaded on a GPU: no memory is page-locked")
        return 0
    whole = np.frombuffer(slab.memory, np.uint8)
    return register(torch.cuda.cudart(), (whole, *batches.stage(max_batch)))


def register(cudart: Any, arrays: Iterable[NDArray[Any]]) -> int:
    """Lock the pages of `arrays`, which must live as long as the process; return the bytes registered.  Arrays that
    the driver refuses stay as they are, with one warning."""
    registered = 0
    refused: set[str] = set()
    for array in arrays:
        status = cudart.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
        if int(status):
            refused.add(str(status))
        else:
            registered += array.nbytes
    if refused:
        _log.warning(
            "CUDA does not page-lock memory here (%s): copies to the GPU go through a buffer and are slower",
            ", ".join(sorted(refused)),
        )
    return registered
