"""Counting right answers: intervals, agreement, and what counts as the answer of a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z = 1.959964
"""The normal quantile of a two-sided 95 % interval."""


def wilson(right: int, samples: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share, in percent.  Unlike the textbook interval it stays within 0..100 and
    is honest for few samples.  Raises ValueError without samples."""
    if samples < 1 or not 0 <= right <= samples:
        raise ValueError(f"{right} of {samples} is no share")
    share = right / samples
    middle = share + _Z**2 / (2 * samples)
    spread = _Z * math.sqrt(share * (1 - share) / samples + _Z**2 / (4 * samples**2))
    scale = 100 / (1 + _Z**2 / samples)
    return max(0.0, (middle - spread) * scale), min(100.0, (middle + spread) * scale)


def answers(rows: NDArray[Any] | list[bytes]) -> NDArray[Any]:
    """What each row of a first output says: the argmax of several numbers, otherwise the value itself."""
    if isinstance(rows, list):
        return np.array(rows, dtype=object)
    flat = rows.reshape(len(rows), -1)
    return flat.argmax(axis=1) if flat.shape[1] > 1 and flat.dtype.kind == "f" else flat.copy()


def agreement(mine: NDArray[Any], reference: NDArray[Any]) -> float:
    """The share of rows with the same answer; numbers that are no argmax may differ by rounding (1e-3 relative)."""
    if mine.shape != reference.shape or not len(mine):
        return 0.0
    if mine.dtype.kind == "f":
        same = np.isclose(mine, reference, rtol=1e-3, atol=1e-5, equal_nan=True)
    else:
        same = mine == reference
    return float(np.mean(same.reshape(len(mine), -1).all(axis=1)))
