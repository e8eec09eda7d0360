"""The emulated `nvidia-cuda-mps-control` as a program on the PATH, as the real one is found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clover.devices import mps_emulated
from clover.devices.mps_control import MpsControl

NAME = "nvidia-cuda-mps-control"


def install(folder: Path, patch: pytest.MonkeyPatch, *, sms: int = 108, chunk: int = 4, script: str = "") -> None:
    """Put the program on the PATH of this process, for a board of so many multiprocessors; `script` runs instead."""
    program = folder / "bin" / NAME
    # As a module: it is compiled once, and not by each of the many processes.
    module = Path(mps_emulated.__file__)
    where = f"import sys; sys.path.append('{module.parent}')"
    code = f"{where}; from {module.stem} import main; sys.exit(main(sys.argv[1:]))"
    command = script or f'exec {sys.executable} -I -S -c "{code}"'
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\n{command} "$@"\n')
    program.chmod(0o755)
    patch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    patch.setenv(mps_emulated.SMS, str(sms))
    patch.setenv(mps_emulated.CHUNK, str(chunk))
    patch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(folder / "found"))


def control(folder: Path, name: str = "pipe", **options: float) -> MpsControl:
    return MpsControl(folder / name, folder / "log", **options)  # type: ignore[arg-type]
