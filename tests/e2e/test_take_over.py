"""Two servers on one loop: the second takes the place of the first, over the real socket, under load."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

import clover
from clover.low_priority import LowPriority
from clover.server.front_ends import FrontEnds
from clover.server.takeover import socket_file
from clover.server.takeover.channel import TakeOverError
from clover.server.takeover.handover import TakeOvers
from clover.server.takeover.succession import Succession
from tests.support.impatient import Impatient
from tests.support.servers import descriptors, run, serve, until

pytestmark = [pytest.mark.usefixtures("forked_zygotes"), pytest.mark.slow]
IDLE_W = 8.0


def server_of(folder: Path, **settings: object) -> clover.Server:
    return serve(
        "slow",
        folder,
        http=True,
        ledger="on",
        state_dir=str(folder / "state"),
        energy_idle_w=IDLE_W,
        energy_core_w=0.5,
        **settings,
    )


class Client:
    """Clients that check every answer, each over one connection while the server keeps it, or over a new one a
    request."""

    def __init__(self, url: str) -> None:
        self.port = int(url.rpartition(":")[2])
        self.ended = False
        self.answered = 0
        self.reconnected = 0
        self.faults: list[str] = []

    async def ask(self, number: int, *, keep: bool) -> None:
        first = True
        while not self.ended:
            self.reconnected += not first
            first = False
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                while not self.ended:
                    number += 1
                    if not await self._once(reader, writer, float(number), keep=keep):
                        break
            except (OSError, asyncio.IncompleteReadError) as error:
                self.faults.append(f"{type(error).__name__} {error}")
            finally:
                writer.close()

    async def _once(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, value: float, *, keep: bool
    ) -> bool:
        body = orjson.dumps({"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "FP32", "data": [value]}]})
        closing = b"" if keep else b"Connection: close\r\n"
        head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n"
        writer.write(head % (closing, len(body)) + body)
        top = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", top)
        assert length is not None
        answer = orjson.loads(await reader.readexactly(int(length[1])))
        if not top.startswith(b"HTTP/1.1 200") or answer["outputs"][0]["data"] != [value]:
            self.faults.append(f"{top[:20]!r} {answer}")
        self.answered += 1
        await asyncio.sleep(0.002)
        return b"Connection: close" not in top


class Owner:
    """A running server with what `Server.run` does around it."""

    def __init__(self, server: clover.Server, succession: Succession | None = None) -> None:
        self.server = server
        self.take_overs = TakeOvers(server.config, succession)
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Owner:
        self.server._succession = self.take_overs.succession
        await self.server.start()
        engine = self.server.engine
        self.take_overs.start(engine.parts, engine.frontend, self.ended.set)
        path = socket_file.place(self.server.config)
        if path is not None and self.take_overs.succession is None:
            await until(path.exists)
        return self

    async def end(self) -> bool:
        await self.take_overs.close()
        answered = await self.server.stop()
        self.take_overs.finish()
        return answered

    async def __aexit__(self, *_: object) -> None:
        await self.end()


@contextlib.asynccontextmanager
async def loaded(server: clover.Server) -> AsyncIterator[Client]:
    client = Client(server.url)
    tasks = [asyncio.create_task(client.ask(1000 * at, keep=at % 3 > 0)) for at in range(6)]
    try:
        yield client
    finally:
        client.ended = True
        await asyncio.gather(*tasks)


def in_ledger(folder: Path) -> tuple[int, float, float]:
    """Requests, joules of idle power, and seconds of the grid."""
    (path,) = (folder / "state" / "ledger").glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((requests,),) = db.execute("SELECT SUM(requests) FROM usage")
        lines = "('idle', 'idle_no_request', 'unowned', 'carried')"
        ((idle_uj,),) = db.execute(f"SELECT SUM(joules_uj) FROM lines WHERE line IN {lines}")
        ((ms,),) = db.execute("SELECT SUM(seconds_ms) FROM grid")
        ((runs,),) = db.execute("SELECT COUNT(*) FROM runs")
    assert runs == 2
    return requests, idle_uj / 1e6, ms / 1e3


def audited_calls(folder: Path) -> list[str]:
    (path,) = (folder / "state" / "ledger").glob("*.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [summary for (summary,) in db.execute("SELECT summary FROM events WHERE kind = 'control'")]


def test_no_request_fails_and_nothing_is_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Timer", Impatient)
    monkeypatch.setattr(Impatient, "said", [])

    async def main() -> None:
        control = tmp_path / "control"
        first = Owner(server_of(tmp_path, control=f"unix:{control}"))
        async with first:
            url, engine = first.server.url, first.server.engine
            began_ns, before_j = engine.machine.marks()[0].at_ns, float(engine.account.devices()["cpu0"]["rest_j"])
            (meter,) = engine.machine.meters.values()
            watts = meter.sample(began_ns).idle_w
            file = next((tmp_path / "state" / "take-over").iterdir())
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            async with loaded(first.server) as client:
                await until(lambda: client.answered > 50)
                succession = await Succession.ask(first.server.config, LowPriority())
                second = Owner(server_of(tmp_path, control=f"unix:{control}"), succession)
                async with second:
                    await asyncio.wait_for(first.ended.wait(), 10)
                    seen = client.answered
                    (audited,) = engine.operators.audit.records
                    assert (audited.call, audited.door, audited.status) == ("take-over", "take-over socket", 200)
                    assert await first.end()
                    assert second.server.url == url
                    await until(lambda: client.answered > seen + 50)
                    client.ended = True
                    reader, writer = await asyncio.open_unix_connection(str(control))
                    writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert (await reader.read()).startswith(b"HTTP/1.1 200")
                    writer.close()
                    await until(file.exists)
                until_ns = second.server.engine.machine.marks()[0].at_ns
            assert client.faults == []
            assert client.reconnected >= 4, "kept connections were told to close"
        requests, idle_j, grid_s = in_ledger(tmp_path)
        assert len(audited_calls(tmp_path)) == 1
        assert requests == client.answered
        # One server counts after the other, without a gap: idle power times the time between two readings.
        seconds = (until_ns - began_ns) / 1e9
        assert idle_j - before_j == pytest.approx(watts * seconds, abs=1e-4)
        assert seconds <= grid_s < seconds + 5.0

    before = descriptors()
    run(main())
    zygote = "the process that forks workers to import torch"
    started = ["the carbon source (static)", zygote, "the workers of slow"]
    taken_over = ["the running server to offer its sockets", *started, "the running server to hand over"]
    assert Impatient.said == [f"waiting for {what}" for what in (*started, *taken_over)]
    assert descriptors() <= before  # less if a test before left some to the garbage collector


def test_a_successor_that_gives_up_leaves_the_running_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Owner(server_of(tmp_path)) as first, loaded(first.server) as client:
            gone = await Succession.ask(first.server.config, LowPriority())
            gone.close()  # its process ended before it was ready
            late = await Succession.ask(first.server.config, LowPriority())  # and the next one may ask
            other = clover.Server(config=first.server.config)
            other._succession = late
            monkeypatch.setattr(FrontEnds, "open", fails)
            with pytest.raises(TakeOverError, match="the port for gRPC is taken"):
                await other.start()
            late.close()
            seen, engine = client.answered, first.server.engine
            await until(lambda: client.answered > seen + 50)
            assert not engine.life.draining
            assert client.faults == []
            joules = float(engine.account.devices()["cpu0"]["measured_j"])
            await engine.parts.windows.count()
            assert float(engine.account.devices()["cpu0"]["measured_j"]) > joules
            client.ended = True

    async def fails(front_ends: FrontEnds, grpc_port: int | None) -> None:
        raise TakeOverError("the port for gRPC is taken")

    run(main())


def test_a_server_that_is_asked_to_end_leaves_its_successor_serving_as_soon_as_that_is_ready(tmp_path: Path) -> None:
    """As by SIGTERM, while the successor loads: who connects meanwhile waits."""

    async def main() -> None:
        async with Owner(server_of(tmp_path)) as first:
            url = first.server.url
            succession = await Succession.ask(first.server.config, LowPriority())
            client = Client(url)
            assert await first.end()
            asking = asyncio.create_task(client.ask(0, keep=False))
            await asyncio.sleep(0.2)
            assert client.answered == 0
            async with Owner(server_of(tmp_path), succession) as second:
                assert second.server.url == url
                await until(lambda: client.answered > 10)
                client.ended = True
                await asking
                await succession.settle()
                assert not second.server.engine.machine.beside
            assert client.faults == []
        requests, _, _ = in_ledger(tmp_path)
        assert requests == client.answered

    run(main())


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with Owner(server_of(tmp_path)) as first:
            here = first.server.config
            others = server_of(tmp_path, grpc_port=0).config
            with pytest.raises(TakeOverError, match="grpc_port '0', and the running server with grpc_port ''"):
                await Succession.ask(others, LowPriority())
            with pytest.raises(TakeOverError, match="no server with this configuration"):
                await Succession.ask(server_of(tmp_path, port=1).config, LowPriority())
            with pytest.raises(TakeOverError, match="instances of a GPU belong"):
                await Succession.ask(server_of(tmp_path, device="nvidia").config, LowPriority())
            with pytest.raises(TakeOverError, match="state folder"):
                await Succession.ask(serve("slow", tmp_path).config, LowPriority())
            begun_s = time.monotonic()
            again = Owner(server_of(tmp_path))
            async with again:  # another server of that name is nobody's successor
                listening = again.take_overs._listening
                assert listening is not None
                await until(listening.done)
            assert time.monotonic() - begun_s < 60.0
            (await Succession.ask(here, LowPriority())).close()

    run(main())
