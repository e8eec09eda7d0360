"""Plain counters of a front end, for the metrics to read."""

from __future__ import annotations


class HttpStats:
    """Totals since the start, except `open_connections`.  `requests` counts answers by status code."""

    __slots__ = (
        "accepted_connections",
        "deadlines_missed",
        "malformed",
        "open_connections",
        "received_bytes",
        "refused_connections",
        "requests",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.open_connections = 0
        self.accepted_connections = 0
        self.refused_connections = 0
        self.malformed = 0
        self.deadlines_missed = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.requests: dict[int, int] = {}
