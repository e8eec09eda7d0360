"""What a report needs of a ledger, read from it."""

from __future__ import annotations

from datetime import tzinfo

from clover.report.build import LedgerRows
from clover.report.calendar import whole_hours
from clover.telemetry.ledger.rows import RunRow
from clover.telemetry.ledger.store import LedgerReader

_HOUR_S, _DAY_S = 3600, 86_400
_EVENT_KINDS = ("fault", "operator", "provider")
_MOST_EVENTS = 10_000


def read_rows(ledger: LedgerReader, start: float, end: float, zone: tzinfo) -> LedgerRows:
    """Return what `ledger` has of the spans that begin from `start` to before `end`.  Raises LedgerError.

    Minutes are put together into hours, but for the intensities, whose minutes show the gaps, and in zones whose hours
    are not those of UTC.
    """
    # Whole hours at both ends, else an hour would have minutes of before or after the period.
    step = _HOUR_S if whole_hours(start, end, zone) else None
    return LedgerRows(
        usage=ledger.usage(start, end, step_s=step),
        lines=ledger.lines(start, end, step_s=step),
        grid=ledger.grid(start, end, step_s=step),
        grid_minutes=ledger.grid(start, end),
        quality=ledger.quality(start, end, step_s=step),
        saved=ledger.saved(start, end, step_s=step),
        events=ledger.events(start - 120.0, end, kinds=_EVENT_KINDS, limit=_MOST_EVENTS),
        runs=_runs(ledger, start, end),
        profiles=ledger.profiles(),
    )


def whole_spans(ledger: LedgerReader, start: float, end: float) -> tuple[float, float]:
    """Return the period from `start` to `end`, widened to the ends of entries that only a part of lies in it: hours and
    days that were put together cannot be split.  Raises LedgerError."""
    before = [row.start for row in ledger.grid(start - _DAY_S, start) if row.end > start]
    after = [row.end for row in ledger.grid(end - _DAY_S, end) if row.end > end]
    return float(min(before, default=start)), float(max(after, default=end))


def _runs(ledger: LedgerReader, start: float, end: float) -> list[RunRow]:
    """Return the runs of a period, and the one before it, which may have ended into a gap at its begin."""
    before = ledger.runs(until_s=start)
    ids = {run.id for run in before[-1:]}
    return [run for run in ledger.runs(until_s=end) if run.seen >= start or run.id in ids]
