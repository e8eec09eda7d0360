"""The infer path: decode, open, write, submit; then read, encode, answer, close.

No Task and no Future: the data plane calls `_done` with the ticket, whose context names the exchange.  Whatever
happens, a ticket that was opened is closed exactly once: here, or by the connection that lost its client.

A body is decoded once it is complete (`InferEndpoint.take`).  One exception saves a copy: if the JSON of a large binary
request has come and its tensor has not, the connection may read the tensor from the socket straight into the slots of
its rows (`DirectReceive`).
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec.structs import astuple

from clover._native.wire import receipt_line
from clover.config import LimitsConfig
from clover.errors import RequestError
from clover.families import by_agreement
from clover.http.content_encoding import deflate
from clover.http.exchange import BINARY, JSON, Exchange, trace_ids
from clover.http.heads import Head
from clover.http.held import HeldRequests
from clover.http.oip.request import decode, decode_ahead
from clover.http.oip.response import brief, encode
from clover.http.oip.signature import JSON_DEPTH, NO_INPUTS, InferRequest, Rows, Signature
from clover.http.oip.tensors import Body
from clover.http.server_state import ConnectionBase
from clover.interfaces import ROOM, Model, SplitModel, Ticket
from clover.types import FamilySpec, Reading, Receipt

log = logging.getLogger("clover.http")

PROXIED = b", accuracy-method=proxy\r\n"
"""The end of a receipt's line if its accuracy is agreement with the best variant."""

_FULL = [b'{"error":"too many rows wait for this model"}']


_KEPT_LINES = 64
"""Paths and variants whose receipts' lines are kept; a chain has few."""


class ReceiptLine:
    """What the header lines of receipts that differ in joules and grams alone have in common: the bytes before and
    after these.  `said`: all else that such a receipt says.  `everything`: the line has every member."""

    __slots__ = ("end", "said", "start")

    def __init__(self, receipt: Receipt, said: tuple[Any, ...], everything: bool = False) -> None:
        self.said = said
        self.start = f'Clover-Receipt: variant="{receipt.variant}", accuracy={round(receipt.accuracy, 3)}, '.encode()
        end = f", method={receipt.method}, intensity={receipt.intensity_g_per_kwh:.1f}{_known(receipt.intensity)}"
        if everything or receipt.intensity_state != "fresh":
            end += f", state={receipt.intensity_state}"
        if everything:
            end += f", pue={round(receipt.pue, 3):g}{_source(receipt.intensity)}"
            end += f', path="{format_paths(receipt.path)}"' if receipt.path else ""
        if receipt.accuracy == 0.0:
            end += ", accuracy-method=unknown"  # the model is not measured
        if receipt.limited:
            end += f", limited={receipt.limited}"
        if receipt.cached:
            end += ", cached=?1"
        if receipt.version:
            end += f", version={_string(receipt.version)}"
        self.end = f"{end}\r\n".encode()


class ReceiptCache:
    """The last receipt and its header line, as rows of one batch cost alike; and lines that receipts of the same path,
    or variant, had, as the next one often differs in its joules and grams alone."""

    __slots__ = ("field", "lines", "receipt")

    def __init__(self) -> None:
        self.receipt: Receipt | None = None
        self.field = b""
        self.lines: dict[str | tuple[str, ...], ReceiptLine] = {}


_LAST_RECEIPT = ReceiptCache()


