"""One request inside the data plane.

A ticket is opened with slots, written, submitted, answered (or refused, or missed) and closed.  Its rows travel apart:
each may run in another batch on another variant, so the ticket only counts how many are still out.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

from clover.interfaces import Ticket as Base
from clover.runtime.cascade import RoutedChain
from clover.runtime.guard.answer_reader import RowAnswer
from clover.runtime.guard.clients import Sender
from clover.tenants import Tenant

StageAnswers = tuple[tuple[int, RowAnswer], ...]
"""The lanes that answered a row, in the order in which they were asked, each with its answer."""

OPEN, PENDING, DONE, CLOSED = range(4)
"""Phases of a ticket."""

BACKGROUND = -1
"""The flow of audits: their rows are behind those of all clients."""

FREE, HELD, QUEUED, FLYING = range(4)
"""States of a slot: on the free list; held by an open or answered ticket; in the batcher; with a worker."""


# Most tickets keep these empty containers, so all share them; one is replaced before anything is put in.
_NO_LANES: list[int] = []
_NO_PATHS: dict[int, tuple[int, ...]] = {}
_NO_ROWS: set[int] = set()
_NO_ENDS: dict[int, int] = {}
_NO_ANSWERS: dict[int, StageAnswers] = {}


class RouterTicket(Base):
    """A `clover.interfaces.Ticket` with what the router keeps of it."""

    __slots__ = (
        "audit",
        "awaits",
        "batch_rows",
        "billed",
        "bucket",
        "chain",
        "connection",
        "cut_short",
        "deadline_ns",
        "deaths",
        "earlier",
        "energy_j",
        "flow",
        "group",
        "key",
        "later",
        "lent",
        "limited",
        "marked",
        "min_accuracy",
        "on_done",
        "outstanding",
        "paths",
        "phase",
        "planned",
        "recalled",
        "repeats",
        "request",
        "sender",
        "stage_answers",
        "submit_ns",
        "tenant",
        "torn",
        "unanswered",
    )

    def __init__(self, slots: list[int], arrival_ns: int) -> None:
        self.slots = slots
        self.flow = 0
        """Rows of one flow take turns with those of others: a tenant's or a connection's number, 0 for callers in this
        process."""
        self.connection = 0
        """The number of the connection, whoever's it is."""
        self.tenant: Tenant | None = None
        """Who sent it, if that is a tenant."""
        self.request = 0
        """The number of the id that the client gave its request; if it gave none 0, or less: a tenant's connection."""
        self.status = 0
        self.error = ""
        self.retry_after_s: float | None = None
        self.context: Any = None
        self.client = ""
        self.uncached = 0
        self.arrival_ns = arrival_ns
        self.waited_ns = 0
        self.submit_ns = 0
        self.done_ns = 0
        self.queue_ns = 0
        self.compute_ns = 0
        self.batch_rows = 0
        """Rows of the batch that took longest (`compute_ns`), those of other requests included."""
        self.variants = _NO_LANES
        self.chain: RoutedChain | None = None
        self.paths = _NO_PATHS
        """By row, the lanes that answered it before the one it is at; rows that were never escalated have none."""
        self.cut_short = _NO_ROWS
        """Rows that keep an answer although they should have been escalated."""
        self.marked: tuple[int, ...] = ()
        """Rows that are audited once they are answered (`runtime.router.audits`)."""
        self.stage_answers = _NO_ANSWERS
        """Of escalated rows whose answers are compared later, by row: the answers of the earlier lanes."""
        self.planned = _NO_ENDS
        """Of escalated rows that are audited: the lane at which the plan's thresholds would have ended them."""
        self.repeats = _NO_ROWS
        """Slots that the guard does not count: their input came before, or their client is left out."""
        self.sender: Sender | None = None
        """Who sent it, as the guard counts clients; None while it counts no row of it."""
        self.group = 0
        """The group of that client."""
        self.limited = 0
        """Rows that keep an answer because the client is over its limit of escalations."""
        self.audit: object | None = None
        """The `Audit` whose second answer this ticket asks for; None for a client's ticket."""
        self.torn: tuple[int, ...] = ()
        """Rows whose slot may not hold the answer of the last lane of their path: their worker died while it computed
        them, or they were sent back to an earlier lane, and no lane has answered since."""
        self.awaits = -1
        """The lane whose worker it waits or waited for, as none that is accurate enough was there; -1: none."""
        self.unanswered: object | None = None
        """The `Unanswered` whose rows are kept in the cache of answers once they are there."""
        self.recalled: object | None = None
        """The `Recalled` that answered it from there."""
        self.billed: Any = None
        """Its `Receipt` once that was made: what it cost is billed once, also if a span shows it again."""
        self.lent = False  # a client is still sending its rows
        self.phase = OPEN
        self.outstanding = 0
        self.deadline_ns = 0
        self.bucket: Any = None
        self.later: RouterTicket | None = None
        self.earlier: RouterTicket | None = None
        """Its place among the deadlines (`runtime.router.deadlines`)."""
        self.deaths = 0
        self.key = 0
        self.min_accuracy = 0.0
        self.energy_j = 0.0
        self.on_done: Callable[[RouterTicket], None] | None = None

    def row_of(self, slot: int) -> int:
        """Return the row that lies in `slot`, one of the ticket's."""
        slots = self.slots
        first = slots[0]
        if slots[-1] - first == len(slots) - 1:  # slots of a ticket are ascending, so these are neighbours
            return slot - first
        return bisect.bisect_left(slots, slot)
