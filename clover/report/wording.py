"""A report in sentences and cells, which all renderers share."""

from __future__ import annotations

from datetime import tzinfo

from clover.accounting.boundaries import LEAST_ROWS, LIGHT_PART, TOO_LITTLE, where_words
from clover.hints import duration as short_duration
from clover.hints import program
from clover.quantities import grams
from clover.report.calendar import offsets_of, time_words, whole_hours
from clover.report.records import By, Gap, GramsRange, GridFigure, KnownPart, Report, SavedFigure
from clover.telemetry.ledger.schema import DAY_S, HOUR_S

JOULES_PER_KWH = 3.6e6
_UNITS = ((1e9, "GWh"), (1e6, "MWh"), (1e3, "kWh"), (1.0, "Wh"), (1e-3, "mWh"), (1e-6, "µWh"))
AT_ONCE = "at once"
"""What waiting rows are compared with."""
_ALMOST_ALL = 0.95
_LEAST_MISSING_S = 2.0
"""Seconds that may be missing without a word, as clocks and flushes have them."""
_IDLE = ("idle", "idle_no_request", "awake", "unowned")
_LEAST_POINTS = 0.005
"""Points of accuracy from which on a difference is stated: figures are rounded to that."""


def duration(seconds: float) -> str:
    """Return "25 s", "1 h 20 min", or from two days on "7 days" or "2 days 5 h"."""
    days, hours = divmod(round(seconds / 3600.0), 24)
    if seconds < 48 * 3600.0:
        return short_duration(seconds).removesuffix(" 0 s").removesuffix(" 0 min")
    return f"{days} days {hours} h" if hours else f"{days} days"


def energy(joules: float) -> str:
    """Return energy to three digits in a unit that reads well, as "25.6 kWh"."""
    watt_hours = joules / 3600.0
    size = abs(watt_hours)
    if size == 0.0:
        return "0 Wh"
    scale, unit = next((item for item in _UNITS if size >= 0.9995 * item[0]), _UNITS[-1])
    return f"{watt_hours / scale:.3g} {unit}"


def mass(value: float | None) -> str:
    """Return grams of CO2e in a unit that reads well; "unknown" for None."""
    return "unknown" if value is None else grams(value)


def span(value: GramsRange, joint: str = "to") -> str:
    """Return the interval of grams, as "8.1 kg to 12 kg"."""
    return f"{grams(value.low_g)} {joint} {grams(value.high_g)}"


def percent(part: float) -> str:
    """Return a part of one as percent: "0 %", "< 0.1 %", "12.3 %", "100 %"."""
    if part == 0.0:
        return "0 %"
    if 0.0 < abs(part) < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= part < 1.0:
        return "> 99.9 %"
    return f"{100.0 * part:.1f} %".replace(".0 %", " %")


def number(value: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,}"


def least_part(report: Report) -> float:
    """Return the least part of the emissions that a comparison of variants covers; 1 without any."""
    return min((item.part_of_emitted for item in report.saved if item.against != AT_ONCE), default=1.0)


def headline(report: Report, zone: tzinfo) -> tuple[tuple[str, str], ...]:
    """Return the answers of a report: how much, where it went, saved against what, how sure, where are gaps.  If there
    was too little load to save on, this comes first."""
    light = light_words(report)
    return (
        *((("Load", f"{light}."),) if light else ()),
        ("Emitted", _emitted_words(report)),
        *((("Where", f"{where}."),) if (where := where_of(report)) else ()),
        (
            "Saved",
            f"Not said of such a load: `{program()} report --comparisons`." if light else _saved_sentence(report),
        ),
        *(("Waiting", _waited_words(item)) for item in report.saved if item.against == AT_ONCE),
        ("How sure", _sure(report)),
        ("Gaps", _gaps(report, zone)),
    )


def period_words(report: Report, zone: tzinfo) -> str:
    """Return the period in words, with the part of it that is recorded."""
    period = report.period
    start, end = time_words(period.start, zone), time_words(period.end, zone)
    return f"{start} to {end} ({duration(period.end - period.start)}), {percent(period.recorded)} of it recorded"