class InferEndpoint:
    """The target of `POST .../infer` for one family: its model, and its signature compiled for decoding.

    `proxied`: its receipts say that accuracy is a proxy, agreement with the best variant.  `held`: its requests that
    wait unread; None while none has to."""

    __slots__ = ("held", "model", "proxied", "signature")

    def __init__(self, name: str, model: Model, limits: LimitsConfig, spec: FamilySpec | None = None) -> None:
        self.model = model
        self.held: HeldRequests | None = None
        model.take_late(False)  # an endpoint that was looked up before this one may have begun it
        self.proxied = by_agreement(spec or model.spec)
        self.signature = Signature(spec or model.spec, model.most_rows, JSON_DEPTH, name, limits.json_bytes)

    @property
    def current(self) -> bool:
        """Whether requests may come here without looking the family up by its name again."""
        return not self.model.closed_reason

    def holds(self, connection: ConnectionBase, head: Head) -> bool:
        """Hold the next request of a connection unread if it has to wait, and return whether it has to; only while some
        are `held`."""
        held = self.held
        assert held is not None
        return held.hold(connection, connection.number, _number(head, connection.client), head.tenant)  # type: ignore[arg-type]

    def settle(self) -> None:
        """Hold no more requests, and refuse for the SLO again, once nothing waits and there is room in time."""
        if self.held is not None and self.held.is_settled():
            self.held = None
            self.model.take_late(False)

    def take(self, exchange: Exchange, body: Body) -> None:
        """Start a request, or answer why not; never raises."""
        try:
            wait_s = self.model.retry_in_s(exchange.flow, _named(exchange), exchange.head.tenant)
            if wait_s > 0.0:
                self._refused(exchange, len(body))
                exchange.finish(429, _FULL, b"Retry-After: %d\r\n" % math.ceil(wait_s))
            else:
                self.start(exchange, body)
        except RequestError as error:
            if error.status == 429:
                self._refused(exchange, len(body))
            exchange.refuse(error)
        except Exception as error:
            _failed(exchange, error)

    def _refused(self, exchange: Exchange, body_bytes: int) -> None:
        """Count what a refusal takes; hold the requests that come next if refusals take too much."""
        connection = exchange.connection
        if connection is None or self.model.room(exchange.flow, _named(exchange), exchange.head.tenant) == ROOM:
            return  # a tenant over its own rate, say, is no overload
        refusals = connection.state.refusals
        if refusals.spend(body_bytes):
            self.held = self.held or HeldRequests(self.model, connection.state, refusals.clock)
            self.model.take_late(True)  # also anew: another endpoint of the model may have ended it

    def start(self, exchange: Exchange, body: Body) -> None:
        """Start the request; raises RequestError, and then holds nothing."""
        model = self.model
        request = decode(self.signature, body, exchange.head.json_length)
        ticket = model.open(request.rows, exchange.flow, _named(exchange), exchange.head.tenant)
        exchange.model = model
        exchange.ticket = ticket
        try:
            for index, rows in request.inputs:
                if request.shapes and isinstance(rows, list) and index in request.shapes:
                    model.write_elements(ticket, index, rows, request.shapes[index])
                else:
                    model.write(ticket, index, rows)
            request.inputs = NO_INPUTS
            self._submit(exchange, request, ticket)
        except BaseException:
            exchange.withdraw()
            raise

    def receive_direct(self, exchange: Exchange, text: bytes, size: int) -> DirectReceive | None:
        """Reserve slots for the `size` bytes of tensor data that follow the JSON `text` and are still to come.

        None if the body has to be received as a whole first: it is no single tensor of fixed shape, something is wrong
        with it, or no slots can be lent to a client that may take its time.
        """
        try:
            request = decode_ahead(self.signature, text, size)
            found = None
            if request is not None:
                found = self.model.lend(request.rows, 0, exchange.flow, _named(exchange), exchange.head.tenant)
        except Exception:
            log.exception("a request could not be read ahead")  # it is received as a whole then
            return None
        if request is None or found is None:
            return None
        exchange.model = self.model
        exchange.ticket, view = found
        return DirectReceive(self, exchange, request, text, view)

    def answering(self, ticket: Ticket) -> InferEndpoint:
        """Return the endpoint whose signature an answer is encoded by."""
        return self

    def _submit(self, exchange: Exchange, request: InferRequest, ticket: Ticket) -> None:
        context = exchange, self, request
        if exchange.head.uncached:
            ticket.uncached = exchange.head.uncached
        if exchange.waited_ns:
            ticket.waited_ns = exchange.waited_ns
            ticket.arrival_ns -= exchange.waited_ns
        tenant = exchange.head.tenant
        if tenant is not None:
            ticket.client = tenant.client
            request.min_accuracy = request.min_accuracy or tenant.min_accuracy
            request.timeout_ns = request.timeout_ns or tenant.timeout_ns
        elif exchange.connection is not None:
            ticket.client = exchange.connection.client
        self.model.submit(ticket, _done, request.timeout_ns, request.min_accuracy, request.cascade, context)


class SplitEndpoint(InferEndpoint):
    """The endpoint of a name that two versions are served under: answers say which version they are of."""

    __slots__ = ("_by_version",)

    def __init__(self, name: str, model: SplitModel, limits: LimitsConfig) -> None:
        InferEndpoint.__init__(self, name, model, limits)
        self._by_version = {spec.version: InferEndpoint(name, model, limits, spec) for spec in model.versions()}

    def answering(self, ticket: Ticket) -> InferEndpoint:
        """See `InferEndpoint.answering`."""
        model: Any = self.model
        endpoint: InferEndpoint = self._by_version[model.version_of(ticket).version]
        return endpoint


