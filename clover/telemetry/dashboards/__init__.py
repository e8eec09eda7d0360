"""What watches Clover from outside: a Grafana dashboard, and recording and alerting rules of Prometheus.

    grafana.json    the dashboard, in the classic JSON model (schema 39, Grafana 10 and later)
    rules.yaml      the rules; every alert has a section in docs/operations.md

`clover ctl dashboards` writes both as files.  They name metrics of `clover.telemetry.metrics` only, which a test
checks, as it does that a Prometheus which scraped a server answers every query.
"""

from __future__ import annotations

import json
from pathlib import Path

DOCS = "docs"
"""Where the documentation lies, if nothing else is said: what `runbook_url` begins with."""

_FOLDER = Path(__file__).parent
_RUNBOOK = "operations.md#"


def files(docs: str = DOCS) -> dict[str, str]:
    """Return the text of each file by its name."""
    rules = (_FOLDER / "rules.yaml").read_text(encoding="utf-8")
    # A string of JSON is one of YAML, too.
    linked = rules.replace(f'"{DOCS}/{_RUNBOOK}', json.dumps(f"{docs.rstrip('/')}/{_RUNBOOK}")[:-1])
    return {"clover-grafana.json": (_FOLDER / "grafana.json").read_text(encoding="utf-8"), "clover-rules.yml": linked}


def export(folder: Path, docs: str = DOCS) -> list[Path]:
    """Write the files into `folder`, which is made if it is missing, and return their paths; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files(docs).items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written
