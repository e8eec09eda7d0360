"""A carbon report as data: frozen records that survive JSON.  Every renderer draws on these and calculates nothing.

Joules are those of the computers, grams are CO2e with the overhead of the data centre (PUE) in them, times are Unix
seconds (UTC), parts are of one.  None: not known, or not stated.
"""

from __future__ import annotations

from typing import Literal

from clover.types import Record

SCHEMA = "clover-report/1"

By = Literal["hour", "day", "month", "model", "variant", "device", "tenant"]


class GramsRange(Record, frozen=True, kw_only=True):
    """Grams with the least and the most that they may be; see `Report.intervals` for how both are formed."""

    grams: float
    low_g: float
    high_g: float


class ReportPeriod(Record, frozen=True, kw_only=True):
    """The time that is reported on: from `start` to `end`, of which `recorded_s` seconds are in the ledger, whose
    entries of this period cover `finest_s` to `coarsest_s` seconds each (0: there are none)."""

    start: float
    end: float
    recorded_s: float
    finest_s: int
    coarsest_s: int
    zone: str
    edges: str = ""
    """In words, if the period had to be moved to whole entries; else empty."""

    @property
    def recorded(self) -> float:
        """The part of the period that is in the ledger."""
        return self.recorded_s / (self.end - self.start) if self.end > self.start else 0.0


class KnownPart(Record, frozen=True, kw_only=True):
    """How energy, or the intensity that it was priced at, is known: `joules`, and which part that is of all."""

    name: str
    joules: float
    part: float
    about: str


class LineFigure(Record, frozen=True, kw_only=True):
    """One line of the account; `counted`: it lies within the boundary of the report."""

    line: str
    about: str
    joules: float
    grams: float
    counted: bool


class BoundaryFigure(Record, frozen=True, kw_only=True):
    """What was emitted within one boundary; `why` says why it is unknown, if it is."""

    boundary: str
    about: str
    joules: float | None
    grams: float | None
    why: str = ""


class EmbodiedFigures(Record, frozen=True, kw_only=True):
    """Embodied carbon of one piece of hardware: `kg` in all, the grams charged for this period, and how these follow.

    `kg` and `range` are None if nobody published a figure.
    """

    device: str
    product: str
    kg: float | None
    reserved: float
    total: float
    seconds: float
    life_years: float
    known: str
    source: str
    range: GramsRange | None


class GridFigure(Record, frozen=True, kw_only=True):
    """The intensity of one provider's zone: mean by energy and by time in g/kWh, and for how long it was used."""

    provider: str
    zone: str
    signal: str
    scope: str
    known: str
    seconds: float
    joules: float
    g_per_kwh: float | None
    by_time_g_per_kwh: float | None
    oldest_s: float


class SavedFigure(Record, frozen=True, kw_only=True):
    """What was saved against one counterfactual, within the boundary of the report; below zero: more was emitted.

    `own_g` are the grams of the same models over the same time.  Accuracies are percent, weighted by rows;
    `given_up_points` is what was lost by it.  `meaning` says in a few words what a saving against it shows.
    `part` is None if fewer than `clover.accounting.boundaries.LEAST_ROWS` rows were compared.  `part_of_emitted`: which
    part of all that was emitted was compared.
    """

    against: str
    name: str
    meaning: str
    about: str
    label: str
    own_j: float
    own_g: float
    other_j: float
    other_g: float
    saved: GramsRange
    part: float | None
    accuracy: float | None
    other_accuracy: float | None
    rows: int
    part_of_emitted: float

    @property
    def given_up_points(self) -> float | None:
        """Percentage points of accuracy given up; below zero: gained."""
        if self.accuracy is None or self.other_accuracy is None:
            return None
        return self.other_accuracy - self.accuracy


class ReportBucket(Record, frozen=True, kw_only=True):
    """One hour, day, month, model, variant, device or tenant.

    Of models, variants and tenants, `own_*` is the energy of computing their rows, and `shared_*` their part of all
    else within the boundary.  `grams` is the sum of both.  `start` and `seconds`, how long was recorded, are of times
    only; requests are not counted by variant and device (None).
    """

    name: str
    start: float | None = None
    seconds: float = 0.0
    requests: int | None = 0
    rows: int = 0
    joules: float = 0.0
    grams: float = 0.0
    own_j: float = 0.0
    own_g: float = 0.0
    shared_j: float = 0.0
    shared_g: float = 0.0
    market_g: float | None = None
    g_per_kwh: float | None = None


