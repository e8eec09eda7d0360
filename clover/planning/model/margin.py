"""How far above the accuracy floor plans have to aim, by the size of the evaluation sample.

A profile's accuracies were counted on some thousands of rows.  A plan that meets the floor exactly by them misses it in
half of all cases.  So what counts is the one-sided *lower bound* of a plan's accuracy, such that what is planned keeps
the floor at `CONFIDENCE`.

 - A floor *relative* to the best variant (the default, a point below it) asks how far a plan is below that variant on
   the same rows.  Most rows are answered alike, so the *paired* difference is known far better than either accuracy.
 - An *absolute* floor (the operator's) asks for the accuracy itself: the unpaired bound.

**Cascades.**  Each point of the profile has a bound of its own.  Points whose bound is below the floor are left out
(`keep_certain`).

**Mixes.**  The bound of a mix is no less than the mix of the bounds of its variants, which is a linear function of the
shares.  `margin` is the most by which the measured accuracy of any mix can lie above the floor while its bound lies
below: a linear program with one constraint, whose corners are mixes of two variants at most.  It depends on the family,
the floor and the sample alone.  Plans that stay the margin above the floor keep the floor at `CONFIDENCE`.

**Labels that come late.**  `shift_of` says by how many points a variant's live accuracy is below the expected one: a
normal posterior, whose prior expects no difference, give or take `PRIOR_SD`.  Labels may be of rows that were not
chosen evenly.  So they only lower a bound, by `MOST_SHIFT` at most, and never raise it.  If the floor is relative, only
what a variant lost beyond the best one counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from clover.planning.model.problem import accuracies
from clover.types import AccuracyMeasurement, ChainPoint, FamilyProfile

CONFIDENCE = 0.95
"""One-sided: of all profiles, the part in which a plan that just passes is really at the floor or above."""
UNKNOWN = 0.25
"""Points of margin for accuracies that come without a sample (published ones)."""
PRIOR_SD = 0.5
"""Points by which live accuracy is expected to differ from the evaluation set's (one standard deviation)."""
MOST_SHIFT = 1.0
"""Points by which labels lower what is known of a variant, at most."""
LEAST_LABELS = 100
"""Rows of the best variant with labels, before what it lost itself is taken off."""
_Z = 1.96
"""Of a one-sided bound at 97.5 %: of several plans that pass the cheapest is taken, so that `CONFIDENCE` in what is
taken asks for more in each."""
_TWO_SIDED = 1.96  # of the 95 % intervals that profiles hold
_STEP = 0.01  # points: margins are rounded up to it, and shifts to five of it, as solved plans are remembered by them
_EPSILON = 1e-9
_KEPT = 16


@dataclass(frozen=True)
class LiveLabels:
    """Labels that came for the rows of one variant: how many, and of these how many were right and were expected to
    be."""

    rows: float
    right: float
    expected: float


def shift_of(labels: LiveLabels) -> float:
    """Return the points by which live accuracy differs from what was expected (negative: it is lower), as far as
    labels show it."""
    if labels.rows <= 0.0:
        return 0.0
    part = (labels.right + 0.5) / (labels.rows + 1.0)  # no variance of 0 for few rows
    variance = 1e4 * part * (1.0 - part) / labels.rows
    points = 100.0 * (labels.right - labels.expected) / labels.rows
    return points * PRIOR_SD**2 / (PRIOR_SD**2 + variance)


def shifts_of(profile: FamilyProfile, labels: Mapping[str, LiveLabels], *, relative: bool) -> dict[str, float]:
    """Return by variant the points by which labels lower its bound, 0 or less.  `relative`: below the best variant."""
    shifts = {variant: shift_of(own) for variant, own in labels.items()}
    known, values = labels.get(_best(profile)), accuracies(profile)
    common = 0.0
    if relative and known is not None and known.rows >= LEAST_LABELS:
        common = shifts[_best(profile)]
    step = 5.0 * _STEP
    lowered = {name: step * round(max(-MOST_SHIFT, min(0.0, shift - common)) / step) for name, shift in shifts.items()}
    return {name: shift for name, shift in lowered.items() if shift < 0.0 and name in values}


