"""`clover report`: a carbon report of a period, from the ledger of a server or of several."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path

import msgspec

from clover import terminal
from clover.advice import advise, recorded
from clover.cache import cache_folder, state_folder
from clover.cli import CommandParser
from clover.cli.progress import Progress
from clover.errors import CloverError, ConfigError, LedgerError
from clover.hints import program
from clover.profiles import ProfileStore
from clover.report.breakdowns import BY
from clover.report.build import ReportOptions
from clover.report.calendar import moment, time_words, zone_of
from clover.report.checking import UnreadableReport, cluster_data, read_text, report_in, verify, verify_cluster
from clover.report.cli import cluster
from clover.report.cli.options import (
    FORMATS,
    WIDTH,
    configured,
    format_of,
    json_of,
    market,
    suffix_format,
    usual_time,
    write,
)
from clover.report.cluster import CLUSTER_BY
from clover.report.making import application_of, newer_words, nothing_of, report_from, settled_end, written_until
from clover.report.records import By, Report
from clover.report.render.columns import csv_of, parquet_of
from clover.report.render.page import report_page
from clover.report.render.text import report_text
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import ledgers_in

DONE, WRONG, USAGE, REFUSED = 0, 1, 2, 3
_MOST_CALLS = 10_000
"""Control calls that `--audit` lists at most."""

_ABOUT = """\
Report what a server emitted over a time, what was saved compared with what, how sure the figures are, and where records
are missing.  It reads the ledger that the server keeps in its state folder; with --cluster, those of several servers.
"""
_END = """\
exit codes: 0 done; 1 --verify found a fault; 2 wrong command line or configuration; 3 the ledger cannot be read, or has
nothing of the time.
"""


def main(argv: Sequence[str], *, now: Callable[[], float] = time.time, environ: Mapping[str, str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        given = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    environment = os.environ if environ is None else environ
    try:
        if given.verify:
            return _verify(given, environment)
        if given.cluster:
            cluster.report(given, environment, now())
        elif given.audit:
            _report_calls(given, _ledger(_one(given.ledgers), configured(given, environment).state_dir), now())
        else:
            _report(given, environment, now())
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except CloverError as error:
        return _fail(str(error), REFUSED)
    except KeyboardInterrupt:
        return 130
    return DONE


def _fail(text: str, code: int) -> int:
    sys.stdout.flush()
    print(f"clover report: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog=f"{program()} report", description=_ABOUT, epilog=_END)
    add = parser.add_argument
    add("ledgers", metavar="LEDGER", nargs="*", help="ledger file; by default the one in the state folder")
    add(
        "--cluster",
        action="store_true",
        help="make one report of several ledgers: files, folders, REGION=PATH, cluster.toml",
    )
    add("--state-dir", metavar="DIR", default="", help="state folder of the server [$XDG_STATE_HOME/clover]")
    add("--config", metavar="FILE", default="", help="read [report] and state_dir from this TOML file [CLOVER_CONFIG]")
    add(
        "--from",
        dest="start",
        metavar="TIME",
        default="",
        help="start: 2026-11, 2026-11-20, 2026-11-20T06:00, 7d (ago) [all]",
    )
    add("--to", dest="end", metavar="TIME", default="", help="end, in the same forms; not itself included [now]")
    add("--tz", metavar="ZONE", default="UTC", help="time zone of times, days and months, as Europe/Berlin [UTC]")
    add(
        "--by",
        metavar="WHAT",
        choices=CLUSTER_BY,
        default=None,
        help=f"split grams in the table, CSV or Parquet by {', '.join(BY)}; of a cluster also by node, region "
        "[day or hour]",
    )
    add(
        "--comparisons",
        action="store_true",
        help="compare with BASE and the best fixed mix even if there was too little load to save on",
    )
    add("--format", choices=FORMATS, default=None, help="[by the ending of FILE; without --out table]")
    add("--out", metavar="FILE", default="", help="write there instead of standard output")
    add(
        "--market-g",
        metavar="G",
        type=float,
        default=None,
        help="gCO2e/kWh of your electricity contract [report.market_g_per_kwh]",
    )
    add("--market-source", metavar="TEXT", default="", help="where that figure is from [report.market_source]")
    add(
        "--audit",
        action="store_true",
        help="instead list the calls that changed the server in that time (table or json)",
    )
    add(
        "--verify",
        metavar="FILE",
        default="",
        help="calculate the report in FILE (json, html) again from LEDGER, and compare",
    )
    return parser


def _report(given: argparse.Namespace, environ: Mapping[str, str], now: float) -> None:
    """Make the report and write it."""
    form = format_of(given)
    if given.by not in (None, *BY):
        raise ConfigError(f"--by {given.by} is for the report of several servers: --cluster")
    stated, zone = configured(given, environ), zone_of(given.tz)
    path = _ledger(_one(given.ledgers), stated.state_dir)
    try:
        with Progress("report", f"reading {path.name}"), LedgerReader(path) as ledger:
            start, end, edges = _period(given, ledger, zone, now)
            options = ReportOptions(
                start=start,
                end=end,
                made=now,
                server=path.stem,
                application=application_of(stated.report),
                market_g_per_kwh=market(given, stated.report),
                market_source=given.market_source or stated.report.market_source,
                zone=zone,
                zone_name=given.tz,
                edges=edges,
            )
            report = report_from(ledger, options)
            advice = _advice(ledger, report, stated.cache_dir) if form == "table" else []
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error
    by: By = given.by or usual_time(report.period.end - report.period.start, form)
    write(_document(report, form, by, zone, advice, comparisons=given.comparisons), given.out)


def _advice(ledger: LedgerReader, report: Report, cache_dir: str) -> list[str]:
    """Return what would have saved most in the period, if the profile that was served with is still kept here."""
    try:
        kept = ProfileStore(cache_folder(cache_dir)).kept()
    except CloverError:
        return []
    load = recorded(ledger, kept, report.period.start, report.period.end)
    return [f"{item.words}: {item.setting}" for item in advise(load)] if load is not None else []


def _one(named: Sequence[str]) -> str:
    if len(named) > 1:
        raise ConfigError(f"{len(named)} ledgers are named: give --cluster for one report of all of them")
    return named[0] if named else ""


def _ledger(named: str, state_dir: str) -> Path:
    """Return the only ledger of the state folder.  Raises ConfigError if there are several, LedgerError without one."""
    if named:
        return Path(named)
    ledgers = ledgers_in(state_dir)
    if not ledgers:
        raise LedgerError(
            f"there is no ledger in {state_folder(state_dir)}: name the file, or the state folder of the server "
            "(--state-dir)"
        )
    if len(ledgers) > 1:
        names = ", ".join(str(path) for path in ledgers)
        raise ConfigError(f"there are {len(ledgers)} ledgers, name one, or give --cluster for all: {names}")
    return ledgers[0]


def _period(given: argparse.Namespace, ledger: LedgerReader, zone: tzinfo, now: float) -> tuple[float, float, str]:
    """Return the period in Unix seconds: that of the command line, or all that the ledger has.  If it was cut at the
    last finished entry, also say so in words."""
    bounds = ledger.bounds()
    if bounds is None:
        raise nothing_of(ledger, 0.0, now, zone)
    start = moment(given.start, zone, now) if given.start else float(bounds[0])
    until = written_until(ledger, bounds, now)
    end = moment(given.end, zone, now) if given.end else settled_end(bounds, until)
    if not given.end and given.start and start >= end:
        raise nothing_of(ledger, start, now, zone)
    if start >= end:
        raise ConfigError(f"--from {given.start or time_words(start, zone)} is not before --to {given.end}")
    if given.end and start < until < end:  # else the future would be a gap
        return start, until, f"asked was until {time_words(end, zone)}, which is not over yet"
    return start, end, "" if given.end else newer_words(bounds, end)


def _document(report: Report, form: str, by: By, zone: tzinfo, advice: Sequence[str], *, comparisons: bool) -> bytes:
    if form == "json":
        return json_of(report)
    if form == "csv":
        return csv_of(report, by).encode()
    if form == "parquet":
        return parquet_of(report, by, msgspec.json.encode(report))
    if form == "html":
        return report_page(report, zone).encode()
    width = terminal.console(WIDTH).width
    return report_text(report, by, zone, width, comparisons=comparisons, advice=advice).encode()


def _verify(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Calculate a report again and print what was found."""
    try:
        text = read_text(Path(given.verify))
        if cluster_data(text) is not None:
            if given.ledgers:
                raise ConfigError(
                    "the report of a cluster is checked without LEDGER: check the own reports of its nodes with it"
                )
            verdict = verify_cluster(text)
        else:
            report = report_in(text)
            path = _ledger(_one(given.ledgers), configured(given, environ).state_dir)
            try:
                with Progress("report", f"calculating from {path.name} again"), LedgerReader(path) as ledger:
                    verdict = verify(report, text, ledger)
            except LedgerError as error:
                raise LedgerError(f"{path}: {error}") from error
    except UnreadableReport as error:
        raise ConfigError(f"{given.verify}: {error}") from error
    for line in verdict.checked:
        print(f"  holds  {line}")
    for line in verdict.faults:
        print(f"  FAULT  {line}")
    return WRONG if verdict.faults else DONE


def _report_calls(given: argparse.Namespace, path: Path, now: float) -> None:
    """List the control calls of the period in the ledger at `path`, oldest first.  Raises ConfigError, LedgerError."""
    form = given.format or suffix_format(given.out) or "table"
    if form not in ("table", "json"):
        raise ConfigError(f"--audit is written as table or json, not as {form}")
    zone = zone_of(given.tz)
    start = moment(given.start, zone, now) if given.start else 0.0
    end = moment(given.end, zone, now) if given.end else now
    try:
        with LedgerReader(path) as ledger:
            calls = ledger.events(start, end, kinds=("control",), limit=_MOST_CALLS)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error
    if form == "json":
        records = [msgspec.json.decode(event.detail) for event in calls]
        write(msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n", given.out)
        return
    columns = terminal.UNWRAPPED if given.out else terminal.line_width()
    lines = [terminal.wrapped(f"{time_words(event.at, zone)}  {event.summary}", columns, "    ") for event in calls]
    if len(calls) == _MOST_CALLS:
        lines.insert(0, f"the newest {_MOST_CALLS} calls; --from and --to choose others")
    write(("\n".join(lines or ["no call changed the server in that time"]) + "\n").encode(), given.out)
