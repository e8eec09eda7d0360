"""The guard of a family: sees whether its answers are still what its profile says, and acts if they are not.

Labels are absent, so the guard watches what is there (`clover.runtime.guard.drift` says how, and how rarely it is
wrong):

`scores`     how sure the variant that a row is asked of first was, by tenths of the profile's scores;
`own`        how often that variant says what the auditor says, over audited rows (`runtime.router.audits`);
`overruled`  how many of all rows went on to the best variant and were answered otherwise there; it costs nothing;
`served`     how often the answer that a client got is the best variant's, over audited rows that another one answered.

**An input counts once.**  A row whose input came before says nothing new, however often it comes, and is left out of
all of them (`_native.inputs` says what is remembered).  What is audited has a memory of its own: a row that came often,
and is audited for the first time, counts there.  An alarm clears neither, so that the same few inputs cannot take two
steps; the way down and a reset do.  Evidence of recovery remembers on its own (`runtime.guard.health`), and takes an
input that came before the alarm once more; so does `overruled`, of which a second alarm takes no step.

Any of them takes the first step of the ladder, and only the last takes the second: if the best variant goes wrong as
well, to leave the cascade would cost energy and mend nothing.

ok           thresholds are the plan's
tightened    thresholds are so high that half of the rows that ended go on (by the profile's scores)
aside        the cascade is off, and the best variant that is there answers everything

**The way back** is the same ladder, a step at a time: once everything that was held against a variant is well again
(`runtime.guard.health`), and the guard has stood there for its *stay*.  That is `LEAST_STAY_NS`, and doubles, up to
`MOST_STAY_NS`, with every alarm that follows within `FORGIVEN` stays of a step down.  A reset is the operator's way.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from clover._native.inputs import Recent
from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.drift import BLOCK, FEWEST_ROWS, SCORE_LIMIT, AgreementWatch, ScoreWatch
from clover.runtime.guard.health import OVERRULED, OWN, REMEMBERED, SCORES, SERVED, Accused, Health
from clover.types import CascadeProfile, FamilyProfile, Sureness

log = logging.getLogger("clover.guard")

OK, TIGHTENED, CASCADE_OFF = range(3)
ALARM_LEVELS = ("ok", "tightened", "aside")
DRIFT, RECOVERY = 1, 2
"""Bits of what a row is evidence of: an alarm, and the way back."""
_BOTH = DRIFT | RECOVERY
LEAST_STAY_NS, MOST_STAY_NS = 600_000_000_000, 86_400_000_000_000
FORGIVEN = 10
URGENT_AUDITS = 5000
"""Audits at most that are made in haste after an alarm.  If nothing is wrong with the answers, so many turn the cascade
off in one case of fifty at most (`drift.AGREEMENT_LIMIT`)."""
_SUSPICIOUS = 0.01  # of the limit: from then on more is audited
_NO_PROFILE = "there is no profile with scores to hold answers against"
_OLD_PROFILE = (
    "the profile is of before there was a guard: measure the family again (`python -m clover profile FAMILY --force`)"
)


class Guard:
    """A watch over the `variants` of one family.  `changed` is called when it stands on another step; with `acts` False
    it only reports what it would do.  `clock` (ns) is read when it steps, and not for a row."""

    def __init__(
        self,
        name: str,
        variants: Sequence[str],
        changed: Callable[[], None] = lambda: None,
        *,
        acts: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.acts = acts
        self.detected_level = OK
        """Where on the ladder it stands by what it saw."""
        self.why = ""
        self.alarms = 0
        self.urgent = 0
        """So many audits are to be made soon: thresholds were tightened, and it should be known whether answers are
        worse.  Audits cost energy by their number and not by how fast they come."""
        self.resets = 0
        self.returns = 0
        """Steps that it came down by itself."""
        self.relapses = 0
        """Alarms that followed so soon that the stay doubled."""
        self.inputs = 0
        self.repeats = 0
        """Rows that counted, and those that did not because their input had come before."""
        self.stay_ns = LEAST_STAY_NS
        """How long it stays on a step at least."""
        self.accused = -1
        """The lane whose answers turned the cascade off; -1 while it is on."""
        self.floors: dict[int, tuple[float, float, int]] = {}
        """By lane, which of its answers the plan lets clients have: those of such a score at least, of so many of which
        such a part is the best variant's, by the profile."""
        self.missing = _NO_PROFILE
        """Why it watches nothing; empty if it does."""
        self.best = -1
        """The lane that answers are held against."""
        self.edges: list[list[float] | None] = [None] * len(variants)
        self._variants = tuple(variants)
        self._changed = changed
        self._clock = clock
        self._seen = Recent(REMEMBERED)
        self._audited = Recent(REMEMBERED)
        self._health: Health | None = None
        self._since_ns = clock()
        self._down_ns = -1  # when it last came down by itself, until the next alarm
        self._cascade: CascadeProfile | None = None
        self._scores: list[ScoreWatch | None] = [None] * len(variants)
        self._agreement: dict[tuple[str, int], AgreementWatch] = {}
        self._chain: RoutedChain | None = None
        self._block = [0, 0]  # rows that followed it since the watch moved, and those that were overruled

    @property
    def alarm_level(self) -> int:
        """Return the step that is in force."""
        return self.detected_level if self.acts else OK

    @property
    def watches(self) -> bool:
        """Return whether it has anything to hold answers against."""
        return self._cascade is not None

    def expect(self, profile: FamilyProfile | None) -> None:
        """Hold answers against `profile` from now on; all that was seen is forgotten."""
        cascade = profile.cascade if profile is not None else None
        self._cascade, self.missing, self.best = None, _NO_PROFILE, -1
        self._scores = [None] * len(self._variants)
        self.edges = [None] * len(self._variants)
        self.floors.clear()
        if cascade is not None and cascade.best in self._variants:
            known = [cascade.sureness.get(name) for name in self._variants]
            self.missing = "" if any(own is not None and own.rows for own in known) else _OLD_PROFILE
            if not self.missing:
                self._cascade, self.best = cascade, self._variants.index(cascade.best)
                for lane, own in enumerate(known):
                    if own is not None and own.rows and own.edges:
                        try:
                            self._scores[lane] = ScoreWatch(own.parts, own.rows)
                        except ValueError as error:  # measured on next to nothing, or changed by hand
                            log.warning("%s: scores of %s: %s", self.name, self._variants[lane], error)
                            continue
                        self.edges[lane] = list(own.edges)
            else:
                log.warning("%s: answers are not watched: %s", self.name, self.missing)
        self._start()

    def reset(self) -> None:
        """Watch anew, from the first step."""
        self.resets += 1
        self._start()

    def _start(self) -> None:
        self.stay_ns, self._down_ns = LEAST_STAY_NS, -1
        self._step(OK, "", ())

    def _step(self, found: int, why: str, accused: Iterable[Accused]) -> None:
        """Stand on another step, on which the tests begin anew, and so does what may clear the `accused`.  Inputs that
        counted on the way up are forgotten on the way down."""
        was = self.alarm_level
        if found <= self.detected_level:
            self._seen.clear()
            self._audited.clear()
        self.detected_level, self.why, self._since_ns = found, why, self._clock()
        self.accused = self.accused if found == CASCADE_OFF else -1
        self.urgent = URGENT_AUDITS if self.alarm_level == TIGHTENED else 0
        self._agreement.clear()
        self._block = [0, 0]
        for watch in self._scores:
            # Each test raises one alarm on the way up, so that this comes to an end.
            if watch is not None and (found == OK or not watch.detector.alarmed):
                watch.reset()
        lanes = range(len(self._variants))
        self._health = Health([self._known(lane) for lane in lanes], accused) if found != OK else None
        if self.alarm_level != was:
            self._changed()

    def look(self) -> None:
        """Come down a step, if it may; to be called once a second or so."""
        health = self._health
        if health is None or self._clock() - self._since_ns < self.stay_ns:
            return
        if not (health.well(SERVED, self.accused) if self.detected_level == CASCADE_OFF else health.all_well):
            return
        self.returns += 1
        self._down_ns = self._clock()
        was, found = ALARM_LEVELS[self.detected_level], OK if self.detected_level == TIGHTENED else TIGHTENED
        done = "the plan's thresholds are back" if found == OK else "the cascade is followed, with tightened thresholds"
        log.info(
            "%s: answers are as profiled again by %d inputs; it stood %s since %s: %s",
            self.name, health.inputs, was, self.why, done,
        )  # fmt: skip
        self._step(found, "" if found == OK else self.why, health.accused)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def fresh(self, digest: int) -> int:
        """Return what an answered row with an input of this digest is evidence of; 0 if it is a repeat."""
        evidence = DRIFT if self._seen.add(digest) else 0
        if self._health is not None and self._health.seen.add(digest):
            evidence |= RECOVERY
        if evidence:
            self.inputs += 1
        else:
            self.repeats += 1
        return evidence

    def audited(self, digest: int) -> bool:
        """Return whether an audit of a row with an input of this digest would be evidence of nothing."""
        return self._audited.holds(digest) and (self._health is None or self._health.audited.holds(digest))

    def fresh_audit(self, digest: int) -> int:
        """Return what an audit of a row with an input of this digest is evidence of; 0 if it is a repeat."""
        evidence = DRIFT if self._audited.add(digest) else 0
        if self._health is not None and self._health.audited.add(digest):
            evidence |= RECOVERY
        return evidence

    def score(self, lane: int, score: float, evidence: int = _BOTH) -> None:
        """Count how sure `lane` was of a row that was asked of it first."""
        watch, edges = self._scores[lane], self.edges[lane]
        if watch is None or edges is None:
            return
        at = bisect_right(edges, score) if score == score else 0  # what is no number lies below all
        if self._health is not None and evidence & RECOVERY:
            self._health.score(lane, at)
        if evidence & DRIFT and watch.add(at):
            self.alarm(SCORES, lane, f"after {watch.detector.rows} different inputs")

    def followed(self, chain: RoutedChain, overruled: int, rows: int) -> None:
        """Count rows that followed `chain`, of which so many were overruled by the best variant at its end."""
        if chain is not self._chain:
            self._close()
            self._chain = chain
        self._block[0] += rows
        self._block[1] += overruled
        if self._block[0] >= BLOCK:
            self._close()

    def _close(self) -> None:
        (rows, overruled), chain = self._block, self._chain
        self._block = [0, 0]
        if rows and chain is not None:
            expected = 1.0 - chain.overruled
            self.compared(OVERRULED, chain.lanes[-2], rows - overruled, expected, chain.overruled_rows, rows)

    def compared(
        self, kind: str, lane: int, agrees: int, expected: float, rows: int, count: int = 1, evidence: int = _BOTH
    ) -> None:
        """Count whether `lane` said of a row (of how many of `count` rows) what the auditor says.  Of `rows` profiled
        rows of that kind it did so for a part `expected`; 0 rows: that is not known."""
        if self._health is not None and kind != SERVED and evidence & RECOVERY:
            self._health.compared(kind, lane, agrees, expected, rows, count)
        if not evidence & DRIFT:
            return
        watch = self._agreement.get((kind, lane))
        if watch is None:
            # Of what is overruled there may be as much as there are rows.
            limits = (SCORE_LIMIT, FEWEST_ROWS) if kind == OVERRULED else ()
            watch = self._agreement[kind, lane] = AgreementWatch(*limits)
        if watch.add(agrees, expected, rows, count):
            part, due = watch.agreed / watch.rows, watch.expected / watch.rows
            self.alarm(kind, lane, f"{part:.1%} instead of {due:.1%} over {watch.rows} rows")

    def as_planned(self, lane: int, agrees: int, expected: float, rows: int) -> None:
        """Count whether an answer of `lane`, which the plan's thresholds would let a client have, is the best
        variant's.  It clears a lane, and raises no alarm: clients may have got another.  While the cascade is off there
        is no such answer, and `witness` counts instead; a guard that only watches never has it off."""
        if self._health is not None and self.alarm_level != CASCADE_OFF:
            self._health.compared(SERVED, lane, agrees, expected, rows, 1)

    def witness(self, score: float, agrees: int) -> None:
        """Count what the accused lane says of a row while the cascade is off: how sure it is, and whether it says what
        the best variant says."""
        if self._health is not None and self.alarm_level == CASCADE_OFF:
            self._health.asked(self.accused)
            floor, expected, rows = self.floors.get(self.accused, (-math.inf, *self.alike(self.accused, self.best)))
            if score >= floor:
                self._health.compared(SERVED, self.accused, agrees, expected, rows, 1)

    def alike(self, lane: int, auditor: int) -> tuple[float, int]:
        """Return the part of rows of which two lanes say the same, by the profile, and how many rows it has of that."""
        own = self._known(lane)
        found = own.alike.get(self._variants[auditor]) if own is not None else None
        return (found, own.rows) if own is not None and found is not None else (0.0, 0)

    @property
    def suspicious(self) -> bool:
        """Return whether it would be good to know more."""
        if self.detected_level != OK:
            return True
        of = [watch.detector for watch in (*self._scores, *self._agreement.values()) if watch is not None]
        return any(not each.alarmed and each.statistic > _SUSPICIOUS * each.limit for each in of)

    def tightened(self, chain: RoutedChain) -> RoutedChain:
        """Return the chain with thresholds above which only half of the profiled rows lie that do above its own."""
        levels = tuple(map(self._tighter, chain.lanes, chain.thresholds))
        part, rows = 0.0, 0
        if len(chain.lanes) == 2 and chain.lanes[1] == self.best and self._cascade is not None:
            part, rows = self._overruled(chain.lanes[0], levels[0]), self._cascade.held_out_rows
        known = rows if part > 0.0 else 0
        return replace(
            chain, thresholds=levels, overruled=part, overruled_rows=known, planned=chain.planned or chain.thresholds
        )

    def _tighter(self, lane: int, threshold: float) -> float:
        above = [score for score in self._quantiles(lane) if score >= threshold]
        return max(threshold, above[len(above) // 2]) if above else threshold

    def _overruled(self, lane: int, threshold: float) -> float:
        """Return the part of rows, by the profile, of which `lane` is less sure and says otherwise than the best
        variant, or a little more: tenths count whole.  0 if that is not known."""
        own, scores = self._known(lane), self._quantiles(lane)
        if own is None or not own.agreement or not scores:
            return 0.0
        below = bisect_left(scores, threshold) / (len(scores) - 1)  # of the rows, or up to a 32nd more
        tenths = own.agreement[: math.ceil(min(below, 1.0) * len(own.agreement))]
        return sum(1.0 - part for part in tenths) / len(own.agreement)

    def _quantiles(self, lane: int) -> tuple[float, ...]:
        return self._cascade.quantiles.get(self._variants[lane], ()) if self._cascade is not None else ()

    def _known(self, lane: int) -> Sureness | None:
        return self._cascade.sureness.get(self._variants[lane]) if self._cascade is not None else None

    # --- the ladder ---------------------------------------------------------------------------------------------------

    def alarm(self, kind: str, lane: int, what: str) -> None:
        """Take the next step, because a watch of `lane` saw `what`; if there is none, log that."""
        self.alarms += 1
        said = {
            SCORES: f"the scores of {self._variants[lane]} are not those of the profile any more",
            OWN: f"{self._variants[lane]} agrees with the auditor less than profiled",
            OVERRULED: f"the best variant overrules {self._variants[lane]} more often than profiled",
            SERVED: f"answers of {self._variants[lane]} agree with the best variant's less than profiled",
        }[kind]
        before, found = self.detected_level, self.detected_level
        if before == OK:
            found = TIGHTENED
        elif before == TIGHTENED and kind == SERVED:
            found = CASCADE_OFF
        if found == before:
            self.urgent = URGENT_AUDITS if self.alarm_level == TIGHTENED else 0
            if self._health is not None:
                self._health.accuse(kind, lane)
            log.warning("%s: %s (%s); it stays %s", self.name, said, what, ALARM_LEVELS[before])
            return
        if self._down_ns >= 0:
            relapse = self._clock() - self._down_ns < FORGIVEN * self.stay_ns
            self.relapses += relapse
            self.stay_ns = min(2 * self.stay_ns, MOST_STAY_NS) if relapse else LEAST_STAY_NS
            self._down_ns = -1
        accused = {(kind, lane), *(self._health.accused if self._health is not None else ())}
        self.accused = lane if found == CASCADE_OFF else -1
        why = f"{said} ({what})"
        done = "thresholds tighten" if found == TIGHTENED else "the cascade is off: the best variant answers all"
        level = logging.WARNING if found == TIGHTENED else logging.ERROR
        would = "" if self.acts else " (it only watches: nothing is done)"
        log.log(
            level,
            "%s: %s: %s%s; it comes down by itself once answers are as profiled again, after %d minutes at the "
            "earliest, or at once by `python -m clover ctl guard reset`",
            self.name, why, done, would, self.stay_ns // 60_000_000_000,
        )  # fmt: skip
        self._step(found, why, accused)

    # --- what is shown ------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return where it stands and why, and by variant and kind what it saw: rows, the statistic and its limit, and
        of agreement the part that agreed and the part expected."""
        variants: dict[str, dict[str, Any]] = {}
        for lane, scores in enumerate(self._scores):
            if scores is not None and scores.detector.rows:
                variants.setdefault(self._variants[lane], {})[SCORES] = _told(scores)
        for (kind, lane), watch in self._agreement.items():
            variants.setdefault(self._variants[lane], {})[kind] = {
                **_told(watch),
                "rows": watch.rows,
                "agreement": watch.agreed / watch.rows,
                "expected": watch.expected / watch.rows,
            }
        return {
            "state": ALARM_LEVELS[self.detected_level],
            "acts": self.acts,
            "why": self.why,
            "watches": self.watches,
            "missing": self.missing,
            "alarms": self.alarms,
            "resets": self.resets,
            "returns": self.returns,
            "relapses": self.relapses,
            "stay_s": self.stay_ns / 1e9,
            "since_s": (self._clock() - self._since_ns) / 1e9,
            "inputs": self.inputs,
            "repeats": self.repeats,
            "health": self._health.report(self._variants) if self._health is not None else {},
            "variants": variants,
        }


def _told(watch: ScoreWatch | AgreementWatch) -> dict[str, Any]:
    found = watch.detector
    return {"rows": found.rows, "statistic": found.statistic, "limit": found.limit, "alarmed": found.alarmed}


__all__ = [
    "ALARM_LEVELS",
    "CASCADE_OFF",
    "DRIFT",
    "OK",
    "OVERRULED",
    "OWN",
    "RECOVERY",
    "SCORES",
    "SERVED",
    "TIGHTENED",
    "URGENT_AUDITS",
    "Guard",
]
