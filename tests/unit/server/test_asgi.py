"""A server as an ASGI application: the paths of the port, under another program's server."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson
import pytest

pytest.importorskip("httpx", reason="this is tested through httpx")

import httpx

from clover.config import LimitsConfig, ListenConfig, ServerConfig, TenantConfig
from clover.errors import StartError
from clover.http.audit import Operators
from clover.http.loop_lag import LagWindows
from clover.server.asgi import AsgiApp
from clover.server.engine import Engine
from clover.server.front_ends import FrontEnds
from clover.server.life import Life
from clover.server.server import Server
from clover.tenants import Tenants
from tests.support.http_fakes import FakeModel, FakeView, echo_body, echo_family

TOKEN = {"authorization": f"Bearer {'t' * 32}"}


class FakeEngine(FakeView):
    """What an application needs of an engine, over fake models."""

    def __init__(self, config: ServerConfig, model: FakeModel) -> None:
        super().__init__(model)
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.tenants, self.operators = Tenants(config.tenants), Operators.from_config(config)
        self.otel = self.batches = None
        self.frontend: Any = None
        self.life = Life()
        self.lag = LagWindows()
        self.stopped = False

    @property
    def parts(self) -> Any:
        return self

    def mount(self) -> FrontEnds:
        return Engine.mount(cast("Engine", self))

    async def drain(self) -> bool:
        return True

    async def stop(self) -> None:
        self.stopped = True


class FakeServer:
    """A server with a fake engine; `error` is raised by its start."""

    def __init__(self, *, error: Exception | None = None, held: bool = False, **config: Any) -> None:
        self.model = FakeModel(echo_family(), held=held)
        self._config = ServerConfig(**config)
        self._error = error
        self.engine: Any = None
        self.starts = 0

    def asgi(self) -> AsgiApp:
        return AsgiApp(lambda: self.engine, lambda: self.engine.mount(), self.start, self.stop)

    async def start(self) -> None:
        self.starts += 1
        if self._error is not None:
            raise self._error
        self.engine = FakeEngine(self._config, self.model)

    async def stop(self) -> bool:
        engine, self.engine = self.engine, None
        return await Server("fashion", http=False)._stop(engine) if engine is not None else True


def asking(server: FakeServer, work: Callable[[httpx.AsyncClient, AsgiApp], Awaitable[Any]]) -> Any:
    """Run `work` with a client of a started application."""

    async def run() -> Any:
        app = server.asgi()
        async with app.lifespan():
            transport = httpx.ASGITransport(app, client=("203.0.113.7", 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
                return await work(client, app)

    return asyncio.run(run())


def test_paths_errors_and_receipts_are_those_of_the_port() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        answer = await client.post("/v2/models/echo/infer", json=echo_body())
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.5, -4.0]
        assert answer.headers["clover-receipt"].startswith("variant=")
        assert answer.headers["x-request-id"]
        assert "connection" not in answer.headers
        assert (await client.get("/v2/health/ready")).json() == {"live": True, "ready": True}
        assert (await client.get("/v2/models/none")).status_code == 404
        assert (await client.put("/v2")).headers["allow"] == "GET, HEAD"
        assert (await client.head("/v2")).content == b""
        assert (await client.get("/v2/clover/decisions?limit=2")).json() == [{"id": 0}, {"id": 1}]
        wrong = await client.post("/v2/models/echo/infer", json={"inputs": []})
        assert (wrong.status_code, set(wrong.json())) == (400, {"error"})
        assert (await client.get("/metrics")).text == "# EOF\n"

    asking(FakeServer(), work)


def test_labels_come_by_the_id_of_an_answer() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        answer = await client.post("/v2/models/echo/infer", json=echo_body())
        body = {"id": answer.headers["x-request-id"], "labels": [1]}
        assert (await client.post("/v2/models/echo/feedback", json=body)).status_code == 200

    asking(FakeServer(), work)


def test_binary_and_compressed_bodies_and_answers() -> None:
    import gzip

    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        packed = gzip.compress(orjson.dumps(echo_body()))
        answer = await client.post("/v2/models/echo/infer", content=packed, headers={"content-encoding": "gzip"})
        assert answer.status_code == 200
        raw = await client.post(
            "/v2/models/echo/infer", content=bytes(16), headers={"inference-header-content-length": "0"}
        )
        length = int(raw.headers["inference-header-content-length"])
        assert raw.content[length:] == bytes(16)

        async def pieces() -> Any:
            body = orjson.dumps(echo_body())
            for at in range(0, len(body), 10):
                yield body[at : at + 10]

        assert (await client.post("/v2/models/echo/infer", content=pieces())).status_code == 200

    asking(FakeServer(), work)


def test_bodies_are_bounded_before_they_are_held() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        answer = await client.post("/v2/models/echo/infer", content=bytes(300))
        assert (answer.status_code, "limits.json_bytes" in answer.json()["error"]) == (413, True)

    asking(FakeServer(limits=LimitsConfig(json_bytes=200)), work)


def test_changes_need_a_token_wherever_they_come_from() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        assert (await client.post("/v2/clover/base", json={})).status_code == 403

    asking(FakeServer(), work)

    async def known(client: httpx.AsyncClient, app: AsgiApp) -> None:
        assert (await client.get("/v2")).status_code == 401
        assert (await client.get("/v2", headers=TOKEN)).status_code == 200

    asking(FakeServer(listen=ListenConfig(token="t" * 32)), known)


def test_tenants_are_known_by_their_tokens() -> None:
    server = FakeServer(tenants=(TenantConfig(name="shop", token="t" * 32),))

    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        assert (await client.post("/v2/models/echo/infer", json=echo_body())).status_code == 401
        assert (await client.post("/v2/models/echo/infer", json=echo_body(), headers=TOKEN)).status_code == 200
        assert server.model.senders[-1].name == "shop"

    asking(server, work)


def test_requests_of_one_address_and_port_are_one_flow() -> None:
    server = FakeServer()

    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        for _ in range(3):
            await client.post("/v2/models/echo/infer", json=echo_body())
        other = httpx.ASGITransport(app, client=("203.0.113.8", 1))
        async with httpx.AsyncClient(transport=other, base_url="http://x") as second:
            await second.post("/v2/models/echo/infer", json=echo_body())
        first, again, third, fourth = server.model.flows
        assert first == again == third != fourth

    asking(server, work)


def test_it_is_mounted_below_a_path() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "root_path": "/ml"}, receive, send)  # as Starlette's Mount does

        transport = httpx.ASGITransport(mounted)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as below:
            assert (await below.get("/ml/v2")).status_code == 200
            assert (await below.get("/ml")).json()["name"] == "clover"
            assert (await below.get("/ml/v2/models/%65cho")).status_code == 200

    asking(FakeServer(), work)


def test_a_client_that_leaves_gives_its_slots_back() -> None:
    server = FakeServer(held=True)

    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        task = asyncio.create_task(client.post("/v2/models/echo/infer", json=echo_body()))
        while not server.model.open_tickets:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.model.open_tickets == 0
        body = orjson.dumps(echo_body())
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v2/models/echo/infer",
            "headers": [(b"host", b"x")],
            "client": None,
        }
        await app(scope, receive, send)
        assert (sent, server.model.open_tickets) == ([], 0)

    asking(server, work)


def test_a_header_cannot_hold_another_line() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        headers = [(b"host", b"x"), (b"x", b"1\r\nauthorization: Bearer y")]
        await app({"type": "http", "method": "GET", "path": "/v2", "headers": headers}, receive, send)
        assert sent[0]["status"] == 400

    asking(FakeServer(), work)


def test_the_outer_server_drives_its_life() -> None:
    async def live(server: FakeServer) -> list[Any]:
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await server.asgi()({"type": "lifespan"}, receive, send)
        return sent

    server = FakeServer()
    assert asyncio.run(live(server)) == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    assert (server.starts, server.engine) == (1, None)
    failed = asyncio.run(live(FakeServer(error=StartError("no port"))))
    assert failed == [{"type": "lifespan.startup.failed", "message": "no port"}]


def test_how_long_requests_wait_for_the_loop_is_seen_from_the_first_request_until_the_server_stops() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def run() -> None:
        server = FakeServer()
        app = server.asgi()
        gc.collect()  # what earlier tests left is closed now, not while descriptors are counted
        before = descriptors()
        async with app.lifespan():
            engine = server.engine
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
                await client.get("/v2")
            assert engine.frontend.lag is engine.lag
            assert descriptors() == before + 1, "the alarm of its probes"
        assert engine.stopped
        assert descriptors() == before

    asyncio.run(run())


def test_a_server_that_runs_already_is_left_running() -> None:
    async def run() -> None:
        server = FakeServer()
        await server.start()
        async with server.asgi().lifespan():
            assert server.starts == 1
        assert server.engine is not None

    asyncio.run(run())


def test_without_a_server_it_says_so_and_a_drain_refuses() -> None:
    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        server.engine.life.draining = True
        assert (await client.post("/v2/models/echo/infer", json=echo_body())).status_code == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        server.engine = None
        answer = await client.get("/v2")
        assert (answer.status_code, "not running" in answer.json()["error"]) == (503, True)

    server = FakeServer()
    asking(server, work)


def test_it_serves_in_the_loop_of_its_server_only() -> None:
    server = FakeServer()

    async def other(app: AsgiApp) -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await app({"type": "http"}, None, None)  # type: ignore[arg-type]

    async def work(client: httpx.AsyncClient, app: AsgiApp) -> None:
        await asyncio.to_thread(asyncio.run, other(app))

    asking(server, work)
