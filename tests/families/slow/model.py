"""An echo that takes a stated time a batch and says which variant answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    seconds = float(variant.parameters["milliseconds"]) / 1e3
    index = int(variant.parameters["index"])

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        time.sleep(seconds)
        return [inputs[0], np.full((len(inputs[0]), 1), index, np.int32)]

    return run
