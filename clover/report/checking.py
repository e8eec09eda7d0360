"""Whether a report is as it was made: its seal, the text of its page, and, with the ledger, its figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from clover._version import __version__
from clover.errors import CloverError
from clover.malformed import MALFORMED
from clover.report.build import ReportOptions, report_of
from clover.report.calendar import zone_of
from clover.report.recalculation import (
    COMPARED,
    TOLERANCE,
    deviations,
    differing,
    gap_deviations,
    same_minutes,
)
from clover.report.records import SCHEMA, Report
from clover.report.render.markup import data_of
from clover.report.render.page import report_page
from clover.report.render.sci_page import sci_page
from clover.report.sci_for_ai import SCHEMA as SCI_SCHEMA
from clover.report.sci_for_ai import SciForAi, sci_for_ai
from clover.report.sealing import faults, sealed
from clover.report.source import read_rows
from clover.telemetry.ledger.store import LedgerReader

_SCRIPT = re.compile(r"<script[ >].*?</script>", re.DOTALL)


class UnreadableReport(CloverError):
    """A file that was to be verified is no report."""


class _Kind(msgspec.Struct):
    """What JSON of any kind says of itself."""

    schema: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found: `faults` say what is wrong, `checked` what was looked at and holds."""

    report: Report
    faults: tuple[str, ...]
    checked: tuple[str, ...]


def verify(text: str, key: bytes, ledger: LedgerReader | None) -> Verdict:
    """Check a report (JSON or HTML, SCI for AI too) by itself, and with `ledger` calculate it again.  Raises
    UnreadableReport, LedgerError or ConfigError."""
    data, is_page = text, False
    if text.lstrip()[:1] == "<":
        found = data_of(text)
        if found is None:
            raise UnreadableReport("the page carries no data of a report")
        data, is_page = found, True
    report, sci = _decoded(data.encode())
    zone = zone_of(report.period.zone)
    wrong = faults(report, key)
    checked = [] if wrong else ["the digests of its inputs and of its figures"]
    if key and not wrong:
        checked.append("its signature")
    if sci is not None:
        if msgspec.to_builtins(sci_for_ai(report, zone)) != msgspec.to_builtins(sci):
            wrong.append("the score does not follow from the carbon report that it names as its manifest")
        else:
            checked.append("that the score follows from its manifest")
    if is_page:
        if sci is not None:
            again = [sci_page(sci, zone)]
        else:  # with charts, and as it is made where nothing draws them
            again = [report_page(report, zone), report_page(report, zone, charts=False)]
        if text in again:
            checked.append("that the page shows its data")
        elif _words_of(text) in map(_words_of, again):
            wrong.append(
                "the page has scripts, charts or notes that cannot be checked here: of another version of plotly "
                "(extra dashboard), or added to it"
            )
        else:
            wrong.append(
                "the text of the page does not follow from its data (changed, or made by another version of Clover)"
            )
    if ledger is not None:
        _compare(report, ledger, wrong, checked)
    return Verdict(report, tuple(wrong), tuple(checked))


def _decoded(data: bytes) -> tuple[Report, SciForAi | None]:
    try:
        kind = msgspec.json.decode(data, type=_Kind)
        if kind.schema == SCI_SCHEMA:
            sci = msgspec.json.decode(data, type=SciForAi)
            return sci.manifest, sci
        if kind.schema != SCHEMA:
            raise UnreadableReport(f"it is no report of Clover that this version knows ({SCHEMA}, {SCI_SCHEMA})")
        return msgspec.json.decode(data, type=Report), None
    except MALFORMED as error:
        raise UnreadableReport(f"it is no report that can be checked: {error}") from error


def _words_of(page: str) -> str:
    """Return a page without what depends on the package that draws charts."""
    return re.sub(r'<div class="chart".*?</div>|<p class="note">.*?</p>', "", _SCRIPT.sub("", page))


def _compare(report: Report, ledger: LedgerReader, wrong: list[str], checked: list[str]) -> None:
    """Calculate the report again from the ledger."""
    period, market = report.period, report.market_g_per_kwh
    zone = zone_of(period.zone)
    source = next((item.source for item in report.inputs.factors if item.name == "market-based intensity"), "")
    again = report_of(
        read_rows(ledger, period.start, period.end, zone),
        ReportOptions(
            start=period.start,
            end=period.end,
            made=report.made,
            server=report.server,
            application=report.application,
            market_g_per_kwh=market,
            market_source=source,
            zone=zone,
            zone_name=period.zone,
            edges=period.edges,
        ),
    )
    again = sealed(msgspec.structs.replace(again, clover=report.clover))
    if again.seal.report_sha256 == report.seal.report_sha256:
        checked.append("that the ledger gives the same report")
        return
    if again.inputs == report.inputs and report.clover == __version__:
        _compare_exactly(report, again, wrong, checked)
        return
    if found := deviations(report, again):
        wrong += found
        return
    other = "" if report.clover == __version__ else f"; it was made by Clover {report.clover}"
    checked.append(
        "that the ledger gives the same sums (its entries were put together, or added to, since"
        f"{other}). Compared, within {100.0 * TOLERANCE:g} %: {COMPARED}"
    )


def _compare_exactly(report: Report, again: Report, wrong: list[str], checked: list[str]) -> None:
    """Compare a report with what the same version of Clover makes of the same entries."""
    if parts := differing(report, again):
        wrong.append(
            f"the ledger has the entries that the report names, and they give other figures: {', '.join(parts)}"
        )
    elif not same_minutes(report, again):
        wrong.append("the ledger has the entries that the report names, and they give other gaps")
    elif found := gap_deviations(report, again):
        wrong += found
    else:
        checked.append(
            "that the ledger gives exactly the same figures; of gaps it gives how long they are, as its minutes were "
            "put together since"
        )


def read_text(path: Path) -> str:
    """Return the text of a file.  Raises UnreadableReport."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableReport(error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise UnreadableReport("it is no text in UTF-8") from error
