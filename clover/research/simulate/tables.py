"""Results for people, on a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from clover.energy.cpu_power import CpuPower
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.quantities import grams
from clover.research.simulate.machine import MachineDay
from clover.research.simulate.minutes import Minutes
from clover.research.simulate.records import Accounting, Results, RunInput, Summary
from clover.research.simulate.waiting import Arrival, Outcome
from clover.terminal import Column, filled, fitting, legend, milliseconds, needed, sheet

TITLES: dict[Accounting, str] = {
    "equal": "equal load: BASE serves the same rows on the same devices",
    "artifact": (
        "the artifact's accounting: BASE is charged at a fifth of the load on the same devices, so that its idle power "
        "falls on a fifth of the rows; the SLO is its p95 there"
    ),
}
COLUMNS = (
    Column("family", right=False),
    Column("trace", right=False),
    Column("policy", right=False),
    Column("saves", "part of BASE's gCO2e per row that is saved, idle power counted; mean over seeds"),
    Column("over seeds", "the least and the most that a seed saved, percent", spare=1),
    Column("limit", "no schedule of plans on these devices saves more at this accuracy (proven in the model)", spare=3),
    Column("gap", "points between what is saved and that limit", spare=4),
    Column("margin", "points saved more than by the policy in brackets, at the seed where that is least", spare=2),
    Column("active", "as saves, without idle power", spare=5),
    Column("accuracy", "percent, weighted with the rows that each variant answered"),
    Column("loss", "accuracy in points below BASE"),
    Column("p95", "95th percentile of latency in the worst step; unbounded: rows arrived faster than they were served"),
    Column("SLO", "the target of the p95", spare=6),
    Column("above", "part of the steps in which more than 5 % of the rows exceed the SLO"),
    Column("turned", "times that other cascade thresholds were set on the same workers", spare=9),
    Column("changes", "changes of configuration after the first deployment", spare=7),
    Column("still", "part of the steps without such a change", spare=10),
    Column("awake", "devices that draw their full idle power, mean over steps", spare=8),
)
HEADS = tuple(column.head for column in COLUMNS)
MEANINGS = tuple(f"{column.head}: {column.about}" for column in COLUMNS if column.about)


def cells(item: Summary) -> tuple[str, ...]:
    """Return a summary as the cells under `HEADS`."""
    return (
        item.family,
        item.trace,
        item.policy + (f" [{item.confidence}]" if item.confidence else ""),
        _part(item.saving),
        f"{100.0 * item.saving_least:.1f}..{100.0 * item.saving_most:.1f}" if item.seeds > 1 else "",
        "" if item.limit is None else _part(item.limit),
        "" if item.limit is None else f"{round(100.0 * (item.limit - item.saving), 2) + 0.0:.2f}",
        "" if item.margin is None else f"{100.0 * item.margin:.2f}",
        _part(item.active_saving),
        f"{item.accuracy:.2f}",
        f"{round(item.accuracy_loss, 2) + 0.0:.2f}",
        _ms(item.p95_ms),
        _ms(item.slo_ms),
        f"{item.above:.1%}",
        f"{item.turned:.3g}" if item.turned else "",
        f"{item.changes:.3g}",
        f"{item.still:.1%}",
        f"{item.awake:.3g}",
    )


def _part(value: float) -> str:
    return f"{round(value, 3) + 0.0:.1%}"  # no -0.0 %


def show(results: Results, console: Console) -> None:
    """Print one table for each accounting, and a line for each of its columns.

    A table that is wider than the console becomes a block for each family and trace; columns that do not fit even then
    are named and left out.
    """
    shown: dict[int, None] = {}
    left: dict[str, None] = {}
    for accounting, title in TITLES.items():
        rows = [cells(item) for item in results.summaries if item.accounting == accounting]
        if not rows:
            continue
        console.print(Text(textwrap.fill(title, console.width)), soft_wrap=True)
        kept = _blocks(COLUMNS, rows, console, named=2)
        shown |= dict.fromkeys(kept)
        left |= dict.fromkeys(COLUMNS[index].head for index in filled(COLUMNS, rows) if index not in (0, 1, *kept))
    _explain(COLUMNS, shown, left, results.manifest.labels, console)


def _blocks(columns: Sequence[Column], rows: Sequence[tuple[str, ...]], console: Console, *, named: int) -> list[int]:
    """Print `rows`: one table if it fits, else a block for each group that the first `named` cells name; return the
    indices of the columns that were printed."""
    shown = filled(columns, rows)
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(row[:named], []).append(row)
    if needed(columns, rows, shown) <= console.width:
        spaced = [row for group in groups.values() for row in (*group, ())][:-1]
        console.print(sheet(columns, spaced, shown))
        console.print()
        return shown
    shown = fitting(columns, rows, [index for index in shown if index >= named], console.width)
    for names, group in groups.items():
        console.print()
        console.print(Text(", ".join(filter(None, names)), style="bold"), soft_wrap=True)
        console.print(sheet(columns, group, shown))
    console.print()
    return shown


def _explain(
    columns: Sequence[Column], shown: Iterable[int], left: Iterable[str], notes: Iterable[str], console: Console
) -> None:
    """Print the legend of the columns `shown`, the names of those `left` out, and `notes`."""
    console.print(Text(legend(columns, sorted(shown), console.width)), soft_wrap=True)
    if left:
        why = f"left out at {console.width} columns: {', '.join(left)}; a wider terminal or -o DIR shows all"
        console.print(Text(f"\n{textwrap.fill(why, console.width)}"), soft_wrap=True)
    console.print()
    for note in notes:
        console.print(Text(textwrap.fill(note, console.width)), soft_wrap=True)


MINUTE_COLUMNS = (
    Column("family", right=False),
    Column("policy", right=False),
    Column("relief", "the variant that stands by for gusts", right=False),
    Column("rows/s", "rows that arrived per second", spare=6),
    Column("accuracy", "percent, of the rows answered"),
    Column("planned", "percent, by the shares of the plan", spare=4),
    Column("p50", "median latency", spare=5),
    Column("p95", "95th percentile of latency"),
    Column("SLO", "the target of the p95", spare=3),
    Column("late", "part of the rows above the SLO or without an answer"),
    Column("in gusts", "the same, of the rows that arrived in a gust", spare=1),
    Column("back s", "seconds from a gust's beginning until the p95 is within the SLO for three seconds", spare=2),
    Column("relieved", "part of the rows that standby workers answered", spare=7),
    Column("J/row", "active joules per answered row"),
)
MINUTE_NOTES = (
    "row by row through the server's own controller, fleet and router, before simulated workers and without HTTP",
    "times and joules are modelled, nothing was measured",
)


def show_minutes(found: Sequence[Minutes], inputs: Sequence[RunInput], console: Console) -> None:
    """Print what became of minutes that were played row by row."""
    rows = []
    for item in found:
        back = ("never" if math.isinf(item.back_s) else f"{item.back_s:g}") if item.gust_rows else ""
        cells = (
            item.family,
            item.policy,
            item.relief or "none",
            f"{item.rate:.1f}",
            f"{item.accuracy:.2f}",
            f"{item.planned_accuracy:.2f}",
            _ms(item.p50_ms),
            _ms(item.p95_ms),
            _ms(item.slo_ms),
            f"{item.late / max(1, item.rows):.2%}",
            f"{item.gust_late / item.gust_rows:.1%}" if item.gust_rows else "",
            back,
            f"{item.relieved / max(1, item.rows):.1%}" if item.relieved else "",
            f"{item.active_j / max(1, item.rows - item.unanswered):.4g}",
        )
        rows.append(cells)
    shown = _blocks(MINUTE_COLUMNS, rows, console, named=1)
    left = [MINUTE_COLUMNS[index].head for index in filled(MINUTE_COLUMNS, rows) if index not in (0, *shown)]
    _explain(MINUTE_COLUMNS, shown, left, (*MINUTE_NOTES, *(item.about for item in inputs)), console)


MACHINE_COLUMNS = (
    Column("rows/s"),
    Column("setting", right=False),
    Column("workers' active (modelled)", "grams of CO2e a day; after the comma what is saved of BASE's"),
    Column("+ front end (modelled)", "and taking and answering requests"),
    Column("+ idle = machine (modelled)", "and the idle power of the whole machine; no other program, no planning"),
    Column("between", "what is saved of the machine's if its watts are the 10th or 90th percentile of servers"),
    Column("idle", "the part of idle power in the machine's grams"),
    Column("accuracy", "percent, weighted with the rows that each variant answered"),
    Column("p95", "95th percentile of latency in the worst step", spare=1),
)


WAITING_COLUMNS = (
    Column("trace", right=False),
    Column("hours", "of rows, those of each hour a job"),
    Column("saved (modelled)", "part of what they emit above idle power if all start as they come"),
    Column("foresight", "the same with all intensities known"),
    Column("captured", "saved, as a part of that"),
    Column("late", "jobs that were late, and would not be if all started as they come"),
    Column("late at once", "jobs that are late whatever is planned", spare=1),
)


@dataclass(frozen=True)
class WaitingTrace:
    """What became of rows that may wait on a trace."""

    name: str
    hours: int
    jobs: Sequence[Arrival]
    at_once: Outcome
    planned: Outcome
    known: Outcome


def show_waiting(found: Sequence[WaitingTrace], console: Console) -> None:
    """Print what rows that may wait save."""
    rows = []
    for own in found:
        whole = own.at_once.grams
        saved, foresight = 1.0 - own.planned.grams / whole, 1.0 - own.known.grams / whole
        before, after = own.at_once.late(own.jobs), own.planned.late(own.jobs)
        captured = f"{saved / foresight:.2f}" if foresight > 0.0005 else ""
        late = (str(len(after - before)), str(len(before)))
        rows.append((own.name, str(own.hours), _part(saved), _part(foresight), captured, *late))
    shown = fitting(WAITING_COLUMNS, rows, filled(WAITING_COLUMNS, rows), console.width)
    console.print(sheet(WAITING_COLUMNS, rows, shown))
    console.print()
    console.print(Text(legend(WAITING_COLUMNS, shown, console.width)), soft_wrap=True)


def show_machine(found: Sequence[Sequence[MachineDay]], power: CpuPower | None, about: str, console: Console) -> None:
    """Print what a machine emits a day, of each load the settings with BASE first; `power`: the watts that its energy
    was modelled with, None if no range of them is known."""
    rows = [_day_cells(day, days[0], power if day is not days[0] else None) for days in found for day in days]
    shown = fitting(MACHINE_COLUMNS, rows, filled(MACHINE_COLUMNS, rows), console.width)
    console.print(Text(textwrap.fill(about, console.width)), soft_wrap=True)
    console.print(sheet(MACHINE_COLUMNS, rows, shown))
    console.print()
    console.print(Text(legend(MACHINE_COLUMNS, shown, console.width)), soft_wrap=True)


def _day_cells(day: MachineDay, base: MachineDay, power: CpuPower | None) -> tuple[str, ...]:
    saved = ("", "", "") if day is base else tuple(f", {_part(part)}" for part in day.saved(base))
    between = "" if power is None else " to ".join(map(_part, day.between(base, power)))
    return (
        f"{day.rate:.4g}" if day is base else "",
        day.setting,
        *(f"{grams(each)}{part}" for each, part in zip(day.boundaries, saved, strict=True)),
        between,
        f"{day.idle_g / day.boundaries[2]:.0%}",
        f"{day.accuracy:.2f}",
        _ms(day.p95_ms),
    )


def _ms(value: float) -> str:
    return "unbounded" if value >= UNBOUNDED_MS else milliseconds(value)
