"""The front of a family's cascades for people: a table, a plot in a terminal, and a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clover import profiles
from clover.errors import ConfigError
from clover.profiling import chains
from clover.types import CascadeProfile, FamilyProfile

ROWS = 16
"""Points of the front that the table shows; the profile holds them all."""
WIDE, HIGH = 72, 15


def front_table(profile: FamilyProfile) -> str:
    """What chains reach, as a table of up to `ROWS` points; "" where the family does not cascade."""
    from rich.console import Console
    from rich.table import Table

    cascade = profile.cascade
    if cascade is None:
        return ""
    sheet = Table(title=f"cascades of {profile.family}", title_justify="left", pad_edge=False, box=None)
    for head in (
        "energy %",
        "accuracy %",
        f"against {cascade.best} alone",
        "chain",
        "goes on below",
        "asked, % of rows",
    ):
        sheet.add_column(head, justify="right" if head == "energy %" else "left", no_wrap=True)
    points = cascade.points
    for index in chains.thinned([p.accuracy for p in points], [p.energy for p in points], ROWS):
        point = points[index]
        sheet.add_row(
            f"{100 * point.energy:.1f}",
            f"{point.accuracy:.2f} ({point.low:.2f} to {point.high:.2f})",
            f"{point.difference:+.2f} ({point.difference_low:+.2f} to {point.difference_high:+.2f})",
            " > ".join(point.chain),
            ", ".join(f"{threshold:.3f}" for threshold in point.thresholds),
            ", ".join(f"{100 * part:.1f}" for part in point.reach),
        )
    console = Console(width=140, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(sheet)
    return "\n".join([*(line.rstrip() for line in capture.get().rstrip().splitlines()), "", *_labels(cascade)])


def _labels(cascade: CascadeProfile) -> list[str]:
    where = ", ".join(dict.fromkeys(cascade.energy_on.values()))
    shown = min(ROWS, len(cascade.points))
    warm = [f"{name} {value:g}" for name, value in cascade.temperature.items() if value != 1.0]
    rows = f"thresholds were chosen on {cascade.calibration_rows} calibration rows"
    figures = f"all figures are of {cascade.held_out_rows} held-out rows (95 % intervals)"
    energy = f"energy: expected, as a part of {cascade.best} alone, each variant at its cheapest batch on {where}"
    return [
        f"{shown} of {len(cascade.points)} points of the front; {rows}, {figures}",
        f"{energy} ({cascade.energy_method})",
        f"score: {cascade.confidence.kind}{'; temperatures: ' + ', '.join(warm) if warm else ''}",
    ]


def alone(profile: FamilyProfile) -> dict[str, tuple[float, float]]:
    """Energy (a part of the best variant's) and accuracy of each variant by itself."""
    cascade = profile.cascade
    if cascade is None:
        return {}
    whole = max(cascade.energy_j[cascade.best], 1e-12)
    return {name: (joules / whole, profiles.accuracy_of(profile, name)) for name, joules in cascade.energy_j.items()}


def front_plot(profile: FamilyProfile) -> str:
    """Accuracy over energy (logarithmic) in characters: `*` a chain of the front, letters the variants alone."""
    if profile.cascade is None:
        return ""
    single = alone(profile)
    marks = [("*", point.energy, point.accuracy) for point in profile.cascade.points]
    letters = {name: "abcdefghijklmnopqrstuvwxyz"[index % 26] for index, name in enumerate(single)}
    marks += [(letters[name], energy, accuracy) for name, (energy, accuracy) in single.items()]
    legend = "  ".join(f"{letters[name]} {name}" for name in single)
    return "\n".join([*scatter(marks), f"* a chain of the front; alone: {legend}"])


def scatter(marks: Sequence[tuple[str, float, float]], wide: int = WIDE, high: int = HIGH) -> list[str]:
    """Lines of a plot of (character, energy as a part, accuracy in percent); later marks lie above earlier ones."""
    xs = [math.log10(max(energy, 1e-9)) for _, energy, _ in marks]
    ys = [accuracy for _, _, accuracy in marks]
    left, right, low, top = min(xs), max(xs), min(ys), max(ys)
    field = [[" "] * wide for _ in range(high)]
    for (mark, _, _), x, y in zip(marks, xs, ys, strict=True):
        column = round((x - left) / (right - left or 1.0) * (wide - 1))
        line = round((top - y) / (top - low or 1.0) * (high - 1))
        field[line][column] = mark
    lines = []
    for index, line_of in enumerate(field):
        value = top - (top - low) * index / (high - 1)
        label = f"{value:6.2f}" if index % 7 == 0 else " " * 6
        lines.append(f"{label} |{''.join(line_of)}".rstrip())
    ends = f"{100 * 10**left:.3g} %", f"{100 * 10**right:.3g} % energy"
    lines.append(" " * 7 + "+" + "-" * wide)
    lines.append(" " * 8 + ends[0] + ends[1].rjust(wide - len(ends[0])))
    return lines


def draw(found: Sequence[FamilyProfile], path: str) -> None:
    """The fronts of `found` as a PNG at `path`.  Raises ConfigError without matplotlib or a front."""
    cascading = [profile for profile in found if profile.cascade is not None]
    if not cascading:
        raise ConfigError("--png: no family here cascades: a front needs [confidence] in family.toml")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError('--png needs matplotlib: pip install "clover-inference[simulate]"') from error
    figure = Figure(figsize=(7.2, 4.4 * len(cascading)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, profile in zip(figure.subplots(len(cascading), squeeze=False)[:, 0], cascading, strict=True):
        cascade = profile.cascade
        assert cascade is not None
        energy = [100 * point.energy for point in cascade.points]
        accuracy = [point.accuracy for point in cascade.points]
        low, high = [point.low for point in cascade.points], [point.high for point in cascade.points]
        axes.fill_between(energy, low, high, alpha=0.15, linewidth=0, label="95 % interval")
        axes.plot(energy, accuracy, marker=".", label="chains")
        for name, (part, value) in alone(profile).items():
            axes.plot(100 * part, value, "ks", markersize=4)
            axes.annotate(name, (100 * part, value), textcoords="offset points", xytext=(4, -10))
        axes.set_xscale("log")
        axes.set_xlabel(f"expected energy, % of {cascade.best} alone ({cascade.energy_method})")
        axes.set_ylabel(f"accuracy, % of {cascade.held_out_rows} held-out rows")
        axes.set_title(f"{profile.family} on {profile.machine}", fontsize=9)
        axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=130)
