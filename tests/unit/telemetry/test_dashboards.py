"""The Grafana dashboard and the rules of Prometheus: they name what there is, and every alert has its section."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clover.__main__ import main
from clover.accounting.boundaries import WITHIN
from clover.telemetry import dashboards
from clover.telemetry.metrics import energy, guard, models, server
from clover.telemetry.metrics.table import COUNTER, HISTOGRAM, INFO, MetricSpec
from tests.support.dashboards import ALERTS, DASHBOARD, FILES, PANEL_QUERIES, RECORDINGS, queries

ROOT = Path(__file__).resolve().parents[3]
TABLES: tuple[tuple[tuple[MetricSpec[Any], ...], ...], ...] = tuple(
    tuple(value for value in vars(module).values() if isinstance(value, tuple) and value)
    for module in (models, guard, energy, server)
)
OF_SCRAPES = {"instance", "job"}
"""Labels that Prometheus adds."""


def exposed() -> Iterator[tuple[str, set[str]]]:
    """Yield the name of every series that a scrape may have, with its labels."""
    for spec in (line for tables in TABLES for table in tables for line in table if isinstance(line, MetricSpec)):
        labels = {*spec.labels} | OF_SCRAPES
        if spec.kind is COUNTER:
            yield f"{spec.name}_total", labels
        elif spec.kind is HISTOGRAM:
            yield from ((f"{spec.name}_{part}", labels) for part in ("sum", "count"))
            yield f"{spec.name}_bucket", labels | {"le"}
        elif spec.kind is INFO:
            yield f"{spec.name}_info", labels | {"version", "python"}
        else:
            yield spec.name, labels


KNOWN = dict(exposed())
EXPRESSIONS = [*queries(), *RECORDINGS.values(), *ALERTS.values()]


def test_no_query_and_no_rule_is_overlooked() -> None:
    assert len(queries()) == FILES["clover-grafana.json"].count('"expr": ') + 2
    assert len(RECORDINGS) + len(ALERTS) == FILES["clover-rules.yml"].count(" expr: ") > 20


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_name_and_label_exists(expression: str) -> None:
    names = re.findall(r"\b(clover[_:][a-zA-Z0-9_:]+)(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', expression))
    assert names
    allowed: set[str] = set()
    for name, matchers in names:
        labels = KNOWN.get(name)
        if labels is None:
            assert name in RECORDINGS, f"there is no {name}"
            labels = {"instance", "model", "against", "method", "intensity"}
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert used <= labels, f"{name} has no {used - labels}"
        allowed |= labels
    grouped = {
        word.strip() for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for word in found.split(",")
    }
    assert grouped <= allowed


def test_legends_name_labels_that_exist() -> None:
    for query in PANEL_QUERIES:
        kept = re.search(r"\bby \(([^)]*)\)", query.expr)
        names = re.findall(r"clover_\w+", query.expr)
        labels = set(kept[1].replace(" ", "").split(",")) if kept else set.union(*(KNOWN[name] for name in names))
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels, query


def test_a_dashboard_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "instance", "model"}


def test_every_alert_has_a_section_that_says_what_to_do() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n\n(.+?)(?=\n#|\Z)", text, re.MULTILINE | re.DOTALL))
    assert {name for name in sections if name.startswith("Clover")} == set(ALERTS)
    linked = re.findall(r'runbook_url: "[^"]*operations.md#([a-z]+)"', FILES["clover-rules.yml"])
    assert linked == [name.lower() for name in ALERTS]


def test_links_lead_to_where_the_documentation_is_kept() -> None:
    text = dashboards.files('https://docs.example/a"b/')["clover-rules.yml"]
    linked = re.findall(r"runbook_url: (.*)", text)
    assert [json.loads(link) for link in linked] == [
        f'https://docs.example/a"b/operations.md#{name.lower()}' for name in ALERTS
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)")
def test_promtool_takes_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / "here"
    assert main(["ctl", "dashboards", "--to", str(folder), "--docs", "https://docs.example/clover/"]) == 0
    grafana_file, rules_file = map(Path, capsys.readouterr().out.split())
    assert grafana_file.is_file()
    assert "https://docs.example/clover/operations.md#cloversloNotHeld".lower() in rules_file.read_text()
    checked = subprocess.run(["promtool", "check", "rules", str(rules_file)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RECORDINGS) + len(ALERTS)} rules found" in checked.stdout


FIRES = """
rule_files: [clover-rules.yml]
evaluation_interval: 30s
tests:
  - name: starts that fail every ten seconds
    interval: 30s
    input_series:
      - {series: 'clover_workers{model="m",state="missing"}', values: "0 1x40"}
      - {series: 'clover_worker_events_total{model="m",event="died"}', values: "0 1x40"}
      - {series: 'clover_worker_events_total{model="m",event="restarted"}', values: "0+3x40"}
    alert_rule_test: &fires
      - {eval_time: 4m, alertname: CloverCapacityLost}
      - eval_time: 7m
        alertname: CloverCapacityLost
        exp_alerts:
          - exp_labels: {model: m, severity: critical}
            exp_annotations:
              summary: "workers of m died and could not be started again: a device or its memory is gone"
              runbook_url: docs/operations.md#clovercapacitylost
  - name: a device that is lost
    interval: 30s
    input_series:
      - {series: 'clover_workers{model="m",state="missing"}', values: "0x41"}
      - {series: 'clover_worker_events_total{model="m",event="given_up"}', values: "0 2x40"}
    alert_rule_test: *fires
  - name: a worker that is started again at once, and a standby worker that died
    interval: 30s
    input_series:
      - {series: 'clover_workers{model="m",state="missing"}', values: "0 1 0x40"}
      - {series: 'clover_worker_events_total{model="m",event="given_up"}', values: "0x41"}
      - {series: 'clover_worker_events_total{model="m",event="died"}', values: "0 2x40"}
      - {series: 'clover_worker_events_total{model="m",event="restarted"}', values: "0 1x40"}
    alert_rule_test:
      - {eval_time: 7m, alertname: CloverCapacityLost}
"""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)")
def test_lost_capacity_is_alerted_when_it_is_lost_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "clover-rules.yml").write_text(FILES["clover-rules.yml"])
    (tmp_path / "test.yml").write_text(FIRES)
    checked = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_emissions_are_those_of_the_servers_own_lines() -> None:
    summed = [text for text in EXPRESSIONS if "clover_carbon_grams_total" in text]
    assert len(summed) == 2
    for text in summed:
        found = re.search(r'line=~"([^"]*)"', text)
        assert found, text
        assert set(found[1].split("|")) == set(WITHIN["server"])


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["ctl", "dashboards", "--to", str(tmp_path / "file")]) == 3
    assert "cannot write to" in capsys.readouterr().err
    assert main(["ctl", "dashboards", "--url", "x"]) == 2
