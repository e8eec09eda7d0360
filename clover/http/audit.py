"""The audit log: who made which call that changes the server, when, and what came of it, refused ones included.

Its newest records are kept for `GET /v2/clover/audit`, and each is written to the ledger, if one is kept, which
remembers them over restarts.  A record names the bearer of a token by the token's name, never by the token, and no
address.

Anybody can send a call that is refused for want of rights, so at most `_REFUSED` such records are made in a minute.
Further ones are counted, and the next record says how many there were.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from clover.config import ServerConfig
from clover.grants import Grants

RECORDS = 1000
"""The newest records that are kept here."""
_WAITING = 4096
"""Records that wait for the ledger at most; beyond it the oldest are left out, and counted."""
_REFUSED = 60
_MINUTE_S = 60.0
_ARGUMENT_BYTES = 1024
_NO_RIGHT = (401, 403)


class AuditRecord(msgspec.Struct, frozen=True):
    """One call: `at` in Unix seconds; `who` made it (a token's name, a tenant, `local`, the control socket, SIGHUP, a
    process that takes over, or `unknown`) and by which `door`; its arguments as JSON; the `status` of its answer and
    the error's text; and how many refused calls before it have no record of their own."""

    id: int
    at: float
    who: str
    door: str
    call: str
    model: str
    arguments: str
    status: int
    error: str = ""
    unrecorded: int = 0


class AuditLog:
    """Takes note of calls."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.records: deque[AuditRecord] = deque(maxlen=RECORDS)
        self.calls = 0
        self.refused = 0
        """Calls of those who had no right to make them."""
        self.left_out = 0
        """Records that did not reach the ledger, because it did not take them in time."""
        self._wall = wall
        self._waiting: deque[AuditRecord] = deque(maxlen=_WAITING)
        self._minute_s = 0.0
        self._in_minute = 0
        self._unrecorded = 0

    def record(
        self,
        who: str,
        door: str,
        call: str,
        *,
        model: str = "",
        arguments: Mapping[str, Any] | None = None,
        status: int = 200,
        error: str = "",
    ) -> None:
        """Note a call that was answered with an HTTP status; `error` is the text that its client got."""
        self.calls += 1
        at_s = self._wall()
        if status in _NO_RIGHT:
            self.refused += 1
            if not self._minute_s <= at_s < self._minute_s + _MINUTE_S:
                self._minute_s, self._in_minute = at_s, 0
            self._in_minute += 1
            if self._in_minute > _REFUSED:
                self._unrecorded += 1
                return
        record = AuditRecord(
            self.calls,
            at_s,
            who or "unknown",
            door,
            call,
            model,
            _shorten(arguments),
            status,
            error,
            self._unrecorded,
        )
        self._unrecorded = 0
        self.records.append(record)
        if len(self._waiting) == _WAITING:
            self.left_out += 1
        self._waiting.append(record)

    def take(self) -> list[AuditRecord]:
        """Return the records since the last call, for the ledger."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest records first, ready for JSON."""
        records = list(self.records)[-limit:]
        return [msgspec.to_builtins(record) for record in reversed(records)]


@dataclass(frozen=True)
class Operators:
    """Those who look after a server: what their tokens permit, and what they did."""

    grants: Grants
    audit: AuditLog = field(default_factory=AuditLog)

    @classmethod
    def from_config(cls, config: ServerConfig) -> Operators:
        """Return those of a configuration."""
        return cls(Grants(config.listen.token, config.tokens))


def _shorten(arguments: Mapping[str, Any] | None) -> str:
    """Return arguments as JSON of a bounded length."""
    if not arguments:
        return ""
    try:
        text = orjson.dumps(arguments).decode()
    except (TypeError, ValueError):
        return "..."
    return text if len(text) <= _ARGUMENT_BYTES else f"{text[:_ARGUMENT_BYTES]}..."
