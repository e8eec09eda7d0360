"""The rows of a ledger as readers get them: in joules (`_j`), grams of CO2e (`_g`), seconds and percent.

Every row of a span has `start` (Unix seconds, UTC) and `length` (60, 3600 or 86400 s, or what the reader asked for).
`label` says how joules are known: measured, modelled or emulated.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from clover.telemetry.ledger.latency import decode, quantile_ms

Known = Literal["live", "estimated", "bridged", "configured", "replayed", "synthetic", "unknown"]
"""How an intensity is known: recorded by a provider for this time; the provider's own estimate; a last good value, a
forecast or a mean of past days that stands in; a number from the configuration; of another time; a formula; the source
does not say."""

EventKind = Literal["decision", "transition", "provider", "configuration", "fault", "operator", "control"]


class SpanRow(msgspec.Struct, frozen=True):
    """What all rows of spans begin with."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The time (Unix seconds) at which the span ends."""
        return self.start + self.length


class UsageRow(SpanRow, frozen=True):
    """What a variant of a model did and used on a slice, for a tenant ('': no tenants).

    What belongs to no worker stands in a row with an empty variant, device and slice: requests and outcomes, the
    model's part of front end and control, and the joules of its receipts.  So the sum over all rows of a model is all
    that is the model's.  `limited` are answers 429, `client_errors` other 4xx.
    """

    model: str
    variant: str
    device: str
    slice: str
    tenant: str
    label: str
    requests: int
    ok: int
    client_errors: int
    limited: int
    server_errors: int
    rows: int
    active_j: float
    idle_j: float
    front_end_j: float
    control_j: float
    receipts_j: float
    active_g: float
    idle_g: float
    front_end_g: float
    control_g: float

    @property
    def joules(self) -> float:
        """All joules that are the model's here; `receipts_j` are a part of them, as billed to clients."""
        return self.active_j + self.idle_j + self.front_end_j + self.control_j

    @property
    def grams(self) -> float:
        """Grams of these joules."""
        return self.active_g + self.idle_g + self.front_end_g + self.control_g


class LineRow(SpanRow, frozen=True):
    """One line of the account of a device (`clover.accounting.devices.LINES`)."""

    device: str
    line: str
    label: str
    joules: float
    grams: float


class GridRow(SpanRow, frozen=True):
    """A carbon intensity that was in force for `seconds` of the span, and what was used and emitted meanwhile;
    `net_g`: without the PUE.  `age_s` is the mean age of the readings, `age_max_s` the greatest."""

    zone: str
    provider: str
    signal: str
    scope: str
    known: str
    seconds: float
    g_per_kwh_time: float
    """Mean intensity (gCO2e/kWh) over time."""
    age_s: float
    age_max_s: float
    joules: float
    net_g: float
    grams: float


class QualityRow(SpanRow, frozen=True):
    """Accuracy and latency of a model while its SLO was `slo_ms` (0: none).

    `accuracy_rows`: the sum over `rows` of the percent expected of each answer.  `violations`: of `requests` answered,
    those that took longer than the SLO.  `held`, `missed`: windows of ten seconds whose p95 was within the SLO or not.
    """

    model: str
    slo_ms: float
    rows: int
    accuracy_rows: float
    labelled: int
    labelled_right: int
    requests: int
    violations: int
    held: int
    missed: int
    latency: str
    """A histogram as text (`clover.telemetry.ledger.latency`)."""

    @property
    def accuracy(self) -> float | None:
        """The accuracy (percent) served, by the profile; None without rows."""
        return self.accuracy_rows / self.rows if self.rows else None

    @property
    def labelled_accuracy(self) -> float | None:
        """The accuracy (percent) by labels of clients; None without any."""
        return 100.0 * self.labelled_right / self.labelled if self.labelled else None

    def quantile_ms(self, q: float) -> float | None:
        """Return a quantile of the latency in milliseconds (estimated from buckets); None without requests."""
        return quantile_ms(decode(self.latency), q)


class SavedRow(SpanRow, frozen=True):
    """A comparison within a boundary: what was used and emitted for `rows` rows, and what the counterfactual `against`
    would have: `base`, `fixed` (the best fixed mix at the accuracy that was served), or `at once` (batch jobs
    without waiting).  `error_g` is half of the 95 % interval of the grams saved."""

    model: str
    boundary: str
    against: str
    label: str
    rows: int
    own_j: float
    own_g: float
    shadow_j: float
    shadow_g: float
    own_accuracy_rows: float
    shadow_accuracy_rows: float
    error_g: float

    @property
    def saved_j(self) -> float:
        """Joules saved; negative if more were used."""
        return self.shadow_j - self.own_j

    @property
    def saved_g(self) -> float:
        """Grams saved; negative if more were emitted."""
        return self.shadow_g - self.own_g

    @property
    def accuracy_given_up(self) -> float | None:
        """Percentage points by which the counterfactual is more accurate; None without rows."""
        return (self.shadow_accuracy_rows - self.own_accuracy_rows) / self.rows if self.rows else None


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened at `at` (Unix seconds) in a run; `detail` is JSON."""

    at: float
    kind: str
    model: str
    summary: str
    detail: str = "{}"
    run: int = 0


class RunRow(msgspec.Struct, frozen=True):
    """One start of the server: until when it is known to have run (`seen`), and when it ended (None: it runs, or was
    killed).  `configuration` is JSON without secrets, `digest` its SHA-256; `facts` is JSON of what figures were made
    with: PUE, hardware, how far meters may be off."""

    id: int
    started: float
    seen: float
    ended: float | None
    version: str
    host: str
    pid: int
    digest: str
    configuration: str
    facts: str


class KeptProfile(msgspec.Struct, frozen=True):
    """A profile that a model was served with, first at `at`; `content` is JSON: variants with accuracy and joules."""

    digest: str
    model: str
    at: float
    content: str


class LedgerSums(msgspec.Struct, frozen=True):
    """All of a time together: joules and grams are those of the devices' meters, and `seconds` those for which the
    grid's intensity is known, which are those in which a server ran."""

    seconds: float = 0.0
    requests: int = 0
    rows: int = 0
    joules: float = 0.0
    grams: float = 0.0
    joules_by_label: dict[str, float] = {}
    grams_by_known: dict[str, float] = {}
