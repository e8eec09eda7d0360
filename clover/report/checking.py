"""Checks a report against its ledger: its figures, calculated again, and the text of its page.

A report of several servers carries the reports of its nodes, and each of its sums has to follow from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from clover._version import __version__
from clover.errors import CloverError
from clover.malformed import MALFORMED
from clover.report.build import ReportOptions, report_of
from clover.report.calendar import zone_of
from clover.report.cluster import ClusterOptions, NodeLedger, cluster_report_of
from clover.report.cluster_records import CLUSTER_SCHEMA, ClusterReport
from clover.report.recalculation import COMPARED, TOLERANCE, deviations, differing, gap_deviations
from clover.report.records import SCHEMA, Report
from clover.report.render.cluster import cluster_report_page
from clover.report.render.markup import data_of, shown_of
from clover.report.render.page import report_page
from clover.report.source import read_rows
from clover.telemetry.ledger.store import LedgerReader


class UnreadableReport(CloverError):
    """A file that was to be verified is no report."""


class _Kind(msgspec.Struct):
    """What JSON of any kind says of itself."""

    schema: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found: `faults` say what is wrong, `checked` what was looked at and holds."""

    faults: tuple[str, ...]
    checked: tuple[str, ...]


def report_in(text: str) -> Report:
    """Return the report that JSON or a page holds.  Raises UnreadableReport."""
    data = data_of(text) if is_page(text) else text
    if data is None:
        raise UnreadableReport("the page carries no data of a report")
    return _decode(data.encode())


def is_page(text: str) -> bool:
    """Return whether `text` is HTML rather than JSON."""
    return text.lstrip()[:1] == "<"


def verify(report: Report, text: str, ledger: LedgerReader) -> Verdict:
    """Calculate a report again from its ledger.  If its `text` is a page, also compare the page with the report's data.
    Raises LedgerError or ConfigError."""
    wrong: list[str] = []
    checked: list[str] = []
    if is_page(text):
        zone = zone_of(report.period.zone)
        # With charts, and as it is made where nothing draws them.
        again = (report_page(report, zone), report_page(report, zone, charts=False))
        if shown_of(text) in map(shown_of, again):
            checked.append("that the page shows its data")
        else:
            wrong.append(
                "the text of the page does not follow from its data (changed, or made by another version of Clover, or "
                "of plotly, which draws its charts)"
            )
    _compare(report, ledger, wrong, checked)
    return Verdict(tuple(wrong), tuple(checked))


def _decode(data: bytes) -> Report:
    try:
        if msgspec.json.decode(data, type=_Kind).schema != SCHEMA:
            raise UnreadableReport(f"it is no report of Clover that this version knows ({SCHEMA})")
        return msgspec.json.decode(data, type=Report)
    except MALFORMED as error:
        raise UnreadableReport(f"it is no report that can be checked: {error}") from error


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
    again = msgspec.structs.replace(again, clover=report.clover)
    if again == report:
        checked.append("that the ledger gives the same report")
        return
    if again.inputs == report.inputs and report.clover == __version__:
        _compare_exactly(report, again, wrong, checked)
        return
    if differences := deviations(report, again):
        wrong += differences
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
    elif differences := gap_deviations(report, again):
        wrong += differences
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


def cluster_data(text: str) -> bytes | None:
    """Return the JSON of a report of several servers, from JSON or from its page; None if `text` is something else."""
    data = data_of(text) if is_page(text) else text
    try:
        return data.encode() if data and msgspec.json.decode(data, type=_Kind).schema == CLUSTER_SCHEMA else None
    except msgspec.DecodeError:
        return None


def verify_cluster(text: str) -> Verdict:
    """Calculate a report of several servers (JSON or HTML) again from the reports of its nodes.  Raises
    UnreadableReport."""
    data = cluster_data(text)
    if data is None:
        raise UnreadableReport("it is no report of a cluster")
    try:
        report = msgspec.json.decode(data, type=ClusterReport)
    except msgspec.DecodeError as error:
        raise UnreadableReport(f"it is no report that can be checked: {error}") from error
    wrong: list[str] = []
    checked: list[str] = []
    try:
        again = _again(report)
    except CloverError as error:
        wrong.append(str(error))
    else:
        if again == report:
            checked.append("that every sum follows from the reports of its nodes")
        else:
            wrong.append("its sums do not follow from the reports of its nodes")
    if is_page(text):
        if shown_of(cluster_report_page(report, zone_of(report.zone))) == shown_of(text):
            checked.append("that the page shows its data")
        else:
            wrong.append(
                "the text of the page does not follow from its data (changed, or made by another version of Clover)"
            )
    return Verdict(tuple(wrong), tuple(checked))


def _again(report: ClusterReport) -> ClusterReport:
    """Return the report that the nodes' reports give.  Raises LedgerError."""
    by_name = {item.server: item for item in report.reports}
    nodes = [NodeLedger(item.line.name, item.region, by_name.get(item.line.name), item.why) for item in report.nodes]
    options = ClusterOptions(
        start=report.start,
        end=report.end,
        made=report.made,
        application=report.application,
        zone=zone_of(report.zone),
        zone_name=report.zone,
        edges=report.edges,
    )
    return msgspec.structs.replace(cluster_report_of(nodes, options), clover=report.clover)