def _emitted_words(report: Report) -> str:
    if not report.joules and not report.rows:
        return "Nothing is recorded of this period."
    operation, facility = report.operation.grams, report.facility_joules
    overhead = f"; {energy(facility)} with the data centre's overhead (PUE {report.pue:g})" if report.pue else ""
    # Of the electricity that the whole data centre drew for it.
    mean = f", at {operation * JOULES_PER_KWH / facility:.0f} g/kWh" if facility > 0.0 else ""
    electricity = f"{mass(operation)} CO2e from electricity ({energy(report.joules)}{overhead}{mean})"
    if (total := report.total) is None or report.embodied is None:
        text = f"{electricity}. The share of making the hardware is unknown and not in it"
    else:
        text = (
            f"{mass(total.grams)} CO2e: {electricity}, and {mass(report.embodied.grams)} as the share of making the "
            "hardware"
        )
    return f"{text}. {_served_words(report)}"


def light_words(report: Report) -> str:
    """Return a sentence if there was too little load to save on; else empty.  The ledger does not say how few cores
    would do; `ctl state` does."""
    joules = {item.line: item.joules for item in report.lines if item.counted}
    idle_j = sum(joules.get(line, 0.0) for line in _IDLE)
    if not report.joules or idle_j < LIGHT_PART * report.joules:
        return ""
    return f"{TOO_LITTLE}: idle is {percent(idle_j / report.joules)} of the energy"


def where_of(report: Report) -> str:
    """Return where the grams of the machine went, in words; empty without any.  A model sees no other program."""
    found = where_words({item.line: item.grams for item in report.lines}, report.period.recorded_s / DAY_S)
    unseen = found and any(item.boundary == "machine" and item.grams is None for item in report.boundaries)
    return f"{found}; other programs are not known" if unseen else found


def _served_words(report: Report) -> str:
    if not report.rows:
        return "No rows were answered."
    each = "" if report.sci is None else f": {mass(1e3 * report.sci.grams)} for 1,000 rows"
    rows = "1 row was" if report.rows == 1 else f"{number(report.rows)} rows were"
    return f"{rows} answered with it{each}."


def _saved_sentence(report: Report) -> str:
    compared = [item for item in report.saved if item.against != AT_ONCE]
    if not compared:
        return "Nothing can be compared: the ledger has no counterfactual of this period."
    text = "; ".join(saved_words(item) for item in compared) + "."
    least = least_part(report)
    if least < _ALMOST_ALL:
        text += (
            f" Compared is what serving these rows took, {percent(least)} of the electricity's grams; the rest was "
            "used before the first row that could be compared, or by models that had no comparison."
        )
    return text


def _waited_words(item: SavedFigure) -> str:
    rows = "1 row" if item.rows == 1 else f"{number(item.rows)} rows"
    return f"{saved_words(item, accuracy=False)}, by {rows} of batch jobs, which emitted {mass(item.own_g)}."


def saved_words(item: SavedFigure, *, accuracy: bool = True) -> str:
    """Return one comparison in words, as "3.4 kg (25 %) against BASE, 0.31 points of accuracy given up"; without the
    latter if `accuracy` is false."""
    if 0 < item.rows < LEAST_ROWS:
        return (
            f"against {item.name} it is too early to say ({item.rows} of the {LEAST_ROWS} rows that a percentage takes)"
        )
    if item.rows == 0 or item.part is None:
        return f"nothing can be said against {item.name}"
    more = item.saved.grams < 0.0
    size = f"{mass(abs(item.saved.grams))} ({percent(abs(item.part))})"
    text = f"emitted {size} MORE than {item.name}" if more else f"{size} against {item.name}"
    if item.saved.low_g < 0.0 < item.saved.high_g:
        text += " (may be nothing: the interval holds zero)"
    if accuracy and (points := item.given_up_points) is not None:
        text += f", {points_words(points)}"
    return text


def points_words(points: float) -> str:
    """Return a difference of accuracy in words."""
    if abs(points) < _LEAST_POINTS:
        return "at the same accuracy"
    return f"{abs(points):.2f} points of accuracy {'given up' if points > 0.0 else 'gained'}"


