"""A front end behind a real socket, and what it takes to talk to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from clover.config import LimitsConfig, ListenConfig, ServerConfig
from clover.http import Frontend
from tests.support.http_fakes import FakeModel, FakeView, echo_family, request


def run(main: Coroutine[Any, Any, None], *, fast: bool = False) -> None:
    """Run on uvloop or on the stock loop, and close what is left of it."""
    factory = uvloop.new_event_loop if fast else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def config(limits: dict[str, Any] | None = None, **listen: Any) -> ServerConfig:
    return ServerConfig(listen=ListenConfig(**({"port": 0} | listen)), limits=LimitsConfig(**(limits or {})))


async def exchange(port: int, data: bytes, *, ssl_context: ssl.SSLContext | None = None, path: str = "") -> bytes:
    """Send, half-close where possible, and read to the end."""
    if path:
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=ssl_context)
    writer.write(data)
    await writer.drain()
    result = await asyncio.wait_for(reader.read(-1), 10)
    writer.close()
    await writer.wait_closed()
    return result


def closing(method: str, path: str, body: bytes | None = None, *fields: str) -> bytes:
    return request(method, path, body, ["Connection: close", *fields])


async def until(met: Callable[[], bool]) -> None:
    """Let the loop run until a condition is met."""
    for _ in range(2000):
        if met():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to it")


async def started(limits: dict[str, Any] | None = None, **listen: Any) -> tuple[Frontend, int]:
    """A front end of an echo model, and its port."""
    frontend = Frontend(FakeView(FakeModel(echo_family())), config(limits, **listen), asyncio.get_running_loop())
    return frontend, (await frontend.start())[1]
