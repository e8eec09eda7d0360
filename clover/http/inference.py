"""The infer path: decode, open, write, submit; then read, encode, answer, close.

No Task and no Future: the data plane calls `_done` with the ticket, whose context is the exchange.  Whatever happens,
a ticket that was opened is closed exactly once: here, or by the connection that lost its client.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from clover.errors import RequestError
from clover.http.content_encoding import deflate
from clover.http.exchange import BINARY, JSON, Exchange
from clover.http.oip.request import NO_INPUTS, InferRequest, Rows, Signature, decode, decode_ahead
from clover.http.oip.response import brief, encode
from clover.http.server_state import Body
from clover.interfaces import Model, Ticket
from clover.types import Receipt

log = logging.getLogger("clover.http")


_FULL = [b'{"error":"the queue is full"}']


class Told:
    """The receipt that was told last, and its line: rows of one batch cost alike."""

    __slots__ = ("field", "receipt")

    def __init__(self) -> None:
        self.receipt: Receipt | None = None
        self.field = b""


_TOLD = Told()


class InferEndpoint:
    """`POST .../infer` of one family."""

    __slots__ = ("model", "signature")

    def __init__(self, name: str, model: Model, json_depth: int) -> None:
        self.model = model
        self.signature = Signature(model.spec, model.most_rows, json_depth, name)

    @property
    def current(self) -> bool:
        """Whether requests may come here without asking for the family by its name again."""
        return not self.model.closed_reason

    def take(self, exchange: Exchange, body: Body) -> None:
        """Start a request, or answer why not; never raises."""
        try:
            wait_s = self.model.crowded()
            if wait_s > 0.0:
                exchange.finish(429, _FULL, b"Retry-After: %d\r\n" % math.ceil(wait_s))
            else:
                self.start(exchange, body)
        except RequestError as error:
            exchange.refuse(error)
        except Exception:
            _failed(exchange)

    def start(self, exchange: Exchange, body: Body) -> None:
        """Start the request; raises RequestError, and then holds nothing."""
        model = self.model
        request = decode(self.signature, body, exchange.head.json_length)
        ticket = model.open(request.rows)
        exchange.model = model
        exchange.ticket = ticket
        try:
            for index, rows in request.inputs:
                model.write(ticket, index, rows)
            request.inputs = NO_INPUTS
            self._submit(exchange, request, ticket)
        except BaseException:
            exchange.withdraw()
            raise

    def ahead(self, exchange: Exchange, text: bytes, size: int) -> memoryview | None:
        """Where the `size` bytes belong that follow the JSON `text` of a request and are still to come; None where they
        have to be looked at first.  Once they are all there, `arrived` starts the request; until then, `withdraw` of
        the exchange gives up the place, which nobody may write to any more."""
        try:
            request = decode_ahead(self.signature, text, size)
            found = self.model.ahead(request.rows, 0) if request is not None else None
        except Exception:
            log.exception("a request could not be read ahead")  # it is read in whole then
            return None
        if found is None:
            return None
        exchange.model = self.model
        exchange.ahead = self, request
        exchange.ticket, view = found
        return view

    def arrived(self, exchange: Exchange) -> None:
        """Start a request whose rows lie in their slots, or answer why not; never raises."""
        (_, request), exchange.ahead = exchange.ahead, None
        ticket = exchange.ticket
        assert ticket is not None
        try:
            self.model.arrived(ticket)
            self._submit(exchange, request, ticket)
        except RequestError as error:
            exchange.withdraw()
            exchange.refuse(error)
        except Exception:
            exchange.withdraw()
            _failed(exchange)

    def _submit(self, exchange: Exchange, request: InferRequest, ticket: Ticket) -> None:
        context = exchange, self, request
        self.model.submit(ticket, _done, request.timeout_ns, request.min_accuracy, request.cascade, context)


def _failed(exchange: Exchange) -> None:
    log.exception("a request failed (%s)", exchange.request_id.decode("latin-1") or "no id yet")
    exchange.fail(500, "the server failed on this request")


def _done(ticket: Ticket) -> None:
    """The data plane is through with a ticket."""
    context: tuple[Exchange, InferEndpoint, InferRequest] = ticket.context
    _end(context[0], context[1], context[2], ticket)


def _end(exchange: Exchange, endpoint: InferEndpoint, request: InferRequest, ticket: Ticket) -> None:
    if exchange.ticket is not ticket:
        return  # the client went away, and its ticket with it
    exchange.ticket = None
    model = endpoint.model
    try:
        if ticket.status == 200:
            _answer(exchange, endpoint, request, ticket)
        elif ticket.status == 500:
            exchange.fail(500, "the model failed on this request")
        else:
            exchange.fail(ticket.status, ticket.error, b"", ticket.retry_after_s)
    except RequestError as error:
        exchange.refuse(error)
    except Exception:
        log.exception("an answer could not be encoded (request %s)", exchange.request_id.decode("latin-1"))
        exchange.fail(500, "the server failed on this request")
    finally:
        model.close(ticket)


def _answer(exchange: Exchange, endpoint: InferEndpoint, request: InferRequest, ticket: Ticket) -> None:
    model = endpoint.model
    receipt = model.receipt(ticket)
    named = len(exchange.request_id) > 0  # by the client, so that anybody may know the name
    own_id = exchange.issue() if named or request.wants_receipt else b""
    shown = receipt_json(receipt, own_id.decode()) if request.wants_receipt else None
    signature = endpoint.signature
    text = None
    if shown is None and signature.told and request.outputs is signature.defaults[False]:
        text = model.text(ticket, 0)
    if text is not None:
        json_length, parts = -1, brief(signature, request, text)
    else:
        json_length, parts = encode(signature, request, partial(_rows, model, ticket), shown)
    fields = receipt_field(receipt)
    if named:
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


def receipt_field(receipt: Receipt) -> bytes:
    """Return the `Clover-Receipt` line.

    RFC 9651 gives decimals three places, too few for the joules of a small model, so the same two quantities stand
    there again as whole nanojoules and picograms.  Of a request of many rows the paths are counted.
    """
    told = _TOLD
    if receipt is told.receipt or receipt == told.receipt:
        return told.field
    path = f', path="{counted(receipt.path)}"' if receipt.path else ""
    field = (
        f'Clover-Receipt: variant="{receipt.variant}", accuracy={receipt.accuracy / 100:.3f}, '
        f"energy-j={receipt.energy_j:.3f}, carbon-mg={receipt.carbon_mg:.3f}, "
        f"intensity={receipt.intensity_g_per_kwh:.1f}, method={receipt.method}, state={receipt.intensity_state}, "
        f"energy-nj={round(receipt.energy_j * 1e9)}, carbon-pg={round(receipt.carbon_mg * 1e9)}{path}\r\n"
    ).encode()
    told.receipt, told.field = receipt, field
    return field


def counted(paths: Sequence[str]) -> str:
    """Return the path of one row; of several, each path with the rows that took it: "small*3 small>xlarge*2"."""
    if len(paths) == 1:
        return paths[0]
    return " ".join(f"{path}*{count}" for path, count in sorted(Counter(paths).items()))


def receipt_json(receipt: Receipt, own_id: str) -> dict[str, Any]:
    """Return the receipt under `parameters.clover_receipt`, in full precision; accuracy is a fraction here too.  Labels
    for the answer come by `own_id`."""
    return {
        "variant": receipt.variant,
        "accuracy": receipt.accuracy / 100,
        "energy_j": receipt.energy_j,
        "carbon_mg": receipt.carbon_mg,
        "intensity_g_per_kwh": receipt.intensity_g_per_kwh,
        "method": receipt.method,
        "intensity_state": receipt.intensity_state,
        **({"path": list(receipt.path)} if receipt.path else {}),
        "feedback": own_id,
    }
