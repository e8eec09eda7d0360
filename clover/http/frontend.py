"""The sockets of a server: bind, accept, sweep deadlines, drain, close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from clover.config import ListenConfig, ServerConfig
from clover.errors import ConfigError, StartError
from clover.http.acceptor import Acceptor, bind, reserve_descriptors
from clover.http.access import Access
from clover.http.api.routes import Methods, Routes
from clover.http.audit import Operators
from clover.http.connection import SWEEP_S, Connection, Incoming
from clover.http.held import RefusalBudget
from clover.http.server_state import HttpStats, RequestIds, RequestTracer, ServerState
from clover.http.streams import EventStreams
from clover.interfaces import ServerView
from clover.tenants import Tenants
from clover.waiting.store import BatchStore

log = logging.getLogger("clover.http")

_DRAIN_STEP_S = 0.02
ENDED_AT_ONCE = 16
"""How many connections end in one turn of the loop: hundreds would take milliseconds."""


@dataclass(frozen=True)
class _Listener:
    """One listening socket: the routes behind it, and its connections with what they share."""

    routes: Routes
    state: ServerState
    connections: set[Incoming] = field(default_factory=set)

    def accept(self, *, control: bool = False, tls: bool = False) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self.state, self.routes, self.connections, control=control, tls=tls)


@dataclass(frozen=True)
class _ControlPath:
    """The path of a control socket, and the file that was bound there."""

    path: Path
    device: int
    inode: int

    @classmethod
    def from_path(cls, path: Path) -> _ControlPath:
        """Return the path with the file that it names now."""
        status = path.lstat()
        return cls(path, status.st_dev, status.st_ino)

    def remove(self) -> None:
        """Remove the file, unless another one is in its place."""
        with contextlib.suppress(FileNotFoundError):
            if self == self.from_path(self.path):
                self.path.unlink()


@dataclass(frozen=True)
class Inherited:
    """Listening sockets that another server has bound: for HTTP, and the control socket if there is one."""

    tcp: tuple[socket.socket, ...]
    control: socket.socket | None = None

    def close(self) -> None:
        """Give them back."""
        for sock in (*self.tcp, *([self.control] if self.control is not None else [])):
            sock.close()


@dataclass(frozen=True)
class Mounted:
    """Paths of what is built above the front end, and its streams, which end as soon as a drain begins.  `close` is
    called then, too: it gives up answers that would hold up the drain."""

    paths: Mapping[str, Methods]
    streams: EventStreams | None = None
    close: Callable[[], None] | None = None


class Frontend:
    """Serves a `ServerView` over HTTP.  `stats` are plain counters; `url` is set by `start`."""

    def __init__(
        self,
        view: ServerView,
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop,
        *,
        tenants: Tenants | None = None,
        operators: Operators | None = None,
        mounted: Mounted | None = None,
        monotonic_s: Callable[[], float] = monotonic,
        tracer: RequestTracer | None = None,
        batches: BatchStore | None = None,
    ) -> None:
        self._mounted = mounted or Mounted({})
        self._config = config
        self._tenants = tenants
        self._operators = operators or Operators.from_config(config)
        self._loop = loop
        self._monotonic_s = monotonic_s
        self.stats = HttpStats()
        self.url = ""
        self._refusals = RefusalBudget()
        self.ids = RequestIds()  # shared by all sockets: labels may arrive on another one than the answer left by
        self._listeners: list[_Listener] = []
        self._view = view
        self._tracer = tracer
        self._batches = batches
        for control in (False, True) if config.listen.control else (False,):
            access = Access(config.listen, control=control, tenants=tenants, grants=self._operators.grants)
            self._listen(access, self._mounted.paths)
        self._acceptor: Acceptor | None = None
        self._context: ssl.SSLContext | None = None
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._control_socket: socket.socket | None = None
        self._control: _ControlPath | None = None
        self._control_of_other: _ControlPath | None = None
        self._sweeper: asyncio.Handle | None = None
        self._swept_s = 0.0

    def mount(self) -> tuple[Routes, ServerState]:
        """Return the routes for requests that come through another program's server, and what these share.  They are
        drained and closed with the rest; the dashboard is not among them."""
        access = Access(self._config.listen, tenants=self._tenants, grants=self._operators.grants, mounted=True)
        listener = self._listen(access, {})
        return listener.routes, listener.state

    def _listen(self, access: Access, paths: Mapping[str, Methods]) -> _Listener:
        """Add the routes of one way in, with what its requests share, and return it."""
        config = self._config
        routes = Routes(self._view, config, self._loop, access, paths, self._operators.audit, self._batches)
        state = ServerState(
            routes.judge,
            config.limits,
            self._loop,
            self.stats,
            access_log=config.log.access,
            ids=self.ids,
            tracer=self._tracer,
            refusals=self._refusals,
        )
        listener = _Listener(routes, state)
        self._listeners.append(listener)
        return listener

    async def start(self, inherited: Inherited | None = None) -> tuple[str, int]:
        """Bind and accept; return the bound host and port.  Raises ConfigError or StartError.

        With the sockets of another server it accepts nothing before `open`.
        """
        listen = self._config.listen
        Access.check_bind(listen, bool(self._tenants or self._operators.grants))
        self._context = _tls_context(listen)
        try:
            if inherited is None:
                self._sockets = await bind(self._loop, listen.host.strip("[]") or None, listen.port)
            else:
                self._sockets, self._control_socket = list(inherited.tcp), inherited.control
            name = self._sockets[0].getsockname()
        except OSError as error:
            raise self._cannot_listen(error) from error
        host, port = str(name[0]), int(name[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if self._context is not None else 'http'}://{shown}:{port}"
        if inherited is None:
            await self.open()
        return host, port

    async def open(self) -> None:
        """Accept connections.  Raises StartError."""
        listen, limits, tls = self._config.listen, self._config.limits, self._context is not None
        listener = self._listeners[0]
        sockets, self._sockets = self._sockets, []
        try:
            self._acceptor = Acceptor(
                self._loop,
                sockets,
                lambda: listener.accept(tls=tls),
                self.stats,
                reserve_descriptors(limits.connections),
                self._context,
                limits.head_s,
            )
        except OSError as error:
            raise self._cannot_listen(error) from error
        if listen.control:
            try:
                await self._start_control(listen.control)
            except BaseException:
                await self.close()
                raise
        self._swept_s = self._monotonic_s()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _cannot_listen(self, error: OSError) -> StartError:
        listen = self._config.listen
        hint = "; --port chooses another" if error.errno == errno.EADDRINUSE else ""
        return StartError(f"cannot listen on {listen.host}:{listen.port}: {os.strerror(error.errno or 0)}{hint}")

    def take_over(self) -> None:
        """Hold the control socket's path from now on: the server that it was inherited from has given it up."""
        if self._control_of_other is not None:
            self._control, self._control_of_other = self._control_of_other, None

    def sockets(self) -> Inherited:
        """Return the listening sockets, which stay this front end's."""
        tcp = self._acceptor.sockets if self._acceptor is not None else ()
        return Inherited(tuple(tcp), self._control_socket)

    def forget_heads(self) -> None:
        """Judge each head anew from now on, those of open streams too, because the tenants have changed."""
        if self._mounted.streams is not None:
            self._mounted.streams.hang_up()
        self.forget_endpoints()

    def forget_endpoints(self) -> None:
        """Forget which endpoint each request head is for, so that it is looked up anew, also while a body still
        comes."""
        for listener in self._listeners:
            listener.routes.forget()
            memo = listener.state.heads.memo
            for head in memo.values():
                head.endpoint = None
                if not head.coding:  # else a body may be in the midst of being unpacked for its handler
                    head.route = None
            memo.clear()

    def reload_certificate(self) -> bool:
        """Read certificate and key again: handshakes from now on get them, open connections stay as they are.  Return
        whether there is one; raises ConfigError, and changes nothing, if they cannot be used."""
        listen = self._config.listen
        if self._context is None:
            return False
        _tls_context(listen)  # elsewhere first: what does not load must leave the old one in force
        self._context.load_cert_chain(listen.tls_cert, listen.tls_key or None)
        return True

    async def _start_control(self, where: str) -> None:
        if self._control_socket is None:
            self._control_socket, self._control = self._bind_control(where)
        else:
            with contextlib.suppress(OSError):  # it is gone, as it was for the other server
                self._control_of_other = _ControlPath.from_path(Path(where.partition(":")[2]))
        listener, sock = self._listeners[1], self._control_socket.dup()  # the loop's own, which it may close
        server = await self._loop.create_unix_server(lambda: listener.accept(control=True), sock=sock)
        self._servers.append(server)

    @staticmethod
    def _bind_control(where: str) -> tuple[socket.socket, _ControlPath]:
        """Return a bound socket that only this user can reach, and its path; raises ConfigError or StartError."""
        scheme, _, path = where.partition(":")
        if scheme != "unix" or not path:
            raise ConfigError("listen.control takes the form unix:PATH")
        target = Path(path)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(target.lstat().st_mode):
                raise StartError("listen.control names a file that is no socket; it is left alone")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)  # one that listens and accepts nothing must not hold up this start
                if probe.connect_ex(str(target)) in (0, errno.EAGAIN, errno.EINPROGRESS):
                    raise StartError("another server listens on listen.control")
            target.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        before = os.umask(0o177)  # no moment at which others could connect
        try:
            listener.bind(str(target))
        except OSError as error:
            listener.close()
            raise StartError(f"cannot listen on listen.control: {os.strerror(error.errno or 0)}") from error
        finally:
            os.umask(before)
        return listener, _ControlPath.from_path(target)

    def _sweep(self) -> None:
        now_s = self._monotonic_s()
        elapsed_s, self._swept_s = now_s - self._swept_s, now_s
        # A loop that stood still (a suspended machine, a debugger) must not count that against its clients.
        elapsed_s = min(elapsed_s, 4 * SWEEP_S)
        for listener in self._listeners:
            listener.routes.settle()
        self._sweep_some(self._connections(), elapsed_s)

    def _sweep_some(self, left: Iterator[Incoming], elapsed_s: float) -> None:
        """Call `sweep` of the connections that are `left`, and go on in the next turn of the loop once some have ended:
        hundreds may, as after a burst, and requests that come meanwhile would wait, or be lost with their connections.
        """
        ended = 0
        for connection in left:
            ended += connection.sweep(elapsed_s)
            if ended == ENDED_AT_ONCE:
                self._sweeper = self._loop.call_soon(self._sweep_some, left, elapsed_s)
                return
        self._limit_held()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _limit_held(self) -> None:
        """Drop the connections that make us hold the most, if all together make us hold more than is allowed.

        A connection alone is bounded, but there may be thousands.
        """
        most = self._config.limits.held_bytes
        held = [(connection.held(), connection) for connection in self._connections()]
        total = sum(size for size, _ in held)
        if total <= most:
            return
        held.sort(key=lambda one: one[0], reverse=True)
        dropped = 0
        for size, connection in held:
            connection.abort()
            dropped += 1
            total -= size
            if total <= most:
                break
        self.stats.dropped_connections += dropped
        log.warning(
            "%d connections were dropped: their incomplete bodies and unread answers took more than "
            "limits.held_bytes = %d",
            dropped,
            most,
        )

    def _connections(self) -> Iterator[Incoming]:
        """Yield every open connection; any of them may close meanwhile."""
        for listener in self._listeners:
            yield from list(listener.connections)

    def _refuse_new(self, *, handed: bool = False) -> None:
        """Accept no more.  `handed`: another server accepts on the same sockets, and serves the control path."""
        if self._mounted.streams is not None:
            self._mounted.streams.close()
        if self._mounted.close is not None:
            self._mounted.close()
        if self._control is not None:
            # Before its socket closes: from then on a successor may bind the path.
            if not handed:
                self._control.remove()
            self._control = None
        if self._acceptor is not None:
            self._acceptor.close(opening=handed)
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._control_socket is not None:
            self._control_socket.close()
            self._control_socket = None
        for listener in self._listeners:
            listener.state.draining = True

    async def linger(self, timeout: float, hurry: asyncio.Event) -> None:  # noqa: ASYNC109 - cut, not cancelled
        """Leave new connections to another server that accepts on the same sockets, and go on answering those that are
        open: each is closed with its next answer.  Return once none is left, after `timeout` seconds, or when `hurry`
        is set."""
        self._refuse_new(handed=True)
        end_s = self._monotonic_s() + timeout
        while any(listener.connections for listener in self._listeners):
            if hurry.is_set() or self._monotonic_s() >= end_s:
                return
            await asyncio.sleep(_DRAIN_STEP_S)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a drain that takes longer is cut, not cancelled
        """Stop accepting, answer what was received, close; return whether all of it was answered within `timeout`
        seconds."""
        self._refuse_new()
        end_s = self._monotonic_s() + timeout
        while any(listener.connections for listener in self._listeners):
            ended = 0
            for connection in self._connections():
                ended += connection.drain()
                if ended == ENDED_AT_ONCE:  # as in `_sweep_some`
                    ended = 0
                    await asyncio.sleep(0)
            if self._monotonic_s() >= end_s:
                left = sum(connection.unanswered for connection in self._connections())
                if left:
                    log.warning("%d requests were not answered within the drain time", left)
                return not left
            await asyncio.sleep(_DRAIN_STEP_S)
        return True

    async def close(self) -> None:
        """Drop every connection that is left, and give the sockets back."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._refuse_new()
        for connection in self._connections():
            connection.abort()
        for listener in self._listeners:
            await listener.routes.calls.cancel()
            await listener.routes.batches.cancel()
        await asyncio.sleep(0)  # lets the transports report their loss
        self._servers.clear()

    @property
    def open_connections(self) -> int:
        """Connections open now."""
        return self.stats.open_connections


def _tls_context(listen: ListenConfig) -> ssl.SSLContext | None:
    """Return what handshakes are made with; None without a certificate.  Raises ConfigError."""
    if not listen.tls_cert:
        if listen.tls_key:
            raise ConfigError("listen.tls_key is set without listen.tls_cert")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(listen.tls_cert, listen.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("the TLS certificate or key cannot be read; check listen.tls_cert and tls_key") from error
    return context
