"""Requests and rows of one family by tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class TenantCounts:
    """What one tenant sent to a family: requests by HTTP status, rows answered by lane, and requests that were refused
    because it was over its own rate (`limited`, which `requests` has as 429, too)."""

    __slots__ = ("limited", "requests", "rows")

    def __init__(self, lanes: int) -> None:
        self.requests: dict[int, int] = {}
        self.rows = [0] * lanes
        self.limited = 0

    def count(self, status: int) -> None:
        """Count a request that has ended with an HTTP status."""
        self.requests[status] = self.requests.get(status, 0) + 1


@dataclass(frozen=True)
class TenantTotals:
    """What a tenant sent to a family and what that cost; the tenant with the empty name is whoever is none.

    `requests` by HTTP status, `rows` answered by variant, `limited` requests refused because the tenant was over its
    own rate; active joules and grams, of which the latest second may be missing, and how these are known."""

    requests: Mapping[int, int]
    rows: Mapping[str, int]
    limited: int = 0
    active_j: float = 0.0
    active_g: float = 0.0
    method: str = ""
    grams_method: str = ""
