"""A report as one HTML file that loads nothing: the four answers, then the charts and tables behind them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo
from html import escape

import msgspec

from clover.accounting.boundaries import TOO_LITTLE
from clover.charts import ChartSheet
from clover.report import figures
from clover.report.calendar import TIMES, time_words
from clover.report.records import Breakdown, By, Factor, Report
from clover.report.render import markup
from clover.report.render.markup import card, details, pairs, paragraph, section, table
from clover.report.wording import (
    basis,
    cautions,
    duration,
    energy,
    entries_words,
    grid_words,
    least_part,
    light_words,
    mass,
    missing_words,
    number,
    parts_words,
    percent,
    period_words,
    points_words,
    saved_words,
    span,
    where_of,
)

_WORDS = (
    ("CO2e", "carbon dioxide and other greenhouse gases, as the carbon dioxide that warms as much"),
    ("row", "one item that the server answered: an image, a text; a request may carry several"),
    ("variant", "one of several models that answer the same question, cheaper or more accurate"),
    ("BASE", "always the most accurate variant on all devices: what serving without Clover is"),
    ("fixed mix", "several variants in shares that never change"),
    ("location-based", "priced at the intensity of the grid where the machine stands"),
    ("marginal", "priced at the intensity of the plants that run for one kWh more: no location-based inventory"),
    ("market-based", "priced at the intensity of the electricity that was contracted"),
    ("PUE", "energy of the whole data centre divided by that of its computers"),
    ("embodied", "carbon of making the hardware, charged by the time and the part of it that was reserved"),
    ("SCI", "Software Carbon Intensity (ISO/IEC 21031): operation and embodied carbon for each row answered"),
    ("measured / modelled", "by an energy counter / calculated from the processor's time and published watts"),
)


def report_page(report: Report, zone: tzinfo, *, charts: bool = True) -> str:
    """Return the report as an HTML document; it carries the report's data, too.  Not `charts`: as it is without the
    extra that draws them."""
    sheet = ChartSheet(drawn=charts)
    name = report.application.name or report.server or "this server"
    body = "".join(
        (
            header(report, f"Carbon report: {name}", zone),
            _cards(report, zone),
            "".join(paragraph(text, "caution") for text in cautions(report)),
            section("saved", "Saved, against what", _compared_text(report, sheet)),
            section("time", "Through the time", _time(report, sheet, zone)),
            section("uses", "What it was used for", _uses(report, sheet)),
            section("shares", "By model, variant, device and tenant", _shares(report, sheet)),
            section("sums", "Electricity and hardware", _sums(report)),
            section("sure", "How sure this is", _sure(report)),
            section("gaps", "Gaps", _gaps(report, zone)),
            section("quality", "Accuracy and latency", _quality(report)),
            section("boundary", "What is counted, and what is not", paragraph(_sentence(report.boundary_about))),
            section("inputs", "Where the figures come from", _inputs(report, zone)),
            section("words", "Words", pairs(_WORDS)),
        )
    )
    data = msgspec.json.encode(report).decode()
    return markup.page(f"Carbon report: {name}", body, sheet.scripts(), data)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def header(report: Report, title: str, zone: tzinfo) -> str:
    """Return the head of a page: title, period, who reports."""
    who = [report.application.organisation, f"server {report.server}" if report.server else ""]
    made = f"made {time_words(report.made, zone)} by Clover {report.clover}"
    lines = paragraph(_sentence(period_words(report, zone)))
    if report.period.edges:
        lines += paragraph(_sentence(report.period.edges) + ".")
    lines += paragraph("; ".join(word for word in (*who, made) if word), "soft")
    return f"<header><h1>{escape(title)}</h1>{lines}</header>"


def _cards(report: Report, zone: tzinfo) -> str:
    light = light_words(report)
    said = card("Load", TOO_LITTLE, [_sentence(light.removeprefix(f"{TOO_LITTLE}: "))]) if light else ""
    saved = "" if light else _best(report)
    return f'<div class="cards">{said}{_emitted_text(report)}{saved}{_doubt(report)}{_missing(report, zone)}</div>'


def _emitted_text(report: Report) -> str:
    whole, lines = report.total or report.operation, []
    lines.append(f"{mass(report.operation.grams)} from electricity: {energy(report.joules)} at the computers")
    if report.embodied is not None:
        lines.append(f"{mass(report.embodied.grams)} as the share of making the hardware")
    else:
        lines.append("The share of making the hardware is unknown, and not in it.")
    lines.append(f"{number(report.rows)} rows answered")
    if report.sci is not None:
        lines.append(f"{mass(1e3 * report.sci.grams)} for 1,000 rows")
    return card("Emitted", f"{mass(whole.grams)} CO2e", lines)


def _best(report: Report) -> str:
    """Return the card of savings: the most telling comparison first."""
    parts = [item for item in report.saved if item.part is not None]
    if not parts:
        lines = [f"{_sentence(saved_words(item))}." for item in report.saved]
        return card("Saved", "not known", lines or ["The ledger has nothing to compare this period with."])
    first = parts[0]
    lines = [f"of electricity, against {first.name}: {first.meaning}"]
    if (points := first.given_up_points) is not None:
        lines.append(_sentence(points_words(points)))
    lines += [_sentence(saved_words(item, accuracy=False)) for item in parts[1:]]
    share = percent(abs(first.part or 0.0))
    title = "Emitted more" if first.saved.grams < 0.0 else "Saved"
    return card(title, f"{mass(abs(first.saved.grams))} ({share})", lines)


def _doubt(report: Report) -> str:
    whole = report.total or report.operation
    if not report.joules:
        return card("How sure", "no figures", ["Nothing is recorded of this period."])
    return card(
        "How sure",
        f"{span(whole)}",
        [
            "The sum is taken to lie between these, if the intensity of the grid is right.",
            f"Energy: {parts_words(report.energy_known)}",
            f"Intensity: {parts_words(report.intensity_known)}",
        ],
    )


def _missing(report: Report, zone: tzinfo) -> str:
    lines = []
    for what, words in (
        ("record", "without any record"),
        ("intensity", "without a live intensity (energy is counted)"),
    ):
        gaps = [gap for gap in report.gaps if gap.what == what]
        if gaps:
            count = f"{len(gaps)} gap{'s' if len(gaps) > 1 else ''}"
            lines.append(f"{duration(sum(gap.seconds for gap in gaps))} {words}, in {count}")
    if words := missing_words(report):
        lines.append(words)
    record = sum(gap.seconds for gap in report.gaps if gap.what == "record")
    whole = duration(report.period.end - report.period.start)
    return card(
        "Gaps",
        f"{duration(record)} of {whole}" if record else "none in the record",
        lines or ["All of the period is recorded."],
    )


def _compared_text(report: Report, sheet: ChartSheet) -> str:
    """Return the comparisons, folded if there was too little load to save on."""
    light = light_words(report)
    compared = _saved_text(report, sheet)
    return paragraph(f"{_sentence(light)}.") + details("Comparisons", compared) if light else compared


def _saved_text(report: Report, sheet: ChartSheet) -> str:
    if not report.saved:
        return paragraph("The ledger has no counterfactual of this period: nothing can be said to be saved.")
    rows = [
        (
            _sentence(item.name),
            mass(item.own_g),
            mass(item.other_g),
            mass(item.saved.grams),
            span(item.saved) + (" (may be nothing)" if item.saved.low_g < 0.0 < item.saved.high_g else ""),
            "" if item.part is None else percent(item.part),
            "" if item.given_up_points is None else f"{item.given_up_points:.2f}",
        )
        for item in report.saved
    ]
    heads = (
        "Against",
        "Emitted",
        "Would have been",
        "Saved",
        "Interval",
        "Part",
        "Accuracy given up, points",
    )
    least = least_part(report)
    return (
        paragraph(
            "A saving is a difference to something that did not happen: what the same rows would have emitted, served "
            "otherwise on the same grid. It is always calculated, never measured. Below zero, more was emitted."
        )
        + sheet.add(figures.comparisons(report))
        + table("Grams of electricity, within the server", heads, rows)
        + pairs((_sentence(item.name), f"{_sentence(item.about)}. It shows {item.meaning}.") for item in report.saved)
        + paragraph(
            f'The comparisons cover {percent(least)} of the electricity\'s grams. Below, under "How sure this is", '
            "stands how intervals are formed.",
            "soft",
        )
    )


def _time(report: Report, sheet: ChartSheet, zone: tzinfo) -> str:
    if not report.joules:
        return ""
    charts = sheet.add(figures.emissions(report, zone)) + sheet.add(figures.intensity(report, zone))
    apart = {by: entries_words(report, by, zone) for by in TIMES}
    days = _breakdown_table(report, "day", "Electricity of each day")
    caption = "Electricity of each hour, priced at its own intensity (hourly matching)"
    if apart["hour"]:
        caption = "Electricity by the hour in which entries begin, each minute priced at its own intensity"
    hours = _breakdown_table(report, "hour", caption)
    months = _breakdown_table(report, "month", "Electricity of each month")
    many = len(report.breakdown("month").buckets) > 1
    count = len(report.breakdown("hour").buckets)
    notes = "".join(paragraph(text, "soft") for text in dict.fromkeys((apart["hour"], apart["day"])) if text)
    title = f"Each of the {count} hours in which entries begin" if apart["hour"] else f"Each of the {count} hours"
    return charts + (months if many else "") + days + notes + details(title, hours)


def _breakdown_table(report: Report, by: By, caption: str) -> str:
    breakdown: Breakdown = report.breakdown(by)
    timed, market, whole = by in ("hour", "day", "month"), report.market_g is not None, report.operation.grams
    split = by in ("model", "variant")
    named = f"{_sentence(by)} ({report.period.zone})" if timed else _sentence(by)
    heads = [named, "Rows", "Energy", "g/kWh", *(("Its own", "Its share of the rest") if split else ())]
    heads += [f"CO2e, {basis(report)}", *(["CO2e, market-based"] if market else []), "Part"]
    rows = []
    for bucket in breakdown.buckets:
        each = "" if bucket.g_per_kwh is None else f"{bucket.g_per_kwh:.0f}"
        row = [bucket.name, number(bucket.rows), energy(bucket.joules), each]
        row += [mass(bucket.own_g), mass(bucket.shared_g)] if split else []
        row += [mass(bucket.grams), *([mass(bucket.market_g)] if market else [])]
        rows.append([*row, percent(bucket.grams / whole) if whole else ""])
    foot = ["Sum", number(report.rows), energy(report.joules), ""]
    foot += ["", ""] if split else []
    foot += [mass(whole), *([mass(report.market_g)] if market else []), "100 %" if whole else ""]
    return table(caption, heads, rows, foot=foot)


def _uses(report: Report, sheet: ChartSheet) -> str:
    if not report.joules:
        return ""
    whole = report.operation.grams
    rows = [
        (
            line.line.replace("_", " "),
            energy(line.joules),
            mass(line.grams),
            percent(line.grams / whole) if line.counted and whole else "not counted",
            line.about,
        )
        for line in report.lines
    ]
    where = f"{_sentence(where_of(report))}."
    lines = table("Lines of the account", ("Line", "Energy", "CO2e", "Part", "What it is"), rows, wide=(4,))
    return paragraph(where) + sheet.add(figures.uses(report)) + lines


def _shares(report: Report, sheet: ChartSheet) -> str:
    if not report.joules:
        return ""
    parts = [sheet.add(figures.shares(report, "model"))]
    for by in ("model", "variant", "device", "tenant"):
        breakdown = report.breakdown(by)
        if by == "tenant" and len(breakdown.buckets) < 2:
            continue
        parts.append(_breakdown_table(report, by, f"By {by}: {breakdown.about}"))
    return "".join(parts)


def _sums(report: Report) -> str:
    facility = f" ({energy(report.facility_joules)} with a PUE of {report.pue:g})" if report.pue else ""
    items = [
        ("Energy of the computers", f"{energy(report.joules)}{facility}"),
        (
            _sentence(basis(report)),
            f"{mass(report.operation.grams)} ({span(report.operation)}), at the grid's intensity",
        ),
        ("Market-based", _market(report)),
        ("Embodied", _embodied_text(report)),
    ]
    if report.total is not None:
        items.append(("Both together", f"{mass(report.total.grams)} ({span(report.total)})"))
    sci = (
        "unknown" if report.sci is None else f"{mass(1e3 * report.sci.grams)} for 1,000 rows ({span(report.sci)} a row)"
    )
    items.append(("SCI, within the server", sci))
    boundaries = [
        (
            item.boundary,
            "unknown" if item.joules is None else energy(item.joules),
            mass(item.grams),
            item.why or item.about,
        )
        for item in report.boundaries
    ]
    hardware = [
        (
            item.device,
            item.product,
            "unknown" if item.kg is None else f"{item.kg:.4g} kg",
            f"{item.reserved:g} of {item.total:g}",
            duration(item.seconds),
            f"{item.life_years:g} years",
            "unknown" if item.range is None else f"{mass(item.range.grams)} ({span(item.range)})",
            f"{item.source} ({item.known})",
        )
        for item in report.hardware
    ]
    heads = ("Device", "Product", "Made with", "Reserved", "For", "Of a life of", "Charged", "Source")
    return (
        pairs(items)
        + table(
            "Electricity within other boundaries", ("Boundary", "Energy", "CO2e", "What it is"), boundaries, wide=(3,)
        )
        + table("Embodied carbon of the hardware", heads, hardware, text=(0, 1), wide=(7,))
    )


def _market(report: Report) -> str:
    if report.market_g is None:
        return "not stated: no factor of a contract was given (report.market_g_per_kwh)"
    source = next((item.source for item in report.inputs.factors if item.name == "market-based intensity"), "")
    return f"{mass(report.market_g)}, at {report.market_g_per_kwh:g} g/kWh: {source}"


def _embodied_text(report: Report) -> str:
    if report.embodied is None:
        return "unknown: the ledger has no figure of the hardware"
    return f"{mass(report.embodied.grams)} ({span(report.embodied)}), of which no kWh is a part"


def _sure(report: Report) -> str:
    def rows(name: str) -> Iterator[tuple[str, str, str, str]]:
        for item in getattr(report, name):
            yield item.name, energy(item.joules), percent(item.part), item.about

    grids = [
        (
            grid_words(grid),
            duration(grid.seconds),
            energy(grid.joules),
            "" if grid.g_per_kwh is None else f"{grid.g_per_kwh:.0f}",
            "" if grid.by_time_g_per_kwh is None else f"{grid.by_time_g_per_kwh:.0f}",
            duration(grid.oldest_s),
        )
        for grid in report.grids
    ]
    heads = ("Source", "In force", "Energy", "g/kWh by energy", "by time", "Oldest value")
    return (
        table(
            "Energy, by how it is known (shares of the energy counted)",
            ("Known", "Energy", "Part", "Which means"),
            rows("energy_known"),
            wide=(3,),
        )
        + table(
            "Intensity, by how it is known (shares of all energy that was metered)",
            ("Known", "Energy", "Part", "Which means"),
            rows("intensity_known"),
            wide=(3,),
        )
        + table("Carbon intensities", heads, grids)
        + "<h3>How intervals are formed</h3>"
        + "".join(paragraph(text) for text in report.intervals)
    )


def _gaps(report: Report, zone: tzinfo) -> str:
    rows = [
        (
            "no record" if gap.what == "record" else "no live intensity",
            time_words(gap.start, zone),
            duration(gap.seconds),
            gap.reason,
        )
        for gap in sorted(report.gaps, key=lambda gap: gap.start)
    ]
    heads = ("Missing", "From", "Length", "Reason, if known")
    text = paragraph(
        "Of time without a record nothing is known, and nothing is in the sums. Without a live intensity energy was "
        "counted as always, and priced at what stood in."
    )
    return (
        text + table("Gaps of the period", heads, rows, text=(0, 1), wide=(3,))
        if rows
        else paragraph("There are none.")
    )


def _quality(report: Report) -> str:
    rows = [
        (
            item.model,
            number(item.rows),
            "not known" if item.accuracy is None else f"{item.accuracy:.2f} %",
            "no labels"
            if item.labelled_accuracy is None
            else f"{item.labelled_accuracy:.2f} % of {number(item.labelled)}",
            "none, or several" if item.slo_ms is None else f"{item.slo_ms:g} ms",
            percent(item.violations / item.requests) if item.requests else "",
        )
        for item in report.quality
    ]
    heads = ("Model", "Rows", "Accuracy by profile", "Accuracy by labels", "Latency target", "Requests beyond it")
    return table("What was given for it", heads, rows)


def _inputs(report: Report, zone: tzinfo) -> str:
    inputs = report.inputs
    runs = [(time_words(run.started, zone), run.version, run.host, run.configuration) for run in inputs.runs]
    profiles = [(item.model, item.digest) for item in inputs.profiles]
    items = [
        ("Entries of the ledger", f"{number(inputs.entries)}, sha256 {inputs.entries_sha256}"),
        ("To check this file", "clover report --verify FILE LEDGER"),
    ]
    return (
        pairs(items)
        + table("Factors", ("Name", "Value", "Unit", "Source"), factor_rows(inputs.factors), text=(0, 2), wide=(3,))
        + table(
            "Starts of the server", ("Started", "Clover", "Host", "Configuration (sha256)"), runs, text=(0, 1, 2, 3)
        )
        + table("Profiles of the models", ("Model", "Digest"), profiles, text=(0, 1))
    )


def factor_rows(factors: tuple[Factor, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Yield factors as cells: name, value, unit, source."""
    for item in factors:
        value = "unknown" if item.value is None else f"{item.value:.6g}"
        yield f"{item.name}: {item.about}", value, "" if item.unit == "1" else item.unit, item.source
