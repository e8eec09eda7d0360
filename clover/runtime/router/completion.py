"""Answers back: completed batches are taken from the workers' rings, and their rows settle with their tickets.

A ticket ends once (`finish`): answered, failed, or past its deadline.  Its client is called back later, in `deliver`,
so that workers get their next batches before answers are written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from operator import mul
from typing import Protocol

from clover.accounting.account import Account
from clover.runtime.memory.rows import InputDigests
from clover.runtime.memory.slab import NO_MEMORY, ROWS_REFUSED
from clover.runtime.router.cached_answers import CachedAnswers
from clover.runtime.router.demand import UNPLANNED
from clover.runtime.router.escalation import Escalation
from clover.runtime.router.links import Batch, Link, WorkerLinks
from clover.runtime.router.monitor import Monitor
from clover.runtime.router.retry import Retry
from clover.runtime.router.retry_book import MemoryRefusals
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import CLOSED, DONE, HELD, PENDING, QUEUED, RouterTicket
from clover.types import Declined

log = logging.getLogger("clover.router")

_ROUNDING = 1e-6  # rows x percent


class WaitingBatches(Protocol):
    """Takes batches of rows of batch jobs back (`runtime.router.waiting`)."""

    def complete(
        self, link: Link, batch: Batch, status: int, refused: Mapping[int, str], busy_ns: int, energy_j: float
    ) -> None:
        """Settle the rows of a completed batch, which took `energy_j` joules a row; `refused` has the reasons, by slot,
        for rows that the worker could not take."""

    def lose(self, batch: Batch, *, blame: bool) -> None:
        """Take back a batch whose worker died; `blame`: its rows may be the cause."""


class Completion:
    """Takes what workers completed and ends tickets."""

    def __init__(
        self,
        state: RouterState,
        retry: Retry,
        escalation: Escalation,
        monitor: Monitor,
        account: Account,
        cached: CachedAnswers | None = None,
    ) -> None:
        self._cached = cached
        self._state = state
        self._retry = retry
        self._escalation = escalation
        self._monitor = monitor
        self._account = account
        self.waiting: WaitingBatches | None = None
        """What takes batches of rows of batch jobs back; None until the first row of one comes."""
        self._finished: list[RouterTicket] = []
        self._memory_refusals = MemoryRefusals(InputDigests(state.memory, state.spec))
        self._withdrawn = [0] * len(state.accuracy)
        """Rows that each lane answered of requests that failed later, and that its meter does not know of yet."""
        self._kept = 0
        """Rows that kept the answer of an earlier lane (`Escalation.kept`), as far as meters know of them."""
        self._right = 0.0
        """`Traffic.accuracy_rows`, as far as meters know of it."""

    def recount(self) -> None:
        """Count what was answered so far by the accuracies that are expected now."""
        state = self._state
        before = state.traffic.accuracy_rows
        state.traffic.accuracy_rows = sum(map(mul, state.traffic.rows, state.accuracy))
        self._right += state.traffic.accuracy_rows - before

    # --- batches ------------------------------------------------------------------------------------------------------

    def collect(self, now_ns: int) -> bool:
        """Take every completion there is; return whether any worker held a batch."""
        found = False
        for process in self._state.lanes.processes[:]:
            if process.broken or not process.held:
                continue
            found = True
            try:
                self.take(process, now_ns)
            except ValueError as error:
                process.broken = True
                self._state.lost(process.worker, f"it broke the protocol of its ring: {error}")
        return found

    def take(self, process: WorkerLinks, now_ns: int) -> None:
        """Take everything that one worker completed; raises ValueError if it breaks the protocol."""
        reap = process.worker.ring.reap
        frame = reap()
        while frame is not None:
            self._complete(process, frame, now_ns)
            frame = reap()

    def _complete(self, process: WorkerLinks, frame: tuple[int, int, int, int, int, int], now_ns: int) -> None:
        """Record a completed batch and settle its rows."""
        state = self._state
        batch_id, status, count, start_ns, end_ns, cpu_ns = frame
        refused = None
        batch = None
        for link in process.links:
            batch = link.batches.get(batch_id)
            if batch is not None:
                break
        if batch is None or count != len(batch.slots):
            raise ValueError(f"completion of batch {batch_id} with {count} rows, which it was never given")
        if status == ROWS_REFUSED:
            status, refused = 0, state.memory.refusals(batch.slots)
        link.record_done(batch, now_ns)
        # The worker reads the same clock but is not trusted: its times are clamped to what the server saw itself, and
        # to one batch at a time.
        least_ns = min(max(batch.sent_ns, process.ended_ns), now_ns)
        end_ns = min(max(end_ns, least_ns), now_ns)
        start_ns = min(max(start_ns, least_ns), end_ns)
        busy_ns = end_ns - start_ns
        if not batch.waiting:
            pace = state.lanes.paces[link.lane]
            # Of a worker that several lanes share, the batch before is another lane's, and the batcher adds its time.
            pace.record_batch(now_ns - batch.sent_ns, now_ns - (least_ns if process.shared else batch.sent_ns))
            state.batcher.expect(link.lane, pace.least_ns)
        state.batcher.credit(link.index, end_ns)
        meter = link.meter
        energy_j = meter.add(count, busy_ns, cpu_ns, start_ns - process.ended_ns, status)
        if batch.tenants is not None:
            meter.charge(batch.tenants)
        process.ended_ns = end_ns
        if batch.waiting and self.waiting is not None:
            self.waiting.complete(link, batch, status, refused or {}, busy_ns, energy_j)
            state.lanes.forget_idle(link)
            return
        if status and self._retry.after_failure(batch, now_ns, by_chance=status == NO_MEMORY):
            meter.record_wasted(count)
        else:
            passed_on, audited, wasted = 0, 0, count
            escalated, audits, late, turned_away = self._settle(
                link, batch, status, start_ns, busy_ns, energy_j, now_ns, refused
            )
            surplus = state.traffic.accuracy_rows - self._right
            self._right = state.traffic.accuracy_rows
            if not status:
                passed_on, audited, wasted = escalated, audits, late + turned_away
                answered = count - escalated - audits - turned_away
                surplus -= (count - audits - turned_away) * state.accuracy[link.lane]
                self._escalation.busy_ns[link.lane] = busy_ns
                state.traffic.batch(link.lane, count, escalated, busy_ns, now_ns, audits + turned_away)
                if link.standby:
                    state.traffic.relieved_rows += answered
                self._account.count_answered(state.name, answered)
                meter.answered += answered
                if batch.tenants is not None:
                    meter.record_answered(batch.tenants)
                    state.traffic.record_tenants(link.lane, batch.tenants)
            if self._escalation.kept != self._kept:
                passed_on -= self._escalation.kept - self._kept
                self._kept = self._escalation.kept
            if passed_on or audited or abs(surplus) > _ROUNDING:
                meter.record_passed_on(passed_on, audited, surplus)
            if self._withdrawn[link.lane]:
                paid = min(self._withdrawn[link.lane], count - audited - wasted)
                self._withdrawn[link.lane] -= paid
                wasted += paid
            if wasted:
                meter.record_wasted(wasted)
        state.lanes.forget_idle(link)

    def _settle(
        self,
        link: Link,
        batch: Batch,
        status: int,
        start_ns: int,
        busy_ns: int,
        energy_j: float,
        now_ns: int,
        refused: dict[int, str] | None,
    ) -> tuple[int, int, int, int]:
        """Return the rows of a completed batch to their tickets, escalate those that are not sure enough, and finish
        tickets that have all of theirs; `refused` has the reason for each slot whose row the worker could not take.
        Return how many rows were escalated, how many were audits, how many came too late, and how many were refused."""
        state = self._state
        lane, escalated, audits, late, turned_away = link.lane, 0, 0, 0, 0
        watching = not status and self._monitor.watching
        watched = watching and self._monitor.watches(lane)
        scores = self._monitor.scores(batch.slots) if watched else []
        for at, slot in enumerate(batch.slots):
            ticket = state.table.take_back(slot)
            if ticket is None:
                late += 1
                if not status:
                    state.traffic.accuracy_rows += state.accuracy[lane]
                continue
            ticket.energy_j += energy_j
            if ticket.audit is not None:
                audits += 1
                self.finish(ticket, 500 if status or (refused is not None and slot in refused) else 200, "", now_ns)
                continue
            if refused is not None and slot in refused:
                turned_away += 1
                if batch.tenants is not None:
                    batch.tenants[at] = ""  # it was not answered
                row = f"row {ticket.row_of(slot)}: " if len(ticket.slots) > 1 else ""
                self.finish(ticket, 400, f"{row}{refused[slot]}", now_ns)
                continue
            if watched or (watching and ticket.chain is not None):
                self._monitor.observe(ticket, slot, lane, scores[at] if watched else 0.0, watched)
            waited_ns = start_ns - ticket.submit_ns
            if waited_ns > ticket.queue_ns:
                ticket.queue_ns = waited_ns
            if busy_ns > ticket.compute_ns:
                ticket.compute_ns = busy_ns
                ticket.batch_rows = len(batch.slots)
            if status:
                if not self._escalation.keep(ticket, ticket.row_of(slot), "failed"):
                    if status == NO_MEMORY:
                        self._no_memory(ticket, now_ns)
                    else:
                        self.finish(ticket, 500, "the model failed on this request", now_ns)
                    continue
            elif ticket.chain is None:
                state.traffic.accuracy_rows += state.accuracy[lane]
            else:
                scores = scores or self._monitor.scores(batch.slots)
                if self._escalation.escalate(ticket, ticket.chain, slot, lane, scores[at], now_ns):
                    escalated += 1
                    if batch.tenants is not None:
                        batch.tenants[at] = ""  # its row counts where it ends
                    continue
            ticket.outstanding -= 1
            if not ticket.outstanding:
                self.finish(ticket, 200, "", now_ns)
        return escalated, audits, late, turned_away

    def _no_memory(self, ticket: RouterTicket, now_ns: int) -> None:
        """End a ticket for whose rows a worker had no memory twice: its client may come again, but not without end."""
        wait_s = self._memory_refusals.retry_after_s(ticket.slots, ticket.arrival_ns, now_ns)
        if wait_s is not None:
            self.finish(ticket, 503, "its worker had no memory for this request", now_ns, wait_s)
            return
        fewer = "fewer or smaller rows at once" if len(ticket.slots) > 1 else "a smaller row"
        error = f"its worker had no memory for this request each time that it came: send {fewer}"
        self.finish(ticket, 413, error, now_ns)

    def recover(self, process: WorkerLinks, reason: str, now_ns: int, *, blame: bool) -> None:
        """Take what a dead worker still completed, detach it, and queue the rows that it held again, once.  With
        `blame` False no row counts the death."""
        state = self._state
        worker = process.worker
        untaken = 0
        try:
            if not process.broken:
                self.take(process, now_ns)
                untaken = worker.ring.untaken()
        except ValueError as error:
            log.warning("%s: the ring of worker %d is corrupt: %s", state.name, worker.pid, error)
        links = process.links[:]
        batches = sorted([batch for link in links for batch in link.batches.values()], key=lambda batch: batch.id)
        for at, batch in enumerate(batches):
            if batch.waiting and self.waiting is not None:
                self.waiting.lose(batch, blame=blame and at < len(batches) - untaken)
        state.traffic.lost_workers += 1
        held = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
        log.warning("%s: worker %d died (%s) with %s in flight", state.name, worker.pid, reason, held)
        process.held = 0
        for link in links:
            for _ in link.batches:
                state.batcher.credit(link.index)
            link.batches.clear()
        for link in links:
            state.lanes.detach(link)

        def poisoned(ticket: RouterTicket) -> None:
            self.finish(ticket, 503, "the request was being computed by two workers that died", now_ns)

        clients = [batch for batch in batches if not batch.waiting]
        self._retry.after_death(clients, untaken, now_ns, poisoned, blame=blame)

    def move_stranded(self, now_ns: int) -> None:
        """Move rows that wait for a lane without a worker to another lane, and give up audits that do."""
        self.give_up(self._monitor.audits.list_stranded(), "nobody")
        self._retry.move_rows(now_ns)

    # --- the end of a ticket ------------------------------------------------------------------------------------------

    def finish(
        self, ticket: RouterTicket, status: int, error: str, now_ns: int, retry_after_s: float | None = None
    ) -> None:
        """End a pending ticket with an HTTP status; its client is called back by `deliver`.  Does nothing for a ticket
        that has ended."""
        state = self._state
        if ticket.phase != PENDING:
            return
        state.deadlines.discard(ticket)
        if status != 200:
            self.withdraw(ticket)
            state.table.cancel(ticket)
        if ticket.audit is not None:
            self._monitor.audits.record_audit(ticket, status)
            ticket.phase = CLOSED
            state.table.close(ticket)
            return
        state.company.record_departure(now_ns)
        self.stop_waiting(ticket)
        ticket.phase = DONE
        ticket.status = status
        ticket.error = error
        ticket.retry_after_s = retry_after_s
        ticket.done_ns = now_ns
        state.traffic.record_outcome(
            status,
            ticket.arrival_ns,
            ticket.submit_ns,
            now_ns,
            ticket.queue_ns,
            ticket.compute_ns,
            ticket.awaits < 0 and ticket.arrival_ns >= state.awake_ns,
        )
        if ticket.tenant is not None:
            state.traffic.for_tenant(ticket.tenant.name).count(status)
        if ticket.unanswered is not None and status == 200 and self._cached is not None:
            self._cached.keep(ticket, now_ns)
        self._finished.append(ticket)

    def recall(self, ticket: RouterTicket) -> None:
        """Have the client of a ticket that was answered from the cache called back by `deliver`."""
        self._finished.append(ticket)

    def withdraw(self, ticket: RouterTicket) -> None:
        """Count the rows of a pending ticket that were answered as computed in vain: its client does not get them.

        Call it before its queued rows are cancelled."""
        answered = len(ticket.slots) - ticket.outstanding
        if not answered:
            return
        held = [row for row, slot in enumerate(ticket.slots) if self._state.table.state[slot] == HELD]
        for row in held[:answered]:
            self._withdrawn[ticket.variants[row]] += 1

    def fail_pending(self, message: str, now_ns: int) -> None:
        """Answer every pending ticket with 503."""
        for ticket in self._state.table.pending():
            self.finish(ticket, 503, message, now_ns, 1.0)
        self.deliver()

    def expire(self, now_ns: int) -> None:
        """End the tickets whose deadline has passed; rows of a cascade keep the answer that they have."""
        for ticket in self._state.deadlines.due(now_ns):
            if ticket.paths and self._escalation.keep_all(ticket):
                self.finish(ticket, 200, "", now_ns)
            elif self._state.asleep is not None:
                refusal = self._state.asleep.refusal
                self.finish(ticket, 503, refusal.why, now_ns, refusal.retry_after_s)
            elif ticket.awaits >= 0 and not self._state.lanes.mask(ticket.min_accuracy):
                self.end_unserved(ticket, now_ns)
            else:
                self.finish(ticket, 504, "the deadline passed before an answer was there", now_ns)

    def too_late(self, slots: list[int], now_ns: int) -> None:
        """End the tickets of rows that left the queue because they could not be answered before their deadline.  Rows
        of a cascade keep the answer that they have."""
        state = self._state
        for slot in slots:
            ticket = state.table.owner[slot]
            if ticket is None or ticket.phase != PENDING:
                continue  # another row of it was too late as well
            if ticket.paths and self._escalation.keep(ticket, ticket.row_of(slot), "deadline"):
                state.table.state[slot] = HELD
                ticket.outstanding -= 1
                if not ticket.outstanding:
                    self.finish(ticket, 200, "", now_ns)
                continue
            if ticket.audit is None:
                state.traffic.record_overload("dropped")
            self.finish(ticket, 504, "the deadline would have passed before an answer was there", now_ns)

    def end_unserved(self, ticket: RouterTicket, now_ns: int) -> None:
        """End a ticket whose worker did not come: 503 if the reason is known, else 504."""
        declined = self._state.demand.declined(ticket.awaits)
        if declined is None:
            error = "the deadline passed before a worker that is accurate enough was there"
            self.finish(ticket, 504, error, now_ns)
        else:
            self._decline(ticket, ticket.awaits, declined, now_ns)

    def _decline(self, ticket: RouterTicket, variant: int, declined: Declined, now_ns: int) -> None:
        """End a ticket that needs a worker of `variant`, as none comes."""
        self._state.demand.count_declined(variant, len(ticket.slots))
        self.finish(ticket, 503, declined.why, now_ns, declined.retry_after_s)

    def settle_stranded(self, now_ns: int) -> None:
        """Refuse rows that wait for a lane without a worker if none will come; rows of a cascade keep the answer that
        they have.  The others wait on, no longer than the family's timeout."""
        state = self._state
        state.stranded = False
        for slot, ticket in state.table.list_queued():
            row = ticket.row_of(slot)
            lane = ticket.variants[row]
            if state.table.state[slot] != QUEUED or ticket.audit is not None or state.lanes.is_staffed(lane):
                continue  # it was settled with another row of its ticket, or a worker takes it
            if state.coming & state.lanes.able(ticket.min_accuracy):
                continue
            if self._escalation.keep(ticket, row, "nobody"):
                state.batcher.cancel(slot)
                state.table.state[slot] = HELD
                ticket.outstanding -= 1
                if not ticket.outstanding:
                    self.finish(ticket, 200, "", now_ns)
                continue
            variant = ticket.awaits if ticket.awaits >= 0 else state.demand.variant_needed(ticket.min_accuracy)
            declined = state.demand.declined(variant)
            if declined is not None and declined is not UNPLANNED and not declined.waits:
                self._decline(ticket, variant, declined, now_ns)
                continue
            # Without a controller a worker that it had may still be restarted.
            if declined is not UNPLANNED and variant >= 0 and ticket.awaits < 0:
                ticket.awaits = variant
                state.demand.wait(variant, len(ticket.slots))
            if ticket.deadline_ns > now_ns + state.timeout_ns:
                state.deadlines.discard(ticket)
                ticket.deadline_ns = now_ns + state.timeout_ns
                state.deadlines.add(ticket, now_ns)

    def stop_waiting(self, ticket: RouterTicket) -> None:
        """Count a ticket that waited for a worker as waiting no longer."""
        if ticket.awaits >= 0:
            self._state.demand.leave(ticket.awaits, len(ticket.slots))

    def give_up(self, audits: list[RouterTicket], why: str) -> bool:
        """End audits that wait; return whether there were any."""
        for ticket in audits:
            ticket.error = why
            self.finish(ticket, 503, why, self._state.now_ns())
        return bool(audits)

    def deliver(self) -> None:
        """Call `on_done` of the tickets that have finished.  A callback may open, submit and close tickets."""
        while self._finished:
            finished, self._finished = self._finished, []
            for ticket in finished:
                callback = ticket.on_done
                ticket.on_done = None
                if callback is not None and ticket.phase == DONE:
                    try:
                        callback(ticket)
                    except Exception:
                        log.exception("%s: a completion callback failed", self._state.name)
