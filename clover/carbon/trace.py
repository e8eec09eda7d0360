"""Replays a file of carbon intensities: `trace:FILE`, options as `trace:FILE?loop=1&scope=direct`.

A row holds from its time until its end: its own `to`, or one step, the step being the commonest distance of two rows.
Where the file has no value (an empty row, a missing row, before the first and after the last), reading raises
CarbonError: the chain then says "stale", falls back, and finally takes the configured value.  Nothing is filled in
here.  `loop=1` replays the file from its start once it has ended; such readings are marked as estimated.

What a file says of one time is used at another if grid time is not that of the wall, and if a file loops: such
readings have the method "replayed", whatever they were when they were recorded.

The forecast is NESO's own if the file has one; otherwise the rows to come, that is, perfect foresight.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Literal

from clover.carbon.layouts import Scope, Signal, TraceRow, TraceTable, format_time, read_table
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

log = logging.getLogger("clover.carbon")


class TraceSource:
    """Intensities of a file.  `empty` rows had no value, `missing` steps had no row; both are gaps.  `replayed`:
    whether they are used at another time than they are of."""

    remote = False

    def __init__(
        self,
        path: Path,
        *,
        loop: bool = False,
        zone: str = "",
        scope: Scope | None = None,
        signal: Signal | None = None,
    ) -> None:
        table = read_table(path, scope=scope or "", zone=zone)
        try:
            self._rows, self.step_s = _order(table)
        except ConfigError as error:
            raise ConfigError(f"carbon trace {path}: {error}") from error
        self.name = f"trace:{path.stem}"
        self.layout = table.layout
        self.loop = loop
        self.replayed = False
        self.zone = zone or table.zone
        self.scope: Scope = scope or table.scope
        self.signal: Signal = signal or table.signal
        self._times = [row.at_s for row in self._rows]
        self.perfect_forecast = all(row.forecast_g is None for row in self._rows)
        """Whether what it foresees are its own rows to come."""
        self.empty = sum(row.g is None for row in self._rows)
        self.missing = sum(
            max(0, round((later.at_s - self._until(row)) / self.step_s))
            for row, later in itertools.pairwise(self._rows)
        )
        self.start_s = next(row.at_s for row in self._rows if row.g is not None)
        self.end_s = self._until(self._rows[-1])
        if self.gaps:
            log.warning("%s: %d gaps (%d empty rows, %d missing steps of %g s); there the chain falls back",
                        self.name, self.gaps, self.empty, self.missing, self.step_s)  # fmt: skip

    @property
    def gaps(self) -> int:
        """Steps within the file that have no value."""
        return self.empty + self.missing

    def covers(self, grid_s: float) -> bool:
        """Return whether `grid_s` lies within the file (or it loops); a gap may still be there."""
        return self.loop or self.spans(grid_s)

    def spans(self, grid_s: float) -> bool:
        """Return whether `grid_s` lies within the file itself, loop or not."""
        return self._rows[0].at_s <= grid_s < self.end_s

    async def read(self, grid_s: float) -> Reading:
        """Return the row that holds at `grid_s`; CarbonError in a gap, before the first row and after the last."""
        row, shift_s = self._row_at(grid_s)
        if row is None or row.g is None or grid_s - shift_s >= self._until(row):
            raise CarbonError(f"{self.name} has no value at {format_time(grid_s)}: {self._why(grid_s - shift_s)}")
        return self._reading(row, row.g, shift_s, grid_s, estimated=row.estimated, foreseen=False)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return one reading a row from the one that holds at `grid_s` up to `grid_s + horizon_s`; gaps are left
        out."""
        readings: list[Reading] = []
        row, shift_s = self._row_at(grid_s)
        index = 0 if row is None else bisect.bisect_right(self._times, row.at_s) - 1
        while True:
            if index == len(self._rows):
                if not self.loop:
                    return readings
                index, shift_s = 0, shift_s + self._span_s
            row = self._rows[index]
            if row.at_s + shift_s > grid_s + horizon_s:
                return readings
            value = row.forecast_g if row.forecast_g is not None else row.g
            if value is not None and self._until(row) + shift_s > grid_s:
                readings.append(self._reading(row, value, shift_s, grid_s, estimated=True, foreseen=True))
            index += 1

    @property
    def _span_s(self) -> float:
        return self.end_s - self._rows[0].at_s

    def _until(self, row: TraceRow) -> float:
        return row.until_s if row.until_s is not None else row.at_s + self.step_s

    def _row_at(self, grid_s: float) -> tuple[TraceRow | None, float]:
        """Return the last row not after `grid_s`, and by how much looping shifted the file."""
        shift_s = math.floor((grid_s - self._rows[0].at_s) / self._span_s) * self._span_s if self.loop else 0.0
        index = bisect.bisect_right(self._times, grid_s - shift_s) - 1
        return (self._rows[index] if index >= 0 else None), shift_s

    def _reading(
        self, row: TraceRow, g_per_kwh: float, shift_s: float, grid_s: float, *, estimated: bool, foreseen: bool
    ) -> Reading:
        at_s = row.at_s + shift_s
        recorded: Literal["modelled", "measured"] = "modelled" if estimated else "measured"
        return Reading(
            g_per_kwh=g_per_kwh,
            at_s=at_s,
            provider=self.name,
            zone=self.zone,
            signal=self.signal,
            scope=self.scope,
            method="replayed" if not foreseen and (self.replayed or shift_s != 0.0) else recorded,
            estimated=estimated or shift_s != 0.0,
            age_s=0.0 if foreseen else grid_s - at_s,
        )

    def _why(self, file_s: float) -> str:
        if file_s < self._rows[0].at_s:
            return f"it starts at {format_time(self._rows[0].at_s)}"
        if file_s >= self.end_s:
            return f"it ended at {format_time(self.end_s)} (?loop=1 replays it)"
        return "a gap"


def _order(table: TraceTable) -> tuple[list[TraceRow], float]:
    """Return rows by time without repeats, and their step in seconds."""
    rows: list[TraceRow] = []
    for row in sorted(table.rows, key=lambda row: row.at_s):
        if rows and rows[-1].at_s == row.at_s:
            if rows[-1][:4] != row[:4]:
                raise ConfigError(
                    f"lines {rows[-1].line} and {row.line} give two values for {format_time(row.at_s)}; "
                    "times must be UTC"
                )
            continue
        rows.append(row)
    if not any(row.g is not None for row in rows):
        raise ConfigError("it holds no value")
    steps = Counter(later.at_s - row.at_s for row, later in itertools.pairwise(rows))
    steps.update(row.until_s - row.at_s for row in rows if row.until_s is not None)
    if not steps:
        raise ConfigError("one row shows no step; give a second row, or use static:G")
    most = max(steps.values())
    return rows, min(step for step, count in steps.items() if count == most)
