"""What a server has counted at a moment, as the ledger's collector takes it: sums since the start of the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Amount(NamedTuple):
    """Joules, and grams of CO2e."""

    joules: float
    grams: float


class CellKey(NamedTuple):
    """Where rows were computed: a variant of a model on a slice of a device, for a tenant."""

    model: str
    variant: str
    device: str
    slice: str
    tenant: str


class CellCounts(NamedTuple):
    """Rows answered, and active joules and grams by how they are known."""

    rows: int
    energy: Mapping[str, Amount]


class ModelCounts(NamedTuple):
    """What is counted of a model: joules in receipts by tenant, rows, the sum of the percent expected of each, rows
    with labels and those of them that were right, the SLO in force (0: none), answered requests and those that took
    longer than the SLO of their time, windows in which the SLO was held and missed, and how many latencies were at most
    each of `clover.telemetry.ledger.latency.BOUNDS_MS`."""

    receipts_j: Mapping[str, float]
    rows: int
    accuracy_rows: float
    labelled: int
    right: int
    slo_ms: float
    answered: int
    violations: int
    held: int
    missed: int
    latency: Sequence[int]


class ComparedCounts(NamedTuple):
    """A comparison: rows, what was used and emitted, what the counterfactual would have, rows x percent of both, and
    half of the interval of the grams saved.  `label`: how it is known."""

    label: str
    rows: int
    own: Amount
    shadow: Amount
    own_right: float
    shadow_right: float
    error_g: float


@dataclass(frozen=True)
class Snapshot:
    """All figures at `at_s` (Unix seconds) and `mono_s` (monotonic).  `metered_s`: until when the meter of each device
    has been read (monotonic; now, if it is left out); that of "" is the machine's."""

    at_s: float
    mono_s: float
    lines: Mapping[tuple[str, str], tuple[str, Amount]] = field(default_factory=dict)
    """By device and line: how joules are known now, and the sums."""
    cells: Mapping[CellKey, CellCounts] = field(default_factory=dict)
    idle: Mapping[tuple[str, str, str], Amount] = field(default_factory=dict)
    """By model, variant and label: the idle power of its workers."""
    overheads: Mapping[tuple[str, str, str], Amount] = field(default_factory=dict)
    """By model, line ("front_end" or "control") and label."""
    requests: Mapping[tuple[str, str], Mapping[int, int]] = field(default_factory=dict)
    """By model and tenant: requests by HTTP status."""
    models: Mapping[str, ModelCounts] = field(default_factory=dict)
    compared: Mapping[tuple[str, str, str], ComparedCounts] = field(default_factory=dict)
    """By model, boundary and counterfactual."""
    metered_s: Mapping[str, float] = field(default_factory=dict)


class GridMoment(NamedTuple):
    """The intensity that was in force since the last one, and what the meters of all devices have shown so far, in
    microjoules and nanograms; `key`: zone, provider, signal, scope and how it is known."""

    at_s: float
    mono_s: float
    key: tuple[str, str, str, str, str]
    g_per_kwh: float
    age_s: float
    joules_uj: int
    grams_ng: int
