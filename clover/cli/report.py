"""`clover report`: a carbon report of what a server's ledger has of a time."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

import msgspec

from clover import settings, terminal
from clover.cache import state_folder
from clover.cli import CommandParser
from clover.config import ReportConfig
from clover.errors import CloverError, ConfigError, LedgerError
from clover.hints import program
from clover.report.breakdowns import BY
from clover.report.build import ReportOptions
from clover.report.calendar import moment, time_words, zone_of
from clover.report.checking import UnreadableReport, read_text, verify
from clover.report.making import application_of, newer_words, nothing_of, report_from, settled_end, written_until
from clover.report.records import By, Report
from clover.report.render.columns import csv_of, parquet_of
from clover.report.render.page import report_page
from clover.report.render.sci_page import sci_page
from clover.report.render.text import report_text, sci_text
from clover.report.sci_for_ai import SciRefused, sci_for_ai
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.files import ledgers_in

DONE, WRONG, USAGE, REFUSED = 0, 1, 2, 3
_WIDTH = 80
"""Columns if standard output is no terminal."""
_FORMATS = ("table", "json", "csv", "html", "parquet")
_SUFFIXES = {".json": "json", ".csv": "csv", ".html": "html", ".htm": "html", ".parquet": "parquet", ".txt": "table"}
_MOST_CALLS = 10_000
"""Control calls that are listed at most."""
_KEY, _KEY_FILE = "CLOVER_REPORT_KEY", "CLOVER_REPORT_KEY_FILE"
_SHORT_S = 2 * 86_400.0
"""Length of a period up to which a terminal shows hours instead of days."""

_ABOUT = """\
Say what a server emitted over a time, what that saved against what, how sure that is, and where records are missing,
from the ledger that it keeps in its state folder.
"""
_END = """\
exit codes: 0 done; 1 --verify found a fault; 2 wrong command line or configuration; 3 the ledger cannot be read, has
nothing of the time, or no SCI for AI report can be issued of it.
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
        (_audit if given.audit else _report)(given, environment, now())
    except ConfigError as error:
        return _fail(str(error), USAGE)
    except SciRefused as error:
        return _fail(f"no SCI for AI report can be issued: {error}", REFUSED)
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
    add("ledger", metavar="LEDGER", nargs="?", default="", help="ledger file; by default the one in the state folder")
    add("--state-dir", metavar="DIR", default="", help="state folder of the server [$XDG_STATE_HOME/clover]")
    add("--config", metavar="FILE", default="", help="read [report] and state_dir from this TOML file [CLOVER_CONFIG]")
    add(
        "--from", dest="start", metavar="TIME", default="", help="2026-11, 2026-11-20, 2026-11-20T06:00, 7d (ago) [all]"
    )
    add("--to", dest="end", metavar="TIME", default="", help="the same; the period ends before it [now]")
    add("--tz", metavar="ZONE", default="UTC", help="time zone of times, days and months, as Europe/Berlin [UTC]")
    add(
        "--by",
        metavar="WHAT",
        choices=BY,
        default=None,
        help=f"what the table, CSV or Parquet splits grams by: {', '.join(BY)} [day or hour]",
    )
    add("--format", choices=_FORMATS, default=None, help="by default that of FILE's ending, or table")
    add("--out", metavar="FILE", default="", help="write there instead of standard output")
    add("--market-g", metavar="G", type=float, default=None, help="gCO2e/kWh of the contract [report.market_g_per_kwh]")
    add("--market-source", metavar="TEXT", default="", help="where that factor is from [report.market_source]")
    add("--audit", action="store_true", help="list the calls that changed the server then instead: table or json")
    add("--sci-for-ai", action="store_true", help="issue the consumer report of SCI for AI: table, json or html")
    add("--key-file", metavar="FILE", default="", help=f"key that signs the report [{_KEY}, {_KEY_FILE}]")
    add("--verify", metavar="FILE", default="", help="check a report (json, html); with LEDGER, calculate it again")
    return parser


@dataclass(frozen=True)
class _Stated:
    """What the configuration says: the settings `[report]` and the state folder."""

    report: ReportConfig
    state_dir: str


def _configured(given: argparse.Namespace, environ: Mapping[str, str]) -> _Stated:
    argv = ["--config", given.config] if given.config else []
    config = settings.load(argv, environ).config
    return _Stated(config.report, given.state_dir or config.state_dir)


def _report(given: argparse.Namespace, environ: Mapping[str, str], now: float) -> None:
    """Make the report and write it."""
    form = _format(given)
    stated, zone, key = _configured(given, environ), zone_of(given.tz), _key(given, environ)
    path = _ledger(given.ledger, stated.state_dir)
    try:
        with LedgerReader(path) as ledger:
            start, end, edges = _period(given, ledger, zone, now)
            options = ReportOptions(
                start=start,
                end=end,
                made=now,
                server=path.stem,
                application=application_of(stated.report),
                market_g_per_kwh=_market(given, stated.report),
                market_source=given.market_source or stated.report.market_source,
                zone=zone,
                zone_name=given.tz,
                edges=edges,
                key=key,
            )
            report = report_from(ledger, options)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error
    by: By = given.by or _usual(report, form)
    document = _sci(report, form, zone) if given.sci_for_ai else _document(report, form, by, zone)
    _write(document, given.out)


