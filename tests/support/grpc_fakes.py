"""A gRPC front end without a network: its handlers, called with a context that records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from clover.config import LimitsConfig, ListenConfig, ServerConfig
from clover.grpc.calls import Callers, CallHandlers
from clover.grpc.frontend import Gate
from clover.grpc.health import HealthService
from clover.grpc.messages import SERVICE, message_class
from clover.grpc.service import OipService
from clover.grpc.stats import GrpcStats
from clover.http.access import Access
from clover.http.server_state import RequestIds
from clover.tenants import Tenants
from tests.support.http_fakes import FakeView

Pairs = Sequence[tuple[str, str]]


class Aborted(Exception):
    """What ends a handler, as grpcio's own."""


class FakeContext:
    """One call: the messages that its client has sent, and what became of it.

    Reads wait once the messages are over, unless the client has said that they are all (`ended`).
    """

    def __init__(
        self,
        *messages: bytes,
        metadata: Pairs = (),
        peer: str = "ipv4:127.0.0.1:5000",
        remaining_s: float | None = None,
        ended: bool = True,
    ) -> None:
        self.messages = list(messages)
        self.metadata = metadata
        self.address = peer
        self.remaining_s = remaining_s
        self.ended = ended
        self.reads = 0
        self.written: list[bytes] = []
        self.trailing: tuple[tuple[str, str], ...] = ()
        self.status = grpc.StatusCode.OK
        self.details = ""
        self.answer = b""

    def invocation_metadata(self) -> Pairs:
        return self.metadata

    def peer(self) -> str:
        return self.address

    def time_remaining(self) -> float | None:
        return self.remaining_s

    async def read(self) -> Any:
        self.reads += 1
        if self.messages:
            return self.messages.pop(0)
        if not self.ended:
            await asyncio.Event().wait()
        return grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        self.written.append(message)

    def set_trailing_metadata(self, metadata: Pairs) -> None:
        self.trailing = tuple(metadata)

    def trailing_metadata(self) -> Pairs:
        return self.trailing

    async def abort(self, code: grpc.StatusCode, details: str, metadata: Pairs = ()) -> None:
        self.status, self.details, self.trailing = code, details, tuple(metadata)
        raise Aborted

    @property
    def ends(self) -> dict[str, str]:
        """The trailing metadata."""
        return dict(self.trailing)


class GrpcDriver:
    """The services of a gRPC front end for `view`."""

    def __init__(
        self,
        view: FakeView,
        *,
        limits: LimitsConfig | None = None,
        listen: ListenConfig | None = None,
        tenants: Tenants | None = None,
        look_s: float = 0.0,
    ) -> None:
        self.config = ServerConfig(limits=limits or LimitsConfig(), listen=listen or ListenConfig())
        self.stats = GrpcStats()
        self.callers = Callers(Access(self.config.listen, tenants=tenants))
        self.calls = CallHandlers(self.callers, self.stats, self.config.limits)
        self.service = OipService(view, self.calls, RequestIds())
        self.health = HealthService(view, self.calls, look_s)
        self.gate = Gate(self.calls)
        self.handlers = (self.service.handler(), self.health.handler())

    async def run(self, method: str, context: FakeContext) -> FakeContext:
        """Run a call of `method` ("Service/Call", or a call of the inference service) to its end."""
        path = "/" + method if "/" in method else f"/{SERVICE}/{method}"

        details = SimpleNamespace(method=path, invocation_metadata=context.metadata)

        async def find(wanted: Any) -> Any:
            return next(found for one in self.handlers if (found := one.service(wanted)) is not None)

        handler = await self.gate.intercept_service(find, details)
        try:
            if handler.response_streaming:
                await handler.stream_stream(None, context)
            else:
                context.answer = await handler.stream_unary(None, context)
        except Aborted:
            pass
        return context

    def ask(self, method: str, message: Any = None, **others: Any) -> FakeContext:
        """Send one message, by default an empty one, and run the call to its end."""
        data = message if isinstance(message, bytes) else message.SerializeToString() if message is not None else b""
        return asyncio.run(self.run(method, FakeContext(data, **others)))

    def answer(self, method: str, message: Any = None, **others: Any) -> Any:
        """Return the answer of a call that must succeed."""
        context = self.ask(method, message, **others)
        assert context.status is grpc.StatusCode.OK, context.details
        return message_class(f"{method}Response").FromString(context.answer)

    def answer_of(self, message: Any) -> Any:
        """Return the answer to an inference that must succeed."""
        return self.answer("ModelInfer", message)
