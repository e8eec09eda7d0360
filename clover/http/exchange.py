"""One request and its answer."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from clover._native.wire import joined
from clover.errors import RequestError, shortage
from clover.http.heads import Head
from clover.http.server_state import ConnectionBase
from clover.interfaces import Model, Ticket

REASONS = {
    100: "Continue",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_access = logging.getLogger("clover.access")

JSON = b"application/json"
BINARY = b"application/octet-stream"

_START = {
    (status, kind): b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: " % (status, reason.encode(), kind)
    for status, reason in REASONS.items()
    for kind in (JSON, BINARY)
}
_GOOD = _START[200, JSON]
_JOIN_BYTES = 1 << 16
_KNOWN = 2048
_LENGTHS = [b"%d\r\n" % size for size in range(_KNOWN)]
"""The ends of Content-Length lines of small answers, which nearly all are."""


class Exchange:
    """One request in the order of its connection, and its answer once there is one.

    `reply` is None until then; the parts of a long body follow it in `rest`, so that they need not be joined.
    `interim` marks a client that waits for 100 Continue.  `ticket` holds the rows' slots in `model` while the data
    plane has them.  `number` is that of the id of our own, 0 before `issue`; `request_id` is that id, or the one that
    the client gave instead.  `flow` is the number of the connection.

    `traced` is the ticket of an inference while it gets its answer, if there is a tracer, and `traceparent` the context
    of its span then.  `waited_ns`: how long it was held unread.
    """

    __slots__ = (
        "close",
        "connection",
        "flow",
        "head",
        "interim",
        "model",
        "number",
        "reply",
        "request_id",
        "rest",
        "ticket",
        "traced",
        "traceparent",
        "waited_ns",
    )

    def __init__(self, connection: ConnectionBase, head: Head) -> None:
        self.connection: ConnectionBase | None = connection
        self.flow = self.connection.number
        self.head = head  # read as `self.head` below: the attribute's C type is known, the argument's is not
        self.reply: bytes | None = None
        self.rest: list[bytes] | None = None
        self.close = not self.head.keep_alive
        self.interim = False
        self.request_id = self.head.request_id
        self.number = 0
        self.model: Model | None = None
        self.ticket: Ticket | None = None
        self.traced: Ticket | None = None
        self.traceparent = b""
        self.waited_ns = 0

    def issue(self) -> bytes:
        """Return a new id of our own, by which labels may be sent: no one else can make it.  Empty once the client is
        gone."""
        connection = self.connection
        if connection is None:
            return b""
        ids = connection.state.ids
        self.number = ids.take()
        made = ids.text(self.number)
        if not self.request_id:
            self.request_id = made
        return made

    def finish(self, status: int, parts: list[bytes], fields: bytes = b"", kind: bytes = JSON) -> None:
        """Answer with `parts` as the body and `fields` as further header lines; a no-op once the client is gone."""
        connection = self.connection
        if connection is None or self.reply is not None:
            return
        size = 0
        for part in parts:
            size += len(part)
        state = connection.state
        start = _GOOD if status == 200 and kind is JSON else _START.get((status, kind))
        if start is None:
            reason = REASONS.get(status, "Unknown").encode()
            start = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: " % (status, reason, kind)
        if state.draining and connection.is_last(self):
            self.close = True
        if self.close:
            ending = b"\r\nConnection: close\r\n\r\n"
        elif self.head.minor == 0:
            ending = b"\r\nConnection: keep-alive\r\n\r\n"
        else:
            ending = b"\r\n\r\n"
        length = _LENGTHS[size] if size < _KNOWN else b"%d\r\n" % size
        request_id = self.request_id
        if not request_id:
            request_id = self.issue()
        if state.tracer is not None:
            fields += state.tracer.record_answer(self, status)
        head = [start, length, fields, b"x-request-id: ", request_id, ending]
        if self.head.method == "HEAD":
            parts = []
        if size <= _JOIN_BYTES:
            self.reply = joined(head, parts)
        else:
            self.reply, self.rest = joined(head, []), parts
        state.stats.record_answer(status)
        if state.access_log:
            _log_access(self, status, size)
        connection.on_reply()

    def finish_json(self, value: Any, status: int = 200) -> None:
        """Answer with a JSON document."""
        self.finish(
            status, [orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)]
        )

    def fail(self, status: int, text: str, fields: bytes = b"", retry_after_s: float | None = None) -> None:
        """Answer `{"error": text}`; below /v1/ the error object of OpenAI's API."""
        if retry_after_s is not None:
            fields += b"Retry-After: %d\r\n" % max(1, -int(-retry_after_s // 1))
        if self.head.path.startswith("/v1/"):
            kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
            error: Any = {"message": text, "type": kind, "param": None, "code": str(status)}
        else:
            error = text
        self.finish(status, [orjson.dumps({"error": error})], fields)

    def refuse(self, error: RequestError) -> None:
        """Answer an error that was raised for the client; the texts of server faults stay in the log."""
        status = error.status
        text = "the model failed on this request" if status == 500 else error.message
        fields = b"WWW-Authenticate: Bearer\r\n" if status == 401 else b""
        self.fail(status, text, fields, retry_after_s=error.retry_after_s if status in (429, 503) else None)

    def fault(self, error: Exception) -> None:
        """Answer an error that nobody foresaw: 503 if this machine was short of something, else 500."""
        short = shortage(error)
        if short is not None:
            self.refuse(short)
        else:
            self.fail(500, "the server failed on this request")

    def abandon(self) -> None:
        """Give the slots back and drop the answer, because the client is gone."""
        self.connection = None
        self.withdraw()

    def withdraw(self) -> None:
        """Give the slots back, if it has any."""
        ticket, model = self.ticket, self.model
        self.ticket = None
        if ticket is not None and model is not None:
            model.close(ticket)


def _log_access(exchange: Exchange, status: int, size: int) -> None:
    """Log one answer: method, path, status, bytes of the body, request id."""
    head = exchange.head
    request_id = exchange.request_id.decode("latin-1")
    _access.info(
        "%s %s %d %d %s",
        head.method,
        head.path.encode("unicode_escape").decode("ascii"),
        status,
        size,
        request_id,
        extra={"request_id": request_id, "method": head.method, "status": status, "answer_bytes": size}
        | trace_ids(exchange),
    )


def trace_ids(exchange: Exchange) -> dict[str, str]:
    """Return `trace_id` and `span_id` of an answered request for a line of the log; empty if it is not traced."""
    if not exchange.traceparent:
        return {}
    _, trace_id, span_id, _ = exchange.traceparent.decode("ascii").split("-")
    return {"trace_id": trace_id, "span_id": span_id}


def _plain(value: Any) -> Any:
    """Return a record inside a JSON answer as a dictionary."""
    import msgspec

    return msgspec.to_builtins(value)
