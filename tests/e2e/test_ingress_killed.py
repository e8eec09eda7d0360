"""A real HAProxy that is killed: connections wait at its sockets, which the controller holds, and are not refused."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from pathlib import Path

import pytest

from clover.cluster.ingress.config import IngressOrigin, IngressSettings
from clover.cluster.ingress.haproxy import HAProxyIngress
from clover.cluster.ingress.process import find_program
from clover.errors import ClusterError
from tests.support.ingress_nodes import FakeNode, count, free_ports
from tests.support.servers import run

try:
    find_program()
except ClusterError as missing:
    pytest.skip(str(missing), allow_module_level=True)

REQUEST = b"GET /v2/models/toy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def settings(folder: Path, port: int) -> IngressSettings:
    origins = (IngressOrigin(name="north", listen=f"127.0.0.1:{port}"),)
    return IngressSettings(folder=str(folder / "ingress"), origins=origins, threads=1, check_s=0.2)


async def kill(ingress: HAProxyIngress) -> None:
    """Kill HAProxy, and return when it is gone, before the ingress can have seen it."""
    pid = int((await ingress.information())["Pid"])
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([descriptor], [], [], 10.0)
    os.close(descriptor)


async def ready(ingress: HAProxyIngress) -> None:
    while not await ingress.healthy("a"):
        await asyncio.sleep(0.02)


async def answer(waiting: socket.socket) -> bytes:
    """Return the first line of the answer to what was sent, and close the connection."""
    waiting.setblocking(False)
    try:
        async with asyncio.timeout(20.0):
            return (await asyncio.get_running_loop().sock_recv(waiting, 4096)).partition(b"\r\n")[0]
    finally:
        waiting.close()


def test_connections_wait_while_haproxy_is_away_also_for_a_controller_that_adopted_it(short_path: Path) -> None:
    async def main() -> None:
        node = await FakeNode("a").start()
        (port,) = free_ports(1)
        ingress = HAProxyIngress(settings(short_path, port))
        assert not await ingress.start()
        try:
            await ingress.admit("a", node.url, "")
            await ingress.weigh("north", {"a": 1.0})
            await ready(ingress)
            for adopts in (False, True, False):
                if adopts:
                    await ingress.close()
                    ingress = HAProxyIngress(ingress.settings)
                    assert await ingress.start()
                before = ingress.restarts
                await kill(ingress)
                waiting = [socket.create_connection(("127.0.0.1", port), timeout=5.0) for _ in range(3)]
                for own in waiting:
                    own.sendall(REQUEST)
                assert {await answer(own) for own in waiting} == {b"HTTP/1.1 200 x"}
                await ready(ingress)
                assert ingress.restarts == before + 1
            # The sockets that it inherited go on to the next one that replaces it without being killed.
            load = asyncio.create_task(count(port, 300, connections=4))
            await ingress.reload()
            assert await load == {"a": 300}
            assert await count(port, 20) == {"a": 20}
        finally:
            await ingress.stop(drain_s=0)
            await node.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5.0)

    run(main())
