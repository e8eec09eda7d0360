"""Errors of CUDA: what ended a worker, its GPU or the rows it ran.

A worker whose GPU failed takes nothing with it: its rows run elsewhere and nothing is held against them.  After an
error that a kernel makes (an address out of bounds, an assertion) its rows are suspects, for the same rows may do it
again.  Recent versions of torch give the number of the error (`AcceleratorError.error_code`), older ones CUDA's words.
"""

from __future__ import annotations

from clover.errors import DeviceLost, WorkerError

OF_THE_DEVICE: dict[int, str] = {
    46: "busy or unavailable",
    100: "no cuda-capable device",
    101: "invalid device ordinal",
    214: "uncorrectable ecc error",
    220: "uncorrectable nvlink error",
    226: "a hardware error",
    802: "system not yet initialized",
    803: "unsupported display driver / cuda driver combination",
    805: "mps client failed to connect",
    806: "remote procedural call between the mps server",
    807: "mps server is not ready",
    808: "required to support mps client",
    809: "required to support device connections",
    810: "mps client has been terminated",
    999: "unknown error",
}
"""Numbers of `cudaError_t` that the device or its driver makes, with words of their messages, in lower case
(driver_types.h and cudaGetErrorString).  Not among them: 700 (illegal address), 702 (a kernel that ran too long), 710
(assertion), 714 to 718 and 719 (launch failure), which kernels make."""


def fatal(error: RuntimeError) -> bool:
    """Return whether CUDA can do nothing more in this process after `error`."""
    name, text = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or "_STATUS_ALLOC_FAILED" in text:  # cuBLAS and cuDNN take memory of their own
        return False
    return name == "AcceleratorError" or "CUDA error" in text or "_STATUS_EXECUTION_FAILED" in text


def code_of(error: BaseException) -> int:
    """Return CUDA's number of `error`; 0 if torch does not say."""
    code = getattr(error, "error_code", 0)
    return code if isinstance(code, int) else 0


def of_the_device(error: BaseException) -> bool:
    """Return whether the device made `error`, rather than what ran on it."""
    code = code_of(error)
    if code:
        return code in OF_THE_DEVICE
    text = str(error).lower()
    return "cuda error" in text and any(words in text for words in OF_THE_DEVICE.values())


def ended(error: BaseException) -> WorkerError | DeviceLost:
    """Return what ends a worker after `error`, which left its CUDA context unusable: DeviceLost if the GPU is to
    blame."""
    code = code_of(error)
    text = f"{f'CUDA error {code}: ' if code else ''}{error}"
    if of_the_device(error):
        return DeviceLost(f"the GPU failed: {text}")
    return WorkerError(f"the GPU failed, and this worker with it: {text}")
