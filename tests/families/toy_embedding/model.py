"""Embeds texts by their letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LETTERS = b"aeio"


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        counts = [[text.count(letter) for letter in LETTERS] for text in inputs[0].reshape(-1)]
        return [np.array(counts, np.float32)]

    return run
