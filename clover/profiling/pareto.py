"""The Pareto front of a family's cascades, for people: a table, a plot in a terminal, and a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clover import profiles
from clover.errors import ConfigError
from clover.terminal import Column, plain
from clover.types import CascadeProfile, ChainPoint, FamilyProfile

_SHOWN = 16
_PLOT = (60, 12)
"""Points in the table of cascades, and columns and rows of their plot."""


def best_of(points: Sequence[ChainPoint]) -> list[ChainPoint]:
    """Return the points that are more accurate on held-out rows than all that cost no more, from the cheapest up.  All
    points are on the front of the calibration rows, on which they were chosen; on other rows some are not."""
    best: list[ChainPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def cascades(found: CascadeProfile, width: int) -> list[str]:
    """Return the front of chains as lines of text: two lines on what is shown, a table, thinned, that fits into `width`
    characters, and if there is more than one point a plot of accuracy over cost."""
    points = best_of(found.points)
    at = sorted({round(i * (len(points) - 1) / max(1, _SHOWN - 1)) for i in range(_SHOWN)})
    where = ", ".join(dict.fromkeys(found.measured_on.values()))
    best = found.best or "the best variant"
    cost = f"cost: energy of a row, % of {best} alone, each variant at its most frugal batch"
    worse = len(found.points) - len(points)
    why = f" ({worse} {'is' if worse == 1 else 'are'} no better than a cheaper one)" if worse else ""
    lines = [
        f"cascades: chosen on {found.calibration_rows} calibration rows, counted on {found.held_out_rows} others",
        f"{cost}{f' on {where}' if where else ''} ({found.method}); {len(at)} of {len(found.points)} points{why}",
    ]
    columns = (
        Column("accuracy %"),
        Column(f"against {best} alone", spare=1),
        Column("cost %"),
        Column("chain, passed on below, part of the rows", right=False),
    )
    rows = []
    for point in (points[i] for i in at):
        stages = [
            f"{name} {f'< {point.thresholds[k]:.3f} ' if k < len(point.thresholds) else ''}({point.reach[k]:.1%})"
            for k, name in enumerate(point.chain)
        ]
        accuracy = f"{point.accuracy:.2f} ± {(point.high - point.low) / 2:.2f}"
        apart = "{:+.2f} ({:+.2f} to {:+.2f})".format(*point.against) if point.against else ""
        rows.append((accuracy, apart, f"{100 * point.cost:.1f}", " > ".join(stages)))
    sheet, _ = plain(columns, rows, width)
    plot = _plot([(100 * point.cost, point.accuracy) for point in points]) if len(points) > 1 else []
    return [*lines, *sheet, "", *plot]


def _plot(points: list[tuple[float, float]]) -> list[str]:
    """Return the lines of a plot of accuracy (up) over cost (right, logarithmic)."""
    columns, rows = _PLOT
    xs, ys = [math.log(max(x, 1e-3)) for x, _ in points], [y for _, y in points]
    wide, high = max(max(xs) - min(xs), 1e-9), max(max(ys) - min(ys), 1e-9)
    field = [[" "] * columns for _ in range(rows)]
    for x, y in zip(xs, ys, strict=True):
        field[rows - 1 - round((y - min(ys)) / high * (rows - 1))][round((x - min(xs)) / wide * (columns - 1))] = "o"
    lines = [f"{max(ys) - high * row / (rows - 1):7.2f} |{''.join(line).rstrip()}" for row, line in enumerate(field)]
    first, last = points[0][0], points[-1][0]
    return [*lines, f"{'':7} +{'-' * columns}", f"{'':9}{first:.1f} %{f'cost {last:.1f} %':>{columns - 6}}"]


def draw(found: Sequence[FamilyProfile], path: str) -> None:
    """Draw the cascades of `found`, beside each variant alone, as a PNG at `path`.

    Raises ConfigError if matplotlib is not installed, or if no family has cascades.
    """
    cascading = [(profile, profile.cascade) for profile in found if profile.cascade is not None]
    if not cascading:
        raise ConfigError("--png: no family here cascades: it takes [confidence] in family.toml, and labelled rows")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError('--png needs matplotlib: pip install "clover-inference[analysis]"') from error
    figure = Figure(figsize=(7.2, 4.4 * len(cascading)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (profile, cascade) in zip(figure.subplots(len(cascading), squeeze=False)[:, 0], cascading, strict=True):
        points = best_of(cascade.points)
        cost = [100 * point.cost for point in points]
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(cost, low, high, alpha=0.15, linewidth=0, label="95 % interval")
        axes.plot(cost, [point.accuracy for point in points], marker=".", label="chains")
        for name, joules in cascade.joules.items():
            at = 100 * joules / max(cascade.joules[cascade.best], 1e-12), profiles.accuracy_of(profile, name)
            axes.plot(*at, "ks", markersize=4)
            axes.annotate(name, at, textcoords="offset points", xytext=(4, -10))
        axes.set_xscale("log")
        axes.set_xlabel(f"expected energy, % of {cascade.best or 'the best variant'} alone ({cascade.method})")
        axes.set_ylabel(f"accuracy, % of {cascade.held_out_rows} held-out rows")
        axes.set_title(f"{profile.family} on {profile.machine}", fontsize=9)
        axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=130)
