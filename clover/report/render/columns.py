"""The buckets of a breakdown as a table for programs: CSV, which spreadsheets open, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from clover.errors import ConfigError
from clover.hints import printable
from clover.report.records import Breakdown, By, Report, ReportBucket

Cell = str | int | float | Decimal | None
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a text for a formula by."""
JOULES_PER_KWH = 3.6e6


class ReportColumn(NamedTuple):
    """A column: its name, with the unit, and what stands in it."""

    name: str
    cell: Callable[[ReportBucket], Cell]


COLUMNS: tuple[ReportColumn, ...] = (
    ReportColumn("start_utc", lambda bucket: None if bucket.start is None else iso(bucket.start)),
    ReportColumn("recorded_s", lambda bucket: None if bucket.start is None else bucket.seconds),
    ReportColumn("requests", lambda bucket: bucket.requests),
    ReportColumn("rows", lambda bucket: bucket.rows),
    ReportColumn("energy_kwh", lambda bucket: bucket.joules / JOULES_PER_KWH),
    ReportColumn("own_kwh", lambda bucket: bucket.own_j / JOULES_PER_KWH),
    ReportColumn("shared_kwh", lambda bucket: bucket.shared_j / JOULES_PER_KWH),
    ReportColumn("intensity_g_per_kwh", lambda bucket: bucket.g_per_kwh),
    ReportColumn("location_based_gco2e", lambda bucket: bucket.grams),
    ReportColumn("market_based_gco2e", lambda bucket: bucket.market_g),
)


def iso(at: float) -> str:
    """Return a time as ISO 8601 in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def table_of(report: Report, by: By) -> tuple[list[str], list[list[Cell]]]:
    """Return heads and rows.  Every row ends in the intensities' signal (marginal ones make no location-based grams)
    and the boundary."""
    breakdown: Breakdown = report.breakdown(by)
    heads = [by, *(column.name for column in COLUMNS), "signal", "boundary"]
    signal = " and ".join(sorted({item.signal for item in report.grids if item.seconds > 0.0}))
    rows: list[list[Cell]] = [
        [bucket.name, *(column.cell(bucket) for column in COLUMNS), signal, report.boundary]
        for bucket in breakdown.buckets
    ]
    return heads, rows


def safe(text: str) -> str:
    """Return a text that no spreadsheet runs.  A text that would be a formula gets an apostrophe in front; invisible
    characters are escaped."""
    shown = printable(text).replace("\t", "\\t")
    return f"'{shown}" if shown.lstrip(" ").startswith(_FORMULA) or text.startswith(_FORMULA) else shown


def csv_of(report: Report, by: By) -> str:
    """Return a breakdown as CSV (RFC 4180): commas, decimal points, an empty cell for what is not known."""
    return csv_text(*table_of(report, by))


def csv_text(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(heads)
    writer.writerows([safe(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return out.getvalue()


def parquet_of(report: Report, by: By, document: bytes) -> bytes:
    """Return a breakdown as a Parquet file, with the whole report as JSON in its metadata (key `clover`).  Raises
    ConfigError without pyarrow."""
    heads, rows = table_of(report, by)
    return parquet_bytes(heads, rows, (by, "start_utc", "signal", "boundary"), document)


def parquet_bytes(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], texts: Collection[str], document: bytes
) -> bytes:
    """Return a table as a Parquet file; the columns `texts` hold texts, the others numbers.  Raises ConfigError without
    pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ConfigError(
            'Parquet needs the extra "analysis": pip install "clover-inference[analysis]"; or choose --format csv'
        ) from None
    columns: Sequence[Sequence[Cell]] = list(zip(*rows, strict=True)) if rows else [[] for _ in heads]
    kinds = [_kind(pa, head, texts) for head in heads]
    table = pa.table(
        [pa.array(column, type=kind) for column, kind in zip(columns, kinds, strict=True)], names=heads
    ).replace_schema_metadata({"clover": document})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _kind(pa: object, head: str, texts: Collection[str]) -> object:
    """Return the type of a column."""
    if head in texts:
        return pa.string()  # type: ignore[attr-defined]
    return pa.int64() if head in ("requests", "rows") else pa.float64()  # type: ignore[attr-defined]
