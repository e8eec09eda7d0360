"""An ASGI application without a framework: the model in the handler, no batching."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from bench.wire.peers.common import given, replier

_WORK, _ = given()
_REPLY = replier(_WORK)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer one request of one row."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    end = next((int(value) for name, value in scope["headers"] if name == b"inference-header-content-length"), 0)
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body, fields = _REPLY(parts[0] if len(parts) == 1 else b"".join(parts), end)
    head = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [*head, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
