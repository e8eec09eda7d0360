"""Metrics of rows that ask for an accuracy of their own, by the variant that they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from clover.types import Asked


class DemandedSource(Protocol):
    """A family whose rows may ask for an accuracy."""

    def demanded(self) -> Mapping[str, Asked]: ...


def demanded(families: Mapping[str, DemandedSource]) -> Iterator[Metric]:
    """Yield every metric of the demand of `families`, read now."""
    labels = ("model", "variant")
    rows = CounterMetricFamily(
        "clover_demanded_rows",
        "Rows that asked for a clover_min_accuracy, by the least accurate variant that reaches it",
        labels=labels,
    )
    rate = GaugeMetricFamily(
        "clover_demanded_rows_per_second",
        "Rows per second that asked for a clover_min_accuracy, over the last 10 s",
        labels=labels,
    )
    waiting = GaugeMetricFamily(
        "clover_demanded_waiting_rows",
        "Rows with a clover_min_accuracy that wait until a worker of that accuracy is started",
        labels=labels,
    )
    refused = CounterMetricFamily(
        "clover_demanded_refused_rows",
        "Rows with a clover_min_accuracy that were refused because no worker of that accuracy was started in time",
        labels=labels,
    )
    for name, family in families.items():
        for variant, asked in family.demanded().items():
            rows.add_metric((name, variant), asked.rows)
            rate.add_metric((name, variant), asked.rows_per_s)
            waiting.add_metric((name, variant), asked.waiting)
            refused.add_metric((name, variant), asked.refused)
    yield from (rows, rate, waiting, refused)
