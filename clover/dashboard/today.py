"""Today's figures (UTC) from the ledger: emitted, and saved against what.  Unlike the state's, they survive a
restart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clover.accounting.boundaries import DEFAULT, LEAST_ROWS, WITHIN
from clover.dashboard.history import tidy
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.ledger.rows import GridRow, LineRow, SavedRow

DAY_S = 86_400
_ORDER = ("base", "fixed")
_WORDS = {
    "base": "the best variant alone on the same hardware",
    "fixed": "the best fixed mix at the accuracy that was served",
}


def midnight(now_s: float) -> int:
    """Return when the day of `now_s` began (Unix seconds, UTC)."""
    return math.floor(now_s / DAY_S) * DAY_S


def read_today(path: Path, now_s: float) -> dict[str, Any]:
    """Return what the page shows of today, read from the ledger `path` now, and the models that it is of; raises
    LedgerError.  For a thread."""
    since_s = midnight(now_s)
    with LedgerReader(path) as ledger:
        figures = today(ledger.lines(since_s), ledger.saved(since_s), ledger.grid(since_s), since_s)
        return {**figures, "at": now_s, "models": ledger.models(since_s)}


def today(lines: Iterable[LineRow], saved: Iterable[SavedRow], grid: Iterable[GridRow], since_s: int) -> dict[str, Any]:
    """Return grams and joules within the boundary `server`, and each comparison with its interval; `energy` and
    `intensity` are how these are known."""
    within = [line for line in lines if line.line in WITHIN[DEFAULT]]
    here = [row for row in saved if row.boundary == DEFAULT]
    labels = " + ".join(sorted({row.label for row in here}))
    intensity = " + ".join(sorted({row.known for row in grid if row.joules > 0.0}))
    grids = f"intensity {intensity or 'unknown'}"
    return {
        "since_s": since_s,
        "grams": tidy(sum(line.grams for line in within)),
        "joules": tidy(sum(line.joules for line in within)),
        "energy": " + ".join(sorted({line.label for line in within})),
        "intensity": intensity,
        "saved": [_comparison(kind, rows) for kind in _ORDER if (rows := [row for row in here if row.against == kind])],
        "known": f"energy {labels}, {grids}; within the {DEFAULT}; since midnight UTC, from the ledger"
        if labels
        else "",
    }


def _comparison(kind: str, rows: list[SavedRow]) -> dict[str, Any]:
    """Return the sum of rows of one counterfactual; their errors add up, as those of a meter do.  There is no part
    before `LEAST_ROWS` rows, as in the state."""
    grams, error = sum(row.saved_g for row in rows), sum(row.error_g for row in rows)
    shadow, count = sum(row.shadow_g for row in rows), sum(row.rows for row in rows)
    accuracy = sum(row.shadow_accuracy_rows - row.own_accuracy_rows for row in rows)
    return {
        "kind": kind,
        "against": f"Against {_WORDS[kind]}." if kind == "base" else "",
        "words": f"{_WORDS[kind]}; {count} rows compared",
        "grams": tidy(grams),
        "low": tidy(grams - error),
        "high": tidy(grams + error),
        "part": tidy(grams / shadow) if shadow > 0.0 and count >= LEAST_ROWS else None,
        "accuracy_given_up": tidy(accuracy / count) if count else None,
    }
