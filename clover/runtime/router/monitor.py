"""What is watched of the answers of one family: the guard, its audits, and labels that clients send later.

The guard (`clover.runtime.guard.guard`) sees the scores of first answers; audits (`clover.runtime.router.audits`) ask a
better variant for a share of the rows once their client has its answer; feedback (`clover.runtime.guard.feedback`)
compares answers with the labels that clients send.  When the guard's alarm level changes, the thresholds of the
cascade tighten, or the cascade is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clover.config import FamilyConfig
from clover.errors import BadRequest
from clover.families import TOP1
from clover.runtime.guard.answer_reader import AnswerReader
from clover.runtime.guard.feedback import Feedback
from clover.runtime.guard.guard import CASCADE_OFF, OK, Guard
from clover.runtime.memory.rows import InputDigests
from clover.runtime.router.audits import Audits
from clover.runtime.router.state import RouterState
from clover.runtime.router.tickets import RouterTicket
from clover.types import FamilyProfile, FamilySpec


class Monitor:
    """Watches the answers of a router.  `watching`: the profile has scores to compare with; `auditing`: a share of the
    rows is audited."""

    def __init__(self, state: RouterState, config: FamilyConfig) -> None:
        self.guard = Guard(
            state.name,
            state.traffic.variants,
            self._alarm_level_changed,
            acts=config.guard == "act",
            multiple=config.escalation_limit,
            clock=state.clock,
        )
        self.watching = False
        self.auditing = False
        self.feedback = Feedback(state.spec, 0 if _own_metric(state.spec) else config.feedback_rows)
        self._configured = config.guard != "off"
        self._reader = AnswerReader(state.memory, state.spec)
        self._digests = InputDigests(state.memory, state.spec)
        self._scores = state.memory.score.data
        self._state = state
        share = config.audit if self._configured else 0.0
        self.audits = Audits(state, self.guard, self._reader, self._digests, share)
        state.lanes.audits_waiting = self.audits.waiting_for

    def expect(self, profile: FamilyProfile | None) -> None:
        """Compare answers with `profile` from now on; forget everything seen so far."""
        self.guard.expect(profile if self._configured else None)
        self.watching = self.guard.watches
        self.auditing = self.audits.on

    def release(self) -> None:
        """Let go of the shared memory; no answer may come afterwards."""
        self._scores = np.empty(0, np.float32).data

    # --- for every row ------------------------------------------------------------------------------------------------

    def watches(self, lane: int) -> bool:
        """Return whether the guard compares the scores of `lane`."""
        return self.watching and self.guard.edges[lane] is not None

    def scores(self, slots: list[int]) -> list[float]:
        """Return the confidence scores of the answers in `slots`."""
        scores = self._scores
        return [scores[slot] for slot in slots]

    def observe(self, ticket: RouterTicket, slot: int, lane: int, score: float, watched: bool) -> None:
        """Take note of an answer of `lane`: its `score` if the lane is `watched`, and whether its input came before.
        Only the first answer of a row counts, not those of later stages of its chain."""
        if ticket.paths and ticket.row_of(slot) in ticket.paths:
            return
        clients, limit = self.guard.clients, self.guard.limit
        group = clients.record_row(ticket.client, ticket.connection)
        sender = clients.latest
        ticket.sender, ticket.group = sender, group
        if ticket.chain is not None and ticket.min_accuracy <= 0.0:
            limit.record_row(sender, ticket.chain.escalations)
        evidence = self.guard.fresh(self._digests.digest(slot))
        sender.record_input(evidence > 0)
        if evidence and not limit.leaves_out(sender):
            if watched:
                self.guard.score(lane, score, evidence, group)
        elif ticket.repeats:
            ticket.repeats.add(slot)
        else:
            ticket.repeats = {slot}

    # --- for every request --------------------------------------------------------------------------------------------

    def record_answered(self, ticket: RouterTicket, now_ns: int) -> None:
        """Count and audit the rows of an answered ticket whose slots are about to be freed."""
        if self.watching and ticket.chain is not None and ticket.chain.overruled_rows:
            self.audits.record_overrules(ticket, ticket.chain)
        if ticket.marked:
            self.audits.queue_marked(ticket, now_ns)

    def give_up_audits(self, ticket: RouterTicket) -> None:
        """Give up the audits of a ticket that was closed without an answer."""
        self.audits.record_given_up("lost", len(ticket.marked))

    def remember(self, number: int, ticket: RouterTicket) -> None:
        """Keep what an answered ticket says, for labels that come later."""
        if ticket.status != 200 or not self.feedback.on:
            return
        slots = ticket.slots
        if len(slots) == 1:
            self.feedback.remember_row(number, ticket.variants[0], self._reader.read(slots[0]))
        else:
            self.feedback.remember(number, ticket.variants, [self._reader.read(slot) for slot in slots])

    def count_labels(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        """Count the labels of a remembered request; see `Model.count_labels`.

        Raises BadRequest if the family judges answers by a metric of its own.
        """
        if own := _own_metric(self._state.spec):
            self.feedback.refused["unfit"] += 1
            raise BadRequest(
                f"labels are not taken for this family: it judges its answers by a metric of its own, {own!r}, which "
                "needs whole answers, and a server remembers less; add labelled rows to its evaluation set instead"
            )
        return self.feedback.take(number, labels, client, self._state.now_ns(), self._state.lanes.expected())

    # --- for people ---------------------------------------------------------------------------------------------------

    def report(self, method: str) -> dict[str, Any]:
        """Return what the guard saw and did, the audits, whose joules were found by `method`, and late labels."""
        audits = self.audits.report() | {"method": method}
        feedback = self.feedback.report(self._state.traffic.variants)
        return {**self.guard.report(), "audits": audits, "feedback": feedback}

    def _alarm_level_changed(self) -> None:
        """Apply the guard's alarm level: tighten the chains, switch them off, or restore them."""
        level = self.guard.alarm_level
        self._state.lanes.tighten(self.guard.tighten_chain if level != OK else None, cascade_off=level == CASCADE_OFF)


def _own_metric(spec: FamilySpec) -> str:
    """Return the family's own metric; "" if a label is what the answer should be."""
    metric = spec.evaluation.metric if spec.evaluation is not None else TOP1
    return "" if metric == TOP1 else metric
