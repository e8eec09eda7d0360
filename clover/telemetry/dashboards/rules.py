"""RecordingRule and alerting rules for Prometheus 2.40 and later.

Rates and quantiles that alerts and pages of one's own share are recorded once, as `clover:NAME`.  Grams that were saved
are differences of counters, which a restart of the server does not disturb; the gauge `clover_saved_carbon_grams`
begins anew with the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

SERVERS_LINES = 'line=~"active|idle|awake|front_end|control|unowned"'
"""Matches the lines within the server's boundary (`clover.accounting.boundaries`): neither other programs nor cores
that are not the server's."""

_BY = "instance, model"


@dataclass(frozen=True)
class RecordingRule:
    """One recording rule."""

    record: str
    expr: str


@dataclass(frozen=True)
class AlertingRule:
    """One alerting rule.  `held_for`: how long the expression must hold, as Prometheus writes it."""

    name: str
    expr: str
    held_for: str
    severity: str
    summary: str

    @property
    def anchor(self) -> str:
        """The heading of its section in docs/operations.md, as a link names it."""
        return self.name.lower()


def _side(side: str, within: str) -> str:
    return f'sum by ({_BY}, against) (increase(clover_counterfactual_carbon_grams_total{{side="{side}"}}[{within}]))'


def _of_requests(counter: str) -> str:
    """Return the ratio of requests that `counter` counts, of all; 0 before it counted any."""
    requests = f"sum by ({_BY}) (rate(clover_requests_total[5m]))"
    return f"(sum by ({_BY}) (rate({counter}[5m])) or 0 * {requests}) / ({requests} > 0)"


RECORDINGS = (
    RecordingRule("clover:requests:rate5m", f"sum by ({_BY}) (rate(clover_requests_total[5m]))"),
    RecordingRule("clover:errors:ratio_rate5m", _of_requests('clover_requests_total{code=~"5.."}')),
    RecordingRule("clover:refused:ratio_rate5m", _of_requests("clover_overload_requests_total")),
    *(
        RecordingRule(
            f"clover:request_seconds:p{percent}_rate5m",
            f"histogram_quantile(0.{percent}, sum by ({_BY}, le) (rate(clover_request_seconds_bucket[5m])))",
        )
        for percent in (50, 95, 99)
    ),
    RecordingRule("clover:watts", "sum by (instance, method) (clover_device_watts)"),
    RecordingRule(
        "clover:carbon_grams:rate1h",
        f"sum by (instance, method, intensity) (rate(clover_line_carbon_grams_total{{{SERVERS_LINES}}}[1h]))",
    ),
    RecordingRule(
        "clover:joules_per_row:rate1h",
        f"sum by ({_BY}) (rate(clover_energy_joules_total[1h])) / (sum by ({_BY}) (rate(clover_rows_total[1h])) > 0)",
    ),
    RecordingRule("clover:saved_carbon_grams:increase6h", f"{_side('shadow', '6h')} - {_side('served', '6h')}"),
)

