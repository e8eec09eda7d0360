"""The record of what the controller decided: a ring of the newest decisions with inputs, candidates and reasons.

A controller that can do nothing about what it sees decides the same again and again.  Such a decision takes no place of
its own.  If it equals the last one about its family (in trigger, mode, action, configuration, routing and detail,
whatever the numbers in them), that record is counted up: it keeps its id, its place and its first time, and takes the
newest time, inputs and figures.  An operator's command always has a record of its own.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import msgspec

from clover.types import Decision, Plan

KEPT = 1000

ACTIONS: tuple[str, ...] = get_args(get_type_hints(Decision)["action"])

NOT_DONE = ("failed", "fault", "refused", "rolled back")
"""Actions after which what was asked for is not in force."""

_NUMBER = re.compile(r"(?<![\w.@])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
"""A number that stands alone, unlike those in gpu0 or small@2c."""


@dataclass(frozen=True, kw_only=True)
class DecisionEntry:
    """A decision before it is numbered and dated; the fields are those of `clover.types.Decision`."""

    family: str
    trigger: str
    mode: str
    action: str
    grid_s: float
    inputs: dict[str, float | str | None] = field(default_factory=dict)
    plan: Plan | None = None
    detail: str = ""
    seconds: float = 0.0
    operator: str = ""


class Decisions:
    """The newest `kept` decisions, numbered from 1 without gaps.  `counts` has all decisions ever made, by action."""

    def __init__(self, wall: Callable[[], float], kept: int = KEPT) -> None:
        self.counts = dict.fromkeys(ACTIONS, 0)
        self._wall = wall
        self._ring: deque[Decision] = deque(maxlen=kept)
        self._last = 0

    def record(self, entry: DecisionEntry) -> Decision:
        """Keep one decision, by itself or counted with the last one about its family."""
        at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        decision = msgspec.convert({"id": self._last + 1, "at": at, "last_at": at, **vars(entry)}, Decision)
        self.counts[entry.action] += 1
        before = self.last(entry.family)
        if before is not None and not entry.operator and _alike(before) == _alike(decision):
            decision = msgspec.structs.replace(
                decision, id=before.id, at=before.at, grid_s=before.grid_s, count=before.count + 1
            )
            self._ring[before.id - self._ring[0].id] = decision
            return decision
        self._last += 1
        self._ring.append(decision)
        return decision

    def last(self, family: str) -> Decision | None:
        """Return the newest decision about that family."""
        return next((decision for decision in reversed(self._ring) if decision.family == family), None)

    def records(self, limit: int) -> list[Decision]:
        """Return up to `limit` decisions as they are kept, newest first."""
        return list(itertools.islice(reversed(self._ring), limit))

    def after(self, last: int) -> list[Decision]:
        """Return the kept decisions that are numbered above `last`, oldest first."""
        newer = itertools.takewhile(lambda decision: decision.id > last, reversed(self._ring))
        return [*newer][::-1]

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return up to `limit` decisions as plain objects, newest first."""
        return [msgspec.to_builtins(decision) for decision in self.records(limit)]

    def newest_json(self, limit: int) -> bytes:
        """Return `newest` as JSON, in a third of the time: a thousand large decisions are 20 MB."""
        return msgspec.json.encode(self.records(limit))


def _alike(decision: Decision) -> Hashable:
    """Return what two equal decisions have in common: everything except the numbers in them."""
    return (
        decision.operator,
        _NUMBER.sub("#", decision.trigger),
        decision.mode,
        _NUMBER.sub("#", decision.detail),
        outcome(decision),
    )


def outcome(decision: Decision) -> Hashable:
    """Return the result of a decision, to compare it with another: action, configuration and routing.  A decision that
    kept what runs also kept the routing, whatever its plan's would be."""
    plan = decision.plan
    if plan is None or decision.action == "kept":
        return decision.action, plan.configuration if plan is not None else None
    routing = plan.routing
    return (
        decision.action,
        plan.configuration,
        tuple(sorted((variant, round(share, 3)) for variant, share in routing.shares.items())),
        routing.chain,
        tuple(round(threshold, 3) for threshold in routing.thresholds),
        tuple(sorted(routing.largest.items())),
        tuple(sorted((variant, round(wait_ms, 1)) for variant, wait_ms in routing.wait_ms.items())),
    )
