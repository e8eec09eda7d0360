"""Whose rows a node answers: its families' rates, shared out by where the ingress had its requests from.

A node counts rows by family and does not know its clients' regions.  The ingress knows how many requests of each region
it gave to which node, and does not know their rows.  So a node's rows/s of a family are shared out in proportion to the
requests that it was given of each region since the last look.  That is exact if the requests of all regions have as
many rows on average; if they do not, the error is in the shares of regions and never in the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from clover.cluster.ports import NodeReport


class OriginShares:
    """The requests of each node by region since the last look, from counters that may begin anew."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}
        self._shares: dict[str, dict[str, float]] = {}

    def look(self, requests: Mapping[str, Mapping[str, int]]) -> None:
        """Take note of `requests`, by region and node, as counted since the ingress started."""
        counts = {(origin, node): count for origin, nodes in requests.items() for node, count in nodes.items()}
        grown: dict[str, dict[str, int]] = {}
        for (origin, node), count in counts.items():
            last = self._last.get((origin, node), 0)
            grown.setdefault(node, {})[origin] = count - last if count >= last else count
        self._last = counts
        for node, by_origin in grown.items():
            total = sum(by_origin.values())
            if total:  # without requests, the shares of before are the best that is known
                self._shares[node] = {origin: count / total for origin, count in by_origin.items()}
        for node in self._shares.keys() - grown.keys():
            del self._shares[node]

    def shared(self, reports: Mapping[str, NodeReport]) -> dict[str, NodeReport]:
        """Return the reports with the rates of their families by region; a node that the ingress gave nothing to keeps
        what it says itself."""
        return {name: self._shared(report) for name, report in reports.items()}

    def _shared(self, report: NodeReport) -> NodeReport:
        shares = self._shares.get(report.node.name)
        if not shares:
            return report
        families = tuple(
            msgspec.structs.replace(
                family,
                rates={origin: share * sum(family.rates.values()) for origin, share in shares.items() if share > 0.0},
            )
            for family in report.families
        )
        return msgspec.structs.replace(report, families=families)
