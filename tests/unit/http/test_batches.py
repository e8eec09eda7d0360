"""/v1/files and /v1/batches over a socket, with a store on the disk and rows answered by the test."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from clover.config import BatchJobsConfig, LimitsConfig, ListenConfig, ServerConfig, TenantConfig, TokenConfig
from clover.http import Frontend
from clover.http.batches import parse_window, why_not
from clover.http.exchange import Exchange
from clover.server.asgi import AsgiConnection
from clover.tenants import Tenants
from clover.types import OpenAiSpec
from clover.waiting import store as store_module
from clover.waiting.store import BatchStore
from tests.support.http_fakes import FakeModel, FakeView, echo_family, family, tensor
from tests.support.waiting_rows import as_jsonl, line, lines, run_rows, until

WORDS = family(
    "words",
    [tensor("TEXT", "BYTES", 1, max_bytes=64)],
    [tensor("VECTOR", "FP32", 3)],
    openai=OpenAiSpec(embeddings=True),
)


class Scene:
    """A front end with a store, and a client of it."""

    def __init__(self, front: Frontend, store: BatchStore, **client: Any) -> None:
        self.front = front
        url = self.url = front.url
        self.store = store
        self.http = httpx.AsyncClient(base_url=url, trust_env=False, timeout=20.0, **client)

    async def upload(self, data: bytes, *, http: httpx.AsyncClient | None = None, **fields: str) -> Any:
        form = {"purpose": "batch"} | fields
        answer = await (http or self.http).post("/v1/files", data=form, files={"file": ("rows.jsonl", data)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def create(self, name: str, **more: Any) -> httpx.Response:
        body = {"input_file_id": name, "endpoint": "/v1/embeddings", "completion_window": "24h"} | more
        return await self.http.post("/v1/batches", json=body)

    async def status(self, job_id: str, *wanted: str) -> Any:
        """The batch once it has one of these statuses."""
        folder = self.store._folder
        assert folder is not None
        await until(lambda: folder.jobs[job_id].status in wanted)
        return (await self.http.get(f"/v1/batches/{job_id}")).json()


def scene(work: Callable[[Scene], Awaitable[None]], path: Path, *, settings: Any = None, **config: Any) -> None:
    async def run() -> None:
        view = FakeView(FakeModel(WORDS), FakeModel(echo_family()))
        store = BatchStore(path / "jobs", settings, check=partial(why_not, view.models()), body_bytes=4096)
        given = ServerConfig(listen=config.pop("listen", ListenConfig(port=0)), **config)
        front = Frontend(view, given, asyncio.get_running_loop(), tenants=Tenants(given.tenants), batches=store)
        await front.start()
        shown = Scene(front, store)
        try:
            await work(shown)
        finally:
            await shown.http.aclose()
            await front.close()
            await store.close()

    asyncio.run(run())


def test_openais_client_works_unchanged(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")

    async def work(s: Scene) -> None:
        client = openai.AsyncOpenAI(base_url=f"{s.url}/v1", api_key="none", max_retries=0)
        data = lines(16)
        file = await client.files.create(file=("rows.jsonl", io.BytesIO(data)), purpose="batch")
        assert (file.bytes, file.filename, file.purpose, file.status) == (len(data), "rows.jsonl", "batch", "processed")
        assert [item.id async for item in client.files.list()] == [file.id]
        assert (await client.files.retrieve(file.id)).id == file.id
        assert (await client.files.content(file.id)).content == data

        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"carbon": "wait"}
        )
        assert (batch.object, batch.status, batch.output_file_id) == ("batch", "validating", None)
        assert batch.expires_at - batch.created_at == 86_400
        await until(lambda: bool(s.store.open_jobs()))
        s.store.reason = lambda job_id: f"{job_id} runs at noon"
        batch = await client.batches.retrieve(batch.id)
        assert (batch.status, batch.request_counts.total, batch.errors) == ("in_progress", 16, None)
        assert batch.clover["plan"] == f"{batch.id} runs at noon"
        await run_rows(s.store, batch.id, 5)
        await s.status(batch.id, "completed")
        batch = await client.batches.retrieve(batch.id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (14, 2)
        assert batch.completed_at >= batch.in_progress_at
        answers = [json.loads(text) for text in (await client.files.content(batch.output_file_id)).text.splitlines()]
        errors = [json.loads(text) for text in (await client.files.content(batch.error_file_id)).text.splitlines()]
        assert sorted(item["custom_id"] for item in answers + errors) == sorted(f"row-{number}" for number in range(16))
        assert answers[0]["response"]["body"]["model"] == "words"
        assert [item.id async for item in client.batches.list(limit=1)] == [batch.id]

        other = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"carbon": "now"}
        )
        await until(lambda: bool(s.store.open_jobs()))
        assert s.store.open_jobs()[0].carbon == "now"
        with pytest.raises(openai.ConflictError, match="still needs this file"):
            await client.files.delete(file.id)
        await client.batches.cancel(other.id)
        assert (await s.status(other.id, "cancelled"))["cancelled_at"]
        assert [item.id async for item in client.batches.list(limit=1)] == [other.id, batch.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        failed = await client.batches.create(
            input_file_id=(await client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")).id,
            endpoint="/v1/embeddings",
            completion_window="24h",
        )
        await s.status(failed.id, "failed")
        failed = await client.batches.retrieve(failed.id)
        assert (failed.errors.data[0].code, failed.errors.data[0].line) == ("invalid_json_line", 1)
        with pytest.raises(openai.BadRequestError, match="completion_window"):
            await client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="1 day")
        await client.close()

    scene(work, tmp_path)


def test_a_batch_of_infer_requests(tmp_path: Path) -> None:
    url = "/v2/models/echo/infer"

    async def work(s: Scene) -> None:
        name = (await s.upload(as_jsonl([line("a", url, inputs=[]), line("b", url, inputs=[])])))["id"]
        batch = (await s.create(name, endpoint=url, completion_window="15m")).json()
        batch = await s.status(batch["id"], "in_progress")
        assert (batch["model"], batch["expires_at"] - batch["created_at"]) == ("echo", 900)
        refused = await s.create(name, endpoint="/v2/models/other/infer")
        assert (refused.status_code, refused.json()["error"]["type"]) == (404, "not_found_error")

    scene(work, tmp_path)


BAD_BATCHES: list[tuple[dict[str, Any], int, str]] = [
    ({"completion_window": "14m"}, 400, "completion_window"),
    ({"completion_window": "8d"}, 400, "completion_window"),
    ({"completion_window": 5}, 400, "no new batch"),
    ({"endpoint": "/v1/chat/completions"}, 400, "endpoint is"),
    ({"endpoint": "/v2/models/../infer"}, 404, "no model"),
    ({"input_file_id": "file-none"}, 404, "no file"),
    ({"input_file_id": "../../etc/passwd"}, 404, "no file"),
    ({"metadata": {"carbon": "later"}}, 400, "wait or now"),
    ({"metadata": {"a": 1}}, 400, "no new batch"),
    ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
    ({"metadata": {"a": "x" * 513}}, 400, "metadata"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, 400, "expires"),
]


def test_a_batch_that_cannot_be_made(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        name = (await s.upload(lines(1)))["id"]
        for body, status, says in BAD_BATCHES:
            answer = await s.create(name, **body)
            assert answer.status_code == status, body
            assert says in answer.json()["error"]["message"]
        assert (await s.http.get("/v1/batches")).json()["data"] == []

    scene(work, tmp_path)


def form(*parts: tuple[str, bytes], end: bytes = b"--\r\n") -> bytes:
    return (
        b"".join(
            b"--X\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (head.encode(), data)
            for head, data in parts
        )
        + b"--X"
        + end
    )


FILE = ('"file"; filename="a.jsonl"', b"{}\n")
PURPOSE = ('"purpose"', b"batch")


BAD_UPLOADS = [
    (b"", 400, "ends before"),
    (b"purpose=batch", 400, "no multipart"),
    (form(PURPOSE), 400, "ends before"),
    (form(FILE), 400, "purpose is batch"),
    (form(FILE, ('"purpose"', b"fine-tune")), 400, "purpose is batch"),
    (form(PURPOSE, FILE, end=b""), 400, "ends before"),
    (form(PURPOSE, FILE, FILE), 400, "more than one file"),
    (form(PURPOSE, ('"purpose"', b"x" * 2000), FILE), 400, "no multipart"),
    (form(PURPOSE, ('"other"', b"x" * 2000), FILE), 400, "at most 1024 bytes"),
    (form(*((f'"{number}"', b"") for number in range(17))), 400, "more than 16 parts"),
    (
        form(PURPOSE, FILE, ('"expires_after[anchor]"', b"created_at"), ('"expires_after[seconds]"', b"5")),
        400,
        "expires",
    ),
]


def test_an_upload_that_cannot_be_kept_leaves_nothing(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        for body, status, says in BAD_UPLOADS:
            answer = await s.http.post("/v1/files", content=body)
            assert answer.status_code == status, body
            assert says in answer.json()["error"]["message"]
            await until(lambda: not s.store._uploads)  # what is dropped counts until its file is gone
        assert (await s.http.get("/v1/files")).json()["data"] == []
        await until(lambda: not [*s.store.path.glob("*.part"), *s.store.path.glob("*.jsonl")])

    scene(work, tmp_path)


def test_a_file_expires_when_its_client_says(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        file = await s.upload(lines(1), **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
        assert file["expires_at"] - file["created_at"] == 3600
        usual = await s.upload(lines(1))
        assert usual["expires_at"] - usual["created_at"] == 7 * 86_400

    scene(work, tmp_path)


def test_a_large_upload_goes_to_the_disk_as_it_comes_and_leaves_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BACKLOG_BYTES", 1 << 18)
    row = json.dumps(line("a", input="x" * 1000)).encode() + b"\n"
    data = row * 12_000  # 12 MB, where a body that is kept whole may have 1
    most = [0]

    async def work(s: Scene) -> None:
        real = store_module.Upload.write

        def write(upload: Any, piece: bytes) -> None:
            real(upload, piece)
            most[0] = max(most[0], upload.waiting_bytes)

        monkeypatch.setattr(store_module.Upload, "write", write)
        file = await s.upload(data)
        assert file["bytes"] == len(data)
        assert most[0] < 3 << 20, "what is not on the disk yet is bounded"

        async def chunks() -> Any:
            whole = form(PURPOSE, ('"file"; filename="../x\x01.jsonl"', data))
            for at in range(0, len(whole), 100_003):
                yield whole[at : at + 100_003]

        chunked = await s.http.post("/v1/files", content=chunks())
        assert chunked.status_code == 200
        assert (chunked.json()["bytes"], chunked.json()["filename"]) == (len(data), "../x?.jsonl")
        for name in (file["id"], chunked.json()["id"]):
            content = await s.http.get(f"/v1/files/{name}/content")
            assert content.content == data
        head = await s.http.head(f"/v1/files/{file['id']}/content")
        assert (head.headers["content-length"], head.content) == (str(len(data)), b"")
        assert (await s.http.get("/v2/health/live")).status_code == 200, "on the same connection"

    scene(work, tmp_path, limits=LimitsConfig(body_bytes=1 << 20, json_bytes=1 << 20))


def test_through_another_programs_server(tmp_path: Path) -> None:
    data = lines(3)

    async def work(s: Scene) -> None:
        routes, state = s.front.mount()

        async def send(method: str, path: str, body: bytes = b"") -> tuple[bytes, bytes]:
            head = f"{method} {path} HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = asyncio.get_running_loop().create_future()
            exchange = Exchange(AsgiConnection(state, "192.0.2.1", answer), state.heads.parse(head.encode()))
            routes.dispatch(exchange, body)
            await answer
            head_text, _, rest = (exchange.reply or b"").partition(b"\r\n\r\n")
            return head_text, b"".join([rest, *(exchange.rest or [])])

        head, body = await send("POST", "/v1/files", form(PURPOSE, ('"file"; filename="a"', data)))
        most = state.heads.parse(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n")
        assert (most.refusal, most.most_bytes) == (None, 1 << 20)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert (await send("GET", f"/v1/files/{json.loads(body)['id']}/content"))[1] == data
        assert (await send("POST", "/v1/files", b"nothing"))[0].startswith(b"HTTP/1.1 400 ")
        await until(lambda: not s.store._uploads)
        large = state.heads.parse(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
        assert (large.refusal or (0,))[0] == 413

    scene(work, tmp_path, limits=LimitsConfig(body_bytes=1 << 20, json_bytes=1 << 20))


def test_an_upload_over_the_quota_is_refused_unread(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        reader, writer = await asyncio.open_connection(*s.url.removeprefix("http://").split(":"))
        writer.write(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        writer.close()
        packed = await s.http.post("/v1/files", content=b"x", headers={"content-encoding": "gzip"})
        assert packed.status_code == 415
        await s.upload(b"x" * 600_000)
        answer = await s.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"y" * 700_000)})
        assert answer.status_code == 413
        assert "batch_jobs.bytes" in answer.json()["error"]["message"]
        assert len((await s.http.get("/v1/files")).json()["data"]) == 1

    scene(work, tmp_path, settings=BatchJobsConfig(bytes=1 << 20))


def test_a_client_that_goes_leaves_no_part(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        await s.store.open()
        _, writer = await asyncio.open_connection(*s.url.removeprefix("http://").split(":"))
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n" + form(PURPOSE, FILE)[:-9]
        )
        writer.write(b"x" * 300_000)
        await until(lambda: bool([*s.store.path.glob("*.part")]))
        writer.transport.abort()
        await until(lambda: not s.store._uploads and not [*s.store.path.glob("*.part")])

    scene(work, tmp_path)


def test_lists_have_pages(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        names = [(await s.upload(lines(1)))["id"] for _ in range(5)]
        page = (await s.http.get("/v1/files", params={"limit": 2})).json()
        assert ([item["id"] for item in page["data"]], page["has_more"]) == (names[:2:-1], True)
        page = (await s.http.get("/v1/files", params={"limit": 4, "after": page["last_id"]})).json()
        assert ([item["id"] for item in page["data"]], page["has_more"]) == (names[2::-1], False)
        assert (await s.http.get("/v1/files?order=asc&limit=1")).json()["first_id"] == names[0]
        assert (await s.http.get("/v1/files?purpose=batch_output")).json()["data"] == []
        for query, status in (("limit=0", 400), ("limit=x", 400), ("after=nothing", 404)):
            assert (await s.http.get(f"/v1/batches?{query}")).status_code == status
        for path in ("/v1/files/a/b", "/v1/batches/x/cancel/y", "/v1/filesx", "/v1/files/", "/v1/batches/%2e%2e"):
            assert (await s.http.get(path)).status_code in (404, 405), path
        allowed = await s.http.put("/v1/files")
        assert (allowed.status_code, allowed.headers["allow"]) == (405, "GET, HEAD, POST")

    scene(work, tmp_path)


def test_tenants_see_their_own_and_operators_all(tmp_path: Path) -> None:
    tenants = (TenantConfig(name="a", token="token-of-a"), TenantConfig(name="b", token="token-of-b"))
    tokens = (TokenConfig(name="reader", token="token-of-reader", scopes=("read",)),)
    config = {"tenants": tenants, "tokens": tokens, "listen": ListenConfig(port=0, token="operator")}

    async def work(s: Scene) -> None:
        def bearer(token: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(base_url=s.url, trust_env=False, headers={"authorization": f"Bearer {token}"})

        a, b, operator, reader = map(bearer, ("token-of-a", "token-of-b", "operator", "token-of-reader"))
        name = (await s.upload(lines(2), http=a))["id"]
        body = {"input_file_id": name, "endpoint": "/v1/embeddings"}
        batch = (await a.post("/v1/batches", json=body)).json()["id"]
        for client, seen in ((a, 1), (b, 0), (s.http, 0), (operator, 1)):
            for what in ("files", "batches"):
                assert len((await client.get(f"/v1/{what}")).json()["data"]) == seen
            for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{batch}"):
                assert (await client.get(path)).status_code == (200 if seen else 404)
        assert (await b.delete(f"/v1/files/{name}")).status_code == 404
        assert (await b.post("/v1/batches", json=body)).status_code == 404
        assert (await b.post(f"/v1/batches/{batch}/cancel")).status_code == 404
        assert (await operator.post(f"/v1/batches/{batch}/cancel")).status_code == 200
        assert (await reader.get("/v1/files")).status_code == 403, "it has not the scope infer"
        for client in (a, b, operator, reader):
            await client.aclose()

    scene(work, tmp_path, **config)


def test_a_page_of_another_origin_changes_nothing(tmp_path: Path) -> None:
    async def work(s: Scene) -> None:
        name = (await s.upload(lines(1)))["id"]
        origin = {"origin": "http://elsewhere.example"}
        files = {"file": ("a.jsonl", lines(1))}
        calls = [
            s.http.post("/v1/files", data={"purpose": "batch"}, files=files, headers=origin),
            s.http.post("/v1/batches", json={"input_file_id": name, "endpoint": "/v1/embeddings"}, headers=origin),
            s.http.delete(f"/v1/files/{name}", headers=origin),
            s.http.post("/v1/batches/x/cancel", headers=origin),
        ]
        for call in calls:
            assert (await call).status_code == 403
        assert len((await s.http.get("/v1/files")).json()["data"]) == 1
        await until(lambda: not s.store._uploads)

    scene(work, tmp_path)


def test_a_full_disk_and_a_server_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(s: Scene) -> None:
        monkeypatch.setattr("clover.waiting.folder.JobFolder.free_bytes", lambda folder: 1000)
        answer = await s.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", lines(1))})
        assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")

    scene(work, tmp_path)

    async def none() -> None:
        front = Frontend(
            FakeView(FakeModel(WORDS)), ServerConfig(listen=ListenConfig(port=0)), asyncio.get_running_loop()
        )
        await front.start()
        async with httpx.AsyncClient(base_url=front.url, trust_env=False) as http:
            for method, path in (("GET", "files"), ("POST", "batches"), ("POST", "files"), ("DELETE", "files/x")):
                answer = await http.request(method, f"/v1/{path}", content=b"x")
                assert answer.status_code == 501
                assert re.search("does not take batches", answer.json()["error"]["message"])
        await front.close()

    asyncio.run(none())


def test_windows() -> None:
    assert [parse_window(text) for text in ("15m", "24h", "7d", "90m")] == [900.0, 86_400.0, 604_800.0, 5400.0]
