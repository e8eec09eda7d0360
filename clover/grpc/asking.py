"""One inference over gRPC, from its decoded request to its encoded answer.

The answer is encoded and the slots are given back in the data plane's callback, not later in the waiting Task:
statistics that are read in between would count the request in part.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from clover.errors import BadRequest, DeadlineMissed, ModelFailed, Overloaded, RequestError, TooLarge, Unavailable
from clover.grpc import infer
from clover.grpc.calls import GrpcCaller, Metadata
from clover.http.inference import PROXIED, InferEndpoint, receipt_field, receipt_json
from clover.http.oip.signature import InferRequest
from clover.http.server_state import RequestIds
from clover.interfaces import SplitModel, Ticket

_ERRORS: dict[int, type[RequestError]] = {
    400: BadRequest,
    413: TooLarge,
    429: Overloaded,
    500: ModelFailed,
    503: Unavailable,
    504: DeadlineMissed,
}
_RECEIPT = len("Clover-Receipt: ")
_MOST_S = 1e9
"""A deadline is taken for no later than in so many seconds: clients may send ones that no whole number here holds."""


class GrpcInference:
    """A request on its way.  `streamed`: its answer has its metadata among its parameters too, as one of a stream."""

    def __init__(
        self, endpoint: InferEndpoint, request: InferRequest, caller: GrpcCaller, ids: RequestIds, streamed: bool
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._caller = caller
        self._ids = ids
        self._streamed = streamed
        self._done: asyncio.Future[tuple[bytes, Metadata]] = asyncio.get_running_loop().create_future()

    async def run(self, remaining_s: float | None) -> tuple[bytes, Metadata]:
        """Return the answer and its metadata; raises RequestError.  Whatever happens, and also if this is cancelled,
        the slots are given back.  `remaining_s`: until the deadline of the call, None without one."""
        model, request, caller = self._endpoint.model, self._request, self._caller
        ticket = model.open(request.rows, caller.flow, caller.request, caller.tenant)
        try:
            self._write(ticket)
            self._submit(ticket, remaining_s)
            return await self._done
        finally:
            if self._done.done() and not self._done.cancelled():
                self._done.exception()  # closed by `_finish`; looked at, also if this was cancelled since
            else:
                model.close(ticket)

    def _write(self, ticket: Ticket) -> None:
        """Copy the rows into their slots; after that nothing here refers to the message any more."""
        model, request = self._endpoint.model, self._request
        for index, rows in request.inputs:
            if request.shapes and isinstance(rows, list) and index in request.shapes:
                model.write_elements(ticket, index, rows, request.shapes[index])
            else:
                model.write(ticket, index, rows)
        request.inputs = []

    def _submit(self, ticket: Ticket, remaining_s: float | None) -> None:
        request, caller = self._request, self._caller
        timeout_ns, min_accuracy = request.timeout_ns, request.min_accuracy
        ticket.client = caller.client
        if caller.uncached:
            ticket.uncached = caller.uncached
        if caller.tenant is not None:
            timeout_ns = timeout_ns or caller.tenant.timeout_ns
            min_accuracy = min_accuracy or caller.tenant.min_accuracy
        if remaining_s is not None:
            remaining_ns = int(min(remaining_s, _MOST_S) * 1e9) or -1  # a spent deadline is missed, not absent
            timeout_ns = min(timeout_ns, remaining_ns) if timeout_ns else remaining_ns
        self._endpoint.model.submit(ticket, self._finish, timeout_ns, min_accuracy, request.cascade)

    def _finish(self, ticket: Ticket) -> None:
        """Encode what the data plane has answered, and give the slots back; the callback of `Model.submit`."""
        if self._done.done():
            return  # cancelled: `run` gives them back when it has its turn
        try:
            answer = self._encode_answer(ticket)
        except Exception as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(answer)
        finally:
            self._endpoint.model.close(ticket)

    def _encode_answer(self, ticket: Ticket) -> tuple[bytes, Metadata]:
        if ticket.status != 200:
            raise _ERRORS.get(ticket.status, RequestError)(ticket.error, retry_after_s=ticket.retry_after_s)
        model, request = self._endpoint.model, self._request
        number = self._ids.take()
        own_id = self._ids.text(number).decode()
        receipt = model.receipt(ticket)
        field = receipt_field(receipt, request.wants_receipt)
        if self._endpoint.proxied and receipt.accuracy:
            field = field[:-2] + PROXIED
        about = _about(field, own_id, self._caller.request_id)
        parameters: dict[str, Any] = {**dict(about), "triton_final_response": True} if self._streamed else {}
        if request.wants_receipt:
            parameters["clover_receipt"] = receipt_json(receipt, own_id)
            if self._endpoint.proxied and receipt.accuracy:
                parameters["clover_receipt"]["accuracy_method"] = "proxy"
        read = partial(model.read, ticket)
        version = model.version_of(ticket).version if isinstance(model, SplitModel) else model.spec.version
        answer = infer.encode(self._endpoint.answering(ticket).signature, version, request, read, parameters)
        model.remember(number, ticket)
        return answer, about


def _about(field: bytes, own_id: str, request_id: str) -> Metadata:
    """Return the metadata of an answer: its receipt, which is the header line `field`, and the id of its request."""
    receipt = field[_RECEIPT:-2].decode()
    if request_id:  # others may know that id, so labels need one of our own
        receipt += f', feedback="{own_id}"'
    return ("clover-receipt", receipt), ("x-request-id", request_id or own_id)
