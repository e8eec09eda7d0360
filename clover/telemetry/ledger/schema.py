"""The tables of a ledger: which keys and figures they have, how these fold, and how an older file is migrated.

Figures are whole numbers of a small unit, so that sums are exact, in whatever order they are added: microjoules
(`_uj`), nanograms of CO2e (`_ng`), milliseconds (`_ms`), millionths of a percent times rows (`_upr`).  A row counts for
a **span**: `start` (Unix seconds, UTC) and `length` 60, 3600 or 86400 seconds.  All that counts for the same span and
keys is one row, to which is added.

Tables of spans are made from `TABLES`; the others are written out below.  The file says by `application_id` that it is
a ledger, and by `user_version` of which version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from clover.errors import LedgerError

APPLICATION_ID = 0x434C5652
"""CLVR in ASCII."""
VERSION = 1

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
LENGTHS = (MINUTE_S, HOUR_S, DAY_S)

Fold = Literal["sum", "max", "histogram"]


@dataclass(frozen=True)
class TableSpec:
    """A table of spans: what its rows are told apart by, beside the span, and the figures, which are summed but for
    those of `folds`.  `timed`: figures that a meter may have given late, and that belong to the meter's own time."""

    name: str
    keys: tuple[str, ...]
    figures: tuple[str, ...]
    folds: dict[str, Fold] = field(default_factory=dict)
    timed: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    """The keys that are numbers."""

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that make a row unique."""
        return ("start", "length", *self.keys)

    def fold(self, figure: str) -> Fold:
        """Return how rows are put together: by the sum, the largest, or a histogram's counts."""
        return self.folds.get(figure, "sum")

    def ddl(self) -> str:
        """Return the statement that makes the table."""
        columns = ["start INTEGER NOT NULL", f"length INTEGER NOT NULL CHECK (length IN {LENGTHS})"]
        columns += [f"{key} {'REAL' if key in self.numbers else 'TEXT'} NOT NULL" for key in self.keys]
        for figure in self.figures:
            kind, default = ("TEXT", "''") if self.fold(figure) == "histogram" else ("INTEGER", "0")
            columns.append(f"{figure} {kind} NOT NULL DEFAULT {default}")
        columns.append(f"PRIMARY KEY ({', '.join(self.key)})")
        return f"CREATE TABLE {self.name} ({', '.join(columns)}) WITHOUT ROWID, STRICT"

    def _merged(self) -> str:
        """Return how a row is added to one that is there."""
        how = {
            "sum": "{0} = {0} + excluded.{0}",
            "max": "{0} = max({0}, excluded.{0})",
            "histogram": "{0} = add_histograms({0}, excluded.{0})",
        }
        return ", ".join(how[self.fold(figure)].format(figure) for figure in self.figures)

    def add(self) -> str:
        """Return the statement that adds one row; its parameters are those of `key` and the figures."""
        columns = (*self.key, *self.figures)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {self._merged()}"
        )

    def folded(self, figure: str) -> str:
        """Return the expression of one figure over several rows."""
        how = {"sum": "SUM({0})", "max": "MAX({0})", "histogram": "sum_histograms({0})"}
        return how[self.fold(figure)].format(figure)

    def fold_into(self) -> tuple[str, str]:
        """Return two statements that replace rows of one length by rows of a longer one; both take the new length, the
        old one, and the time before which rows begin (a multiple of the new length)."""
        keys = ", ".join(self.keys)
        columns = ", ".join((*self.key, *self.figures))
        figures = ", ".join(self.folded(figure) for figure in self.figures)
        insert = (
            f"INSERT INTO {self.name} ({columns}) SELECT start - start % ?1, ?1, {keys}, {figures} FROM {self.name} "
            f"WHERE length = ?2 AND start < ?3 GROUP BY start - start % ?1, {keys} "
            f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {self._merged()}"
        )
        return insert, f"DELETE FROM {self.name} WHERE ?1 > 0 AND length = ?2 AND start < ?3"


_JOULES = ("active_uj", "idle_uj", "front_end_uj", "control_uj", "receipts_uj")
_GRAMS = ("active_ng", "idle_ng", "front_end_ng", "control_ng")

