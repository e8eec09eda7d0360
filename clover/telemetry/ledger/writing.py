"""The thread that writes a server's ledger: what it gets is queued, and nothing on the event loop waits for a disk.

A batch that cannot be written waits, with those after it, and is tried again with the next one.  At most `MOST_ROWS`
rows wait; beyond that the oldest batches are dropped, and counted.  What is tried again is never counted twice
(`LedgerWriter.add`).  A damaged file is set aside and a new one begun, and a new one is begun as well if the file was
removed or replaced: every batch, at least one a minute, looks for that.  A file that another server keeps, or that
cannot be written, is asked for again with every batch.

Once an hour minutes are put together into hours and hours into days, and a file that is too large is made smaller.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clover.errors import LedgerError
from clover.hints import printable
from clover.telemetry.ledger import files
from clover.telemetry.ledger.rows import EventRow
from clover.telemetry.ledger.schema import DAY_S, HOUR_S, TABLES
from clover.telemetry.ledger.store import LedgerBatch, LedgerReader, LedgerWriter, RunStart

log = logging.getLogger("clover.ledger")

QUEUE = 64
"""Batches that wait for the thread: ten minutes, if the disk hangs."""
MOST_ROWS = 200_000
CLOSE_S = 5.0
TIDY_S = 3600.0
REMOVED_S = 3600.0
"""For how long `trouble` says that the file was removed, although a new one is written."""


@dataclass(frozen=True)
class Retention:
    """After how many seconds minutes become hours and hours become days, and the largest file in bytes."""

    minutes_s: float = 14 * DAY_S
    hours_s: float = 400 * DAY_S
    most_bytes: int = 256 << 20


@dataclass
class LedgerStatus:
    """How the ledger does, for metrics and people.  `state`: opening, writing, failing or closed; `reason`, one of
    `files.REASONS`, and `trouble`, in words, say why it fails, or what was lost of late."""

    path: Path
    state: str = "opening"
    reason: str = ""
    trouble: str = ""
    written_rows: int = 0
    waiting_rows: int = 0
    dropped_rows: int = 0
    """Rows and events that are in no file, nor will be."""
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(files.REASONS, 0))
    """Attempts to write that failed, by reason."""
    flushes: int = 0
    bytes: int = 0
    set_aside: str = ""
    """The name that a damaged file was given."""
    since_s: float = 0.0
    """Unix time at which the first run in the file began."""
    joules: float = 0.0
    grams: float = 0.0
    """All that is in the file, of earlier runs too."""
    earlier_j: float = 0.0
    """What runs before this one left in the file, joules; and the models that they served since midnight (UTC)."""
    earlier_today: Sequence[str] = ()
    saved_g: dict[tuple[str, str], float] = field(default_factory=dict)
    """Of all runs, by model and counterfactual, within the boundary `server`."""


class LedgerThread:
    """Writes the batches of one run to `path`.  `wall` and `monotonic` are clocks; `writer` opens a file."""

    def __init__(
        self,
        path: Path,
        start: RunStart,
        retention: Retention | None = None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        writer: Callable[[Path], LedgerWriter] = LedgerWriter,
    ) -> None:
        self.status = LedgerStatus(path)
        self._path = path
        self._start = start
        self._retention = retention or Retention()
        self._wall = wall
        self._monotonic = monotonic
        self._open_writer = writer
        self._queue: queue.Queue[LedgerBatch | None] = queue.Queue(QUEUE)
        self._stuck: deque[LedgerBatch] = deque()
        self._lock: files.LedgerLock | None = None
        self._writer: LedgerWriter | None = None
        self._inode = 0
        self._run = 0
        self._tidied_s = 0.0
        self._removed_s = -math.inf
        self._said = ""
        self._lost = 0
        """Rows that were dropped when it was last noted in the file."""
        self._notes: list[str] = []
        self._thread = threading.Thread(target=self._work, name="clover-ledger", daemon=True)

    # --- on the event loop --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which opens the file."""
        self._thread.start()

    def put(self, batch: LedgerBatch) -> bool:
        """Queue a batch and return at once; return False if it was dropped, as the thread is far behind."""
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            self.status.dropped_rows += batch.size
            return False
        return True

    def close(self, within_s: float = CLOSE_S) -> bool:
        """Write what is queued, end the run and close the file; return whether that took no longer than `within_s`.
        Call it from a thread that may wait."""
        try:
            self._queue.put(None, timeout=within_s)
        except queue.Full:
            return False
        self._thread.join(within_s)
        return not self._thread.is_alive()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._attempt()
        while (batch := self._queue.get()) is not None:
            self.write(batch)
        self.end()

    def write(self, batch: LedgerBatch) -> None:
        """Write a batch and all that waits, or have it wait; never raises.  In the thread itself, or instead of it."""
        self._wait(batch)
        self._attempt()

    def end(self) -> None:
        """Write what waits, end the run and close the file."""
        self._attempt(ending=True)
        self._leave()
        self.status.bytes = files.size_bytes(self._path)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self.status.dropped_rows += sum(batch.size for batch in self._stuck)
        self.status.state = "closed"

    def _wait(self, batch: LedgerBatch) -> None:
        """Have a batch wait for the file, in the place of the oldest ones if too many do."""
        self._stuck.append(batch)
        waiting = sum(item.size for item in self._stuck)
        while waiting > MOST_ROWS and len(self._stuck) > 1:
            dropped = self._stuck.popleft()
            waiting -= dropped.size
            self.status.dropped_rows += dropped.size
        self.status.waiting_rows = waiting

    def _attempt(self, *, ending: bool = False) -> None:
        """Write all that waits, if the file lets itself be written."""
        status = self.status
        try:
            writer = self._opened()
            while self._stuck:
                added = writer.add(self._stuck[0])
                if not added:  # an earlier commit raised, and the file has it: its sums are in those of the file
                    self._read_sums(writer)
                self._count(self._stuck.popleft(), added)
            if self._lost < status.dropped_rows:
                self._notes.append(f"{status.dropped_rows - self._lost} rows of the ledger were lost")
                self._lost = status.dropped_rows
            while self._notes:
                writer.note(EventRow(self._wall(), "fault", "", self._notes[0]))
                del self._notes[0]
            if ending:
                writer.end(self._wall())
            elif self._monotonic() - self._tidied_s >= TIDY_S:
                self._tidy(writer)
            status.bytes = files.size_bytes(self._path)
        except Exception as error:  # whatever a disk does must not end the thread: it is counted and shown
            self._fail(error)
            return
        lately = self._monotonic() - self._removed_s < REMOVED_S
        status.state, status.reason, status.trouble = "writing", "", _REMOVED if lately else ""
        if self._said:
            self._said = ""
            log.info("the ledger is written again; %d rows are lost", status.dropped_rows)

    def _count(self, batch: LedgerBatch, added: bool) -> None:
        """Count a batch that is in the file; its sums only if it was added now."""
        status = self.status
        status.written_rows += batch.size
        status.waiting_rows = sum(item.size for item in self._stuck)
        status.flushes += 1
        if not added:
            return
        for _, _, _, figures in _of(batch.rows, "lines"):
            status.joules += figures["joules_uj"] / 1e6
            status.grams += figures["grams_ng"] / 1e9
        for model, boundary, against, figures in _of(batch.rows, "saved"):
            if boundary == "server":
                saved_g = (figures["shadow_ng"] - figures["own_ng"]) / 1e9
                status.saved_g[model, against] = status.saved_g.get((model, against), 0.0) + saved_g

    def _opened(self) -> LedgerWriter:
        """Return the open file; raises what keeps it from being opened."""
        if self._writer is not None:
            if files.same_file(self._path, self._inode):
                return self._writer
            self._note_removed()
        files.check_folder(self._path.parent)
        if self._lock is None:
            self._lock = files.LedgerLock(self._path)
        try:
            writer = self._begun(self._open_writer(self._path))
        except sqlite3.DatabaseError as error:
            if files.reason_of(error) != "damaged":
                raise
            self._run = 0
            writer = self._begun(self._begin_anew(error))
        self._writer, self._inode = writer, os.stat(self._path).st_ino
        self._tidied_s = self._monotonic() - TIDY_S
        return writer

    def _note_removed(self) -> None:
        """Leave a file that was removed or replaced, whose rows would be lost, and its lock, which may be gone too."""
        self._leave()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._removed_s = self._monotonic()
        self.status.failures["removed"] += 1
        log.warning("the ledger %s %s", self._path, _REMOVED)
        self._notes.append("the ledger before this one was removed or replaced while it was written")

    def _begun(self, writer: LedgerWriter) -> LedgerWriter:
        """Check a file that was opened, and begin a run in it or go on with ours; close it if that fails."""
        try:
            writer.check()
            first = not self._run
            # Of a batch whose commit failed in an unknown way, the file knows whether it has it.
            if first or not writer.resume(self._run):
                self._run = writer.begin(self._start)
            self._read_sums(writer)
            if first:
                self._note_earlier()
        except BaseException:
            writer.close()
            raise
        return writer

    def _begin_anew(self, error: Exception) -> LedgerWriter:
        """Set a damaged file aside and make a new one that says so."""
        aside = files.set_aside(self._path, self._wall())
        self.status.failures["damaged"] += 1
        self.status.set_aside = aside.name
        log.warning("the ledger %s is damaged (%s): it is now %s, and a new one begins", self._path, error, aside.name)
        self._notes.append(f"the ledger was damaged, and is set aside as {aside.name}")
        return self._open_writer(self._path)

    def _note_earlier(self) -> None:
        """Note what is in the file before this run adds to it."""
        self.status.earlier_j = self.status.joules
        with LedgerReader(self._path) as ledger:
            self.status.earlier_today = ledger.models(self._wall() // DAY_S * DAY_S)

    def _read_sums(self, writer: LedgerWriter) -> None:
        found, status = writer.lifetime(), self.status
        status.since_s, status.joules, status.grams = found.since_s, found.joules_uj / 1e6, found.grams_ng / 1e9
        status.saved_g = {key: ng / 1e9 for key, ng in found.saved_ng.items()}

    def _fail(self, error: Exception) -> None:
        """Count a failure, log it if it is a new one, and open the file anew next time, unless it is only busy or
        full."""
        status, reason = self.status, files.reason_of(error)
        status.state, status.reason = "failing", reason
        status.failures[reason] += 1
        words = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        status.trouble = printable(words, 300)  # SQLite quotes what stands in a damaged file
        if reason not in ("full", "locked"):
            self._leave()
        if self._said != reason:
            self._said = reason
            advice = "" if isinstance(error, LedgerError) else f"; {_ADVICE[reason]}"
            log.warning(
                "the ledger %s cannot be written (%s: %s)%s; serving goes on, and up to %d rows wait",
                self._path,
                reason,
                status.trouble,
                advice,
                MOST_ROWS,
            )
            if reason == "failed" and not isinstance(error, OSError | sqlite3.Error):
                log.error("writing the ledger failed in an unforeseen way", exc_info=error)

    def _leave(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tidy(self, writer: LedgerWriter) -> None:
        """Fold old spans, and make a file that is too large smaller: fold earlier, then remove the oldest days."""
        self._tidied_s = self._monotonic()
        now_s, kept = int(self._wall()), self._retention
        folded = writer.fold(now_s - int(kept.minutes_s), now_s - int(kept.hours_s))
        writer.forget_events(now_s - kept.hours_s)
        minutes_s, hours_s = kept.minutes_s, kept.hours_s
        while writer.size_bytes() > kept.most_bytes and (minutes_s > HOUR_S or hours_s > DAY_S):
            minutes_s, hours_s = max(minutes_s / 2, HOUR_S), max(hours_s / 2, DAY_S)
            folded += writer.fold(now_s - int(minutes_s), now_s - int(hours_s))
            writer.forget_events(now_s - hours_s)
        while writer.size_bytes() > kept.most_bytes and (first_s := writer.first_s()) is not None:
            if first_s >= now_s - DAY_S:
                break
            removed = writer.forget(first_s + DAY_S)
            log.warning(
                "the ledger is larger than %d bytes: %d rows of its first day are gone", kept.most_bytes, removed
            )
            folded += removed
        if folded:
            writer.shrink()


_REMOVED = "was removed or replaced while it was written: what it had is not in the ledger that begins now"
_ADVICE = {
    "full": "free space on its disk",
    "locked": "another program holds it: end that, or copy the file with `sqlite3 FILE .backup`",
    "readonly": "let this user write there, or name another --state-dir",
    "damaged": "it is set aside at the next attempt",
    "failed": "look at its disk",
    "taken": "",
    "later": "",
    "refused": "",
}


def _of(
    rows: Mapping[str, Mapping[tuple[object, ...], object]], table: str
) -> list[tuple[str, str, str, dict[str, int]]]:
    """Return the first three keys and the figures of each row of a table."""
    names = TABLES[table].figures
    return [
        (str(key[2]), str(key[3]), str(key[4]), dict(zip(names, figures, strict=True)))  # type: ignore[call-overload]
        for key, figures in rows.get(table, {}).items()
    ]
