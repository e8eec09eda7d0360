"""Second answers: a small share of the rows is asked of a better variant too, after the client has its answer.

A row is marked when it is submitted, before anybody knows what will become of it (`clover.runtime.guard.sampling`).
What each variant says of it on its way is noted.  When its ticket is closed, the slot of a marked row is not freed but
belongs to a ticket of its own, an *audit*, which waits for the best variant that is live: its input still lies there.
A row that this variant has answered anyway is audited for nothing.  An input that was audited before says nothing new:
its row is asked again only as far as the least share of the hour needs it, and counts for no test.

While the guard has the cascade off, audits go the other way: rows that the best variant answered are asked of the
variant that is accused, while it has a worker.  That is how it may clear itself.

Clients come first.  An audit's place in the queue is behind every row that comes within a day; it joins batches that
have room.  It is given up, and owed, if the queue or the slots are full (also later, as soon as a client finds them
so), if a burst calls for relief, if its worker died or no better variant has one, and after `PATIENCE_NS`.  It is
never asked twice: a row that kills a worker shall kill one only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from clover._native.batcher import Batcher
from clover.runtime.cascade import Chain
from clover.runtime.guard.answer_reader import Said, Sayings, same
from clover.runtime.guard.guard import ASIDE, OWN, RECOVERY, SERVED, Guard
from clover.runtime.guard.sampling import LEAST, MOST, Sampler, clean_share
from clover.runtime.memory.input_digest import Inputs
from clover.runtime.router.deadlines import Deadlines
from clover.runtime.router.lanes import Lanes
from clover.runtime.router.slots import SlotTable
from clover.runtime.router.tickets import BEHIND_NS, PENDING, QUEUED, Heard, Ticket

log = logging.getLogger("clover.guard")

PATIENCE_NS = 60_000_000_000
"""How long an audit may wait."""
MOST_WAITING = 64
"""Audits at a time; and no more than an eighth of the slots."""


class Audit:
    """What is known of a row that waits for its second answer: the lanes it was asked of with what they said, the last
    of which the client got; the chain it followed, None if that ended early; the digest of its input; the lane at
    which the plan's thresholds would have ended it, -1 if it did end there."""

    __slots__ = ("chain", "digest", "heard", "planned")

    def __init__(self, heard: Heard, chain: Chain | None, digest: int, planned: int) -> None:
        self.heard = heard
        self.chain = chain
        self.digest = digest
        self.planned = planned


