"""From the rows of a ledger to a report: pure, without a clock or a file.

Every figure is a sum of rows.  Operation is the grams of the account's lines within the boundary `server`
(`clover.accounting.boundaries`), as the ledger priced them minute by minute.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo

import msgspec

from clover._version import __version__
from clover.accounting.boundaries import BOUNDARIES, DEFAULT, WITHIN, Boundary
from clover.report.breakdowns import BreakdownRules, breakdowns_of
from clover.report.coverage import energy_parts, grids_of, intensity_gaps, intensity_parts, record_gaps, recorded_s
from clover.report.facts import RunTimes, configuration_of, embodied_of, embodied_sum, energy_range, facts_of
from clover.report.records import (
    BoundaryFigure,
    EmbodiedFigures,
    Factor,
    GramsRange,
    GridFigure,
    Inputs,
    LineFigure,
    ProfileFigure,
    QualityFigure,
    Report,
    ReportedApplication,
    ReportPeriod,
    RunFigure,
)
from clover.report.savings import savings_of
from clover.report.wording import duration
from clover.telemetry.ledger.rows import (
    EventRow,
    GridRow,
    KeptProfile,
    LineRow,
    QualityRow,
    RunRow,
    SavedRow,
    UsageRow,
)

JOULES_PER_KWH = 3.6e6
BOUNDARY_ABOUT: Mapping[Boundary, str] = {
    "workers": "the variants at work, and the idle power of the cores and slices that they hold",
    "server": (
        "all that this server uses on the machine: variants at work, its front end, its control (planning, measuring, "
        "starts), and the idle power of its cores and slices, with the data centre's overhead (PUE)"
    ),
    "machine": "all that the meters of the machine saw, other programs included",
}
NOT_COVERED = (
    "Not in it: clients and networks, storage and other services that requests pass through, training of the models, "
    "and whatever the PUE leaves out of the data centre."
)
LINE_ABOUT = {
    "active": "computing answers to live requests",
    "waiting": "computing the rows of batch jobs",
    "front_end": "HTTP and forming batches",
    "control": "planning, measuring, starting and loading workers, answers that no client gets (audits)",
    "idle": "idle power of cores and slices while workers computed on them",
    "idle_no_request": "idle power of cores and slices that workers hold, while nobody asked",
    "awake": "what GPUs draw beyond idle power because workers have a context on them",
    "unowned": "idle power of this server's cores and slices that no worker holds, as of a core kept for HTTP",
    "foreign": "idle power of cores that are not this server's",
    "unattributed": "active energy of other programs, or that could not be attributed",
    "carried": "idle energy counted beyond what was measured, made up for later (at most zero)",
}


@dataclass(frozen=True)
class LedgerRows:
    """What a ledger has of a period.  `grid_minutes`: the intensities in the shortest spans that are kept, which show
    the gaps; all others may be put together into hours."""

    usage: Sequence[UsageRow] = ()
    lines: Sequence[LineRow] = ()
    grid: Sequence[GridRow] = ()
    grid_minutes: Sequence[GridRow] = ()
    quality: Sequence[QualityRow] = ()
    saved: Sequence[SavedRow] = ()
    events: Sequence[EventRow] = ()
    runs: Sequence[RunRow] = ()
    profiles: Sequence[KeptProfile] = ()


@dataclass(frozen=True)
class ReportOptions:
    """What is asked for: the period (Unix seconds), when and of which server the report is made, the market-based
    factor with its source, and the zone of days and months."""

    start: float
    end: float
    made: float
    server: str = ""
    application: ReportedApplication = field(default_factory=ReportedApplication)
    market_g_per_kwh: float | None = None
    market_source: str = ""
    zone: tzinfo = UTC
    zone_name: str = "UTC"
    edges: str = ""
    """In words, if the period is not the one that was asked for."""


def report_of(rows: LedgerRows, options: ReportOptions) -> Report:
    """Return the report of a period."""
    times, pue_at = RunTimes(rows.runs), pue_by_time(rows.grid, rows.runs)
    counted = WITHIN[DEFAULT]
    within = [row for row in rows.lines if row.line in counted]
    operation = energy_range(within, times)
    joules = sum(row.joules for row in within)
    pues = [(row.joules, pue_at(row.start)) for row in within]
    facility_j = sum(part_j * pue for part_j, pue in pues if pue is not None)
    pue_known = all(pue is not None for _, pue in pues)
    market = options.market_g_per_kwh if pue_known else None
    hardware = embodied_of(rows.grid, times)
    embodied = embodied_sum(hardware)
    answered = sum(row.rows for row in rows.usage)
    energy: dict[str, float] = defaultdict(float)
    for row in within:
        energy[row.label] += row.joules
    rules = BreakdownRules(counted, pue_at, market, options.zone, _recorded_seconds(rows))
    return Report(
        clover=__version__,
        made=options.made,
        server=options.server,
        application=options.application,
        period=_period(rows, options),
        boundary=DEFAULT,
        boundary_about=f"{BOUNDARY_ABOUT[DEFAULT]}. {NOT_COVERED}",
        requests=sum(row.requests for row in rows.usage),
        rows=answered,
        joules=joules,
        facility_joules=facility_j if pue_known else joules,
        pue=facility_j / joules if pue_known and joules > 0.0 else None,
        operation=operation,
        market_g=None if market is None else facility_j / JOULES_PER_KWH * market,
        market_g_per_kwh=market,
        embodied=embodied,
        hardware=hardware or (),
        sci=_sci(operation, embodied, answered),
        lines=_lines(rows.lines, counted),
        boundaries=tuple(_boundary(name, rows.lines) for name in BOUNDARIES),
        energy_known=energy_parts(energy),
        intensity_known=intensity_parts(rows.grid),
        intervals=_intervals(hardware),
        grids=grids_of(rows.grid),
        saved=savings_of(rows.saved, DEFAULT, operation.grams),
        quality=_quality(rows.quality),
        breakdowns=breakdowns_of(rows.usage, rows.lines, rules),
        gaps=(
            *record_gaps(options.start, options.end, _spans(rows), rows.runs, rows.events),
            *intensity_gaps(rows.grid_minutes or rows.grid, rows.events),
        ),
        inputs=_inputs(rows, options, hardware, facility_j / joules if pue_known and joules > 0.0 else None),
    )


def _spans(rows: LedgerRows) -> dict[int, int]:
    """Return the length by start of all spans that are recorded."""
    return {row.start: row.length for row in rows.grid_minutes or rows.lines}


def _recorded_seconds(rows: LedgerRows) -> Mapping[int, float]:
    """Return how many seconds are recorded of each entry, by its start: those of which the intensity is known; of a
    ledger that has no intensities, all."""
    return recorded_s(rows.grid) if rows.grid else {start: float(length) for start, length in _spans(rows).items()}


def _period(rows: LedgerRows, options: ReportOptions) -> ReportPeriod:
    spans = _spans(rows)
    return ReportPeriod(
        start=options.start,
        end=options.end,
        recorded_s=sum(_recorded_seconds(rows).values()),
        finest_s=min(spans.values(), default=0),
        coarsest_s=max(spans.values(), default=0),
        zone=options.zone_name,
        edges=options.edges,
    )


def pue_by_time(grid: Iterable[GridRow], runs: Sequence[RunRow]) -> Callable[[float], float | None]:
    """Return a function from the start of a span to the PUE that its grams were calculated with; None: not known."""
    net: dict[int, float] = defaultdict(float)
    grams: dict[int, float] = defaultdict(float)
    for row in grid:
        net[row.start] += row.net_g
        grams[row.start] += row.grams
    pues = [pue for run in runs if (pue := _pue_of(run)) is not None]
    stated = pues[-1] if pues and len(set(pues)) == 1 else None

    def at(start: float) -> float | None:
        whole = net.get(int(start), 0.0)
        return grams[int(start)] / whole if whole > 0.0 else stated

    return at


def _pue_of(run: RunRow) -> float | None:
    """Return the PUE of a run, as it noted or as it was configured."""
    noted = facts_of(run).pue
    if noted is not None:
        return noted
    carbon = configuration_of(run).get("carbon")
    pue = carbon.get("pue") if isinstance(carbon, dict) else None
    return float(pue) if isinstance(pue, int | float) else None


def _sci(operation: GramsRange, embodied: GramsRange | None, rows: int) -> GramsRange | None:
    """Return SCI = (O + M) / R, in grams a row; None if M is unknown or nothing was answered."""
    if embodied is None or not rows:
        return None
    return GramsRange(
        grams=(operation.grams + embodied.grams) / rows,
        low_g=(operation.low_g + embodied.low_g) / rows,
        high_g=(operation.high_g + embodied.high_g) / rows,
    )


def _lines(lines: Iterable[LineRow], counted: Collection[str]) -> tuple[LineFigure, ...]:
    """Return the lines of the account over all devices."""
    joules: dict[str, float] = dict.fromkeys(LINE_ABOUT, 0.0)
    grams: dict[str, float] = dict.fromkeys(LINE_ABOUT, 0.0)
    for row in lines:
        joules[row.line] = joules.get(row.line, 0.0) + row.joules
        grams[row.line] = grams.get(row.line, 0.0) + row.grams
    return tuple(
        LineFigure(line=line, about=LINE_ABOUT.get(line, ""), joules=used, grams=grams[line], counted=line in counted)
        for line, used in joules.items()
        if used or grams[line] or line in counted
    )


def _boundary(name: Boundary, lines: Sequence[LineRow]) -> BoundaryFigure:
    """Return what was emitted within a boundary; a model stands in for a counter only within the server's."""
    if name == "machine" and any(row.label == "modelled" for row in lines):
        return BoundaryFigure(
            boundary=name,
            about=BOUNDARY_ABOUT[name],
            joules=None,
            grams=None,
            why="a model stands in for a meter, and sees no other program",
        )
    within = [row for row in lines if row.line in WITHIN[name]]
    return BoundaryFigure(
        boundary=name,
        about=BOUNDARY_ABOUT[name],
        joules=sum(row.joules for row in within),
        grams=sum(row.grams for row in within),
    )


