"""Makes reports of a ledger: which period the ledger covers, and what to say if it covers none."""

from __future__ import annotations

from dataclasses import replace
from datetime import tzinfo
from pathlib import Path

from clover.config import ReportConfig
from clover.errors import LedgerError
from clover.report.build import ReportOptions, report_of
from clover.report.calendar import time_words
from clover.report.records import Report, ReportedApplication
from clover.report.render.page import report_page
from clover.report.source import read_rows, whole_spans
from clover.telemetry.ledger import LedgerReader

_SETTLED_S = 30.0
"""Seconds after which a running server has written a minute."""
LATEST_S = 31 * 86_400.0
"""How far back the report of a server's page goes; `clover report` makes one of any time."""


def application_of(stated: ReportConfig) -> ReportedApplication:
    """Return what the settings say of the application, and who reports."""
    return ReportedApplication(name=stated.application, organisation=stated.organisation)


def written_until(ledger: LedgerReader, bounds: tuple[float, float], now: float) -> float:
    """Return the time until which a ledger that begins and ends at `bounds` is complete: its last finished minute if
    the server has stopped, else the last minute that the running server has written."""
    runs = ledger.runs()
    if runs and runs[-1].ended is not None:
        return max(float(bounds[1]), now - now % 60.0)
    return now - _SETTLED_S - (now - _SETTLED_S) % 60.0


def settled_end(bounds: tuple[float, float], until: float) -> float:
    """Return the end of what a report can have of a ledger that begins and ends at `bounds` and is `written_until`
    then."""
    # What is under way is not over yet, and may not be written yet.
    last = min(float(bounds[1]), until) if until > bounds[0] else float(bounds[1])
    return max(last, bounds[0] + 60.0)


def newer_words(bounds: tuple[float, float], end: float) -> str:
    """Return a sentence if a ledger with these `bounds` has more than a report until `end`; else empty."""
    written = "what is newer is left out, since a server writes a minute up to half a minute after its end"
    return written if end < bounds[1] else ""


def latest_page(path: Path, stated: ReportConfig, now: float) -> str:
    """Return the report of the last `LATEST_S` seconds that the ledger `path` has, as HTML: what `clover report` would
    make of that time.  Raises LedgerError."""
    options = ReportOptions(
        start=0.0,
        end=now,
        made=now,
        server=path.stem,
        application=application_of(stated),
        market_g_per_kwh=stated.market_g_per_kwh,
        market_source=stated.market_source,
    )
    with LedgerReader(path) as ledger:
        bounds = ledger.bounds()
        if bounds is None:
            raise nothing_of(ledger, 0.0, now, options.zone)
        end = settled_end(bounds, written_until(ledger, bounds, now))
        start = max(float(bounds[0]), end - LATEST_S)
        options = replace(options, start=start, end=end, edges=newer_words(bounds, end))
        return report_page(report_from(ledger, options), options.zone)


def report_from(ledger: LedgerReader, options: ReportOptions) -> Report:
    """Return the report of a ledger; its period is widened to whole entries.  Raises LedgerError if the ledger has
    nothing of it, or cannot be read."""
    zone = options.zone
    start, end = whole_spans(ledger, options.start, options.end)
    rows = read_rows(ledger, start, end, zone)
    if not (rows.usage or rows.lines or rows.grid):
        raise nothing_of(ledger, options.start, options.end, zone)
    edges = [options.edges] if options.edges else []
    if (start, end) != (options.start, options.end):
        edges.append(
            f"asked was {time_words(options.start, zone)} to {time_words(options.end, zone)}, which the ledger has "
            "only as parts of longer entries"
        )
    return report_of(rows, replace(options, start=start, end=end, edges="; ".join(edges)))


class NothingRecorded(LedgerError):
    """A ledger can be read, and has nothing of the period."""


def nothing_of(ledger: LedgerReader, start: float, end: float, zone: tzinfo) -> NothingRecorded:
    """Return the error that says what a ledger has instead of this period.  Raises LedgerError."""
    bounds = ledger.bounds()
    if bounds is None:
        return NothingRecorded("the ledger is empty: nothing was recorded yet")
    has = f"it has {time_words(bounds[0], zone)} to {time_words(bounds[1], zone)}"
    return NothingRecorded(f"the ledger has nothing from {time_words(start, zone)} to {time_words(end, zone)}: {has}")
