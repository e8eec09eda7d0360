"""Whom an error of CUDA is held against."""

from __future__ import annotations

import pytest

from clover.backends import cuda_errors
from clover.errors import DeviceLost, WorkerError


class AcceleratorError(RuntimeError):
    """Torch's, of which only the name and the number matter."""

    def __init__(self, text: str, error_code: int = 0) -> None:
        super().__init__(text)
        if error_code:
            self.error_code = error_code


@pytest.mark.parametrize("code", [46, 100, 101, 214, 220, 226, 802, 807, 999])
def test_the_device_takes_the_blame_for_its_errors(code: int) -> None:
    found = cuda_errors.ended(AcceleratorError("whatever", code))
    assert isinstance(found, DeviceLost)
    assert f"CUDA error {code}: whatever" in str(found)


@pytest.mark.parametrize("code", [1, 700, 702, 710, 716, 719])
def test_rows_take_the_blame_for_what_kernels_do(code: int) -> None:
    found = cuda_errors.ended(AcceleratorError("uncorrectable ECC error", code))  # the number counts, not the text
    assert isinstance(found, WorkerError)
    assert not isinstance(found, DeviceLost)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", True),
        ("CUDA error: no CUDA-capable device is detected", True),
        ("CUDA error: unknown error", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: unspecified launch failure", False),
        ("unknown error in my own module", False),
    ],
)
def test_a_torch_without_numbers_is_read_by_its_words(text: str, device: bool) -> None:
    assert cuda_errors.of_the_device(AcceleratorError(text)) is device
