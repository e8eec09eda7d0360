"""The choices a profile makes for the server: backend and threads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from clover.backends.quantised import LEAST_AGREEMENT, QuantisedBackend
from clover.errors import ProfileError
from clover.types import AccuracyMeasurement, LatencyMeasurement

AGREEMENT = 0.999
"""The least share of rows on which a backend gives eager's answer."""

ROUNDED = {QuantisedBackend.name: LEAST_AGREEMENT}
"""Backends that may give another answer to a few rows more, with the least share of rows that must be the same."""

ROUNDED_COST = 0.9
"""What such a backend may cost at most, as a share of the cheapest other: other answers have to pay."""

THREADS_GAIN = 1.15
"""How much faster several threads must be than one."""


def choose_backend(
    accuracy: Sequence[AccuracyMeasurement], latency: Sequence[LatencyMeasurement]
) -> tuple[str, list[str]]:
    """Return the backend of one variant and the reasons why others were refused.

    It is the one with the least energy a row of those that agree with eager, as the geometric mean over the batch sizes
    that all were measured with; one of `ROUNDED` has to cost clearly less.  Raises ProfileError without a measurement
    of eager.
    """
    eager = next((item for item in accuracy if item.backend == "eager"), None)
    if eager is None:
        raise ProfileError("eager was not measured, and every backend is held against it")
    refused: list[str] = []
    fit: list[str] = []
    for item in accuracy:
        if item.agreement < ROUNDED.get(item.backend, AGREEMENT):
            refused.append(
                f"{item.backend} is not used for {item.variant}: it agrees with eager on {item.agreement:.2%} of rows"
            )
        elif not eager.low <= item.value <= eager.high:
            refused.append(
                f"{item.backend} is not used for {item.variant}: accuracy {item.value:.2f} is outside eager's "
                f"{eager.low:.2f} to {eager.high:.2f}"
            )
        else:
            fit.append(item.backend)
    costs = {name: {m.batch: m.energy_j_per_row for m in latency if m.backend == name} for name in fit}
    shared = set.intersection(*(set(cost) for cost in costs.values()))
    if not shared:
        raise ProfileError("the backends were measured with different batch sizes")
    cost = {name: _geometric([costs[name][batch] for batch in shared]) for name in fit}
    chosen = min(fit, key=lambda name: cost[name] / (ROUNDED_COST if name in ROUNDED else 1.0))
    return chosen, refused


def faster(mine: Mapping[int, float], reference: Mapping[int, float], gain: float = THREADS_GAIN) -> bool:
    """Return whether times by batch size beat `reference` by at least `gain` (geometric mean over the common sizes)."""
    shared = set(mine) & set(reference)
    return bool(shared) and _geometric([reference[batch] / mine[batch] for batch in shared]) >= gain


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))
