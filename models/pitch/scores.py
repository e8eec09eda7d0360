"""How right a pitch is, and how sure a model is of it; NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CENTS = 50.0
"""Half a semitone: the bound that pitch detectors are usually compared at."""


def within_50_cents(outputs: dict[str, NDArray[Any]], labels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which answers are within 50 cents of their labels (hertz)."""
    found = np.maximum(outputs["hertz"].reshape(len(labels)).astype(np.float64), 1e-9)
    near: NDArray[np.bool_] = np.abs(1200.0 * np.log2(found / labels)) <= CENTS
    return near


def stated(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the models themselves say of their answers [rows, 1], as scores [rows]."""
    return confidence[:, 0]