def _named(exchange: Exchange) -> int:
    """Return the number of the id that a client gave a request, while the client is there; else 0."""
    connection = exchange.connection
    return _number(exchange.head, connection.client) if connection is not None else 0


def _number(head: Head, client: str) -> int:
    """Return a positive number of the id that a client gave a request, and of its address: others may use the same ids;
    0 if it gave none."""
    return hash((head.request_id, client)) & sys.maxsize if head.request_id else 0


class DirectReceive:
    """A request whose tensor is read from the socket into the slots of its rows.

    Write the bytes to `view`, in order; then call `complete`, or `cancel` if they will not all come.  After either,
    `view` must not be written to: the slots are the worker's, or another request's.  `text` is the JSON before them.
    """

    __slots__ = ("_endpoint", "_exchange", "_request", "text", "view")

    def __init__(
        self, endpoint: InferEndpoint, exchange: Exchange, request: InferRequest, text: bytes, view: memoryview
    ) -> None:
        self._endpoint = endpoint
        self._exchange = exchange
        self._request = request
        self.text = text
        self.view = view

    def complete(self) -> None:
        """Start the request, now that its rows lie in their slots, or answer why not; never raises."""
        endpoint, exchange = self._endpoint, self._exchange
        ticket = exchange.ticket
        assert ticket is not None
        try:
            endpoint.model.admit_lent(ticket)
            endpoint._submit(exchange, self._request, ticket)
        except RequestError as error:
            if error.status == 429:
                endpoint._refused(exchange, len(self.view))
            exchange.withdraw()
            exchange.refuse(error)
        except Exception as error:
            exchange.withdraw()
            _failed(exchange, error)

    def cancel(self) -> None:
        """Give the slots back."""
        self._exchange.withdraw()


def _failed(exchange: Exchange, error: Exception) -> None:
    given = exchange.request_id.decode("latin-1")
    exchange.fault(error)  # first, as it makes the span that the log names
    log.exception("a request failed (%s)", given or "no id yet", extra=trace_ids(exchange))


def _done(ticket: Ticket) -> None:
    """Answer the request of a ticket that the data plane has finished; the callback of `Model.submit`."""
    context: tuple[Exchange, InferEndpoint, InferRequest] = ticket.context
    _end(context[0], context[1], context[2], ticket)


def _end(exchange: Exchange, endpoint: InferEndpoint, request: InferRequest, ticket: Ticket) -> None:
    if exchange.ticket is not ticket:
        return  # the client is gone, and its ticket was closed when it went
    exchange.ticket = None
    model = endpoint.model
    if endpoint.held is not None:
        endpoint.held.wake()
    if exchange.connection is not None and exchange.connection.state.tracer is not None:
        exchange.traced = ticket
    try:
        if ticket.status == 200:
            _answer(exchange, endpoint.answering(ticket), request, ticket)
        elif ticket.status == 500:
            exchange.fail(500, "the model failed on this request")
        else:
            exchange.fail(ticket.status, ticket.error, b"", ticket.retry_after_s)
    except RequestError as error:
        exchange.refuse(error)
    except Exception as error:
        given = exchange.request_id.decode("latin-1")
        exchange.fault(error)
        log.exception("an answer could not be encoded (request %s)", given, extra=trace_ids(exchange))
    finally:
        exchange.traced = None
        model.close(ticket)


def _answer(exchange: Exchange, endpoint: InferEndpoint, request: InferRequest, ticket: Ticket) -> None:
    model = endpoint.model
    receipt = model.receipt(ticket)
    named = len(exchange.request_id) > 0  # by the client: others may know that id, so labels need one of our own
    own_id = exchange.issue() if named or request.wants_receipt else b""
    shown = receipt_json(receipt, own_id.decode()) if request.wants_receipt else None
    if shown is not None and endpoint.proxied and receipt.accuracy:
        shown["accuracy_method"] = "proxy"
    signature = endpoint.signature
    text = None
    if shown is None and signature.is_brief and request.outputs is signature.defaults[False]:
        text = model.text(ticket, 0)
    if text is not None:
        json_length, parts = -1, brief(signature, request, text)
    else:
        json_length, parts = encode(signature, request, partial(_rows, model, ticket), shown)
    fields = receipt_field(receipt, request.wants_receipt)
    if endpoint.proxied and receipt.accuracy:
        fields = fields[:-2] + PROXIED
    if named:  # into the line of the receipt, before any other field
        fields = fields[:-2] + b', feedback="%b"\r\n' % own_id
    kind = JSON
    if json_length >= 0:
        fields += b"Inference-Header-Content-Length: %d\r\n" % json_length
        kind = BINARY
    accept = exchange.head.accept
    if accept:
        packed = deflate(accept, parts)
        fields += b"Vary: Accept-Encoding\r\n"
        if packed is not None:
            parts = [packed]
            fields += b"Content-Encoding: %b\r\n" % accept.encode()
    exchange.finish(200, parts, fields, kind)
    if exchange.number:
        model.remember(exchange.number, ticket)


