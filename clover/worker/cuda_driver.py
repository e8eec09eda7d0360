"""The CUDA driver's own calls, for what must not go through CUDA's runtime, which torch shares.

The runtime remembers the error of a call that was refused, and the next launch of torch reports it as its own; a call
of the driver returns its code and leaves nothing behind.  And the driver can be started without torch, so before the
model's code is loaded.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

LIBRARY = "libcuda.so.1"

SUCCESS = 0


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
        found = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(found)) == SUCCESS and found.value:
            return f"{found.value.decode()} ({code})"
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
