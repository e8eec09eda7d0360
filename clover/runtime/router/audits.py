"""Audits: a small share of the rows is asked of a better variant too, after the client has its answer.

Which rows are audited is chosen when they are submitted, before anything is known of their answers (`Sampler`).  The
answers of every lane that such a row passes are kept.  When its ticket is closed, the row's slot, which still has the
input, is not freed but gets a ticket of its own, the *audit*.  The audit waits for the best variant that has a worker,
if only for audits (`Link.background`).  A row that the best variant answered anyway is audited for free.  An input that
was audited before adds no evidence: its row is audited only if the hour would otherwise stay below its least share, and
no test counts it.

While the guard has the cascade off, audits go the other way: rows that the best variant answered are asked of the
accused variant, while that has a worker.  So it can be cleared.

Clients come first.  In the queue an audit is behind every client's row.  It joins batches that have room; without a
client's row it goes only to a worker that has no batch of any variant.  An audit is given up, and owed, if the queue or
the slots are full (also later, as soon as a client finds them full), if a burst calls for standby workers, if its
worker died, if no better variant has a worker, and after `PATIENCE_NS`.  It is never retried: a row that kills workers
must not kill a second one for an audit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.answer_reader import AnswerReader, RowAnswer, same_answer
from clover.runtime.guard.guard import CASCADE_OFF, OWN, RECOVERY, SERVED, Guard
from clover.runtime.memory.rows import InputDigests
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import BACKGROUND, PENDING, QUEUED, RouterTicket, StageAnswers

log = logging.getLogger("clover.guard")

PATIENCE_NS = 60_000_000_000
"""How long an audit may wait."""
MOST_WAITING = 64
"""Audits that may wait at a time; and no more than an eighth of the slots."""
LEAST, MOST = 0.001, 0.02
"""Within these lies the share of rows that is audited, in every hour without an alarm."""
URGENT = 0.2
"""The share right after an alarm, to learn soon whether answers have become worse."""
HOUR_NS = 3_600_000_000_000
_BITS = 64
_MASK = (1 << _BITS) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def clean_share(
    share: float,
    g_per_kwh: float,
    reference_g_per_kwh: float,
    *,
    suspicious: bool = False,
    urgent: bool = False,
) -> float:
    """Return the share to audit while the grid has `g_per_kwh`: `share` at the reference intensity, more on a cleaner
    grid and less on a dirtier one, between `LEAST` and `MOST`; `MOST` while answers look suspicious, `URGENT` right
    after an alarm."""
    if urgent:
        return URGENT
    if suspicious:
        return MOST
    return min(MOST, max(LEAST, share * reference_g_per_kwh / max(g_per_kwh, 1.0)))


class Sampler:
    """Picks the rows that are audited: a share of them, spread evenly, and in every hour at least `LEAST`.  `rows` came
    and `taken` were picked in the hour under way.

    Row n is picked if the fractional part of n / golden ratio lies below the share: of any run of rows very nearly that
    part is picked, at distances that fit no period in what clients send.  An audit that could not be made is owed:
    while an hour is below `LEAST`, the next rows are picked whatever their number, and what an hour still owes at its
    end is added to the next.  Owed audits never raise the share above `MOST` (`URGENT` does), and those of more than an
    hour ago are dropped, so that a long time without an auditor is not followed by a flood of audits.
    """

    __slots__ = (
        "_hour",
        "_hour_ns",
        "_last_picked",
        "_least",
        "_most",
        "_owed",
        "_phase",
        "_tried",
        "hours",
        "last",
        "lowest",
        "rows",
        "share",
        "taken",
    )

    def __init__(self, share: float) -> None:
        self.rows = 0
        self.taken = 0
        self.lowest: float | None = None
        self.last: float | None = None
        """The lowest share of any hour that is over, and that of the last; None before one is."""
        self.hours = 0
        """Hours with rows that are over."""
        self._tried = 0
        self._hour = -1
        self._owed = 0.0
        self._phase = 0
        # Read with each row: an attribute has its C type.
        self._hour_ns, self._least, self._most = HOUR_NS, LEAST, MOST
        self.share = 0.0
        self.set(share)

    def set(self, share: float) -> None:
        """Pick this share of the rows from now on (of 1, at least `LEAST`)."""
        if share <= MOST < self.share:
            self._tried = min(self._tried, int(MOST * self.rows))  # urgent audits do not use up the room for owed ones
        self.share = min(max(share, LEAST), 1.0)
        self._last_picked = int(self.share * (1 << _BITS)) - 1

    @property
    def owed(self) -> float:
        """Audits that are missing to `LEAST`, including those owed by the hour before."""
        return max(0.0, LEAST * self.rows + self._owed - self.taken)

    def pick(self, now_ns: int) -> bool:
        """Return whether to audit the row that comes now."""
        hour = now_ns // self._hour_ns
        if hour != self._hour:
            self._begin_hour(hour)
        self.rows += 1
        self._phase = (self._phase + _GOLDEN) & _MASK
        due = self.taken < self._least * self.rows + self._owed and self._tried < self._most * self.rows
        if due or self._phase <= self._last_picked:
            self.taken += 1
            self._tried += 1
            return True
        return False

    def take_back(self) -> None:
        """Take back a pick: the row could not be audited."""
        self.taken -= 1

    def take_back_spare(self) -> bool:
        """Return whether the hour has its least share without a row that was picked; its pick is taken back then."""
        if self.taken - 1 < LEAST * self.rows + self._owed:
            return False
        self.taken -= 1
        return True

    def _begin_hour(self, hour: int) -> None:
        """Record the share of the hour that is over, and carry over what it owes."""
        if self.rows:
            self.last = max(self.taken, 0) / self.rows
            self.lowest = self.last if self.lowest is None else min(self.lowest, self.last)
            self.hours += 1
        self._owed = min(self.owed, LEAST * self.rows)
        self.rows = self.taken = self._tried = 0
        self._hour = hour


class Audit:
    """A row that waits for its second answer.

    `answers`: the lanes that answered it, in order, with their answers; the client got the last one.  `chain`: the
    chain that it followed, None if that was cut short.  `digest`: of its input.  `planned`: the lane at which the
    plan's thresholds would have ended it, -1 if it did end there.  `group`: of its client, -1 if the guard leaves that
    client out."""

    __slots__ = ("answers", "chain", "digest", "group", "planned")

    def __init__(self, answers: StageAnswers, chain: RoutedChain | None, digest: int, planned: int, group: int) -> None:
        self.answers = answers
        self.chain = chain
        self.digest = digest
        self.group = group
        self.planned = planned


def _ignore() -> None:
    """Do nothing about a queued audit, until the router says what to do."""


class Audits:
    """The audits of one family, of a `share` of its rows.  With share 0 none is made, and only answers that come for
    free are compared.  `wake` is called when an audit is queued."""

    def __init__(
        self, state: RouterState, guard: Guard, reader: AnswerReader, digests: InputDigests, share: float
    ) -> None:
        self.guard = guard
        self.sampler = Sampler(share)
        self.answered = 0
        self.free = 0
        self.dropped: dict[str, int] = {}
        """Audits that were not made, by reason."""
        self.energy_j = 0.0
        """Joules of audits, part of what their variants are accounted for."""
        self.waiting: dict[int, RouterTicket] = {}
        """Audits that are queued or with a worker, by slot."""
        self.wake: Callable[[], None] = _ignore
        self._state = state
        self._reader = reader
        self._digests = digests
        self._share = share
        self._hours = 0
        self._most = max(1, min(MOST_WAITING, len(state.table.state) // 8))

    @property
    def on(self) -> bool:
        """Whether rows are audited."""
        return self._share > 0.0 and self.guard.watches

    def grid(self, g_per_kwh: float, reference_g_per_kwh: float) -> None:
        """Set the share by the carbon intensity of the grid (see `clean_share`), and let the guard lower its alarm
        level."""
        self.guard.evaluate()
        if self.sampler.hours != self._hours:
            self._hours = self.sampler.hours
            last = self.sampler.last
            if self.on and last is not None and last < LEAST:
                why = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
                log.warning(
                    "%s: only %.3f %% of the rows of an hour were audited; given up since the start: %s",
                    self.guard.name,
                    100.0 * last,
                    why,
                )
        guard = self.guard
        self.sampler.set(
            clean_share(
                self._share, g_per_kwh, reference_g_per_kwh, suspicious=guard.suspicious, urgent=guard.urgent > 0
            )
        )

    # --- a client's row -----------------------------------------------------------------------------------------------

    def mark(self, ticket: RouterTicket, now_ns: int) -> None:
        """Choose which rows of a submitted ticket are audited."""
        for row in range(len(ticket.slots)):
            if self.sampler.pick(now_ns):
                ticket.marked = (*ticket.marked, row)

    def record_escalation(self, ticket: RouterTicket, row: int, lane: int, target: int, planned: bool) -> None:
        """Keep the answer of `lane` for a row that is escalated to `target`, if it will be compared.  `planned`: by the
        plan's thresholds the row would have ended at `lane`."""
        if planned and row in ticket.marked and row not in ticket.planned:
            ticket.planned = {**ticket.planned, row: lane}
        if target == self.guard.best or row in ticket.marked:
            answer = self._reader.read(ticket.slots[row])
            if answer is not None:
                if not ticket.stage_answers:
                    ticket.stage_answers = {}
                ticket.stage_answers[row] = (*ticket.stage_answers.get(row, ()), (lane, answer))

    def record_overrules(self, ticket: RouterTicket, chain: RoutedChain) -> None:
        """Count the rows of an answered ticket that the best variant answered differently from the one before it.  They
        followed `chain`, and the ticket's slots are not freed yet."""
        overruled, rows = 0, len(ticket.slots) - len(ticket.repeats)
        if not rows:
            return
        for row, answers in ticket.stage_answers.items():
            if ticket.slots[row] in ticket.repeats:
                continue
            if ticket.variants[row] == chain.lanes[-1] and answers and answers[-1][0] == chain.lanes[-2]:
                answer = self._reader.read(ticket.slots[row])
                overruled += answer is not None and not same_answer(answers[-1][1], answer)
        self.guard.record_overrules(
            chain, overruled, rows, self.guard.clients.group_of(ticket.client, ticket.connection)
        )

    def queue_marked(self, ticket: RouterTicket, now_ns: int) -> None:
        """Queue audits of the marked rows of an answered ticket, whose slots are not freed yet."""
        for row in ticket.marked:
            lane, slot = ticket.variants[row], ticket.slots[row]
            answer = self._reader.read(slot)
            chain = ticket.chain if row not in ticket.cut_short else None
            path = ticket.paths.get(row, ())
            before = tuple(stage for stage in ticket.stage_answers.get(row, ()) if stage[0] in path)
            why = "unreadable"
            if answer is not None:
                planned = ticket.planned.get(row, -1)
                group = self.guard.clients.group_of(ticket.client, ticket.connection)
                if ticket.sender is not None and self.guard.limit.leaves_out(ticket.sender):
                    group = -1
                audit = Audit((*before, (lane, answer)), chain, self._digests.digest(slot), planned, group)
                why = self._audit(audit, ticket.key, slot, now_ns)
            if why:
                self.record_given_up(why)

    def record_given_up(self, why: str, rows: int = 1) -> None:
        """Count marked rows that are not audited, for now."""
        for _ in range(rows):
            self.sampler.take_back()
        if rows:
            self.dropped[why] = self.dropped.get(why, 0) + rows

    def _audit(self, audit: Audit, key: int, slot: int, now_ns: int) -> str:
        """Audit a row whose slot is about to be freed; return why not if that cannot be, else ""."""
        lanes = self._state.lanes
        asked = [lane for lane in range(len(lanes.accuracy)) if lanes.is_asked(lane)]
        auditor = max(asked, key=lambda lane: lanes.accuracy[lane], default=-1)
        lane, answer = audit.answers[-1]
        accused = self.guard.accused
        if lane == self.guard.best and self.guard.alarm_level == CASCADE_OFF and self._may_clear(accused, lane):
            auditor = accused
        elif lane == self.guard.best:
            self.free += 1
            if not self.guard.was_audited(audit.digest):
                self._spend()
            self._compare(audit, lane, answer)
            return ""
        elif auditor < 0 or lanes.accuracy[auditor] <= lanes.accuracy[lane]:
            return "nobody"
        if self.guard.was_audited(audit.digest) and self.sampler.take_back_spare():
            self.dropped["repeat"] = self.dropped.get("repeat", 0) + 1
            return ""
        if lanes.relieved:
            return "relief"
        if self._state.batcher.depth() >= self._state.queue_rows or len(self.waiting) >= self._most:
            return "full"
        own = RouterTicket([slot], now_ns)
        own.flow = BACKGROUND
        own.audit = audit
        own.variants = [auditor]
        own.min_accuracy = lanes.accuracy[auditor]
        own.submit_ns = now_ns
        own.key = key  # of its shape, or its own if it was suspected of a death
        own.outstanding = 1
        own.deadline_ns = now_ns + PATIENCE_NS
        own.phase = PENDING
        self._state.table.hand_over(slot, own)
        self._state.batcher.push(auditor, slot, own.deadline_ns, now_ns, own.key, BACKGROUND)
        self._state.table.state[slot] = QUEUED
        self._state.deadlines.add(own, now_ns)
        self.waiting[slot] = own
        self._spend()
        self.wake()
        return ""

    def _may_clear(self, accused: int, best: int) -> bool:
        """Return whether the accused lane answers audits, and is not the best one itself."""
        return accused != best and self._state.lanes.is_asked(accused)

    def _spend(self) -> None:
        """Count an urgent audit as made, whatever becomes of it, so that making audits fail brings no more of them."""
        if self.guard.urgent > 0:
            self.guard.urgent -= 1
            if self.guard.urgent == 0:
                self.sampler.set(MOST)

    # --- a second answer ----------------------------------------------------------------------------------------------

    def record_audit(self, ticket: RouterTicket, status: int) -> None:
        """Count an audit that is over and compare its answer; its slot is not freed yet."""
        self.waiting.pop(ticket.slots[0], None)
        audit = ticket.audit
        answer = self._reader.read(ticket.slots[0]) if status == 200 else None
        self.energy_j += ticket.energy_j
        if answer is None or not isinstance(audit, Audit):
            self.record_given_up(ticket.error or {504: "late", 500: "failed"}.get(status, "died"))
            return
        self.answered += 1
        lane, client_answer = audit.answers[-1]
        if lane == self.guard.best:  # the accused lane was asked
            evidence = self.guard.fresh_audit(audit.digest) if audit.group >= 0 else 0
            if evidence & RECOVERY and ticket.variants[0] == self.guard.accused:
                score, agrees = self._reader.score(ticket.slots[0]), same_answer(answer, client_answer)
                self.guard.witness(score, agrees, audit.group)
            return
        self._compare(audit, ticket.variants[0], answer)

    def list_queued(self) -> list[RouterTicket]:
        """Return the audits that wait in the queue."""
        return [ticket for slot, ticket in self.waiting.items() if self._state.table.state[slot] == QUEUED]

    def waiting_for(self, lane: int = -1) -> int:
        """Return how many audits wait in the queue of `lane` (-1: of any), behind all clients' rows."""
        return sum(lane in (-1, ticket.variants[0]) for ticket in self.list_queued()) if self.waiting else 0

    def list_stranded(self) -> list[RouterTicket]:
        """Return the queued audits whose lane has no worker for them any more."""
        return [ticket for ticket in self.list_queued() if not self._state.lanes.is_asked(ticket.variants[0])]

    def _compare(self, audit: Audit, auditor: int, answer: RowAnswer) -> None:
        """Compare the auditor's answer with three others: that of the first lane, that of the client, and that which
        the client would have got by the plan's thresholds."""
        guard, best, group = self.guard, self.guard.best, audit.group
        evidence = guard.fresh_audit(audit.digest) if group >= 0 else 0
        if not evidence:
            return
        first, first_answer = audit.answers[0]
        if first != auditor:
            alike = guard.alike(first, auditor)
            guard.record_comparison(
                OWN, first, same_answer(first_answer, answer), *alike, evidence=evidence, group=group
            )
        if auditor != best:
            return
        chain = audit.chain
        lane, client_answer = audit.answers[-1]
        if chain is None and len(audit.answers) > 1:  # cut short: the profile has no expectation for such rows
            if lane != best:
                alike = (0.0, 0)
                same = same_answer(client_answer, answer)
                guard.record_comparison(SERVED, lane, same, *alike, evidence=evidence, group=group)
            return
        planned = audit.planned if audit.planned >= 0 else lane
        for at, stage_answer in audit.answers:
            if at == planned != best and evidence & RECOVERY:
                guard.record_planned(at, same_answer(stage_answer, answer), *self._alike(at, chain), group)
        if lane != auditor:
            of = self._alike(lane, chain)
            first_stage = chain is None or chain.stage(lane) == 0
            floor = (chain.planned or chain.thresholds)[0] if chain is not None and first_stage else -math.inf
            guard.floors[lane] = (floor, *(of if first_stage else guard.alike(lane, best)))
            same = same_answer(client_answer, answer)
            guard.record_comparison(SERVED, lane, same, *of, evidence=evidence, group=group)

    def _alike(self, lane: int, chain: RoutedChain | None) -> tuple[float, int]:
        """Return the share of the rows ending at `lane` by the plan that the best variant answers the same, and the
        number of profiled rows that this was counted on."""
        if chain is None:
            return self.guard.alike(lane, self.guard.best)
        stage = chain.stage(lane)
        known = 0 <= stage < len(chain.alike)
        return (chain.alike[stage], chain.alike_rows[stage]) if known else (0.0, 0)

    def report(self) -> dict[str, Any]:
        """Return the share that is audited now and over this hour, the lowest of an hour that is over, what is owed,
        and what became of the audits."""
        sampler = self.sampler
        return {
            "on": self.on,
            "share": sampler.share if self.on else 0.0,
            "rows_this_hour": sampler.rows,
            "audits_this_hour": sampler.taken,
            "lowest_share": sampler.lowest,
            "owed": sampler.owed,
            "answered": self.answered,
            "free": self.free,
            "waiting": len(self.waiting),
            "dropped": dict(self.dropped),
            "energy_j": self.energy_j,
        }
