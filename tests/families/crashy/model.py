"""A model that fails in the ways a model can, when a row asks for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

ECHO, RAISE, KILL, EXIT, HANG, MISSHAPE = range(6)


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        asked = set(inputs[0].ravel().tolist())
        if KILL in asked:
            os.kill(os.getpid(), signal.SIGKILL)
        if EXIT in asked:
            os._exit(3)
        if RAISE in asked:
            raise ValueError("asked to raise")
        if HANG in asked:
            time.sleep(60)
        if MISSHAPE in asked:
            return [inputs[0].repeat(2, axis=1)]
        return [inputs[0]]

    return run


def refuse(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    raise RuntimeError("asked not to load")
