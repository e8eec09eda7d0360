"""One request inside the data plane.

A ticket is opened with slots, written, submitted, answered (or refused, or missed) and closed.  Its rows travel apart:
each may run in another batch on another variant, so the ticket only counts how many are still out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clover.runtime.cascade import Chain
from clover.runtime.sayings import Said

Heard = tuple[tuple[int, Said], ...]
"""Lanes in the order in which they were asked of a row, each with what it said."""

OPEN, PENDING, DONE, CLOSED = range(4)
"""Phases of a ticket."""

BEHIND_NS = 86_400_000_000_000
"""The place of an audit in the queue is that of a row due so much later."""

FREE, HELD, QUEUED, FLYING = range(4)
"""States of a slot: on the free list; held by an open or answered ticket; in the batcher; with a worker."""


class Ticket:
    """See `clover.interfaces.Ticket`; the remaining fields belong to the router."""

    __slots__ = (
        "arrival_ns",
        "audit",
        "bucket",
        "chain",
        "compute_ns",
        "context",
        "deadline_ns",
        "deaths",
        "done_ns",
        "energy_j",
        "error",
        "heard",
        "key",
        "marked",
        "min_accuracy",
        "on_done",
        "outstanding",
        "paths",
        "phase",
        "queue_ns",
        "retry_after_s",
        "short",
        "slots",
        "status",
        "submit_ns",
        "torn",
        "variants",
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
        self.variants: list[int] = []
        self.chain: Chain | None = None
        self.paths: dict[int, tuple[int, ...]] = {}
        """By row, the lanes that answered it before the one it is at; rows that never went on have none."""
        self.short: set[int] = set()
        """Rows that keep an answer although they should have gone on."""
        self.marked: tuple[int, ...] = ()
        """Rows that are audited once they are answered (`runtime.audits`)."""
        self.heard: dict[int, Heard] = {}
        """Of rows that went on, by row: the lanes before, with what they said, where that is compared later."""
        self.audit: object | None = None
        """What the answer is compared with, where this is no client's ticket but a second answer."""
        self.torn: tuple[int, ...] = ()
        """Rows whose slot may not hold the answer of the last variant of their path, and that have not been answered
        since: their worker died as it computed them, or they were sent back to an earlier variant."""
        self.phase = OPEN
        self.outstanding = 0
        self.deadline_ns = 0
        self.bucket = 0
        self.deaths = 0
        self.key = 0
        self.min_accuracy = 0.0
        self.energy_j = 0.0
        self.on_done: Callable[[Ticket], None] | None = None