def _sure(report: Report) -> str:
    if not report.joules:
        return "There is nothing to be sure of."
    whole = report.total or report.operation
    parts = [
        f"Between {span(whole, 'and')}{', hardware included' if report.total is not None else ' of electricity'}",
        f"energy {parts_words(report.energy_known)}",
        f"intensity {parts_words(report.intensity_known)}",
    ]
    return "; ".join(parts) + " (shares of the energy)." + "".join(f" {text}" for text in cautions(report))


def parts_words(parts: tuple[KnownPart, ...]) -> str:
    """Return how something is known, as "92.1 % live, 7.9 % estimated"."""
    return ", ".join(f"{percent(item.part)} {item.name}" for item in parts) or "unknown"


def cautions(report: Report) -> list[str]:
    """Return the reasons not to quote the figures as emissions of a real machine on a real grid."""
    texts = []
    emulated = any(item.name == "emulated" and item.part > 0.0 for item in report.energy_known)
    if emulated or any(item.known == "emulated" for item in report.hardware):
        texts.append("EMULATED hardware drew no power: figures with it are no emissions.")
    if any(item.name == "synthetic" and item.part > 0.0 for item in report.intensity_known):
        texts.append("The grid is INVENTED (synthetic) for part of the energy: its grams are of no real grid.")
    if any(item.name == "replayed" and item.part > 0.0 for item in report.intensity_known):
        texts.append("Intensities are REPLAYED from another time: grams are not of the days that are named.")
    if any(item.signal == "marginal" and item.seconds > 0.0 for item in report.grids):
        texts.append("Intensities are MARGINAL for part of the time: such grams are no location-based inventory.")
    return texts


def _gaps(report: Report, zone: tzinfo) -> str:
    record = [gap for gap in report.gaps if gap.what == "record"]
    intensity = [gap for gap in report.gaps if gap.what == "intensity"]
    words = [_gap_words(record, "without any record", zone), _gap_words(intensity, "without a live intensity", zone)]
    words.insert(1, missing_words(report))
    return " ".join(filter(None, words))


def missing_words(report: Report) -> str:
    """Return in words what is missing within entries; empty if nothing is."""
    if report.missing_s < _LEAST_MISSING_S:
        return ""
    return f"{duration(report.missing_s)} is missing within entries, in which the server started or ended."


def _gap_words(gaps: list[Gap], what: str, zone: tzinfo) -> str:
    if not gaps:  # an invented or configured grid is never live, and has no gaps either
        return f"No time {what}." if what.endswith("record") else "The source of the intensity never failed."
    whole = duration(sum(gap.seconds for gap in gaps))
    longest = max(gaps, key=lambda gap: gap.seconds)
    if len(gaps) == 1:
        return f"{whole} {what}, from {time_words(longest.start, zone)}."
    return (
        f"{whole} {what}, in {len(gaps)} gaps; the longest is {duration(longest.seconds)} from "
        f"{time_words(longest.start, zone)}."
    )


def entries_words(report: Report, by: By, zone: tzinfo) -> str:
    """Return one sentence if the ledger's entries are not those of the hours, days or months of a breakdown; nothing if
    they are, or for a breakdown that is not by time."""
    period = report.period
    shifted = not whole_hours(period.start, period.end, zone)
    if by == "hour":
        apart = period.coarsest_s > HOUR_S or (period.coarsest_s == HOUR_S and shifted)
    elif by in ("day", "month"):
        ahead = any(offsets_of(period.start, period.end, zone))
        apart = (period.coarsest_s > HOUR_S and ahead) or (period.coarsest_s == HOUR_S and shifted)
    else:
        apart = False
    if not apart:
        return ""
    length = "days" if period.coarsest_s > HOUR_S else "hours"
    return (
        f"The ledger has put entries together into {length} of UTC, which count in the {by} in which they begin: "
        f"a {by} may hold what was used after it."
    )


def basis(report: Report) -> str:
    """Return what figures by the grid's intensity are called: "location-based", but not if it was marginal."""
    signals = {item.signal for item in report.grids if item.seconds > 0.0}
    if "marginal" not in signals:
        return "location-based"
    return "marginal" if len(signals) == 1 else "partly marginal"


def grid_words(grid: GridFigure) -> str:
    """Return which intensity is meant, as "neso GB, average, lifecycle, live"."""
    return ", ".join(
        word for word in (f"{grid.provider} {grid.zone}".strip(), grid.signal, grid.scope, grid.known) if word
    )
