"""The file of a ledger: written by one connection, a transaction a batch, and read by as many as like.

    with LedgerReader(path) as ledger:
        for row in ledger.usage(since_s, until_s, step_s=3600): ...

A writer adds: what a batch has for a span and keys is added to what is there.  A batch has a number, which is stored in
the same transaction, so that one whose commit failed in an unknown way can be given again.  After a kill of the process
the file has all batches that were committed; after a loss of power it may lack the last ones, and is whole.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from clover.cache import make_private
from clover.errors import LedgerError
from clover.telemetry.ledger import latency, schema
from clover.telemetry.ledger.damage import as_damage, checked, reading
from clover.telemetry.ledger.rows import (
    EventRow,
    GridRow,
    KeptProfile,
    LedgerSums,
    LineRow,
    QualityRow,
    RunRow,
    SavedRow,
    UsageRow,
)
from clover.telemetry.ledger.schema import DAY_S, HOUR_S, MINUTE_S, TABLES, TableSpec

BUSY_S = 2.0
"""How long a writer waits for others that hold the file."""

Key = tuple[Any, ...]
"""Start and length of a span, and the keys of the table."""
Figures = Sequence[Any]
"""In the order of the table's figures."""
TableRows = Mapping[Key, Figures]

T = TypeVar("T")


@dataclass(frozen=True)
class LedgerBatch:
    """What one flush adds: rows by table, events, profiles; `facts`, unless empty, replaces those of the run.  `number`
    rises from flush to flush of a run, `at_s` is now."""

    number: int
    at_s: float
    rows: Mapping[str, TableRows] = field(default_factory=dict)
    events: Sequence[EventRow] = ()
    profiles: Sequence[KeptProfile] = ()
    facts: str = ""

    @property
    def size(self) -> int:
        """Rows and events."""
        return sum(map(len, self.rows.values())) + len(self.events)


@dataclass(frozen=True)
class RunStart:
    """What a run begins with (`RunRow`)."""

    at_s: float
    version: str
    host: str
    pid: int
    digest: str
    configuration: str
    facts: str = "{}"


_EVENT = "INSERT INTO events (at, kind, model, summary, detail, run) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Lifetime:
    """Sums over all runs, in whole microjoules and nanograms; grams saved by model and counterfactual, within the
    boundary `server`.  `since_s`: when the first run began (Unix seconds, infinite before any)."""

    since_s: float = math.inf
    joules_uj: int = 0
    grams_ng: int = 0
    saved_ng: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def added_to(self, other: Lifetime) -> Lifetime:
        """Return the sums of both."""
        keys = {*self.saved_ng, *other.saved_ng}
        return Lifetime(
            min(self.since_s, other.since_s),
            self.joules_uj + other.joules_uj,
            self.grams_ng + other.grams_ng,
            {key: self.saved_ng.get(key, 0) + other.saved_ng.get(key, 0) for key in keys},
        )

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        saved = [[*key, ng] for key, ng in self.saved_ng.items()]
        return {"since_s": self.since_s, "joules_uj": self.joules_uj, "grams_ng": self.grams_ng, "saved_ng": saved}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Lifetime:
        """Return the sums of which `found` was made."""
        saved = {(model, against): ng for model, against, ng in found["saved_ng"]}
        return cls(found["since_s"], found["joules_uj"], found["grams_ng"], saved)


