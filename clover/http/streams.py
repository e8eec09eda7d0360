"""Answers that leave in pieces: server-sent events, and long files (`send_pieces`).

Server-sent events (WHATWG HTML, "text/event-stream") are answers that stay open, one message to all of them.

A message is made once and sent to every stream as it is.  What a stream holds is bounded: a client that has left
`UNREAD_BYTES` unread when a message comes is dropped, and connects again by itself.  The greeting is not counted: it is
by far the largest message, and on a slow link the next messages come before it has left.  There are at most `most`
streams, and `MOST_OF_CLIENT` of one client, because each holds a connection for as long as a page is open.  A further
stream is refused (503).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from clover.errors import CloverError
from clover.http.exchange import Exchange
from clover.http.outgoing import Outgoing

log = logging.getLogger("clover.http")

MOST_STREAMS = 64
MOST_OF_CLIENT = 8
UNREAD_BYTES = 1 << 20
KIND = b"text/event-stream"
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
    b"X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
)
_OPEN_BYTES = 1 << 16
"""What opening a stream weighs among the work of a turn of the loop, in bytes of a body."""


def event(name: str, data: bytes, number: str = "") -> bytes:
    """Return one message; `data` is a line of text (JSON has no line breaks), `number` its id."""
    head = b"event: %b\n" % name.encode()
    return head + (b"id: %b\n" % number.encode() if number else b"") + b"data: " + data + b"\n\n"


@dataclass(frozen=True)
class _Stream:
    """An open stream; it may leave `unread_bytes` unread."""

    exchange: Exchange
    unread_bytes: int


class EventStreams:
    """The open streams of a server.

    `greeting` makes what a new stream begins with.
    """

    def __init__(self, greeting: Callable[[], bytes], most: int = MOST_STREAMS) -> None:
        self._greeting = greeting
        self._most = most
        self._open: list[_Stream] = []
        self._closed = False

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return len(self._open)

    def accept(self, exchange: Exchange) -> None:
        """Answer a request for a stream: open one in a turn of the loop to come, or refuse it."""
        if exchange.head.method == "HEAD":
            exchange.finish(200, [], kind=KIND)
            return
        connection = exchange.connection
        if connection is not None:
            connection.state.postpone(partial(self._begin, exchange), _OPEN_BYTES)

    def _begin(self, exchange: Exchange) -> None:
        connection = exchange.connection
        if not isinstance(connection, Outgoing):
            return  # the client is gone
        self._open = [stream for stream in self._open if stream.exchange.connection is not None]
        if self._closed or connection.state.draining:
            exchange.fail(503, "the server is shutting down", retry_after_s=5.0)
        elif len(self._open) >= self._most:
            exchange.fail(503, f"{self._most} streams are open, which is the most: close a page", retry_after_s=30.0)
        elif self._open_of(connection.client) >= MOST_OF_CLIENT:
            text = f"{MOST_OF_CLIENT} streams of this client are open, which is the most: close a page"
            exchange.fail(503, text, retry_after_s=30.0)
        elif connection.exchanges[0] is not exchange:
            exchange.fail(400, "a stream is asked for on a connection on which no other answer is due")
        else:
            try:
                greeting = self._greeting()
            except Exception:
                # What is not answered would hold the connection, and a drain.
                log.exception("a stream could not be begun")
                exchange.fail(503, "there is nothing to show yet", retry_after_s=2.0)
                return
            # Two pushes, so that pages that open together share the bytes of the greeting.
            if connection.push(_HEAD, 0) and connection.push(greeting, len(_HEAD)):
                connection.state.stats.record_answer(200)
                self._open.append(_Stream(exchange, len(greeting) + UNREAD_BYTES))
            else:
                connection.hang_up()

    def _open_of(self, client: str) -> int:
        """Return how many streams of a client are open."""
        connections = (stream.exchange.connection for stream in self._open)
        return sum(connection is not None and connection.client == client for connection in connections)

    def publish(self, message: bytes) -> None:
        """Send `message` to every stream, and drop those that have left too much unread."""
        left = []
        for stream in self._open:
            connection = stream.exchange.connection
            if not isinstance(connection, Outgoing):
                continue  # the client is gone
            if connection.push(message, stream.unread_bytes):
                left.append(stream)
            else:
                connection.hang_up()
        self._open = left

    def close(self) -> None:
        """End every stream at once, and open no other: nothing is due to them, so that no drain waits for them."""
        self._closed = True
        self.hang_up()

    def hang_up(self) -> None:
        """End every stream; who may still see one comes back by itself."""
        for stream in self._open:
            if isinstance(stream.exchange.connection, Outgoing):
                stream.exchange.connection.hang_up()
        self._open = []


_PIECE_BYTES = 256 << 10
_AHEAD_BYTES = 1 << 20
"""What a client may leave unread of a long answer before no more of it is read from the disk."""
_POLL_S = 0.01


async def send_pieces(exchange: Exchange, size: int, read: Callable[[int, int], Awaitable[bytes]]) -> None:
    """Answer with a body of `size` bytes of which `read(start, size)` returns a piece, never more than a few at once.
    The connection stays open.  It ends early if a piece cannot be read."""
    connection = exchange.connection
    assert isinstance(connection, Outgoing)
    while connection.exchanges and connection.exchanges[0] is not exchange:
        await asyncio.sleep(_POLL_S)
    fields = b"Connection: close\r\n" if exchange.close else b""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nX-Content-Type-Options: nosniff\r\n"
        b"Content-Length: %d\r\nx-request-id: %b\r\n%b\r\n"
    ) % (size, exchange.request_id or exchange.issue(), fields)
    if not connection.push(head, _AHEAD_BYTES):
        connection.hang_up()
        return
    done = size if exchange.head.method == "HEAD" else 0
    while done < size and exchange.connection is not None:
        try:
            piece = await read(done, min(_PIECE_BYTES, size - done))
        except (CloverError, OSError) as error:
            log.warning("a long answer was cut off: %s", error)
            piece = b""
        if not piece:
            connection.hang_up()
            return
        while not connection.push(piece, _AHEAD_BYTES):
            if exchange.connection is None or connection.closing:
                connection.hang_up()
                return
            await asyncio.sleep(_POLL_S)
        done += len(piece)
    if exchange.connection is not None:
        connection.state.stats.record_answer(200)
        exchange.reply = b""
        connection.on_reply()
