"""Evidence that answers have recovered after alarms of the guard, by what was accused: a kind of test and a lane.

`scores`     the score of every input by the lane that was asked first;
`own`        audits of rows that were asked of that lane first;
`overruled`  rows of a chain, or audits as for `own`: either is enough;
`served`     audits of the answers that clients would get by the plan's own thresholds, though others are in force.

A lane that gets no rows any more, because plans avoid what was accused, cannot be cleared by its own answers.  Once
`QUIET` inputs have come without one for it, it is judged by the scores of the lanes that do get rows: they show whether
inputs are as profiled, but nothing about the lane.  Lowering the alarm level on that is a trial; the guard's stay
bounds how often it is made.

An input counts once here too, in memories of its own, so that one that came before the alarm counts once more.
Otherwise a client that repeats a few thousand inputs would leave no evidence of recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from clover._native.inputs import Recent
from clover.runtime.guard.clients import ClientGroups
from clover.runtime.guard.drift import AGREEMENT_LIMIT, SCORE_LIMIT
from clover.runtime.guard.recovery import AgreementRecovery, ScoreRecovery
from clover.types import Sureness

SCORES, OWN, OVERRULED, SERVED = "scores", "own", "overruled", "served"
QUIET = 10_000
REMEMBERED = 16_384
"""The least number of inputs that are remembered.  If more than these repeat in a cycle, each counts again every time,
which does no harm: the scores and agreement of so many inputs are as profiled if those of all are."""

Accused = tuple[str, int]


class Health:
    """Evidence of recovery since the alarm level last changed.  `known` is the profile of each lane; `accused` are the
    kinds of test that raised an alarm, with their lanes."""

    def __init__(
        self, known: Sequence[Sureness | None], accused: Iterable[Accused], clients: ClientGroups | None = None
    ) -> None:
        self.inputs = 0
        self._clients = clients
        self.seen = Recent(REMEMBERED)
        self.audited = Recent(REMEMBERED)
        self._scores: list[ScoreRecovery | None] = [None] * len(known)
        self._asked = [0] * len(known)  # how many inputs had come when each lane was last asked
        self._agreement: dict[Accused, AgreementRecovery] = {}
        self.accused: set[Accused] = set()
        for lane, own in enumerate(known):
            if own is not None and own.rows and own.edges:
                try:
                    self._scores[lane] = ScoreRecovery(own.parts, own.rows, clients=clients)
                except ValueError:
                    continue  # the guard has logged it
        for kind, lane in accused:
            self.accuse(kind, lane)

    def accuse(self, kind: str, lane: int) -> None:
        """Add an accused lane, which has to be cleared from now on; all evidence begins anew, so that every input may
        count for it."""
        self.accused.add((kind, lane))
        for each in (OWN, OVERRULED) if kind == OVERRULED else (kind,):
            if each != SCORES:
                limit = SCORE_LIMIT if each == OVERRULED else AGREEMENT_LIMIT
                self._agreement[each, lane] = AgreementRecovery(limit, self._clients)
        self.seen.clear()
        self.audited.clear()
        for known in self._scores:
            if known is not None:
                known.restart()
        for found in self._agreement.values():
            found.clear.restart()

    def score(self, lane: int, at: int, group: int = 0) -> None:
        """Count an input of a group of clients whose score, by the `lane` that was asked first, lies in bin `at`."""
        self.inputs += 1
        self.record_asked(lane)
        known = self._scores[lane]
        if known is not None:
            known.add(at, group)

    def record_asked(self, lane: int) -> None:
        """Note that `lane` was asked of an input."""
        self._asked[lane] = self.inputs

    def record_comparison(
        self, kind: str, lane: int, agrees: int, expected: float, profiled: int, rows: int, group: int = 0
    ) -> None:
        """Count rows as `drift.AgreementWatch.add` does."""
        found = self._agreement.get((kind, lane))
        if found is not None:
            found.add(agrees, expected, profiled, rows, group)

    def well(self, kind: str, lane: int) -> bool:
        """Return whether a lane has recovered from an accusation."""
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
        """Whether all accused lanes have recovered."""
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