class LedgerWriter:
    """Writes the ledger `path`, which is made if it is missing, for this user alone.  Use it from one thread.

    `step` is called before each statement that changes something.  Raises LedgerError if the file is no ledger or of a
    later version, sqlite3.Error or OSError if it cannot be used.
    """

    def __init__(self, path: Path, *, step: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.run = 0
        """The number of the run that writes; 0 before `begin`."""
        self._step = step
        make_private(path.parent)
        # Made by ourselves: SQLite gives its journals the mode of the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            with as_damage():
                schema.version_of(self._connection)  # what is none of ours is not touched
                latency.register(self._connection)
                for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL"):
                    self._connection.execute(f"PRAGMA {pragma}")
                for pragma in ("trusted_schema = OFF", "temp_store = MEMORY", f"journal_size_limit = {4 << 20}"):
                    self._connection.execute(f"PRAGMA {pragma}")
                schema.migrate(self._connection, step=step)
        except BaseException:
            self._connection.close()
            raise

    def check(self) -> None:
        """Raise sqlite3.DatabaseError if the file is damaged."""
        with as_damage():
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def begin(self, start: RunStart) -> int:
        """Begin a run and return its number."""
        columns = ("started", "seen", "version", "host", "pid", "digest", "configuration", "facts")
        values = (start.at_s, start.at_s, start.version, start.host, start.pid, start.digest)
        with self._transaction():
            done = self._execute(
                f"INSERT INTO runs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                (*values, start.configuration, start.facts),
            )
        self.run = done.lastrowid or 0
        return self.run

    def resume(self, run: int) -> bool:
        """Write for a run that was begun before; return whether the file knows it."""
        found = self._connection.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone()
        if found is not None:
            self.run = run
        return found is not None

    def add(self, batch: LedgerBatch) -> bool:
        """Add a batch as a whole, or do nothing if it was added before; return whether it was added now.  Raises
        sqlite3.Error, and nothing was added then, unless its commit failed, which cannot be known: give it again."""
        with self._transaction():
            (last,) = self._connection.execute("SELECT flush FROM runs WHERE id = ?", (self.run,)).fetchone()
            if batch.number <= last:
                return False
            for name, rows in batch.rows.items():
                if rows:
                    self._step()
                    self._connection.executemany(
                        TABLES[name].add(), [(*key, *figures) for key, figures in rows.items()]
                    )
            if batch.events:
                self._step()
                self._connection.executemany(
                    _EVENT,
                    [(item.at, item.kind, item.model, item.summary, item.detail, self.run) for item in batch.events],
                )
            for row in batch.profiles:
                self._execute(
                    "INSERT INTO profiles VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (row.digest, row.model, row.at, row.content),
                )
            self._execute(
                "UPDATE runs SET seen = max(seen, ?), flush = ?, facts = iif(?3 = '', facts, ?3) WHERE id = ?4",
                (batch.at_s, batch.number, batch.facts, self.run),
            )
        return True

    def fold(self, minutes_until_s: int, hours_until_s: int) -> int:
        """Put minutes that begin before `minutes_until_s` together into hours, and hours that begin before
        `hours_until_s` into days, as far as whole hours and days reach; return how many rows were put together."""
        before = self._connection.total_changes
        with self._transaction():
            for length, into, until_s in ((MINUTE_S, HOUR_S, minutes_until_s), (HOUR_S, DAY_S, hours_until_s)):
                edge = until_s - until_s % into
                for table in TABLES.values():
                    for statement in table.fold_into():
                        self._execute(statement, (into, length, edge))
        return self._connection.total_changes - before

    def note(self, event: EventRow) -> None:
        """Add an event of the run by itself."""
        with self._transaction():
            self._execute(_EVENT, (event.at, event.kind, event.model, event.summary, event.detail, self.run))

    def forget(self, until_s: int) -> int:
        """Remove spans, events and runs that ended before `until_s`, whose sums stay in `lifetime`; return how many
        rows went."""
        before = self._connection.total_changes
        with self._transaction():
            with as_damage():
                sums = _lifetime(self._connection, "WHERE start + length <= ?", (until_s,)).added_to(self._forgotten())
            self._execute(
                "INSERT INTO meta VALUES ('forgotten', ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                (json.dumps(sums.as_json()),),
            )
            for name in TABLES:
                self._execute(f"DELETE FROM {name} WHERE start + length <= ?", (until_s,))
            self._execute("DELETE FROM events WHERE at < ?", (until_s,))
            self._execute("DELETE FROM runs WHERE seen < ? AND id != ?", (until_s, self.run))
        return self._connection.total_changes - before

    def _forgotten(self) -> Lifetime:
        found = self._connection.execute("SELECT value FROM meta WHERE key = 'forgotten'").fetchone()
        return Lifetime.from_json(json.loads(found[0])) if found is not None else Lifetime()

    def lifetime(self) -> Lifetime:
        """Return the sums of all runs so far, removed spans included."""
        with as_damage():
            return _lifetime(self._connection, "", ()).added_to(self._forgotten())

    def first_s(self) -> int | None:
        """Return when the first span begins; None if there is none."""
        found = (self._connection.execute(f"SELECT min(start) FROM {name}").fetchone()[0] for name in TABLES)
        return min((start for start in found if start is not None), default=None)

    def forget_events(self, until_s: float) -> None:
        """Remove events from before `until_s`."""
        with self._transaction():
            self._execute("DELETE FROM events WHERE at < ?", (until_s,))

    def shrink(self) -> None:
        """Give freed pages back to the file system."""
        # It gives back one page a step, and `execute` makes one step for what has no columns.
        self._connection.executescript("PRAGMA incremental_vacuum")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def size_bytes(self) -> int:
        """Return the bytes that the file's contents take, without its journal."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def sums(self) -> LedgerSums:
        """Return what the file has of all times."""
        return _sums(self._connection, 0, math.inf)

    def end(self, at_s: float) -> None:
        """Note that the run ended in order."""
        with self._transaction():
            self._execute("UPDATE runs SET seen = max(seen, ?), ended = ? WHERE id = ?", (at_s, at_s, self.run))

    def close(self) -> None:
        """Close the file; what was not committed is not in it."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._step()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._step()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        self._step()
        return self._connection.execute(statement, values)


_UNITS = {"_uj": 1e6, "_ng": 1e9, "_ms": 1e3, "_upr": 1e6}
_MEANS = {"intensity_time": "SUM(intensity_time) / 1e3 / max(SUM(seconds_ms), 1)"}
_MEANS["age_time"] = "SUM(age_time) * 1.0 / max(SUM(seconds_ms), 1)"


def _read(table: TableSpec, figure: str) -> str:
    """Return the expression of a figure in the units of readers."""
    if figure in _MEANS:
        return _MEANS[figure]
    unit = next((value for suffix, value in _UNITS.items() if figure.endswith(suffix)), None)
    if figure in table.keys or unit is None:
        return table.folded(figure)
    return f"{table.folded(figure)} / {unit!r}"


class LedgerReader:
    """Reads the ledger `path`, also while a server writes it.  One thread at a time.

    Rows are those whose spans begin in [`since_s`, `until_s`), as minutes, hours or days, whichever is kept; with
    `step_s` (3600 or 86400), shorter spans are put together into spans of that length.  Raises LedgerError if the file
    is missing, unreadable, damaged, no ledger, or of a later version; its text names no path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading():
            self._connection = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def usage(self, since_s: float = 0, until_s: float = math.inf, *, step_s: int | None = None) -> list[UsageRow]:
        """Return what models did and used, by variant, device, slice, tenant and label."""
        return self._rows(UsageRow, schema.USAGE, since_s, until_s, step_s)

    def models(self, since_s: float = 0) -> list[str]:
        """Return the names of the models in spans from `since_s` on; a version that was tried is its model."""
        found = self._fetch("SELECT DISTINCT model FROM usage WHERE start >= ?", (since_s,))
        return sorted({str(name).partition("@")[0] for (name,) in found})

    def lines(self, since_s: float = 0, until_s: float = math.inf, *, step_s: int | None = None) -> list[LineRow]:
        """Return the lines of the account of each device."""
        return self._rows(LineRow, schema.LINES, since_s, until_s, step_s)

    def grid(self, since_s: float = 0, until_s: float = math.inf, *, step_s: int | None = None) -> list[GridRow]:
        """Return the carbon intensities that were in force."""
        return self._rows(GridRow, schema.GRID, since_s, until_s, step_s)

    def quality(self, since_s: float = 0, until_s: float = math.inf, *, step_s: int | None = None) -> list[QualityRow]:
        """Return accuracy and latency of models."""
        return self._rows(QualityRow, schema.QUALITY, since_s, until_s, step_s)

    def saved(self, since_s: float = 0, until_s: float = math.inf, *, step_s: int | None = None) -> list[SavedRow]:
        """Return what was saved against each counterfactual."""
        return self._rows(SavedRow, schema.SAVED, since_s, until_s, step_s)

    def events(
        self,
        since_s: float = 0,
        until_s: float = math.inf,
        *,
        kinds: Iterable[str] = (),
        limit: int = 1000,
    ) -> list[EventRow]:
        """Return the newest `limit` events of [since_s, until_s), oldest first; of some `kinds` if any is given."""
        asked = list(kinds)
        among = f" AND kind IN ({', '.join('?' * len(asked))})" if asked else ""
        found = self._fetch(
            f"SELECT at, kind, model, summary, detail, run FROM events WHERE at >= ? AND at < ?{among} "
            "ORDER BY at DESC, id DESC LIMIT ?",
            (since_s, until_s, *asked, limit),
        )
        return self._checked(EventRow, reversed(found))

    def runs(self, since_s: float = 0, until_s: float = math.inf) -> list[RunRow]:
        """Return the runs of a time, oldest first."""
        found = self._fetch(
            "SELECT id, started, seen, ended, version, host, pid, digest, configuration, facts FROM runs "
            "WHERE seen >= ? AND started < ? ORDER BY started, id",
            (since_s, until_s),
        )
        return self._checked(RunRow, found)

    def profiles(self) -> list[KeptProfile]:
        """Return every profile that models were served with, oldest first."""
        found = self._fetch("SELECT digest, model, at, content FROM profiles ORDER BY at, digest", ())
        return self._checked(KeptProfile, found)

    def bounds(self) -> tuple[int, int] | None:
        """Return when the first span begins and the last one ends (Unix seconds); None if there is none."""
        found = [
            row
            for name in TABLES
            for row in self._fetch(f"SELECT min(start), max(start + length) FROM {name}", ())
            if row[0] is not None
        ]
        return (min(row[0] for row in found), max(row[1] for row in found)) if found else None

    def sums(self, since_s: float = 0, until_s: float = math.inf) -> LedgerSums:
        """Return the sums over all spans that begin in a time."""
        with reading():
            return _sums(self._connection, since_s, until_s)

    def _rows(self, kind: type[T], table: TableSpec, since_s: float, until_s: float, step_s: int | None) -> list[T]:
        if step_s is not None and step_s not in schema.LENGTHS:
            raise ValueError(f"step_s must be one of {schema.LENGTHS}")
        length = f"max(length, {step_s or 0})"
        figures = ", ".join(_read(table, figure) for figure in table.figures)
        keys = ", ".join(table.keys)
        found = self._fetch(
            f"SELECT start - start % {length} AS s, {length} AS l, {keys}, {figures} FROM {table.name} "
            f"WHERE start >= ? AND start < ? GROUP BY s, l, {keys} ORDER BY s, l, {keys}",
            (since_s, until_s),
        )
        return self._checked(kind, found)

    def _checked(self, kind: type[T], found: Iterable[Sequence[Any]]) -> list[T]:
        with reading():
            return checked(kind, found)

    def _fetch(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with reading():
            return self._connection.execute(statement, values).fetchall()


def _open(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads."""
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", str(path))
    name = quote(str(path.absolute()))
    with open(path, "rb") as file:  # SQLite says only "unable to open"
        file.read(1)
    modes = ["mode=ro"]
    if not Path(f"{path}-wal").exists():
        modes.append("immutable=1")  # in a folder that cannot be written to, and left by its writer
    for mode in modes:
        connection = sqlite3.connect(f"file:{name}?{mode}", uri=True, timeout=BUSY_S, check_same_thread=False)
        try:
            latency.register(connection)
            if schema.version_of(connection) != schema.VERSION:
                raise LedgerError("it is empty, or of an earlier version that no server has opened since")
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if mode == modes[-1]:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("unreachable")


def _lifetime(connection: sqlite3.Connection, where: str, values: Sequence[Any]) -> Lifetime:
    (first,) = connection.execute("SELECT min(started) FROM runs").fetchone()
    joules, grams = connection.execute(f"SELECT SUM(joules_uj), SUM(grams_ng) FROM lines {where}", values).fetchone()
    among = f"{where} AND" if where else "WHERE"
    saved = connection.execute(
        f"SELECT model, against, SUM(shadow_ng - own_ng) FROM saved {among} boundary = 'server' "
        "GROUP BY model, against",
        values,
    ).fetchall()
    since_s = math.inf if first is None else float(first)
    return Lifetime(since_s, joules or 0, grams or 0, {(model, against): ng for model, against, ng in saved})


def _sums(connection: sqlite3.Connection, since_s: float, until_s: float) -> LedgerSums:
    def pairs(columns: str, rest: str) -> list[tuple[Any, ...]]:
        return connection.execute(
            f"SELECT {columns} FROM {rest.format('WHERE start >= ? AND start < ?')}", (since_s, until_s)
        ).fetchall()

    lines = pairs("label, SUM(joules_uj), SUM(grams_ng)", "lines {} GROUP BY label")
    grid = pairs("known, SUM(grams_ng), SUM(seconds_ms)", "grid {} GROUP BY known")
    ((requests, rows),) = pairs("SUM(requests), SUM(rows)", "usage {}")
    return LedgerSums(
        seconds=sum(ms for _, _, ms in grid) / 1e3,
        requests=requests or 0,
        rows=rows or 0,
        joules=sum(uj for _, uj, _ in lines) / 1e6,
        grams=sum(ng for _, _, ng in lines) / 1e9,
        joules_by_label={label: uj / 1e6 for label, uj, _ in lines},
        grams_by_known={known: ng / 1e9 for known, ng, _ in grid},
    )
