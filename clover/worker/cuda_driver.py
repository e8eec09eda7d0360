"""Calls of the CUDA driver that must not go through CUDA's runtime, which torch uses too: starting CUDA, and
page-locking memory for workers on a GPU.

If the runtime refuses a call, it remembers the error, and the next launch of torch reports it.  A call of the driver
returns its code and leaves nothing behind.  The driver can also be started without torch, before the model's code is
loaded.

CUDA copies pageable memory to a device through a buffer of its own.  Once the memory is registered with the driver, the
device reads it directly, and a copy may overlap with work.  So a worker whose model lives on a GPU registers the inputs
of the slab, and gathers scattered rows into page-locked arrays of torch.  If the backend calls
`tensor.to(device, non_blocking=True)`, rows are copied from where the server wrote them.  Answers come back through
buffers of the backend, so outputs need no registration.

If the driver refuses to register memory (sandboxes, limits on locked memory), consecutive rows are gathered into
torch's arrays too.  If torch gets no page-locked memory either, rows are copied from pageable memory: slower, not
wrong.

Registering makes the inputs of the slab resident in memory.  It ends with the process.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clover.worker.batches import Batches

LIBRARY = "libcuda.so.1"

SUCCESS = 0

_log = logging.getLogger("clover.worker")


class DriverCalls(Protocol):
    """The calls that are used; each returns a CUresult, 0 for success."""

    def start(self) -> int:
        """Start the driver in this process, for the devices in CUDA_VISIBLE_DEVICES."""

    def register(self, address: int, size: int) -> int:
        """Lock the pages of `size` bytes at `address` for the context of this thread."""

    def name(self, code: int) -> str:
        """Return the name of a CUresult."""


class CudaDriver:
    """`libcuda.so.1`, through ctypes.  Raises OSError if it is not there."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.cuInit.argtypes = [ctypes.c_uint]
        self._library.cuMemHostRegister_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
        self._library.cuGetErrorName.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def start(self) -> int:
        """See `DriverCalls.start`."""
        return int(self._library.cuInit(0))

    def register(self, address: int, size: int) -> int:
        """See `DriverCalls.register`."""
        return int(self._library.cuMemHostRegister_v2(address, size, 0))

    def name(self, code: int) -> str:
        """See `DriverCalls.name`."""
        text = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(text)) == SUCCESS and text.value:
            return f"{text.value.decode()} ({code})"
        return f"CUDA error {code}"


def start() -> str:
    """Start the driver for the devices in CUDA_VISIBLE_DEVICES; return "" or why it did not start.

    The driver may run the setuid program nvidia-modprobe, to load a module or to make device nodes, so this comes
    before the process gives up new privileges."""
    try:
        driver = CudaDriver()
    except OSError as error:
        return str(error)
    code = driver.start()
    return "" if code == SUCCESS else driver.name(code)


def pin(sides: Sequence[Batches], max_batch: int, driver: Callable[[], DriverCalls] = CudaDriver) -> int:
    """Lock the pages that rows pass through, if the loaded model is on a GPU; return the bytes that are locked, those
    of torch's arrays apart.  `sides` gather from one slab, each into arrays of its own."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        _log.debug("nothing was loaded on a GPU: no memory is page-locked")
        return 0
    try:
        registered, refused = register(driver(), sides[0].direct_inputs())
    except (OSError, AttributeError) as error:  # no such library, or one that is too old for the call
        registered, refused = 0, {str(error)}
    for side in sides:
        side.stage(max_batch, _torch_array(torch), always=bool(refused))
    if refused:
        _log.warning(
            "CUDA does not page-lock the memory of requests here (%s): rows go to the GPU by way of torch's buffers, "
            "which is slower",
            ", ".join(sorted(refused)),
        )
    return registered


def register(driver: DriverCalls, arrays: Iterable[NDArray[Any]]) -> tuple[int, set[str]]:
    """Lock the pages of `arrays`, which must live as long as the process; return the bytes registered, and the names
    of the errors of those that were refused, which stay as they are."""
    registered = 0
    refused: set[str] = set()
    for array in arrays:
        code = driver.register(array.ctypes.data, array.nbytes)
        if code == SUCCESS:
            registered += array.nbytes
        else:
            refused.add(driver.name(code))
    return registered, refused


def _torch_array(torch: Any) -> Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]:
    """Return how to make an array of zeros in page-locked memory of torch's; pageable if torch gets none."""

    def made(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            room: NDArray[Any] = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            _log.debug("torch page-locks no memory either: %s", error)
            return np.zeros(shape, dtype)
        return room.view(dtype).reshape(shape)

    return made
