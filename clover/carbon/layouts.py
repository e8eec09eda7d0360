"""Reads files of carbon intensities: three layouts, told apart by their header, into one table.

 - two columns `datetime_utc,carbon_intensity_gco2_per_kwh`, which do not say how the values are known;
 - Electricity Maps' historical CSV, whose columns "(direct)" and "(LCA)" or "(Life cycle)" hold the two scopes;
 - NESO's API answers as JSON, or CSV of `from[,to]` with `actual` and/or `forecast`.

Times without a zone are UTC.  An empty, "null" or NaN value is a gap: the row is kept without a value and counted.
Anything else that does not parse is an error that names the line, since a trace that is half understood gives wrong
grams.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from clover.errors import ConfigError
from clover.hints import printable
from clover.malformed import MALFORMED

MAX_G_PER_KWH = 5000.0
"""Above this no grid lies: a larger number is in another unit (lbs/MWh, g/MWh) or is no intensity."""

MAX_FILE_BYTES = 64 << 20
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_SHOWN = 40
"""Characters of a cell that an error shows."""
_GAPS = frozenset({"", "nan", "null", "none", "na", "n/a", "-"})

Scope = Literal["lifecycle", "direct", "unknown"]
Signal = Literal["average", "marginal", "unknown"]
HowKnown = Literal["published", "estimated", "forecast", "synthetic", "unknown"]


_Item = TypeVar("_Item")
_ITEMS_AT_ONCE = 64


class TraceRow(NamedTuple):
    """One interval of a file: from `at_s` (Unix seconds) to `until_s` (None: one step later), with its intensity `g`
    and the forecast of it (gCO2e/kWh; None in a gap), how `g` is known as the file says, and the line it stands in."""

    at_s: float
    until_s: float | None
    g: float | None
    forecast_g: float | None
    method: HowKnown
    line: int


class TraceTable(NamedTuple):
    """A file as rows in file order, with what its layout says about them."""

    layout: Literal["two-column", "electricity-maps", "neso"]
    rows: list[TraceRow]
    zone: str
    signal: Signal
    scope: Scope


class _NesoIntensity(msgspec.Struct):
    forecast: float | None = None
    actual: float | None = None


class _NesoSlot(msgspec.Struct, rename={"start": "from", "end": "to"}):
    start: str
    intensity: _NesoIntensity
    end: str | None = None


class _NesoDocument(msgspec.Struct):
    data: list[_NesoSlot]


def in_small_parts(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield `items`, and let other threads run in between: a long file is read beside the event loop, which would
    otherwise wait for the interpreter's lock for milliseconds each time that it wakes up."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _ITEMS_AT_ONCE == 0:
            time.sleep(0)


def read_file(path: Path) -> bytes:
    """Return what is in `path`; ConfigError if it cannot be read or is larger than `MAX_FILE_BYTES`."""
    try:
        if not path.is_file():
            raise ConfigError("there is no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"larger than {MAX_FILE_BYTES >> 20} MB; cut it to the days you need")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error


def parse_table(data: bytes, *, scope: str = "", zone: str = "") -> TraceTable:
    """Return the table in the bytes of a file; ConfigError names the line that does not parse."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})") from error
    if text.lstrip()[:1] in ("{", "["):
        return _neso_json(text)
    if "\0" in text:
        raise ConfigError("not a text file: it holds NUL bytes")
    lines = _csv_rows(text)
    header = [_canonical(cell) for cell in next(lines, (0, []))[1]]
    if "datetime_utc" in header and "carbon_intensity_gco2_per_kwh" in header:
        at, value = header.index("datetime_utc"), header.index("carbon_intensity_gco2_per_kwh")
        rows = [_row(line, cells, at, None, value, None, None)._replace(method="unknown") for line, cells in lines]
        return TraceTable("two-column", rows, zone, "unknown", "unknown")
    if any("carbon intensity" in name for name in header):
        return _electricity_maps(header, lines, scope, zone)
    if "from" in header or any(name.endswith(("actual", "forecast")) for name in header):
        return _neso_csv(header, lines)
    if separated := _other_separator(header):
        raise ConfigError(separated)
    raise ConfigError(
        "unknown columns; the first line names them: `datetime_utc,carbon_intensity_gco2_per_kwh` (below it lines as "
        "2026-03-26T21:00Z,257), Electricity Maps' historical CSV, or NESO's from,to,actual,forecast (CSV or API JSON)"
    )


def _other_separator(header: list[str]) -> str:
    """Return that the first line separates its columns by something else than commas; empty if it does not."""
    separator = next((of for of in _SEPARATORS if len(header) == 1 and of in header[0]), "")
    if not separator:
        return ""
    return (
        f"its columns are separated by {_SEPARATORS[separator]}, which is not read: separate them by commas, and write "
        "decimals with a point (a spreadsheet's export asks for both, or set its language to English)"
    )


