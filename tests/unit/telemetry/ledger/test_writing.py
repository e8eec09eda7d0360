"""The thread that writes: whatever the disk does, serving goes on, and what is lost is counted and said."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import LedgerError
from clover.telemetry.ledger import LedgerReader, LedgerWriter, store, writing
from clover.telemetry.ledger.files import (
    LedgerLock,
    check_folder,
    ledger_path,
    ledgers_in,
    reason_of,
    server_name,
    size_bytes,
)
from clover.telemetry.ledger.rows import EventRow
from clover.telemetry.ledger.schema import DAY_S, HOUR_S, MINUTE_S
from clover.telemetry.ledger.store import LedgerBatch, RunStart
from clover.telemetry.ledger.writing import QUEUE, LedgerThread, Retention
from tests.support.examples import examples

START = RunStart(1000.0, "1", "box", 1, "d", "{}")


def batch(number: int, minute: int = 0, uj: int = 1_000_000, devices: int = 1) -> LedgerBatch:
    keys = [(minute * 60, MINUTE_S, f"cpu{device}", "idle", "modelled") for device in range(devices)]
    return LedgerBatch(number, 1000.0 + number, {"lines": dict.fromkeys(keys, (uj, 2 * uj))})


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger" / "a.db"


def joules(path: Path) -> float:
    with LedgerReader(path) as ledger:
        return ledger.sums().joules


def faults(path: Path) -> list[str]:
    with LedgerReader(path) as ledger:
        return [event.summary for event in ledger.events(kinds=["fault"])]


# --- in order ---------------------------------------------------------------------------------------------------------


def test_a_thread_writes_what_it_is_given_and_ends_the_run(path: Path) -> None:
    ledger = LedgerThread(path, START)
    ledger.start()
    assert all(ledger.put(batch(number)) for number in range(1, 4))
    assert ledger.close()
    status = ledger.status
    assert (status.state, status.written_rows, status.dropped_rows, status.flushes) == ("closed", 3, 0, 3)
    assert (status.joules, status.grams) == (3.0, pytest.approx(0.006))
    assert status.bytes == size_bytes(path) > 0
    assert joules(path) == 3.0
    with LedgerReader(path) as found:
        assert found.runs()[0].ended is not None


def test_totals_continue_over_runs(path: Path) -> None:
    saved = {"saved": {(0, MINUTE_S, "m", "server", "base", "modelled"): (1, 0, 100, 0, 1_000_000_100, 0, 0, 0)}}
    for run in range(3):
        ledger = LedgerThread(path, RunStart(1000.0 + run, "1", "box", 1, "d", "{}"))
        ledger.write(batch(1))
        ledger.write(LedgerBatch(2, 1000.0, saved))
        assert (ledger.status.joules, ledger.status.since_s) == (run + 1.0, 1000.0)
        assert ledger.status.saved_g == {("m", "base"): run + 1.0}
        ledger.end()
    with LedgerReader(path) as found:
        assert [run.id for run in found.runs()] == [1, 2, 3]


def test_what_earlier_runs_left_is_known_apart_from_what_this_one_adds(path: Path) -> None:
    clock = Clock()
    clock.s = DAY_S + 1000.0

    def used(number: int, *models: str, at_s: int = DAY_S) -> LedgerBatch:
        keys = [(at_s, MINUTE_S, model, "", "", "", "", "modelled") for model in models]
        return LedgerBatch(number, clock.s, {**batch(number).rows, "usage": dict.fromkeys(keys, (0,) * 15)})

    first, second = LedgerThread(path, START, wall=clock), LedgerThread(path, START, wall=clock)
    first.write(used(1, "yesterdays", at_s=0))
    first.write(used(2, "demo", "demo@2"))
    assert (first.status.earlier_j, first.status.earlier_today) == (0.0, [])
    first.end()
    second.write(used(1, "mine"))
    second.write(used(2, "mine"))
    assert (second.status.earlier_j, second.status.earlier_today) == (2.0, ["demo"])
    second.end()


def test_retention_folds_and_a_file_that_is_too_large_loses_its_oldest_days_and_no_total(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    clock.s = 10.0 * DAY_S
    ledger = LedgerThread(path, START, Retention(2 * DAY_S, 5 * DAY_S), wall=clock, monotonic=clock)
    ledger.write(batch(1, minute=60))
    for number in range(2, 10 * 24):
        ledger.write(batch(number, minute=60 * number))
    ledger.end()
    with LedgerReader(path) as found:
        assert {row.length for row in found.lines()} == {DAY_S, MINUTE_S}  # tidied with the first batch only
    caplog.set_level(logging.WARNING)
    again = LedgerThread(path, START, Retention(2 * DAY_S, 5 * DAY_S, 1 << 30), wall=clock, monotonic=clock)
    again.write(batch(1))
    with LedgerReader(path) as found:
        kept = {(row.start // DAY_S, row.length) for row in found.lines()}
    assert {length for day, length in kept if day < 5} == {DAY_S}
    assert {length for day, length in kept if 5 <= day < 8} == {HOUR_S}
    assert {length for day, length in kept if day >= 8} == {MINUTE_S}
    assert (again.status.joules, joules(path)) == (240.0, 240.0)
    again.end()
    assert not caplog.records
    small = LedgerThread(path, START, Retention(2 * DAY_S, 5 * DAY_S, 1), wall=clock, monotonic=clock)
    small.write(batch(1, minute=10 * 1440))
    assert "are gone" in caplog.text
    assert joules(path) < 40.0
    small.end()
    last = LedgerThread(path, START, wall=clock, monotonic=clock)
    last.write(batch(1, minute=10 * 1440))
    assert last.status.joules == 242.0
    last.end()


def test_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_name("", "::1", 8080) == "_1-8080"
    assert server_name("mine", "::1", 8080) == "mine"
    assert ledger_path(str(tmp_path), "mine") == tmp_path / "ledger" / "mine.db"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    assert ledger_path("", "mine") == tmp_path / "x" / "clover" / "ledger" / "mine.db"
    assert ledgers_in("") == []
    for index, name in enumerate(("a", "b")):
        made = ledger_path("", name)
        LedgerWriter(made).close()
        os.utime(made, (index, index))
    assert [found.stem for found in ledgers_in("")] == ["b", "a"]
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LedgerError, match="others can write"):
        check_folder(folder)


# --- disks that fail --------------------------------------------------------------------------------------------------


class Disk:
    """Opens ledgers, until told to fail."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.made: list[LedgerWriter] = []

    def __call__(self, path: Path) -> LedgerWriter:
        self.made.append(LedgerWriter(path, step=self.step))
        return self.made[-1]

    def step(self) -> None:
        if self.error is not None:
            raise self.error


