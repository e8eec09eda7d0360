"""Confidence intervals of simulations in replications, and verdicts that stay open if the interval is too wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.99
"""Of the two-sided intervals."""
TOLERANCE = 0.04
"""Of the allowed share: the widest half-width at which a share of late requests whose interval spans it is let pass."""


def keeps(allowed: float, late: float, half_width: float) -> bool | None:
    """Say whether no more than `allowed` of the requests were late; None if the interval is too wide to say."""
    if late - half_width > allowed:
        return False
    return True if late + half_width <= allowed or half_width <= TOLERANCE * allowed else None


def within(limit: float, apart: float, half_width: float) -> bool | None:
    """Say whether model and simulation, so far apart, are within the limit of each other; None if
    the interval spans it."""
    if abs(apart) - half_width > limit:
        return False
    return True if abs(apart) + half_width <= limit else None


def half_width(values: Sequence[float] | Sequence[Floats]) -> Floats:
    """Return the half-width of Student's interval for the mean of independent `values` [replications, ...], at
    `CONFIDENCE`."""
    spread = np.std(values, axis=0, ddof=1) / math.sqrt(len(values))
    return np.asarray(student(len(values) - 1) * spread)


def student(freedom: int) -> float:
    """Return the quantile of Student's law that `CONFIDENCE` asks for, by Cornish and Fisher's expansion (within 0.1 %
    from 9 degrees of freedom on)."""
    z = NormalDist().inv_cdf(0.5 + 0.5 * CONFIDENCE)
    return (
        z
        + (z**3 + z) / (4.0 * freedom)
        + (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / (96.0 * freedom**2)
        + (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / (384.0 * freedom**3)
    )
