"""The reports of several servers put together.  This is a pure function, so anyone can check the sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo

from clover._version import __version__
from clover.accounting.boundaries import DEFAULT, LEAST_ROWS
from clover.accounting.labels import join_labels
from clover.errors import LedgerError
from clover.report.breakdowns import ABOUT, BY
from clover.report.build import BOUNDARY_ABOUT, NOT_COVERED
from clover.report.calendar import TIMES, time_words
from clover.report.cluster_records import (
    ClusterBreakdown,
    ClusterBy,
    ClusterLine,
    ClusterReport,
    ReportedNode,
    ReportedRegion,
)
from clover.report.records import (
    By,
    GramsRange,
    KnownPart,
    QualityFigure,
    Report,
    ReportBucket,
    ReportedApplication,
    SavedFigure,
)
from clover.report.savings import KINDS
from clover.report.wording import cautions, grid_words

UJ, NG = 1e6, 1e9
JOULES_PER_KWH = 3.6e6
NO_REGION = "(no region)"
CLUSTER_BY: tuple[ClusterBy, ...] = ("node", "region", *BY)
_ABOUT_NODES = "each server's own ledger, each minute priced at the intensity of its own grid"
_ABOUT_REGIONS = "the nodes of a region together"


@dataclass(frozen=True)
class NodeLedger:
    """A node's name, its region (empty: that of its grid), and the report of its ledger, or why there is none."""

    name: str
    region: str
    report: Report | None
    why: str = ""


@dataclass(frozen=True)
class ClusterOptions:
    """What is asked for: the period (Unix seconds), when the report is made, who reports, and the zone of days and
    months."""

    start: float
    end: float
    made: float
    application: ReportedApplication = field(default_factory=ReportedApplication)
    zone: tzinfo = UTC
    zone_name: str = "UTC"
    edges: str = ""


def cluster_report_of(nodes: Sequence[NodeLedger], options: ClusterOptions) -> ClusterReport:
    """Return the report of all nodes.  Raises LedgerError if two have the same run, or if none has anything."""
    # In one order, whatever was named first: sums of floats depend on it.
    nodes = sorted(nodes, key=lambda node: (_entry(node).region, node.name))
    reported = [(node, node.report) for node in nodes if node.report is not None]
    if not reported:
        raise LedgerError(f"no ledger has anything of the period: {'; '.join(node.why for node in nodes)}")
    refuse_duplicates([(node.name, report) for node, report in reported], options.zone)
    entries = [_entry(node) for node in nodes]
    total = added("total", [item.line for item in entries])
    reports = tuple(report for _, report in reported)
    return ClusterReport(
        clover=__version__,
        made=options.made,
        application=options.application,
        start=options.start,
        end=options.end,
        zone=options.zone_name,
        edges=options.edges,
        boundary=DEFAULT,
        boundary_about=f"Of each node: {BOUNDARY_ABOUT[DEFAULT]}. {NOT_COVERED}",
        total=total,
        nodes=tuple(entries),
        regions=tuple(_regions(entries)),
        breakdowns=tuple(_breakdowns(entries, reported)),
        saved=_saved(reports, total.grams_ng / NG),
        quality=_quality(reports),
        energy_known=_parts(item for report in reports for item in report.energy_known),
        intensity_known=_parts(item for report in reports for item in report.intensity_known),
        cautions=tuple(_cautions(reported)),
        reports=reports,
    )


def refuse_duplicates(reports: Iterable[tuple[str, Report]], zone: tzinfo) -> None:
    """Raise LedgerError if two reports are of the same entries, as of a ledger and its copy: they would count twice."""
    by_run: dict[tuple[str, float], str] = {}
    by_entries: dict[str, str] = {}
    for name, report in reports:
        for run in report.inputs.runs:
            other = by_run.setdefault((run.host, run.started), name)
            if other != name:
                began = time_words(run.started, zone, seconds=True)
                raise LedgerError(
                    f"{other} and {name} both have the run that began on {run.host} at {began}: one is a copy of the "
                    "other, and would count twice; name one of them"
                )
        if not report.inputs.runs and report.inputs.entries:
            other = by_entries.setdefault(report.inputs.entries_sha256, name)
            if other != name:
                raise LedgerError(
                    f"{other} and {name} have the same entries, which would count twice: name one of them"
                )


def region_of(report: Report) -> str:
    """Return the zone in which most of a report's energy was priced; `NO_REGION` if its sources name none."""
    joules: dict[str, float] = defaultdict(float)
    for grid in report.grids:
        joules[grid.zone] += grid.joules
    named = {zone: amount for zone, amount in joules.items() if zone}
    return max(named, key=lambda zone: (named[zone], zone)) if named else NO_REGION


