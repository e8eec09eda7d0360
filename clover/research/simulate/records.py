"""The results of a simulation: frozen records that survive JSON, and the sums over them.

Energies are joules, emissions grams of CO2e, accuracy percent, times milliseconds if a name ends in `_ms`.  Nothing
here was measured: joules are profile energies (`RunManifest.labels` says of which kind) times the rows that were
served.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Literal

import msgspec

from clover.types import Record

SCHEMA = "clover-simulation/1"
JOULES_PER_KWH = 3.6e6
KEPT = ": kept"
"""The end of the trigger of a decision that changed nothing."""
LATE = 0.05
"""The part of the rows that may be later than a p95."""
_ROUNDING = 0.0025  # one of the 400 latencies that stand for a lane: a BASE held to its own p95 holds it

_SUMS = ("seconds", "looks", "rows", "active_j", "idle_j", "active_grams", "grams")
_ALIKE = (
    *("g_per_kwh", "intensity_state", "rate", "accuracy", "p95_ms", "late", "queue_rows"),
    *("awake", "deployment", "shares", "chain"),
)

Accounting = Literal["equal", "artifact"]
"""What BASE is charged for.  "equal": the same load on the same GPUs.  "artifact": a fifth of it on the same GPUs, as
in the paper's public artifact, so that its idle power is spread over a fifth of the requests."""


