"""A server's paths as an ASGI application, to be mounted in FastAPI or Starlette beside other routes.

    server = clover.Server("fashion", http=False)
    clover_app = server.asgi()
    app = FastAPI(lifespan=clover_app.lifespan)
    app.mount("/models", clover_app)

A request becomes the `Exchange` that a connection would have made of it: `clover.http.heads` parses, judges and caches
the head, and the same endpoints decode the body.  So paths, limits, errors, receipts and headers are those of the port.
What differs:

- the outer server reads bodies and ends slow clients, and a body is decoded once all of it has come;
- the outer program chooses the hosts that it answers to;
- the dashboard is missing, and changes need a token.

The application serves in the event loop of its server.  The server runs there already, or `lifespan` starts it there
(or the outer server does, if this is the outermost application).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

import orjson

from clover.errors import CloverError
from clover.http.addresses import client_of
from clover.http.exchange import Exchange
from clover.http.heads import Head, MalformedError
from clover.http.inference import InferEndpoint
from clover.http.server_state import ConnectionBase, ServerState
from clover.server.front_ends import FrontEnds
from clover.server.parts import Parts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FLOWS = 65_536
_OF_THE_CONNECTION = (b"transfer-encoding", b"content-length", b"connection", b"expect", b"upgrade", b"keep-alive")


class AsgiConnection(ConnectionBase):
    """The client of one request; `answer` is done once the exchange has its reply."""

    __slots__ = ("answer",)

    def __init__(self, state: ServerState, peer: str, answer: asyncio.Future[None]) -> None:
        super().__init__(state)
        self.peer = peer
        self.client = client_of(peer) if peer else ""
        self.answer = answer

    def on_reply(self) -> None:
        """Take notice that the exchange has its reply."""
        if not self.answer.done():
            self.answer.set_result(None)

    def is_last(self, exchange: object) -> bool:
        """Return True: there is one request."""
        return True

    def flush(self) -> None:
        """Do nothing: the application sends the answer itself."""


class _Entry:
    """The way into one server: its routes, and what its requests share."""

    def __init__(self, parts: Parts, front: FrontEnds) -> None:
        self.parts = parts
        self.routes, self.state = front.http.mount()
        self.flows: OrderedDict[Any, int] = OrderedDict()

    def head(self, raw: bytes) -> Head:
        """Return the parsed and judged head of a request; raises MalformedError."""
        parsed: Head | None = self.state.heads.memo.get(raw)
        return parsed if parsed is not None else self.state.heads.parse(raw)

    def connect(self, client: Any, answer: asyncio.Future[None]) -> AsgiConnection:
        """Return the client of a request.  All requests of an address and port are one flow, as on a connection."""
        connection = AsgiConnection(self.state, str(client[0]) if client else "", answer)
        number = self.flows.get(client)
        if number is None:
            self.flows[client] = connection.number
            if len(self.flows) > _FLOWS:
                self.flows.popitem(last=False)
        else:
            connection.number = number
        return connection

    def take(self, exchange: Exchange, body: bytes) -> None:
        """Have a request answered, in this turn of the loop or, if enough was done in it, in one of the next."""
        state = self.state
        state.stats.received_bytes += len(body)
        state.turn_bytes += len(body)
        if state.turn_bytes > state.turn_limit:
            state.postpone(partial(self._dispatch, exchange, body), len(body))
        else:
            if state.turn_bytes == len(body):
                state.loop.call_soon(state.flush)  # which begins to count anew
            self._dispatch(exchange, body)

    def _dispatch(self, exchange: Exchange, body: bytes) -> None:
        if exchange.connection is None:
            return  # the client is gone
        endpoint: InferEndpoint | None = exchange.head.endpoint
        if endpoint is not None and endpoint.current:
            endpoint.take(exchange, body)
        else:
            self.routes.dispatch(exchange, body)


class AsgiApp:
    """The application; made by `Server.asgi()`.

    `running` returns the parts of the server while it runs, None before and after; `mount` its front end then; `start`
    and `stop` are its life.
    """

    def __init__(
        self,
        running: Callable[[], Parts | None],
        mount: Callable[[], FrontEnds],
        start: Callable[[], Awaitable[object]],
        stop: Callable[[], Awaitable[object]],
    ) -> None:
        self._running = running
        self._mount = mount
        self._start = start
        self._stop = stop
        self._entry: _Entry | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start the server unless it runs, and stop it at the end if it was started here."""
        started = self._running() is None
        if started:
            await self._start()
        try:
            yield
        finally:
            if started:
                await self._stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection of the outer server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Follow the outer server's life; what goes wrong in the start is its to report."""
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.lifespan())
            except CloverError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = self._running()
        if parts is None:
            await _send_plain(send, 503, "the server is not running: start it in the lifespan of the application")
            return
        if parts.loop is not asyncio.get_running_loop():
            raise RuntimeError("a server is mounted in the event loop that it was started in")
        entry = self._entry
        if entry is None or entry.parts is not parts:
            entry = self._entry = _Entry(parts, self._mount())
        try:
            head = entry.head(_raw_head(scope))
        except MalformedError as error:
            await _send_plain(send, error.status, error.text)
            return
        exchange = Exchange(entry.connect(scope.get("client"), parts.loop.create_future()), head)
        try:
            await _exchange(entry, exchange, receive)
        finally:
            exchange.abandon()  # gives back what it still holds, if the client is gone
        if exchange.reply is not None:
            await _send_reply(send, exchange, entry.state)