def _entry(node: NodeLedger) -> ReportedNode:
    report = node.report
    if report is None:
        nothing = ClusterLine(
            name=node.name,
            requests=0,
            rows=0,
            joules_uj=0,
            grams_ng=0,
            low_ng=0,
            high_ng=0,
            market_ng=0,
            embodied_ng=0,
        )
        region = node.region or NO_REGION
        return ReportedNode(line=nothing, region=region, recorded_s=0.0, gap_s=0.0, grid="", why=node.why)
    operation, embodied = report.operation, report.embodied
    line = ClusterLine(
        name=node.name,
        requests=report.requests,
        rows=report.rows,
        joules_uj=round(report.joules * UJ),
        grams_ng=round(operation.grams * NG),
        low_ng=round(operation.low_g * NG),
        high_ng=round(operation.high_g * NG),
        market_ng=None if report.market_g is None else round(report.market_g * NG),
        embodied_ng=None if embodied is None else round(embodied.grams * NG),
        g_per_kwh=operation.grams / kwh if (kwh := report.facility_joules / JOULES_PER_KWH) > 0.0 else None,
    )
    return ReportedNode(
        line=line,
        region=node.region or region_of(report),
        recorded_s=report.period.recorded_s,
        gap_s=sum(gap.seconds for gap in report.gaps if gap.what == "record"),
        grid="; ".join(dict.fromkeys(grid_words(grid) for grid in report.grids if grid.joules > 0.0)),
        edges=report.period.edges,
    )


def added(name: str, lines: Sequence[ClusterLine]) -> ClusterLine:
    """Return the sum of lines; what is unknown of one is unknown of the sum."""

    def known(read: Callable[[ClusterLine], int | None]) -> int | None:
        found = [read(line) for line in lines]
        return None if any(value is None for value in found) else sum(value for value in found if value is not None)

    return ClusterLine(
        name=name,
        requests=known(lambda line: line.requests),
        rows=sum(line.rows for line in lines),
        joules_uj=sum(line.joules_uj for line in lines),
        grams_ng=sum(line.grams_ng for line in lines),
        low_ng=known(lambda line: line.low_ng),
        high_ng=known(lambda line: line.high_ng),
        market_ng=known(lambda line: line.market_ng),
        embodied_ng=known(lambda line: line.embodied_ng),
        g_per_kwh=_mean_intensity(lines),
        start=lines[0].start if lines else None,
    )


def _mean_intensity(lines: Iterable[ClusterLine]) -> float | None:
    """Return the mean over the energy of the facilities; None if it is unknown of a line that has emissions."""
    grams, kwh = 0.0, 0.0
    for line in lines:
        if not line.grams_ng:
            continue
        if not line.g_per_kwh:
            return None
        grams += line.grams_ng / NG
        kwh += line.grams_ng / NG / line.g_per_kwh
    return grams / kwh if kwh > 0.0 else None


def _regions(entries: Iterable[ReportedNode]) -> Iterator[ReportedRegion]:
    lines_by_region: dict[str, list[ClusterLine]] = defaultdict(list)
    for entry in entries:
        lines_by_region[entry.region].append(entry.line)
    for region, lines in sorted(lines_by_region.items()):
        yield ReportedRegion(line=added(region, lines), nodes=len(lines))


def _breakdowns(
    entries: Sequence[ReportedNode], known: Sequence[tuple[NodeLedger, Report]]
) -> Iterator[ClusterBreakdown]:
    yield ClusterBreakdown(by="node", about=_ABOUT_NODES, lines=tuple(item.line for item in entries))
    regions = tuple(item.line for item in _regions(entries))
    yield ClusterBreakdown(by="region", about=_ABOUT_REGIONS, lines=regions)
    for by in BY:
        lines_by_kind: dict[str, list[ClusterLine]] = defaultdict(list)
        for node, report in known:
            for line in _lines(node.name, report, by):
                lines_by_kind[line.name].append(line)
        lines = [added(name, parts) for name, parts in lines_by_kind.items()]
        if by in TIMES:
            lines.sort(key=lambda line: (line.start or 0.0, line.name))
        else:
            lines.sort(key=lambda line: (-line.grams_ng, line.name))
        yield ClusterBreakdown(by=by, about=ABOUT[by], lines=tuple(lines))


def _lines(node: str, report: Report, by: By) -> Iterator[ClusterLine]:
    """Yield a node's buckets in whole units, which sum to its totals in whole units.  Devices bear the node's name."""
    buckets = report.breakdown(by).buckets
    joules = whole_parts([bucket.joules for bucket in buckets], UJ, round(report.joules * UJ))
    grams = whole_parts([bucket.grams for bucket in buckets], NG, round(report.operation.grams * NG))
    market: Sequence[int | None] = [None] * len(buckets)
    if report.market_g is not None:
        market = whole_parts([bucket.market_g or 0.0 for bucket in buckets], NG, round(report.market_g * NG))
    for bucket, uj, ng, bought in zip(buckets, joules, grams, market, strict=True):
        yield _line(f"{node}/{bucket.name}" if by == "device" else bucket.name, bucket, uj, ng, bought)


