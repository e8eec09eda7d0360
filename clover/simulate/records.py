"""What a simulation leaves behind: frozen records that survive JSON, and the sums over them.

Energies are joules, emissions grams of CO2e, accuracy percent, times milliseconds where a name ends in `_ms`.  Nothing
here was measured: joules are profile energies (`Manifest.labels` says of which kind) times the rows that were served.
"""

from __future__ import annotations

from typing import Literal

from clover.types import Record

SCHEMA = "clover-simulation/1"
JOULES_PER_KWH = 3.6e6
LATE = 0.05
"""The part of the rows that a p95 leaves later."""
_ROUNDING = 0.0025  # one of the 400 latencies that stand for a lane: a BASE held to its own p95 holds it

Accounting = Literal["equal", "artifact"]
"""What BASE is charged for.  "equal": the same load on the same GPUs.  "artifact": a fifth of it on the same GPUs, as
in the paper's public artifact, so that its idle power is spread over a fifth of the requests."""


class Step(Record, frozen=True, kw_only=True):
    """One step of the ledger: from `at_s` (grid time, Unix seconds) for `seconds`.

    `rate` rows/s arrived, `rows` were served.  `accuracy` is by routed shares, weighted with rows.  `late` is the part
    of the rows that took longer than the SLO, `p95_ms` that of all of them.  `grams` holds active and idle energy, PUE
    included; `active_grams` the active part alone.  `deployment` and `shares` are those at the end of the step;
    `reason` is the newest decision's with its trigger, empty where the step brought none; `changes` counts new
    configurations within it.
    """

    at_s: float
    seconds: float
    g_per_kwh: float
    intensity_state: str
    rate: float
    rows: float
    accuracy: float
    active_j: float
    idle_j: float
    active_grams: float
    grams: float
    p95_ms: float
    late: float
    queue_rows: float
    awake: int
    deployment: str
    shares: dict[str, float]
    reason: str
    changes: int


class Run(Record, frozen=True, kw_only=True):
    """One family under one policy through one trace.  `plans` counts decisions with a plan, `held` those of them in
    which a change was held back, by why (of the newest 1,000 decisions); `seconds` is wall time, the only field that
    differs from run to run."""

    family: str
    trace: str
    load: str
    policy: str
    seed: int
    accounting: Accounting
    gpus: int
    slo_ms: float
    accuracy_floor: float
    lam: float
    steps: tuple[Step, ...]
    plans: int
    held: dict[str, int]
    rollbacks: int
    failed: int
    seconds: float = 0.0


class Totals(Record, frozen=True, kw_only=True):
    """The sums of one run."""

    rows: float
    active_j: float
    idle_j: float
    active_grams: float
    grams: float
    accuracy: float
    p95_ms: float
    late: float
    above: float
    changes: int


class Summary(Record, frozen=True, kw_only=True):
    """A policy against BASE, over all seeds.  Savings are parts (0.5: half) of BASE's emissions for the same rows;
    `active_saving` leaves idle power out, `saving` counts it.  `accuracy_loss` is in points of `accuracy` (percent).
    `p95_ms` is the worst step's; `above` the part of the steps in which
    more than 5 % of the rows exceed the SLO; `late` the part of the rows.
    `changes` is the mean number of changes of configuration a run after the first deployment."""

    family: str
    trace: str
    policy: str
    accounting: Accounting
    seeds: int
    saving: float
    active_saving: float
    accuracy: float
    accuracy_loss: float
    p95_ms: float
    slo_ms: float
    above: float
    late: float
    changes: float
    grams: float
    energy_j: float


class Input(Record, frozen=True, kw_only=True):
    """Something a simulation was made from: its SHA-256 where it is a file."""

    name: str
    kind: Literal["trace", "family", "load"]
    sha256: str
    about: str


class Manifest(Record, frozen=True, kw_only=True):
    """What it takes to run it again, and what its numbers are."""

    schema: str
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    made_at: str
    seconds: float
    seeds: int
    arguments: dict[str, str]
    inputs: tuple[Input, ...]
    labels: tuple[str, ...]


class Results(Record, frozen=True, kw_only=True):
    """Everything: `results.json`."""

    manifest: Manifest
    summaries: tuple[Summary, ...]
    runs: tuple[Run, ...]


def totals(run: Run) -> Totals:
    """The sums of a run."""
    steps = run.steps
    rows = sum(step.rows for step in steps)
    weight = max(rows, 1e-12)
    return Totals(
        rows=rows,
        active_j=sum(step.active_j for step in steps),
        idle_j=sum(step.idle_j for step in steps),
        active_grams=sum(step.active_grams for step in steps),
        grams=sum(step.grams for step in steps),
        accuracy=sum(step.rows * step.accuracy for step in steps) / weight,
        p95_ms=max(step.p95_ms for step in steps),
        late=sum(step.rows * step.late for step in steps) / weight,
        above=sum(step.late > LATE + _ROUNDING for step in steps) / len(steps),
        changes=sum(step.changes for step in steps),
    )


def summarise(runs: list[Run], bases: dict[tuple[int, Accounting], Run], about: Accounting) -> Summary:
    """`runs` (one a seed) of a policy beside BASE of the same seeds (or the one BASE there is) under `about`.

    Emissions are compared a row: under "artifact" BASE served another number of rows, and elsewhere a policy that
    lets rows wait at the end served a few less.
    """
    first = runs[0]
    mine = [totals(run) for run in runs]
    theirs = [totals(bases.get((run.seed, about)) or bases[0, about]) for run in runs]
    rows, base_rows = sum(item.rows for item in mine), sum(item.rows for item in theirs)

    def saved(own: float, base: float) -> float:
        return 1.0 - (own / rows) / (base / base_rows) if rows > 0.0 and base > 0.0 else 0.0

    accuracy = sum(item.accuracy * item.rows for item in mine) / max(rows, 1e-12)
    base_accuracy = sum(item.accuracy * item.rows for item in theirs) / max(base_rows, 1e-12)
    return Summary(
        family=first.family,
        trace=first.trace,
        policy=first.policy,
        accounting=about,
        seeds=len(runs),
        saving=saved(sum(item.grams for item in mine), sum(item.grams for item in theirs)),
        active_saving=saved(sum(item.active_grams for item in mine), sum(item.active_grams for item in theirs)),
        accuracy=accuracy,
        accuracy_loss=base_accuracy - accuracy,
        p95_ms=max(item.p95_ms for item in mine),
        slo_ms=first.slo_ms,
        above=sum(item.above for item in mine) / len(mine),
        late=sum(item.late * item.rows for item in mine) / max(rows, 1e-12),
        changes=sum(item.changes for item in mine) / len(mine),
        grams=sum(item.grams for item in mine) / len(mine),
        energy_j=sum(item.active_j + item.idle_j for item in mine) / len(mine),
    )
