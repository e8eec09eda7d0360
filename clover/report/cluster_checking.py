"""Whether the report of several servers is as it was made: its seal, its nodes' seals, and every sum of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from clover.errors import CloverError
from clover.report.calendar import zone_of
from clover.report.checking import UnreadableReport
from clover.report.cluster import ClusterOptions, NodeLedger, cluster_report_of
from clover.report.cluster_records import CLUSTER_SCHEMA, ClusterReport
from clover.report.render.cluster import cluster_report_page
from clover.report.render.markup import data_of
from clover.report.sealing import faults


@dataclass(frozen=True)
class ClusterVerdict:
    """What was found: `faults` say what is wrong, `checked` what was looked at and holds."""

    report: ClusterReport
    faults: tuple[str, ...]
    checked: tuple[str, ...]


class _Kind(msgspec.Struct):
    """What JSON says of itself."""

    schema: str = ""


def cluster_data(text: str) -> bytes | None:
    """Return the JSON of a report of several servers, from JSON or from its page; None if `text` is something else."""
    data = data_of(text) if text.lstrip()[:1] == "<" else text
    try:
        return data.encode() if data and msgspec.json.decode(data, type=_Kind).schema == CLUSTER_SCHEMA else None
    except msgspec.DecodeError:
        return None


def verify_cluster(text: str, key: bytes) -> ClusterVerdict:
    """Check a report of several servers (JSON or HTML): all of it follows from the reports of its nodes, which it
    carries.  Raises UnreadableReport."""
    data = cluster_data(text)
    if data is None:
        raise UnreadableReport("it is no report of a cluster")
    try:
        report = msgspec.json.decode(data, type=ClusterReport)
    except msgspec.DecodeError as error:
        raise UnreadableReport(f"it is no report that can be checked: {error}") from error
    wrong = faults(report, key)
    checked = [] if wrong else ["the digests of its inputs and of its figures"]
    if key and not wrong:
        checked.append("its signature")
    own = [f"{item.server}: {text}" for item in report.reports for text in faults(item)]
    wrong += own
    if not own:
        checked.append(f"the digests of its nodes' reports ({len(report.reports)})")
    try:
        again = _again(report)
    except CloverError as error:
        wrong.append(str(error))
    else:
        if msgspec.structs.replace(again, seal=report.seal) == report:
            checked.append("that every sum follows from the reports of its nodes")
        else:
            wrong.append("its sums do not follow from the reports of its nodes")
    if text.lstrip()[:1] == "<":
        if cluster_report_page(report, zone_of(report.zone)) == text:
            checked.append("that the page shows its data")
        else:
            wrong.append(
                "the text of the page does not follow from its data (changed, or made by another version of Clover)"
            )
    return ClusterVerdict(report, tuple(wrong), tuple(checked))


def _again(report: ClusterReport) -> ClusterReport:
    """Return the report that the nodes' reports give.  Raises LedgerError."""
    by_digest = {item.seal.report_sha256: item for item in report.reports}
    nodes = [
        NodeLedger(item.line.name, item.region, by_digest.get(item.report_sha256), item.why) for item in report.nodes
    ]
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
