"""What the page shows of the past: samples in two rings, a fine one of the last hour and a coarse one of the last day,
and the quantiles of latency over the last seconds.  Memory only; the ledger is what survives a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from clover._native.histogram import Histogram

FINE_S, FINE = 10.0, 360
COARSE_S, COARSE = 120.0, 720
LATENCY_S = 10.0
"""Seconds that p50, p95 and p99 are of."""
QUANTILES = (0.5, 0.95, 0.99)

Sample = dict[str, float | None]
"""Figures by name; those of a model are called NAME.FIGURE.  `at`: Unix seconds."""


class SampleHistory:
    """The samples of the last hour every `FINE_S` seconds, and of the last day every `COARSE_S`."""

    def __init__(self) -> None:
        self._fine: deque[Sample] = deque(maxlen=FINE)
        self._coarse: deque[Sample] = deque(maxlen=COARSE)

    def due(self, at_s: float) -> bool:
        """Return whether a sample of that time would be kept; also if the clock was set back."""
        return not self._fine or not 0.0 <= at_s - (self._fine[-1]["at"] or 0.0) < FINE_S - 0.5

    def add(self, sample: Sample) -> None:
        """Keep a sample in the fine ring, and in the coarse ring every `COARSE_S`."""
        at_s = sample["at"] or 0.0
        if self._fine and at_s < (self._fine[-1]["at"] or 0.0):  # the clock was set back: x would run backwards
            self._fine.clear()
            self._coarse.clear()
        self._fine.append(sample)
        if not self._coarse or at_s - (self._coarse[-1]["at"] or 0.0) >= COARSE_S - 0.5:
            self._coarse.append(sample)

    def columns(self) -> dict[str, list[float | None]]:
        """Return all samples, oldest first, as one list a figure: those before the fine ring from the coarse one."""
        first = self._fine[0]["at"] if self._fine else None
        samples: list[Sample] = [one for one in self._coarse if first is None or (one["at"] or 0.0) < first]
        samples += self._fine
        names = dict.fromkeys(name for sample in samples for name in sample)
        return {name: [sample.get(name) for sample in samples] for name in names}


class LatencyWindow:
    """The latency quantiles of each model over about the last `LATENCY_S` seconds, from histograms that only grow."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[tuple[float, Histogram]]] = {}

    def observe(self, now_s: float, histograms: Mapping[str, Histogram]) -> dict[str, Sequence[float | None]]:
        """Return p50, p95 and p99 (milliseconds) of each model since the look of `LATENCY_S` ago; None without an
        answer since then.  `now_s` is monotonic."""
        quantiles: dict[str, Sequence[float | None]] = {}
        for name, histogram in histograms.items():
            kept = self._kept.setdefault(name, deque())
            if kept and histogram.count < kept[-1][1].count:
                kept.clear()  # another router, which counts anew
            while len(kept) > 1 and kept[1][0] <= now_s - LATENCY_S:
                kept.popleft()
            recent = histogram.copy()
            if kept:
                recent.subtract(kept[0][1])
            kept.append((now_s, histogram.copy()))
            quantiles[name] = [recent.quantile(q) / 1e6 if recent.count else None for q in QUANTILES]
        for name in self._kept.keys() - histograms.keys():
            del self._kept[name]
        return quantiles


def tidy(value: Any) -> Any:
    """Return a number with six digits, which is more than a pixel shows; anything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    return value
