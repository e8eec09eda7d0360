"""Metrics of a server that is a node of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, collect, single

Report = Mapping[str, Any]
"""How the server stands to its cluster, as the state shows it."""

CLUSTER: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_cluster_following",
        "1 while the server follows its cluster's controller, 0 while it follows its own policy",
        GAUGE,
        (),
        lambda report: single(float(report["following"])),
    ),
    MetricSpec(
        "clover_cluster_epoch",
        "Epoch of the newest order of the cluster's controller that was taken; 0 before the first",
        GAUGE,
        (),
        lambda report: single(report["epoch"]),
    ),
    MetricSpec(
        "clover_cluster_lost",
        "Times that nothing was heard of the cluster's controller for too long",
        COUNTER,
        (),
        lambda report: single(report["lost"]),
    ),
)

ORDERS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_cluster_ordered_rows_per_second",
        "Rows a second that the cluster's controller has the model be ready for",
        GAUGE,
        ("model",),
        lambda order: single(order["rate"]),
    ),
    MetricSpec(
        "clover_cluster_ordered_accuracy_percent",
        "Least mean accuracy that the cluster's controller asks of the model",
        GAUGE,
        ("model",),
        lambda order: single(order["accuracy"]),
    ),
)


def cluster(report: Report) -> Iterator[Metric]:
    """Yield the metrics of a report."""
    yield from collect(CLUSTER, [((), report)])
    ordered = [((name,), model["order"]) for name, model in report["models"].items() if model["order"] is not None]
    yield from collect(ORDERS, ordered)
