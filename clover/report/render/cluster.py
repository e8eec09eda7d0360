"""The report of several servers for people on a terminal, as a table for programs, and as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo
from decimal import Decimal
from html import escape

import msgspec

from clover import terminal
from clover.hints import printable
from clover.report.calendar import TIMES, time_words
from clover.report.cluster_records import ClusterBy, ClusterLine, ClusterReport
from clover.report.records import GramsRange
from clover.report.render import markup
from clover.report.render.columns import Cell, csv_text, iso, parquet_bytes
from clover.report.render.markup import card, paragraph, section, table
from clover.report.render.text import text_filled
from clover.report.wording import (
    duration,
    energy,
    entries_words,
    mass,
    number,
    parts_words,
    percent,
    points_words,
    saved_words,
    span,
)
from clover.terminal import Column

_MOST_LINES = 60
"""Lines of a breakdown that a terminal shows; more are in the other formats."""
_NOT_SHARED = (
    "Savings are those of each server against other ways to serve its own rows on its own machine. What sharing rows "
    "between machines and releasing some of them brings is not in them."
)


class ExactDecimal(Decimal):
    """A decimal number that is written in full, never as 1E-9."""

    def __str__(self) -> str:
        return f"{self:f}"


def exact(units: int | None, places: int) -> Cell:
    """Return whole units of 10^-places as a decimal number, so that a column adds up exactly; None stays None."""
    return None if units is None else ExactDecimal(units).scaleb(-places)


def cluster_table(report: ClusterReport, by: ClusterBy) -> tuple[list[str], list[list[Cell]]]:
    """Return heads and rows of a breakdown.  `energy_j` has six digits and grams nine, which are all that there are."""
    regions = {item.line.name: item.region for item in report.nodes}
    heads = [by, *(["region"] if by == "node" else []), "start_utc", "requests", "rows", "energy_j"]
    heads += ["intensity_g_per_kwh", "location_based_gco2e", "market_based_gco2e", "embodied_gco2e", "boundary"]
    rows: list[list[Cell]] = []
    for line in report.breakdown(by).lines:
        row: list[Cell] = [line.name, *([regions[line.name]] if by == "node" else [])]
        row += [None if line.start is None else iso(line.start), line.requests, line.rows]
        row += [exact(line.joules_uj, 6), line.g_per_kwh, exact(line.grams_ng, 9)]
        row += [exact(line.market_ng, 9), exact(line.embodied_ng, 9)]
        rows.append([*row, report.boundary])
    return heads, rows


def cluster_csv(report: ClusterReport, by: ClusterBy) -> str:
    """Return a breakdown as CSV (RFC 4180)."""
    return csv_text(*cluster_table(report, by))


def cluster_parquet(report: ClusterReport, by: ClusterBy) -> bytes:
    """Return a breakdown as a Parquet file with the report as JSON in its metadata.  Raises ConfigError without
    pyarrow."""
    heads, rows = cluster_table(report, by)
    plain = [[float(cell) if isinstance(cell, Decimal) else cell for cell in row] for row in rows]
    texts = (by, "region", "start_utc", "boundary")
    return parquet_bytes(heads, plain, texts, msgspec.json.encode(report))


# --- text -----------------------------------------------------------------------------------------------------------


def cluster_text(report: ClusterReport, by: ClusterBy, zone: tzinfo, width: int) -> str:
    """Return the report in lines of at most `width` characters."""
    start, end = time_words(report.start, zone), time_words(report.end, zone)
    named = report.application.name or "this cluster"
    head = f"Carbon report of {named}, {_count_text(report)}: {start} to {end}"
    head = f"{head}; {report.edges}" if report.edges else head
    parts = [
        text_filled(head, width, ""),
        terminal.listing([(name, printable(text)) for name, text in cluster_headline(report)], width),
        _lines_text("Electricity by region", report, "region", zone, width),
        _lines_text("Electricity by node", report, "node", zone, width),
        _lines_text(f"Electricity by {by}", report, by, zone, width) if by not in ("region", "node") else "",
        _quality_text(report, width),
        _with_title("Nodes", terminal.listing(list(_node_words(report)), width)),
        _with_title("What is counted", text_filled(f"{report.boundary_about} {_NOT_SHARED}", width)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _count_text(report: ClusterReport) -> str:
    nodes, regions = len(report.nodes), len(report.regions)
    return f"{nodes} node{'s' * (nodes != 1)} in {regions} region{'s' * (regions != 1)}"


def _range(line: ClusterLine) -> GramsRange:
    return GramsRange(grams=line.grams_ng / 1e9, low_g=(line.low_ng or 0) / 1e9, high_g=(line.high_ng or 0) / 1e9)


def cluster_headline(report: ClusterReport) -> Iterator[tuple[str, str]]:
    """Yield the answers of the report: how much, saved against what, how sure, what is missing."""
    total = report.total
    text = f"{mass(total.grams_ng / 1e9)} of CO2e by {energy(total.joules_uj / 1e6)} for {number(total.rows)} rows"
    yield "Emitted", f"{text}; {_hardware(report)}"
    if total.market_ng is not None:
        factors = sorted({item.market_g_per_kwh for item in report.reports if item.market_g_per_kwh is not None})
        each = " and ".join(f"{factor:g}" for factor in factors)
        yield "Market-based", f"{mass(total.market_ng / 1e9)} at the {each} g/kWh of the contract, for all nodes alike"
    for item in report.saved:
        yield "Saved", f"{saved_words(item)}, of {percent(item.part_of_emitted)} of the emissions"
    known = f"energy {parts_words(report.energy_known)}; intensity {parts_words(report.intensity_known)}"
    yield "How sure", f"Between {span(_range(total), 'and')}; {known} (shares of the energy)"
    for text in report.cautions:
        yield "CAUTION", text
    yield "Gaps", _gap_words(report)


def _hardware(report: ClusterReport) -> str:
    if report.total.embodied_ng is None:
        lacking = [item.line.name for item in report.nodes if item.line.embodied_ng is None]
        return f"that of making the hardware is unknown of {', '.join(lacking)}, and not in it"
    text = f"{mass(report.total.embodied_ng / 1e9)} as the share of making the hardware"
    return text if report.sci_g is None else f"{text}; {mass(1e3 * report.sci_g)} in all for 1,000 rows"


def _gap_words(report: ClusterReport) -> str:
    missing = [f"{item.line.name}: {item.why}" for item in report.nodes if item.why]
    missing += [f"{item.line.name}: {duration(item.gap_s)} without a record" for item in report.nodes if item.gap_s]
    return "; ".join(missing) or "no node has a gap in its record"


def _lines_text(title: str, report: ClusterReport, by: ClusterBy, zone: tzinfo, width: int) -> str:
    breakdown = report.breakdown(by)
    columns = [
        Column(by, right=False),
        *([Column("region", right=False)] if by == "node" else []),
        Column("rows"),
        Column("energy"),
        Column("g/kWh", spare=1),
        Column("CO2e"),
        Column("market-based", spare=3),
        Column("hardware", spare=2),
        Column("part", spare=4),
    ]
    regions = {item.line.name: item.region for item in report.nodes}
    rows = []
    total = report.total if by in ("node", "region") else msgspec.structs.replace(report.total, embodied_ng=None)
    for line in (*breakdown.lines[:_MOST_LINES], msgspec.structs.replace(total, name="sum")):
        where = [printable(regions.get(line.name, ""))] if by == "node" else []
        rows.append([printable(line.name), *where, *_cells(line, report.total)])
    lines, left = terminal.plain(columns, rows, width - 2)
    text = "\n".join(f"  {line}".rstrip() for line in lines)
    text += f"\n  left out for want of room: {', '.join(left)}" if left else ""
    if len(breakdown.lines) > _MOST_LINES:
        text += f"\n  and {len(breakdown.lines) - _MOST_LINES} more: --format csv has all"
    return "\n".join([title, text, *(text_filled(note, width) for note in _notes(report, by, zone))])


def _notes(report: ClusterReport, by: ClusterBy, zone: tzinfo) -> list[str]:
    """Return what is to be known of hours, days or months if ledgers have put their entries together."""
    known = next((time for time in TIMES if time == by), None)
    notes = [entries_words(item, known, zone) for item in report.reports] if known else []
    return [text for text in dict.fromkeys(notes) if text]


def _cells(line: ClusterLine, total: ClusterLine) -> list[str]:
    return [
        number(line.rows),
        energy(line.joules_uj / 1e6),
        "" if line.g_per_kwh is None else f"{line.g_per_kwh:.0f}",
        mass(line.grams_ng / 1e9),
        "" if line.market_ng is None else mass(line.market_ng / 1e9),
        "" if line.embodied_ng is None else mass(line.embodied_ng / 1e9),
        percent(line.grams_ng / total.grams_ng) if total.grams_ng else "",
    ]


_QUALITY_HEADS = ("model", "rows", "accuracy", "by labels", "SLO", "missed")


def _quality_rows(report: ClusterReport) -> list[tuple[str, ...]]:
    return [
        (
            printable(item.model),
            number(item.rows),
            "" if item.accuracy is None else f"{item.accuracy:.2f} %",
            "" if item.labelled_accuracy is None else f"{item.labelled_accuracy:.2f} %",
            "" if item.slo_ms is None else f"{item.slo_ms:g} ms",
            percent(item.violations / item.requests) if item.requests else "",
        )
        for item in report.quality
    ]


def _quality_text(report: ClusterReport, width: int) -> str:
    rows = _quality_rows(report)
    if not rows:
        return ""
    columns = [Column(head, right=bool(index)) for index, head in enumerate(_QUALITY_HEADS)]
    lines, _ = terminal.plain(columns, rows, width - 2)
    return "\n".join(["Accuracy (by the profile) and latency", *(f"  {line}".rstrip() for line in lines)])


def _node_words(report: ClusterReport) -> Iterator[tuple[str, str]]:
    for item in report.nodes:
        words = item.why or f"{duration(item.recorded_s)} recorded; {item.grid or 'no intensity'}"
        words += f"; {item.edges}" if item.edges else ""
        yield printable(item.line.name), printable(f"{item.region}: {words}")


def _with_title(title: str, body: str) -> str:
    return f"{title}\n{body}" if body else ""


# --- HTML -----------------------------------------------------------------------------------------------------------


def cluster_report_page(report: ClusterReport, zone: tzinfo) -> str:
    """Return the report as an HTML document that loads nothing and carries its data."""
    name = report.application.name or "this cluster"
    title = f"Carbon report: {name}"
    period = f"{_count_text(report)}, {time_words(report.start, zone)} to {time_words(report.end, zone)}"
    made = f"made {time_words(report.made, zone)} by Clover {report.clover}"
    who = [report.application.organisation, made]
    head = paragraph(period) + (paragraph(report.edges) if report.edges else "")
    head += paragraph("; ".join(word for word in who if word), "soft")
    nodes = [
        (
            item.line.name,
            item.region,
            duration(item.recorded_s),
            duration(item.gap_s),
            "; ".join(filter(None, (item.why or item.grid, item.edges))),
        )
        for item in report.nodes
    ]
    heads = tuple(f"{head[:1].upper()}{head[1:]}" for head in _QUALITY_HEADS)
    parts = (
        f"<header>{_heading(title)}{head}</header>",
        _cards(report),
        "".join(paragraph(text, "caution") for text in report.cautions),
        section("regions", "By region", _lines_table(report, "region")),
        section("nodes", "By node", _lines_table(report, "node")),
        section("models", "By model", _lines_table(report, "model")),
        section("days", "By day", _lines_table(report, "day") + "".join(paragraph(note, "soft") for note in
            _notes(report, "day", zone))),
        section("saved", "Saved, against what", _saved_part(report)),
        section("quality", "Accuracy and latency", table("What was given for it", heads, _quality_rows(report))),
        section("sources", "What each node has recorded", table("Ledgers of the period", ("Node", "Region", "Recorded",
            "Gaps", "Priced at"), nodes, text=(0, 1), wide=(4,))),
        section("boundary", "What is counted, and what is not", paragraph(report.boundary_about)),
    )  # fmt: skip
    return markup.page(title, "".join(parts), data=msgspec.json.encode(report).decode())


def _heading(title: str) -> str:
    return f"<h1>{escape(title)}</h1>"


def _cards(report: ClusterReport) -> str:
    total = report.total
    first = next((item for item in report.saved if item.part is not None), None)
    lines = [f"{energy(total.joules_uj / 1e6)} at the computers", f"{number(total.rows)} rows answered"]
    lines.append(f"{_hardware(report)[:1].upper()}{_hardware(report)[1:]}.")
    saved = card("Saved", "not known", ["The ledgers have nothing to compare this period with."])
    if first is not None:
        figure = f"{mass(abs(first.saved.grams))} ({percent(abs(first.part or 0.0))})"
        more = [f"against {first.name}, on each node's own machine"]
        if (points := first.given_up_points) is not None:
            more.append(points_words(points))
        saved = card("Emitted more" if first.saved.grams < 0.0 else "Saved", figure, more)
    sure = [f"Energy: {parts_words(report.energy_known)}", f"Intensity: {parts_words(report.intensity_known)}"]
    dirty = max(report.regions, key=lambda item: item.line.grams_ng)
    share = percent(dirty.line.grams_ng / total.grams_ng) if total.grams_ng else "0 %"
    return (
        f'<div class="cards">{card("Emitted by electricity", f"{mass(total.grams_ng / 1e9)} CO2e", lines)}{saved}'
        f"{card('How sure', span(_range(total)), sure)}"
        f"{card('Most in', dirty.line.name, [f'{share} of the grams', _gap_words(report)])}</div>"
    )


def _lines_table(report: ClusterReport, by: ClusterBy) -> str:
    market, hardware = report.total.market_ng is not None, by in ("node", "region")
    regions = {item.line.name: item.region for item in report.nodes}
    heads = [by[:1].upper() + by[1:], *(["Region"] if by == "node" else []), "Rows", "Energy", "g/kWh", "CO2e"]
    heads += [*(["Market-based"] if market else []), *(["Hardware"] if hardware else []), "Part"]

    def row(line: ClusterLine, name: str) -> Sequence[str]:
        rows, used, each, co2, bought, made, part = _cells(line, report.total)
        where = [regions.get(line.name, "")] if by == "node" else []
        return [name, *where, rows, used, each, co2, *([bought] if market else []), *([made] if hardware else []), part]

    breakdown = report.breakdown(by)
    lines = [row(line, line.name) for line in breakdown.lines]
    text = (0, 1) if by == "node" else (0,)
    return table(
        breakdown.about[:1].upper() + breakdown.about[1:], heads, lines, text=text, foot=row(report.total, "Sum")
    )


def _saved_part(report: ClusterReport) -> str:
    rows = [
        (
            item.name,
            mass(item.own_g),
            mass(item.other_g),
            mass(item.saved.grams),
            span(item.saved),
            "" if item.part is None else percent(item.part),
            "" if item.given_up_points is None else f"{item.given_up_points:.2f}",
            percent(item.part_of_emitted),
        )
        for item in report.saved
    ]
    heads = ("Against", "Emitted", "Would have been", "Saved", "Interval", "Part", "Accuracy given up, points")
    return paragraph(_NOT_SHARED) + table("Grams of electricity", (*heads, "Of the emissions"), rows)
