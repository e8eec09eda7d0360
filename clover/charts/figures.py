"""Figures of plotly as plain dictionaries: step lines, stacked bands, bars and a scatter.

A value of a line or band holds from its x to the next one's, as ledger steps do.  An x is a number, or a text that
plotly reads as a time (ISO 8601).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Figure = dict[str, Any]
"""`data` and `layout`, as `Plotly.newPlot` takes them."""
Points = Sequence[tuple[float | str, float]]

COLOURS = ("#4d6a8f", "#d97706", "#8d5bb5", "#1f8a8a", "#c2413b", "#3f8f3f", "#7d7d2a", "#8c6d5a", "#c7609c", "#5b6470")
"""Distinct on white and on near-black; they repeat beyond ten."""
LIMIT = "#c2413b"

_HEIGHT = 240
_MARGIN = {"l": 56, "r": 14, "t": 34, "b": 40}


def lines(
    title: str,
    series: Mapping[str, Points],
    *,
    across: str = "hours",
    end: float | str | None = None,
    limit: tuple[str, float] | None = None,
    colours: Mapping[str, str] | None = None,
    from_zero: bool = True,
    legend: bool = True,
) -> Figure:
    """Return step lines.  `end`: the x at which the last step ends; `limit`: a dashed line with its name."""
    shown = line_colours(series, colours)
    data = [_step(name, points, end, {"color": shown[name], "width": 1.6}) for name, points in series.items()]
    figure = _figure(title, data, across, legend)
    if from_zero:
        figure["layout"]["yaxis"]["rangemode"] = "tozero"
    if limit is not None and math.isfinite(limit[1]):
        _add_limit(figure, *limit)
    return figure


def bands(
    title: str,
    series: Mapping[str, Points],
    *,
    end: float | str | None = None,
    high: float | None = None,
    colours: Mapping[str, str] | None = None,
    legend: bool = True,
) -> Figure:
    """Return stacked steps: all series have the same x, and together they reach `high` at most, if it is given."""
    shown = line_colours(series, colours)
    data = [
        {
            **_step(name, points, end, {"color": shown[name], "width": 0.5}, thin=False),
            "stackgroup": "all",
            "fillcolor": shown[name] + "c0",
        }
        for name, points in series.items()
        if any(y for _, y in points)
    ]
    figure = _figure(title, data, "hours", legend)
    figure["layout"]["yaxis"] |= {"range": [0.0, high]} if high is not None else {"rangemode": "tozero"}
    return figure


def bars(
    title: str,
    series: Mapping[str, Points],
    *,
    stacked: bool = True,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Return bars, one at each x for each series."""
    shown = line_colours(series, colours)
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": name,
            "x": [x for x, _ in points],
            "y": [_plain(y) for _, y in points],
            "marker": {"color": shown[name]},
        }
        for name, points in series.items()
    ]
    figure = _figure(title, data, "")
    figure["layout"]["barmode"] = "relative" if stacked else "group"
    return figure


def scatter(title: str, across: str, points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> Figure:
    """Return named points; those that no other beats (less x, more y) are joined."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    joined = {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in front],
        "y": [y for _, y in front],
        "line": {"color": "#999999", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    middle = sum(x for x, _ in points.values()) / len(points) if points else 0.0
    named = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [x for x, _ in points.values()],
        "y": [y for _, y in points.values()],
        "text": list(points),
        "textposition": ["middle left" if x > middle else "middle right" for x, _ in points.values()],
        "marker": {"size": 8, "color": [colours.get(name, "#5b6470") for name in points]},
        "cliponaxis": False,
        "showlegend": False,
    }
    return _figure(title, [joined, named], across)


def line_colours(names: Mapping[str, Any] | Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a colour for each name: the given one, else the next of `COLOURS`."""
    return {name: (given or {}).get(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate(names)}


def _step(
    name: str, points: Points, end: float | str | None, line: dict[str, Any], *, thin: bool = True
) -> dict[str, Any]:
    kept = _without_repeats(points) if thin else list(points)
    if kept and end is not None:
        kept.append((end, kept[-1][1]))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [x for x, _ in kept],
        "y": [_plain(y) for _, y in kept],
        "line": {"shape": "hv", **line},
    }


def _without_repeats(points: Points) -> list[tuple[float | str, float]]:
    """Return the points without those that the one before holds anyhow: the last is kept."""
    last = len(points) - 1
    return [
        (x, y) for index, (x, y) in enumerate(points) if index in (0, last) or y != points[index - 1][1]
    ]  # fmt: skip


def _plain(value: float) -> float | None:
    """Return a number that JSON has; None, which a chart leaves out, for any other."""
    return value if math.isfinite(value) else None


def _figure(title: str, data: list[dict[str, Any]], across: str, legend: bool = True) -> Figure:
    return {
        "data": data,
        "layout": {
            "title": {"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 13}},
            "height": _HEIGHT,
            "margin": dict(_MARGIN),
            "xaxis": {"title": {"text": across, "font": {"size": 11}}, "zeroline": False},
            "yaxis": {"zeroline": False},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "y": -0.24, "font": {"size": 11}},
            "showlegend": legend and sum(trace.get("showlegend", True) for trace in data) > 1,
        },
    }


def _add_limit(figure: Figure, name: str, value: float) -> None:
    line = {"color": LIMIT, "width": 1, "dash": "dash"}
    figure["layout"]["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}
    ]
    figure["layout"]["annotations"] = [
        {
            "xref": "paper",
            "x": 1,
            "y": value,
            "xanchor": "right",
            "yanchor": "bottom",
            "text": name,
            "showarrow": False,
            "font": {"size": 10, "color": LIMIT},
        }
    ]
