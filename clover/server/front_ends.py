"""The front ends of a server: HTTP, and gRPC if it has a port for that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric

from clover.errors import ConfigError
from clover.http import Frontend, HttpStats, Inherited, Mounted
from clover.http.loop_lag import LoopLag
from clover.interfaces import ServerView
from clover.server.parts import Parts
from clover.telemetry.metrics.server import grpc_calls

if TYPE_CHECKING:
    from clover.grpc.frontend import GrpcFrontend

# Read by grpcio when it is imported.  What the server forks is a program at once, so there is nothing for the handlers
# to do that grpcio would run at each fork; and lines for standard error come in a form of their own.
_GRPC_ENVIRONMENT = {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "ERROR"}
_PACKAGES = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


class FrontEnds:
    """Starts, drains and closes both: the ways into `view`, which is made of `parts`.  `mounted` are paths of HTTP
    beside the server's own.  `grpc` is None if `listen.grpc_port` is not set; `lag` takes how long requests wait for
    the loop, once it is watched."""

    def __init__(self, view: ServerView, parts: Parts, mounted: Mounted | None) -> None:
        config, tenants, operators = parts.config, parts.tenants, parts.operators
        tracer = parts.otel.tracer if parts.otel is not None else None
        self.http = Frontend(
            view,
            config,
            parts.loop,
            tenants=tenants,
            operators=operators,
            mounted=mounted,
            tracer=tracer,
            batches=parts.batches,
        )
        self.lag = parts.lag
        self._probes = LoopLag(parts.loop, self.lag.record)
        self.grpc: GrpcFrontend | None = None
        if config.listen.grpc_port is not None:
            check_grpc()
            for name, value in _GRPC_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            # Not before: its threads must not be there when the zygote is forked, and few servers need it.
            from clover.grpc.frontend import GrpcFrontend

            self.grpc = GrpcFrontend(view, config, self.http.ids, tenants, operators)

    @property
    def stats(self) -> HttpStats:
        """The counters of HTTP."""
        return self.http.stats

    @property
    def url(self) -> str:
        """Where HTTP is served."""
        return self.http.url

    async def start(self, inherited: Inherited | None = None) -> None:
        """Bind and accept; raises ConfigError or StartError.  With another server's sockets, only `open` accepts."""
        await self.http.start(inherited)
        if self.grpc is not None and inherited is None:
            await self.grpc.start()

    async def open(self, grpc_port: int | None) -> None:
        """Accept on the sockets of another server, and on its `grpc_port` beside it; raises StartError."""
        if self.grpc is not None:
            await self.grpc.start(grpc_port)
        await self.http.open()  # last, as it cannot fail for what another server holds

    def watch(self) -> None:
        """Begin to probe how long requests wait for the loop.  Call it once the server is ready: measuring and the
        first plan would count otherwise."""
        self._probes.start()

    def take_over(self) -> None:
        """Hold what was the other server's: it has ended, or is about to."""
        self.http.take_over()

    @property
    def grpc_port(self) -> int | None:
        """The port that gRPC is served on; None without one."""
        return int(self.grpc.target.rpartition(":")[2]) if self.grpc is not None else None

    async def linger(self, timeout: float, hurry: asyncio.Event) -> None:  # noqa: ASYNC109 - cut, not cancelled
        """Leave new connections to another server, and answer what comes over those that are open, for at most
        `timeout` seconds or until `hurry` is set (`Frontend.linger`); clients of gRPC are asked to connect anew."""
        self._probes.stop()
        draining: list[Coroutine[Any, Any, object]] = [self.http.linger(timeout, hurry)]
        if self.grpc is not None:
            draining.append(self.grpc.drain(timeout))
        await asyncio.gather(*draining)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a drain that takes longer is cut, not cancelled
        """Stop accepting, answer what was received; return whether all of it was answered within `timeout` seconds."""
        self._probes.stop()
        if self.grpc is None:
            return await self.http.drain(timeout)
        return all(await asyncio.gather(self.http.drain(timeout), self.grpc.drain(timeout)))

    async def close(self) -> None:
        """Drop what is left, and give the sockets back."""
        self._probes.stop()
        if self.grpc is not None:
            await self.grpc.close()
        await self.http.close()

    def reload_certificate(self) -> bool:
        """Read certificate and key again; return whether there is one.  Raises ConfigError, and changes nothing, if
        they cannot be used."""
        reloaded = self.http.reload_certificate()  # which checks that they fit each other
        if self.grpc is not None:
            self.grpc.reload_certificate()
        return reloaded

    def forget_heads(self) -> None:
        """Judge each caller anew from now on, because the tenants have changed."""
        self.http.forget_heads()
        if self.grpc is not None:
            self.grpc.forget_callers()

    def forget_endpoints(self) -> None:
        """Look up anew, from now on, which model each name leads to."""
        self.http.forget_endpoints()
        if self.grpc is not None:
            self.grpc.forget_endpoints()

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of gRPC, if that is served."""
        if self.grpc is not None:
            yield from grpc_calls(self.grpc.stats)


def check_grpc() -> None:
    """Raise ConfigError with what to do if a package that gRPC needs is not installed."""
    for package in _PACKAGES:
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:  # the package above it is not there
            spec = None
        if spec is None:
            raise ConfigError(
                f"listen.grpc_port is set, but {package} is not installed: pip install 'clover-inference[grpc]', or "
                "leave --grpc-port out"
            )
