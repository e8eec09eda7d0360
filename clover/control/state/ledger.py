"""What one family served since its budget horizon began, and its load by the hour: what an accuracy budget spends.

A policy remembers nothing, so every plan is handed this ledger.  A horizon begins with the first observation; the next
one begins when it ends.  The ledger survives a restart (`clover.control.state.ledger_files`).
"""

from __future__ import annotations

import math

from clover.control.state.counted import counted
from clover.planning.budget.forecast import HOUR_S, History, SavedHistory
from clover.types import Record


class SavedLedger(Record, frozen=True, kw_only=True):
    """What a file keeps of a `Ledger`."""

    since_s: float
    rows: float
    accuracy_rows: float
    rates: SavedHistory


class Ledger:
    """What one family served in the horizon under way, and its load by the hour."""

    def __init__(self) -> None:
        self.rates = History()
        self.since_s = math.nan
        """Grid time at which the horizon began; NaN before the first observation."""
        self.rows = 0.0
        self.accuracy_rows = 0.0
        """Sum over the rows of the accuracy (percent) expected of the variant that answered."""
        self.planned_s = math.nan
        """Grid time of the last plan; NaN before the first."""
        self.label = ""
        """What the last forecast was made from, in words."""
        self.unkept = ""
        """Why a restart begins the horizon anew, in words; empty if it does not."""
        self._before = (0.0, 0.0)

    def observe(self, grid_s: float, observed: dict[str, float], horizon_s: float) -> None:
        """Add what was served since the last observation, and the present load.  `observed` counts from the start of
        the family's router."""
        rows, total = self._counted(observed)
        before = self._before if rows >= self._before[0] else (0.0, 0.0)  # the router began anew
        first = math.isnan(self.since_s)
        if first or grid_s < self.since_s or grid_s >= self.since_s + horizon_s:
            over = 0.0 if first or grid_s < self.since_s else math.floor((grid_s - self.since_s) / horizon_s)
            self.since_s = self.since_s + over * horizon_s if over else grid_s
            self.rows = self.accuracy_rows = 0.0
        elif rows > before[0]:
            self.rows += rows - before[0]
            self.accuracy_rows += total - before[1]
        self._before = (rows, total)
        self.rates.record(grid_s, observed.get("arrival_rate", math.nan))

    def _counted(self, observed: dict[str, float]) -> tuple[float, float]:
        """Return rows, and the sum of their accuracies, that the family's router counted since it started."""
        return counted(observed) or self._before  # unknown is not wrong

    def skip(self, observed: dict[str, float]) -> None:
        """Leave out what `observed` counts: the router of an unloaded family continues its counts when the family is
        loaded."""
        self._before = self._counted(observed)

    def saved(self) -> SavedLedger:
        """Return what a file keeps of it, once something was observed."""
        return SavedLedger(
            since_s=self.since_s,
            rows=self.rows,
            accuracy_rows=self.accuracy_rows,
            rates=self.rates.saved(),
        )

    def restore(self, saved: SavedLedger, *, spent: bool = True) -> None:
        """Continue from `saved`, with the load alone if not `spent`; ValueError if its figures are invalid."""
        figures = (saved.since_s, saved.rows, saved.accuracy_rows)
        if not all(map(math.isfinite, figures)) or not 0.0 <= saved.accuracy_rows <= 100.0 * saved.rows + 1e-6:
            raise ValueError("rows and their accuracies do not fit")
        self.rates.restore(saved.rates)
        if spent:
            self.since_s, self.rows, self.accuracy_rows = figures

    def add(self, rows: float, accuracy_rows: float) -> None:
        """Add what another server answered of this horizon."""
        self.rows += rows
        self.accuracy_rows += accuracy_rows

    def end_s(self, grid_s: float, horizon_s: float) -> float:
        """Return the grid time at which the horizon ends; before anything was observed, that of a horizon which begins
        now."""
        return (grid_s if math.isnan(self.since_s) else self.since_s) + horizon_s

    def due(self, grid_s: float) -> bool:
        """Return whether another hour began since the last plan."""
        return math.isnan(self.planned_s) or math.floor(self.planned_s / HOUR_S) != math.floor(grid_s / HOUR_S)
