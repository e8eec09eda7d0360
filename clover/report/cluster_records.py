"""The report of several servers together, as data.

Joules and grams that are added are whole microjoules (`_uj`) and nanograms of CO2e (`_ng`), as the ledgers keep them:
whole numbers add exactly, so that lines of nodes, of regions and of every breakdown sum to the total to the last digit.
"""

from __future__ import annotations

from typing import Literal

from clover.report.records import KnownPart, QualityFigure, Report, ReportedApplication, SavedFigure
from clover.types import Record

CLUSTER_SCHEMA = "clover-cluster-report/1"

ClusterBy = Literal["node", "region", "hour", "day", "month", "model", "variant", "device", "tenant"]


class ClusterLine(Record, frozen=True, kw_only=True):
    """One node, region, hour, model or other part of what was used, within the boundary of the report.

    `low_ng` to `high_ng` is the interval of `grams_ng` (location-based); None for breakdowns, whose parts have none.
    `market_ng`: None if no factor was given.  `embodied_ng`: the share of making the hardware, None if it is unknown or
    if it is not split this way.  `g_per_kwh`: mean over the energy, the data centre's overhead included; None if
    unknown.  `requests`: None if they are not counted this way.
    """

    name: str
    requests: int | None
    rows: int
    joules_uj: int
    grams_ng: int
    low_ng: int | None = None
    high_ng: int | None = None
    market_ng: int | None = None
    embodied_ng: int | None = None
    g_per_kwh: float | None = None
    start: float | None = None


class ReportedNode(Record, frozen=True, kw_only=True):
    """One server: its ledger's name, its region, how much of the period its ledger has, and what it used.

    `why` says why there is nothing of it, if so; then its line has zeros.  `grid`: the intensities that it was priced
    at, in words.  `edges`: in words, if its period had to be moved to whole entries.
    """

    line: ClusterLine
    region: str
    recorded_s: float
    gap_s: float
    grid: str
    edges: str = ""
    why: str = ""


class ReportedRegion(Record, frozen=True, kw_only=True):
    """One region: the sum of its nodes."""

    line: ClusterLine
    nodes: int


class ClusterBreakdown(Record, frozen=True, kw_only=True):
    """The electricity of all nodes by one thing; the lines sum to the total."""

    by: ClusterBy
    about: str
    lines: tuple[ClusterLine, ...]


class ClusterReport(Record, frozen=True, kw_only=True):
    """The carbon report of several servers, from the reports of each, which it carries.

    `saved` adds up what each server saved against counterfactuals *on its own machine*; what sharing demand between
    machines brings is not in it (`clover.cluster.planning`).
    """

    schema: str = CLUSTER_SCHEMA
    clover: str
    made: float
    application: ReportedApplication
    start: float
    end: float
    zone: str
    edges: str
    boundary: str
    boundary_about: str
    total: ClusterLine
    nodes: tuple[ReportedNode, ...]
    regions: tuple[ReportedRegion, ...]
    breakdowns: tuple[ClusterBreakdown, ...]
    saved: tuple[SavedFigure, ...]
    quality: tuple[QualityFigure, ...]
    energy_known: tuple[KnownPart, ...]
    intensity_known: tuple[KnownPart, ...]
    cautions: tuple[str, ...]
    reports: tuple[Report, ...]

    @property
    def sci_g(self) -> float | None:
        """Grams of operation and hardware for each row answered; None if the hardware's are unknown."""
        if self.total.embodied_ng is None or not self.total.rows:
            return None
        return (self.total.grams_ng + self.total.embodied_ng) / 1e9 / self.total.rows

    def breakdown(self, by: ClusterBy) -> ClusterBreakdown:
        """Return the lines by `by`; KeyError if this report does not have them."""
        for found in self.breakdowns:
            if found.by == by:
                return found
        raise KeyError(by)
