"""The Grafana dashboard, in the classic JSON model (schema 39, Grafana 10 and later), from a table of panels.

Its variables choose the data source, instances and models.  Every panel says in its description what it shows and where
its figures come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clover._version import __version__
from clover.telemetry.dashboards.rules import SERVERS_LINES

_I = 'instance=~"$instance"'
_M = f'{_I}, model=~"$model"'
_RATE = "$__rate_interval"
_WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class GrafanaQuery:
    """One query of a panel, and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class GrafanaPanel:
    """One panel.  `unit` is Grafana's name; `mappings` are words for values, as of a state."""

    title: str
    about: str
    queries: tuple[GrafanaQuery, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    mappings: tuple[tuple[int, str, str], ...] = ()


def _quantile(percent: int) -> GrafanaQuery:
    rate = f"rate(clover_request_seconds_bucket{{{_M}}}[{_RATE}])"
    return GrafanaQuery(f"histogram_quantile(0.{percent}, sum by (model, le) ({rate}))", f"{{{{model}}}} p{percent}")


SECTIONS: tuple[tuple[str, tuple[GrafanaPanel, ...]], ...] = (
    (
        "Is it healthy",
        (
            GrafanaPanel(
                "Ready",
                "Whether each model takes requests.",
                (GrafanaQuery(f"min by (model) (clover_ready{{{_M}}})", "{{model}}"),),
                kind="stat",
                width=4,
                mappings=((0, "no", "red"), (1, "yes", "green")),
            ),
            GrafanaPanel(
                "SLO held, last hour",
                "Fraction of windows of 10 s whose p95 was within the SLO, of those in which rows were asked.",
                (GrafanaQuery(f"min by (model) (clover_slo_held_ratio{{{_M}}})", "{{model}}"),),
                unit="percentunit",
                kind="stat",
                width=4,
            ),
            GrafanaPanel(
                "SLO alarm",
                "1: the SLO is missed, and nothing that the controller may do meets it.",
                (GrafanaQuery(f"max by (model) (clover_slo_alarm{{{_M}}})", "{{model}}"),),
                kind="stat",
                width=4,
                mappings=((0, "none", "green"), (1, "cannot be met", "red")),
            ),
            GrafanaPanel(
                "Guard",
                "Whether answers are as profiled.",
                (GrafanaQuery(f"max by (model) (clover_guard_state{{{_M}}})", "{{model}}"),),
                kind="stat",
                width=4,
                mappings=((0, "as profiled", "green"), (1, "thresholds tightened", "orange"), (2, "no cascade", "red")),
            ),
            GrafanaPanel(
                "Workers",
                "Workers that are ready, and those that shall receive rows and are not ready.",
                (
                    GrafanaQuery(f"sum by (model) (clover_workers{{{_M}}})", "{{model}}"),
                    GrafanaQuery(f"sum by (model) (clover_workers_missing{{{_M}}})", "{{model}}: missing"),
                ),
                kind="stat",
                width=4,
            ),
            GrafanaPanel(
                "Version",
                "Version of each server.",
                (GrafanaQuery(f"clover_build_info{{{_I}}}", "{{instance}}: {{version}}"),),
                kind="stat",
                width=4,
            ),
        ),
    ),
    (
        "What it emits, and what was saved",
        (
            GrafanaPanel(
                "Emissions",
                "Grams of CO2e an hour of everything within the server's boundary (operation, with PUE; no other "
                "programs), by how joules and intensity are known: measured, modelled or emulated.",
                (
                    GrafanaQuery(
                        "3600 * sum by (method, intensity) "
                        f"(rate(clover_line_carbon_grams_total{{{_I}, {SERVERS_LINES}}}[{_RATE}]))",
                        "{{method}}, intensity {{intensity}}",
                    ),
                ),
                unit="massg",
                stacked=True,
            ),
            GrafanaPanel(
                "Saved since the start",
                "Grams of CO2e saved since the server started, for the rows served, against BASE and the best fixed "
                "mix; negative if more was emitted. An estimate: its interval is in "
                "clover_saved_carbon_estimate_grams.",
                (
                    GrafanaQuery(
                        f"sum by (model, against, method) (clover_saved_carbon_grams{{{_M}}})",
                        "{{model}} against {{against}} ({{method}})",
                    ),
                ),
                unit="massg",
            ),
            GrafanaPanel(
                "Carbon intensity",
                "Of the grid, as plans and receipts use it, with its provider and how it is known.",
                (GrafanaQuery(f"clover_carbon_intensity{{{_I}}}", "{{provider}} {{zone}} ({{state}}, {{signal}})"),),
                unit="none",
            ),
            GrafanaPanel(
                "Power",
                "Power of each device over the last interval, and the part of it that is drawn whatever is served.",
                (
                    GrafanaQuery(f"clover_device_watts{{{_I}}}", "{{device}} ({{method}})"),
                    GrafanaQuery(f"clover_device_idle_watts{{{_I}}}", "{{device}} at rest"),
                ),
                unit="watt",
            ),
            GrafanaPanel(
                "Where the energy goes",
                "Joules a second by line of the devices' account.",
                (GrafanaQuery(f"sum by (line) (rate(clover_line_joules_total{{{_I}}}[{_RATE}]))", "{{line}}"),),
                unit="watt",
                stacked=True,
            ),
            GrafanaPanel(
                "Carbon of a row",
                "Software Carbon Intensity since the start, operation and embodied, by boundary.",
                (GrafanaQuery(f"clover_sci_grams_per_row{{{_I}}}", "{{boundary}} (energy {{energy}})"),),
                unit="massg",
            ),
        ),
    ),
    (
        "What was promised",
        (
            GrafanaPanel(
                "Latency",
                "Seconds from the arrival of a request to its answer, of answered requests, beside the SLO of p95.",
                (
                    *(_quantile(percent) for percent in (50, 95, 99)),
                    GrafanaQuery(f'max by (model) (clover_target{{{_M}, target="slo_ms"}}) / 1000', "{{model}} SLO"),
                ),
                unit="s",
                width=12,
            ),
            GrafanaPanel(
                "Accuracy",
                "Of the rows answered since the start, as the profile expects it, beside the accuracy floor.",
                (
                    GrafanaQuery(f"clover_accuracy_served{{{_M}}}", "{{model}} served (profile)"),
                    GrafanaQuery(f'clover_target{{{_M}, target="accuracy_floor"}}', "{{model}} floor"),
                ),
                unit="percent",
                width=6,
            ),
            GrafanaPanel(
                "Accuracy budget",
                "Percentage points below the best variant: given up since the horizon began, and allowed.",
                (GrafanaQuery(f"clover_accuracy_budget_points{{{_M}}}", "{{model}} {{part}}"),),
                width=6,
            ),
        ),
    ),
    (
        "What it serves",
        (
            GrafanaPanel(
                "Rows by variant",
                "Rows answered a second.",
                (
                    GrafanaQuery(
                        f"sum by (model, variant) (rate(clover_rows_total{{{_M}}}[{_RATE}]))", "{{model}} {{variant}}"
                    ),
                ),
                stacked=True,
            ),
            GrafanaPanel(
                "Requests by status",
                "Requests a second by HTTP status.",
                (
                    GrafanaQuery(
                        f"sum by (model, code) (rate(clover_requests_total{{{_M}}}[{_RATE}]))", "{{model}} {{code}}"
                    ),
                ),
                stacked=True,
            ),
            GrafanaPanel(
                "Refused or given up",
                "Requests a second that came in excess, by reason.",
                (
                    GrafanaQuery(
                        f"sum by (model, why) (rate(clover_overload_requests_total{{{_M}}}[{_RATE}])) "
                        f"or 0 * sum by (model) (rate(clover_requests_total{{{_M}}}[{_RATE}]))",
                        "{{model}} {{why}}",
                    ),
                ),
                stacked=True,
            ),
            GrafanaPanel(
                "Rows that wait",
                "Rows that wait for a worker, and those being computed.",
                (
                    GrafanaQuery(f"sum by (model) (clover_queue_rows{{{_M}}})", "{{model}} wait"),
                    GrafanaQuery(f"sum by (model) (clover_in_flight_rows{{{_M}}})", "{{model}} computed"),
                ),
            ),
            GrafanaPanel(
                "Part of the capacity",
                "Rows that arrive, by those that can be served (modelled): by the workers that run, and at most by the "
                "devices at the accuracy floor. Near 1 rows wait; by the devices, another server is due.",
                tuple(
                    GrafanaQuery(
                        f"sum by (model) (clover_arrival_rows_per_second{{{_M}}}) / sum by (model) "
                        f'(clover_capacity_rows_per_second{{{_M}, of="{of}"}} > 0)',
                        f"{{{{model}}}} {words}",
                    )
                    for of, words in (("running", "by workers that run"), ("floor", "by devices"))
                ),
                unit="percentunit",
            ),
            GrafanaPanel(
                "Rows a batch",
                "Mean rows of a batch.",
                (
                    GrafanaQuery(
                        f"sum by (model) (rate(clover_batch_size_sum{{{_M}}}[{_RATE}])) "
                        f"/ sum by (model) (rate(clover_batch_size_count{{{_M}}}[{_RATE}]))",
                        "{{model}}",
                    ),
                ),
            ),
            GrafanaPanel(
                "Escalated rows",
                "Rows a second that a cascade passed on from this variant to a more accurate one.",
                (
                    GrafanaQuery(
                        f"sum by (model, variant) (rate(clover_escalated_rows_total{{{_M}}}[{_RATE}]))",
                        "{{model}} {{variant}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "What it does",
        (
            GrafanaPanel(
                "Decisions",
                "Decisions of the controller in each interval, by what was done.",
                (
                    GrafanaQuery(
                        f"sum by (action) (increase(clover_decisions_total{{{_I}}}[{_RATE}]))",
                        "{{action}}",
                    ),
                ),
                stacked=True,
            ),
            GrafanaPanel(
                "Routing",
                "Fraction of rows that is routed to a variant.",
                (GrafanaQuery(f"clover_route_share{{{_M}}}", "{{model}} {{variant}}"),),
                unit="percentunit",
                stacked=True,
            ),
            GrafanaPanel(
                "Changes",
                "Changes of the deployment, workers that died, and starts in their place (failed ones too).",
                (
                    GrafanaQuery(f"increase(clover_reconfigurations_total{{{_M}}}[{_RATE}])", "{{model}} reconfigured"),
                    GrafanaQuery(f"increase(clover_worker_deaths_total{{{_M}}}[{_RATE}])", "{{model}} workers died"),
                    GrafanaQuery(
                        f"increase(clover_worker_restarts_total{{{_M}}}[{_RATE}])", "{{model}} workers restarted"
                    ),
                ),
            ),
            GrafanaPanel(
                "Profile corrections",
                "What service times and joules a row are multiplied by, beside the profile; 1: as profiled.",
                (
                    GrafanaQuery(
                        f"clover_profile_correction{{{_M}}}",
                        "{{model}} {{variant}} on {{profile}}: {{kind}}",
                    ),
                ),
            ),
            GrafanaPanel(
                "Connections",
                "Connections that are open now.",
                (GrafanaQuery(f"clover_http_connections{{{_I}}}", "{{instance}}"),),
            ),
            GrafanaPanel(
                "Telemetry",
                "Spans a second by outcome (if OpenTelemetry is on), and lines of the log that were left out.",
                (
                    GrafanaQuery(
                        f"sum by (outcome) (rate(clover_otel_spans_total{{{_I}}}[{_RATE}]))", "spans {{outcome}}"
                    ),
                    GrafanaQuery(f"sum(rate(clover_log_dropped_lines_total{{{_I}}}[{_RATE}]))", "lines left out"),
                ),
            ),
        ),
    ),
)


def queries() -> list[str]:
    """Return every query of the dashboard, those of its variables included."""
    shown = [query.expr for _, panels in SECTIONS for panel in panels for query in panel.queries]
    return [*shown, "clover_build_info", "clover_ready"]


def build() -> dict[str, Any]:
    """Return the dashboard."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, section in SECTIONS:
        panels.append(_at({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, top, _WIDTH, 1))
        top += 1
        left = 0
        height = 4 if all(panel.kind == "stat" for panel in section) else 8
        for panel in section:
            if left + panel.width > _WIDTH:
                left, top = 0, top + height
            panels.append(_at(_panel(panel), left, top, panel.width, height))
            left += panel.width
        top += height
    for number, shown in enumerate(panels, 1):
        shown["id"] = number
    return {
        "title": "Clover",
        "uid": "clover",
        "description": f"Carbon, energy, accuracy and latency of Clover servers (made by Clover {__version__})",
        "tags": ["clover", "carbon"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def text() -> str:
    """Return the dashboard as JSON."""
    return json.dumps(build(), indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}
    return [
        source,
        _variable("instance", "Instance", "label_values(clover_build_info, instance)"),
        _variable("model", "Model", 'label_values(clover_ready{instance=~"$instance"}, model)'),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
        "hide": 0,
    }


def _at(shown: dict[str, Any], left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return shown | {"gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _panel(panel: GrafanaPanel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.mappings:
        options = {str(value): {"text": words, "color": color} for value, words, color in panel.mappings}
        defaults["mappings"] = [{"type": "value", "options": options}]
    options_of: dict[str, Any]
    if panel.kind == "stat":
        options_of = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "textMode": "name" if panel.title == "Version" else "value_and_name",
        }
    else:
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {"drawStyle": "line", "fillOpacity": 30 if panel.stacked else 0, "stacking": stacking}
        options_of = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options_of,
        "targets": _targets(panel.queries),
    }


def _targets(found: Sequence[GrafanaQuery]) -> list[dict[str, Any]]:
    return [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "range": True,
        }
        for index, query in enumerate(found)
    ]
