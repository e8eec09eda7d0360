"""Whether every sum of the report of several servers follows from the reports of its nodes, which it carries."""

from __future__ import annotations

import msgspec

from clover.errors import CloverError
from clover.report.calendar import zone_of
from clover.report.checking import UnreadableReport, Verdict, is_page
from clover.report.cluster import ClusterOptions, NodeLedger, cluster_report_of
from clover.report.cluster_records import CLUSTER_SCHEMA, ClusterReport
from clover.report.render.cluster import cluster_report_page
from clover.report.render.markup import data_of, shown_of


class _Kind(msgspec.Struct):
    """What JSON says of itself."""

    schema: str = ""


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
