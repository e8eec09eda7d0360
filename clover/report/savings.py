"""What was saved against each counterfactual: a difference to something that did not happen, so always modelled."""

from __future__ import annotations

from collections.abc import Sequence

from clover.accounting.boundaries import LEAST_ROWS
from clover.accounting.labels import join_labels
from clover.report.records import GramsRange, SavedFigure
from clover.telemetry.ledger.rows import SavedRow

KINDS = {
    "fixed": (
        "the best fixed mix",
        "what following the grid brought",
        "the best mix of variants that stays the same whatever the grid does, at the accuracy that was really served",
    ),
    "base": (
        "BASE",
        "what serving with the best variant alone would have cost more",
        "the best variant on all devices of this server, at the same load: serving without Clover",
    ),
    "at once": (
        "starting at once",
        "what waiting for cleaner hours brought to rows of batch jobs, idle power apart",
        "each job started as soon as it came, at the rate at which its rows ran, by what the grid turned out to be",
    ),
}
"""Counterfactuals in the order in which they are shown: the most telling first."""


def savings_of(rows: Sequence[SavedRow], boundary: str, emitted_g: float) -> tuple[SavedFigure, ...]:
    """Return what was saved against each counterfactual within `boundary`; `emitted_g` were emitted in all."""
    within = [row for row in rows if row.boundary == boundary]
    return tuple(
        _figure(kind, rows, emitted_g) for kind in KINDS if (rows := [row for row in within if row.against == kind])
    )


def _figure(kind: str, rows: Sequence[SavedRow], emitted_g: float) -> SavedFigure:
    own_g, other_g = sum(row.own_g for row in rows), sum(row.shadow_g for row in rows)
    # Intervals are added: the same profile and the same meter are behind all of them.
    half = sum(row.error_g for row in rows)
    count = sum(row.rows for row in rows)
    name, meaning, about = KINDS[kind]
    return SavedFigure(
        against=kind,
        name=name,
        meaning=meaning,
        about=about,
        label=join_labels(row.label for row in rows),
        own_j=sum(row.own_j for row in rows),
        own_g=own_g,
        other_j=sum(row.shadow_j for row in rows),
        other_g=other_g,
        saved=GramsRange(grams=other_g - own_g, low_g=other_g - own_g - half, high_g=other_g - own_g + half),
        part=(other_g - own_g) / other_g if other_g > 0.0 and count >= LEAST_ROWS else None,
        accuracy=sum(row.own_accuracy_rows for row in rows) / count if count else None,
        other_accuracy=sum(row.shadow_accuracy_rows for row in rows) / count if count else None,
        rows=count,
        part_of_emitted=own_g / emitted_g if emitted_g > 0.0 else 0.0,
    )