def sqlite_error(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (sqlite_error("SQLITE_FULL"), "full"),
        (sqlite_error("SQLITE_BUSY_SNAPSHOT"), "locked"),
        (sqlite_error("SQLITE_READONLY_DBMOVED"), "readonly"),
        (sqlite_error("SQLITE_IOERR_WRITE"), "failed"),
        (OSError(28, "No space left on device"), "full"),
        (PermissionError(13, "Permission denied"), "readonly"),
        (ValueError("unforeseen"), "failed"),
    ],
)
def test_what_cannot_be_written_waits_and_is_written_later(
    path: Path, error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = Disk()
    ledger = LedgerThread(path, START, writer=disk)
    ledger.write(batch(1))
    disk.error = error
    for number in range(2, 5):
        ledger.write(batch(number))
    status = ledger.status
    assert (status.state, status.reason, status.waiting_rows, status.dropped_rows) == ("failing", reason, 3, 0)
    assert status.failures[reason] == 3
    assert status.trouble
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    disk.error = None
    ledger.write(batch(5))
    assert (status.state, status.waiting_rows, status.trouble) == ("writing", 0, "")
    assert joules(path) == 5.0
    assert "written again" in caplog.text
    ledger.end()


def test_a_full_disk_of_sqlite_itself(path: Path) -> None:
    disk = Disk()
    ledger = LedgerThread(path, START, writer=disk)
    ledger.write(batch(1))
    connection = disk.made[-1]._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    ledger.write(batch(2, devices=3000))
    assert (ledger.status.state, ledger.status.reason) == ("failing", "full")
    connection.execute("PRAGMA max_page_count = 100000")
    ledger.write(batch(3))
    assert joules(path) == 3002.0
    ledger.end()


def test_a_file_that_another_program_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_S", 0.01)
    ledger = LedgerThread(path, START)
    ledger.write(batch(1))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.write(batch(2))
    assert (ledger.status.reason, ledger.status.waiting_rows) == ("locked", 1)
    other.execute("ROLLBACK")
    other.close()
    ledger.write(batch(3))
    assert joules(path) == 3.0
    ledger.end()


def test_two_servers_do_not_share_a_file(path: Path) -> None:
    first, second = LedgerThread(path, START), LedgerThread(path, START)
    first.write(batch(1))
    second.write(batch(1))
    assert second.status.reason == "taken"
    assert f"process {os.getpid()}" in second.status.trouble
    assert "--ledger-name" in second.status.trouble
    first.end()
    second.write(batch(2))
    assert (second.status.state, joules(path)) == ("writing", 3.0)
    second.end()
    LedgerLock(path).close()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def torn(path: Path) -> None:
    """Overwrite the pages behind the first one."""
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


@pytest.mark.parametrize("damage", [garbage, torn])
def test_a_damaged_file_is_set_aside_at_the_next_start(path: Path, damage: Callable[[Path], None]) -> None:
    ledger = LedgerThread(path, START)
    ledger.write(batch(1))
    ledger.end()
    damage(path)
    again = LedgerThread(path, START)
    again.write(batch(1, uj=7_000_000))
    status = again.status
    assert (status.state, status.failures["damaged"], status.joules) == ("writing", 1, 7.0)
    assert status.set_aside.startswith("a.db.corrupt-")
    assert (path.parent / status.set_aside).exists()
    assert faults(path) == [f"the ledger was damaged, and is set aside as {status.set_aside}"]
    again.end()


def test_a_file_that_is_damaged_while_it_is_written_is_set_aside_with_the_next_batch(path: Path) -> None:
    disk = Disk()
    ledger = LedgerThread(path, START, writer=disk)
    ledger.write(batch(1))
    disk.error = sqlite3.DatabaseError("database disk image is malformed")
    ledger.write(batch(2))
    assert ledger.status.reason == "damaged"
    disk.error = None
    garbage(path)
    for part in ("-wal", "-shm"):
        Path(f"{path}{part}").unlink(missing_ok=True)
    ledger.write(batch(3))
    assert joules(path) == 2.0  # those that were not in the old file
    ledger.end()


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    LedgerWriter(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    before = path.read_bytes()
    ledger = LedgerThread(path, START)
    ledger.write(batch(1))
    assert ledger.status.reason == "later"
    assert "version 9" in ledger.status.trouble
    ledger.end()
    assert ledger.status.dropped_rows == 1
    assert path.read_bytes() == before


def test_a_file_that_is_removed_while_it_is_written_is_made_anew(path: Path) -> None:
    ledger = LedgerThread(path, START)
    ledger.write(batch(1))
    for part in ("", "-wal", "-shm"):
        Path(f"{path}{part}").unlink()
    ledger.write(batch(2))
    assert joules(path) == 1.0
    ledger.end()


@pytest.mark.parametrize("how", ["file", "folder", "replaced"])
def test_a_file_or_folder_that_is_removed_is_said_counted_and_locked_anew(
    path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ledger = LedgerThread(path, START, monotonic=clock)
    ledger.write(batch(1))
    if how == "file":
        path.unlink()
    elif how == "folder":
        shutil.rmtree(path.parent)
    else:
        path.rename(path.with_name("kept.db"))
        path.touch(0o600)
    clock.s += 60.0
    ledger.write(batch(2))
    status = ledger.status
    assert (status.state, status.failures["removed"], joules(path)) == ("writing", 1, 1.0)
    assert "was removed or replaced" in status.trouble
    assert caplog.text.count("was removed or replaced") == 1
    assert faults(path) == ["the ledger before this one was removed or replaced while it was written"]
    with pytest.raises(LedgerError, match="another server"):
        LedgerLock(path)
    clock.s += 60.0
    ledger.write(batch(3))
    assert "was removed or replaced" in status.trouble, "an operator looks at it now and then only"
    clock.s += 3600.0
    ledger.write(batch(4))
    assert (status.trouble, status.failures["removed"], joules(path)) == ("", 1, 3.0)
    ledger.end()


def test_where_no_new_file_can_be_made_what_comes_waits(path: Path) -> None:
    ledger = LedgerThread(path, START)
    ledger.write(batch(1))
    shutil.rmtree(path.parent)
    path.parent.touch()
    ledger.write(batch(2))
    status = ledger.status
    assert (status.state, status.waiting_rows, status.failures["removed"]) == ("failing", 1, 1)
    path.parent.unlink()
    ledger.write(batch(3))
    assert (status.state, status.failures["removed"], joules(path)) == ("writing", 1, 2.0)
    ledger.end()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    ledger = LedgerThread(tmp_path / "state" / "ledger" / "a.db", START)
    ledger.write(batch(1))
    assert (ledger.status.state, ledger.status.waiting_rows) == ("failing", 1)
    (tmp_path / "state").unlink()
    ledger.write(batch(2))
    assert ledger.status.state == "writing"
    ledger.end()


def test_what_waits_is_bounded_and_what_is_lost_is_noted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_ROWS", 10)
    disk = Disk()
    ledger = LedgerThread(path, START, writer=disk)
    disk.error = sqlite_error("SQLITE_FULL")
    for number in range(1, 21):
        ledger.write(batch(number))
    assert (ledger.status.waiting_rows, ledger.status.dropped_rows) == (10, 10)
    disk.error = None
    ledger.write(batch(21))
    assert joules(path) == 10.0
    assert ledger.status.dropped_rows == 11
    assert faults(path) == ["11 rows of the ledger were lost"]
    ledger.end()


def test_a_disk_that_hangs_blocks_neither_the_loop_nor_the_end(path: Path) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(path: Path) -> LedgerWriter:
        hangs.set()
        goes_on.wait(30.0)
        return LedgerWriter(path)

    ledger = LedgerThread(path, START, writer=hang)
    ledger.start()
    hangs.wait(30.0)
    assert [ledger.put(batch(number)) for number in range(QUEUE + 2)] == [True] * QUEUE + [False] * 2
    assert ledger.status.dropped_rows == 2
    assert not ledger.close(within_s=0.01)
    goes_on.set()
    assert ledger.close(within_s=30.0)
    assert ledger.status.state == "closed"


@pytest.mark.parametrize("error", ["IOERR_FSYNC", "FULL"])  # the file is opened anew, or stays open
@pytest.mark.parametrize("after", [1, 2])
def test_a_commit_that_fails_in_an_unknown_way_counts_once(path: Path, after: int, error: str) -> None:
    """The commit raises, and the file has the batch, or has not."""
    disk = Disk()
    ledger = LedgerThread(path, START, writer=disk)
    ledger.write(batch(1))
    writer = disk.made[-1]
    given = batch(2)
    if after == 2:
        twin = LedgerWriter(path)
        twin.resume(writer.run)
        twin.add(given)
        twin.close()
    disk.error = sqlite_error(f"SQLITE_{error}")
    ledger.write(given)
    disk.error = None
    ledger.write(batch(3))
    assert joules(path) == 3.0
    assert (ledger.status.joules, ledger.status.grams, ledger.status.written_rows) == (3.0, pytest.approx(0.006), 3)
    ledger.end()


@settings(max_examples=examples(25))
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["FULL", "BUSY", "IOERR_FSYNC", "READONLY"])), max_size=12)
)
def test_whatever_statement_fails_each_batch_counts_once(
    tmp_path_factory: pytest.TempPathFactory, failures: list[tuple[int, str]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "a.db"
    left = [0]
    errors = [sqlite_error("SQLITE_FULL")]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise errors[0]

    ledger = LedgerThread(path, START, writer=lambda path: LedgerWriter(path, step=step))
    for number, (statement, name) in enumerate(failures, 1):
        left[0], errors[0] = statement, sqlite_error(f"SQLITE_{name}")
        ledger.write(batch(number, minute=number % 3))
    left[0] = 0
    ledger.write(batch(len(failures) + 1))
    ledger.end()
    assert ledger.status.joules == joules(path) == len(failures) + 1.0
    assert (ledger.status.dropped_rows, ledger.status.waiting_rows) == (0, 0)
    with LedgerReader(path) as found:
        assert len(found.runs()) == 1
    shutil.rmtree(path.parent)


def test_reasons() -> None:
    assert reason_of(LedgerError("it is a database, but no ledger of Clover")) == "refused"
    assert reason_of(sqlite3.DatabaseError("malformed")) == "damaged"
    assert reason_of(EOFError()) == "failed"


def test_a_copy_made_at_any_moment_is_whole(path: Path, tmp_path: Path) -> None:
    """What kill -9 leaves: the files as they are between two flushes."""
    ledger = LedgerThread(path, START)
    for number in range(1, 4):
        ledger.write(LedgerBatch(number, 1000.0, batch(number).rows, [EventRow(1.0, "decision", "m", "x")]))
        killed = tmp_path / f"killed{number}"
        shutil.copytree(path.parent, killed)
        again = LedgerThread(killed / "a.db", START)
        again.write(batch(1))
        assert again.status.joules == number + 1.0
        with LedgerReader(killed / "a.db") as found:
            assert [run.ended for run in found.runs()] == [None, None]
        again.end()
    ledger.end()