def _line(name: str, bucket: ReportBucket, uj: int, ng: int, market_ng: int | None) -> ClusterLine:
    return ClusterLine(
        name=name,
        requests=bucket.requests,
        rows=bucket.rows,
        joules_uj=uj,
        grams_ng=ng,
        market_ng=market_ng,
        g_per_kwh=bucket.g_per_kwh,
        start=bucket.start,
    )


def whole_parts(values: Sequence[float], scale: float, whole: int) -> list[int]:
    """Return `values` x `scale` as whole numbers whose sum is `whole`, each off by one at most (if the values sum to
    `whole` but for rounding): the running sum is rounded, and the last part is what is left."""
    parts, done, running = [], 0, 0.0
    for index, value in enumerate(values):
        running += value
        until = whole if index == len(values) - 1 else round(running * scale)
        parts.append(until - done)
        done = until
    return parts


def _saved(reports: Sequence[Report], emitted_g: float) -> tuple[SavedFigure, ...]:
    figures: dict[str, list[SavedFigure]] = defaultdict(list)
    for report in reports:
        for item in report.saved:
            figures[item.against].append(item)
    return tuple(_saving(figures[kind], emitted_g) for kind in KINDS if kind in figures)


def _saving(items: Sequence[SavedFigure], emitted_g: float) -> SavedFigure:
    """Return one comparison over all nodes that have it; intervals are added, as within a node."""
    first = items[0]
    own_g, other_g = sum(item.own_g for item in items), sum(item.other_g for item in items)
    rows = sum(item.rows for item in items)

    def mean(read: Callable[[SavedFigure], float | None]) -> float | None:
        pairs = [(read(item), item.rows) for item in items if item.rows]
        if not rows or any(value is None for value, _ in pairs):
            return None
        return sum((value or 0.0) * count for value, count in pairs) / rows

    return SavedFigure(
        against=first.against,
        name=first.name,
        meaning=first.meaning,
        about=first.about,
        label=join_labels(word for item in items for word in item.label.split(" + ")),
        own_j=sum(item.own_j for item in items),
        own_g=own_g,
        other_j=sum(item.other_j for item in items),
        other_g=other_g,
        saved=GramsRange(
            grams=other_g - own_g,
            low_g=sum(item.saved.low_g for item in items),
            high_g=sum(item.saved.high_g for item in items),
        ),
        part=(other_g - own_g) / other_g if other_g > 0.0 and rows >= LEAST_ROWS else None,
        accuracy=mean(lambda item: item.accuracy),
        other_accuracy=mean(lambda item: item.other_accuracy),
        rows=rows,
        part_of_emitted=own_g / emitted_g if emitted_g > 0.0 else 0.0,
    )


def _quality(reports: Sequence[Report]) -> tuple[QualityFigure, ...]:
    """Return how well each model answered on all nodes: means over rows, and over labelled rows."""
    figures: dict[str, list[QualityFigure]] = defaultdict(list)
    for report in reports:
        for item in report.quality:
            figures[item.model].append(item)
    return tuple(_model(model, items) for model, items in sorted(figures.items()))


def _model(model: str, items: Sequence[QualityFigure]) -> QualityFigure:
    rows, labelled = sum(item.rows for item in items), sum(item.labelled for item in items)
    right = sum((item.accuracy or 0.0) * item.rows for item in items)
    labelled_right = sum((item.labelled_accuracy or 0.0) * item.labelled for item in items)
    slos = {item.slo_ms for item in items if item.requests}
    return QualityFigure(
        model=model,
        rows=rows,
        accuracy=right / rows if rows else None,
        labelled=labelled,
        labelled_accuracy=labelled_right / labelled if labelled else None,
        slo_ms=slos.pop() if len(slos) == 1 else None,
        requests=sum(item.requests for item in items),
        violations=sum(item.violations for item in items),
    )


def _parts(items: Iterable[KnownPart]) -> tuple[KnownPart, ...]:
    """Return how energy, or its intensity, is known over all nodes."""
    joules: dict[str, float] = defaultdict(float)
    about: dict[str, str] = {}
    for item in items:
        joules[item.name] += item.joules
        about.setdefault(item.name, item.about)
    whole = sum(joules.values())
    order = sorted(joules, key=lambda name: (-joules[name], name))
    return tuple(
        KnownPart(name=name, joules=joules[name], part=joules[name] / whole if whole else 0.0, about=about[name])
        for name in order
    )


def _cautions(known: Sequence[tuple[NodeLedger, Report]]) -> Iterator[str]:
    """Yield the reasons not to quote the figures, each with the nodes that it holds for."""
    nodes_by_caution: dict[str, list[str]] = defaultdict(list)
    for node, report in known:
        for text in cautions(report):
            nodes_by_caution[text].append(node.name)
    for text, names in nodes_by_caution.items():
        yield f"{', '.join(names)}: {text}" if len(names) < len(known) else text
