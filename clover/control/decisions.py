"""The record of what the controller decided: a ring of the newest decisions with inputs, candidates and reasons."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import msgspec

from clover.types import Decision, Plan

KEPT = 1000

ACTIONS: tuple[str, ...] = get_args(get_type_hints(Decision)["action"])


class Decisions:
    """Newest last; numbered from 1 without gaps."""

    def __init__(self, wall: Callable[[], float], kept: int = KEPT) -> None:
        self.counts = dict.fromkeys(ACTIONS, 0)
        self._wall = wall
        self._ring: deque[Decision] = deque(maxlen=kept)
        self._last = 0

    def record(
        self,
        *,
        family: str,
        trigger: str,
        mode: str,
        action: str,
        grid_s: float,
        inputs: dict[str, float | str | None] | None = None,
        plan: Plan | None = None,
        detail: str = "",
        seconds: float = 0.0,
        operator: str = "",
    ) -> Decision:
        """Keep one decision."""
        self._last += 1
        decision = msgspec.convert(
            {
                "id": self._last,
                "at": datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds"),
                "grid_s": grid_s,
                "family": family,
                "trigger": trigger,
                "mode": mode,
                "inputs": inputs or {},
                "plan": plan,
                "action": action,
                "detail": detail,
                "seconds": seconds,
                "operator": operator,
            },
            Decision,
        )
        self.counts[action] += 1
        self._ring.append(decision)
        return decision

    def last(self, family: str) -> Decision | None:
        """The newest decision on that family."""
        return next((decision for decision in reversed(self._ring) if decision.family == family), None)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` decisions as plain objects, newest first."""
        found: list[dict[str, Any]] = []
        for decision in reversed(self._ring):
            if len(found) >= limit:
                break
            found.append(msgspec.to_builtins(decision))
        return found
