"""Who makes a call, and how errors look: as over HTTP, in gRPC's form.

There is no Host check as over HTTP.  That check protects against web pages, and no browser sends gRPC calls.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from clover.config import LimitsConfig
from clover.errors import BadRequest, DeadlineMissed, Overloaded, RequestError, TooLarge, shortage
from clover.grants import Grant
from clover.grpc.arriving import Arriving
from clover.grpc.stats import GrpcStats
from clover.http.access import Access, changes
from clover.http.addresses import client_of, is_loopback
from clover.http.api.control_calls import DOCUMENT_BYTES
from clover.http.audit import AuditLog
from clover.http.heads import NOBODY, bearer_of, freshness
from clover.http.server_state import TURN_BYTES
from clover.tenants import Tenant

log = logging.getLogger("clover.grpc")

_T = TypeVar("_T")

FAILED = "the server failed on this request"

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # RESOURCE_EXHAUSTED would be tried again, and never pass
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's codes by the HTTP statuses of errors."""

Metadata = tuple[tuple[str, str], ...]

Work = Callable[[bytes, Any], Awaitable[bytes]]
"""What answers a call: from its message and its context to the answer."""
StreamWork = Callable[[Any], Coroutine[Any, Any, None]]

_FLOWS = 1 << 39
"""Connections over gRPC are flows from this number on (`csrc/batcher.pyx`); those over HTTP count from 1."""
_KNOWN_TOKENS = 1024
_ID_CHARACTERS = 128


_CALL_BYTES = 16 << 10
"""Bytes that answering any call takes as long as, so that sixteen calls are begun in a turn."""


class Turns:
    """Lets messages of `TURN_BYTES` altogether, but one at least, be read in one turn of the loop, in their order, as
    `clover.http.server_state` does bodies of requests.

    A thousand calls whose messages come at once would otherwise be answered in one turn, and delay everybody else's."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._left = TURN_BYTES
        self._scheduled = False

    async def take(self, size: int) -> None:
        """Return in the turn in which a message of `size` bytes may be read."""
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled = True
            self._left = TURN_BYTES
            loop.call_soon(self._next)
        weight = size + _CALL_BYTES
        if self._left > 0 and not self._waiting:
            self._left -= weight
            return
        future = loop.create_future()
        self._waiting.append((future, weight))
        await future

    def _next(self) -> None:
        """Begin a turn."""
        self._left = TURN_BYTES
        self._scheduled = bool(self._waiting)
        if not self._waiting:
            return
        asyncio.get_running_loop().call_soon(self._next)
        while self._waiting and self._left > 0:
            future, weight = self._waiting.popleft()
            if not future.done():  # its call may be cancelled
                self._left -= weight
                future.set_result(None)


class Unimplemented(RequestError):
    """The protocol has this call, and Clover does not."""

    status = 501


class CallRefused(RequestError):
    """A refusal that follows from the metadata alone."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class GrpcCaller:
    """Who makes a call: by which token (`grant`, or `tenant`), and from where.  `flow` is the number of its connection,
    `client` what it is counted by, `request_id` the id that it gave the call; `request` is the number of that id, 0
    without one.  `uncached`: what the call forbids a cache of answers (`Head.uncached`)."""

    __slots__ = ("client", "flow", "grant", "loopback", "request", "request_id", "tenant", "uncached")

    def __init__(self, peer: str, grant: Grant | None, tenant: Tenant | None, request_id: str) -> None:
        self.client, self.loopback, self.flow = _peer(peer)
        self.grant = grant
        self.tenant = tenant
        if tenant is not None:
            self.client = tenant.client
        self.request_id = request_id
        self.request = hash((request_id, self.client)) & sys.maxsize if request_id else 0
        self.uncached = 0


@functools.lru_cache(maxsize=4096)
def _peer(peer: str) -> tuple[str, bool, int]:
    """Return what a peer is counted by, whether it is this machine, and the number of its connection.  A peer is an
    address with a port, as "ipv4:127.0.0.1:5000" or "ipv6:%5B::1%5D:5000"."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return client_of(address), is_loopback(address), _FLOWS | hash(peer) & (_FLOWS - 1)


class Callers:
    """Recognises callers by the rules of `access`; tokens that it has seen are looked up once."""

    def __init__(self, access: Access, audit: AuditLog | None = None) -> None:
        self.access = access
        self.audit = audit if audit is not None else AuditLog()
        self._known: OrderedDict[bytes, tuple[Grant | None, Tenant | None]] = OrderedDict()
        self.changes = 0
        """How often tokens have changed: who was recognised before may be somebody else now, or nobody."""

    def forget(self) -> None:
        """Look up every token anew, because tokens or tenants have changed."""
        self._known.clear()
        self.changes += 1

    def caller(self, context: Any) -> GrpcCaller:
        """Return who makes the call of `context`, which `refusal` let pass."""
        metadata = context.invocation_metadata() or ()
        grant, tenant = self._recognise(_bearer(metadata))
        caller = GrpcCaller(context.peer(), grant, tenant, _request_id(metadata))
        for key, value in metadata:
            if key == "cache-control":
                caller.uncached = freshness(str(value).encode("latin-1", "replace"))
        return caller

    def refusal(self, metadata: Metadata, path: str, method: str = "") -> tuple[int, str, bytes] | None:
        """Return why a call with this metadata is refused (`Access.refusal`); `path` is that of the same over HTTP.  If
        it would change the server it is noted, as `method`."""
        bearer = _bearer(metadata)
        grant, tenant = self._recognise(bearer)
        answer = self.access.refusal(bearer, grant, tenant, path)
        if answer is not None and changes(path):
            self.audit.record(who(grant, tenant), "grpc", _call_of(method), status=answer[0], error=answer[1])
        return answer

    def _recognise(self, bearer: bytes) -> tuple[Grant | None, Tenant | None]:
        bearer_known = self._known.get(bearer)
        if bearer_known is None:
            bearer_known = self._known[bearer] = self.access.recognise(bearer)
            if len(self._known) > _KNOWN_TOKENS:
                self._known.popitem(last=False)
        return bearer_known


def who(grant: Grant | None, tenant: Tenant | None) -> str:
    """Return who bears a token, for the audit log; empty if nobody does."""
    return tenant.client if tenant is not None else grant.bearer if grant is not None else ""


def _call_of(method: str) -> str:
    """Return "load" for ".../RepositoryModelLoad", as the same call is called over HTTP."""
    return method.rpartition("/")[2].removeprefix("RepositoryModel").lower()


def _bearer(metadata: Metadata) -> bytes:
    """Return the bearer token of a call; empty without `authorization`, `NOBODY` with several."""
    fields = [str(value).encode() for key, value in metadata if key == "authorization"]
    if len(fields) > 1:
        return NOBODY
    return bearer_of(fields[0]) if fields else b""


def _request_id(metadata: Metadata) -> str:
    """Return the id that a client gave its call, if it is one that can be sent back."""
    for key, value in metadata:
        if key == "x-request-id" and 0 < len(value) <= _ID_CHARACTERS and value.isascii() and value.isprintable():
            return str(value) if " " not in value else ""
    return ""


def client_text(error: RequestError) -> str:
    """Return the text of an error as clients see it; the texts of the server's own faults stay in the log."""
    return "the model failed on this request" if error.status == 500 and error.message != FAILED else error.message


