"""The guard of a family: watches whether its answers are still what its profile says, and acts if they are not.

There are no labels, so the guard watches four other signs (`clover.runtime.guard.drift` has the tests and their error
rates):

`scores`     the scores of the variant that a row is asked of first, by tenths of the profile's scores;
`own`        how often that variant agrees with the auditor, over audited rows (`runtime.router.audits`);
`overruled`  how many of all rows were escalated to the best variant and answered differently there; this costs nothing;
`served`     how often the client's answer is the best variant's, over audited rows that another variant answered.

**An input counts once.**  A row whose input came before is no new evidence, however often it comes, and is left out of
all four (`_native.inputs` says what is remembered).  Audited inputs are remembered separately: a row that came often,
and is audited for the first time, counts there.  An alarm clears neither memory, so that the same few inputs cannot
raise the level twice; lowering the level and a reset do.  Evidence of recovery has memories of its own
(`runtime.guard.health`), and counts an input that came before the alarm once more; so does `overruled`, whose second
alarm raises no level.

**Clients.**  Each test is also made without the rows of each group of clients (`runtime.guard.clients`): what one
client sends raises no alarm and holds no recovery up by itself, while the others send a quarter of the rows.  If they
send less it may raise the level alone, and that ends as soon as they send more.

The *alarm level* is one of three.  Any sign raises the first alarm, and only `served` the second: if the best variant
is wrong as well, switching the cascade off would cost energy and help nothing.

ok           thresholds are the plan's
tightened    thresholds are so high that half of the rows that ended are escalated (by the profile's scores)
cascade off  the best variant that is live answers all rows (users see it as `aside`)

**The way back** goes one level at a time: once every accused variant has recovered (`runtime.guard.health`), and the
guard has been at its level for its *stay*.  That is `LEAST_STAY_NS`, and doubles, up to `MOST_STAY_NS`, with every
alarm that follows within `FORGIVEN` stays of a lowered level.  An operator may reset the guard at any time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clover._native.inputs import Recent
from clover.runtime.cascade import RoutedChain, tighten
from clover.runtime.guard.clients import GROUPS, ClientGroups
from clover.runtime.guard.drift import (
    AGREEMENT_LIMIT,
    BLOCK,
    FEWEST_AUDITS,
    FEWEST_ROWS,
    SCORE_LIMIT,
    AgreementWatch,
    Detector,
    ScoreWatch,
)
from clover.runtime.guard.escalation_limit import EscalationLimit
from clover.runtime.guard.health import OVERRULED, OWN, REMEMBERED, SCORES, SERVED, Accused, Health
from clover.runtime.guard.pattern import PatternWatch
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
"""The most audits that are made at once after an alarm.  If nothing is wrong with the answers, so many switch the
cascade off in one case of fifty at most (`drift.AGREEMENT_LIMIT`)."""
_SUSPICIOUS = 0.01  # share of the limit from which on more rows are audited
_NO_PROFILE = "there is no profile with scores to compare answers with"
_OLD_PROFILE = (
    "the profile was measured before there was a guard: measure the family again "
    "(`python -m clover profile FAMILY --force`)"
)


class Guard:
    """Watches the `variants` of one family.  `changed` is called when the alarm level in force changes; with `acts`
    False the guard only reports what it would do.  `multiple`: see `EscalationLimit`.
    `clock` (ns) is read when the level changes, not for every row."""

    def __init__(
        self,
        name: str,
        variants: Sequence[str],
        changed: Callable[[], None] = lambda: None,
        *,
        acts: bool = True,
        multiple: float = 2.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.acts = acts
        self.detected_level = OK
        """The alarm level by what was seen, whether or not the guard acts."""
        self.why = ""
        self.alarms = 0
        self.urgent = 0
        """Audits to be made at once: thresholds were tightened, and it should be known soon whether answers are worse.
        The energy of audits depends on their number, not on how fast they are made."""
        self.resets = 0
        self.returns = 0
        """How often it lowered the level by itself."""
        self.relapses = 0
        """Alarms that followed so soon that the stay doubled."""
        self.inputs = 0
        self.repeats = 0
        """Rows that counted, and rows that did not because their input had come before."""
        self.stay_ns = LEAST_STAY_NS
        """How long it stays at an alarm level at least."""
        self.accused = -1
        """The lane whose answers switched the cascade off; -1 while it is on."""
        self.floors: dict[int, tuple[float, float, int]] = {}
        """By lane, which of its answers clients get by the plan: the least score, the profiled share of them that the
        best variant answers the same, and the number of rows that this was counted on."""
        self.missing = _NO_PROFILE
        """Why it watches nothing; empty if it watches."""
        self.best = -1
        """The lane of the best variant, with which answers are compared."""
        self.edges: list[list[float] | None] = [None] * len(variants)
        self._variants = tuple(variants)
        self._changed = changed
        self._clock = clock
        self.clients = ClientGroups()
        self.limit = EscalationLimit(self.clients, multiple, acts=acts)
        self.pattern = PatternWatch(name)
        self._seen = Recent(REMEMBERED)
        self._audited = Recent(REMEMBERED)
        self._health: Health | None = None
        self._since_ns = clock()
        self._down_ns = -1  # when it last lowered the level by itself, until the next alarm
        self._cascade: CascadeProfile | None = None
        self._scores: list[ScoreWatch | None] = [None] * len(variants)
        self._agreement: dict[tuple[str, int], AgreementWatch] = {}
        self._chain: RoutedChain | None = None
        self._block = [[0, 0] for _ in range(GROUPS)]
        """By group of clients, the rows that followed the chain since the test was last updated, and overruled ones."""
        self._in_block = 0
        self._alone: dict[int, tuple[int, str | None, int]] = {}
        """By alarm level, the group without whose rows it would not have been raised (-1: none), the address that sent
        nearly all rows then (None: none did), and the stay before."""

    @property
    def alarm_level(self) -> int:
        """The alarm level that is in force."""
        return self.detected_level if self.acts else OK

    @property
    def watches(self) -> bool:
        """Whether there is a profile to compare answers with."""
        return self._cascade is not None

    def expect(self, profile: FamilyProfile | None) -> None:
        """Compare answers with `profile` from now on; forget all that was seen."""
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
                            self._scores[lane] = ScoreWatch(own.parts, own.rows, clients=self.clients)
                        except ValueError as error:  # measured on next to nothing, or changed by hand
                            log.warning("%s: scores of %s: %s", self.name, self._variants[lane], error)
                            continue
                        self.edges[lane] = list(own.edges)
            else:
                log.warning("%s: answers are not watched: %s", self.name, self.missing)
        self._start()

    def reset(self) -> None:
        """Forget all that was seen and return to the first alarm level."""
        self.resets += 1
        self._start()

    def _start(self) -> None:
        self.stay_ns, self._down_ns = LEAST_STAY_NS, -1
        self._enter_level(OK, "", ())

    def _enter_level(self, level: int, why: str, accused: Iterable[Accused]) -> None:
        """Change the alarm level: all tests begin anew, and so does the evidence that may clear the `accused`.  A lower
        or equal level also forgets the inputs that counted."""
        was = self.alarm_level
        if level <= self.detected_level:
            self._seen.clear()
            self._audited.clear()
        self.detected_level, self.why, self._since_ns = level, why, self._clock()
        self.accused = self.accused if level == CASCADE_OFF else -1
        self.urgent = URGENT_AUDITS if self.alarm_level == TIGHTENED else 0
        self._agreement.clear()
        self._forget_block()
        self._alone = {other: found for other, found in self._alone.items() if other <= level}
        for watch in self._scores:
            # On the way up each test raises one alarm at most, so that alarms come to an end.
            if watch is not None and (level == OK or not watch.detector.alarmed):
                watch.reset()
        lanes = range(len(self._variants))
        known = [self._known(lane) for lane in lanes]
        self._health = Health(known, accused, self.clients) if level != OK else None
        if self.alarm_level != was:
            self._changed()

    def evaluate(self) -> None:
        """Find out what clients' inputs look like, and lower the alarm level if it is time to; to be called about once
        a second."""
        health = self._health
        self.pattern.evaluate(self.clients, self.limit, self.why, self._detectors)
        if health is None:
            return
        group, leader, stay_ns = self._alone.get(self.detected_level, (-1, None, 0))
        if (group >= 0 and self.clients.counting()[1 + group]) or (leader and self.clients.leader != leader):
            self._lower("a quarter of the rows or more come from others than the client that raised the alarm alone")
            self.stay_ns, self._down_ns = stay_ns, -1  # so that no client makes the next stay longer
            return
        if self._clock() - self._since_ns < self.stay_ns:
            return
        if not (health.well(SERVED, self.accused) if self.detected_level == CASCADE_OFF else health.all_well):
            return
        self._lower(f"answers are as profiled again by {health.inputs} inputs")

    def _lower(self, because: str) -> None:
        """Lower the alarm level by one."""
        self.returns += 1
        self._down_ns = self._clock()
        was, level = ALARM_LEVELS[self.detected_level], OK if self.detected_level == TIGHTENED else TIGHTENED
        done = "the plan's thresholds are back" if level == OK else "the cascade is on again, with tightened thresholds"
        log.info("%s: %s; the guard was %s since %s: %s", self.name, because, was, self.why, done)
        accused = self._health.accused if self._health is not None else ()
        self._enter_level(level, "" if level == OK else self.why, accused)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def fresh(self, digest: int) -> int:
        """Return what an answered row whose input has this digest is evidence of (`DRIFT`, `RECOVERY`, both); 0 for an
        input that came before."""
        evidence = DRIFT if self._seen.add(digest) else 0
        if self._health is not None and self._health.seen.add(digest):
            evidence |= RECOVERY
        if evidence:
            self.inputs += 1
        else:
            self.repeats += 1
        return evidence

    def was_audited(self, digest: int) -> bool:
        """Return whether an audit of an input with this digest would be no evidence, as it was audited before."""
        return self._audited.holds(digest) and (self._health is None or self._health.audited.holds(digest))

    def fresh_audit(self, digest: int) -> int:
        """Return what an audit of an input with this digest is evidence of; 0 if it was audited before."""
        evidence = DRIFT if self._audited.add(digest) else 0
        if self._health is not None and self._health.audited.add(digest):
            evidence |= RECOVERY
        return evidence

    def score(self, lane: int, score: float, evidence: int = _BOTH, group: int = 0) -> None:
        """Count the score of `lane` for a row of a group of clients that was asked of it first."""
        watch, edges = self._scores[lane], self.edges[lane]
        if watch is None or edges is None:
            return
        at = 0  # of NaN too: it is below all edges
        for edge in edges:
            if not score >= edge:
                break
            at += 1
        if self._health is not None and evidence & RECOVERY:
            self._health.score(lane, at, group)
        if evidence & 1 and watch.add(at, group):  # DRIFT
            self.alarm(SCORES, lane, f"after {watch.detector.rows} different inputs", watch.detector)

    def record_overrules(self, chain: RoutedChain, overruled: int, rows: int, group: int = 0) -> None:
        """Count `rows` of a group of clients that followed `chain`, of which the best variant at its end overruled
        `overruled`."""
        if chain is not self._chain:
            self._close()
            self._chain = chain
        own = self._block[group]
        own[0] += rows
        own[1] += overruled
        self._in_block += rows
        if self._in_block >= BLOCK:
            self._close()

    def _close(self) -> None:
        block, chain = self._block, self._chain
        self._forget_block()
        if chain is None:
            return
        for group, (rows, overruled) in enumerate(block):
            if rows:
                of = (rows - overruled, 1.0 - chain.overruled, chain.overruled_rows, rows)
                self.record_comparison(OVERRULED, chain.lanes[-2], *of, group=group)

    def _forget_block(self) -> None:
        self._block = [[0, 0] for _ in range(GROUPS)]
        self._in_block = 0

    def record_comparison(
        self,
        kind: str,
        lane: int,
        agrees: int,
        expected: float,
        rows: int,
        count: int = 1,
        evidence: int = _BOTH,
        group: int = 0,
    ) -> None:
        """Count on how many of `count` rows of a group of clients `lane` agrees with the auditor.  Of `rows` profiled
        rows of that kind it agreed on a share `expected`; `rows` 0: that is not known."""
        if self._health is not None and kind != SERVED and evidence & RECOVERY:
            self._health.record_comparison(kind, lane, agrees, expected, rows, count, group)
        if not evidence & DRIFT:
            return
        watch = self._agreement.get((kind, lane))
        if watch is None:
            # Every row may be overruled, not only audited ones, so the limit is that of scores.
            limits = (SCORE_LIMIT, FEWEST_ROWS) if kind == OVERRULED else (AGREEMENT_LIMIT, FEWEST_AUDITS)
            watch = self._agreement[kind, lane] = AgreementWatch(*limits, self.clients)
        if watch.add(agrees, expected, rows, count, group):
            part, due = watch.agreed / watch.rows, watch.expected / watch.rows
            self.alarm(kind, lane, f"{part:.1%} instead of {due:.1%} over {watch.rows} rows", watch.detector)

    def record_planned(self, lane: int, agrees: int, expected: float, rows: int, group: int = 0) -> None:
        """Count whether an answer of `lane` that clients would get by the plan's thresholds is the best variant's.

        This may clear a lane, and raises no alarm, as clients may have got another answer.  While the cascade is off
        there is no such answer, and `witness` counts instead; a guard that only watches never switches it off."""
        if self._health is not None and self.alarm_level != CASCADE_OFF:
            self._health.record_comparison(SERVED, lane, agrees, expected, rows, 1, group)

    def witness(self, score: float, agrees: int, group: int = 0) -> None:
        """Count an answer of the accused lane while the cascade is off: its score, and whether it agrees with the best
        variant."""
        if self._health is not None and self.alarm_level == CASCADE_OFF:
            self._health.record_asked(self.accused)
            floor, expected, rows = self.floors.get(self.accused, (-math.inf, *self.alike(self.accused, self.best)))
            if score >= floor:
                self._health.record_comparison(SERVED, self.accused, agrees, expected, rows, 1, group)

    def alike(self, lane: int, auditor: int) -> tuple[float, int]:
        """Return the profiled share of rows on which two lanes agree, and the number of rows that it was counted on."""
        own = self._known(lane)
        found = own.alike.get(self._variants[auditor]) if own is not None else None
        return (found, own.rows) if own is not None and found is not None else (0.0, 0)

    @property
    def suspicious(self) -> bool:
        """Whether answers look doubtful, so that more should be audited."""
        if self.detected_level != OK:
            return True
        return any(not each.alarmed and each.statistic > _SUSPICIOUS * each.limit for each in self._detectors)

    @property
    def _detectors(self) -> list[Detector]:
        return [watch.detector for watch in (*self._scores, *self._agreement.values()) if watch is not None]

    def tighten_chain(self, chain: RoutedChain) -> RoutedChain:
        """Return the chain with tightened thresholds: of the profiled rows above its own, only half are above them."""
        return tighten(chain, self._cascade, self._variants) if self._cascade is not None else chain

    def _known(self, lane: int) -> Sureness | None:
        return self._cascade.sureness.get(self._variants[lane]) if self._cascade is not None else None

    # --- alarms -------------------------------------------------------------------------------------------------------

    def alarm(self, kind: str, lane: int, what: str, detector: Detector | None = None) -> None:
        """Raise the alarm level because a test of `lane`, by its `detector`, found `what`; if it cannot be raised, only
        log that."""
        self.alarms += 1
        finding = {
            SCORES: f"the scores of {self._variants[lane]} are not those of the profile any more",
            OWN: f"{self._variants[lane]} agrees with the auditor less than profiled",
            OVERRULED: f"the best variant overrules {self._variants[lane]} more often than profiled",
            SERVED: f"answers of {self._variants[lane]} agree with the best variant's less than profiled",
        }[kind]
        before, level = self.detected_level, self.detected_level
        if before == OK:
            level = TIGHTENED
        elif before == TIGHTENED and kind == SERVED:
            level = CASCADE_OFF
        alone = detector.alone if detector is not None else -1
        leader = self.clients.leader if detector is not None else None
        if level == before:
            if alone < 0 and not leader:
                self._alone.pop(level, None)
            self.urgent = URGENT_AUDITS if self.alarm_level == TIGHTENED else 0
            if self._health is not None:
                self._health.accuse(kind, lane)
            log.warning("%s: %s (%s); the guard stays %s", self.name, finding, what, ALARM_LEVELS[before])
            return
        stay_ns = self.stay_ns
        if self._down_ns >= 0:
            relapse = self._clock() - self._down_ns < FORGIVEN * self.stay_ns
            self.relapses += relapse
            self.stay_ns = min(2 * self.stay_ns, MOST_STAY_NS) if relapse else LEAST_STAY_NS
            self._down_ns = -1
        accused = {(kind, lane), *(self._health.accused if self._health is not None else ())}
        self.accused = lane if level == CASCADE_OFF else -1
        why = f"{finding} ({what})"
        done = "thresholds are tightened" if level == TIGHTENED else "the cascade is off: the best variant answers all"
        severity = logging.WARNING if level == TIGHTENED else logging.ERROR
        would = "" if self.acts else " (it only watches: nothing is done)"
        log.log(
            severity,
            "%s: %s: %s%s; this ends by itself once answers are as profiled again, after %d minutes at the earliest, "
            "or at once by `python -m clover ctl guard reset`",
            self.name, why, done, would, self.stay_ns // 60_000_000_000,
        )  # fmt: skip
        if alone >= 0 or leader:
            self._alone[level] = alone, leader, stay_ns
        self._enter_level(level, why, accused)

    # --- what is shown ------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Return the alarm level and its reason, and by variant and kind of test the rows, the statistic and its limit;
        for agreement also the share that agreed and the share expected."""
        variants: dict[str, dict[str, Any]] = {}
        for lane, scores in enumerate(self._scores):
            if scores is not None and scores.detector.rows:
                variants.setdefault(self._variants[lane], {})[SCORES] = _shown(scores)
        for (kind, lane), watch in self._agreement.items():
            variants.setdefault(self._variants[lane], {})[kind] = {
                **_shown(watch),
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
            "largest_share": self.clients.largest_share,
            "inputs": self.inputs,
            "repeats": self.repeats,
            "pattern": self.pattern.report(self.limit),
            "health": self._health.report(self._variants) if self._health is not None else {},
            "variants": variants,
        }


def _shown(watch: ScoreWatch | AgreementWatch) -> dict[str, Any]:
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
