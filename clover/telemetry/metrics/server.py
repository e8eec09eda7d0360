"""Metrics of the server as a whole: its version, carbon readings, decisions of the controller, the front end, whether
the ledger is written, and its cluster if it is a node of one."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import Metric

from clover._version import __version__
from clover.carbon.chain import SourceChain
from clover.grpc.stats import GrpcStats
from clover.http.audit import AuditLog
from clover.http.server_state import HttpStats
from clover.telemetry import logs
from clover.telemetry.ledger.writing import LedgerStatus
from clover.telemetry.metrics.table import COUNTER, GAUGE, INFO, MetricSpec, by_label, collect, single
from clover.types import Reading

BUILD: tuple[MetricSpec[None], ...] = (
    MetricSpec(
        "clover_build",
        "Version of the server and of Python.",
        INFO,
        (),
        lambda _: single({"version": __version__, "python": platform.python_version()}),
    ),
)

# Read from the lines that were left out, by (source, model).
LOG: tuple[MetricSpec[Mapping[tuple[str, str], int]], ...] = (
    MetricSpec(
        "clover_log_dropped_lines",
        "Lines left out of the log, by source (server: standard error was not read fast enough; worker: it printed "
        "too much) and model.",
        COUNTER,
        ("source", "model"),
        Mapping.items,
    ),
)


def _labels(reading: Reading) -> tuple[str, ...]:
    replayed = "true" if reading.replayed else "false"
    return reading.provider, reading.zone, reading.signal, reading.scope, reading.method, replayed, reading.state


CARBON: tuple[MetricSpec[SourceChain], ...] = (
    MetricSpec(
        "clover_carbon_intensity",
        "Carbon intensity of the grid in use, in grams of CO2e per kWh, and how it is known.",
        GAUGE,
        ("provider", "zone", "signal", "scope", "method", "replayed", "state"),
        lambda chain: [(_labels(chain.last), chain.last.g_per_kwh)] if chain.last else (),
    ),
    MetricSpec(
        "clover_carbon_age_seconds",
        "Age of the carbon intensity in use, in seconds of the carbon data's time, by provider.",
        GAUGE,
        ("provider",),
        lambda chain: [((chain.last.provider,), chain.last.age_s)] if chain.last else (),
    ),
    MetricSpec(
        "clover_carbon_failures",
        "Failures to get a carbon intensity, by source and kind: of a request (dns, connect, tls, timeout, cut, "
        "size, http, status, rate, refused), or of its answer (answer, old, implausible).",
        COUNTER,
        ("source", "kind"),
        lambda chain: chain.errors.items(),
    ),
    MetricSpec(
        "clover_carbon_calls",
        "Requests to a provider of live carbon intensity, forecasts and repeated ones included, by source.",
        COUNTER,
        ("source",),
        lambda chain: (((name,), source.calls) for name, source in chain.live.items()),
    ),
)

DECISIONS: tuple[MetricSpec[Mapping[str, int]], ...] = (
    MetricSpec(
        "clover_decisions",
        "Decisions of the controller, by action (what was done).",
        COUNTER,
        ("action",),
        by_label,
    ),
)

SPANS: tuple[MetricSpec[Mapping[str, int]], ...] = (
    MetricSpec(
        "clover_otel_spans",
        "OpenTelemetry spans, by outcome: sent, failed (the collector did not take them) or dropped (too many waited).",
        COUNTER,
        ("outcome",),
        by_label,
    ),
)

SANDBOX: tuple[MetricSpec[Mapping[str, object]], ...] = (
    MetricSpec(
        "clover_workers_sandboxed",
        "1 if workers are confined, else 0, by part: landlock (files) or seccomp (sockets and other processes).",
        GAUGE,
        ("part",),
        lambda report: (((part,), float(bool(report[part]))) for part in ("landlock", "seccomp")),
    ),
)

CONTROL: tuple[MetricSpec[AuditLog], ...] = (
    MetricSpec(
        "clover_control_calls",
        "Calls that would change the server, by outcome: taken, or refused (the caller has no right to).",
        COUNTER,
        ("outcome",),
        lambda audit: by_label({"taken": audit.calls - audit.refused, "refused": audit.refused}),
    ),
)

# Read for each model from (changes of the deployment, changes of thresholds alone).
CHANGES: tuple[MetricSpec[tuple[int, int]], ...] = (
    MetricSpec(
        "clover_plan_changes",
        "Changes of what runs, by model and change: deployment (which variants run where, the first one included) "
        "or thresholds (of a cascade, while the workers stayed).",
        COUNTER,
        ("model", "change"),
        lambda changes: by_label({"deployment": changes[0], "thresholds": changes[1]}),
    ),
)

# Of each GPU that may be without workers: whether it is.
PARKED: tuple[MetricSpec[Mapping[str, bool]], ...] = (
    MetricSpec(
        "clover_device_parked",
        "1 while a GPU is parked (it has no worker processes, as the load does not need it), else 0, by device.",
        GAUGE,
        ("device",),
        by_label,
    ),
)

HTTP: tuple[MetricSpec[HttpStats], ...] = (
    MetricSpec(
        "clover_http_open_connections",
        "HTTP connections that are open now.",
        GAUGE,
        (),
        lambda http: single(http.open_connections),
    ),
    MetricSpec(
        "clover_http_connections",
        "HTTP connections that came, by outcome: taken, or refused (too many were open, or too few file "
        "descriptors left).",
        COUNTER,
        ("outcome",),
        lambda http: by_label(
            {"taken": http.accepted_connections - http.refused_connections, "refused": http.refused_connections}
        ),
    ),
    MetricSpec(
        "clover_http_closed_connections",
        "HTTP connections that the server closed, by reason: slow (of the client), overfull (all together held too "
        "many unread bytes), handshake (TLS failed, or took too long) or malformed (it sent no valid HTTP).",
        COUNTER,
        ("reason",),
        lambda http: by_label(
            {
                "slow": http.deadlines_missed,
                "overfull": http.dropped_connections,
                "handshake": http.failed_handshakes,
                "malformed": http.malformed,
            }
        ),
    ),
    MetricSpec(
        "clover_http_held_requests",
        "HTTP requests that waited unread, because refusing more of them would have taken the time that answers need.",
        COUNTER,
        (),
        lambda http: single(http.held_requests),
    ),
    MetricSpec(
        "clover_http_bytes",
        "Bytes of HTTP connections, by direction: received or sent.",
        COUNTER,
        ("direction",),
        lambda http: by_label({"received": http.received_bytes, "sent": http.sent_bytes}),
    ),
    MetricSpec(
        "clover_http_answers",
        "HTTP answers, of all paths, by status (code).",
        COUNTER,
        ("code",),
        lambda http: (((str(code),), count) for code, count in http.requests.items()),
    ),
)

GRPC: tuple[MetricSpec[GrpcStats], ...] = (
    MetricSpec(
        "clover_grpc_open_calls",
        "gRPC calls that are open now.",
        GAUGE,
        (),
        lambda rpc: single(rpc.open_calls),
    ),
    MetricSpec(
        "clover_grpc_answers",
        "gRPC calls that ended, and answers of streams, by status (code).",
        COUNTER,
        ("code",),
        lambda rpc: by_label(rpc.calls),
    ),
)


def build(worker_lines: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the versions of the server and of Python, and lines missing from the log: those of workers by model, and
    the server's own if Clover writes its log."""
    yield from collect(BUILD, [((), None)])
    lines = {("worker", model): count for model, count in worker_lines.items()}
    if (writer := logs.writer()) is not None:
        lines["server", ""] = writer.left_out
    yield from collect(LOG, [((), lines)])


