"""`clover batch`, against a front end in this process whose rows the test answers."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clover.cli import batch
from clover.config import ListenConfig, ServerConfig
from clover.http import Frontend
from clover.http.batches import why_not
from clover.types import OpenAiSpec, Receipt, RowAnswer
from clover.waiting.store import BatchStore
from tests.support.http_fakes import FakeModel, FakeView, family, tensor

WORDS = family(
    "words",
    [tensor("TEXT", "BYTES", 1, max_bytes=64)],
    [tensor("VECTOR", "FP32", 3)],
    openai=OpenAiSpec(embeddings=True),
)
FACES = family("faces", [tensor("picture", "BYTES", 1, max_bytes=64)], [tensor("y", "FP32", 1)])
NUMBERS = family("numbers", [tensor("x", "FP32", 2, 2)], [tensor("y", "FP32", 1)])
RECEIPT = Receipt(
    variant="small", accuracy=90.0, energy_j=0.1, carbon_mg=0.5, intensity_g_per_kwh=100.0, method="modelled"
)


class Scene:
    """A server, and the command in a thread.  `seen` has the bodies of the rows that were answered."""

    def __init__(self, url: str, store: BatchStore) -> None:
        self.environ = {"CLOVER_URL": url}
        self.store = store
        self.seen: list[Any] = []

    async def type(self, *words: str) -> int:
        return await asyncio.to_thread(batch.main, words, self.environ)

    async def answer(self) -> None:
        """Answer rows as long as there are some; those that say "bad" fail."""
        while True:
            for job in self.store.open_jobs():
                rows = await self.store.next_rows(job.id, 3)
                self.seen += [json.loads(row.body) for row in rows]
                statuses = [400 if b"bad" in row.body else 200 for row in rows]
                pairs = zip(rows, statuses, strict=True)
                await self.store.answered(job.id, [RowAnswer(row.number, at, row.body, RECEIPT) for row, at in pairs])
            await asyncio.sleep(0.002)


def scene(work: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        view = FakeView(FakeModel(WORDS), FakeModel(NUMBERS), FakeModel(FACES))
        store = BatchStore(path / "jobs", check=partial(why_not, view.models()))
        config = ServerConfig(listen=ListenConfig(port=0))
        front = Frontend(view, config, asyncio.get_running_loop(), batches=store)
        await front.start()
        try:
            await work(Scene(front.url, store))
        finally:
            await front.close()
            await store.close()

    monkeypatch.setattr(batch, "_POLL_S", 0.01)
    monkeypatch.chdir(path)
    asyncio.run(run())


def answers(path: str) -> dict[str, Any]:
    lines = [json.loads(text) for text in Path(path).read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line["response"] for line in lines}


def test_texts_are_sent_answered_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(s: Scene) -> None:
        Path("pages.txt").write_text("one\ntwo\n\nbad\n")
        s.store.reason = lambda job_id: "runs 02:00 to 05:00"
        runner = asyncio.create_task(s.answer())
        assert await s.type("run", "pages.txt", "--model", "words", "--within", "2h") == 1, "a row failed"
        said = capsys.readouterr()
        assert "pages.answers.jsonl: 3 of 3 done, 1 failed, 1.5 mg CO2e so far, completed\n" in said.out
        assert re.search(r"sent as batch_[0-9a-f]{24}: all is to be there within 2h", said.err)
        found = answers("pages.answers.jsonl")
        assert found["row-1"]["body"] == {"model": "words", "input": "one"}
        statuses = {name: answer["status_code"] for name, answer in found.items()}
        assert statuses == {"row-1": 200, "row-2": 200, "row-4": 400}
        assert await s.type("run", "pages.txt", "--model", "words") == 2
        assert "is there already" in capsys.readouterr().err
        Path("pages.answers.jsonl").unlink()
        assert await s.type("run", "pages.txt", "--model", "words") == 1, "without computing it again"
        assert "is taken up again" in capsys.readouterr().err
        assert answers("pages.answers.jsonl") == found
        assert len(s.seen) == 3
        assert await s.type("run", "pages.txt", "--model", "words", "--again", "--now", "--output", "again") == 1
        assert len(s.seen) == 6
        assert await s.type("list") == 0
        first, second = capsys.readouterr().out.splitlines()[-2:]
        assert re.match(r"batch_\w+  completed +3 of 3  until \d{4}-\d\d-\d\d \d\d:\d\d  words$", first)
        assert await s.type("show", second.split()[0]) == 0
        assert "3 of 3 done, 1 failed, 1.5 mg CO2e so far" in capsys.readouterr().out
        assert await s.type("cancel", second.split()[0]) == 1
        assert "cannot be cancelled (409)" in capsys.readouterr().err
        runner.cancel()

    scene(work, tmp_path, monkeypatch)


def test_it_is_ended_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    async def work(s: Scene) -> None:
        np.save("rows.npy", np.arange(40, dtype=np.float32).reshape(10, 2, 2))
        with monkeypatch.context() as patch:
            patch.setattr(batch._wait, "__defaults__", (interrupt,))
            assert await s.type("run", "rows.npy", "--model", "numbers") == 130
        assert "the same command takes it up again" in capsys.readouterr().err
        runner = asyncio.create_task(s.answer())
        assert await s.type("run", "rows.npy", "--model", "numbers", "--json") == 0
        assert json.loads(capsys.readouterr().out)["request_counts"] == {"total": 10, "completed": 10, "failed": 0}
        assert len(answers("rows.answers.jsonl")) == len(s.seen) == 10
        (given,) = s.seen[1]["inputs"]
        assert given == {"name": "x", "shape": [1, 2, 2], "datatype": "FP32", "data": [4.0, 5.0, 6.0, 7.0]}
        runner.cancel()

    scene(work, tmp_path, monkeypatch)


def test_lines_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    whole = {"custom_id": "mine", "method": "POST", "url": "/v2/models/numbers/infer", "body": body}

    async def work(s: Scene) -> None:
        runner = asyncio.create_task(s.answer())
        rows: list[Any] = [[[1, 2], [3, 4]], body, whole]
        Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert await s.type("run", "rows.jsonl", "--model", "numbers") == 0
        assert s.seen == [body] * 3
        assert set(answers("rows.answers.jsonl")) == {"row-1", "row-2", "mine"}
        capsys.readouterr()
        refused: list[tuple[list[Any], str, int, str]] = [
            (["text"], "numbers", 2, "row-1: numbers takes numbers"),
            ([[1, 2]], "words", 2, "row-1: words takes texts"),
            ([whole, whole], "numbers", 1, "line 2: custom_id is that of an earlier line"),
            ([1], "none", 1, "(404)"),
        ]
        for rows, model, code, says in refused:
            Path("other.jsonl").write_text("\n".join(map(json.dumps, rows)))
            assert await s.type("run", "other.jsonl", "--model", model) == code
            assert says in capsys.readouterr().err
        Path("other.jsonl").write_text("[1,\n")
        assert await s.type("run", "other.jsonl", "--model", "numbers") == 2
        assert "line 1 is not JSON" in capsys.readouterr().err
        assert await s.type("run", "missing.jsonl", "--model", "numbers") == 2
        again = ("run", "rows.jsonl", "--model", "numbers", "--output", "x", "--again")
        assert await s.type(*again, "--within", "1m") == 1
        assert "completion_window" in capsys.readouterr().err
        assert await s.type("run") == 2
        runner.cancel()

    scene(work, tmp_path, monkeypatch)


def test_a_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(s: Scene) -> None:
        runner = asyncio.create_task(s.answer())
        folder = Path("pictures")
        (folder / "more").mkdir(parents=True)
        assert await s.type("run", "pictures", "--model", "faces") == 2  # no files
        for name, data in (("b.jpg", b"\xff\xd8"), ("a.jpg", b""), (".hidden", b"x")):
            (folder / name).write_bytes(data)
        assert await s.type("run", "pictures", "--model", "numbers", "--output", "x") == 2
        assert await s.type("run", "pictures/", "--model", "faces") == 0
        assert [row["inputs"][0]["data"] for row in s.seen] == [[""], ["/9g="]]
        assert set(answers("pictures.answers.jsonl")) == {"a.jpg", "b.jpg"}
        again = ("run", "pictures", "--model", "faces", "--output")
        assert await s.type(*again, "same.jsonl") == 0
        assert len(s.seen) == 2  # the same files are one job
        (folder / "b.jpg").rename(folder / "c.jpg")
        assert await s.type(*again, "other.jsonl") == 0
        assert set(answers("other.jsonl")) == {"a.jpg", "c.jpg"}
        runner.cancel()

    scene(work, tmp_path, monkeypatch)


def test_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.main(["list"], {"CLOVER_URL": "http://127.0.0.1:1"}) == 3
    assert "is the server running" in capsys.readouterr().err
