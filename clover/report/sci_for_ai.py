"""The consumer report of SCI for AI (Green Software Foundation): SCI = C / R of running a model, with the fields of its
template.

C is operation (O = E x I) and embodied carbon (M) over the period, R is one inference: a row answered, once, whatever
variants a cascade asked for it.  The provider's score (designing and training the models) is another one, never added.
Ours map to the template's words: published intensities are `sourced`, counters `measured`, all else `modeled`.  What is
emulated stands for no hardware, and an invented grid for no grid: no report is issued of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo

import msgspec

from clover.errors import CloverError
from clover.report.calendar import time_words
from clover.report.records import Factor, GramsRange, KnownPart, Report, ReportedApplication
from clover.report.wording import basis, duration, energy, headline, mass, number, parts_words, percent, period_words
from clover.types import Record

SCHEMA = "clover-sci-for-ai/1"
STATED = ("name", "version", "description", "url", "organisation", "accountable", "contact")
"""Fields that only the operator can fill in: the settings `[report]`."""
UNIT = "gCO2e per inference"
FUNCTIONAL_UNIT = "one inference: one row (one item, as an image or a text) that was answered"
RATIONALE = (
    "Classifying and scoring models answer items, and requests carry one or more of them; the energy of an answer "
    "follows the items, not the requests.  All model calls that one answer took, as the stages of a cascade, are in "
    "its C and count once in R."
)
_COMPONENTS = {
    "active": "inference: computing answers",
    "front_end": "API: HTTP front end and forming batches",
    "control": "orchestration, scaling and observability: planning, measuring, starting workers, audits",
    "idle": "inference: idle power of what workers hold",
    "awake": "inference: what keeping GPUs awake draws beyond that",
    "unowned": "scaling: idle power of what no worker holds",
}


class SciRefused(CloverError):
    """No SCI for AI report can be issued of this period; the text says why, and what to do."""


class SciPart(Record, frozen=True, kw_only=True):
    """One part of a score, in grams per inference and in all."""

    name: str
    term: str
    grams: float
    per_unit_g: float
    part: float


class SciMethod(Record, frozen=True, kw_only=True):
    """How one of C, O, M, E, I, R is known: `sourced`, `measured` or `modeled`, and how that was done."""

    term: str
    name: str
    method: str
    about: str
    value: str


class SciForAi(Record, frozen=True, kw_only=True):
    """The report; `manifest` is the carbon report that it follows from, whose seal it has."""

    schema: str = SCHEMA
    score: str = "consumer"
    sci: GramsRange
    unit: str = UNIT
    breakdown: tuple[SciPart, ...]
    application: ReportedApplication
    missing: tuple[str, ...]
    measured: str
    timespan: str
    summary: str
    functional_unit: str = FUNCTIONAL_UNIT
    rationale: str = RATIONALE
    insights: tuple[str, ...]
    methodology: tuple[SciMethod, ...]
    coefficients: tuple[Factor, ...]
    boundary: str
    manifest: Report


def sci_for_ai(report: Report, zone: tzinfo) -> SciForAi:
    """Return the consumer report.  Raises SciRefused if the period has emulated energy, an invented grid, hardware of
    unknown embodied carbon, or no answers."""
    if why := refusal(report):
        raise SciRefused(why)
    sci, embodied = report.sci, report.embodied
    if sci is None or embodied is None:  # `refusal` says so
        raise SciRefused("the score is unknown")
    return SciForAi(
        sci=sci,
        breakdown=tuple(_parts(report, sci.grams)),
        application=report.application,
        missing=tuple(field for field in STATED if not getattr(report.application, field)),
        measured=time_words(report.made, zone),
        timespan=period_words(report, zone),
        summary=" ".join(f"{head}: {text}" for head, text in headline(report, zone)[:-1]),
        insights=tuple(_insights(report)),
        methodology=tuple(_methods(report, embodied)),
        coefficients=(*_intensities(report), *report.inputs.factors),
        boundary=report.boundary_about,
        manifest=report,
    )


def refusal(report: Report) -> str:
    """Return why no report can be issued, and what to do; empty if one can."""
    emulated = _part(report.energy_known, "emulated")
    if emulated or any(item.known == "emulated" for item in report.hardware):
        what = f"{percent(emulated)} of the period's energy" if emulated else "the hardware of the period"
        return (
            f"{what} is emulated: such hardware drew nothing, and the standard has no word for it. Choose a period "
            "without emulated GPUs (--from, --to)"
        )
    if invented := _part(report.intensity_known, "synthetic"):
        return (
            f"{percent(invented)} of the period's energy was priced on an invented grid (synthetic): serve with a real "
            "source (--carbon), or choose a period with one (--from, --to)"
        )
    if not report.rows:
        return "no row was answered in the period: there is no unit to divide by. Choose another (--from, --to)"
    if report.embodied is None:
        names = ", ".join(f"{item.device} ({item.product})" for item in report.hardware if item.range is None)
        return (
            f"the embodied carbon of {names or 'the hardware'} is unknown, and with it the score: set embodied.gpu_kg "
            "or embodied.machine_kg for the server"
        )
    return ""


def _part(parts: Sequence[KnownPart], name: str) -> float:
    return sum(item.part for item in parts if item.name == name)


def _parts(report: Report, whole_g: float) -> Iterator[SciPart]:
    """Yield the score one level deep: operation by line of the account, embodied by hardware.  They sum to it."""
    found = [(_COMPONENTS.get(line.line, line.line), "O", line.grams) for line in report.lines if line.counted]
    found += [
        (f"hardware: {item.device} ({item.product})", "M", item.range.grams)
        for item in report.hardware
        if item.range is not None
    ]
    for name, term, grams in found:
        each = grams / report.rows
        yield SciPart(name=name, term=term, grams=grams, per_unit_g=each, part=each / whole_g if whole_g else 0.0)


def _methods(report: Report, embodied: GramsRange) -> Iterator[SciMethod]:
    energies, intensities = parts_words(report.energy_known), parts_words(report.intensity_known)
    measured = {item.name for item in report.energy_known} == {"measured"}
    published = {item.name for item in report.intensity_known} <= {"live"}
    cited = {item.known for item in report.hardware} == {"cited default"}
    pue = "" if report.pue is None else f", times a PUE of {report.pue:g}"
    hardware = "; ".join(f"{item.device}: {item.source} ({item.known})" for item in report.hardware)
    both = "modeled"
    whole = "O + M over the timespan, all of the consumer's stages that Clover runs"
    found = (
        ("C", "carbon", both, whole, mass(report.operation.grams + embodied.grams)),
        (
            "O",
            "operation",
            "measured" if measured and published else both,
            f"the energy of each minute at the intensity of that minute{pue}",
            mass(report.operation.grams),
        ),
        (
            "M",
            "embodied carbon",
            "sourced" if cited else both,
            f"TE x (time reserved / expected life) x (reserved / whole). {hardware}",
            mass(embodied.grams),
        ),
        ("E", "energy", "measured" if measured else both, f"by energy: {energies}", energy(report.joules)),
        (
            "I",
            "carbon intensity",
            "sourced" if published else both,
            f"{basis(report)}, by energy: {intensities}",
            _mean(report),
        ),
        ("R", "functional unit", "measured", "answers counted by the server", f"{number(report.rows)} inferences"),
    )
    for term, name, method, about, value in found:
        yield SciMethod(term=term, name=name, method=method, about=about, value=value)


def _mean(report: Report) -> str:
    if not report.facility_joules:
        return "unknown"
    return f"{report.operation.grams * 3.6e6 / report.facility_joules:.4g} gCO2e/kWh, mean by energy"


def _intensities(report: Report) -> Iterator[Factor]:
    for grid in report.grids:
        if grid.known == "configured":
            continue  # it is a factor of the carbon report
        yield Factor(
            name=f"I of {grid.zone or 'the grid'}, {grid.known}",
            about=f"mean by energy over {duration(grid.seconds)}; {grid.signal}, {grid.scope}",
            value=grid.g_per_kwh,
            unit="gCO2e/kWh",
            source=grid.provider,
        )


def _insights(report: Report) -> Iterator[str]:
    """Yield what the figures suggest to do."""
    whole = report.operation.grams
    counted = [line for line in report.lines if line.counted]
    if counted and whole > 0.0:
        most = max(counted, key=lambda line: line.grams)
        yield f"{percent(most.grams / whole)} of operation is {_COMPONENTS.get(most.line, most.line)}."
    if report.embodied is not None and (total := report.total) is not None and total.grams > 0.0:
        part = percent(report.embodied.grams / total.grams)
        yield f"{part} of the carbon is embodied: it grows with time, not with load."
    for item in report.saved:
        if item.part is not None and item.against in ("fixed", "base"):
            verb = "less" if item.saved.grams >= 0.0 else "more"
            part = percent(abs(item.part))
            yield f"{part} {verb} was emitted in operation than by {item.name}, over the rows compared."


def decode(text: bytes) -> SciForAi:
    """Return the report that JSON holds.  Raises msgspec.DecodeError (or ValidationError)."""
    return msgspec.json.decode(text, type=SciForAi)
