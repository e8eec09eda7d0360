"""Evidence that a family is well again after alarms of its guard, by what was accused: a kind of test and a lane.

`scores`     every input's score, of the lane that it was asked of first;
`own`        audits of rows that were asked of that lane first;
`overruled`  rows of a chain, or audits as of `own`: either will do;
`served`     audits of what the plan's own thresholds would have let a client have, though others are in force.

A lane that is not asked any more, because plans avoid what was accused, cannot clear itself.  Once `QUIET` inputs have
come without one for it, it is judged by the scores of those that are asked: they tell whether inputs are as profiled,
and nothing of the lane.  To come down on that is a trial, and the guard's stay bounds how often there is one.

An input counts once here too, by memories of its own: one that came before the alarm may speak once more.  Else a
client whose inputs are some thousands, again and again, would leave nothing to come down by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from clover._native.inputs import Recent
from clover.runtime.guard.drift import SCORE_LIMIT
from clover.runtime.guard.recovery import AgreementRecovery, ScoreRecovery
from clover.types import Sureness

SCORES, OWN, OVERRULED, SERVED = "scores", "own", "overruled", "served"
QUIET = 10_000
REMEMBERED = 16_384
"""Inputs that are remembered at least.  Those of a circle of more than these count again and again, and may: the scores
and the agreement of so many inputs lie within what counts as profiled, if those of all do."""

Accused = tuple[str, int]


class Health:
    """Evidence since the guard took the step on which it stands.  `known` is the profile of each lane, `accused` what
    is held against them."""

    def __init__(self, known: Sequence[Sureness | None], accused: Iterable[Accused]) -> None:
        self.inputs = 0
        self.seen = Recent(REMEMBERED)
        self.audited = Recent(REMEMBERED)
        self._scores: list[ScoreRecovery | None] = [None] * len(known)
        self._asked = [0] * len(known)  # how many inputs had come when each lane was last asked
        self._agreement: dict[Accused, AgreementRecovery] = {}
        self.accused: set[Accused] = set()
        for lane, own in enumerate(known):
            if own is not None and own.rows and own.edges:
                try:
                    self._scores[lane] = ScoreRecovery(own.parts, own.rows)
                except ValueError:
                    continue  # the guard has said so
        for kind, lane in accused:
            self.accuse(kind, lane)

    def accuse(self, kind: str, lane: int) -> None:
        """Hold something against a lane, which has to clear itself from now on; all evidence begins anew, so that every
        input may count for it."""
        self.accused.add((kind, lane))
        for each in (OWN, OVERRULED) if kind == OVERRULED else (kind,):
            if each != SCORES:
                self._agreement[each, lane] = AgreementRecovery(*((SCORE_LIMIT,) if each == OVERRULED else ()))
        self.seen.clear()
        self.audited.clear()
        for known in self._scores:
            if known is not None:
                known.restart()
        for found in self._agreement.values():
            found.clear.restart()

    def score(self, lane: int, at: int) -> None:
        """Count an input whose score, by the `lane` that was asked first, lies in bin `at`."""
        self.inputs += 1
        self.asked(lane)
        known = self._scores[lane]
        if known is not None:
            known.add(at)

    def asked(self, lane: int) -> None:
        """Note that `lane` was asked of an input."""
        self._asked[lane] = self.inputs

    def compared(self, kind: str, lane: int, agrees: int, expected: float, profiled: int, rows: int) -> None:
        """Count rows as `drift.AgreementWatch.add` does."""
        found = self._agreement.get((kind, lane))
        if found is not None:
            found.add(agrees, expected, profiled, rows)

    def well(self, kind: str, lane: int) -> bool:
        """Return whether what was held against a lane stands no more."""
        own = [found.clear.well for found in self._of(kind, lane).values()]
        if any(own):
            return True
        if self.inputs - self._asked[lane] < QUIET:
            return False
        others = [
            known.clear.well
            for other, known in enumerate(self._scores)
            if known is not None and known.clear.rows and self.inputs - self._asked[other] < QUIET
        ]
        return bool(others) and all(others)

    @property
    def all_well(self) -> bool:
        """Return whether nothing stands that was held against any."""
        return all(self.well(kind, lane) for kind, lane in self.accused)

    def _of(self, kind: str, lane: int) -> dict[str, ScoreRecovery | AgreementRecovery]:
        found: dict[str, ScoreRecovery | AgreementRecovery] = {}
        known = self._scores[lane]
        if kind == SCORES and known is not None:
            found[SCORES] = known
        for each in (OWN, OVERRULED) if kind == OVERRULED else (kind,):
            if (each, lane) in self._agreement:
                found[each] = self._agreement[each, lane]
        return found

    def report(self, variants: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return, by variant and kind, rows and the statistic with the limit at which it is well."""
        out: dict[str, dict[str, Any]] = {}
        for kind, lane in sorted(self.accused):
            for each, found in self._of(kind, lane).items():
                clear = found.clear
                shown = {"rows": clear.rows, "statistic": clear.statistic, "limit": clear.limit, "well": clear.well}
                out.setdefault(variants[lane], {})[each] = shown
        return out
