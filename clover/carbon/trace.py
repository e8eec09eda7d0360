"""Intensities of a file: `trace:FILE`, options as `trace:FILE?loop=1&scope=direct`.

A row holds from its time until its end: its own `to`, or its own step.  Where the file has no value (an empty row, a
missing row, before the first and after the last), reading raises CarbonError: the chain then says "stale", falls back,
and finally takes the configured value.  Nothing is filled in here.  `loop=1` replays the file from its start once it
has ended; such readings are marked as estimated.

If grid time is not that of the wall, or the file loops, what the file says of one time is used at another.  Such
readings are `replayed`, however they are known.

The forecast is NESO's own if the file has one.  Otherwise it is the rows to come, that is, perfect foresight.

**Changes.**  A file that changes on disk is read again once it was left alone, so that it is never read half written:
unchanged from one poll to the next, or for `LEFT_ALONE_S` by its own time.  If it changes from poll to poll, it is read
once `CHANGING_LOOKS` polls found its last line whole, unless it changes in that very moment.  If the new file cannot be
used, the last good one stays in force.

**Steps.**  The times of the rows alone say how long each holds.  A row lasts until the next one, whatever the steps
elsewhere in the file, unless rows are missing between the two.  The distances tell.  A *run* is a stretch of equal
distances.  Rows are missing in a run that is clearly longer (by a quarter) than the runs before and after it and that
has fewer than three distances.  So none of these is a gap: a change of step, which lasts; a run between a shorter and a
longer step; a time that is off by seconds.  At either end of a file, where a neighbour is missing, one distance is too
few to tell, and two equal ones are a change of step.

    hours       1 1 1 2 1 1 1         a row is missing
                1 1 2 2 1 1           two, each alone
                1 1 1 .5 .5 .5        from hourly to half-hourly
                .5 .5 .5 1 1 1        and back
                .5 .5 1 1 1 .5 .5     three hourly values between half-hourly ones

A row before a gap holds for the smaller of the steps around it: a value is rather missing than used beyond its time.
If a row is missing right where the step changes, no rule can see it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from clover.carbon.layouts import (
    HowKnown,
    Scope,
    Signal,
    TraceRow,
    TraceTable,
    format_time,
    in_small_parts,
    parse_table,
    read_file,
)
from clover.errors import CarbonError, ConfigError
from clover.types import Reading

log = logging.getLogger("clover.carbon")

LEFT_ALONE_S = 2.0
CHANGING_LOOKS = 3
_WHOLE = (b"\n", b"}", b"]")
"""What a file ends with if no line of it is cut off."""
_LONGER = 1.25
_LEAST_BETWEEN = 3
_LEAST_AT_AN_END = 2


@dataclass(frozen=True)
class TraceOptions:
    """What the configuration says of a file: whether it `loop`s, which `zone` and `scope` to read of it, and what a
    file of two columns cannot say itself: its `signal`, its scope, and how its values are `known`."""

    loop: bool = False
    zone: str = ""
    scope: Scope | None = None
    signal: Signal | None = None
    known: HowKnown | None = None


class _Version(NamedTuple):
    """What tells one state of a file from another; all -1 if it cannot be seen."""

    changed_ns: int
    size: int
    inode: int


class _Content(NamedTuple):
    """What a file holds: its rows in order, until when each holds, and their times (Unix seconds)."""

    table: TraceTable
    rows: list[TraceRow]
    ends: list[float]
    times: list[float]
    step_s: float
    missing: int


class TraceSource:
    """Intensities of a file.  `empty` rows had no value, `missing` steps had no row; both are gaps.  `replayed`:
    whether they are used at another time than they are of.  `step_s` is the commonest step."""

    remote = False

    def __init__(self, path: Path, options: TraceOptions | None = None) -> None:
        self.options = options or TraceOptions()
        self.name = f"trace:{path.stem}"
        self.loop = self.options.loop
        self.replayed = False
        self.wall: Callable[[], float] = time.time
        """The clock that files have their times of (Unix seconds)."""
        self._path = path
        self._used = self._seen = self._version()
        self._changes = 0
        """How many polls found the file changed, and whole, since it was read."""
        content = self._read_file()
        assert content is not None  # any version will do
        self._take(content)

    def _read_file(self, expected: _Version | None = None) -> _Content | None:
        """Return what the file holds, None if it is not the `expected` version any more; ConfigError if it cannot be
        used.  It changes nothing, and may take seconds: a thread runs it."""
        path, options = self._path, self.options
        try:
            data = read_file(path)
            if expected not in (None, self._version()):
                return None
            table = parse_table(data, scope=options.scope or "", zone=options.zone)
            if options.known and table.layout != "two-column":
                raise ConfigError("?method= is for files of two columns; this one says itself how its values are known")
            rows = _order(table)
            ends = _ends(rows)
        except ConfigError as error:
            raise ConfigError(f"carbon trace {path}: {error}") from error
        steps = Counter(end_s - row.at_s for row, end_s in in_small_parts(zip(rows, ends, strict=True)))
        missing = sum(
            max(0, round((later.at_s - end_s) / (end_s - row.at_s)))
            for (row, later), end_s in in_small_parts(zip(itertools.pairwise(rows), ends[:-1], strict=True))
        )
        step_s = max(steps, key=lambda step: (steps[step], -step))
        return _Content(table, rows, ends, [row.at_s for row in rows], step_s, missing)

    def _take(self, content: _Content) -> None:
        """Use `content` from now on.  Nothing may read between its statements, so it belongs on the event loop."""
        table, self._rows, self._ends, self._times, self.step_s, self.missing = content
        rows, options = content.rows, self.options
        self.layout = table.layout
        self.zone = options.zone or table.zone
        self.scope: Scope = options.scope or table.scope
        self.signal: Signal = options.signal or table.signal
        self.perfect_forecast = all(row.forecast_g is None for row in rows)
        """Whether what it foresees are its own rows to come."""
        self.empty = sum(row.g is None for row in rows)
        self.start_s = next(row.at_s for row in rows if row.g is not None)
        self.end_s = self._ends[-1]
        if self.gaps:
            log.warning("%s: %s (%s, %d missing); there the chain falls back",
                        self.name, _count(self.gaps, "gap"), _count(self.empty, "empty row"), self.missing)  # fmt: skip

    async def refresh(self) -> bool:
        """Read the file again if it changed since it was read and may be (top of the module); return whether that was
        done.  CarbonError, once for each state of the file, if it cannot be used."""
        content = await asyncio.to_thread(self._changed)
        if content is None:
            return False
        self._take(content)
        log.info("%s changed and was read again: %d rows, until %s",
                 self.name, len(self._rows), format_time(self.end_s))  # fmt: skip
        return True

    def _changed(self) -> _Content | None:
        version = self._version()
        if not self._may_be_read(version):
            return None
        used, self._used = self._used, version
        changes, self._changes = self._changes, 0
        try:
            content = self._read_file(version)
        except ConfigError as error:
            text = f"{self.name} changed and cannot be used, so what it held before stays in force: {error}"
            log.warning("%s", text)
            raise CarbonError(text) from error
        if content is None:
            self._used, self._changes = used, changes
        return content

    def _may_be_read(self, version: _Version) -> bool:
        """Return whether the file changed since it was read, and is not being written."""
        before, self._seen = self._seen, version
        if version == self._used:
            self._changes = 0
            return False
        if version == before:
            return True
        if version.changed_ns >= 0 and self.wall() - version.changed_ns / 1e9 >= LEFT_ALONE_S:
            return True
        if not self._ends_whole():
            return False
        self._changes += 1
        return self._changes >= CHANGING_LOOKS

    def _ends_whole(self) -> bool:
        try:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) in _WHOLE
        except OSError:  # gone, or empty
            return False

    def _version(self) -> _Version:
        try:
            status = self._path.stat()
        except OSError:
            return _Version(-1, -1, -1)
        return _Version(status.st_mtime_ns, status.st_size, status.st_ino)

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
        index, shift_s = self._index_at(grid_s)
        row = self._rows[index] if index >= 0 else None
        if row is None or row.g is None or grid_s - shift_s >= self._ends[index]:
            raise CarbonError(f"{self.name} has no value at {format_time(grid_s)}: {self._why(grid_s - shift_s)}")
        return self._reading(index, row.g, self.options.known or row.method, shift_s, age_s=grid_s - row.at_s - shift_s)

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]:
        """Return one reading a row from the one that holds at `grid_s` up to `grid_s + horizon_s`; gaps are left
        out."""
        readings: list[Reading] = []
        index, shift_s = self._index_at(grid_s)
        index = max(index, 0)
        while True:
            if index == len(self._rows):
                if not self.loop:
                    return readings
                index, shift_s = 0, shift_s + self._span_s
            row = self._rows[index]
            if row.at_s + shift_s > grid_s + horizon_s:
                return readings
            value = row.forecast_g if row.forecast_g is not None else row.g
            if value is not None and self._ends[index] + shift_s > grid_s:
                readings.append(self._reading(index, value, "forecast", shift_s))
            index += 1

    def last(self) -> Reading | None:
        """Return the last row as it was when it began; None if it has no value."""
        row = self._rows[-1]
        return None if row.g is None else self._reading(-1, row.g, self.options.known or row.method, 0.0)

    @property
    def _span_s(self) -> float:
        return self.end_s - self._rows[0].at_s

    def _index_at(self, grid_s: float) -> tuple[int, float]:
        """Return the place of the last row not after `grid_s` (-1: none), and by how much looping shifted the file."""
        shift_s = math.floor((grid_s - self._rows[0].at_s) / self._span_s) * self._span_s if self.loop else 0.0
        return bisect.bisect_right(self._times, grid_s - shift_s) - 1, shift_s

    def _reading(self, index: int, g_per_kwh: float, method: HowKnown, shift_s: float, age_s: float = 0.0) -> Reading:
        at_s = self._rows[index].at_s
        return Reading(
            g_per_kwh=g_per_kwh,
            at_s=at_s + shift_s,
            provider=self.name,
            zone=self.zone,
            signal=self.signal,
            scope=self.scope,
            method=method,
            replayed=self.replayed or shift_s != 0.0,
            estimated=method in ("estimated", "forecast", "synthetic") or shift_s != 0.0,
            age_s=age_s,
            step_s=self._ends[index] - at_s,
        )

    def _why(self, file_s: float) -> str:
        if file_s < self._rows[0].at_s:
            return f"it starts at {format_time(self._rows[0].at_s)}"
        if file_s >= self.end_s:
            return f"it ended at {format_time(self.end_s)} (?loop=1 replays it)"
        return "a gap"


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def _order(table: TraceTable) -> list[TraceRow]:
    """Return rows by time without repeats; ConfigError if two contradict each other or none has a value."""
    rows: list[TraceRow] = []
    for row in in_small_parts(sorted(table.rows, key=itemgetter(0))):  # by `at_s`
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
    return rows


def _ends(rows: Sequence[TraceRow]) -> list[float]:
    """Return until when each row holds (Unix seconds); ConfigError if a single one does not say."""
    if len(rows) == 1:
        if rows[0].until_s is None:
            raise ConfigError("one row shows no step; give a second row, or use static:G")
        return [rows[0].until_s]
    steps = steps_of([row.at_s for row in rows])
    return [row.at_s + step if row.until_s is None else row.until_s for row, step in zip(rows, steps, strict=True)]


class _Run:
    """Equal distances that follow each other, gaps between them left out; `members` are their places."""

    __slots__ = ("distance", "members")

    def __init__(self, distance: float, at: int) -> None:
        self.distance = distance
        self.members = [at]

    def peak(self, before: float | None, after: float | None) -> bool:
        """Return whether it is a gap between runs of these distances (None: the file begins or ends there)."""
        if before is None and after is None:
            return False
        longer = all(self.distance > _LONGER * other for other in (before, after) if other is not None)
        least = _LEAST_AT_AN_END if before is None or after is None else _LEAST_BETWEEN
        return longer and len(self.members) < least


def steps_of(times: Sequence[float]) -> list[float]:
    """Return for how many seconds the row at each of `times` holds, which rise; ValueError if there are fewer than two.

    Equal to the distance to the next row unless rows are missing in between.
    """
    distances = [later - at for at, later in itertools.pairwise(times)]
    if not distances:
        raise ValueError("one row shows no step")
    runs: list[_Run] = []
    gaps: set[int] = set()

    def close(after: float | None) -> None:
        """Take gaps off the end of `runs`, which is followed by the distance `after`."""
        while runs and runs[-1].peak(runs[-2].distance if len(runs) > 1 else None, after):
            gaps.update(runs.pop().members)

    for at, distance in enumerate(in_small_parts(distances)):
        if runs and distance != runs[-1].distance:
            close(distance)
        if runs and runs[-1].distance == distance:
            runs[-1].members.append(at)
        else:
            runs.append(_Run(distance, at))
    close(None)
    return _held(distances, gaps)


def _held(distances: list[float], gaps: set[int]) -> list[float]:
    """Return the seconds each row holds, the last one's included: gaps are as long as the smaller step beside them."""
    after: list[float | None] = [None] * len(distances)
    known: float | None = None
    for at in reversed(range(len(distances))):
        after[at] = known
        known = known if at in gaps else distances[at]
    steps: list[float] = []
    before: float | None = None
    for at, distance in enumerate(in_small_parts(distances)):
        if at in gaps:
            steps.append(min(step for step in (before, after[at]) if step is not None))
        else:
            before = distance
            steps.append(distance)
    assert before is not None  # the shortest distance is never a gap
    return [*steps, before]