def _rows(model: Model, ticket: Ticket, index: int) -> Rows:
    return model.read(ticket, index)


def receipt_field(receipt: Receipt, everything: bool = False) -> bytes:
    """Return the `Clover-Receipt` header line: six members, further ones where an answer is out of the ordinary, and
    all of them if `everything`.

    An RFC 9651 decimal has three places, too few for the joules of a small model, so energy and carbon are strings with
    nine.  For several rows, `path` has the number of rows of each path.
    """
    if everything:
        full = ReceiptLine(receipt, (), True)
        return receipt_line(full.start, full.end, receipt.energy_j, receipt.carbon_mg)
    last = _LAST_RECEIPT
    if receipt is last.receipt:
        return last.field
    values = astuple(receipt)  # one call, where each attribute would be a search for its descriptor
    variant, energy_j, carbon_mg, path = values[0], values[2], values[3], values[9]
    said = values[:2] + values[4:]
    line = last.lines.get(path or variant)
    if line is None or line.said != said:
        if len(last.lines) >= _KEPT_LINES:
            last.lines.clear()
        line = last.lines[path or variant] = ReceiptLine(receipt, said)
    field = receipt_line(line.start, line.end, energy_j, carbon_mg)
    last.receipt, last.field = receipt, field
    return field


def _known(reading: Reading | None) -> str:
    """Return the parameters of the member `intensity`, which say how it is known; empty before there is a reading."""
    return "" if reading is None else f";method={reading.method}{';replayed' if reading.replayed else ''}"


def _source(reading: Reading | None) -> str:
    """Return the members that say where the intensity comes from; empty before there is a reading."""
    if reading is None:
        return ""
    return (
        f", provider={_string(reading.provider)}, zone={_string(reading.zone)}, signal={reading.signal}, "
        f"scope={reading.scope}, age-s={reading.age_s:.0f}"
    )


def _string(text: str) -> str:
    """Return an RFC 9651 string: printable ASCII, anything else as "?" (a zone comes from a provider or a file)."""
    plain = "".join(each if " " <= each <= "~" else "?" for each in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def format_paths(paths: Sequence[str]) -> str:
    """Return the path of one row, or each path with the number of rows that took it: "small*3 small>xlarge*2"."""
    if len(paths) == 1:
        return paths[0]
    return " ".join(f"{path}*{count}" for path, count in sorted(Counter(paths).items()))


def _intensity(reading: Reading | None) -> dict[str, Any]:
    """Return the member `intensity` of a receipt in JSON: how the intensity is known; none before there is one."""
    if reading is None:
        return {}
    members = ("provider", "zone", "signal", "scope", "method", "replayed", "age_s")
    return {"intensity": {name: getattr(reading, name) for name in members}}


def receipt_json(receipt: Receipt, own_id: str) -> dict[str, Any]:
    """Return the receipt for `parameters.clover_receipt`, in full precision; `accuracy` in percent.

    `own_id` is the id by which labels for the answer may be sent.
    """
    return {
        "variant": receipt.variant,
        "accuracy": round(receipt.accuracy, 7),
        "energy_j": receipt.energy_j,
        "carbon_mg": receipt.carbon_mg,
        "intensity_g_per_kwh": receipt.intensity_g_per_kwh,
        "method": receipt.method,
        "intensity_state": receipt.intensity_state,
        "pue": receipt.pue,
        **_intensity(receipt.intensity),
        **({"accuracy_method": "unknown"} if receipt.accuracy == 0.0 else {}),
        **({"path": list(receipt.path)} if receipt.path else {}),
        **({"limited": receipt.limited} if receipt.limited else {}),
        **({"cached": True} if receipt.cached else {}),
        **({"version": receipt.version} if receipt.version else {}),
        "feedback": own_id,
    }