USAGE = TableSpec(
    "usage",
    ("model", "variant", "device", "slice", "tenant", "label"),
    ("requests", "ok", "client_errors", "limited", "server_errors", "rows", *_JOULES, *_GRAMS),
    timed=frozenset({*_JOULES[:-1], *_GRAMS}),
)
"""What models did and used.  Figures that belong to no worker (requests, front end, control, receipts) stand in rows
with an empty variant, device and slice."""

LINES = TableSpec(
    "lines", ("device", "line", "label"), ("joules_uj", "grams_ng"), timed=frozenset({"joules_uj", "grams_ng"})
)
"""The account of each device; the lines of a span sum to what its meter showed, and what that cost."""

GRID = TableSpec(
    "grid",
    ("zone", "provider", "signal", "scope", "known"),
    ("seconds_ms", "intensity_time", "age_time", "age_max_s", "joules_uj", "net_ng", "grams_ng"),
    folds={"age_max_s": "max"},
)
"""The carbon intensity: how long each was in force (`intensity_time`: mg/kWh x ms, `age_time`: s x ms), and the joules
and grams that were counted meanwhile (`net_ng`: without the PUE)."""

QUALITY = TableSpec(
    "quality",
    ("model", "slo_ms"),
    ("rows", "accuracy_upr", "labelled", "labelled_right", "requests", "violations", "held", "missed", "latency"),
    folds={"latency": "histogram"},
    numbers=frozenset({"slo_ms"}),
)
"""Accuracy by the profile and by labels, requests answered and those of them above the SLO, windows of ten seconds in
which the SLO was held and missed, and latencies (`clover.telemetry.ledger.latency`)."""

SAVED = TableSpec(
    "saved",
    ("model", "boundary", "against", "label"),
    ("rows", "own_uj", "own_ng", "shadow_uj", "shadow_ng", "own_upr", "shadow_upr", "error_ng"),
)
"""What was used, and what would have been otherwise, for the rows that can be compared; `error_ng`: half the interval
of the grams saved, which adds up from span to span."""

TABLES = {table.name: table for table in (USAGE, LINES, GRID, QUALITY, SAVED)}

_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT"
_RUNS = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, started REAL NOT NULL, seen REAL NOT NULL, ended REAL, flush INTEGER NOT NULL DEFAULT 0,
    version TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, digest TEXT NOT NULL,
    configuration TEXT NOT NULL, facts TEXT NOT NULL
) STRICT"""
"""`seen` and `flush` change with every flush: the time, and its number.  `ended` is empty after a kill."""
_PROFILES = """
CREATE TABLE profiles (digest TEXT PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL, content TEXT NOT NULL)
WITHOUT ROWID, STRICT"""
_EVENTS = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, model TEXT NOT NULL, summary TEXT NOT NULL,
    detail TEXT NOT NULL, run INTEGER NOT NULL
) STRICT"""
_EVENTS_AT = "CREATE INDEX events_at ON events (at)"

Migration = Sequence[str]
"""The statements that bring a file from one version to the next."""

MIGRATIONS: tuple[Migration, ...] = (
    (*(table.ddl() for table in TABLES.values()), _META, _RUNS, _PROFILES, _EVENTS, _EVENTS_AT),
)
"""By the version that they begin with: 0 is an empty file."""


def version_of(connection: sqlite3.Connection, latest: int = VERSION) -> int:
    """Return the version of an open file, 0 if it is empty.  LedgerError if it is no ledger, or later than `latest`;
    sqlite3.DatabaseError if it is damaged."""
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and version == 0:
        return 0
    if found != APPLICATION_ID:
        raise LedgerError("it is a database, but no ledger of Clover")
    if version > latest:
        raise LedgerError(
            f"it is of version {version}, and this Clover knows versions up to {latest}: use the Clover that wrote it, "
            "or a later one"
        )
    if version < 1:
        raise sqlite3.DatabaseError(f"its version is {version}, which no Clover writes")
    return int(version)


def migrate(
    connection: sqlite3.Connection,
    migrations: Sequence[Migration] = MIGRATIONS,
    step: Callable[[], None] = lambda: None,
) -> int:
    """Bring an open file up to the last of `migrations`, each in a transaction; return the version it had.  `step` is
    called before each statement.  Raises as `version_of` does, and sqlite3.Error."""
    before = version_of(connection, len(migrations))
    for version in range(before, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in (
                *migrations[version],
                f"PRAGMA application_id = {APPLICATION_ID}",
                f"PRAGMA user_version = {version + 1}",
            ):
                step()
                connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return before