def retry_metadata(error: RequestError) -> Metadata:
    """Return the metadata that says when to come back, in whole seconds; none if waiting does not help."""
    if error.status not in (429, 503) or error.retry_after_s is None:
        return ()
    return (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),)


def parse_message(kind: Any, message: bytes) -> Any:
    """Return the message of a call that is no inference; raises BadRequest or TooLarge."""
    name = kind.DESCRIPTOR.name
    if len(message) > DOCUMENT_BYTES:
        raise TooLarge(f"a {name} has at most {DOCUMENT_BYTES} bytes")
    try:
        return kind.FromString(message)
    except DecodeError:
        raise BadRequest(f"the message is no {name}") from None


def code_of(error: RequestError) -> grpc.StatusCode:
    """Return gRPC's code of an error."""
    return CODES.get(error.status, grpc.StatusCode.INTERNAL)


class CallHandlers:
    """Makes the handlers of calls: each counts its call, bounds it, and turns what goes wrong into gRPC's form.

    To grpcio every call is a stream whose messages the handler reads itself.  So a call over the limits is refused
    before its message has come, and one whose message does not come is ended.
    """

    def __init__(self, callers: Callers, stats: GrpcStats, limits: LimitsConfig) -> None:
        self.callers = callers
        self.stats = stats
        self.limits = limits
        self.arriving = Arriving(limits)
        self.turns = Turns()

    def unary(self, work: Work) -> Any:
        """Return the handler of a call with one message and one answer; `work` raises RequestError."""
        return grpc.stream_unary_rpc_method_handler(partial(self._unary, work))

    def stream(self, work: StreamWork) -> Any:
        """Return the handler of a call that reads and writes by its context; `work` raises RequestError."""
        return grpc.stream_stream_rpc_method_handler(partial(self._stream, work))

    async def receive(self, context: Any) -> bytes:
        """Return the first message of a call, in the event loop's turn in which the message may be read.

        Raises RequestError if no message comes.
        """
        try:
            message = await self.arriving.receive(context, self.limits.body_s)
        except TimeoutError:
            why = f"the message did not come within {self.limits.body_s:g} s (limits.body_s)"
            raise DeadlineMissed(why) from None
        if message is grpc.aio.EOF:
            raise BadRequest("the call has no message")
        await self.turns.take(len(message))
        return bytes(message)

    async def _unary(self, work: Work, requests: Any, context: Any) -> bytes:
        return await self._run(self._answer(work, context), context)

    async def _answer(self, work: Work, context: Any) -> bytes:
        return await work(await self.receive(context), context)

    async def _stream(self, work: StreamWork, requests: Any, context: Any) -> None:
        await self._run(work(context), context)

    async def _run(self, work: Coroutine[Any, Any, _T], context: Any) -> _T:
        """Return what `work` returns, or end the call with what went wrong."""
        stats = self.stats
        if stats.open_calls >= self.limits.connections:
            work.close()
            most = self.limits.connections
            why = f"{most} calls are open already, which is the most (limits.connections): try again later"
            await self.end(context, Overloaded(why, retry_after_s=1.0))
        stats.open_calls += 1
        try:
            answer = await work
        except (asyncio.CancelledError, grpc.aio.InternalError):  # grpcio's error if the client has gone
            stats.record_answer("CANCELLED")
            raise
        except RequestError as error:
            failed = error
        except Exception as error:
            log.exception("a call failed")
            failed = shortage(error) or RequestError(FAILED)
        else:
            stats.record_answer("OK")
            return answer
        finally:
            stats.open_calls -= 1
        return await self.end(context, failed)

    async def end(self, context: Any, error: RequestError) -> NoReturn:
        """End a call with an error, and count it.  Metadata that was set for its end stays."""
        code = code_of(error)
        self.stats.record_answer(code.name)
        await context.abort(code, client_text(error), (*(context.trailing_metadata() or ()), *retry_metadata(error)))
        raise AssertionError("abort raises")
