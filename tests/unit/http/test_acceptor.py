"""Who gets a connection: the number of them, TLS handshakes, descriptors, and what all together may hold."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from clover.http import acceptor
from tests.support.http_fakes import parse_answers, request
from tests.support.http_sockets import closing, exchange, run, started, until


async def gone(client: socket.socket) -> bool:
    """Whether the server has closed a connection on which it sent nothing."""
    client.setblocking(False)
    try:
        return await asyncio.get_running_loop().sock_recv(client, 1) == b""
    except ConnectionResetError:
        return True


FAST = pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])


@FAST
def test_connections_beyond_the_limit_are_reset(fast: bool) -> None:
    async def main() -> None:
        frontend, port = await started({"connections": 5})
        stats = frontend.stats
        open_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        await until(lambda: stats.accepted_connections == 20)
        assert (stats.open_connections, stats.refused_connections) == (5, 15)
        for one in open_ones[5:]:
            assert await gone(one)
            one.close()
        for one in open_ones[:5]:
            one.close()
        await until(lambda: stats.open_connections == 0)
        assert parse_answers(await exchange(port, closing("GET", "/v2")))[0].status == 200
        await frontend.close()

    run(main(), fast=fast)


@FAST
def test_handshakes_count_as_connections_and_end(fast: bool, certificate: tuple[str, str]) -> None:
    async def main() -> None:
        limits = {"connections": 3, "head_s": 0.3}
        frontend, port = await started(limits, tls_cert=certificate[0], tls_key=certificate[1])
        stats = frontend.stats
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        await until(lambda: stats.accepted_connections == 8)
        assert (stats.open_connections, stats.refused_connections) == (3, 5)
        await until(lambda: stats.failed_handshakes == 3)
        assert stats.open_connections == 0
        for one in silent:
            one.close()
        context = ssl.create_default_context(cafile=certificate[0])
        answer = await exchange(port, closing("GET", "/v2"), ssl_context=context)
        assert parse_answers(answer)[0].status == 200
        with socket.create_connection(("127.0.0.1", port)) as nonsense:
            nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: stats.failed_handshakes == 4)
        with socket.create_connection(("127.0.0.1", port)):
            await until(lambda: stats.open_connections == 1)
            assert await frontend.drain(5)  # a handshake is not waited for
        await until(lambda: stats.open_connections == 0)
        await frontend.close()

    run(main(), fast=fast)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    return cert, key


# --- descriptors ------------------------------------------------------------------------------------------------------

SERVE = """
import asyncio, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from tests.support.http_sockets import started

async def main():
    frontend, port = await started()
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        taken = [os.pipe() for _ in range(int(line))]
        print(frontend.stats.open_connections, frontend.stats.refused_connections, flush=True)
        for pair in taken:
            os.close(pair[0]), os.close(pair[1])
    await frontend.close()

runner = asyncio.Runner()
if sys.argv[1] == "uvloop":
    import uvloop
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
with runner:
    runner.run(main())
"""


def connected(port: int) -> socket.socket:
    """A connected socket; on a busy machine, the server may have reset the connection before connect returned."""
    link = socket.socket()
    with contextlib.suppress(ConnectionResetError):
        link.connect(("127.0.0.1", port))
    return link


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_idle_connections_leave_descriptors_for_workers(loop: str) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", SERVE, loop]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        idle = [connected(port) for _ in range(600)]
        with pytest.raises(OSError, match=r"reset by peer|not connected"):
            idle[-1].recv(1)
        server.stdin.write("45\n")  # pipes: 90 descriptors
        server.stdin.flush()
        taken, refused = map(int, server.stdout.readline().split())
        assert 100 < taken <= 300
        assert taken + refused == 600
        for one in idle[1:]:
            one.close()
        idle[0].sendall(request("GET", "/v2"))
        assert idle[0].recv(12) == b"HTTP/1.1 200"
        idle[0].close()
        server.stdin.close()
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "first"),
    [
        (1024, 1 << 20, 8192 + 1024, 8192 + 1024 - 256),
        (1024, 4096, 4096, 4096 - 256),
        (1024, 1024, None, 1024 - 256),
        (100, 100, None, 75),
        (1 << 20, 1 << 20, None, (1 << 20) - 256),
        (1024, resource.RLIM_INFINITY, 8192 + 1024, 8192 + 1024 - 256),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 1 << 31),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_connections_need(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    raised: int | None,
    first: int,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits[0]))
    assert acceptor.reserve_descriptors(8192) == first
    assert asked in ([] if raised is None else [raised], [soft])
    assert ("LimitNOFILE" in caplog.text) == (first < 8192)


def test_a_machine_without_descriptors_is_asked_again_later() -> None:
    async def main() -> None:
        frontend, port = await started()
        listening = frontend._acceptor
        assert listening is not None
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, before[1]))
        try:
            client.connect(("127.0.0.1", port))
            await until(lambda: listening._starved)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        await until(lambda: frontend.open_connections == 1)
        client.close()
        await frontend.close()

    run(main())


# --- what all together hold -------------------------------------------------------------------------------------------


@FAST
def test_those_that_hold_the_most_are_dropped(fast: bool) -> None:
    async def main() -> None:
        frontend, port = await started({"held_bytes": 1 << 20})
        stats = frontend.stats
        head = request("POST", "/v2/models/echo/infer", fields=["Content-Length: 4000000"])
        sent = 0
        clients = []
        for size in (300_000, 900_000, 200_000, 400_000):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(head + b" " * size)
            sent += len(head) + size
            clients.append(client)
        await until(lambda: stats.received_bytes == sent)
        assert [connection.held() for connection in frontend._connections()].count(900_000) == 1
        frontend._limit_held()
        await until(lambda: stats.open_connections == 3)
        assert stats.dropped_connections == 1
        assert await gone(clients[1])
        frontend._limit_held()
        assert stats.dropped_connections == 1
        for client in clients:
            client.close()
        await frontend.close()

    run(main(), fast=fast)
