"""How far above its accuracy floor a family is planned: by its evaluation sample and by labels that came late.

The operator's `accuracy_margin` wins; then cascades are held to it too, and labels change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clover.planning.model.margin import LiveLabels, certain, margin, shifts_of
from clover.types import FamilyProfile

_KEPT = 16


class AccuracySample:
    """Bounds of a family's accuracies; `configured` is the operator's margin (points), None if there is none."""

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
        """The points that cascades aim for above the floor: none beyond their own bounds (`certain`), or the operator's
        margin (None)."""
        return 0.0 if self.configured is None else None

    def look(self, guard_report: Mapping[str, Any]) -> None:
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

    def certain(self, profile: FamilyProfile, floor: float, *, relative: bool) -> FamilyProfile:
        """Return `profile` with the cascades that keep `floor` for certain; the same object for the same question."""
        if self.configured is not None or profile.cascade is None:
            return profile
        self._hold(profile)
        key = (floor, relative)
        if key not in self._certain:
            self._certain[key] = certain(profile, floor, relative=relative, shifts=self.shifts(profile, relative))
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
