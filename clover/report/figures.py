"""The charts of a report, as plotly's plain dictionaries (`clover.charts`)."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo
from html import escape

from clover.charts import Figure, Points, bars, lines
from clover.report.records import Breakdown, By, Report

_MOST_HOURS = 24 * 62
"""Hours beyond which days are drawn instead."""


def time_of(report: Report) -> By:
    """Return whether hours or days are drawn."""
    return "hour" if len(report.breakdown("hour").buckets) <= _MOST_HOURS else "day"


def emissions(report: Report, zone: tzinfo) -> Figure:
    """Return the grams of each hour (or day) of operation."""
    by = time_of(report)
    breakdown = report.breakdown(by)
    return lines(
        f"Grams of CO2e from electricity, each {by}",
        {"CO2e": _steps(breakdown, "grams", zone)},
        across=report.period.zone,
        colours={"CO2e": "#2f6f4f"},
        legend=False,
    )


def intensity(report: Report, zone: tzinfo) -> Figure:
    """Return the intensity that the energy of each hour (or day) was priced at."""
    by = time_of(report)
    return lines(
        "Carbon intensity of the grid, gCO2e/kWh",
        {"intensity": _steps(report.breakdown(by), "g_per_kwh", zone)},
        across=report.period.zone,
        colours={"intensity": "#d97706"},
        legend=False,
    )


def _steps(found: Breakdown, field: str, zone: tzinfo) -> Points:
    """Return steps over time, with a break at the end of each bucket that no other one follows."""
    points: list[tuple[float | str, float]] = []
    ends = math.nan
    for bucket in found.buckets:
        start = bucket.start or 0.0
        if points and start > ends + 1.0:
            points.append((_local(ends, zone), math.nan))
        value = getattr(bucket, field)
        points.append((_local(start, zone), math.nan if value is None else value))
        ends = start + {"hour": 3600.0, "day": 86_400.0}.get(found.by, 0.0)
    if points:
        points.append((_local(ends, zone), points[-1][1]))
    return points


def _local(at: float, zone: tzinfo) -> str:
    return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M}"


_AXIS = {"fixed": "fixed mix", "base": "BASE", "at once": "at once"}
"""Names that fit below the bars of a narrow page."""


def comparisons(report: Report) -> Figure:
    """Return what was emitted beside what each counterfactual would have emitted."""
    names = [_AXIS[item.against] for item in report.saved]
    figure = bars(
        "Grams of CO2e: emitted, and what would have been",
        {
            "emitted": [(name, item.own_g) for name, item in zip(names, report.saved, strict=True)],
            "would have been": [(name, item.other_g) for name, item in zip(names, report.saved, strict=True)],
        },
        stacked=False,
        colours={"emitted": "#2f6f4f", "would have been": "#a3acb5"},
    )
    figure["layout"]["xaxis"]["tickangle"] = 0
    return figure


def shares(report: Report, by: By) -> Figure:
    """Return the grams of each model, variant, device or tenant."""
    breakdown = report.breakdown(by)
    # plotly reads tags in its texts.
    return bars(
        f"Grams of CO2e from electricity, by {by}",
        {
            "its own": [(escape(bucket.name), bucket.own_g) for bucket in breakdown.buckets],
            "its share of the rest": [(escape(bucket.name), bucket.shared_g) for bucket in breakdown.buckets],
        },
        colours={"its own": "#2f6f4f", "its share of the rest": "#a3c4b1"},
    )


def uses(report: Report) -> Figure:
    """Return what the electricity was used for."""
    counted = [line for line in report.lines if line.counted]
    return bars(
        "Grams of CO2e from electricity, by what it was used for",
        {"CO2e": [(line.line.replace("_", " "), line.grams) for line in counted]},
        colours={"CO2e": "#2f6f4f"},
    )
