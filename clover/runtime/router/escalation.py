"""Escalation: a row whose answer is not sure enough is asked of the next variant of its chain.

`runtime.cascade` describes chains.  If a row cannot be escalated (its deadline would pass, the next variant has no
worker, a burst is on) or was escalated in vain, it keeps the answer that it has: it is *cut short*.
"""

from __future__ import annotations

from clover.accounting import Account
from clover.accounting.usage import count_kept
from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.escalation_limit import EscalationLimit
from clover.runtime.router.audits import Audits
from clover.runtime.router.relief import StandbyRouting
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import FLYING, QUEUED, RouterTicket


class Escalation:
    """Escalates rows, and takes back those that were escalated in vain.

    `busy_ns`: how long the last batch of each lane took.  `audits`: where the answers of escalated rows are kept for
    comparison; None if they are not.  `limit`: of escalations by client; None if there is none.  `kept`: rows that were
    taken back so far."""

    def __init__(self, state: RouterState, standby: StandbyRouting, account: Account) -> None:
        self.busy_ns = [0] * len(state.accuracy)
        self.audits: Audits | None = None
        self.limit: EscalationLimit | None = None
        self.kept = 0
        self._state = state
        self._standby = standby
        self._account = account
        self._unescalated = [(name,) for name in state.traffic.variants]
        """By lane, the path of one row that only that lane was asked of: the same object for each, as receipts are
        compared by it."""

    def escalate(
        self, ticket: RouterTicket, chain: RoutedChain, slot: int, lane: int, score: float, now_ns: int
    ) -> bool:
        """Queue a row that `lane` answered with `score` for the next variant of its chain, if that score is below the
        stage's threshold; return whether it was."""
        stage = chain.stage(lane)
        if stage < 0:  # after a death or relief, a lane outside the chain answered
            self._state.traffic.accuracy_rows += self._state.lanes.accuracy[lane]
            return False
        last = stage == len(chain.thresholds)
        threshold = 0.0 if last else chain.thresholds[stage]
        if last or score >= threshold:
            self._ends(ticket, slot, chain.ends[stage], chain.accuracy)
            return False
        row, target = ticket.row_of(slot), chain.lanes[stage + 1]
        why = ""
        if not self._state.lanes.is_live(target):
            why = "nobody"
        elif self._standby.on:
            why = "relief"
        elif now_ns + self._service_ns(target) > ticket.deadline_ns:
            why = "deadline"
        elif not self._allows(ticket):
            why = "limit"
            ticket.limited += 1
        if why:
            self._cut_short(ticket, chain, row, lane, why)
            return False
        if self.audits is not None:
            self.audits.record_escalation(
                ticket, row, lane, target, bool(chain.planned) and score >= chain.planned[stage]
            )
        if not ticket.paths:
            ticket.paths = {}
        ticket.paths[row] = (*ticket.paths.get(row, ()), lane)
        if ticket.torn:  # the slot holds a complete answer again
            ticket.torn = tuple([other for other in ticket.torn if other != row])
        ticket.variants[row] = target
        self._state.batcher.requeue(target, [slot], ticket.deadline_ns, now_ns, ticket.key, ticket.flow)
        self._state.table.state[slot] = QUEUED
        return True

    def keep(self, ticket: RouterTicket, row: int, why: str) -> bool:
        """Take back a row that was escalated in vain: its slot holds the answer of the variant before.  Return False
        if there is no such answer, or if a worker that died may have overwritten it."""
        before = ticket.paths.get(row, ())
        if not before or ticket.chain is None or row in ticket.torn:
            return False
        del ticket.paths[row]
        ticket.variants[row] = before[-1]
        if len(before) > 1:
            ticket.paths[row] = before[:-1]
        self._state.traffic.rows[before[-1]] += 1
        tenant = ticket.tenant.name if ticket.tenant is not None else ""
        self._state.traffic.record_tenants(before[-1], [tenant])
        count_kept(self._account.usage, self._state.name, self._state.traffic.variants[before[-1]], tenant)
        self.kept += 1
        self._cut_short(ticket, ticket.chain, row, before[-1], why)
        return True

    def keep_all(self, ticket: RouterTicket) -> bool:
        """Let all rows of a ticket that is due keep the answers they have, if every row that is out only waits in a
        queue; return whether that was so."""
        if any(self._state.table.state[slot] == FLYING for slot in ticket.slots):
            return False  # a worker may be writing into the slot
        waiting = [row for row, slot in enumerate(ticket.slots) if self._state.table.state[slot] == QUEUED]
        if not all(ticket.paths.get(row) and row not in ticket.torn for row in waiting):
            return False
        self._state.table.cancel(ticket)
        for row in waiting:
            self.keep(ticket, row, "deadline")
        return True

    def paths(self, ticket: RouterTicket) -> tuple[str, ...]:
        """Return, for each row, the variants that it was asked of in that order, as "small>xlarge"."""
        names, paths = self._state.traffic.variants, ticket.paths
        if len(ticket.variants) == 1 and not paths:
            return self._unescalated[ticket.variants[0]]
        return tuple(
            [">".join([names[at] for at in (*paths.get(row, ()), lane)]) for row, lane in enumerate(ticket.variants)]
        )

    def accuracy(self, ticket: RouterTicket, chain: RoutedChain) -> float:
        """Return the mean expected accuracy (percent) of the rows of a ticket that followed `chain`."""
        total = 0.0
        for row, lane in enumerate(ticket.variants):
            stage = chain.stage(lane)
            if stage < 0:
                total += self._state.lanes.accuracy[lane]
            else:
                total += chain.cut[stage] if row in ticket.cut_short else chain.ends[stage]
        return total / len(ticket.variants)

    def _service_ns(self, lane: int) -> float:
        """Return the time that a row queued for `lane` now will take: one batch, and one more for each batch ahead of
        it, of other lanes too where a worker serves several, each as long as the last of its lane."""
        workers, batches, spent_ns = 0, 0, 0
        for link in self._state.lanes.links:
            if link.attached and link.lane == lane:
                workers += 1
                batches += len(link.batches)
                if link.process.shared:
                    for other in link.process.links:
                        if other is not link:
                            spent_ns += self.busy_ns[other.lane] * len(other.batches)
        busy_ns = self.busy_ns[lane]
        ahead = batches + self._state.lanes.waiting(lane) / self._state.spec.max_batch
        return busy_ns + (busy_ns * ahead + spent_ns) / max(1, workers)

    def _cut_short(self, ticket: RouterTicket, chain: RoutedChain, row: int, lane: int, why: str) -> None:
        """End a row at `lane` although its score calls for the next variant; count the reason."""
        if ticket.cut_short:
            ticket.cut_short.add(row)
        else:
            ticket.cut_short = {row}
        self._state.traffic.record_cut_short(why)
        stage = chain.stage(lane)
        usual = self._state.lanes.accuracy[lane]
        self._ends(ticket, ticket.slots[row], chain.cut[stage] if stage >= 0 else usual, usual)

    def _ends(self, ticket: RouterTicket, slot: int, accuracy: float, usual: float) -> None:
        """Count the accuracy (percent) expected of a row that has its answer; `usual`: that of any row which ends this
        way, 0 if it is unknown."""
        self._state.traffic.accuracy_rows += accuracy
        sender, limit = ticket.sender, self.limit
        if limit is None or sender is None:
            return
        if limit.leaves_out(sender):
            self._state.traffic.left_out_rows += 1
            self._state.traffic.left_out_accuracy_rows += accuracy
        elif usual > 0.0 and ticket.repeats and slot in ticket.repeats:
            self._state.traffic.repeated_rows += 1
            self._state.traffic.repeated_surplus += accuracy - usual

    def _allows(self, ticket: RouterTicket) -> bool:
        """Return whether the client of a ticket may have a row escalated; one that asked for an accuracy always may."""
        sender, limit = ticket.sender, self.limit
        return limit is None or sender is None or ticket.min_accuracy > 0.0 or limit.allows(sender, ticket.group)