def _intervals(hardware: Sequence[EmbodiedFigures] | None) -> tuple[str, ...]:
    """Return how the intervals of the report are formed, in sentences."""
    sentences = [
        (
            "Electricity: each device's energy may be off by what its meter says of itself, else by 5 % if a counter "
            "measured it and by 50 % if it is modelled; errors of devices and minutes are added, as if all were "
            "off the same way."
        ),
        (
            "Savings, 95 %: errors of what the other side would have taken, of the ratio of meter and model, and of "
            "the meter, formed minute by minute while serving and added."
        ),
        "Not in any interval: errors of the carbon intensity itself, for which providers state none.",
    ]
    if hardware and any(item.range is not None for item in hardware):
        sentences.insert(1, "Hardware: from the lowest to the highest published figure for such hardware.")
    return tuple(sentences)


def _quality(rows: Iterable[QualityRow]) -> tuple[QualityFigure, ...]:
    rows_by_model: dict[str, list[QualityRow]] = defaultdict(list)
    for row in rows:
        rows_by_model[row.model].append(row)
    return tuple(_model_quality(model, own) for model, own in sorted(rows_by_model.items()))


def _model_quality(model: str, rows: Sequence[QualityRow]) -> QualityFigure:
    count, labelled = sum(row.rows for row in rows), sum(row.labelled for row in rows)
    accurate = sum(row.accuracy_rows for row in rows)  # 0 until the model's first profile, which counts them again
    slos = {row.slo_ms for row in rows if row.slo_ms}
    return QualityFigure(
        model=model,
        rows=count,
        accuracy=accurate / count if accurate else None,
        labelled=labelled,
        labelled_accuracy=100.0 * sum(row.labelled_right for row in rows) / labelled if labelled else None,
        slo_ms=slos.pop() if len(slos) == 1 else None,
        requests=sum(row.requests for row in rows),
        violations=sum(row.violations for row in rows),
    )


