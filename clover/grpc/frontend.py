"""The gRPC server of a Clover server: bind, refuse, drain, close.

What a client can make it hold: `limits.connections` bounds the connections and the calls that are open at once,
`_STREAMS` the calls of one connection, `limits.body_bytes` a message, `limits.held_bytes` what has come of messages,
`limits.body_s` the time until a call's message is there, `limits.head_s` that until a connection speaks gRPC, and
`limits.idle_s` how long one is kept without a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from clover.config import ListenConfig, ServerConfig
from clover.errors import ConfigError, StartError
from clover.grpc import health
from clover.grpc.arriving import SWEEP_S
from clover.grpc.calls import Callers, CallHandlers, CallRefused
from clover.grpc.messages import POOL, SERVICE
from clover.grpc.service import INFER_PATH, OipService
from clover.grpc.stats import GrpcStats
from clover.http.access import Access
from clover.http.audit import Operators
from clover.http.server_state import RequestIds
from clover.interfaces import ServerView
from clover.tenants import Tenants

log = logging.getLogger("clover.grpc")

_STREAMS = 1024
"""Most calls of one connection at once; a client keeps further ones back."""
_METADATA_BYTES = 16 << 10
_IDENTITY = 1 << 0
"""The set of compression algorithms without any: a message of a few bytes would be one of `limits.body_bytes`."""

_PATHS = {
    f"/{SERVICE}/{call}": path
    for call, path in {
        "ModelInfer": INFER_PATH,
        "ModelStreamInfer": INFER_PATH,
        "ModelStatistics": "/v2/models/stats",
        "RepositoryModelLoad": "/v2/repository/models/any/load",
        "RepositoryModelUnload": "/v2/repository/models/any/unload",
    }.items()
}
"""The path of the same call over HTTP, by which it is decided who may make it; that of the others is /v2."""


class Gate(aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls of every service by their metadata, before their message comes.

    An interceptor, because grpcio finds handlers that generated code has registered (reflection's) before any other.
    """

    def __init__(self, calls: CallHandlers) -> None:
        self._calls = calls

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Return the handler of a call, or one that refuses it."""
        path = _PATHS.get(details.method, "/v2")
        refusal = self._calls.callers.refusal(details.invocation_metadata or (), path, details.method)
        if refusal is None:
            return await continuation(details)
        error = CallRefused(*refusal[:2])

        async def refuse(requests: Any, context: Any) -> None:
            await self._calls.end(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)


class GrpcFrontend:
    """Serves a `ServerView` over gRPC.  `stats` are plain counters; `target` is set by `start`, as "127.0.0.1:9000"."""

    def __init__(
        self,
        view: ServerView,
        config: ServerConfig,
        ids: RequestIds,
        tenants: Tenants | None = None,
        operators: Operators | None = None,
    ) -> None:
        self._config = config
        self.stats = GrpcStats()
        self.target = ""
        known = operators or Operators.from_config(config)
        self._callers = Callers(Access(config.listen, tenants=tenants, grants=known.grants), known.audit)
        self._calls = CallHandlers(self._callers, self.stats, config.limits)
        self._service = OipService(view, self._calls, ids)
        self._health = health.HealthService(view, self._calls)
        self._server: Any = None
        self._pair: tuple[bytes, bytes] | None = None
        """The key and the certificate chain that handshakes are made with."""
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, beside: int | None = None) -> None:
        """Bind and accept; raises ConfigError or StartError.

        `beside`: the port on which another server of this user accepts too, which is about to stop.  grpcio takes no
        socket that is open already; so its sockets are bound with SO_REUSEPORT, and a port that another server has is
        found here.
        """
        listen, limits = self._config.listen, self._config.limits
        port = beside or listen.grpc_port
        assert port is not None
        credentials = self._credentials()
        host = listen.host.strip("[]")
        shown = f"[{host}]" if ":" in host else host
        if beside is None:
            _check_free(host, port, shown)
        options = [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.max_allowed_incoming_connections", limits.connections),
            ("grpc.server_handshake_timeout_ms", _milliseconds(limits.head_s)),
            ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_s)),
            ("grpc.keepalive_time_ms", _milliseconds(limits.idle_s)),  # a peer that is gone without a word is found
        ]
        server = self._server = aio.server(options=options, interceptors=(Gate(self._calls),))
        server.add_generic_rpc_handlers((self._service.handler(), self._health.handler()))
        _reflect(server)
        try:
            if credentials is None:
                bound = server.add_insecure_port(f"{shown}:{port}")
            else:
                bound = server.add_secure_port(f"{shown}:{port}", credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            await self.close()
            raise _address_taken(shown, port)
        self.target = f"{shown}:{bound}"
        await server.start()
        logging.getLogger("grpc._cython.cygrpc").addFilter(_says_more_than_that_a_client_has_gone)
        self._sweep()

    def _sweep(self) -> None:
        self._calls.arriving.sweep()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def reload_certificate(self) -> None:
        """Read certificate and key again, for handshakes from now on; raises ConfigError if they cannot be read."""
        if self._pair is not None:
            self._pair = _pair_of(self._config.listen)

    def _credentials(self) -> Any:
        """Return the credentials of the configured certificate; None without one.  They ask for the newest pair at each
        handshake."""
        pair = self._pair = _pair_of(self._config.listen)
        if pair is None:
            return None
        first = grpc.ssl_server_certificate_configuration([pair])
        given = pair

        def newest() -> Any:
            """Return another configuration, or None if the last one holds; grpcio calls it in a thread of its own."""
            nonlocal given
            now = self._pair
            if now is None or now == given:
                return None
            given = now
            return grpc.ssl_server_certificate_configuration([now])

        return grpc.dynamic_ssl_server_credentials(first, newest)

    def forget_callers(self) -> None:
        """Look up every token anew, those of open streams too, because tokens or tenants have changed."""
        self._callers.forget()

    def forget_endpoints(self) -> None:
        """Look up anew which model each name leads to."""
        self._service.forget()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a drain that takes longer is cut, not cancelled
        """Accept no more calls, answer those that were received; return whether all of them were answered within
        `timeout` seconds."""
        if self._server is None or self._closed:
            return True
        self._closed = True
        self._service.end_streams()
        self._health.end_streams()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout
        await self._server.stop(timeout)
        answered = loop.time() < end_s
        if not answered:
            log.warning("calls over gRPC were not answered within the drain time")
        return answered

    async def close(self) -> None:
        """Drop every call that is left, and give the port back."""
        await self._service.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._closed = True
            self._service.end_streams()
            self._health.end_streams()
            await self._server.stop(0)
            self._server = None


def _says_more_than_that_a_client_has_gone(record: logging.LogRecord) -> bool:
    """Return False for the tracebacks that grpcio logs if a client has gone before its answer."""
    return not (record.exc_info and isinstance(record.exc_info[1], aio.InternalError))


def _address_taken(shown: str, port: int) -> StartError:
    return StartError(f"cannot listen on {shown}:{port} for gRPC; --grpc-port chooses another")


def _check_free(host: str, port: int, shown: str) -> None:
    """Raise StartError if a program listens there, which binding with SO_REUSEPORT would not show."""
    if not port:
        return
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return  # binding says what is wrong with the address
    for family, kind, protocol, _, address in addresses:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a family of addresses that this machine does not have
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _address_taken(shown, port) from error


def _milliseconds(seconds: float) -> int:
    """Return seconds as grpcio takes them: whole milliseconds in 32 bits."""
    return max(1, min(int(seconds * 1e3), (1 << 31) - 1))


def _pair_of(listen: ListenConfig) -> tuple[bytes, bytes] | None:
    """Return key and certificate chain as configured; None without them.  Raises ConfigError."""
    if not listen.tls_cert:
        return None
    try:
        return Path(listen.tls_key).read_bytes(), Path(listen.tls_cert).read_bytes()
    except OSError as error:
        raise ConfigError("the TLS certificate or key cannot be read; check listen.tls_cert and tls_key") from error


def _reflect(server: Any) -> None:
    """Let clients ask for the services and their messages, which are in a descriptor pool of their own."""
    for file in (health_pb2, reflection_pb2):
        with contextlib.suppress(TypeError):  # it is there already, in another form
            POOL.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    names = (SERVICE, health.NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, POOL)
