"""Batch jobs for tests: lines of inputs, a store that has some, and one that is killed at random moments."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from clover.types import BatchFile, BatchJob
from clover.waiting.store import BatchStore

ENDPOINT = "/v1/embeddings"


def line(custom_id: str, url: str = ENDPOINT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "words", "input": "one"} | body}


def lines(count: int) -> bytes:
    return as_jsonl(line(f"row-{number}", input=f"text {number}") for number in range(count))


def as_jsonl(items: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


async def keep(store: BatchStore, data: bytes, owner: str = "") -> BatchFile:
    upload = await store.upload(owner, len(data))
    upload.write(data)
    return await upload.finish("rows.jsonl")


async def begin(store: BatchStore, data: bytes, owner: str = "", **more: Any) -> BatchJob:
    """A job over these lines, once they are read."""
    file = await keep(store, data, owner)
    job = await store.create(owner, file.id, ENDPOINT, **{"window": "24h", "window_s": 86_400.0, **more})
    await until(lambda: store._folder is not None and store._folder.jobs[job.id].status != "validating")
    return await store.job(owner, job.id)


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to pass"
        await asyncio.sleep(0.002)


async def ended(store: BatchStore, job_id: str) -> BatchJob:
    """The job, once it has ended."""
    assert store._folder is not None
    folder = store._folder
    await until(lambda: folder.jobs[job_id].ended_s is not None)
    return await store.job(None, job_id)


async def answers(store: BatchStore, name: str) -> list[dict[str, Any]]:
    """The lines of a file of answers."""
    file = await store.file(None, name)
    data = await store.read(file, 0, file.size_bytes)
    assert len(data) == file.size_bytes
    return [json.loads(text) for text in data.splitlines()]


async def run_rows(
    store: BatchStore, job_id: str, count: int, computed: Callable[[int], None] = lambda rows: None
) -> None:
    """Answer all rows of a job, `count` at a time; an eighth of them fail."""
    while any(job.id == job_id for job in store.open_jobs()):
        rows = await store.next_rows(job_id, count)
        if not rows:
            await asyncio.sleep(0.001)
            continue
        computed(len(rows))
        await store.answered(job_id, [(row.number, 400 if row.number % 8 == 0 else 200, row.body) for row in rows])


# --- a store that is killed -------------------------------------------------------------------------------------------


def killed_often(path: Path, rows: int, kills: int, seed: int) -> dict[str, Any]:
    """Run a job of `rows` rows in processes that are killed at random moments, `kills` of them, and then in one that is
    not; return what came of it."""
    chance = random.Random(seed)
    job_id = _in_child(_begin, path, rows)
    computed = path / "computed"
    computed.touch()
    most = rows // (kills + 1)  # of one process, so that the job is not done before the last kill
    killed = 0
    while killed < kills:
        moment = computed.stat().st_size + chance.randrange(most)
        child = _fork(_work, path, job_id, most)
        end_s = time.monotonic() + 1.0
        while computed.stat().st_size < moment and time.monotonic() < end_s:
            time.sleep(0.0002)
        time.sleep(chance.uniform(0.0, 0.004))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(_fork(_work, path, job_id, 2 * rows), 0)
    assert status == 0
    found: dict[str, Any] = json.loads(_in_child(_report, path, job_id))
    return found | {"kills": killed, "computed": computed.stat().st_size}


def _fork(work: Callable[..., Awaitable[Any]], *arguments: Any) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            asyncio.run(_awaited(work, *arguments))
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


async def _awaited(work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    await work(*arguments)


def _in_child(work: Callable[..., Awaitable[str]], path: Path, *arguments: Any) -> str:
    """Return what `work` returns in a process of its own: what forks has no threads."""

    async def write() -> None:
        (path / "said").write_text(await work(path, *arguments))

    _, status = os.waitpid(_fork(write), 0)
    assert status == 0
    return (path / "said").read_text()


async def _begin(path: Path, rows: int) -> str:
    store = BatchStore(path / "jobs")
    file = await keep(store, lines(rows))
    job = await store.create("", file.id, ENDPOINT, window="24h", window_s=86_400.0)
    await store.close()  # with its lines not read yet, or only some
    return job.id


async def _work(path: Path, job_id: str, most: int) -> None:
    """Answer `most` rows, and wait to be killed then."""
    store = BatchStore(path / "jobs")
    await store.open()
    fd = os.open(path / "computed", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    folder = store._folder
    assert folder is not None

    begin = os.fstat(fd).st_size

    def count(rows: int) -> None:
        os.write(fd, b"." * rows)
        if os.fstat(fd).st_size - begin >= most:
            signal.pause()

    while folder.jobs[job_id].ended_s is None:
        await run_rows(store, job_id, 16, count)
        await asyncio.sleep(0.001)
    await store.close()


async def _report(path: Path, job_id: str) -> str:
    store = BatchStore(path / "jobs")
    await store.open()
    job = await store.job("", job_id)
    good, bad = await answers(store, job.output_file), await answers(store, job.error_file)
    await store.close()
    return json.dumps(
        {
            "status": job.status,
            "counts": [job.total, job.completed, job.failed],
            "repeated": job.repeated,
            "good": [item["custom_id"] for item in good],
            "bad": [item["custom_id"] for item in bad],
        }
    )


if __name__ == "__main__":
    print(json.dumps(killed_often(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
