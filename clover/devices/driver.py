"""Refuses at the start an NVIDIA driver that is too old for the torch that is installed.

Torch brings its own CUDA, which needs a driver of at least the same major version.  Torch's CUDA is read from the file
in which torch says what it was built for: importing torch takes seconds, and the server never does.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

from clover.devices.nvml import Nvml, NvmlError
from clover.errors import DeviceError
from clover.types import Record

_FIRST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580"}
"""The first Linux driver of each major version of CUDA (CUDA Toolkit release notes, minor version compatibility)."""

_OLDER_TORCH = {
    12: "`pip install 'torch<2.11'` (the last that PyPI has for CUDA 12), or `pip install 'torch<2.15' --index-url "
    "https://download.pytorch.org/whl/cu126`"
}
"""Where a torch for an older CUDA is: from 2.11 on PyPI has CUDA 13, the indices of CUDA 12.8 and 12.9 end with 2.11,
and that of 12.6 with 2.14 (pytorch/pytorch#177975, #187130, #190385)."""


class TorchBuild(Record, frozen=True, kw_only=True):
    """What torch says of itself; `cuda` is the version of CUDA that it was built for, "" for none."""

    version: str
    cuda: str


def torch_build(file: Path | None = None) -> TorchBuild | None:
    """Return what the installed torch was built for, without importing it; None if that cannot be read.  `file`: its
    version.py, by default where Python would import it from."""
    if file is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        file = Path(spec.origin).with_name("version.py")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    values: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            values |= {target.id: line.value.value for target in targets if isinstance(target, ast.Name)}
    version = values.get("__version__")
    return TorchBuild(version=version, cuda=values.get("cuda") or "") if isinstance(version, str) else None


def check_driver(session: Nvml, torch: TorchBuild | None) -> None:
    """Raise DeviceError if the driver's CUDA is older than what `torch` needs; blocks."""
    if torch is None or not torch.cuda:
        return
    try:
        number = int(session.call_sync("nvmlSystemGetCudaDriverVersion_v2"))
        driver = str(session.call_sync("nvmlSystemGetDriverVersion"))
    except NvmlError:
        return  # nothing is known that would speak against it
    need, have = int(torch.cuda.partition(".")[0]), number // 1000
    if have >= need:
        return
    least = _FIRST_DRIVER.get(need)
    raise DeviceError(
        f"the NVIDIA driver {driver} supports CUDA {have}.{number % 1000 // 10}, and torch {torch.version} was built "
        f"for CUDA {torch.cuda}: install a driver for CUDA {need}{f' ({least} or newer)' if least else ''}, or "
        f"{older_torch(have)}"
    )


def older_torch(cuda: int) -> str:
    """Return how to install a torch for drivers of this major version of CUDA."""
    return _OLDER_TORCH.get(cuda, f"a torch built for CUDA {cuda}")
