"""Chooses for the server, from what was measured: backend and threads.

>>> in_order(["eager", "onnxruntime", "openvino", "openvino-bf16"], eager_s=0.02)
['openvino-bf16', 'openvino', 'onnxruntime']
>>> in_order(["eager", "onnxruntime", "openvino", "openvino-bf16"], eager_s=0.0001)
['onnxruntime', 'openvino-bf16', 'openvino']
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from clover.errors import ProfileError
from clover.types import AccuracyMeasurement, LatencyMeasurement

AGREEMENT = 0.999
"""The least share of rows on which a backend gives eager's answer."""

ROUNDED = ("openvino-bf16", "openvino-int8", "onnxruntime-int8", "eager-bf16")
"""Backends in fewer bits, which may give another answer to a few rows more."""

ROUNDED_AGREEMENT = 0.995
"""The least share of rows on which such a backend gives eager's answer, where that is all that is known."""

LABELLED_AGREEMENT = 0.99
"""The same where labels say how many of the answers are right.  Of 1,000 photographs EfficientNet-Lite0 named 0.9 %
otherwise in bfloat16, and one more of them right (measured)."""

ROUNDED_COST = 0.9
"""What such a backend may cost at most, as a share of the cheapest other: other answers have to pay."""

BEHIND = 1.3
"""A backend is not measured to the end if its rows cost this many times those of the cheapest so far."""

LIGHT_S = 1e-3
"""CPU seconds a row in eager below which ONNX Runtime is tried first: calling it costs the least."""

THREADS_GAIN = 1.15
"""How much faster several threads must be than one."""


def in_order(names: Iterable[str], eager_s: float) -> list[str]:
    """Return the backends other than eager, the most promising first, for a variant that takes `eager_s` CPU seconds a
    row in eager.  The earlier a cheap backend is measured, the sooner others are behind.  Other names keep their order
    at the end.  `eager-bf16` is left out for a light variant, whose time is not in its products."""
    first = ["onnxruntime-int8", "onnxruntime"]
    then = ["openvino-bf16", "openvino-int8", "openvino"]
    order = [*first, *then] if eager_s < LIGHT_S else [*then, *first, "eager-bf16"]
    there = [name for name in names if name != "eager" and not (name == "eager-bf16" and eager_s < LIGHT_S)]
    return sorted(there, key=lambda name: order.index(name) if name in order else len(order))


def times_behind(cost: Mapping[int, float], best: Mapping[int, float]) -> float:
    """Return how many times `best` a row costs at the batch size that is the kindest to it; both by batch size."""
    return min((cost[batch] / best[batch] for batch in set(cost) & set(best) if best[batch] > 0), default=0.0)


def refusal(item: AccuracyMeasurement, eager: AccuracyMeasurement) -> str:
    """Return why a backend with this accuracy may not stand for eager; "" if it may."""
    rounded = LABELLED_AGREEMENT if item.method == "measured" else ROUNDED_AGREEMENT
    if item.agreement < (rounded if item.backend in ROUNDED else AGREEMENT):
        return f"it agrees with eager on {item.agreement:.2%} of rows"
    if not eager.low <= item.value <= eager.high:
        return f"its accuracy of {item.value:.2f} is outside eager's {eager.low:.2f} to {eager.high:.2f}"
    return ""


def choose_backend(
    accuracy: Sequence[AccuracyMeasurement], latency: Sequence[LatencyMeasurement]
) -> tuple[str, dict[str, str]]:
    """Return the backend of one variant, and by name the reasons why others were not chosen.  Of those that agree with
    eager it is the one with the least energy a row, as the geometric mean over the batch sizes that all were measured
    with; a backend of `ROUNDED` has to cost clearly less.  Raises ProfileError without a measurement of eager."""
    eager = next((item for item in accuracy if item.backend == "eager"), None)
    if eager is None:
        raise ProfileError("eager was not measured, and every backend is held against it")
    refused = {item.backend: why for item in accuracy if (why := refusal(item, eager))}
    fit = [item.backend for item in accuracy if item.backend not in refused]
    costs = {name: {m.batch: m.energy_j_per_row for m in latency if m.backend == name} for name in fit}
    shared = set.intersection(*(set(cost) for cost in costs.values()))
    if not shared:
        raise ProfileError("the backends were measured with different batch sizes")
    cost = {name: _geometric([costs[name][batch] for batch in shared]) for name in fit}
    chosen = min(fit, key=lambda name: cost[name] / (ROUNDED_COST if name in ROUNDED else 1.0))
    dearer = {name: f"a row takes {cost[name] / cost[chosen]:.2f} x the energy" for name in fit if name != chosen}
    return chosen, refused | dearer


def times(cost: Mapping[int, float], best: Mapping[int, float]) -> float:
    """Return how many times `best` a row costs: the geometric mean over the batch sizes of both."""
    return _geometric([cost[batch] / best[batch] for batch in set(cost) & set(best)])


def faster(mine: Mapping[int, float], reference: Mapping[int, float], gain: float = THREADS_GAIN) -> bool:
    """Return whether times by batch size beat `reference` by at least `gain` (geometric mean over the common sizes)."""
    shared = set(mine) & set(reference)
    return bool(shared) and times(reference, mine) >= gain


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))
