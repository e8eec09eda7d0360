"""One accuracy budget for the whole cluster: what nodes report is summed, and the floor of plans is corrected by it.

A plan promises a mean accuracy; what nodes answer differs from it, because a node holds its own floor with a margin of
its own, or serves with less for a while after a loss.  With R rows and A accuracy-rows within the horizon (older ones
fade with it), the rows are short of the floor by

    debt = floor x R - A        in points x rows

and the floor of the next plans is moved by debt / (rate x `correct_s`), so that a debt is made good within that time.
A credit is spent the same way, which is what makes this a budget and not only a floor.  The correction is bounded.

Counters of a node grow until its server starts again (`NodeReport.started_s`); what it counted before is kept in the
sums.  A node that does not answer loses nothing: its counters are read when it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clover.cluster.controller.records import SavedCounter, SavedSums
from clover.cluster.ports import FamilyReport, NodeReport

MOST = 1.0
"""Points that a floor is moved by at most."""


@dataclass
class FamilySums:
    """Sums of one family: `rows` and `accuracy_rows` fade with the horizon, the others do not."""

    at_s: float
    rows: float = 0.0
    accuracy_rows: float = 0.0
    all_rows: float = 0.0
    joules: float = 0.0
    grams: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy within the horizon, in points; None before the first row."""
        return self.accuracy_rows / self.rows if self.rows > 0.0 else None


class AccuracyBudget:
    """The sums of all families over all nodes, and the corrected floors.  `horizon_s` as `ClusterTerms.budget_s`."""

    def __init__(self, horizon_s: float, correct_s: float) -> None:
        self._horizon_s = horizon_s
        self._correct_s = correct_s
        self.sums: dict[str, FamilySums] = {}
        self._counters: dict[str, dict[str, SavedCounter]] = {}
        self.power: dict[str, tuple[float, float]] = {}
        """Watts and grams/h by node that reported, as its counters grew of late."""
        self._noted_s: float | None = None
        self._since_s: float | None = None
        """Rows that were answered before then by a server that is older are nothing of this budget."""

    def record(self, now_s: float, reports: Mapping[str, NodeReport]) -> None:
        """Add what nodes counted since they were last asked."""
        self._since_s = now_s if self._since_s is None else self._since_s
        for sums in self.sums.values():
            faded = math.exp(-max(0.0, now_s - sums.at_s) / self._horizon_s)
            sums.rows *= faded
            sums.accuracy_rows *= faded
            sums.at_s = now_s
        since_s = 0.0 if self._noted_s is None else now_s - self._noted_s
        self._noted_s = now_s
        power = {}
        for name, report in reports.items():
            grown = [self._add(now_s, name, report.started_s, family) for family in report.families]
            if since_s > 0.0:
                watts = sum(joules for joules, _ in grown) / since_s
                grams_h = sum(grams for _, grams in grown) / since_s * 3600.0
                before = self.power.get(name, (watts, grams_h))
                power[name] = (0.5 * (watts + before[0]), 0.5 * (grams_h + before[1]))
        self.power = power if since_s > 0.0 else self.power

    def _add(self, now_s: float, node: str, started_s: float, report: FamilyReport) -> tuple[float, float]:
        """Add what one family counted on one node; return the joules and grams that are new."""
        counters = self._counters.setdefault(node, {})
        before = counters.get(report.family)
        newest = SavedCounter(
            started_s=started_s,
            rows=float(report.rows),
            accuracy_rows=report.accuracy_rows,
            joules=report.joules,
            grams=report.grams,
        )
        if before is not None and before.started_s == started_s and newest.rows < before.rows:
            return 0.0, 0.0  # an older report that came late
        counters[report.family] = newest
        sums = self.sums.setdefault(report.family, FamilySums(now_s))
        if before is None and started_s < (self._since_s or 0.0):
            before = newest
        if before is None or before.started_s != started_s:
            before = SavedCounter(started_s=started_s, rows=0.0, accuracy_rows=0.0, joules=0.0, grams=0.0)
        rows = newest.rows - before.rows
        sums.rows += rows
        sums.all_rows += rows
        sums.accuracy_rows += newest.accuracy_rows - before.accuracy_rows
        joules, grams = max(0.0, newest.joules - before.joules), max(0.0, newest.grams - before.grams)
        sums.joules += joules
        sums.grams += grams
        return joules, grams

    def corrected(self, family: str, floor: float, rate: float, highest: float) -> float:
        """Return the floor to plan for at `rate` rows/s; `highest`: the most accurate operating point."""
        sums = self.sums.get(family)
        if sums is None or sums.rows <= 0.0 or rate <= 0.0:
            return floor
        debt = floor * sums.rows - sums.accuracy_rows
        moved = debt / (rate * self._correct_s)
        return min(floor + max(-MOST, min(MOST, moved)), max(floor, highest))

    @property
    def grams(self) -> float:
        """Grams that nodes reported, of all families."""
        return sum(sums.grams for sums in self.sums.values())

    @property
    def joules(self) -> float:
        """Joules that nodes reported, of all families."""
        return sum(sums.joules for sums in self.sums.values())

    @property
    def rows(self) -> float:
        """Rows that nodes answered, of all families."""
        return sum(sums.all_rows for sums in self.sums.values())

    def snapshot(self) -> tuple[dict[str, dict[str, SavedCounter]], dict[str, SavedSums]]:
        """Return what a file keeps: the newest counters by node and family, and the sums by family."""
        return self._counters, {name: SavedSums(**vars(sums)) for name, sums in self.sums.items()}

    def restore(
        self, counters: Mapping[str, Mapping[str, SavedCounter]], sums: Mapping[str, SavedSums], at_s: float
    ) -> None:
        """Take up what was kept at `at_s`."""
        self._since_s = at_s
        self._counters = {node: dict(counter) for node, counter in counters.items()}
        self.sums = {
            name: FamilySums(
                counter.at_s, counter.rows, counter.accuracy_rows, counter.all_rows, counter.joules, counter.grams
            )
            for name, counter in sums.items()
        }

    def forget(self, known: Iterable[str]) -> None:
        """Forget the counters of nodes that are not `known` any more; what they counted stays in the sums."""
        kept = set(known)
        self._counters = {node: counter for node, counter in self._counters.items() if node in kept}