class Breakdown(Record, frozen=True, kw_only=True):
    """The report's grams by one thing; the buckets sum to the total.  `about`: the rule by which they were split."""

    by: By
    about: str
    buckets: tuple[ReportBucket, ...]


class QualityFigure(Record, frozen=True, kw_only=True):
    """How well a model answered: accuracy by profile and, of `labelled` rows, by labels (percent), and its SLO (None:
    it had none, or several), which `violations` of its `requests` missed."""

    model: str
    rows: int
    accuracy: float | None
    labelled: int
    labelled_accuracy: float | None
    slo_ms: float | None
    requests: int
    violations: int


class Gap(Record, frozen=True, kw_only=True):
    """Time of the period without figures (`what` is "record"), or without a live intensity ("intensity")."""

    what: Literal["record", "intensity"]
    start: float
    seconds: float
    reason: str


class RunFigure(Record, frozen=True, kw_only=True):
    """A start of the server: which version, with which configuration."""

    started: float
    version: str
    configuration: str
    """sha256 of the configuration."""
    host: str


class ProfileFigure(Record, frozen=True, kw_only=True):
    """The profile of a model that plans and savings were calculated with."""

    model: str
    digest: str


class Factor(Record, frozen=True, kw_only=True):
    """A number that the figures follow from, with its unit and where it is from."""

    name: str
    about: str
    value: float | None
    unit: str
    source: str


class Inputs(Record, frozen=True, kw_only=True):
    """All that the figures follow from.  `entries` counts the entries of the ledger, `entries_sha256` is of them."""

    runs: tuple[RunFigure, ...]
    profiles: tuple[ProfileFigure, ...]
    factors: tuple[Factor, ...]
    entries: int
    entries_sha256: str


class ReportedApplication(Record, frozen=True, kw_only=True):
    """What is reported on, and who reports: the settings `[report]`."""

    name: str = ""
    organisation: str = ""


class Report(Record, frozen=True, kw_only=True):
    """A carbon report.

    `operation` is location-based, `market_g` market-based (None: no factor was given).  `embodied` is None if it is
    not known of some hardware.  `sci_g` is gCO2e for each row answered.
    """

    schema: str = SCHEMA
    clover: str
    made: float
    server: str
    application: ReportedApplication
    period: ReportPeriod
    boundary: str
    boundary_about: str
    requests: int
    rows: int
    joules: float
    facility_joules: float
    pue: float | None
    operation: GramsRange
    market_g: float | None
    market_g_per_kwh: float | None
    embodied: GramsRange | None
    hardware: tuple[EmbodiedFigures, ...]
    sci: GramsRange | None
    lines: tuple[LineFigure, ...]
    boundaries: tuple[BoundaryFigure, ...]
    energy_known: tuple[KnownPart, ...]
    intensity_known: tuple[KnownPart, ...]
    intervals: tuple[str, ...]
    grids: tuple[GridFigure, ...]
    saved: tuple[SavedFigure, ...]
    quality: tuple[QualityFigure, ...]
    breakdowns: tuple[Breakdown, ...]
    gaps: tuple[Gap, ...]
    inputs: Inputs

    @property
    def total(self) -> GramsRange | None:
        """Operation and embodied together; None if either is unknown."""
        if self.embodied is None:
            return None
        return GramsRange(
            grams=self.operation.grams + self.embodied.grams,
            low_g=self.operation.low_g + self.embodied.low_g,
            high_g=self.operation.high_g + self.embodied.high_g,
        )

    @property
    def missing_s(self) -> float:
        """Seconds of the period that lie in entries and are not recorded: the server started or ended there."""
        gaps = sum(gap.seconds for gap in self.gaps if gap.what == "record")
        return max(self.period.end - self.period.start - self.period.recorded_s - gaps, 0.0)

    def breakdown(self, by: By) -> Breakdown:
        """Return the grams by `by`; KeyError if this report does not have it."""
        for found in self.breakdowns:
            if found.by == by:
                return found
        raise KeyError(by)
