"""Plain counters of a front end, for the metrics to read."""

from __future__ import annotations


class HttpStats:
    """Totals since the start, except `open_connections`.  `requests` counts answers by status code."""

    __slots__ = (
        "_fine",
        "_others",
        "accepted_connections",
        "deadlines_missed",
        "dropped_connections",
        "failed_handshakes",
        "held_requests",
        "malformed",
        "open_connections",
        "received_bytes",
        "refused_connections",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.open_connections = 0
        self.accepted_connections = 0
        self.refused_connections = 0
        self.malformed = 0
        self.deadlines_missed = 0
        self.dropped_connections = 0
        self.failed_handshakes = 0
        self.held_requests = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._fine = 0
        self._others: dict[int, int] = {}

    def answered(self, status: int) -> None:
        """Count an answer."""
        if status == 200:
            self._fine += 1
        else:
            self._others[status] = self._others.get(status, 0) + 1

    @property
    def requests(self) -> dict[int, int]:
        """Answers by status."""
        return ({200: self._fine} if self._fine else {}) | self._others
