"""Compares a report with the one that its ledger gives now.

Minutes become hours and hours days while a ledger grows older.  Sums survive that; which minutes were missing, how long
single entries are, and how what belongs to no model was split within an entry, do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from clover.report.records import GramsRange, Report
from clover.telemetry.ledger.schema import MINUTE_S

TOLERANCE = 0.001
"""Part by which sums may be off if the ledger has put entries together since."""
_GAP_S = 5.0
"""Seconds by which gaps may be off: those shorter than a second are in no list."""
COMPARED = (
    "the grams of operation, market-based, embodied and SCI with their intervals; each comparison of what was saved; "
    "each line and boundary of the account; how energy and intensity are known; accuracy and latency of each model; "
    "the sums of each breakdown, and what is a device's or a model's own; factors; and how long the gaps are"
)

Figure = tuple[str, float | None]


def differing(report: Report, again: Report) -> list[str]:
    """Return which parts of a report differ from those of `again`.  Parts that only minutes show are compared only if
    `again` has minutes."""
    if again.period.coarsest_s > MINUTE_S:
        report, again = _without_minutes(report), _without_minutes(again)
    return [name for name in Report.__struct_fields__ if getattr(report, name) != getattr(again, name)]


def _without_minutes(report: Report) -> Report:
    period = msgspec.structs.replace(report.period, finest_s=0, coarsest_s=0)
    return msgspec.structs.replace(report, period=period, gaps=())


def deviations(report: Report, again: Report) -> list[str]:
    """Return which figures of a report are not those of `again` within `TOLERANCE`, in words."""
    said, due = dict(_figures(report)), dict(_figures(again))
    # A figure that is not listed is nothing; one that is not known is another matter.
    pairs = {name: (said.get(name, 0.0), due.get(name, 0.0)) for name in [*due, *said]}
    differences = [
        f"the ledger gives {_value(theirs)} {name}, the report says {_value(ours)}"
        for name, (ours, theirs) in pairs.items()
        if not _close(ours, theirs)
    ]
    return differences + gap_deviations(report, again)


def gap_deviations(report: Report, again: Report) -> list[str]:
    """Return a sentence if a report has less time without a record than the ledger, whose longer entries hide gaps but
    make none, or another time without a live intensity."""
    differences = []
    for what, words in (("record", "without any record"), ("intensity", "without a live intensity")):
        said, due = _gap_s(report, what), _gap_s(again, what)
        longest_s = report.period.end - report.period.start - report.period.recorded_s if what == "record" else due
        if not due - _slack_s(due) <= said <= max(longest_s, due) + _slack_s(due):
            differences.append(f"the ledger has {due:.0f} s {words}, the report says {said:.0f} s")
    return differences


def _gap_s(report: Report, what: str) -> float:
    return sum(gap.seconds for gap in report.gaps if gap.what == what)


def _slack_s(seconds: float) -> float:
    return _GAP_S + TOLERANCE * seconds


def _close(said: float | None, due: float | None) -> bool:
    if said is None or due is None:
        return said == due
    return math.isclose(said, due, rel_tol=TOLERANCE, abs_tol=1e-12)


def _value(value: float | None) -> str:
    return "no" if value is None else f"{value:.6g}"


def _figures(report: Report) -> Iterator[Figure]:
    """Yield every sum of a report by a name of its own."""
    yield "rows", float(report.rows)
    yield "requests", float(report.requests)
    yield "joules", report.joules
    yield "joules with the data centre's overhead", report.facility_joules
    yield "seconds recorded", report.period.recorded_s
    yield "grams, market-based", report.market_g
    yield from _range("of electricity", report.operation)
    yield from _range("embodied", report.embodied)
    yield from _range("for each row (SCI)", report.sci)
    for line in report.lines:
        yield f"joules of the line {line.line}", line.joules
        yield f"grams of the line {line.line}", line.grams
    for boundary in report.boundaries:
        yield f"grams within the boundary {boundary.boundary}", boundary.grams
    for known in report.energy_known:
        yield f"joules {known.name}", known.joules
    for known in report.intensity_known:
        yield f"joules at an intensity {known.name}", known.joules
    for grid in report.grids:
        yield f"seconds of {grid.provider} {grid.zone}, {grid.signal}, {grid.scope}, {grid.known}", grid.seconds
    for factor in report.inputs.factors:
        yield f"{factor.unit} as {factor.name}", factor.value
    yield from _answers(report)
    yield from _buckets(report)


def _range(what: str, found: GramsRange | None) -> Iterator[Figure]:
    yield f"grams {what}", None if found is None else found.grams
    yield f"grams {what} at least", None if found is None else found.low_g
    yield f"grams {what} at most", None if found is None else found.high_g


def _answers(report: Report) -> Iterator[Figure]:
    """Yield what was saved, and how well models answered."""
    for item in report.saved:
        yield f"rows compared with {item.name}", float(item.rows)
        yield f"grams compared with {item.name}", item.own_g
        yield f"grams of {item.name}", item.other_g
        yield f"joules compared with {item.name}", item.own_j
        yield f"joules of {item.name}", item.other_j
        yield f"% accuracy compared with {item.name}", item.accuracy
        yield f"% accuracy of {item.name}", item.other_accuracy
        yield f"as the part saved against {item.name}", item.part
        yield f"as the part of the grams compared with {item.name}", item.part_of_emitted
        yield from _range(f"saved against {item.name}", item.saved)
    for model in report.quality:
        yield f"rows of {model.model} by quality", float(model.rows)
        yield f"% accuracy of {model.model}", model.accuracy
        yield f"labelled rows of {model.model}", float(model.labelled)
        yield f"% accuracy of {model.model} by labels", model.labelled_accuracy
        yield f"requests of {model.model} by quality", float(model.requests)
        yield f"requests of {model.model} beyond the SLO", float(model.violations)


def _buckets(report: Report) -> Iterator[Figure]:
    """Yield the sums of each breakdown, and those figures of single buckets that do not depend on entries."""
    for found in report.breakdowns:
        yield f"grams by {found.by}", sum(bucket.grams for bucket in found.buckets)
        yield f"joules by {found.by}", sum(bucket.joules for bucket in found.buckets)
        yield f"rows by {found.by}", float(sum(bucket.rows for bucket in found.buckets))
        yield f"market-based grams by {found.by}", _sum([bucket.market_g for bucket in found.buckets])
        if found.by in ("hour", "day", "month"):
            continue
        for bucket in found.buckets:
            yield f"rows of the {found.by} {bucket.name}", float(bucket.rows)
            if found.by in ("model", "device"):
                yield f"joules of the {found.by} {bucket.name} alone", bucket.own_j
                yield f"grams of the {found.by} {bucket.name} alone", bucket.own_g


def _sum(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None