def lower_bounds(
    profile: FamilyProfile, *, relative: bool, shifts: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the lower bound of each variant's accuracy (percent) on its chosen backend; `relative`: that of its
    difference from the best variant, below that one's measured accuracy."""
    best = _best(profile)
    measured = {item.variant: item for item in profile.accuracy if profile.backend.get(item.variant) == item.backend}
    bounds = {}
    for variant, item in measured.items():
        middle, doubt = item.value, 0.0
        if not (relative and variant == best):
            doubt = _doubt(item, measured[best], relative, _alike(profile, variant, best))
            middle = measured[best].value + item.against[0] if relative and item.against is not None else middle
        bounds[variant] = middle - doubt + (shifts or {}).get(variant, 0.0)
    return bounds


def margin(profile: FamilyProfile, floor: float, *, relative: bool, shifts: Mapping[str, float] | None = None) -> float:
    """Return the points above `floor` (percent) that a mix of the profile's variants has to aim for, so that its lower
    bound is no less than the floor."""
    values, low = accuracies(profile), lower_bounds(profile, relative=relative, shifts=shifts)
    below = [name for name in values if low[name] < floor - _EPSILON]
    above = [name for name in values if low[name] >= floor - _EPSILON]
    reached = [values[name] for name in below]
    for under in below:
        for over in above:
            part = (floor - low[under]) / max(low[over] - low[under], _EPSILON)
            reached.append((1.0 - part) * values[under] + part * values[over])
    most = max(reached, default=floor) - floor
    return max(0.0, _STEP * math.ceil(most / _STEP - 1e-6))


def keep_certain(
    profile: FamilyProfile, floor: float, *, relative: bool, shifts: Mapping[str, float] | None = None
) -> FamilyProfile:
    """Return `profile` with those of its cascades whose lower bound is no less than `floor` (percent)."""
    cascade = profile.cascade
    if cascade is None:
        return profile
    best = max(accuracies(profile).values(), default=0.0)

    def low(point: ChainPoint) -> float:
        middle = best + point.against[0] if relative and point.against is not None else point.accuracy
        reach = (*point.reach, 0.0)
        ended = ((name, reach[at] - reach[at + 1]) for at, name in enumerate(point.chain))
        lost = sum(part * (shifts or {}).get(name, 0.0) for name, part in ended)
        return middle - _point_doubt(point, cascade.held_out_rows, relative) + lost

    points = tuple(point for point in cascade.points if low(point) >= floor - _EPSILON)
    return profile if len(points) == len(cascade.points) else _with_points(profile, points)


def _with_points(profile: FamilyProfile, points: tuple[ChainPoint, ...]) -> FamilyProfile:
    assert profile.cascade is not None
    return structs.replace(profile, cascade=structs.replace(profile.cascade, points=points))


def _alike(profile: FamilyProfile, variant: str, best: str) -> float:
    """Return the part of the rows that `variant` answers as `best` does; 0 if that is not known."""
    own = profile.cascade.sureness.get(variant) if profile.cascade is not None else None
    return own.alike.get(best, 0.0) if own is not None else 0.0


def _doubt(item: AccuracyMeasurement, best: AccuracyMeasurement, relative: bool, alike: float) -> float:
    """Return points from a measured accuracy (`relative`: from its difference to the best one) to its lower bound."""
    if item.samples <= 0:
        return UNKNOWN
    if relative and item.against is not None:  # on the rows that both saw
        return _bound(item.against[2] - item.against[1], min(item.samples, best.samples))
    own = item.high - item.low
    if relative:
        # Without the pairs: as if all that is answered otherwise were right in one of two, or as two samples apart,
        # which vary more than answers to the same rows do.
        otherwise = 200.0 * _TWO_SIDED * math.sqrt((1.0 - alike) / item.samples)
        own = min(otherwise, math.hypot(own, best.high - best.low))
    return _bound(own, item.samples)


def _point_doubt(point: ChainPoint, rows: int, relative: bool) -> float:
    if relative and point.against is not None:
        return _bound(point.against[2] - point.against[1], rows)
    return _bound(point.high - point.low, rows)


def _bound(width: float, rows: int) -> float:
    """Return the distance to the one-sided bound, for a two-sided 95 % interval of `width` points; one row more than
    was seen counts as answered the other way, so that a difference that never occurred is not taken for certain."""
    return _Z * math.hypot(0.5 * width / _TWO_SIDED, 100.0 / max(1, rows))


def _best(profile: FamilyProfile) -> str:
    """Return the most accurate variant, "" if none is known."""
    values = accuracies(profile)
    return max(values, key=lambda name: values[name], default="")


# --- of one family ----------------------------------------------------------------------------------------------------


class AccuracySample:
    """Bounds of a family's accuracies, remembered; `configured` is the operator's margin (points), None without one.

    The operator's margin wins; then cascades are held to it too, and labels change nothing."""

    def __init__(self, configured: float | None) -> None:
        self.configured = configured
        self.labels: dict[str, LiveLabels] = {}
        """Labels that came so far, by the variant that answered."""
        self._profile: FamilyProfile | None = None
        self._margins: dict[tuple[float, bool], float] = {}
        self._certain: dict[tuple[float, bool], FamilyProfile] = {}

    @property
    def source(self) -> str:
        """Where the margin comes from, in words."""
        if self.configured is not None:
            return "configured"
        return "evaluation sample" + (" and labels" if self.labels else "")

    @property
    def cascade_margin(self) -> float | None:
        """The points that cascades aim for above the floor: none beyond their own bounds (`keep_certain`), or the
        operator's margin (None)."""
        return 0.0 if self.configured is None else None

    def observe(self, guard_report: Mapping[str, Any]) -> None:
        """Take what is known of live labels from the guard's report."""
        if self.configured is not None:
            return
        variants = guard_report.get("feedback", {}).get("variants", {})
        labels = {
            name: LiveLabels(own["rows"], own["accuracy"] * own["rows"] / 100.0, own["expected"] * own["rows"] / 100.0)
            for name, own in variants.items()
        }
        if labels != self.labels:
            self.labels = labels
            self._profile = None

    def margin(self, profile: FamilyProfile, floor: float, *, relative: bool) -> float:
        """Return the points above `floor` (percent) that plans aim for; `relative`: the floor is one below the best
        variant."""
        if self.configured is not None:
            return self.configured
        self._hold(profile)
        key = (floor, relative)
        if key not in self._margins:
            self._margins[key] = margin(profile, floor, relative=relative, shifts=self.shifts(profile, relative))
        return self._margins[key]

    def keep_certain(self, profile: FamilyProfile, floor: float, *, relative: bool) -> FamilyProfile:
        """Return `profile` with the cascades that keep `floor` for certain; the same object for the same question."""
        if self.configured is not None or profile.cascade is None:
            return profile
        self._hold(profile)
        key = (floor, relative)
        if key not in self._certain:
            self._certain[key] = keep_certain(profile, floor, relative=relative, shifts=self.shifts(profile, relative))
        return self._certain[key]

    def shifts(self, profile: FamilyProfile, relative: bool) -> dict[str, float]:
        """Return by variant the points by which labels lower its bound."""
        return shifts_of(profile, self.labels, relative=relative)

    def _hold(self, profile: FamilyProfile) -> None:
        """Forget what was found for another profile or other labels."""
        if profile is not self._profile or len(self._margins) >= _KEPT or len(self._certain) >= _KEPT:
            self._profile = profile
            self._margins.clear()
            self._certain.clear()
