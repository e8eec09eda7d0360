"""Plain counters of the gRPC front end, for the metrics to read."""

from __future__ import annotations

from collections import Counter


class GrpcStats:
    """Totals since the start; `calls` counts ended calls by gRPC's name of their code, and the answers of streams as
    calls of their own."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.open_calls = 0
        """Calls that are being handled now."""

    def record_answer(self, code: str) -> None:
        """Count the end of a call."""
        self.calls[code] += 1
