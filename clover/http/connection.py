"""One client connection: bytes in, exchanges in order, bytes out.

States of the reading side:

    IDLE --first byte--> HEAD --head complete--> BODY --body complete--> IDLE ...
    any --malformed, late or refused with its body unread--> LINGER --client closes, or time--> closed

The writing half is `outgoing`.  What a client can make us hold is bounded: reading pauses while `pipelined` answers
are due, while the client does not read and while its next request is held (`clover.http.held`), and a declared body is
read straight into one buffer of its size, or into the slots of its rows (`DirectReceive`) as long as it comes quickly.
What it can make us do in one turn of the loop is bounded too: once `TURN_BYTES` of bodies were taken in a turn, over
all connections, further bodies and their connections wait for a later turn.

Deadlines cost no timer per request: the front end calls `sweep` each `SWEEP_S`, which adds the time since the last call
to whatever the connection is waiting for.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import termios
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clover._native.wire import cut, head_end, part
from clover.http.addresses import client_of, is_loopback
from clover.http.chunks import ChunkDecoder, Receiver, SizedDecoder
from clover.http.exchange import Exchange
from clover.http.heads import Head, MalformedError, check_prefix
from clover.http.held import HeldRequests
from clover.http.inference import DirectReceive, InferEndpoint
from clover.http.oip.tensors import Body
from clover.http.outgoing import BODY, HEAD, IDLE, LINGER, Outgoing
from clover.http.server_state import ServerState

log = logging.getLogger("clover.http")

SWEEP_S = 0.5
_LINGER_S = 2.0
_BLANK_LINES = 4
_PROGRESS_BYTES = 1 << 20
"""The deadline of a body begins anew with so many bytes of one that is received as it comes."""
_NO_HEAD = Head()
_LATE = (504, "the deadline passed before the request was read, as more came than the server can answer", b"")


class Application(Protocol):
    """What turns a complete request into an answer."""

    def dispatch(self, exchange: Exchange, body: Body) -> None:
        """Answer now or later; `body` must not be kept after this returns."""


class Incoming(Outgoing):
    """The reading half of a connection, and so the whole of it but for its base in asyncio.

    Requests that are no inference go to `application`.  The connection is in `connections` while it is open.
    """

    __slots__ = (
        "_application",
        "_blank_lines",
        "_body",
        "_chunks",
        "_coming",
        "_connections",
        "_current",
        "_direct",
        "_filled",
        "_late",
        "_let_go",
        "_paused",
        "_receiver",
        "_tail",
        "_view",
        "_waited_ns",
    )

    def __init__(
        self,
        state: ServerState,
        application: Application,
        connections: set[Incoming],
        *,
        control: bool = False,
        tls: bool = False,
    ) -> None:
        super().__init__(state, control=control, tls=tls)
        self._application = application
        self._connections = connections
        self._tail = b""
        self._blank_lines = 0
        self._body: NDArray[np.uint8] | None = None
        self._view: memoryview | None = None
        self._filled = 0
        self._chunks: ChunkDecoder | SizedDecoder | None = None
        self._receiver: Receiver | None = None  # that takes the body as it comes
        self._current: Exchange | None = None  # whose body is being received
        self._direct: DirectReceive | None = None  # if that goes straight into slots
        self._paused = False  # we stopped reading
        self._let_go = False  # the next request was held, and is not any more
        self._late = False  # and came too late
        self._waited_ns = 0
        self._coming: HeldRequests | None = None  # that count the body being received

    # --- transport callbacks ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self not in self._connections and not self.admit(True):
            self.closing = True
            self._transport.abort()
            return
        if not self._tls:
            self._fd = descriptor(transport)
        if not self.control:
            peer = transport.get_extra_info("peername")
            self.peer = str(peer[0]) if peer else ""
            self.client = client_of(self.peer)
            self.loopback = is_loopback(self.peer)

    def admit(self, room: bool) -> bool:
        """Count the connection as open, before or when it is made; return whether there is room for it."""
        state = self.state
        stats = state.stats
        stats.accepted_connections += 1
        if not room or len(self._connections) >= state.limits.connections or state.draining:
            stats.refused_connections += 1
            return False
        stats.open_connections += 1
        self._connections.add(self)
        return True

    def forget(self) -> None:
        """Count the connection as closed, if it is not yet."""
        if self in self._connections:
            self._connections.discard(self)
            self.state.stats.open_connections -= 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.forget()
        self.closing = True
        self._transport = None
        for exchange in self.exchanges:
            exchange.abandon()
        self.exchanges.clear()
        self._held = None
        self._drop_body()
        self._out.clear()
        self._out_bytes = 0
        self._awaited = None
        self._tail = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        view = self._view
        if view is not None:
            return view[self._filled :]
        return self.state.scratch_view

    def buffer_updated(self, nbytes: int) -> None:
        state = self.state
        state.stats.received_bytes += nbytes
        if self._view is not None:
            self._filled += nbytes
            if self._filled == len(self._view):
                self._complete_body()
            return
        if self.closing:
            return
        self.feed(cut(state.scratch, nbytes))

    def eof_received(self) -> bool:
        """Return whether the transport stays open: a client that half-closes still gets the answers it is due."""
        if self.closing and not self._finishing and not self.exchanges:
            return False
        if self.phase == LINGER:
            return False
        self.closing = True
        self._tail = b""
        if self._current is not None:  # its body will never be complete
            self.exchanges.remove(self._current)
            self._current.abandon()
            self._drop_body()
        if not self.exchanges and not self._out:
            return False
        self._finishing = True
        return not self._tls

    # --- reading ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream in whatever pieces they come."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        state = self.state
        pos, size = 0, len(data)
        try:
            while not self.closing:
                if self._chunks is not None:
                    pos, complete = self._feed_chunks(data, pos)
                    if not complete:
                        return
                    continue
                if pos == size:
                    if self.phase == HEAD:
                        self.phase = IDLE
                    return
                if self._full():
                    self._stall(data[pos:])
                    return
                end = head_end(data, pos)
                raw = part(data, pos, end) if end >= 0 else b""
                head = state.heads.memo.get(raw)
                if head is None:
                    if data.startswith(b"\r\n", pos):
                        pos = self._skip_blank(pos)
                        continue
                    if not raw:
                        self._begin_head(data[pos:])
                        return
                    head = state.heads.parse(raw)
                endpoint = head.endpoint
                waits = endpoint is not None and endpoint.held is not None and not self._let_go
                if waits and endpoint.holds(self, head):
                    self._held = endpoint.held
                    state.stats.held_requests += 1
                    self._stall(data[pos:])
                    return
                pos = self._begin_request(head, data, end, size)
                if self._view is not None:
                    return
        except MalformedError as error:
            self.state.stats.malformed += 1
            self._fail(error.status, error.text)

    def _skip_blank(self, pos: int) -> int:
        """Return the position after an empty line before a request line.

        RFC 9112 2.2 asks servers to ignore these; more than a few raise MalformedError.
        """
        self._blank_lines += 1
        if self._blank_lines > _BLANK_LINES:
            raise MalformedError(400, "the request line is missing")
        return pos + 2

    def _begin_head(self, partial: bytes) -> None:
        check_prefix(partial, 0, self.state.limits)
        self._tail = partial
        if self.phase != HEAD:
            self.phase = HEAD
            self._waited_s = 0.0

    def _begin_request(self, head: Head, data: bytes, pos: int, size: int) -> int:
        """Open the exchange of a complete head; return the position after what was taken."""
        exchange = Exchange(self, head)
        self.exchanges.append(exchange)
        self._blank_lines = 0
        need = head.length
        refusal = head.refusal
        if self._let_go:
            exchange.waited_ns = self._waited_ns
            if self._late:
                refusal = _LATE
            self._let_go = self._late = False
        if refusal is not None:
            # With its body still to come, the next request could not be told from it: answer and end.
            if head.chunked or size - pos < need:
                self.closing = True
                self._lingers = True
                exchange.close = True
            status, text, fields = refusal
            exchange.fail(status, text, fields)
            return pos + need
        if head.receive is not None:
            receiver = self._receiver = head.receive(exchange)
            self._chunks = (
                ChunkDecoder(head.most_bytes, head.too_large(), receiver)
                if head.chunked
                else SizedDecoder(need, receiver)
            )
        elif head.chunked:
            self._chunks = ChunkDecoder(head.most_bytes, head.too_large())
        elif size - pos >= need:
            body = part(data, pos, pos + need) if need else b""
            self.phase = IDLE
            self._waited_s = 0.0
            if exchange.close:
                self.closing = True
            self._dispatch(exchange, body)
            return pos + need
        else:
            self._receive(exchange, data, pos, need)
            pos = size
        self._current = exchange
        self.phase = BODY
        self._waited_s = 0.0
        if head.expect and pos == size:
            exchange.interim = True
            self._emit()
        return pos

    def _receive(self, exchange: Exchange, data: bytes, pos: int, need: int) -> None:
        """Prepare to receive the rest of a body: straight into slots if it is a tensor that has some, else into one
        buffer."""
        head = exchange.head
        have = len(data) - pos
        endpoint: InferEndpoint | None = head.endpoint
        if endpoint is not None and 0 < head.json_length <= have and endpoint.current:
            direct = endpoint.receive_direct(exchange, data[pos : pos + head.json_length], need - head.json_length)
            if direct is not None:
                self._direct = direct
                self._view = direct.view
                pos += head.json_length
                have -= head.json_length
        if self._view is None:
            self._body = self.state.take_buffer(need)
            self._view = memoryview(self._body)[:need]  # type: ignore[arg-type]
        self._view[:have] = memoryview(data)[pos:]
        self._filled = have

    def _dispatch(self, exchange: Exchange, body: Body) -> bool:
        """Have a request answered, in this turn or, if enough was done in it, later: return whether `body` is kept."""
        state = self.state
        size = len(body)
        state.turn_bytes += size
        if state.turn_bytes > state.turn_limit:
            self._awaited = exchange
            self._awaited_bytes = size
            state.postpone(partial(self._take_late, exchange, body), size)
            return True
        self._take(exchange, body)
        return False

    def _take(self, exchange: Exchange, body: Body) -> None:
        """Have a request answered: inference goes straight to its endpoint."""
        endpoint: InferEndpoint | None = exchange.head.endpoint
        if endpoint is not None and endpoint.current:
            endpoint.take(exchange, body)
            return
        self._application.dispatch(exchange, body)
        if exchange.reply is None and exchange.head.endpoint is None:
            self._awaited = exchange
            self._awaited_bytes = len(body)

    def _take_late(self, exchange: Exchange, body: Body) -> None:
        if exchange.connection is not None:  # the client is still there
            self._awaited = None
            self._take(exchange, body)
            self._mark()  # to resume reading
        elif exchange.head.receive is not None:
            body.abort()  # type: ignore[union-attr]
        if isinstance(body, memoryview):
            self.state.give_buffer(body.obj)  # type: ignore[arg-type]

    def _feed_chunks(self, data: bytes, pos: int) -> tuple[int, bool]:
        chunks = self._chunks
        assert chunks is not None
        begin = pos
        pos = chunks.feed(data, pos)
        receiver = self._receiver
        if chunks.done:
            self._chunks = self._receiver = None
            self._dispatch_current(chunks.body)
        elif receiver is not None:
            self._filled += pos - begin
            if self._filled >= _PROGRESS_BYTES:
                self._filled, self._waited_s = 0, 0.0
            if receiver.full:
                self._stall(b"")
        return pos, chunks.done

    def _complete_body(self) -> None:
        view, body = self._view, self._body
        assert view is not None
        self._view = self._body = None
        if body is None:  # its tensor lies in its slots
            self._dispatch_current(b"")
        else:
            if not self._dispatch_current(view):
                self.state.give_buffer(body)

    def _dispatch_current(self, body: Body) -> bool:
        """Have the request whose body is complete answered; return whether `body` is kept."""
        exchange, self._current = self._current, None
        assert exchange is not None
        self._came()
        exchange.interim = False
        self.phase = IDLE
        self._waited_s = 0.0
        if exchange.close:
            self.closing = True
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.complete()
            return False
        return self._dispatch(exchange, body)

    def _vacate(self) -> None:
        """Give the slots back whose rows come slowly, and receive the rest of the body into a buffer."""
        direct, view, filled = self._direct, self._view, self._filled
        assert direct is not None
        assert view is not None
        self._direct = None
        begin = len(direct.text)
        need = begin + len(view)
        self._body = self.state.take_buffer(need)
        self._view = memoryview(self._body)[:need]  # type: ignore[arg-type]
        self._view[:begin] = direct.text
        self._view[begin : begin + filled] = view[:filled]
        self._filled = begin + filled
        direct.cancel()

    def _came(self) -> None:
        """Say that a body is not coming any more, where that is counted."""
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.record_body()

    def let_go(self, waited_ns: int, late: bool) -> bool:
        """See `HeldConnection.let_go`."""
        held, self._held = self._held, None
        if held is None:
            return False
        self._let_go, self._late, self._waited_ns = True, late, waited_ns
        self._resume()
        if self._current is not None:
            self._coming = held
        return self._coming is not None

    def _drop_body(self) -> None:
        self._current = None
        self._came()
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.cancel()
        if self.phase == BODY:
            self.phase = IDLE
        self._chunks = None
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.abort()
        if self._view is not None:
            self._view = None
            self._body = None

    def _stall(self, rest: bytes) -> None:
        """Stop reading, because enough answers are due, until some of them are written."""
        self._tail = rest
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _fail(self, status: int, text: str) -> None:
        """Answer an error that ends the connection, after the answers still due."""
        exchange = self._current
        if exchange is None:
            exchange = Exchange(self, _NO_HEAD)
            self.exchanges.append(exchange)
        self._drop_body()
        self._tail = b""
        exchange.interim = False
        exchange.close = True
        self.closing = True
        self._lingers = True
        exchange.fail(status, text)

    # --- time ---------------------------------------------------------------------------------------------------------

    def sweep(self, elapsed_s: float) -> bool:
        """Charge `elapsed_s` to the current wait; return whether that ended the connection.  A wait began up to one
        sweep before it is first charged, so a deadline counts from the limit on, plus one sweep: never early, late by
        at most a sweep."""
        transport = self._transport
        if transport is None:
            return False
        limits = self.state.limits
        if self._write_is_late(elapsed_s, limits.write_s + SWEEP_S):
            self.state.stats.deadlines_missed += 1
            transport.abort()
            return True
        if self._held is not None:
            self._held.wake()
        pending = self._write_waited_s > 0
        phase = self.phase
        if (phase == IDLE and (self.exchanges or self._out or pending)) or (self._paused and phase != LINGER):
            self._waited_s = 0.0
            return False
        self._waited_s += elapsed_s
        waited = self._waited_s - SWEEP_S
        if self._direct is not None and waited >= 2 * SWEEP_S:
            self._vacate()
        if phase == IDLE:
            if waited >= limits.idle_s and not unread(transport):
                transport.close()
                return True
        elif phase == LINGER:
            if waited >= _LINGER_S:
                transport.abort() if pending else transport.close()
                return True
        elif waited >= (limits.head_s if phase == HEAD else limits.body_s):
            self.state.stats.deadlines_missed += 1
            part = "head" if phase == HEAD else "body"
            log.debug("a client did not send its request %s in time", part)
            self._fail(408, f"the request {part} did not arrive in time")
            return True
        return False

    def held(self) -> int:
        """Return how many bytes the client makes us hold: bodies that it sent in part, or that wait, and answers that
        it has not read, or that wait for an earlier one."""
        held = self._out_bytes + len(self._tail)
        if self._awaited is not None:
            held += self._awaited_bytes
        for exchange in self.exchanges:
            if exchange.reply is not None:
                held += len(exchange.reply) + sum(map(len, exchange.rest or ()))
        if self._transport is not None:
            held += self._transport.get_write_buffer_size()
        if self._body is not None:
            held += self._filled
        elif self._chunks is not None:
            held += len(self._chunks.body)
        return held

    def _resume(self) -> None:
        if self._paused and not self._full():
            self._paused = False
            if not self.closing:
                self.feed(b"")
            if not self._paused and self._transport is not None:
                self._transport.resume_reading()

    def refuse_body(self, exchange: Exchange, status: int, text: str) -> None:
        """Answer a request whose body still comes with an error, and end the connection."""
        if self._current is exchange:
            self._fail(status, text)

    def drained(self) -> None:
        """Read on, now that what takes the body as it comes is not full any more."""
        if self._transport is not None:
            self._resume()

    def is_last(self, exchange: object) -> bool:
        """Return whether no request received so far comes after `exchange`."""
        return not self._tail and self.exchanges[-1] is exchange

    def drain(self) -> bool:
        """Close now if nothing received is unanswered, and return whether it is so; otherwise the last answer will
        close."""
        transport = self._transport
        waits = self.exchanges or self._out or self._paused or self._finishing
        if self.phase in (IDLE, HEAD) and not waits and transport is not None and not unread(transport):
            self.closing = True
            transport.close()
            return True
        return False

    @property
    def unanswered(self) -> int:
        """Requests whose head came and that are not answered, the one that is held unread among them."""
        return len(self.exchanges) + (self._held is not None)

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


class Connection(Incoming, asyncio.BufferedProtocol):
    """A connection as the event loop drives it."""

    __slots__ = ()


def unread(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client sent bytes that the event loop has not read yet.  If the connection were closed now,
    that request would get no answer."""
    fd = descriptor(transport)
    try:
        return fd >= 0 and fcntl.ioctl(fd, termios.FIONREAD, bytes(4)) != bytes(4)
    except OSError:  # whatever it is, it is no socket that has a request
        return False


def descriptor(transport: asyncio.BaseTransport) -> int:
    """Return the file descriptor of a transport's socket; -1 if it has none."""
    found = transport.get_extra_info("socket")
    return found.fileno() if found is not None else -1
