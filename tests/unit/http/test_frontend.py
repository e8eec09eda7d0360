"""The real thing: sockets, both event loops, TLS, the control socket, draining, clients that misbehave."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from clover.errors import ConfigError, StartError
from clover.http import Frontend, Inherited
from tests.support.http_fakes import (
    FakeModel,
    FakeView,
    echo_body,
    echo_family,
    family,
    make_certificate,
    parse_answers,
    request,
    tensor,
)
from tests.support.http_sockets import closing, config, exchange, run

INFER = "/v2/models/echo/infer"


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_serves_small_and_large_bodies(fast: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        spec = family("echo", [tensor("IN", "FP32", -1, max_shape=(1 << 20,))], [tensor("OUT", "FP32", -1)])
        model = FakeModel(spec, loop=loop)
        frontend = Frontend(FakeView(model), config(), loop)
        host, port = await frontend.start()
        assert (host, frontend.url) == ("127.0.0.1", f"http://127.0.0.1:{port}")
        for count in (4, 40_000, 400_000):
            raw = np.arange(count, dtype="<f4").tobytes()
            head = {"name": "IN", "shape": [1, count], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
            text = orjson.dumps({"inputs": [head], "parameters": {"binary_data_output": True}})
            data = closing("POST", INFER, text + raw, f"Inference-Header-Content-Length: {len(text)}")
            answer = parse_answers(await exchange(port, request("GET", "/v2") * 3 + data))
            assert [one.status for one in answer] == [200] * 4
            assert answer[3].body.endswith(raw)
        assert model.open_tickets == 0
        assert await frontend.drain(1)
        assert frontend.open_connections == 0
        await frontend.close()

    run(main(), fast=fast)


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_early_errors_reach_a_client_that_is_still_sending(fast: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        frontend = Frontend(FakeView(FakeModel(echo_family(), loop=loop)), config({"body_bytes": 1000}), loop)
        _, port = await frontend.start()
        data = request("POST", INFER, b"x" * 500_000)
        assert [one.status for one in parse_answers(await exchange(port, data))] == [413]
        await frontend.close()

    run(main(), fast=fast)


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_drain_answers_what_was_received(fast: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        model = FakeModel(echo_family(), held=True)
        frontend = Frontend(FakeView(model), config(), loop)
        _, port = await frontend.start()
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy = asyncio.create_task(exchange(port, request("POST", INFER, orjson.dumps(echo_body(id="a"))) * 2))
        while len(model.waiting) < 2:
            await asyncio.sleep(0.01)
        drained = asyncio.create_task(frontend.drain(5))
        assert await idle_reader.read() == b""
        idle_writer.close()
        assert not drained.done()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        model.run()
        model.run()
        answers = parse_answers(await busy)
        assert [one.status for one in answers] == [200, 200]
        assert answers[1].fields["connection"] == "close"
        assert await drained
        await frontend.close()

    run(main(), fast=fast)


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_another_front_end_takes_the_sockets_and_no_connection_is_refused(fast: bool, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        path = tmp_path / "control.sock"
        settings = config(control=f"unix:{path}")
        first = Frontend(FakeView(FakeModel(echo_family(), loop=loop)), settings, loop)
        _, port = await first.start()
        kept = await asyncio.open_connection("127.0.0.1", port)
        silent = await asyncio.open_connection("127.0.0.1", port)
        while first.open_connections < 2:
            await asyncio.sleep(0.01)
        shared = first.sockets()
        assert shared.control is not None
        inherited = Inherited(tuple(sock.dup() for sock in shared.tcp), shared.control.dup())
        second = Frontend(FakeView(FakeModel(echo_family(), loop=loop)), settings, loop)
        assert (await second.start(inherited))[1] == port
        assert (await asyncio.wait_for(_ask(port), 5.0)).status == 200
        assert second.stats.accepted_connections == 0, "it accepts nothing before it is opened"
        await second.open()
        second.take_over()
        hurry = asyncio.Event()
        lingering = asyncio.create_task(first.linger(20.0, hurry))
        await asyncio.sleep(0)
        before = second.stats.accepted_connections
        assert (await _ask(port)).status == 200
        assert second.stats.accepted_connections == before + 1
        kept[1].write(request("POST", INFER, orjson.dumps(echo_body())))
        (answer,) = parse_answers(await kept[0].read())
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert not lingering.done(), "one that says nothing is waited for"
        hurry.set()
        await lingering
        assert await first.drain(1.0)
        assert await silent[0].read() == b""
        await first.close()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(closing("GET", "/v2"))
        assert parse_answers(await reader.read())[0].status == 200
        for one in (kept[1], silent[1], writer):
            one.close()
        assert await second.drain(1.0)
        await second.close()
        assert not path.exists()

    async def _ask(port: int) -> Any:
        return parse_answers(await exchange(port, closing("POST", INFER, orjson.dumps(echo_body()))))[0]

    run(main(), fast=fast)


def test_one_that_opens_and_gives_up_leaves_the_control_socket(tmp_path: Path) -> None:
    """As a successor whose take-over is not committed."""
    path = tmp_path / "control.sock"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = FakeView(FakeModel(echo_family(), loop=loop))
        first, second = (Frontend(view, config(control=f"unix:{path}"), loop) for _ in range(2))
        await first.start()
        shared = first.sockets()
        assert shared.control is not None
        await second.start(Inherited(tuple(sock.dup() for sock in shared.tcp), shared.control.dup()))
        await second.open()
        assert await second.drain(1.0)
        await second.close()
        assert parse_answers(await exchange(0, closing("GET", "/v2"), path=str(path)))[0].status == 200
        await first.close()
        assert not path.exists()

    run(main())


def test_sockets_that_are_never_opened_are_given_back() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = FakeView(FakeModel(echo_family(), loop=loop))
        first = Frontend(view, config(), loop)
        _, port = await first.start()
        inherited = Inherited(tuple(sock.dup() for sock in first.sockets().tcp))
        second = Frontend(view, config(), loop)
        await second.start(inherited)
        await second.close()
        assert all(sock.fileno() < 0 for sock in inherited.tcp)
        assert parse_answers(await exchange(port, closing("GET", "/v2")))[0].status == 200
        await first.close()

    run(main())


def test_drain_gives_up_in_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        model = FakeModel(echo_family(), held=True)
        frontend = Frontend(FakeView(model), config(), loop)
        _, port = await frontend.start()
        busy = asyncio.create_task(exchange(port, request("POST", INFER, orjson.dumps(echo_body()))))
        while not model.waiting:
            await asyncio.sleep(0.01)
        assert not await frontend.drain(0.05)
        await frontend.close()
        with pytest.raises(ConnectionError):
            raise ConnectionError if await busy == b"" else AssertionError
        assert model.open_tickets == 0

    run(main())


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_many_idle_and_slow_connections_do_not_starve_the_good(fast: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        frontend = Frontend(FakeView(FakeModel(echo_family(), loop=loop)), config(), loop)
        _, port = await frontend.start()
        sockets = []
        for number in range(200):
            one = socket.create_connection(("127.0.0.1", port))
            if number % 10 == 0:
                one.sendall(b"POST /v2 HTTP/1.1\r\nHo")
            sockets.append(one)
        data = closing("POST", INFER, orjson.dumps(echo_body()))
        for _ in range(20):
            assert parse_answers(await exchange(port, data))[0].status == 200
        for one in sockets:
            one.close()
        for _ in range(100):
            if not frontend.open_connections:
                break
            await asyncio.sleep(0.01)
        assert frontend.open_connections == 0
        await frontend.close()

    run(main(), fast=fast)


@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_a_client_that_resets_leaks_nothing(fast: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        model = FakeModel(echo_family(), held=True)
        frontend = Frontend(FakeView(model), config(), loop)
        _, port = await frontend.start()
        await exchange(port, closing("GET", "/v2"))  # libuv opens one descriptor of its own with the first stream
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            one = socket.create_connection(("127.0.0.1", port))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.sendall(request("POST", INFER, orjson.dumps(echo_body())) * 3)
            await asyncio.sleep(0.005)
            one.close()
        for _ in range(200):
            if not frontend.open_connections:
                break
            await asyncio.sleep(0.01)
        while model.waiting:
            model.run()
        assert model.open_tickets == 0
        assert len(os.listdir("/proc/self/fd")) <= before
        await frontend.close()

    run(main(), fast=fast)


def test_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = FakeView(FakeModel(echo_family()))
        frontend = Frontend(view, config(control=f"unix:{path}"), loop)
        _, port = await frontend.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert parse_answers(await exchange(port, closing("POST", "/v2/clover/base", b"")))[0].status == 403
        assert (
            parse_answers(await exchange(0, closing("POST", "/v2/clover/base", b""), path=str(path)))[0].status == 200
        )
        assert view.controller.commands == [("base", {}, "control socket")]
        second = Frontend(view, config(control=f"unix:{path}"), loop)
        with pytest.raises(StartError, match="another server"):
            await second.start()
        assert path.exists()
        await frontend.close()
        assert not path.exists()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        await second.start()  # what a killed server left behind is replaced
        await second.close()
        path.write_text("precious")
        with pytest.raises(StartError, match="no socket"):
            await Frontend(view, config(control=f"unix:{path}"), loop).start()
        assert path.read_text() == "precious"
        with pytest.raises(ConfigError):
            await Frontend(view, config(control="tcp:80"), loop).start()

    run(main())


def test_a_server_that_drains_leaves_the_control_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    ask = closing("POST", "/v2/clover/base", b"")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = FakeView(FakeModel(echo_family()))
        first, second, third = (Frontend(view, config(control=f"unix:{path}"), loop) for _ in range(3))
        await first.start()
        assert await first.drain(1.0)
        assert not path.exists(), "who does not accept any more is not in the way"
        await second.start()
        await first.close()
        assert parse_answers(await exchange(0, ask, path=str(path)))[0].status == 200
        path.unlink()  # somebody tidied up, and another server came
        await third.start()
        await second.drain(1.0)
        await second.close()
        assert parse_answers(await exchange(0, ask, path=str(path)))[0].status == 200
        await third.close()
        assert not path.exists()

    run(main())


def test_a_server_that_accepts_nothing_is_still_another_server(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as waiting:
        stuck.bind(str(path))
        stuck.listen(0)
        waiting.connect(str(path))  # its queue is full: one more would wait

        async def main() -> None:
            view = FakeView(FakeModel(echo_family()))
            with pytest.raises(StartError, match="another server"):
                await Frontend(view, config(control=f"unix:{path}"), asyncio.get_running_loop()).start()

        run(main())
    assert path.exists()


def test_a_taken_port_is_a_start_error() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        view = FakeView(FakeModel(echo_family()))
        first = Frontend(view, config(), loop)
        _, port = await first.start()
        with pytest.raises(StartError, match="cannot listen"):
            await Frontend(view, config(port=port), loop).start()
        with pytest.raises(ConfigError):
            await Frontend(view, config(host="0.0.0.0"), loop).start()
        await first.close()

    run(main())


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")


@needs_openssl
@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_tls(tmp_path: Path, fast: bool) -> None:
    cert, key = make_certificate(tmp_path)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        frontend = Frontend(
            FakeView(FakeModel(echo_family(), loop=loop)), config(tls_cert=str(cert), tls_key=str(key)), loop
        )
        _, port = await frontend.start()
        assert frontend.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        body = orjson.dumps(echo_body(*([0.5] * 100_000), id="tls"))
        data = request("GET", "/v2") + closing("POST", INFER, body)
        answers = parse_answers(await exchange(port, data, ssl_context=context))
        assert answers[1].json()["id"] == "tls"
        assert len(answers[1].json()["outputs"][0]["data"]) == 100_000
        broken = parse_answers(await exchange(port, b"NONSENSE\r\n\r\n", ssl_context=context))
        assert [one.status for one in broken] == [400]
        assert await frontend.drain(2)
        await frontend.close()
        for cert_path, key_path in ((str(key), str(key)), (str(tmp_path / "none"), ""), ("", str(key))):
            with pytest.raises(ConfigError):
                await Frontend(FakeView(), config(tls_cert=cert_path, tls_key=key_path), loop).start()

    run(main(), fast=fast)


def test_the_front_end_imports_no_torch() -> None:
    code = "import sys, clover.http; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_became_another_version_is_known_by_it() -> None:
    async def main() -> None:
        model = FakeModel(echo_family(), loop=asyncio.get_running_loop())
        frontend = Frontend(FakeView(model), config(), asyncio.get_running_loop())
        _, port = await frontend.start()
        body = orjson.dumps(echo_body())

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        pinned = request("POST", "/v2/models/echo/versions/1/infer", body)
        for part in (pinned, pinned[:-5]):
            writer.write(part)
        assert b'"model_version":"1"' in await reader.readuntil(b"}]}")
        connection = request("GET", "/v2/models/echo") + closing("POST", INFER, body)
        for version in ("1", "2"):
            if version == "2":
                model.spec = msgspec.structs.replace(model.spec, version="2")
                frontend.forget_endpoints()
            about, answer = parse_answers(await exchange(port, connection))
            assert (about.json()["versions"], answer.json()["model_version"]) == ([version], version)
        writer.write(pinned[-5:])  # what is still on its way is for the version that was asked, or for none
        assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        writer.close()
        await frontend.close()

    run(main(), fast=False)


@needs_openssl
@pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
def test_a_new_certificate_is_for_new_handshakes_and_open_connections_stay(tmp_path: Path, fast: bool) -> None:
    cert, key = make_certificate(tmp_path)
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(cert.read_bytes())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        frontend = Frontend(FakeView(FakeModel(echo_family())), config(tls_cert=str(cert), tls_key=str(key)), loop)
        _, port = await frontend.start()
        old = ssl.create_default_context(cafile=str(trusted))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old)
        old_pair = cert.read_bytes(), key.read_bytes()

        make_certificate(tmp_path)
        new_key = key.read_bytes()
        key.write_bytes(old_pair[1])  # half of a new pair does not load, and changes nothing
        with pytest.raises(ConfigError):
            frontend.reload_certificate()
        assert parse_answers(await exchange(port, closing("GET", "/v2"), ssl_context=old))[0].status == 200
        key.write_bytes(new_key)
        assert frontend.reload_certificate()

        new = ssl.create_default_context(cafile=str(cert))
        assert parse_answers(await exchange(port, closing("GET", "/v2"), ssl_context=new))[0].status == 200
        with pytest.raises(ssl.SSLError):
            await exchange(port, closing("GET", "/v2"), ssl_context=old)
        writer.write(closing("GET", "/v2"))
        assert parse_answers(await reader.read(-1))[0].status == 200, "it was opened before"
        writer.close()
        await frontend.close()
        plain = Frontend(FakeView(), config(), loop)
        assert not plain.reload_certificate()

    run(main(), fast=fast)
