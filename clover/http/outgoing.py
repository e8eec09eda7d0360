"""The writing half of a connection: answers in order, one write a turn, an orderly end.

Answers leave in the order of their requests, so the error of request n+1 waits behind the answer of n.  They gather in
`_out`, and `ServerState` flushes every connection that has some, once, at the end of the turn.

What a client leaves unread is bounded: no further request of it is taken (`_full`) while more than 64 KiB are in
`_out`, while the transport's buffer is above its limit, while a request waits its turn (`_awaited`: a large document, a
command, a long body), or while a request is held (`held`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from clover._native.wire import send
from clover.http.exchange import Exchange
from clover.http.held import HeldRequests
from clover.http.server_state import ConnectionBase, ServerState

IDLE, HEAD, BODY, LINGER = range(4)
"""Phases of the reading half; see `connection`."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BYTES = 1 << 16
_PROGRESS_BYTES = 64 << 10


class Outgoing(ConnectionBase):
    """The answers that a connection owes its client.  `_resume` returns to the reading half."""

    __slots__ = (
        "_awaited",
        "_awaited_bytes",
        "_behind",
        "_choked",
        "_dirty",
        "_fd",
        "_finishing",
        "_held",
        "_lingers",
        "_out",
        "_out_bytes",
        "_sent",
        "_tls",
        "_transport",
        "_unflushed",
        "_waited_s",
        "_write_mark",
        "_write_waited_s",
        "closing",
        "exchanges",
        "phase",
    )

    def __init__(self, state: ServerState, *, control: bool, tls: bool) -> None:
        super().__init__(state, control=control)
        self.exchanges: deque[Exchange] = deque()
        self.phase = IDLE
        self.closing = False  # no further request is read
        self._tls = tls
        self._transport: Any = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._unflushed = 0
        self._awaited: Exchange | None = None
        self._awaited_bytes = 0  # of its body, while that waits
        self._held: HeldRequests | None = None  # among which the next request waits unread
        self._dirty = False
        self._fd = -1  # of a socket that answers go to without the transport
        self._behind = False  # the transport may hold some of what was written
        self._choked = False  # the client does not read
        self._finishing = False  # close once all is written
        self._lingers = False
        self._waited_s = 0.0
        self._write_waited_s = 0.0
        self._write_mark = 0
        self._sent = 0

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False
        self._mark()

    def on_reply(self) -> None:
        """Move the replies that are next in order to the output."""
        exchanges = self.exchanges
        while exchanges:
            exchange = exchanges[0]
            reply = exchange.reply
            if reply is None:
                break
            exchanges.popleft()
            exchange.connection = None
            self._out.append(reply)
            self._out_bytes += len(reply)
            rest = exchange.rest
            if rest is not None:
                self._out += rest
                for part in rest:
                    self._out_bytes += len(part)
            self._unflushed += 1
            if exchange is self._awaited:
                self._awaited = None
            if exchange.close:
                self.closing = True
                self._finishing = True
                self._awaited = None
                for late in exchanges:
                    late.abandon()
                exchanges.clear()
                self._drop_body()
        self._emit()

    def _full(self) -> bool:
        """Return whether the next request has to wait for answers to be written."""
        return (
            len(self.exchanges) + self._unflushed >= self.state.pipelined
            or self._choked
            or self._out_bytes > 65536
            or self._awaited is not None
            or self._held is not None
        )

    def _emit(self) -> None:
        exchanges = self.exchanges
        if exchanges and exchanges[0].interim:
            exchanges[0].interim = False
            self._out.append(_CONTINUE)
            self._out_bytes += len(_CONTINUE)
        if self._out:
            self._mark()

    def _mark(self) -> None:
        if not self._dirty:
            self._dirty = True
            self.state.mark(self)

    def flush(self) -> None:
        """Write the output, then resume reading if it had stopped."""
        self._dirty = False
        transport = self._transport
        if transport is None:
            return
        out = self._out
        if out:
            self._unflushed = 0
            size = self._out_bytes
            self._out_bytes = 0
            if transport.is_closing():
                out.clear()
                return
            self._sent += size
            self.state.stats.sent_bytes += size
            self._out = []
            if len(out) == 1:
                self._write(out[0])
            elif size <= _JOIN_BYTES:
                self._write(b"".join(out))
            else:
                self._behind = True
                transport.writelines(out)
        if self._finishing:
            if not self.exchanges:
                self._end()
        else:
            self._resume()

    def _write(self, data: bytes) -> None:
        """Send what the socket takes at once, and leave the rest to the transport, with all that follows until that is
        sent."""
        if self._behind and not self._transport.get_write_buffer_size():
            self._behind = False
        if self._fd >= 0 and not self._behind:
            sent = send(self._fd, data)
            if sent == len(data):
                return
            data = data[sent:]
        self._behind = True
        # uvloop's transport may be closed, by the client, and not say so before its loss is reported.  Raised further,
        # that would leave unwritten what other connections have to write in this turn.
        with contextlib.suppress(RuntimeError):
            self._transport.write(data)

    def push(self, data: bytes, unread_bytes: int) -> bool:
        """Send a part of an answer that stays open, the first one with its head; return False, and send nothing, if the
        client is gone or has left more than `unread_bytes` of what was pushed before unread.

        The exchange that is answered so must be the first one due.  It never gets a reply: the connection ends it."""
        transport = self._transport
        if transport is None or self._finishing or transport.is_closing():
            return False
        if self._out:
            self.flush()  # answers of before, in this turn of the loop
        if transport.get_write_buffer_size() > unread_bytes:
            return False
        self._sent += len(data)
        self.state.stats.sent_bytes += len(data)
        self._write(data)
        return True

    def hang_up(self) -> None:
        """End the connection, whatever is due on it."""
        if self._transport is not None:
            self.closing = True
            self._transport.abort() if self._transport.get_write_buffer_size() else self._transport.close()

    def _resume(self) -> None:
        """Resume reading, if it had stopped and may go on now that something was written."""
        raise NotImplementedError

    def _drop_body(self) -> None:
        """Drop the request that is being received."""
        raise NotImplementedError

    def _end(self) -> None:
        """Close the connection, now that all is written.

        After an early error the client may still be sending.  A close would then reset the connection and could
        destroy the answer, so half-close and keep reading for a while.
        """
        transport = self._transport
        if self._lingers and self.phase != LINGER and not self._tls and transport.can_write_eof():
            self.phase = LINGER
            self._waited_s = 0.0
            transport.write_eof()
            self._resume()
        elif self.phase != LINGER:
            transport.close()

    def _write_is_late(self, elapsed_s: float, limit_s: float) -> bool:
        """Charge `elapsed_s` to a client that leaves answers unread; return whether it has taken next to nothing for
        `limit_s`."""
        pending = self._transport.get_write_buffer_size()
        taken = self._sent - pending
        if not pending or taken - self._write_mark >= _PROGRESS_BYTES:
            self._write_mark = taken
            self._write_waited_s = 0.0
        if pending:
            self._write_waited_s += elapsed_s
        return self._write_waited_s >= limit_s
