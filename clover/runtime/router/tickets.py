"""One request inside the data plane.

A ticket is opened with slots, written, submitted, answered (or refused, or missed) and closed.  Its rows travel apart:
each may run in another batch on another variant, so the ticket only counts how many are still out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clover.interfaces import Ticket as Base
from clover.runtime.cascade import Chain
from clover.runtime.guard.answer_reader import Said

Heard = tuple[tuple[int, Said], ...]
"""Lanes in the order in which they were asked of a row, each with what it said."""

OPEN, PENDING, DONE, CLOSED = range(4)
"""Phases of a ticket."""

BEHIND_NS = 86_400_000_000_000
"""The place of an audit in the queue is that of a row due so much later."""

FREE, HELD, QUEUED, FLYING = range(4)
"""States of a slot: on the free list; held by an open or answered ticket; in the batcher; with a worker."""


# Most tickets keep what they begin with, so these are shared, and replaced before anything is put in.
_NOBODY: list[int] = []
_NO_PATHS: dict[int, tuple[int, ...]] = {}
_NO_ROWS: set[int] = set()
_NOT_ENDED: dict[int, int] = {}
_NOTHING_HEARD: dict[int, Heard] = {}


class Ticket(Base):
    """A `clover.interfaces.Ticket` with what the router keeps of it."""

    __slots__ = (
        "audit",
        "awaits",
        "bucket",
        "chain",
        "deadline_ns",
        "deaths",
        "earlier",
        "energy_j",
        "heard",
        "key",
        "later",
        "lent",
        "marked",
        "min_accuracy",
        "on_done",
        "outstanding",
        "paths",
        "phase",
        "planned",
        "repeats",
        "short",
        "submit_ns",
        "torn",
    )

    def __init__(self, slots: list[int], arrival_ns: int) -> None:
        self.slots = slots
        self.status = 0
        self.error = ""
        self.retry_after_s: float | None = None
        self.context: Any = None
        self.arrival_ns = arrival_ns
        self.submit_ns = 0
        self.done_ns = 0
        self.queue_ns = 0
        self.compute_ns = 0
        self.variants = _NOBODY
        self.chain: Chain | None = None
        self.paths = _NO_PATHS
        """By row, the lanes that answered it before the one it is at; rows that never went on have none."""
        self.short = _NO_ROWS
        """Rows that keep an answer although they should have gone on."""
        self.marked: tuple[int, ...] = ()
        """Rows that are audited once they are answered (`runtime.router.audits`)."""
        self.heard = _NOTHING_HEARD
        """Of rows that went on, by row: the lanes before, with what they said, where that is compared later."""
        self.planned = _NOT_ENDED
        """Of audited rows that went on, the lane at which the plan's thresholds would have ended them."""
        self.repeats = _NO_ROWS
        """Slots whose input came before: the guard leaves them out."""
        self.audit: object | None = None
        """What the answer is compared with, where this is no client's ticket but a second answer."""
        self.torn: tuple[int, ...] = ()
        """Rows whose slot may not hold the answer of the last variant of their path, and that have not been answered
        since: their worker died as it computed them, or they were sent back to an earlier variant."""
        self.awaits = -1
        """The lane whose worker it waits or waited for, as none that is good enough was there; -1: it found one."""
        self.lent = False  # a client is still sending its rows
        self.phase = OPEN
        self.outstanding = 0
        self.deadline_ns = 0
        self.bucket: Any = None
        self.later: Ticket | None = None
        self.earlier: Ticket | None = None
        """Its place among the deadlines (`runtime.router.deadlines`)."""
        self.deaths = 0
        self.key = 0
        self.min_accuracy = 0.0
        self.energy_j = 0.0
        self.on_done: Callable[[Ticket], None] | None = None