class ReplayStep(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One step of the ledger: from `at_s` (grid time, Unix seconds) for `seconds`.

    `rate` rows/s arrived, `rows` were served.  `accuracy` is by routed shares, weighted with rows.  `late` is the part
    of the rows that took longer than the SLO, `p95_ms` that of all of them.  `grams` holds active and idle energy, PUE
    included; `active_grams` the active part alone.  `deployment`, `shares` and `chain` (a cascade in words, with its
    thresholds) are those at the end of the step; `awake` counts devices that then draw their full idle power.  `reason`
    is the newest decision's with its trigger, empty if the step brought none; `changes` counts new configurations
    within it, `turned` other thresholds on the same workers.  `looks`: of how many steps it is made (`merged`).
    """

    at_s: float
    seconds: float
    g_per_kwh: float
    intensity_state: str = "fresh"
    rate: float
    rows: float
    accuracy: float
    active_j: float
    idle_j: float
    active_grams: float
    grams: float
    p95_ms: float
    late: float = 0.0
    queue_rows: float = 0.0
    awake: int
    deployment: str
    shares: dict[str, float]
    chain: str = ""
    reason: str = ""
    changes: int = 0
    turned: int = 0
    looks: int = 1


class Totals(Record, frozen=True, kw_only=True):
    """The sums of one run.  `awake` is the mean over its steps; `still` the part of the steps without a new
    configuration."""

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
    awake: float
    turned: int = 0
    still: float = 1.0


class Run(Record, frozen=True, kw_only=True):
    """One family under one policy through one trace.

    `sums` are those of all steps; `steps` may hold merged ones (`merged`) or none.  `plans` counts decisions with a
    plan, `held` those of them whose change was held back, by reason (of the newest 1,000 records).  `limit_grams`: what
    no schedule of plans with this accuracy can undercut (`clover.research.simulate.horizon_bound`), if that is known.
    `confidence`: "parametric" if the scores of answers come from a model and were not measured (`parametric`); empty
    without cascades, or if they were measured.  `beside`: the policy whose accuracy it was given, run by run of the
    same seed if both have several.  `seconds` is wall time, the only field that differs between runs.
    """

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
    steps: tuple[ReplayStep, ...]
    sums: Totals
    plans: int
    held: dict[str, int]
    rollbacks: int
    failed: int
    limit_grams: float | None = None
    beside: str = ""
    confidence: str = ""
    seconds: float = 0.0


class Summary(Record, frozen=True, kw_only=True):
    """A policy against BASE, over all seeds.  Savings are parts (0.5: half) of BASE's emissions for the same rows;
    `active_saving` leaves idle power out, `saving` counts it.  `accuracy_loss` is in points of `accuracy` (percent).
    `p95_ms` is the worst step's; `above` the part of the steps in which more than 5 % of the rows exceed the SLO;
    `late` the part of the rows.  `changes` is the mean number of changes of configuration in a run after the first
    deployment, `turned` that of changes of thresholds on the same workers, `still` the part of the steps without a
    change, `awake` the mean number of devices awake.

    `saving` is that of the mean run; `saving_least`, `saving_most` and `saving_std` (standard deviation) are over the
    seeds.  `limit`: the most that any schedule of plans could save at the accuracy of each run, on average; null if it
    is not known.  `margin`: by how much more it saves than the policy whose accuracy it was given, at the seed at which
    that is least.
    """

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
    awake: float
    saving_least: float
    saving_most: float
    saving_std: float
    limit: float | None = None
    margin: float | None = None
    turned: float = 0.0
    still: float = 1.0
    confidence: str = ""


class RunInput(Record, frozen=True, kw_only=True):
    """Something a simulation was made from; `sha256` of files only."""

    name: str
    kind: Literal["trace", "family", "load"]
    sha256: str
    about: str


class RunManifest(Record, frozen=True, kw_only=True):
    """What it takes to repeat a simulation, and what its numbers are."""

    schema: str
    command: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    made_at: str
    seconds: float
    seeds: int
    arguments: dict[str, str]
    inputs: tuple[RunInput, ...]
    labels: tuple[str, ...]


class Results(Record, frozen=True, kw_only=True):
    """A whole simulation: the content of `results.json`."""

    manifest: RunManifest
    summaries: tuple[Summary, ...]
    runs: tuple[Run, ...]


def merged(steps: Sequence[ReplayStep]) -> tuple[ReplayStep, ...]:
    """Merge equal neighbouring steps, for reports; a look at the grid that changed nothing does not separate them."""
    found: list[ReplayStep] = []
    for step in steps:
        before = found[-1] if found else None
        news = step.reason and not step.reason.partition(";")[0].endswith(KEPT)
        fresh = before is None or news or step.changes or step.turned
        if before is None or fresh or any(getattr(before, name) != getattr(step, name) for name in _ALIKE):
            found.append(step)
            continue
        sums = {name: getattr(before, name) + getattr(step, name) for name in _SUMS}
        found[-1] = msgspec.structs.replace(before, **sums)
    return tuple(found)


def summed(steps: Sequence[ReplayStep]) -> Totals:
    """Return the sums of the steps of a run."""
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
        awake=sum(step.awake for step in steps) / len(steps),
        turned=sum(step.turned for step in steps),
        still=1.0 - sum(step.changes > 0 for step in steps) / sum(step.looks for step in steps),
    )


def summarise(runs: Sequence[Run], bases: Sequence[Run], beside: Sequence[Run] = ()) -> Summary:
    """Sum up the `runs` (one a seed) of a policy against BASE of the same seeds (or the one BASE there is); `beside`
    are the runs of the policy whose accuracy they were given.

    Emissions are compared per row: under "artifact" BASE served another number of rows, and elsewhere a policy that
    leaves rows waiting at the end served a few less.
    """
    first = runs[0]
    by_seed = {run.seed: run for run in bases}
    mine = [run.sums for run in runs]
    theirs = [by_seed.get(run.seed, bases[0]).sums for run in runs]
    limits = [run.limit_grams for run in runs if run.limit_grams is not None]
    savings = [_saving(run, by_seed.get(run.seed, bases[0])) for run in runs]
    rows, base_rows = sum(item.rows for item in mine), sum(item.rows for item in theirs)

    def saved(own: float, base: float) -> float:
        return 1.0 - (own / rows) / (base / base_rows) if rows > 0.0 and base > 0.0 else 0.0

    accuracy = sum(item.accuracy * item.rows for item in mine) / max(rows, 1e-12)
    base_accuracy = sum(item.accuracy * item.rows for item in theirs) / max(base_rows, 1e-12)
    return Summary(
        family=first.family,
        trace=first.trace,
        policy=first.policy,
        accounting=first.accounting,
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
        turned=sum(item.turned for item in mine) / len(mine),
        still=sum(item.still for item in mine) / len(mine),
        grams=sum(item.grams for item in mine) / len(mine),
        energy_j=sum(item.active_j + item.idle_j for item in mine) / len(mine),
        awake=sum(item.awake for item in mine) / len(mine),
        saving_least=min(savings),
        saving_most=max(savings),
        saving_std=stdev(savings) if len(savings) > 1 else 0.0,
        confidence=first.confidence,
        limit=saved(sum(limits), sum(item.grams for item in theirs)) if len(limits) == len(runs) else None,
        margin=_margin(runs, savings, beside, by_seed, bases[0]),
    )


def _saving(run: Run, base: Run) -> float:
    """Return the part of BASE's emissions that one run saves."""
    if run.sums.rows <= 0.0 or base.sums.grams <= 0.0:
        return 0.0
    return 1.0 - (run.sums.grams / run.sums.rows) / (base.sums.grams / base.sums.rows)


def _margin(
    runs: Sequence[Run], savings: Sequence[float], beside: Sequence[Run], bases: dict[int, Run], base: Run
) -> float | None:
    """Return the least by which `runs` save more than the policy beside them: seed by seed, or against its mean if one
    run is compared with many."""
    if not beside:
        return None
    theirs = {run.seed: _saving(run, bases.get(run.seed, base)) for run in beside}
    if len(runs) < len(beside):
        return min(savings) - mean(theirs.values())
    return min(own - theirs[run.seed] for run, own in zip(runs, savings, strict=True))
