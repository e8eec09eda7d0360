"""The file of a ledger: what is written is read, sums are exact, and folding keeps them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import LedgerError
from clover.telemetry.ledger import LedgerReader, LedgerWriter, schema
from clover.telemetry.ledger.latency import BOUNDS_MS, add, counts_of, decode, encode, quantile_ms
from clover.telemetry.ledger.rows import EventRow, KeptProfile
from clover.telemetry.ledger.schema import DAY_S, HOUR_S, MINUTE_S
from clover.telemetry.ledger.store import LedgerBatch, RunStart, TableRows
from tests.support.examples import examples
from tests.support.ledgers import MIDNIGHT, LedgerScene, LedgerTruth, write_ledger

START = RunStart(100.0, "1.2.3", "box", 7, "abc", '{"port": 1}', '{"pue": 1.5}')


def line(start: int, uj: int, ng: int = 0, device: str = "cpu", length: int = MINUTE_S) -> dict[str, TableRows]:
    return {"lines": {(start, length, device, "active", "modelled"): (uj, ng)}}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LedgerWriter]:
    made = LedgerWriter(tmp_path / "state" / "ledger" / "a.db")
    made.begin(START)
    yield made
    made.close()


def test_the_same_span_and_keys_are_one_row(writer: LedgerWriter) -> None:
    writer.add(LedgerBatch(1, 130.0, line(120, 5, 1)))
    writer.add(LedgerBatch(2, 140.0, line(120, 7, 2)))
    with LedgerReader(writer.path) as ledger:
        (row,) = ledger.lines()
        assert (row.start, row.length, row.device, row.line, row.label) == (120, 60, "cpu", "active", "modelled")
        assert (row.joules, row.grams) == (12e-6, 3e-9)
        assert row.end == 180
        (run,) = ledger.runs()
        assert (run.started, run.seen, run.ended, run.version, run.facts) == (100.0, 140.0, None, "1.2.3", START.facts)


def test_a_batch_that_is_given_twice_counts_once(writer: LedgerWriter) -> None:
    given = LedgerBatch(1, 130.0, line(120, 5), [EventRow(1.0, "fault", "", "x")])
    assert [writer.add(given) for _ in range(2)] == [True, False]
    assert writer.sums().joules == 5e-6
    with LedgerReader(writer.path) as ledger:
        assert [event.run for event in ledger.events()] == [writer.run]


def test_a_failed_batch_leaves_nothing(writer: LedgerWriter) -> None:
    bad = {**line(120, 5), "grid": {(120, 61, "", "", "", "", "live"): (1, 1, 1, 1, 1, 1, 1)}}
    with pytest.raises(sqlite3.IntegrityError):
        writer.add(LedgerBatch(1, 130.0, bad))
    assert writer.sums().joules == 0.0
    writer.add(LedgerBatch(1, 130.0, line(120, 5)))
    assert writer.sums().joules == 5e-6


def test_only_this_user_can_read_it(writer: LedgerWriter) -> None:
    writer.add(LedgerBatch(1, 130.0, line(120, 5)))
    for path in writer.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(writer.path.parent.stat().st_mode) == 0o700


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LedgerWriter(tmp_path / "a.db")


def test_a_run_is_continued_and_ended(writer: LedgerWriter) -> None:
    writer.add(LedgerBatch(4, 130.0, line(120, 5)))
    again = LedgerWriter(writer.path)
    assert again.resume(writer.run)
    again.add(LedgerBatch(4, 130.0, line(120, 5)))
    assert not again.resume(9)
    again.end(200.0)
    again.close()
    with LedgerReader(writer.path) as ledger:
        assert ledger.runs()[0].ended == 200.0
        assert ledger.runs(since_s=201.0) == []
        assert ledger.sums().joules == 5e-6


def test_profiles_are_kept_once_and_events_newest_first(writer: LedgerWriter) -> None:
    events = [EventRow(float(at), "decision" if at % 2 else "fault", "m", f"e{at}") for at in range(6)]
    writer.add(LedgerBatch(1, 130.0, events=events, profiles=[KeptProfile("d", "m", 1.0, "{}")]))
    writer.add(LedgerBatch(2, 130.0, profiles=[KeptProfile("d", "m", 2.0, "{}")], facts='{"pue": 1.2}'))
    with LedgerReader(writer.path) as ledger:
        assert ledger.runs()[0].facts == '{"pue": 1.2}'
        assert ledger.profiles() == [KeptProfile("d", "m", 1.0, "{}")]
        assert [event.summary for event in ledger.events(limit=2)] == ["e4", "e5"]
        assert [event.summary for event in ledger.events(1, 5, kinds=["fault"])] == ["e2", "e4"]


# --- versions ---------------------------------------------------------------------------------------------------------


def test_an_empty_file_becomes_a_ledger_and_an_older_one_is_migrated(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    assert schema.migrate(connection) == 0
    assert schema.migrate(connection) == 1
    later = (*schema.MIGRATIONS, ("ALTER TABLE lines ADD COLUMN more_uj INTEGER NOT NULL DEFAULT 0",))
    connection.execute("INSERT INTO lines VALUES (0, 60, 'cpu', 'idle', 'modelled', 1, 2)")
    assert schema.migrate(connection, later) == 1
    assert connection.execute("SELECT joules_uj, more_uj FROM lines").fetchall() == [(1, 0)]
    with pytest.raises(LedgerError, match="of version 2, and this Clover knows versions up to 1"):
        schema.version_of(connection)
    connection.close()
    with pytest.raises(LedgerError, match="version 2"):
        LedgerReader(tmp_path / "a.db")


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    schema.migrate(connection)
    later = (*schema.MIGRATIONS, ("ALTER TABLE lines ADD COLUMN more INTEGER", "ALTER TABLE nothing ADD x"))
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, later)
    assert schema.version_of(connection) == 1
    assert "more" not in [row[1] for row in connection.execute("PRAGMA table_info(lines)")]
    connection.close()


def test_another_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    for kind in (LedgerWriter, LedgerReader):
        with pytest.raises(LedgerError, match="no ledger of Clover"):
            kind(tmp_path / "a.db")


@pytest.mark.parametrize(
    ("content", "why"), [(None, "no such file"), (b"", "it is empty"), (b"x" * 5000, "not a database")]
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "secret-name.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerError, match=why) as caught:
        LedgerReader(path)
    assert "secret-name" not in str(caught.value)


def test_it_is_read_while_it_is_written_and_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.db"
    writer = LedgerWriter(path)
    writer.begin(START)
    with LedgerReader(path) as ledger:
        assert ledger.bounds() is None
        writer.add(LedgerBatch(1, 130.0, line(120, 5)))
        assert ledger.bounds() == (120, 180)
    writer.close()
    path.parent.chmod(0o500)
    try:
        with LedgerReader(path) as ledger:
            assert ledger.sums().joules == 5e-6
    finally:
        path.parent.chmod(0o700)


# --- sums and folding -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LedgerTruth]:
    path = tmp_path_factory.mktemp("ledger") / "a.db"
    return path, write_ledger(path, LedgerScene(days=2.0, minutes_days=0.25))


@pytest.mark.parametrize("step_s", [None, MINUTE_S, HOUR_S, DAY_S])
def test_every_granularity_has_the_same_sums(scene: tuple[Path, LedgerTruth], step_s: int | None) -> None:
    path, truth = scene
    with LedgerReader(path) as ledger:
        lines, usage = ledger.lines(step_s=step_s), ledger.usage(step_s=step_s)
        grid, quality = ledger.grid(step_s=step_s), ledger.quality(step_s=step_s)
        assert round(sum(row.joules for row in lines) * 1e6) == truth.joules_uj
        assert round(sum(row.grams for row in lines) * 1e9) == truth.grams_ng
        assert round(sum(row.joules for row in grid) * 1e6) == truth.joules_uj
        assert sum(row.rows for row in usage) == sum(row.rows for row in quality) == truth.rows
        for model, uj in truth.by_model_uj.items():
            assert round(sum(row.joules for row in usage if row.model == model) * 1e6) == uj
        assert sum(row.seconds for row in grid) == truth.seconds
        if step_s:
            assert {row.length for row in lines} <= {length for length in schema.LENGTHS if length >= step_s}
        assert all(80.0 <= row.accuracy <= 100.0 for row in quality if row.accuracy is not None)
        assert all(50.0 < row.g_per_kwh_time < 500.0 for row in grid)
        assert all(row.net_g / row.joules * 3.6e6 == pytest.approx(row.g_per_kwh_time, rel=0.3) for row in grid)


def test_sums_of_a_time_are_those_of_its_spans(scene: tuple[Path, LedgerTruth]) -> None:
    path, truth = scene
    with LedgerReader(path) as ledger:
        whole = ledger.sums()
        assert (whole.rows, whole.requests, whole.seconds) == (truth.rows, truth.requests, truth.seconds)
        assert {label: round(j * 1e6) for label, j in whole.joules_by_label.items()} == truth.by_label_uj
        halves = [ledger.sums(0, MIDNIGHT + DAY_S), ledger.sums(MIDNIGHT + DAY_S)]
        assert sum(half.joules for half in halves) == pytest.approx(whole.joules, rel=1e-12)
        assert sum(half.rows for half in halves) == whole.rows
        assert {"live", "bridged", "configured"} <= whole.grams_by_known.keys()


def contents(path: Path, step_s: int) -> tuple[object, ...]:
    with LedgerReader(path) as ledger:
        return tuple(
            read(step_s=step_s) for read in (ledger.usage, ledger.lines, ledger.grid, ledger.quality, ledger.saved)
        )


def test_folding_keeps_every_figure(scene: tuple[Path, LedgerTruth], tmp_path: Path) -> None:
    path = tmp_path / "b.db"
    shutil.copy(scene[0], path)
    hours, days = contents(path, HOUR_S), contents(path, DAY_S)
    writer = LedgerWriter(path)
    end = MIDNIGHT + 2 * DAY_S
    assert writer.fold(end - 1000, 0) > 0  # the last hour, which is not over, stays as minutes
    assert contents(path, HOUR_S) == hours
    with LedgerReader(path) as ledger:
        assert {row.length for row in ledger.lines(end - HOUR_S)} == {MINUTE_S}
        assert {row.length for row in ledger.lines(0, end - HOUR_S)} == {HOUR_S}
    writer.fold(end, end)
    assert contents(path, DAY_S) == days
    with LedgerReader(path) as ledger:
        assert {row.length for row in ledger.lines()} == {DAY_S}
    assert writer.fold(end, end) == 0
    before = writer.size_bytes()
    writer.forget(MIDNIGHT + DAY_S)
    assert writer.size_bytes() < before
    long = path.stat().st_size
    writer.shrink()
    assert path.stat().st_size < long / 4
    with LedgerReader(path) as ledger:
        assert ledger.bounds() == (MIDNIGHT + DAY_S, end)
    writer.close()


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(-5, 10**9), st.integers(0, 10**9), st.sampled_from(["a", "b"])),
        max_size=30,
    ),
    st.integers(0, 2000),
    st.integers(0, 2000),
)
@settings(max_examples=examples(25))
def test_random_spans_fold_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    spans: list[tuple[int, int, int, str]],
    minutes_until: int,
    hours_until: int,
) -> None:
    path = tmp_path_factory.mktemp("fold") / "a.db"
    writer = LedgerWriter(path)
    writer.begin(START)
    for number, (minute, uj, ng, device) in enumerate(spans, 1):
        writer.add(LedgerBatch(number, 1.0, line(minute * 60, uj, ng, device)))
    days = contents(path, DAY_S)
    writer.fold(minutes_until * 60, hours_until * 60)
    writer.close()
    assert contents(path, DAY_S) == days
    with LedgerReader(path) as ledger:
        assert round(ledger.sums().joules * 1e6) == sum(uj for _, uj, _, _ in spans)
    path.unlink()


# --- a kill at any statement ------------------------------------------------------------------------------------------


def test_a_kill_at_any_statement_loses_at_most_the_batch_under_way(tmp_path: Path) -> None:
    """What is in the files before each statement is what a kill there leaves."""
    path, committed = tmp_path / "a.db", 0
    seen: list[tuple[Path, int]] = []

    def step() -> None:
        folder = tmp_path / f"kill{len(seen)}"
        folder.mkdir()
        for file in tmp_path.glob("a.db*"):
            if not file.name.endswith("-shm"):  # made anew from the journal
                shutil.copy(file, folder)
        seen.append((folder, committed))

    writer = LedgerWriter(path, step=step)
    writer.begin(START)
    for number in range(1, 4):
        rows = {
            **line(120 * number, 5),
            "usage": {(120 * number, 60, "m", "", "", "", "", ""): (1, *[0] * 14)},
        }
        writer.add(LedgerBatch(number, 130.0, rows, [EventRow(1.0, "fault", "", "x")]))
        committed = number
    writer.fold(DAY_S, DAY_S)
    writer.end(300.0)
    writer.close()
    assert len(seen) > 40
    for folder, number in seen:
        found = LedgerWriter(folder / "a.db")
        found.check()
        sums = found.sums()
        events = found._connection.execute("SELECT count(*) FROM events").fetchone()[0]
        assert (round(sums.joules * 1e6), sums.requests, events) in ((5 * n, n, n) for n in (number, number + 1))
        found.close()


# --- latencies --------------------------------------------------------------------------------------------------------


def test_histograms_survive_text_and_add_up() -> None:
    counts = {0: 3, 12: 5, len(BOUNDS_MS): 1}
    assert decode(encode(counts)) == counts
    assert decode(add(encode(counts), "12:1,13:2")) == {0: 3, 12: 6, 13: 2, 80: 1}
    assert add("", "1:2") == "1:2" == add("1:2", "")
    assert counts_of([3] + [3] * 11 + [8] * 68, 9) == counts


def test_quantiles_lie_within_their_bucket() -> None:
    assert quantile_ms({}, 0.5) is None
    assert quantile_ms({4: 100}, 0.0) == pytest.approx(BOUNDS_MS[3])
    assert quantile_ms({4: 100}, 1.0) == pytest.approx(BOUNDS_MS[4])
    assert quantile_ms({0: 99, len(BOUNDS_MS): 1}, 1.0) == float("inf")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = LedgerWriter(tmp_path / "a.db")
    with LedgerReader(tmp_path / "a.db"):
        pass
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before