def parse_time(text: str) -> float:
    """Return Unix seconds of an ISO 8601 time; without a zone it is UTC.  ValueError if it is not an ISO 8601 time."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text.strip()[:_SHOWN]!r} is no ISO 8601 time, as 2026-03-26T21:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def format_time(at_s: float) -> str:
    """Return Unix seconds as ISO 8601 in UTC.  Grid time may be anything that a configuration says: a time that no
    calendar holds is shown as the number it is."""
    try:
        return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{at_s:g} s"


def _canonical(cell: str) -> str:
    return cell.strip().lower().replace("\N{SUBSCRIPT TWO}", "2")


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for cells in in_small_parts(reader):
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num}: {error}") from error


def _electricity_maps(header: list[str], lines: Iterator[tuple[int, list[str]]], scope: str, zone: str) -> TraceTable:
    columns: dict[Scope, int] = {}
    for index, name in enumerate(header):
        if "carbon intensity" in name:
            if "(direct)" in name:
                columns.setdefault("direct", index)
            elif "(lca)" in name or "life cycle" in name:
                columns.setdefault("lifecycle", index)
    times = [index for index, name in enumerate(header) if name.startswith("datetime")]
    if not columns or not times:
        raise ConfigError('Electricity Maps columns expected: "Datetime (UTC)" and intensity "(direct)" or "(LCA)"')
    wanted: list[Scope] = ["lifecycle", "direct"] if not scope else ["direct"] if scope == "direct" else ["lifecycle"]
    chosen = next((name for name in wanted if name in columns), None)
    if chosen is None:
        raise ConfigError(f"it has no {scope} intensity; use ?scope={next(iter(columns))}")
    zone_at = header.index("zone id") if "zone id" in header else None
    estimated_at = next((i for i, name in enumerate(header) if name in ("data estimated", "is estimated")), None)
    rows, zones = [], set()
    for line, cells in lines:
        of = cells[zone_at].strip() if zone_at is not None and zone_at < len(cells) else ""
        if zone and zone_at is not None and of != zone:
            continue
        zones.add(of)
        rows.append(_row(line, cells, times[0], None, columns[chosen], None, estimated_at))
    if len(zones) > 1:
        some = printable(", ".join(sorted(zones)[:8]), 200)
        raise ConfigError(f"it holds several zones ({some}); pick one with ?zone=")
    if zone and not rows:
        raise ConfigError(f"it holds no row of zone {zone}")
    return TraceTable("electricity-maps", rows, zone or next(iter(zones), ""), "average", chosen)


def _neso_csv(header: list[str], lines: Iterator[tuple[int, list[str]]]) -> TraceTable:
    at = next((i for i, name in enumerate(header) if name in ("from", "datetime", "datetime_utc")), None)
    actual = next((i for i, name in enumerate(header) if name.endswith("actual")), None)
    forecast = next((i for i, name in enumerate(header) if name.endswith("forecast")), None)
    if at is None or (actual is None and forecast is None):
        raise ConfigError("NESO columns expected: from, optionally to, and actual and/or forecast")
    until = header.index("to") if "to" in header else None
    rows = [_row(line, cells, at, until, actual, forecast, None) for line, cells in lines]
    return TraceTable("neso", rows, "GB", "average", "unknown")


def _neso_json(text: str) -> TraceTable:
    try:
        document = msgspec.json.decode(text, type=_NesoDocument)
    except MALFORMED as error:
        raise ConfigError(
            f"not a NESO answer ({error}); expected an object with data[].from, .to, .intensity"
        ) from error
    rows = []
    for number, slot in enumerate(in_small_parts(document.data), 1):
        actual, forecast = (None if v is None else str(v) for v in (slot.intensity.actual, slot.intensity.forecast))
        cells = [slot.start, slot.end or "", actual or "", forecast or ""]
        rows.append(_row(number, cells, 0, 1, 2, 3, None))
    return TraceTable("neso", rows, "GB", "average", "unknown")


def _row(
    line: int,
    cells: list[str],
    at: int,
    until: int | None,
    value: int | None,
    forecast: int | None,
    estimated: int | None,
) -> TraceRow:
    """Return one row.  If there is no actual value, a forecast stands in, and is labelled so."""
    try:
        at_s = parse_time(cells[at])
        until_s = parse_time(cells[until]) if until is not None and cells[until].strip() else None
        g = None if value is None else _intensity(cells[value])
        forecast_g = None if forecast is None else _intensity(cells[forecast])
        guessed = estimated is not None and cells[estimated].strip().lower() in ("true", "1", "yes")
    except IndexError as error:
        raise ConfigError(f"line {line}: too few columns") from error
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"line {line}: {error}") from error
    if until_s is not None and until_s <= at_s:
        raise ConfigError(f"line {line}: it ends before it starts")
    if g is None and forecast_g is not None:
        return TraceRow(at_s, until_s, forecast_g, forecast_g, "forecast", line)
    return TraceRow(at_s, until_s, g, forecast_g, "estimated" if guessed else "published", line)


def _intensity(cell: str) -> float | None:
    text = cell.strip()
    if text.lower() in _GAPS:
        return None
    try:
        value = float(text)
    except ValueError:
        hint = "; decimals are written with a point" if "," in text else ""
        raise ValueError(f"{text[:_SHOWN]!r} is no number of gCO2e/kWh, nor empty as a gap is{hint}") from None
    if math.isnan(value):
        return None
    if not 0.0 <= value <= MAX_G_PER_KWH:
        raise ValueError(f"{text} is no intensity in gCO2e/kWh (0 to {MAX_G_PER_KWH:.0f}); check the unit")
    return value
