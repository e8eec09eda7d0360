"""The driver beside the torch that is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from clover.devices.driver import TorchBuild, check_driver, older_torch, torch_build
from clover.devices.nvml import Nvml
from clover.errors import DeviceError

VERSION = """from typing import Optional

__all__ = ['__version__', 'cuda']
__version__ = '2.15.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
"""


def session(cuda: int, driver: str = "535.216.01") -> Nvml:
    def version() -> int:
        if not cuda:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return cuda

    library = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetCudaDriverVersion_v2=version,
        nvmlSystemGetDriverVersion=lambda: driver,
    )
    return Nvml(library)


def test_what_torch_was_built_for_is_read_and_not_imported(tmp_path: Path) -> None:
    file = tmp_path / "version.py"
    file.write_text(VERSION)
    assert torch_build(file) == TorchBuild(version="2.15.0+cu130", cuda="13.0")
    file.write_text(VERSION.replace("'13.0'", "None"))
    assert torch_build(file) == TorchBuild(version="2.15.0+cu130", cuda="")
    for broken in ("def", "x = 1"):
        file.write_text(broken)
        assert torch_build(file) is None
    assert torch_build(tmp_path / "none.py") is None
    known = "torch" in sys.modules
    assert torch_build() is not None
    assert ("torch" in sys.modules) is known


ENOUGH = [("13.0", 13000), ("12.8", 12020), ("11.8", 13000), ("", 11000), ("13.0", 0)]


@pytest.mark.parametrize(("torch", "cuda"), ENOUGH)
def test_a_driver_of_the_same_major_version_or_a_later_one_will_do(torch: str, cuda: int) -> None:
    opened = session(cuda)
    check_driver(opened, TorchBuild(version="2", cuda=torch))
    check_driver(opened, None)
    opened.close()


def test_an_older_driver_is_refused_with_both_versions_and_what_to_install() -> None:
    opened = session(12020)
    with pytest.raises(DeviceError) as caught:
        check_driver(opened, TorchBuild(version="2.15.0+cu130", cuda="13.0"))
    opened.close()
    said = str(caught.value)
    for words in ("535.216.01 supports CUDA 12.2", "2.15.0+cu130 was built for CUDA 13.0", "580 or newer"):
        assert words in said
    assert "'torch<2.11'" in said, "an index cu12x for each does not exist"
    assert "whl/cu126" in said
    assert older_torch(11) == "a torch built for CUDA 11"
