"""The temperature that makes a variant's probabilities as sure as they are right.

One number a variant, fitted on calibration rows by the likelihood of their labels (Guo et al., "On Calibration of
Modern Neural Networks", 2017).  It hardly changes which rows are surer than others, so fronts hardly move; what it buys
is that a score means the same for every variant, and that their mean is the accuracy to expect without labels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

HELPS = 0.005
"""The least part of the negative log-likelihood that a temperature must save; otherwise it is 1."""
LEAST, MOST = 0.2, 5.0
ROWS = 5_000
"""Rows that a temperature is fitted on: more do not change its second digit."""
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def nll(logs: NDArray[np.float64], labels: NDArray[np.integer], temperature: float) -> float:
    """Mean negative log-likelihood of `labels` [rows] under logits or log-probabilities `logs` [rows, K]."""
    scaled = logs / temperature
    top = scaled.max(axis=1)
    total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float(np.mean(total - scaled[np.arange(len(labels)), labels]))


def fitted(values: NDArray[np.float32], labels: NDArray[np.integer], *, logits: bool) -> float:
    """The temperature of `values` [rows, K] (probabilities, or `logits`), or 1.0 where none helps.

    The likelihood is concave in 1 / T, so a golden-section search finds its one optimum."""
    plain = values[:ROWS].astype(np.float64)
    logs = plain if logits else np.log(np.maximum(plain, 1e-30))
    fine = np.isfinite(logs).all(axis=1)
    logs, known = logs[fine], labels[:ROWS][fine]
    if not len(known):
        return 1.0
    low, high = 1.0 / MOST, 1.0 / LEAST
    while high - low > 1e-3:
        a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if nll(logs, known, 1.0 / a) <= nll(logs, known, 1.0 / b):
            high = b
        else:
            low = a
    found = round(2.0 / (low + high), 3)
    return found if nll(logs, known, found) <= (1.0 - HELPS) * nll(logs, known, 1.0) else 1.0
