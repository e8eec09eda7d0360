"""The health service of gRPC (`grpc.health.v1`): the server by the empty name, and each model by its own.

A status is looked up when it is asked for, so that there is none to keep up to date; `Watch` looks once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from clover.errors import NotFound, Overloaded, Unavailable
from clover.grpc.calls import CallHandlers, parse_message
from clover.grpc.messages import SERVICE
from clover.interfaces import ServerView

NAME = "grpc.health.v1.Health"
_LOOK_S = 1.0
_MOST_WATCHES = 256
"""Most calls of `Watch` at once: each is there until its client goes."""

_Status = health_pb2.HealthCheckResponse


class HealthService:
    """Says whether the server, its inference service and each of its models are ready."""

    def __init__(self, view: ServerView, calls: CallHandlers, look_s: float = _LOOK_S) -> None:
        self._view = view
        self._calls = calls
        self._look_s = look_s
        self._ended = asyncio.Event()
        self._watches = 0

    def handler(self) -> Any:
        """Return the handler of both calls."""
        calls = self._calls
        handlers = {"Check": calls.unary(self._check), "Watch": calls.stream(self._watch)}
        return grpc.method_handlers_generic_handler(NAME, handlers)

    def end_streams(self) -> None:
        """End every `Watch`, after it has said that the server is not serving."""
        self._ended.set()

    def status(self, service: str) -> Any:
        """Return the status of a model, or of the server for "" and the service's name."""
        if service in ("", SERVICE):
            ready = self._view.ready()
        else:
            model = self._view.models().get(service)
            if model is None:
                return _Status.SERVICE_UNKNOWN
            ready = bool(model.ready) and not self._ended.is_set()
        return _Status.SERVING if ready else _Status.NOT_SERVING

    async def _check(self, message: bytes, context: Any) -> bytes:
        status = self.status(_service(message))
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFound("Request for unknown model: no model of that name is served")
        return bytes(_Status(status=status).SerializeToString())

    async def _watch(self, context: Any) -> None:
        service = _service(await self._calls.receive(context))
        if self._watches >= _MOST_WATCHES:
            raise Overloaded(f"{_MOST_WATCHES} clients watch the health of this server already: call Check instead")
        self._watches += 1
        try:
            last = None
            while True:
                ended = self._ended.is_set()
                status = self.status(service)
                if status != last:
                    last = status
                    await context.write(_Status(status=status).SerializeToString())
                if ended:
                    raise Unavailable("the server is shutting down")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await self._ended.wait()
        finally:
            self._watches -= 1


def _service(message: bytes) -> str:
    """Return the name that is asked for."""
    return str(parse_message(health_pb2.HealthCheckRequest, message).service)
