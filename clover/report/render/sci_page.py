"""The consumer report of SCI for AI as one HTML file that loads nothing."""

from __future__ import annotations

from datetime import tzinfo

import msgspec

from clover.report.render import markup
from clover.report.render.markup import card, pairs, paragraph, section, table
from clover.report.render.page import factor_rows, header
from clover.report.sci_for_ai import SciForAi
from clover.report.wording import cautions, mass, percent, span


def sci_page(found: SciForAi, zone: tzinfo) -> str:
    """Return the SCI for AI report as an HTML document."""
    stated = found.application
    report = found.manifest
    fields = [
        ("Application", stated.name),
        ("Version", stated.version),
        ("Description", stated.description),
        ("URL", stated.url),
        ("Organisation", stated.organisation),
        ("Accountable", stated.accountable),
        ("Contact", stated.contact),
    ]
    measured = [
        ("Measurement date", found.measured),
        ("Timespan", found.timespan),
        ("Functional unit", found.functional_unit),
    ]
    measured += [("Rationale", found.rationale), ("Boundary", found.boundary)]
    measured += [("Manifest", f"carbon report with sha256 {report.seal.report_sha256}, carried by this file")]
    parts = [
        (item.name, item.term, mass(item.grams), mass(item.per_unit_g), percent(item.part)) for item in found.breakdown
    ]
    foot = ("Sum", "C", mass(sum(item.grams for item in found.breakdown)), mass(found.sci.grams), "100 %")
    methods = [(item.term, item.name, item.method, item.value, item.about) for item in found.methodology]
    name = stated.name or report.server or "this server"
    score = card("SCI", f"{mass(found.sci.grams)} CO2e", ["per inference", span(found.sci)])
    body = "".join(
        (
            header(report, f"SCI for AI, consumer score: {name}", zone),
            f'<div class="cards">{score}</div>',
            paragraph(f"Not complete: {', '.join(found.missing)} not stated.", "caution") if found.missing else "",
            "".join(paragraph(text, "caution") for text in cautions(report)),
            section("application", "Application", pairs((head, text or "not stated") for head, text in fields)),
            section("measurement", "Measurement", pairs(measured)),
            section("summary", "Summary and insights", "".join(map(paragraph, (found.summary, *found.insights)))),
            section(
                "breakdown",
                "Breakdown",
                table(
                    "Sums to the score",
                    ("Part", "Term", "In all", "Per inference", "Share"),
                    parts,
                    text=(0, 1),
                    foot=foot,
                ),
            ),
            section(
                "methodology",
                "Methodology",
                table(
                    "C, O, M, E, I, R", ("Term", "Name", "Method", "Value", "How"), methods, text=(0, 1, 2), wide=(4,)
                ),
            ),
            section(
                "coefficients",
                "Coefficients",
                table(
                    "All that the score follows from",
                    ("Name", "Value", "Unit", "Source"),
                    factor_rows(found.coefficients),
                    text=(0, 2),
                    wide=(3,),
                ),
            ),
        )
    )
    return markup.page(f"SCI for AI: {name}", body, data=msgspec.json.encode(found).decode())