def carbon(chain: SourceChain) -> Iterator[Metric]:
    """Yield the metrics of the carbon intensity in use and of its sources."""
    return collect(CARBON, [((), chain)])


def control(decisions: Mapping[str, int], changes: Mapping[str, tuple[int, int]]) -> Iterator[Metric]:
    """Yield the metrics of the controller: `decisions` by action; `changes` of deployments and thresholds by model."""
    yield from collect(DECISIONS, [((), decisions)])
    yield from collect(CHANGES, (((name,), counts) for name, counts in changes.items()))


def parked(gpus: Mapping[str, bool]) -> Iterator[Metric]:
    """Yield the metric of `gpus`: for each that may be parked, whether it is parked."""
    return collect(PARKED, [((), gpus)])


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


LEDGER: tuple[MetricSpec[LedgerStatus], ...] = (
    MetricSpec(
        "clover_ledger_up",
        "1 if the last attempt to write the ledger succeeded, else 0; absent if none is kept.",
        GAUGE,
        (),
        lambda status: single(float(status.state == "writing")),
    ),
    MetricSpec(
        "clover_ledger_dropped_rows",
        "Rows and events that are lost, because the ledger could not be written for too long.",
        COUNTER,
        (),
        lambda status: single(status.dropped_rows),
    ),
    MetricSpec(
        "clover_ledger_failures",
        "Attempts to write the ledger that failed, by reason.",
        COUNTER,
        ("reason",),
        lambda status: by_label(status.failures),
    ),
    MetricSpec(
        "clover_ledger_bytes",
        "Size of the ledger on the disk, its journal included, in bytes.",
        GAUGE,
        (),
        lambda status: single(status.bytes),
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
        "1 while the server follows its cluster's controller, 0 while it follows its own policy.",
        GAUGE,
        (),
        lambda report: single(float(report["following"])),
    ),
)

ORDERS: tuple[MetricSpec[Report], ...] = (
    MetricSpec(
        "clover_cluster_ordered_rows_per_second",
        "Rows per second that the cluster's controller orders a model to be ready for, by model.",
        GAUGE,
        ("model",),
        lambda order: single(order["rate"]),
    ),
    MetricSpec(
        "clover_cluster_ordered_accuracy_percent",
        "Least mean accuracy that the cluster's controller orders of a model, in percent, by model.",
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