class Audits:
    """The audits of one family.  `share` 0: none are made, and only what costs nothing is compared.  `wake` is called
    when there is something to hand out, `most` bounds the rows that wait."""

    def __init__(
        self,
        guard: Guard,
        said: Sayings,
        table: SlotTable,
        batcher: Batcher,
        lanes: Lanes,
        deadlines: Deadlines,
        inputs: Inputs,
        *,
        share: float,
        most: int,
        wake: Callable[[], None],
    ) -> None:
        self.guard = guard
        self.sampler = Sampler(share)
        self.answered = 0
        self.free = 0
        self.dropped: dict[str, int] = {}
        """Audits that were not made, by why."""
        self.energy_j = 0.0
        """Joules of audits, part of what their variants are accounted for."""
        self.waiting: dict[int, Ticket] = {}
        """Audits that are queued or flying, by slot."""
        self._said = said
        self._share = share
        self._hours = 0
        self._table = table
        self._batcher = batcher
        self._lanes = lanes
        self._deadlines = deadlines
        self._inputs = inputs
        self._most_rows = most
        self._most = max(1, min(MOST_WAITING, len(table.state) // 8))
        self._wake = wake

    @property
    def on(self) -> bool:
        """Return whether rows are audited."""
        return self._share > 0.0 and self.guard.watches

    def grid(self, g_per_kwh: float, reference_g_per_kwh: float) -> None:
        """Set the share by the intensity of the grid (see `clean_share`); the guard may come down a step."""
        self.guard.look()
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

    def mark(self, ticket: Ticket, now_ns: int) -> None:
        """Choose which rows of a submitted ticket are audited."""
        for row in range(len(ticket.slots)):
            if self.sampler.pick(now_ns):
                ticket.marked = (*ticket.marked, row)

    def passed(self, ticket: Ticket, row: int, lane: int, target: int, planned: bool) -> None:
        """Note what `lane` said of a row that it hands on to `target`, if that will be compared.  `planned`: by the
        plan's thresholds it would have ended there."""
        if planned and row in ticket.marked and row not in ticket.planned:
            ticket.planned = {**ticket.planned, row: lane}
        if target == self.guard.best or row in ticket.marked:
            said = self._said.of(ticket.slots[row])
            if said is not None:
                if not ticket.heard:
                    ticket.heard = {}
                ticket.heard[row] = (*ticket.heard.get(row, ()), (lane, said))

    def followed(self, ticket: Ticket, chain: Chain) -> None:
        """Count the rows of an answered ticket that the best variant answered otherwise than the one before it.  They
        followed `chain`, and the ticket's slots are not freed yet."""
        overruled, rows = 0, len(ticket.slots) - len(ticket.repeats)
        if not rows:
            return
        for row, heard in ticket.heard.items():
            if ticket.slots[row] in ticket.repeats:
                continue
            if ticket.variants[row] == chain.lanes[-1] and heard and heard[-1][0] == chain.lanes[-2]:
                said = self._said.of(ticket.slots[row])
                overruled += said is not None and not same(heard[-1][1], said)
        self.guard.followed(chain, overruled, rows)

    def closed(self, ticket: Ticket, now_ns: int) -> None:
        """Keep those slots of an answered ticket, which are not freed yet, whose rows are to be audited."""
        for row in ticket.marked:
            lane, slot = ticket.variants[row], ticket.slots[row]
            said = self._said.of(slot)
            chain = ticket.chain if row not in ticket.short else None
            before = tuple(part for part in ticket.heard.get(row, ()) if part[0] in ticket.paths.get(row, ()))
            why = "unreadable"
            if said is not None:
                planned = ticket.planned.get(row, -1)
                audit = Audit((*before, (lane, said)), chain, self._inputs.digest(slot), planned)
                why = self._audit(audit, ticket.key, slot, now_ns)
            if why:
                self.given_up(why)

    def given_up(self, why: str, rows: int = 1) -> None:
        """Count rows that were marked and are not audited, for now."""
        for _ in range(rows):
            self.sampler.failed()
        if rows:
            self.dropped[why] = self.dropped.get(why, 0) + rows

    def _audit(self, audit: Audit, key: int, slot: int, now_ns: int) -> str:
        """Audit a row whose slot is about to be freed; return why not, if that cannot be."""
        lanes = self._lanes
        live = [lane for lane in range(len(lanes.accuracy)) if lanes.live >> lane & 1]
        auditor = max(live, key=lambda lane: lanes.accuracy[lane], default=-1)
        lane, said = audit.heard[-1]
        accused = self.guard.accused
        if lane == self.guard.best and self.guard.rung == ASIDE and accused != lane and lanes.live >> accused & 1:
            auditor = accused
        elif lane == self.guard.best:
            self.free += 1
            if not self.guard.audited(audit.digest):
                self._spend()
            self._compare(audit, lane, said)
            return ""
        elif auditor < 0 or lanes.accuracy[auditor] <= lanes.accuracy[lane]:
            return "nobody"
        if self.guard.audited(audit.digest) and self.sampler.spared():
            self.dropped["repeat"] = self.dropped.get("repeat", 0) + 1
            return ""
        if lanes.relieved:
            return "relief"
        if self._batcher.depth() >= self._most_rows or len(self.waiting) >= self._most:
            return "full"
        own = Ticket([slot], now_ns)
        own.audit = audit
        own.variants = [auditor]
        own.min_accuracy = lanes.accuracy[auditor]
        own.submit_ns = now_ns
        own.key = key  # of its shape, or its own if it was suspected of a death
        own.outstanding = 1
        own.deadline_ns = now_ns + PATIENCE_NS
        own.phase = PENDING
        self._table.hand_over(slot, own)
        self._batcher.push(auditor, slot, now_ns + BEHIND_NS, now_ns, own.key)  # not `requeue`, which makes haste
        self._table.state[slot] = QUEUED
        self._deadlines.add(own, now_ns)
        self.waiting[slot] = own
        self._spend()
        self._wake()
        return ""

    def _spend(self) -> None:
        """Count an audit as made, whatever becomes of it: whoever makes them fail gets no more of them."""
        if self.guard.urgent > 0:
            self.guard.urgent -= 1
            if self.guard.urgent == 0:
                self.sampler.set(MOST)

    # --- a second answer ----------------------------------------------------------------------------------------------

    def finished(self, ticket: Ticket, status: int) -> None:
        """Count an audit that is over; its slot is still its own."""
        self.waiting.pop(ticket.slots[0], None)
        audit = ticket.audit
        said = self._said.of(ticket.slots[0]) if status == 200 else None
        self.energy_j += ticket.energy_j
        if said is None or not isinstance(audit, Audit):
            self.given_up(ticket.error or {504: "late", 500: "failed"}.get(status, "died"))
            return
        self.answered += 1
        lane, heard = audit.heard[-1]
        if lane == self.guard.best:  # it goes the other way
            if self.guard.fresh_audit(audit.digest) & RECOVERY and ticket.variants[0] == self.guard.accused:
                self.guard.witness(self._said.score(ticket.slots[0]), same(said, heard))
            return
        self._compare(audit, ticket.variants[0], said)

    def queued(self) -> list[Ticket]:
        """Return the audits that no worker has."""
        return [ticket for slot, ticket in self.waiting.items() if self._table.state[slot] == QUEUED]

    def behind(self, lane: int = -1) -> int:
        """Return how many of them wait for `lane` (-1: any): they wait behind every client."""
        return sum(lane in (-1, ticket.variants[0]) for ticket in self.queued()) if self.waiting else 0

    def stranded(self) -> list[Ticket]:
        """Return those of them whose lane has no worker any more."""
        return [ticket for ticket in self.queued() if not self._lanes.live >> ticket.variants[0] & 1]

    def _compare(self, audit: Audit, auditor: int, said: Said) -> None:
        """Hold what the first variant said, what the client got, and what the plan would have let it have, against the
        auditor's word."""
        guard, best = self.guard, self.guard.best
        evidence = guard.fresh_audit(audit.digest)
        if not evidence:
            return
        first, heard = audit.heard[0]
        if first != auditor:
            guard.compared(OWN, first, same(heard, said), *guard.alike(first, auditor), evidence=evidence)
        if auditor != best:
            return
        chain = audit.chain
        lane, heard = audit.heard[-1]
        if chain is None and len(audit.heard) > 1:  # it was cut short: what is to be expected was not counted
            if lane != best:
                guard.compared(SERVED, lane, same(heard, said), 0.0, 0, evidence=evidence)
            return
        planned = audit.planned if audit.planned >= 0 else lane
        for at, spoken in audit.heard:
            if at == planned != best and evidence & RECOVERY:
                guard.as_planned(at, same(spoken, said), *self._alike(at, chain))
        if lane != auditor:
            of = self._alike(lane, chain)
            first_stage = chain is None or chain.stage(lane) == 0
            floor = (chain.planned or chain.thresholds)[0] if chain is not None and first_stage else -math.inf
            guard.floors[lane] = (floor, *(of if first_stage else guard.alike(lane, best)))
            guard.compared(SERVED, lane, same(heard, said), *of, evidence=evidence)

    def _alike(self, lane: int, chain: Chain | None) -> tuple[float, int]:
        """Return the part of the rows that the plan ends at `lane` which the best variant answers alike, and of how
        many rows."""
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
