"""Results for people, on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clover.planning.search import UNBOUNDED_MS
from clover.simulate.minutes import Minutes
from clover.simulate.records import Accounting, Input, Results, Summary

TITLES: dict[Accounting, str] = {
    "equal": "equal load: BASE serves the same rows on the same devices",
    "artifact": (
        "the artifact's accounting: BASE is charged at a fifth of the load on the same devices, so that its idle power "
        "falls on a fifth of the rows; the SLO is its p95 there"
    ),
}
HEADS = (
    *("family", "trace", "policy", "saves", "over seeds", "limit", "gap", "margin", "active", "accuracy", "loss"),
    *("p95 ms", "SLO ms", "above", "turned", "changes", "still", "awake"),
)
MEANINGS = (
    "saves: part of BASE's gCO2e a row, idle power counted, from least to most over seeds; active: without idle power",
    "limit: proven, no schedule of plans saves more at this accuracy on these devices; gap: points missing to it",
    "margin: points saved more than by the policy in brackets, at the seed where that is least",
    "accuracy in %, loss in points below BASE; p95: of the worst step; above: part of the steps that miss the SLO",
    "turned: thresholds, on the same workers; changes: of configuration, after the first deployment",
    "still: part of the steps without such a change; awake: devices that draw their full idle power",
)


def cells(item: Summary) -> tuple[str, ...]:
    """A summary as the cells under `HEADS`."""
    p95 = "unbounded" if item.p95_ms >= UNBOUNDED_MS else f"{item.p95_ms:.1f}"
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
        p95,
        f"{item.slo_ms:.1f}",
        f"{item.above:.1%}",
        f"{item.turned:.3g}",
        f"{item.changes:.3g}",
        f"{item.still:.1%}",
        f"{item.awake:.3g}",
    )


def _part(value: float) -> str:
    return f"{round(value, 3) + 0.0:.1%}"  # no -0.0 %


def show(results: Results, console: Console) -> None:
    """Print one table for each accounting, and what its columns are."""
    for accounting, title in TITLES.items():
        rows = [item for item in results.summaries if item.accounting == accounting]
        if not rows:
            continue
        sheet = Table(box=None, pad_edge=False)
        for head in HEADS:
            sheet.add_column(head, justify="left" if head in HEADS[:3] else "right", no_wrap=True)
        before: tuple[str, ...] = ()
        for item in rows:
            line = cells(item)
            if before and before != line[:2]:
                sheet.add_row()
            sheet.add_row(*(Text(cell) for cell in line))
            before = line[:2]
        console.print(Text(title), soft_wrap=True)
        console.print(sheet)
        console.print()
    for meaning in (*MEANINGS, *results.manifest.labels):
        console.print(Text(meaning), soft_wrap=True)


MINUTE_HEADS = (
    "family", "policy", "relief", "rows/s", "accuracy", "planned", "p50 ms", "p95 ms", "SLO ms", "late", "in gusts",
    "back s", "relieved", "J/row",
)  # fmt: skip
MINUTE_MEANINGS = (
    "row by row through the server's own controller, fleet and router, before simulated workers and without HTTP",
    "times and joules are modelled, nothing was measured",
    "accuracy, planned: percent, of the rows answered and by the plan's shares",
    "late: part of the rows above the SLO or without an answer; in gusts: of the rows that arrived in one",
    "back s: seconds from a gust's beginning until the p95 is within the SLO, three seconds in a row",
)


def show_minutes(found: Sequence[Minutes], inputs: Sequence[Input], console: Console) -> None:
    """Print what became of minutes that were played row by row."""
    sheet = Table(box=None, pad_edge=False)
    for head in MINUTE_HEADS:
        sheet.add_column(head, justify="left" if head in MINUTE_HEADS[:3] else "right", no_wrap=True)
    for item in found:
        gusts = f"{item.gust_late / item.gust_rows:.1%}" if item.gust_rows else "-"
        back = ("never" if math.isinf(item.back_s) else f"{item.back_s:g}") if item.gust_rows else "-"
        cells = (
            item.family,
            item.policy,
            item.relief or "none",
            f"{item.rate:.1f}",
            f"{item.accuracy:.2f}",
            f"{item.planned_accuracy:.2f}",
            _ms(item.p50_ms),
            _ms(item.p95_ms),
            f"{item.slo_ms:.1f}",
            f"{item.late / max(1, item.rows):.2%}",
            gusts,
            back,
            f"{item.relieved / max(1, item.rows):.1%}",
            f"{item.active_j / max(1, item.rows - item.unanswered):.4g}",
        )
        sheet.add_row(*map(Text, cells))
    console.print(sheet)
    console.print()
    for text in (*MINUTE_MEANINGS, *(item.about for item in inputs)):
        console.print(Text(text), soft_wrap=True)


def _ms(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:.1f}"
