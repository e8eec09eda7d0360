"""Metrics of the HTTP front end: connections, bytes, answers and what was refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class HttpLike(Protocol):
    """The front end's counters."""

    open_connections: int
    accepted_connections: int
    refused_connections: int
    malformed: int
    deadlines_missed: int
    received_bytes: int
    sent_bytes: int

    @property
    def requests(self) -> dict[int, int]: ...


def served(stats: HttpLike) -> Iterator[Metric]:
    """Yield every metric of the front end, read now."""
    yield GaugeMetricFamily("clover_http_connections", "Connections that are open now", value=stats.open_connections)
    for name, text, value in (
        ("accepted_connections", "Connections accepted", stats.accepted_connections),
        ("refused_connections", "Connections refused because too many were open", stats.refused_connections),
        ("malformed", "Requests refused because they are not valid HTTP", stats.malformed),
        ("deadlines_missed", "Connections closed because the client was too slow", stats.deadlines_missed),
        ("received_bytes", "Bytes received", stats.received_bytes),
        ("sent_bytes", "Bytes sent", stats.sent_bytes),
    ):
        yield CounterMetricFamily(f"clover_http_{name}", text, value=value)
    answers = CounterMetricFamily("clover_http_answers", "HTTP answers by status code", labels=("code",))
    for code, count in stats.requests.items():
        answers.add_metric((str(code),), count)
    yield answers