ALERTS = (
    AlertingRule(
        "CloverNotReady",
        "clover_ready == 0",
        "2m",
        "critical",
        "{{ $labels.model }} takes no requests",
    ),
    AlertingRule(
        "CloverErrors",
        "clover:errors:ratio_rate5m > 0.01",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} fail",
    ),
    AlertingRule(
        "CloverRefusals",
        "clover:refused:ratio_rate5m > 0.01",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} are refused or given up",
    ),
    AlertingRule(
        "CloverSloNotHeld",
        "clover_slo_held_ratio < 0.95 or clover_slo_alarm > 0",
        "10m",
        "warning",
        "{{ $labels.model }} misses its SLO",
    ),
    AlertingRule(
        "CloverWorkerRestarts",
        "increase(clover_worker_restarts_total[15m]) > 2",
        "0m",
        "warning",
        "workers of {{ $labels.model }} were started again {{ $value | humanize }} times in 15 minutes",
    ),
    AlertingRule(
        "CloverCapacityLost",
        "clover_workers_missing > 0 or increase(clover_workers_given_up_total[15m]) > 0",
        "5m",
        "critical",
        "workers of {{ $labels.model }} died and could not be started again: a device or its memory is gone",
    ),
    AlertingRule(
        "CloverPlansFail",
        'sum by (instance) (increase(clover_decisions_total{action=~"failed|rolled back"}[1h])) > 2',
        "0m",
        "warning",
        "{{ $value | humanize }} plans failed or were rolled back in an hour",
    ),
    AlertingRule(
        "CloverPolicyFault",
        'sum by (instance) (increase(clover_decisions_total{action="fault"}[1h])) > 0',
        "0m",
        "critical",
        "the policy raised an exception {{ $value | humanize }} times in an hour, and what runs is kept",
    ),
    AlertingRule(
        "CloverSavedNegative",
        'clover:saved_carbon_grams:increase6h{against="base"} < 0',
        "1h",
        "warning",
        "in 6 hours {{ $labels.model }} saved {{ $value | humanize }} g against {{ $labels.against }}: it emitted more",
    ),
    AlertingRule(
        "CloverBudgetOverspent",
        'clover_accuracy_budget_points{part="spent"} '
        '> on (instance, model) clover_accuracy_budget_points{part="allowed"} * 1.05',
        "2h",
        "warning",
        "{{ $labels.model }} gave up {{ $value | humanize }} points of accuracy, more than its budget",
    ),
    AlertingRule(
        "CloverAnswersDrift",
        "clover_guard_state > 0",
        "5m",
        "warning",
        "answers of {{ $labels.model }} differ from its profile",
    ),
    AlertingRule(
        "CloverGridStale",
        'clover_carbon_intensity{state!="fresh"} or clover_carbon_age_seconds > 7200',
        "15m",
        "warning",
        "the carbon intensity by {{ $labels.provider }} is not of now",
    ),
    AlertingRule(
        "CloverMeterLost",
        "clover_device_metered == 0",
        "5m",
        "warning",
        "the meter of {{ $labels.device }} gives no reading: its energy stands still",
    ),
    AlertingRule(
        "CloverLedgerLosesRows",
        "increase(clover_ledger_dropped_rows_total[1h]) > 0 or clover_ledger_up == 0",
        "5m",
        "warning",
        "the ledger cannot be written, or has lost rows: reports will have gaps",
    ),
    AlertingRule(
        "CloverTelemetryLost",
        'increase(clover_otel_spans_total{outcome=~"failed|dropped"}[15m]) > 0 '
        "or increase(clover_log_dropped_lines_total[15m]) > 0",
        "15m",
        "info",
        "spans or lines of the log are lost",
    ),
)


def text(docs: str) -> str:
    """Return both groups as YAML; `docs` is what links to the documentation begin with."""
    return "\n".join(_lines(docs)) + "\n"


def _lines(docs: str) -> Iterator[str]:
    """Yield the lines.  Strings of JSON are strings of YAML, too, so that nothing else needs to be quoted."""
    yield "# Written by `clover dashboards export`: recording and alerting rules for a Clover server."
    yield "groups:"
    yield "  - name: clover-recording"
    yield "    rules:"
    for recording in RECORDINGS:
        yield f"      - record: {recording.record}"
        yield f"        expr: {json.dumps(recording.expr)}"
    yield "  - name: clover-alerts"
    yield "    rules:"
    for alert in ALERTS:
        yield f"      - alert: {alert.name}"
        yield f"        expr: {json.dumps(alert.expr)}"
        yield f"        for: {alert.held_for}"
        yield "        labels:"
        yield f"          severity: {alert.severity}"
        yield "        annotations:"
        yield f"          summary: {json.dumps(alert.summary)}"
        yield f"          runbook_url: {json.dumps(f'{docs}/operations.md#{alert.anchor}')}"
