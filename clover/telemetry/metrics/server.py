"""Metrics of the server as a whole: its version, carbon readings, decisions of the controller, the front end, whether
the ledger is written, and its cluster if it is a node of one."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from clover._version import __version__
from clover.carbon.chain import STATES, SourceChain
from clover.control.state.parked import ParkedTime
from clover.grpc.stats import GrpcStats
from clover.http.audit import AuditLog
from clover.http.server_state import HttpStats
from clover.http.streams import EventStreams
from clover.telemetry import logs
from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.logs import LogWriter
from clover.telemetry.metrics.table import COUNTER, GAUGE, INFO, MetricSpec, by_label, collect, single
from clover.types import Reading

BUILD: tuple[MetricSpec[None], ...] = (
    MetricSpec(
        "clover_build",
        "Version of the server and of Python",
        INFO,
        (),
        lambda _: single({"version": __version__, "python": platform.python_version()}),
    ),
)

LOG: tuple[MetricSpec[LogWriter], ...] = (
    MetricSpec(
        "clover_log_dropped_lines",
        "Lines of the server's log that were left out because standard error was not read fast enough",
        COUNTER,
        (),
        lambda writer: single(writer.left_out),
    ),
)


def _labels(reading: Reading) -> tuple[str, ...]:
    replayed = "true" if reading.replayed else "false"
    return reading.provider, reading.zone, reading.signal, reading.scope, reading.method, replayed, reading.state


CARBON: tuple[MetricSpec[SourceChain], ...] = (
    MetricSpec(
        "clover_carbon_intensity",
        "Carbon intensity of the grid in use, gCO2e per kWh, and how it is known",
        GAUGE,
        ("provider", "zone", "signal", "scope", "method", "replayed", "state"),
        lambda chain: [(_labels(chain.last), chain.last.g_per_kwh)] if chain.last else (),
    ),
    MetricSpec(
        "clover_carbon_age_seconds",
        "Age of that carbon intensity in seconds, in the time of the carbon data",
        GAUGE,
        ("provider",),
        lambda chain: [((chain.last.provider,), chain.last.age_s)] if chain.last else (),
    ),
    MetricSpec(
        "clover_carbon_readings",
        "Readings of the carbon intensity that were used, by state (" + ", ".join(STATES) + ")",
        COUNTER,
        ("state",),
        lambda chain: by_label(chain.counts),
    ),
    MetricSpec(
        "clover_carbon_failures",
        "Failed requests for the carbon intensity, and answers that were not believed, by source",
        COUNTER,
        ("source",),
        lambda chain: by_label(chain.failures),
    ),
    MetricSpec(
        "clover_carbon_errors",
        "The same by kind: what failed of a request (dns, connect, tls, timeout, cut, size, http, status, rate, "
        "refused), or of its answer (answer, old, implausible)",
        COUNTER,
        ("source", "kind"),
        lambda chain: chain.errors.items(),
    ),
    MetricSpec(
        "clover_carbon_calls",
        "Requests to providers of live carbon intensity, forecasts and repeated ones included",
        COUNTER,
        ("source",),
        lambda chain: (((name,), source.calls) for name, source in chain.live.items()),
    ),
    MetricSpec(
        "clover_carbon_call_seconds",
        "Seconds that requests to providers of live carbon intensity took",
        COUNTER,
        ("source",),
        lambda chain: (((name,), source.call_s) for name, source in chain.live.items()),
    ),
)

DECISIONS: tuple[MetricSpec[Mapping[str, int]], ...] = (
    MetricSpec(
        "clover_decisions",
        "Decisions of the controller, by what was done",
        COUNTER,
        ("action",),
        by_label,
    ),
)

SPANS: tuple[MetricSpec[Mapping[str, int]], ...] = (
    MetricSpec(
        "clover_otel_spans",
        "OpenTelemetry spans by outcome: sent, failed (the collector did not take them), dropped (too many waited)",
        COUNTER,
        ("outcome",),
        by_label,
    ),
)

SANDBOX: tuple[MetricSpec[Mapping[str, object]], ...] = (
    MetricSpec(
        "clover_workers_sandboxed",
        "1 if workers are kept from files (landlock), and from sockets and other processes (seccomp), else 0",
        GAUGE,
        ("part",),
        lambda report: (((part,), float(bool(report[part]))) for part in ("landlock", "seccomp")),
    ),
)

CONTROL: tuple[MetricSpec[AuditLog], ...] = (
    MetricSpec(
        "clover_control_calls",
        "Calls that would change the server, by outcome: refused (who made them had no right to), or taken",
        COUNTER,
        ("outcome",),
        lambda audit: by_label({"taken": audit.calls - audit.refused, "refused": audit.refused}),
    ),
)

# Read for each model from (changes of the deployment, changes of thresholds alone).
CHANGES: tuple[MetricSpec[tuple[int, int]], ...] = (
    MetricSpec(
        "clover_reconfigurations",
        "Changes of the deployment (which variants run where), the first one included",
        COUNTER,
        ("model",),
        lambda changes: single(changes[0]),
    ),
    MetricSpec(
        "clover_thresholds_moved",
        "Times that the thresholds of a cascade were changed while the workers stayed",
        COUNTER,
        ("model",),
        lambda changes: single(changes[1]),
    ),
)

# Of each GPU that may be without workers.
PARKED: tuple[MetricSpec[ParkedTime], ...] = (
    MetricSpec(
        "clover_device_parked",
        "Whether a GPU is parked: it has no worker processes, as the load does not need it (1 or 0)",
        GAUGE,
        ("device",),
        lambda time: single(float(time.since_s is not None)),
    ),
    MetricSpec(
        "clover_device_parked_seconds",
        "Seconds that a GPU was parked",
        COUNTER,
        ("device",),
        lambda time: single(time.seconds),
    ),
    MetricSpec(
        "clover_device_parked_spared_joules",
        "Joules that the contexts of workers would have drawn meanwhile; method: how their power is known",
        COUNTER,
        ("device", "method"),
        lambda time: (((method,), joules) for method, joules in time.spared_j.items()),
    ),
)

HTTP: tuple[MetricSpec[HttpStats], ...] = (
    MetricSpec(
        "clover_http_connections",
        "Connections that are open now",
        GAUGE,
        (),
        lambda http: single(http.open_connections),
    ),
    MetricSpec(
        "clover_http_accepted_connections",
        "Connections accepted",
        COUNTER,
        (),
        lambda http: single(http.accepted_connections),
    ),
    MetricSpec(
        "clover_http_refused_connections",
        "Connections refused because too many were open, or too few file descriptors were left",
        COUNTER,
        (),
        lambda http: single(http.refused_connections),
    ),
    MetricSpec(
        "clover_http_dropped_connections",
        "Connections closed because all together held too many bytes of unfinished bodies and unread answers",
        COUNTER,
        (),
        lambda http: single(http.dropped_connections),
    ),
    MetricSpec(
        "clover_http_held_requests",
        "Requests that waited unread because refusing more of them would have taken the time that answers need",
        COUNTER,
        (),
        lambda http: single(http.held_requests),
    ),
    MetricSpec(
        "clover_http_failed_handshakes",
        "Connections whose TLS handshake failed or took too long",
        COUNTER,
        (),
        lambda http: single(http.failed_handshakes),
    ),
    MetricSpec(
        "clover_http_malformed",
        "Requests refused because they are not valid HTTP",
        COUNTER,
        (),
        lambda http: single(http.malformed),
    ),
    MetricSpec(
        "clover_http_deadlines_missed",
        "Connections closed because the client was too slow",
        COUNTER,
        (),
        lambda http: single(http.deadlines_missed),
    ),
    MetricSpec("clover_http_received_bytes", "Bytes received", COUNTER, (), lambda http: single(http.received_bytes)),
    MetricSpec("clover_http_sent_bytes", "Bytes sent", COUNTER, (), lambda http: single(http.sent_bytes)),
    MetricSpec(
        "clover_http_answers",
        "HTTP answers by status code",
        COUNTER,
        ("code",),
        lambda http: (((str(code),), count) for code, count in http.requests.items()),
    ),
)

GRPC: tuple[MetricSpec[GrpcStats], ...] = (
    MetricSpec("clover_grpc_open_calls", "gRPC calls that are open now", GAUGE, (), lambda rpc: single(rpc.open_calls)),
    MetricSpec(
        "clover_grpc_answers",
        "Ended gRPC calls, and answers of streams, by status code",
        COUNTER,
        ("code",),
        lambda rpc: by_label(rpc.calls),
    ),
)

PAGES: tuple[MetricSpec[EventStreams], ...] = (
    MetricSpec("clover_dashboard_pages", "Dashboards that are open now", GAUGE, (), lambda pages: single(pages.open)),
    MetricSpec(
        "clover_dashboard_refused",
        "Dashboards that were refused their stream because too many are open (503)",
        COUNTER,
        (),
        lambda pages: single(pages.refused),
    ),
    MetricSpec(
        "clover_dashboard_dropped",
        "Streams of dashboards that were closed because the browser did not read them",
        COUNTER,
        (),
        lambda pages: single(pages.dropped),
    ),
)


def build() -> Iterator[Metric]:
    """Yield the versions of the server and of Python, and lines missing from its log if Clover writes that."""
    yield from collect(BUILD, [((), None)])
    writer = logs.writer()
    yield from collect(LOG, [((), writer)] if writer is not None else ())


def carbon(chain: SourceChain) -> Iterator[Metric]:
    """Yield the metrics of the carbon intensity in use and of its sources."""
    return collect(CARBON, [((), chain)])


def control(decisions: Mapping[str, int], changes: Mapping[str, tuple[int, int]]) -> Iterator[Metric]:
    """Yield the metrics of the controller: `decisions` by action; `changes` of deployments and thresholds by model."""
    yield from collect(DECISIONS, [((), decisions)])
    yield from collect(CHANGES, (((name,), counts) for name, counts in changes.items()))


def parked(times: Mapping[str, ParkedTime]) -> Iterator[Metric]:
    """Yield the metrics of GPUs that may be parked, by name."""
    return collect(PARKED, (((name,), time) for name, time in times.items()))


def otel(spans: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the metric of `spans` by outcome."""
    return collect(SPANS, [((), spans)])


def sandbox(report: Mapping[str, object]) -> Iterator[Metric]:
    """Yield the metric of how workers are confined."""
    return collect(SANDBOX, [((), report)])


def control_calls(audit: AuditLog) -> Iterator[Metric]:
    """Yield the metric of calls that would change the server."""
    return collect(CONTROL, [((), audit)])


def http(stats: HttpStats) -> Iterator[Metric]:
    """Yield the metrics of the front end."""
    return collect(HTTP, [((), stats)])


def grpc_calls(stats: GrpcStats) -> Iterator[Metric]:
    """Yield the metrics of the gRPC front end."""
    return collect(GRPC, [((), stats)])


def pages(streams: EventStreams) -> Iterator[Metric]:
    """Yield the metrics of open dashboards."""
    return collect(PAGES, [((), streams)])


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
    """Yield the metrics of a node of a cluster."""
    yield from collect(CLUSTER, [((), report)])
    ordered = [((name,), model["order"]) for name, model in report["models"].items() if model["order"] is not None]
    yield from collect(ORDERS, ordered)
