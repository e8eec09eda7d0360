"""Rows/s by family and origin: what comes now, what earlier days suggest for the next hours, and whose rows each node
answers.

The rate that is planned for is computed as on one machine (`clover.control.state.arrivals`), from the counts of all
nodes together.  When a node falls silent, its last count still holds for a while: its rows go to other nodes, and
dropping the count before those nodes report them would look like a fall of demand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from clover.cluster.controller.records import SavedDemand
from clover.cluster.planning.records import RegionDemand
from clover.cluster.ports import NodeReport
from clover.control.state.arrivals import ArrivalRate
from clover.planning.budget.forecast import HOUR_S, History, load_forecast

STEP_S = 900.0
"""Seconds between two values of a forecast."""
_WEEKS = 1
_LEAST = 1e-9

Key = tuple[str, str]


class ClusterDemand:
    """The demand of a cluster by (family, origin)."""

    def __init__(self) -> None:
        self._rates: dict[Key, ArrivalRate] = {}
        self._histories: dict[Key, History] = {}
        self._set_back_s = 0.0

    def set_back(self, seconds: float) -> None:
        """Go by a clock that was set back by `seconds`: rates are of time that passes, hours are those of the day."""
        self._set_back_s += seconds

    def record(self, now_s: float, counted: Mapping[Key, float]) -> None:
        """Note what all nodes together counted in the last seconds; what is not named came to 0."""
        for key in [*counted, *(key for key in self._rates if key not in counted)]:
            rate = counted.get(key, 0.0)
            if not (math.isfinite(rate) and rate >= 0.0):
                continue
            self._rates.setdefault(key, ArrivalRate()).record(now_s + self._set_back_s, rate)
            self._histories.setdefault(key, History()).record(now_s, rate)

    def rates(self) -> dict[Key, float]:
        """Return the rows/s to plan for now."""
        return {key: rate.rows_per_s() for key, rate in self._rates.items()}

    def forecast(self, now_s: float, ahead_s: float) -> tuple[RegionDemand, ...]:
        """Return the demand now, with its forecast for the next `ahead_s` seconds."""
        return tuple(
            RegionDemand(
                family=family,
                origin=origin,
                rate=rate.rows_per_s(),
                forecast=self._forecast((family, origin), now_s, ahead_s, rate.rows_per_s()),
            )
            for (family, origin), rate in self._rates.items()
            if rate.rows_per_s() > _LEAST or len(self._histories[family, origin])
        )

    def _forecast(self, key: Key, now_s: float, ahead_s: float, rate: float) -> tuple[tuple[float, float], ...]:
        hour = math.floor(now_s / HOUR_S)
        count = math.ceil((now_s + ahead_s) / HOUR_S) - hour + 1
        hours = load_forecast(self._histories[key], hour, rate, count)
        middles = (hour - 0.5 + np.arange(count + 1)) * HOUR_S
        times = now_s + STEP_S * np.arange(1, math.ceil(ahead_s / STEP_S) + 1)
        rates = np.interp(times, middles, hours)
        return tuple(zip(times.tolist(), rates.tolist(), strict=True))

    def snapshot(self) -> tuple[SavedDemand, ...]:
        """Return what a file keeps: the newest rates and the hours of a week."""
        return tuple(
            SavedDemand(
                family=key[0], origin=key[1], rate=rate.rows_per_s(), history=self._histories[key].saved(_WEEKS)
            )
            for key, rate in self._rates.items()
        )

    def restore(self, saved: Iterable[SavedDemand], now_s: float) -> None:
        """Take up what was kept; ValueError if it is no demand."""
        for item in saved:
            key = (item.family, item.origin)
            self._histories.setdefault(key, History()).restore(item.history)
            if item.rate > 0.0:
                self._rates.setdefault(key, ArrivalRate()).record(now_s, item.rate, math.inf)


class OriginShares:
    """The requests of each node by region since the last look, from counters that may begin anew.

    A node counts rows by family and does not know its clients' regions.  The ingress knows how many requests of each
    region it gave to which node, and does not know their rows.  So a node's rows/s of a family are shared out in
    proportion to the requests that it was given of each region since the last look.  That is exact if the requests of
    all regions have as many rows on average; if they do not, the error is in the shares of regions and never in the
    sum."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}
        self._shares: dict[str, dict[str, float]] = {}

    def record(self, requests: Mapping[str, Mapping[str, int]]) -> None:
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
