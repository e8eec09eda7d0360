"""Metrics of the ledger: what it has of all runs, and whether it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import Metric

from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.metrics.table import COUNTER, GAUGE, MetricSpec, by_label, collect, single

LEDGER: tuple[MetricSpec[LedgerStatus], ...] = (
    MetricSpec(
        "clover_ledger_up",
        "1 if the last attempt to write the ledger succeeded, else 0; absent if none is kept",
        GAUGE,
        (),
        lambda status: single(float(status.state == "writing")),
    ),
    MetricSpec(
        "clover_ledger_written_rows",
        "Rows and events that were added to the ledger",
        COUNTER,
        (),
        lambda status: single(status.written_rows),
    ),
    MetricSpec(
        "clover_ledger_dropped_rows",
        "Rows and events that are lost, as the ledger could not be written for too long",
        COUNTER,
        (),
        lambda status: single(status.dropped_rows),
    ),
    MetricSpec(
        "clover_ledger_waiting_rows",
        "Rows and events that wait until the ledger can be written",
        GAUGE,
        (),
        lambda status: single(status.waiting_rows),
    ),
    MetricSpec(
        "clover_ledger_failures",
        "Attempts to write the ledger that failed, by reason",
        COUNTER,
        ("reason",),
        lambda status: by_label(status.failures),
    ),
    MetricSpec(
        "clover_ledger_age_seconds",
        "Seconds since the ledger was last added to; absent before the first time",
        GAUGE,
        (),
        lambda status: single(time.monotonic() - status.written_s) if status.written_s else (),
    ),
    MetricSpec(
        "clover_ledger_bytes",
        "Size of the ledger on the disk, its journal included, in bytes",
        GAUGE,
        (),
        lambda status: single(status.bytes),
    ),
    MetricSpec(
        "clover_ledger_carbon_grams",
        "Grams of CO2e in the ledger, of all runs of this server and all lines of its devices, PUE included",
        GAUGE,
        (),
        lambda status: single(status.grams),
    ),
    MetricSpec(
        "clover_ledger_joules",
        "Joules in the ledger, of all runs of this server and all lines of its devices",
        GAUGE,
        (),
        lambda status: single(status.joules),
    ),
    MetricSpec(
        "clover_ledger_saved_carbon_grams",
        "Grams of CO2e saved over all runs in the ledger, within the boundary server (modelled); negative if more was "
        "emitted",
        GAUGE,
        ("model", "against"),
        lambda status: list(status.saved_g.items()),
    ),
)


def ledger(status: LedgerStatus | None) -> Iterator[Metric]:
    """Yield the metrics of the ledger, without samples if none is kept."""
    return collect(LEDGER, [((), status)] if status is not None else ())
