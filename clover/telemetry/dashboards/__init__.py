"""What watches Clover from outside: a Grafana dashboard, and recording and alerting rules of Prometheus.

    grafana.py    the dashboard, from a table of panels
    rules.py      the rules, from tables; every alert has a section in docs/operations.md

`clover dashboards export` writes both as files.  They name metrics of `clover.telemetry.metrics` only, which a test
checks, as it does that a Prometheus which scraped a server answers every query.
"""

from __future__ import annotations

from pathlib import Path

from clover.telemetry.dashboards import grafana, rules

DOCS = "docs"
"""Where the documentation lies, if nothing else is said: what `runbook_url` begins with."""


def files(docs: str = DOCS) -> dict[str, str]:
    """Return the text of each file by its name."""
    return {"clover-grafana.json": grafana.text(), "clover-rules.yml": rules.text(docs.rstrip("/"))}


def export(folder: Path, docs: str = DOCS) -> list[Path]:
    """Write the files into `folder`, which is made if it is missing, and return their paths; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files(docs).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written
