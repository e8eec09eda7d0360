"""Makes reports of a ledger: for the command, and the page of today for a running server."""

from __future__ import annotations

from dataclasses import replace
from datetime import tzinfo
from pathlib import Path

from clover.config import ReportConfig
from clover.errors import LedgerError
from clover.report.build import ReportOptions, report_of
from clover.report.calendar import begin_of, time_words
from clover.report.records import Report, ReportedApplication
from clover.report.render.page import report_page
from clover.report.source import read_rows, whole_spans
from clover.telemetry.ledger import LedgerReader

_SETTLED_S = 30.0
"""Seconds after which a running server has written a minute."""


def application_of(stated: ReportConfig) -> ReportedApplication:
    """Return what the settings say of the application, and who answers for it."""
    return ReportedApplication(
        name=stated.application,
        version=stated.version,
        description=stated.description,
        url=stated.url,
        organisation=stated.organisation,
        accountable=stated.accountable,
        contact=stated.contact,
    )


def settled(now: float) -> float:
    """Return the last minute's end that a running server has surely written."""
    return now - _SETTLED_S - (now - _SETTLED_S) % 60.0


def report_from(ledger: LedgerReader, options: ReportOptions) -> Report:
    """Return the report of a ledger; its period is widened to whole entries.  Raises LedgerError if the ledger has
    nothing of it, or cannot be read."""
    zone = options.zone
    start, end = whole_spans(ledger, options.start, options.end)
    rows = read_rows(ledger, start, end, zone)
    if not (rows.usage or rows.lines or rows.grid):
        raise nothing_of(ledger, options.start, options.end, zone)
    edges = options.edges
    if (start, end) != (options.start, options.end):
        edges = (
            f"asked was {time_words(options.start, zone)} to {time_words(options.end, zone)}, which the ledger has "
            "only as parts of longer entries"
        )
    return report_of(rows, replace(options, start=start, end=end, edges=edges))


def nothing_of(ledger: LedgerReader, start: float, end: float, zone: tzinfo) -> LedgerError:
    """Return the error that says what a ledger has instead of this period.  Raises LedgerError."""
    bounds = ledger.bounds()
    if bounds is None:
        return LedgerError("the ledger is empty: nothing was recorded yet")
    has = f"it has {time_words(bounds[0], zone)} to {time_words(bounds[1], zone)}"
    return LedgerError(f"the ledger has nothing from {time_words(start, zone)} to {time_words(end, zone)}: {has}")


def page_of_today(path: Path, now: float, zone: tzinfo, stated: ReportConfig) -> str:
    """Return the report of the day of `now` so far, as an HTML document.  Raises LedgerError."""
    start = begin_of(now, "day", zone)
    options = ReportOptions(
        start=start,
        end=max(settled(now), start + 60.0),
        made=now,
        server=path.stem,
        application=application_of(stated),
        market_g_per_kwh=stated.market_g_per_kwh,
        market_source=stated.market_source,
        zone=zone,
        zone_name=getattr(zone, "key", "UTC"),
    )
    with LedgerReader(path) as ledger:
        return report_page(report_from(ledger, options), zone)
