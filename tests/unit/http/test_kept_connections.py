"""A request that is on its way when its idle connection would be closed is answered: nobody else knows of it yet."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clover.http import Frontend
from clover.http.connection import SWEEP_S
from clover.http.frontend import ENDED_AT_ONCE
from tests.support.http_fakes import request
from tests.support.http_sockets import run, started

loops = pytest.mark.parametrize("fast", [False, True], ids=["asyncio", "uvloop"])
ASKED, SERVED = request("GET", "/v2"), b"HTTP/1.1 200 OK"
SHORT_IDLE = {"idle_s": 2 * SWEEP_S}


@contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Clients of this process that send at once, whatever the event loop does."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        for client in clients:
            client.settimeout(10.0)
        yield clients
    finally:
        for client in clients:
            client.close()


def answer(client: socket.socket) -> bytes:
    """Return the first line of what comes, b"" if the connection ended."""
    try:
        return client.recv(1 << 16).partition(b"\r\n")[0]
    except ConnectionResetError:
        return b""


async def served(clients: list[socket.socket]) -> None:
    """Let each client be answered once: then its connection is made, and not only accepted."""
    for client in clients:
        client.sendall(ASKED)
    found = await asyncio.to_thread(lambda: [answer(client) for client in clients])
    assert found == [SERVED] * len(clients)


async def past_their_time(frontend: Frontend, clients: list[socket.socket]) -> None:
    """Let the next sweep, which the test makes, find the connections of clients idle for longer than they may be."""
    assert frontend._sweeper is not None
    frontend._sweeper.cancel()
    await served(clients)
    frontend._swept_s -= 4 * SWEEP_S


@loops
def test_a_request_that_came_as_the_idle_time_ended_is_answered(fast: bool) -> None:
    async def main() -> None:
        frontend, port = await started(SHORT_IDLE)
        with connected(port, 2) as (asks, silent):
            await past_their_time(frontend, [asks, silent])
            asks.sendall(ASKED)  # and the loop has not read it
            frontend._sweep()
            assert await asyncio.to_thread(answer, asks) == SERVED
            assert await asyncio.to_thread(answer, silent) == b""
        await frontend.close()

    run(main(), fast=fast)


@loops
def test_many_that_end_at_once_hold_no_other_request_up(fast: bool) -> None:
    async def main() -> None:
        many = 4 * ENDED_AT_ONCE
        frontend, port = await started(SHORT_IDLE)
        with connected(port, many) as clients:
            await past_their_time(frontend, clients)
            frontend._sweep()
            for client in clients:  # as if they came while the first were being closed
                client.sendall(ASKED)
            found = await asyncio.to_thread(lambda: [answer(client) for client in clients])
            assert found.count(SERVED) == many - ENDED_AT_ONCE
            assert found.count(b"") == ENDED_AT_ONCE
        await frontend.close()

    run(main(), fast=fast)


@loops
def test_a_request_that_came_as_the_server_stops_is_answered(fast: bool) -> None:
    async def main() -> None:
        frontend, port = await started()
        with connected(port, 2) as (asks, silent):
            await served([asks, silent])
            asks.sendall(ASKED)
            assert await frontend.drain(5.0)
            assert await asyncio.to_thread(answer, asks) == SERVED
            assert await asyncio.to_thread(answer, silent) == b""
        await frontend.close()

    run(main(), fast=fast)


@loops
def test_many_that_are_idle_as_the_server_stops_lose_no_request(fast: bool) -> None:
    async def main() -> None:
        many = 4 * ENDED_AT_ONCE
        frontend, port = await started()
        with connected(port, many) as clients:
            await served(clients)
            draining = asyncio.ensure_future(frontend.drain(5.0))
            await asyncio.sleep(0)
            for client in clients:
                client.sendall(ASKED)
            assert await draining
            found = await asyncio.to_thread(lambda: [answer(client) for client in clients])
            assert found.count(SERVED) >= many - 2 * ENDED_AT_ONCE
        await frontend.close()

    run(main(), fast=fast)
