"""Rows that go on: what the router does with an answer that is not sure enough (`runtime.cascade` says which is)."""

from __future__ import annotations

from clover._native.batcher import Batcher
from clover.runtime.cascade import Chain
from clover.runtime.router.audits import Audits
from clover.runtime.router.lanes import Lanes
from clover.runtime.router.slots import SlotTable
from clover.runtime.router.standby_routing import Reliefs
from clover.runtime.router.tickets import FLYING, QUEUED, Ticket
from clover.runtime.router.traffic import Traffic


class Escalation:
    """Sends rows on, and takes them back where that was in vain.  `busy_ns`: what the last batch of each lane took."""

    def __init__(
        self, table: SlotTable, batcher: Batcher, lanes: Lanes, traffic: Traffic, reliefs: Reliefs, max_batch: int
    ) -> None:
        self.busy_ns = [0] * len(lanes.accuracy)
        self.audits: Audits | None = None
        """Who wants to know what was said of rows that go on."""
        self._table = table
        self._state = table.state
        self._batcher = batcher
        self._lanes = lanes
        self._traffic = traffic
        self._reliefs = reliefs
        self._max_batch = max_batch

    def goes_on(self, ticket: Ticket, chain: Chain, slot: int, lane: int, score: float, now_ns: int) -> bool:
        """Return whether a row that `lane` answered with this score is asked of the next variant; it is queued for it
        then."""
        stage = chain.stage(lane)
        if stage < 0:  # a death or relief led it elsewhere
            self._traffic.accuracy_rows += self._lanes.accuracy[lane]
            return False
        if stage == len(chain.thresholds) or score >= chain.thresholds[stage]:
            self._traffic.accuracy_rows += chain.ends[stage]
            return False
        row, target = ticket.slots.index(slot), chain.lanes[stage + 1]
        why = ""
        if not self._lanes.live >> target & 1:
            why = "nobody"
        elif self._reliefs.on:
            why = "relief"
        elif now_ns + self._needs_ns(target) > ticket.deadline_ns:
            why = "deadline"
        if why:
            self._cut_short(ticket, chain, row, lane, why)
            return False
        if self.audits is not None:
            self.audits.passed(ticket, row, lane, target, bool(chain.planned) and score >= chain.planned[stage])
        if not ticket.paths:
            ticket.paths = {}
        ticket.paths[row] = (*ticket.paths.get(row, ()), lane)
        if ticket.torn:  # this answer is whole
            ticket.torn = tuple([other for other in ticket.torn if other != row])
        ticket.variants[row] = target
        self._batcher.requeue(target, [slot], ticket.deadline_ns, now_ns, ticket.key)
        self._state[slot] = QUEUED
        return True

    def keep(self, ticket: Ticket, row: int, why: str) -> bool:
        """Take back a row that went on in vain: the answer of the variant before lies in its slot.  False where there
        is none, or where a worker died that may have written over it."""
        before = ticket.paths.get(row, ())
        if not before or ticket.chain is None or row in ticket.torn:
            return False
        del ticket.paths[row]
        ticket.variants[row] = before[-1]
        if len(before) > 1:
            ticket.paths[row] = before[:-1]
        self._traffic.rows[before[-1]] += 1
        self._cut_short(ticket, ticket.chain, row, before[-1], why)
        return True

    def keep_all(self, ticket: Ticket) -> bool:
        """Return the deadline has come: whether every row that is still out only waits to be asked again.  They keep
        the answers they have then."""
        if any(self._state[slot] == FLYING for slot in ticket.slots):
            return False  # a worker may be writing into the slot
        waiting = [row for row, slot in enumerate(ticket.slots) if self._state[slot] == QUEUED]
        if not all(ticket.paths.get(row) and row not in ticket.torn for row in waiting):
            return False
        self._table.cancel(ticket)
        for row in waiting:
            self.keep(ticket, row, "deadline")
        return True

    def paths(self, ticket: Ticket) -> tuple[str, ...]:
        """Return the variants that each row was asked of, in that order: "small>xlarge"."""
        names, paths = self._traffic.variants, ticket.paths
        return tuple(
            ">".join(names[at] for at in (*paths.get(row, ()), lane)) for row, lane in enumerate(ticket.variants)
        )

    def accuracy(self, ticket: Ticket, chain: Chain) -> float:
        """Return accuracy (percent) to expect of the rows of a ticket that followed `chain`, in the mean."""
        total = 0.0
        for row, lane in enumerate(ticket.variants):
            stage = chain.stage(lane)
            if stage < 0:
                total += self._lanes.accuracy[lane]
            else:
                total += chain.cut[stage] if row in ticket.short else chain.ends[stage]
        return total / len(ticket.variants)

    def _needs_ns(self, lane: int) -> float:
        """Return how long a row that is queued for `lane` now will take, as its last batch did: a batch for itself and
        one for every batch's worth that is before it."""
        links = [link for link in self._lanes.links if link.attached and link.lane == lane]
        ahead = sum(len(link.batches) for link in links) + self._lanes.waiting(lane) / self._max_batch
        return self.busy_ns[lane] * (1.0 + ahead / max(1, len(links)))

    def _cut_short(self, ticket: Ticket, chain: Chain, row: int, lane: int, why: str) -> None:
        """A row ends at `lane` although it should go on."""
        ticket.short = ticket.short | {row}
        self._traffic.cut(why)
        stage = chain.stage(lane)
        self._traffic.accuracy_rows += chain.cut[stage] if stage >= 0 else self._lanes.accuracy[lane]