def _inputs(
    rows: LedgerRows, options: ReportOptions, hardware: Sequence[EmbodiedFigures] | None, pue: float | None
) -> Inputs:
    tables = (rows.usage, rows.lines, rows.grid, rows.quality, rows.saved)
    return Inputs(
        runs=tuple(
            RunFigure(started=run.started, version=run.version, configuration=run.digest, host=run.host)
            for run in rows.runs
        ),
        profiles=tuple(ProfileFigure(model=row.model, digest=row.digest) for row in rows.profiles),
        factors=tuple(_factors(options, grids_of(rows.grid), hardware or (), pue)),
        entries=sum(map(len, tables)),
        entries_sha256=hashlib.sha256(msgspec.json.encode(tables)).hexdigest(),
    )


def _factors(
    options: ReportOptions, grids: Iterable[GridFigure], hardware: Sequence[EmbodiedFigures], pue: float | None
) -> Iterable[Factor]:
    yield Factor(
        name="PUE",
        about="energy of the whole data centre by that of its computers",
        value=pue,
        unit="1",
        source="setting carbon.pue; mean over the period by energy",
    )
    for grid in grids:
        if grid.known == "configured":
            stated = "source, static:G" if grid.provider == "static" else "configured_g_per_kwh, 400 unless set"
            yield Factor(
                name=f"configured intensity of {grid.provider} {grid.zone}".strip(),
                about=f"gCO2e/kWh, mean over the {duration(grid.seconds)} in which it was in force",
                value=grid.by_time_g_per_kwh,
                unit="gCO2e/kWh",
                source=f"setting carbon.{stated}",
            )
    if options.market_g_per_kwh is not None:
        yield Factor(
            name="market-based intensity",
            about="gCO2e/kWh of the electricity that was contracted",
            value=options.market_g_per_kwh,
            unit="gCO2e/kWh",
            source=options.market_source or "stated by the operator without a source",
        )
    for item in hardware:
        yield Factor(
            name=f"TE of {item.device}",
            about=f"embodied carbon of {item.product}",
            value=item.kg,
            unit="kgCO2e",
            source=f"{item.source} ({item.known})",
        )
        yield Factor(
            name=f"EL of {item.device}",
            about="expected life",
            value=item.life_years,
            unit="years",
            source="setting embodied.life_years",
        )
