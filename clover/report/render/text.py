"""A report for people, on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from datetime import tzinfo

from clover import terminal
from clover.hints import printable
from clover.report.calendar import time_words
from clover.report.records import By, Report
from clover.report.wording import (
    basis,
    duration,
    energy,
    entries_words,
    grid_words,
    headline,
    light_words,
    mass,
    number,
    percent,
    period_words,
    span,
)
from clover.terminal import Column

_MOST_GAPS = 10
_MOST_BUCKETS = 60
"""Rows of a breakdown that a terminal shows; more are in the other formats."""


def report_text(
    report: Report, by: By, zone: tzinfo, width: int, *, comparisons: bool = False, advice: Sequence[str] = ()
) -> str:
    """Return the report in lines of at most `width` characters; of a load that is too little to save on, the
    `comparisons` only if they are asked for."""
    parts = [
        _heading(report, zone, width),
        terminal.listing([(head, printable(text)) for head, text in headline(report, zone)], width),
        _section("What would save most", "\n".join(text_filled(line, width) for line in advice)),
        _section("Grams of CO2e", terminal.listing(list(_sums(report)), width)),
        _section(
            "Saved, within the server", "" if light_words(report) and not comparisons else _saved_text(report, width)
        ),
        _section("Accuracy (by the profile) and latency", _quality(report, width)),
        _section(*_breakdown(report, by, zone, width)),
        _section("How it is known", terminal.listing(list(_known_lines(report)), width)),
        _section("Gaps", _gaps(report, zone, width)),
        _section("What is counted", text_filled(report.boundary_about, width)),
        _section("Inputs", terminal.listing(list(_inputs(report, zone)), width)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(report: Report, zone: tzinfo, width: int) -> str:
    named = report.application.name or "this server"
    where = f" ({report.server})" if report.server else ""
    text = f"Carbon report of {named}{where}: {period_words(report, zone)}"
    return text_filled(f"{text}; {report.period.edges}" if report.period.edges else text, width, indent="")


def _section(title: str, body: str) -> str:
    return f"{title}\n{body}" if body else ""


def text_filled(text: str, width: int, indent: str = "  ") -> str:
    """Return a text in lines of `width` characters, each after `indent`."""
    return textwrap.fill(
        printable(text), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _sums(report: Report) -> Iterator[tuple[str, str]]:
    operation = report.operation
    yield (
        basis(report),
        f"{mass(operation.grams)} ({span(operation)}) of electricity, priced by the grid's own intensity",
    )
    if report.market_g is not None:
        yield "market-based", f"{mass(report.market_g)} at the {report.market_g_per_kwh:g} g/kWh of the contract"
    else:
        yield "market-based", "not stated: give report.market_g_per_kwh in the configuration, or --market-g"
    if report.embodied is None:
        yield "embodied", "unknown: no figure of the hardware is in the ledger"
    else:
        yield "embodied", f"{mass(report.embodied.grams)} ({span(report.embodied)}) as the share of making the hardware"
    if report.sci is not None:
        each = f"{mass(1e3 * report.sci.grams)} for 1,000 rows"
        yield "SCI", f"{each} within the {report.boundary} (operation and embodied, ISO/IEC 21031)"
    for boundary in report.boundaries:
        if boundary.boundary != report.boundary:
            text = f"unknown: {boundary.why}" if boundary.grams is None else mass(boundary.grams)
            yield f"only {boundary.boundary}" if boundary.boundary == "workers" else boundary.boundary, text


def _saved_text(report: Report, width: int) -> str:
    columns = (
        Column("against", right=False),
        Column("emitted", spare=2),
        Column("would be", spare=3),
        Column("saved"),
        Column("between", spare=1),
        Column("part"),
        Column("points"),
    )
    rows = [
        (
            _bare(item.name),
            mass(item.own_g),
            mass(item.other_g),
            mass(item.saved.grams),
            span(item.saved, "and"),
            "" if item.part is None else percent(item.part),
            "" if item.given_up_points is None else f"{item.given_up_points:.2f}",
        )
        for item in report.saved
    ]
    legend = [text_filled("points: accuracy given up", width)]
    legend += [text_filled(f"{_bare(item.name)}: {item.about}; shows {item.meaning}", width) for item in report.saved]
    return "\n".join([_table(columns, rows, width), *legend]) if rows else ""


def _bare(name: str) -> str:
    return name.removeprefix("the ").removeprefix("a ")


def _quality(report: Report, width: int) -> str:
    columns = (
        Column("model", right=False),
        Column("rows"),
        Column("accuracy"),
        Column("by labels"),
        Column("labelled", spare=2),
        Column("SLO"),
        Column("missed"),
    )
    rows = [
        (
            printable(item.model),
            number(item.rows),
            "" if item.accuracy is None else f"{item.accuracy:.2f} %",
            "" if item.labelled_accuracy is None else f"{item.labelled_accuracy:.2f} %",
            number(item.labelled) if item.labelled else "",
            "" if item.slo_ms is None else f"{item.slo_ms:g} ms",
            percent(item.violations / item.requests) if item.requests else "",
        )
        for item in report.quality
    ]
    return _table(columns, rows, width)


def _breakdown(report: Report, by: By, zone: tzinfo, width: int) -> tuple[str, str]:
    breakdown = report.breakdown(by)
    market = report.market_g is not None
    columns = [
        Column(by, right=False),
        Column("rows"),
        Column("energy"),
        Column("g/kWh", spare=1),
        Column(basis(report) if market else "CO2e"),
        *([Column("market-based", spare=2)] if market else []),
        Column("part", spare=3),
    ]
    whole = report.operation.grams
    rows = [
        (
            printable(bucket.name),
            number(bucket.rows),
            energy(bucket.joules),
            "" if bucket.g_per_kwh is None else f"{bucket.g_per_kwh:.0f}",
            mass(bucket.grams),
            *([mass(bucket.market_g)] if market else []),
            percent(bucket.grams / whole) if whole else "",
        )
        for bucket in breakdown.buckets[:_MOST_BUCKETS]
    ]
    body = _table(columns, rows, width)
    if len(breakdown.buckets) > _MOST_BUCKETS:
        left = len(breakdown.buckets) - _MOST_BUCKETS
        body += f"\n  and {left} more: --format csv has all"
    about = [text_filled(text, width) for text in (breakdown.about, entries_words(report, by, zone)) if text]
    return f"Electricity by {by}", "\n".join([body, *about]) if rows else ""


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> str:
    if not rows:
        return ""
    lines, left = terminal.plain(columns, rows, width - 2)
    text = "\n".join(f"  {line}".rstrip() for line in lines)
    return f"{text}\n  left out for want of room: {', '.join(left)}" if left else text


def _known_lines(report: Report) -> Iterator[tuple[str, str]]:
    for item in report.energy_known:
        yield f"energy {item.name}", f"{percent(item.part)}: {item.about}"
    for item in report.intensity_known:
        yield f"intensity {item.name}", f"{percent(item.part)}: {item.about}"
    for grid in report.grids:
        mean = "" if grid.g_per_kwh is None else f", {grid.g_per_kwh:.0f} g/kWh by energy"
        yield "grid", printable(f"{grid_words(grid)}: {duration(grid.seconds)}{mean}")
    for text in report.intervals:
        yield "interval", text


def _gaps(report: Report, zone: tzinfo, width: int) -> str:
    rows = [
        (
            f"no {gap.what}" if gap.what == "record" else "no live intensity",
            f"{time_words(gap.start, zone)}, {duration(gap.seconds)}: {gap.reason}",
        )
        for gap in sorted(report.gaps, key=lambda gap: gap.start)[:_MOST_GAPS]
    ]
    if len(report.gaps) > _MOST_GAPS:
        rows.append(("", f"and {len(report.gaps) - _MOST_GAPS} more: --format json has all"))
    return terminal.listing(rows, width) if rows else ""


def _inputs(report: Report, zone: tzinfo) -> Iterator[tuple[str, str]]:
    inputs = report.inputs
    for run in inputs.runs:
        started = time_words(run.started, zone)
        yield "run", printable(f"Clover {run.version} on {run.host} from {started}, configuration {run.configuration}")
    for profile in inputs.profiles:
        yield "profile", printable(f"{profile.model}: {profile.digest}")
    for factor in inputs.factors:
        value = "unknown" if factor.value is None else f"{factor.value:g} {factor.unit}".removesuffix(" 1")
        yield "factor", printable(f"{factor.name} ({factor.about}): {value}; {factor.source}")
    yield "entries", f"{number(inputs.entries)} of the ledger, sha256 {inputs.entries_sha256}"
