"""The part of tracing that runs on the event loop, once for each answer to an inference.

W3C Trace Context: a request that brings a valid `traceparent` is a child of it and is sampled if that is (flag 01);
another one begins a trace, sampled by the ratio `otel.sample` of trace ids.  Every answer carries the `traceparent` of
its own span, sampled or not, so that a client can name the trace and lines of the log can be found by it.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable

from clover.http.exchange import Exchange
from clover.telemetry.otel.spans import Phases, RequestNote

log = logging.getLogger("clover.otel")

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
_ODD = b"13579bdf"
_LOWER = (1 << 64) - 1
_RANDOM = random.Random()  # not the module's, which a program may have seeded

TRACESTATE_BYTES = 512
"""Of `tracestate` a longer one is dropped whole, and a path is cut to `PATH_CHARACTERS`: a span is made of both later,
and notes wait by thousands.  W3C asks for 512 at least."""
PATH_CHARACTERS = 512


def parent_of(field: bytes) -> tuple[bytes, bytes, bool] | None:
    """Return trace id, id of the parent span (hexadecimal) and whether it is sampled, as `traceparent` says; None if it
    is invalid.

    Of a version later than 00 the part that is known counts, as W3C asks.
    """
    found = _TRACEPARENT.fullmatch(field)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == b"ff" or (more and version == b"00") or trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    return trace_id, parent_id, flags[1] in _ODD


class Tracer:
    """Decides which inferences are sampled and `put`s a note of each; a `clover.http.server_state.RequestTracer`.

    `ratio` of the requests without a parent is sampled; one that its head refuses (for want of a token, say) is not
    noted.  `bits(n)` gives n random bits.
    """

    def __init__(
        self,
        put: Callable[[RequestNote], None],
        ratio: float,
        *,
        bits: Callable[[int], int] = _RANDOM.getrandbits,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._put = put
        self._bound = round(ratio * (_LOWER + 1))
        self._bits = bits
        self._now_ns = now_ns
        self._broken = False

    def record_answer(self, exchange: Exchange, status: int) -> bytes:
        """See `RequestTracer.record_answer`."""
        head = exchange.head
        if head.method != "POST" or not head.path.endswith("/infer"):
            return b""
        given = parent_of(head.traceparent) if head.traceparent else None
        if given is None:
            drawn = self._bits(192)  # a trace id, whose lower half decides, and a span id below it
            ids = b"%048x" % drawn
            trace_id, span_id, parent_id = ids[:32], ids[32:], b""
            sampled = drawn >> 64 & _LOWER < self._bound
        else:
            trace_id, parent_id, sampled = given
            span_id = b"%016x" % self._bits(64)
        made = b"00-" + trace_id + b"-" + span_id + (b"-01" if sampled else b"-00")
        exchange.traceparent = made
        if sampled and head.refusal is None:
            try:
                self._note(exchange, status, (trace_id, span_id, parent_id))
            except Exception:  # an answer must not fail for its span
                if not self._broken:
                    self._broken = True
                    log.exception("spans of some requests cannot be made")
        return b"traceparent: " + made + b"\r\n"

    def _note(self, exchange: Exchange, status: int, ids: tuple[bytes, bytes, bytes]) -> None:
        head, ticket = exchange.head, exchange.traced
        phases = receipt = None
        if ticket is not None:
            phases = Phases(
                ticket.arrival_ns,
                getattr(ticket, "submit_ns", ticket.arrival_ns) - ticket.arrival_ns,
                ticket.queue_ns,
                ticket.compute_ns,
                getattr(ticket, "batch_rows", 0),
                len(ticket.slots),
            )
            if ticket.status == 200 and exchange.model is not None:
                receipt = exchange.model.receipt(ticket)
        connection = exchange.connection
        self._put(
            RequestNote(
                *ids,
                head.tracestate if ids[2] and len(head.tracestate) <= TRACESTATE_BYTES else b"",
                head.path[:PATH_CHARACTERS],
                exchange.request_id,
                connection.client if connection is not None else "",
                status,
                self._now_ns(),
                phases,
                receipt,
            )
        )
