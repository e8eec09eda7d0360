"""Which time the ledger covers, where it has gaps and why, and how energy and intensity are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from clover.hints import printable
from clover.report.records import Gap, GridFigure, KnownPart
from clover.telemetry.ledger.rows import EventRow, GridRow, RunRow

ENERGY_ABOUT = {
    "measured": "by an energy counter of the hardware",
    "modelled": "calculated from CPU time and published watts of such processors",
    "emulated": "of hardware that is not there: nothing was drawn",
}
INTENSITY_ABOUT = {
    "live": "recorded by a provider for the time at which it was used",
    "estimated": "an estimate or forecast of the provider, which it may revise",
    "bridged": "stood in while the provider did not answer: its forecast, its past days, or its last value",
    "configured": "a number from the configuration (carbon.configured_g_per_kwh, 400 unless set, or static:G)",
    "replayed": "recorded at another time than it was used for",
    "synthetic": "a formula: the grid is invented",
    "unknown": "the source does not say how its values are known",
}
STOOD_IN = {
    "bridged": "its forecast, its past days or its last value",
    "configured": "the configured number",
}
"""What is used while the provider that was asked for is silent, or if none was."""
_LEAST_GAP_S = 1.0
_NEAR_S = 120.0
"""Seconds around a gap in which an event may explain it."""


def energy_parts(joules: Mapping[str, float]) -> tuple[KnownPart, ...]:
    """Return how much energy is known in which way, the most first."""
    return _parts(joules, ENERGY_ABOUT)


def intensity_parts(grid: Iterable[GridRow]) -> tuple[KnownPart, ...]:
    """Return how much energy was priced by each kind of intensity (by how it is known), the most first."""
    joules: dict[str, float] = defaultdict(float)
    for row in grid:
        joules[row.known] += row.joules
    return _parts(joules, INTENSITY_ABOUT)


def _parts(joules: Mapping[str, float], about: Mapping[str, str]) -> tuple[KnownPart, ...]:
    whole = sum(joules.values())
    return tuple(
        KnownPart(name=name, joules=value, part=value / whole if whole else 0.0, about=about.get(name, ""))
        for name, value in sorted(joules.items(), key=lambda item: (-item[1], item[0]))
        if value or not whole
    )


def grids_of(grid: Iterable[GridRow]) -> tuple[GridFigure, ...]:
    """Return the intensity of each provider's zone, by how it is known, the longest in force first."""
    rows_by_grid: dict[tuple[str, ...], list[GridRow]] = defaultdict(list)
    for row in grid:
        rows_by_grid[row.provider, row.zone, row.signal, row.scope, row.known].append(row)
    figures = []
    for (provider, zone, signal, scope, known), rows in rows_by_grid.items():
        seconds, joules = sum(row.seconds for row in rows), sum(row.joules for row in rows)
        by_time = sum(row.seconds * row.g_per_kwh_time for row in rows)
        figures.append(
            GridFigure(
                provider=provider,
                zone=zone,
                signal=signal,
                scope=scope,
                known=known,
                seconds=seconds,
                joules=joules,
                g_per_kwh=3.6e6 * sum(row.net_g for row in rows) / joules if joules > 0.0 else None,
                by_time_g_per_kwh=by_time / seconds if seconds > 0.0 else None,
                oldest_s=max(row.age_max_s for row in rows),
            )
        )
    return tuple(sorted(figures, key=lambda item: -item.seconds))


def recorded_s(grid: Iterable[GridRow]) -> dict[int, float]:
    """Return how many seconds are recorded of each entry, by its start: those of which the intensity is known."""
    seconds: dict[int, float] = defaultdict(float)
    for row in grid:
        seconds[row.start] += row.seconds
    return dict(seconds)


def record_gaps(
    start: float, end: float, spans: Mapping[int, int], runs: Sequence[RunRow], events: Sequence[EventRow]
) -> list[Gap]:
    """Return the gaps of the period from `start` to `end`, of which `spans` (length by start) are in the ledger."""
    gaps: list[Gap] = []
    at = start
    for begun in [*sorted(spans), None]:
        until = end if begun is None else float(begun)
        if until - at >= _LEAST_GAP_S:
            gaps.append(Gap(what="record", start=at, seconds=until - at, reason=_reason(at, until, runs, events)))
        if begun is not None:
            at = max(at, float(begun + spans[begun]))
    return gaps


def _reason(start: float, end: float, runs: Sequence[RunRow], events: Sequence[EventRow]) -> str:
    """Return why nothing was recorded from `start` to `end`, as far as the ledger shows."""
    before = [run for run in runs if run.started < start]
    after = [run for run in runs if start <= run.started <= end + _NEAR_S]
    if not before:
        words = "before the first start that the ledger knows of"
    elif before[-1].ended is not None and before[-1].ended <= start + _NEAR_S:
        words = "the server was stopped"
    elif after:
        words = "the server ended without a shutdown (killed, or the machine went down)"
    elif before[-1].seen <= start + _NEAR_S:
        words = "the server ended without a shutdown, or could not write its ledger any more"
    else:
        words = "nothing was written although the server ran (see its log)"
    if before and after:
        words += ", and started again later"
    kinds = ("fault", "operator")
    said = [printable(row.summary) for row in events if row.kind in kinds and start - _NEAR_S <= row.at <= end]
    return f"{words}; noted around then: {'; '.join(dict.fromkeys(said))}" if said else words


def intensity_gaps(grid: Iterable[GridRow], events: Sequence[EventRow]) -> list[Gap]:
    """Return the times in which something stood in for a provider's value, neighbouring spans joined."""
    found: dict[int, tuple[int, float, frozenset[str]]] = {}
    for row in grid:
        if row.known in STOOD_IN and row.seconds > 0.0:
            length, seconds, known = found.get(row.start, (row.length, 0.0, frozenset()))
            found[row.start] = (length, seconds + row.seconds, known | {row.known})
    gaps: list[Gap] = []
    begun, until, whole, kinds = 0.0, -1.0, 0.0, frozenset[str]()
    for start, (length, seconds, known) in sorted(found.items()):
        if start > until:
            gaps += _intensity_gap(begun, until, whole, kinds, events)
            begun, whole, kinds = float(start), 0.0, frozenset()
        until, whole, kinds = float(start + length), whole + seconds, kinds | known
    return gaps + _intensity_gap(begun, until, whole, kinds, events)


def _intensity_gap(
    start: float, end: float, seconds: float, kinds: frozenset[str], events: Sequence[EventRow]
) -> list[Gap]:
    """Return the gap from `start` to `end`, of which `seconds` had no live value; nothing if that is no time."""
    if seconds < _LEAST_GAP_S:
        return []
    words = "; ".join(f"{STOOD_IN[kind]} stood in" for kind in sorted(kinds))
    said = next((row.summary for row in events if row.kind == "provider" and start - _NEAR_S <= row.at <= end), "")
    reason = f"{printable(said)}; {words}" if said else words
    return [Gap(what="intensity", start=start, seconds=seconds, reason=reason)]