async def _exchange(entry: _Entry, exchange: Exchange, receive: Receive) -> None:
    """Read the body of a request and have it answered; return once there is the reply, or the client is gone."""
    head, connection = exchange.head, exchange.connection
    assert isinstance(connection, AsgiConnection)
    if head.refusal is not None:
        exchange.fail(*head.refusal)
        return
    try:
        body = await _body(receive, int(head.most_bytes))
    except EOFError:
        return
    if body is None:
        exchange.fail(413, head.too_large())
    elif entry.parts.life.draining and head.endpoint is not None:
        exchange.fail(503, "the server is shutting down")
    else:
        entry.take(exchange, body)
    if exchange.reply is None:
        await _answer_or_gone(connection.answer, receive)


def _raw_head(scope: Scope) -> bytes:
    """Return the head of a request as HTTP/1.1 has it, its path below where the application is mounted.

    The body's length is left out: the outer server has dealt with that.  Raises MalformedError for a field that holds a
    line break.
    """
    root = scope.get("root_path", "").encode().rstrip(b"/")
    path = scope.get("raw_path") or scope["path"].encode()
    path = path.removeprefix(root) if root and path.startswith(root) else path
    query = scope.get("query_string", b"")
    target = (path or b"/") + (b"?" + query if query else b"")
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
    has_host = False
    for name, value in scope["headers"]:
        if name in _OF_THE_CONNECTION:
            continue
        has_host = has_host or name == b"host"
        lines.append(b"%b: %b" % (name, value))
    if not has_host:  # HTTP/2 and 3 have :authority, which not every server passes on
        lines.append(b"host: localhost")
    raw = b"\r\n".join([*lines, b"", b""])
    if raw.count(b"\n") != len(lines) + 1:
        raise MalformedError(400, "a header field holds a line break")
    return raw


async def _body(receive: Receive, most_bytes: int) -> bytes | None:
    """Return the body of a request; None if it has more than `most_bytes`.  Raises EOFError if the client went before
    its end."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EOFError
        part = message.get("body", b"")
        size += len(part)
        if size > most_bytes:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _answer_or_gone(answer: asyncio.Future[None], receive: Receive) -> None:
    """Wait for the answer, or until the client is gone."""
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()


async def _send_reply(send: Send, exchange: Exchange, state: ServerState) -> None:
    """Send the reply of an exchange: its head is split into fields again."""
    reply, rest = exchange.reply or b"", exchange.rest
    state.stats.sent_bytes += len(reply) + sum(map(len, rest or ()))
    head, _, body = reply.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
    await send(
        {
            "type": "http.response.start",
            "status": int(status[9:12]),
            "headers": [(name, value) for name, value in fields if name != b"connection"],
        }
    )
    await send({"type": "http.response.body", "body": b"".join([body, *rest]) if rest else body})


async def _send_plain(send: Send, status: int, text: str) -> None:
    """Send an error that no exchange stands behind."""
    body = orjson.dumps({"error": text})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
