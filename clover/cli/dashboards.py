"""`python -m clover dashboards export`: a Grafana dashboard, and rules for Prometheus, as files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from clover.cli import CommandParser
from clover.hints import program
from clover.telemetry import dashboards


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 2 for a wrong command line, 3 if a file cannot be written."""
    parser = CommandParser(
        prog=f"{program()} dashboards", description="Write what watches Clover servers from outside, as files."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    export = verbs.add_parser(
        "export", help="write a Grafana dashboard (JSON) and Prometheus recording and alerting rules (YAML)"
    )
    export.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="folder to write to [.]")
    export.add_argument(
        "--docs",
        default=dashboards.DOCS,
        metavar="URL",
        help=f"what links from alerts to the documentation begin with [{dashboards.DOCS}]",
    )
    try:
        given = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        for path in dashboards.export(given.to, given.docs):
            print(path)
    except OSError as error:
        print(f"clover dashboards: cannot write to {given.to}: {error.strerror}", file=sys.stderr)
        return 3
    return 0