def _audit(given: argparse.Namespace, environ: Mapping[str, str], now: float) -> None:
    """List who changed the server, or was refused, in the period, oldest first."""
    form = given.format or _SUFFIXES.get(Path(given.out).suffix.lower(), "table")
    if form not in ("table", "json"):
        raise ConfigError(f"--audit is written as table or json, not as {form}")
    zone = zone_of(given.tz)
    path = _ledger(given.ledger, _configured(given, environ).state_dir)
    start = moment(given.start, zone, now) if given.start else 0.0
    end = moment(given.end, zone, now) if given.end else now
    try:
        with LedgerReader(path) as ledger:
            found = ledger.events(start, end, kinds=("control",), limit=_MOST_CALLS)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error
    if form == "json":
        records = [msgspec.json.decode(event.detail) for event in found]
        _write(msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n", given.out)
        return
    lines = [f"{time_words(event.at, zone)}  {event.summary}" for event in found]
    if len(found) == _MOST_CALLS:
        lines.insert(0, f"the newest {_MOST_CALLS} calls; --from and --to choose others")
    _write(("\n".join(lines or ["no call changed the server in that time"]) + "\n").encode(), given.out)


def _market(given: argparse.Namespace, stated: ReportConfig) -> float | None:
    if given.market_g is None:
        return stated.market_g_per_kwh
    if not 0.0 <= given.market_g < math.inf:
        raise ConfigError(f"--market-g is in gCO2e/kWh, 0 or more, not {given.market_g:g}")
    return float(given.market_g)


def _format(given: argparse.Namespace) -> str:
    """Return the format, and refuse what cannot be written where it is to go."""
    form: str = given.format or _SUFFIXES.get(Path(given.out).suffix.lower(), "table")
    if given.sci_for_ai and form not in ("table", "json", "html"):
        raise ConfigError(f"--sci-for-ai has the formats table, json and html, not {form}")
    if not given.out and (form == "parquet" or (form == "html" and sys.stdout.isatty())):
        raise ConfigError(f"--format {form} is not for a terminal: give --out FILE")
    return form


def _usual(report: Report, form: str) -> By:
    short = report.period.end - report.period.start <= _SHORT_S
    return "hour" if short or form in ("csv", "parquet") else "day"


def _key(given: argparse.Namespace, environ: Mapping[str, str]) -> bytes:
    """Return the key that signs; empty without one."""
    named = given.key_file or ("" if environ.get(_KEY) else environ.get(_KEY_FILE, ""))
    if not named:
        return environ.get(_KEY, "").encode()
    try:
        found = Path(named).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the key file {named} cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"the key file {named} is empty")
    return found


def _ledger(named: str, state_dir: str) -> Path:
    """Return the ledger that is meant.  Raises ConfigError if there are several, LedgerError if there is none."""
    if named:
        return Path(named)
    found = ledgers_in(state_dir)
    if not found:
        raise LedgerError(
            f"there is no ledger in {state_folder(state_dir)}: name the file, or the state folder of the server "
            "(--state-dir)"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise ConfigError(f"there are {len(found)} ledgers, name one: {names}")
    return found[0]


def _period(given: argparse.Namespace, ledger: LedgerReader, zone: tzinfo, now: float) -> tuple[float, float, str]:
    """Return the period in Unix seconds: what the command line says, or all that the ledger has; and in words, if it
    was cut at what is not over yet."""
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


def _document(report: Report, form: str, by: By, zone: tzinfo) -> bytes:
    if form == "json":
        return _json(report)
    if form == "csv":
        return csv_of(report, by).encode()
    if form == "parquet":
        return parquet_of(report, by, msgspec.json.encode(report))
    if form == "html":
        return report_page(report, zone).encode()
    return report_text(report, by, zone, terminal.console(_WIDTH).width).encode()


def _sci(report: Report, form: str, zone: tzinfo) -> bytes:
    found = sci_for_ai(report, zone)
    if form == "json":
        return _json(found)
    if form == "html":
        return sci_page(found, zone).encode()
    return sci_text(found, zone, terminal.console(_WIDTH).width).encode()


def _json(document: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _write(document: bytes, out: str) -> None:
    if not out:
        sys.stdout.write(document.decode())
        return
    try:
        Path(out).write_bytes(document)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror or error}") from error
    size = f"{len(document) / 1e6:.1f} MB" if len(document) >= 1e5 else f"{len(document) / 1e3:.1f} kB"
    print(f"clover report: wrote {out} ({size})", file=sys.stderr)


def _verify(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Check a report and print what was found."""
    key = _key(given, environ)
    try:
        text = read_text(Path(given.verify))
        if given.ledger:
            with LedgerReader(Path(given.ledger)) as ledger:
                found = verify(text, key, ledger)
        else:
            found = verify(text, key, None)
    except UnreadableReport as error:
        raise ConfigError(f"{given.verify}: {error}") from error
    except LedgerError as error:
        raise LedgerError(f"{given.ledger}: {error}") from error
    for line in found.checked:
        print(f"  holds  {line}")
    for line in found.faults:
        print(f"  FAULT  {line}")
    seal = found.report.seal
    if not key:
        signed = "it is signed; give the key (--key-file) to check the signature"
        unsigned = "it is not signed: whoever can write the file can make its digests"
        print(f"  note   {signed if seal.hmac_sha256 else unsigned}")
    if not given.ledger:
        print("  note   give the ledger, too, to calculate the figures again")
    return WRONG if found.faults else DONE
