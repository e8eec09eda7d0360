"""Every output is the input of the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def load(variant: Any, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    return lambda inputs: list(inputs)
