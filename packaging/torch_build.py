"""Says which build of torch setup.sh installs: PyPI's for x86-64 is made for CUDA and brings 3 GB, one for CPUs 0.2 GB.

    python packaging/torch_build.py REQUIREMENT...

prints those of the requirements that pip shall take from PyTorch's index of CPU builds, one a line, and nothing if pip
shall take all from where it takes others.  The reason goes to standard error.  In this order:

1. torch is installed already: it stays, and a CPU build has what is built with it from the same index.
2. The variable TORCH says `cpu` or `cuda`.
3. A driver of NVIDIA's is loaded: pip's own choice, which is a build for CUDA.
4. pip is configured with an index, a folder of wheels or constraints: its user has chosen.
5. Otherwise there is no GPU to use: a build for CPUs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BUILT_TOGETHER = ("torch", "torchvision", "torchaudio")  # each fails to import beside another's build
# Of the kernel's driver, and of Windows' below WSL.
DRIVERS = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
CHOOSES = re.compile(r"^[^=\s]*\.(index-url|extra-index-url|find-links|no-index|constraint)=", re.MULTILINE)


def installed() -> str:
    """Return the version of torch in this environment, empty if there is none."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def pip_settings() -> str:
    """Return what files and variables configure pip with, a line for each setting."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def decide(wish: str, has: str, root: Path, settings: Callable[[], str]) -> tuple[bool, str]:
    """Return whether torch shall be a build for CPUs from PyTorch's index, and why; ValueError for an unknown wish.

    `wish` is the variable TORCH, `has` the version that is installed, `root` the root of the file system.
    """
    if wish not in ("", "cpu", "cuda"):
        raise ValueError(f"TORCH={wish!r} is neither cpu nor cuda")
    if has:
        return has.endswith("+cpu") and not CHOOSES.search(settings()), f"torch {has} is installed and stays"
    if wish == "cpu":
        return True, "a CPU build of torch (0.2 GB), as TORCH=cpu asks for"
    if wish == "cuda":
        return False, "torch from where pip finds it (3 GB if that is PyPI), as TORCH=cuda asks for"
    if driver := next((path for path in DRIVERS if (root / path).exists()), ""):
        return False, f"torch for CUDA (3 GB from PyPI), since /{driver} shows a GPU; TORCH=cpu takes a CPU build"
    if found := CHOOSES.search(settings()):
        return False, (
            f"torch from where pip is configured to find it ({found[1]}), which may be a build for CUDA of 3 GB; "
            "TORCH=cpu takes a CPU build"
        )
    return True, "a CPU build of torch (0.2 GB), since there is no NVIDIA GPU; TORCH=cuda takes PyPI's for CUDA (3 GB)"


def main(requirements: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the requirements that need PyTorch's index and say why; return the exit status."""
    try:
        cpu, why = decide(environ.get("TORCH", ""), installed(), Path("/"), pip_settings)
    except ValueError as error:
        print(f"setup.sh: {error}", file=sys.stderr)
        return 2
    print(f"set-up: {why}", file=sys.stderr)
    if cpu:
        for requirement in requirements:
            if re.split(r"[^\w.-]", requirement, maxsplit=1)[0] in BUILT_TOGETHER:
                print(requirement)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
