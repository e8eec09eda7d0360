"""Batch jobs on the disk: each row is answered once, whatever happens to the process, the disk and the clock."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clover.config import BatchJobsConfig
from clover.errors import BadRequest, Conflict, NotFound, TooLarge, Unavailable
from clover.types import Receipt, RowAnswer
from clover.waiting import store as store_module
from clover.waiting.store import BatchStore, DiskFull
from tests.support.servers import ROOT
from tests.support.waiting_rows import ENDPOINT, answers, as_jsonl, begin, ended, keep, line, lines, run_rows, until

DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def with_store(work: Callable[[BatchStore, Clock], Awaitable[Any]], tmp_path: Path, **more: Any) -> Any:
    """Run `work` with a store in a loop of its own."""

    async def run() -> Any:
        clock = Clock()
        settings = {name: more.pop(name) for name in ("bytes", "rows", "days") if name in more}
        store = BatchStore(tmp_path / "jobs", BatchJobsConfig(**settings), clock=clock, **more)
        try:
            return await work(store, clock)
        finally:
            await store.close()

    return asyncio.run(run())


def test_a_job_is_answered_row_by_row(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(100))
        assert (job.status, job.total, job.model, job.deadline_s) == ("in_progress", 100, "words", clock.now_s + DAY_S)
        (view,) = store.open_jobs()
        assert (view.id, view.rows_left, view.carbon, view.endpoint) == (job.id, 100, "wait", ENDPOINT)
        rows = await store.next_rows(job.id, 3)
        assert [(row.number, row.custom_id, row.model) for row in rows] == [
            (0, "row-0", "words"),
            (1, "row-1", "words"),
            (2, "row-2", "words"),
        ]
        assert json.loads(rows[1].body) == {"model": "words", "input": "text 1"}
        assert [row.number for row in await store.next_rows(job.id, 2)] == [3, 4], "nobody gets a row twice"
        store.give_back(job.id, [1, 4])
        await until(lambda: len(store._folder._lent[job.id].returned) == 2)  # type: ignore[union-attr]
        assert [row.number for row in await store.next_rows(job.id, 3)] == [1, 4, 5]
        receipt = Receipt(
            variant="small",
            accuracy=88.71234,
            energy_j=0.5,
            carbon_mg=0.25,
            intensity_g_per_kwh=100.0,
            method="modelled",
        )
        await store.answered(job.id, [RowAnswer(0, 200, b'{"a":\n1}', receipt, "7"), (1, 400, b'{"error":"no"}')])
        assert store.open_jobs()[0].rows_left == 98
        await store.answered(job.id, [(0, 200, b'"again"'), (99, 200, b"{}"), (99, 200, b'"twice"'), (777, 200, b"{}")])
        store.give_back(job.id, [2, 3, 4, 5])
        await run_rows(store, job.id, 32)
        job = await ended(store, job.id)
        assert (job.status, job.total, job.completed, job.failed) == ("completed", 100, 87, 13)
        assert (job.energy_j, job.carbon_mg, job.repeated) == (0.5, 0.25, 0)
        good, bad = await answers(store, job.output_file), await answers(store, job.error_file)
        assert sorted(item["custom_id"] for item in good + bad) == sorted(f"row-{number}" for number in range(100))
        first = next(item for item in good if item["custom_id"] == "row-0")
        assert first["response"]["status_code"] == 200
        assert first["response"]["body"] == {"a": 1}
        assert first["error"] is None
        assert first["clover"]["version"] == "7"
        assert first["clover"]["receipt"]["energy_j"] == 0.5
        assert next(item for item in bad if item["custom_id"] == "row-1")["response"]["body"] == {"error": "no"}
        assert store.open_jobs() == []
        assert await store.next_rows(job.id, 5) == []

    with_store(work, tmp_path)


def test_nobody_else_may_read_the_files(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(20))
        await run_rows(store, job.id, 20)
        await ended(store, job.id)

    before = os.umask(0)
    try:
        with_store(work, tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "jobs").iterdir()}
    assert len(modes) >= 5
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("items", "code", "at"),
    [
        ([line("a"), line("b"), line("a")], "duplicate_custom_id", 3),
        ([line("a"), {"custom_id": "b"}], "invalid_json_line", 2),
        ([line("")], "invalid_custom_id", 1),
        ([line("x" * 513)], "invalid_custom_id", 1),
        ([line("a"), line("b", "/v2/models/words/infer")], "mismatched_url", 2),
        ([line("a") | {"method": "GET"}], "invalid_method", 1),
        ([line("a"), line("b", model="other")], "mismatched_model", 2),
        ([line("a", model=3)], "invalid_body", 1),
        ([line("a", model="missing")], "model_not_found", None),
        ([line("a", input="x" * 10_000)], "line_too_long", 1),
        ([], "empty_file", None),
        ([line(str(number)) for number in range(6)], "row_limit_exceeded", None),
    ],
)
def test_an_input_that_cannot_be_run_fails_as_a_whole(
    tmp_path: Path, items: list[Any], code: str, at: int | None
) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, as_jsonl(items) or b"\n \n")
        assert job.status == "failed"
        assert [(error["code"], error["line"]) for error in job.errors] == [(code, at)]
        assert store.open_jobs() == []
        assert store._folder is not None
        assert store._folder._db.execute("SELECT count(*) FROM rows").fetchone() == (0,)
        await store.delete("", job.input_file)

    def check(endpoint: str, model: str) -> str:
        return "" if model == "words" else "no such model"

    with_store(work, tmp_path, rows=5, check=check, body_bytes=2000)


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    deep = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":' + b"[" * 100_000 + b"\n"

    async def work(store: BatchStore, clock: Clock) -> None:
        for data in (b"{}{}\n", b"\xff\xfe\n", deep, b"nonsense\n" * 50):
            job = await begin(store, lines(1) + data)
            assert job.status == "failed"
            assert job.errors[0]["code"] == "invalid_json_line"
            assert job.errors[0]["line"] == 2
            assert len(job.errors) <= 20

    with_store(work, tmp_path)


def test_a_cancelled_job_keeps_what_is_answered(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(1200))
        rows = await store.next_rows(job.id, 10)
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows[:4]])
        job = await store.cancel("", job.id)
        assert job.status == "cancelling", "rows are being computed"
        assert store.open_jobs()[:1] == []
        assert await store.next_rows(job.id, 10) == []
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows[4:]])
        job = await ended(store, job.id)
        assert (job.status, job.completed, job.failed) == ("cancelled", 10, 1190)
        bad = await answers(store, job.error_file)
        assert bad[0]["error"]["code"] == "batch_cancelled"
        ids = [item["custom_id"] for item in await answers(store, job.output_file) + bad]
        assert sorted(ids) == sorted(f"row-{number}" for number in range(1200))
        with pytest.raises(Conflict):
            await store.cancel("", job.id)

    with_store(work, tmp_path)


def test_a_job_cancelled_while_its_input_is_read_never_runs(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        file = await keep(store, lines(1000))
        job = await store.create("", file.id, ENDPOINT, window="24h", window_s=DAY_S)
        await store.cancel("", job.id)
        assert store._folder is not None
        folder = store._folder
        await until(lambda: folder.jobs[job.id].status != "validating")
        await store.tend()
        job = await ended(store, job.id)
        assert (job.status, job.completed, job.failed) == ("cancelled", 0, 1000)

    with_store(work, tmp_path)


def test_a_job_expires_with_what_is_answered(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(10))
        rows = await store.next_rows(job.id, 4)
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows])
        clock.now_s += DAY_S - 1
        await store.tend()
        assert (await store.job("", job.id)).status == "in_progress"
        clock.now_s += 1
        await store.tend()
        job = await ended(store, job.id)
        assert (job.status, job.completed, job.failed) == ("expired", 4, 6)
        assert {item["error"]["code"] for item in await answers(store, job.error_file)} == {"batch_expired"}

    with_store(work, tmp_path)


def test_files_and_jobs_are_deleted_in_time(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(10), window_s=6 * DAY_S)
        clock.now_s += 3 * DAY_S
        await store.tend()
        await store.delete("", (await keep(store, lines(1))).id)
        with pytest.raises(Conflict, match="still needs"):
            await store.delete("", job.input_file)
        await run_rows(store, job.id, 10)
        await ended(store, job.id)
        await store.tend()
        assert [file.id for file in await store.files("")] == [job.error_file, job.output_file]
        clock.now_s += 2 * DAY_S
        await store.tend()
        assert await store.files("") == []
        assert await store.jobs("") == []
        assert [path.name for path in store.path.glob("*.jsonl")] == []

    with_store(work, tmp_path, days=2.0)


def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(40))
        rows = await store.next_rows(job.id, 10)
        clock.now_s -= 400 * DAY_S
        await store.tend()
        later = await begin(store, lines(3))
        assert [item.id for item in await store.jobs("")] == [later.id, job.id], "the newest first"
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows])
        await run_rows(store, job.id, 7)
        job = await ended(store, job.id)
        assert job.status == "completed"
        assert job.ended_s == job.created_s, "never before it began"
        ids = [
            item["custom_id"] for item in await answers(store, job.output_file) + await answers(store, job.error_file)
        ]
        assert sorted(ids) == sorted(f"row-{number}" for number in range(40))

    with_store(work, tmp_path)


# --- quotas, tenants --------------------------------------------------------------------------------------------------


def test_a_tenant_sees_its_own_and_has_its_own_room(tmp_path: Path) -> None:
    data = lines(5000)

    async def work(store: BatchStore, clock: Clock) -> None:
        file = await keep(store, data, "a")
        with pytest.raises(TooLarge, match=r"batch_jobs\.bytes"):
            await keep(store, data * 4, "a")  # refused before it comes
        upload = await store.upload("a")
        for _ in range(4):
            upload.write(data)
        with pytest.raises(TooLarge):
            await upload.finish("rows.jsonl")
        await keep(store, data, "b")
        assert [item.id for item in await store.files("a")] == [file.id]
        assert len(await store.files(None)) == 2
        for refused in (store.file("b", file.id), store.delete("b", file.id)):
            with pytest.raises(NotFound):
                await refused
        with pytest.raises(NotFound):
            await store.create("b", file.id, ENDPOINT, window="24h", window_s=DAY_S)
        job = await store.create("a", file.id, ENDPOINT, window="24h", window_s=DAY_S)
        for refused in (store.job("b", job.id), store.cancel("b", job.id)):
            with pytest.raises(NotFound):
                await refused
        assert await store.jobs("b") == []

    with_store(work, tmp_path, bytes=1 << 20)
    assert not list((tmp_path / "jobs").glob("*.part"))


def test_answers_are_no_input(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(8))
        await run_rows(store, job.id, 8)
        job = await ended(store, job.id)
        with pytest.raises(BadRequest, match="purpose"):
            await store.create("", job.output_file, ENDPOINT, window="24h", window_s=DAY_S)

    with_store(work, tmp_path)


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_new_work_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    full = [False]
    real = os.pwrite

    def pwrite(fd: int, data: Any, at: int) -> int:
        if full[0]:
            real(fd, bytes(data)[: len(data) // 2], at)  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, at)

    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(60))
        rows = await store.next_rows(job.id, 20)
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows])
        rows = await store.next_rows(job.id, 20)
        full[0] = True
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows])
        assert store.trouble == "full"
        assert await store.next_rows(job.id, 20) == [], "nothing is computed for nothing"
        assert store.open_jobs()[0].rows_left == 40
        monkeypatch.setattr("clover.waiting.folder.JobFolder.free_bytes", lambda folder: 1000)
        with pytest.raises(DiskFull):
            await keep(store, lines(1))
        with pytest.raises(DiskFull):
            await store.create("", job.input_file, ENDPOINT, window="24h", window_s=DAY_S)
        assert not list(store.path.glob("*.part"))
        full[0] = False
        now_s[0] += 11.0
        await run_rows(store, job.id, 20)
        job = await ended(store, job.id)
        assert (job.status, job.completed + job.failed, job.repeated) == ("completed", 60, 20)
        ids = [
            item["custom_id"] for item in await answers(store, job.output_file) + await answers(store, job.error_file)
        ]
        assert sorted(ids) == sorted(f"row-{number}" for number in range(60))
        assert store.trouble == ""

    monkeypatch.setattr("clover.waiting.folder.os.pwrite", pwrite)
    with_store(work, tmp_path, monotonic=lambda: now_s[0])


def test_a_full_disk_under_the_table_loses_nothing_either(tmp_path: Path) -> None:
    now_s = [0.0]

    async def work(store: BatchStore, clock: Clock) -> None:
        job = await begin(store, lines(300))
        folder = store._folder
        assert folder is not None
        rows = await store.next_rows(job.id, 300)
        (pages,) = folder._db.execute("PRAGMA page_count").fetchone()
        folder._db.execute(f"PRAGMA max_page_count = {pages}")
        more = partial(store.create, "", job.input_file, ENDPOINT, window="24h", window_s=DAY_S)
        made = await asyncio.gather(*(more(metadata={"n": "x" * 400}) for _ in range(100)), return_exceptions=True)
        assert DiskFull in map(type, made)
        folder._db.execute("PRAGMA max_page_count = 1000000")
        await store.answered(job.id, [(row.number, 200, b"{}") for row in rows])
        assert (await ended(store, job.id)).completed == 300

    with_store(work, tmp_path, monotonic=lambda: now_s[0])


def test_a_folder_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o700)
    (tmp_path / "jobs" / "jobs.db").write_bytes(b"no database" * 1000)

    async def work(store: BatchStore, clock: Clock) -> None:
        with pytest.raises(Unavailable, match="its log says why"):
            await store.open()

    with_store(work, tmp_path)
    later = tmp_path / "later"
    later.mkdir()
    (later / "jobs").mkdir(mode=0o700)
    with sqlite3.connect(later / "jobs" / "jobs.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with_store(work, later)


# --- one server after another -----------------------------------------------------------------------------------------


def test_a_server_without_jobs_pays_nothing(tmp_path: Path) -> None:
    async def work(store: BatchStore, clock: Clock) -> None:
        store.start()
        await store.tend()
        assert store.open_jobs() == []
        assert await store.next_rows("batch_1", 5) == []
        assert (store._thread, store._tasks, store._ticking) == (None, set(), None)

    with_store(work, tmp_path)
    assert not (tmp_path / "jobs").exists()


def test_the_next_server_waits_for_the_folder_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "TICK_S", 0.01)

    async def run() -> None:
        first, second = BatchStore(tmp_path / "jobs"), BatchStore(tmp_path / "jobs")
        job = await begin(first, lines(50))
        rows = await first.next_rows(job.id, 10)
        await first.answered(job.id, [(row.number, 200, b"{}") for row in rows[:5]])
        second.start()
        with pytest.raises(Unavailable, match="another server"):
            await second.jobs("")
        await first.close()
        await until(lambda: second.is_open)
        assert (await second.job("", job.id)).repeated == 5, "lent by the first, answered by nobody"
        await run_rows(second, job.id, 50)
        assert (await ended(second, job.id)).status == "completed"
        await second.close()

    asyncio.run(run())


def test_each_row_is_in_the_answers_once_after_twenty_kills(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.support.waiting_rows", str(tmp_path), "3000", "20", "1"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 20
    assert found["status"] == "completed"
    assert sorted(found["good"] + found["bad"]) == sorted(f"row-{number}" for number in range(3000))
    assert sorted(found["bad"]) == sorted(f"row-{number}" for number in range(0, 3000, 8))
    assert found["counts"] == [3000, len(found["good"]), len(found["bad"])]
    assert 0 <= found["computed"] - 3000 <= found["repeated"] <= 20 * 16
