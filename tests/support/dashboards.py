"""What the Grafana dashboard asks, and the rules of Prometheus, read from the files that are exported."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from clover.telemetry import dashboards

FILES = dashboards.files()
DASHBOARD: dict[str, Any] = json.loads(FILES["clover-grafana.json"])


class PanelQuery(NamedTuple):
    """A query of a panel, and how its series are called."""

    expr: str
    legend: str


PANEL_QUERIES = [
    PanelQuery(target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]


def queries() -> list[str]:
    """Return every query of the dashboard, those of its variables included."""
    texts = [variable.get("definition", "") for variable in DASHBOARD["templating"]["list"]]
    variables = [found[1] for text in texts if (found := re.fullmatch(r"label_values\((.+), \w+\)", text))]
    return [*(query.expr for query in PANEL_QUERIES), *variables]


def _rules(kind: str) -> dict[str, str]:
    # Every name is plain and every expression is a string of JSON.
    found = re.findall(rf"- {kind}: (\S+)\n +expr: (\".*\")\n", FILES["clover-rules.yml"])
    return {name: json.loads(expr) for name, expr in found}


RECORDINGS = _rules("record")
"""The expression of each recording rule, by its name."""

ALERTS = _rules("alert")
"""The expression of each alert, by its name."""
