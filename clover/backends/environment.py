"""The environment of Clover's child processes: what Python and its libraries need, and no secrets."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

_KEPT = frozenset(
    {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "VIRTUAL_ENV", "TMPDIR", "OPENBLAS_CORETYPE", "TZ"}
    | {"TORCH_HOME", "HF_HOME"}
)
_KEPT_PREFIXES = ("PYTHON", "LC_", "OMP_", "KMP_", "CUDA_", "NVIDIA_", "PYTORCH_", "TRITON_", "ONEDNN_", "ATEN_")
_DROPPED = frozenset({"PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"})
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
"""Parts of the names of variables that hold secrets, whatever they begin with: NVIDIA_API_KEY."""


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child that imports torch.

    Thread pools are off: imported with more than one thread, BLAS and OpenMP start them at once, and a process with
    threads must not fork.  Waiting OpenMP threads sleep instead of spinning, which would cost (and count as) energy.
    What CUDA, its MPS daemon and torch's compilers read stays, but for the choice of GPUs, which each worker is given,
    and for names that sound like a secret.
    ONNX Runtime's telemetry is off, which would run a thread from its import on.  PYTHONPATH is this process's search
    path, so that the child finds the same packages and the user's own modules.
    """
    source = os.environ if environ is None else environ
    kept = {
        name: value
        for name, value in source.items()
        if name in _KEPT or (name.startswith(_KEPT_PREFIXES) and name not in _DROPPED and not _secret(name))
    }
    path = [os.path.abspath(entry) for entry in sys.path if entry == "" or os.path.exists(entry)]
    kept |= {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return kept


def _secret(name: str) -> bool:
    return any(part in name.upper() for part in _SECRETS)
