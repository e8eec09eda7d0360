"""Accepting TCP connections: counted from the accept on, and refused before descriptors run out.

The event loop's own server makes a transport of every connection that it accepts, without a limit per turn, and does
not count a TLS connection before its handshake is over.  Here a connection is admitted first, or closed at once.  A new
socket gets the lowest free descriptor, so a number near the limit shows that nearly all descriptors are in use.  The
last ones are kept for starting workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Sequence

from clover.http.connection import Connection
from clover.http.server_state import HttpStats

log = logging.getLogger("clover.http")

OTHERS = 1024
"""Descriptors that a server with many workers may need besides its connections."""
RESERVE = 256
"""The last descriptors, which no connection may have."""

_ACCEPTS = 64
_BACKLOG = 2048
_BACK_OFF_S = 0.1
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RESET = b"\1\0\0\0\0\0\0\0"


def reserve_descriptors(connections: int) -> int:
    """Raise this process's soft limit of descriptors to what `connections` need beside the rest, as far as the hard
    limit allows; return the first descriptor that no connection may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHERS
    if soft == resource.RLIM_INFINITY:
        return 1 << 31
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    first = soft - min(RESERVE, soft // 4)
    if first < connections:
        log.warning(
            "at most %d descriptors are allowed here, so fewer than limits.connections = %d connections can be open: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE of systemd) to %d, or lower the setting",
            soft,
            connections,
            wanted,
        )
    return first


async def bind(loop: asyncio.AbstractEventLoop, host: str | None, port: int) -> list[socket.socket]:
    """Return one socket for each address of `host` (all addresses if None), bound and not yet listening; raises
    OSError."""
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                continue  # a family of addresses that this machine does not have
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, "no address to bind")
    return sockets


class Acceptor:
    """Accepts connections on bound `sockets`, which it owns.

    `factory` makes the protocol of a connection; `tls` is set for HTTPS, and a handshake takes at most `handshake_s`.
    No connection gets the descriptor `beyond` or a higher one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        factory: Callable[[], Connection],
        stats: HttpStats,
        beyond: int,
        tls: ssl.SSLContext | None,
        handshake_s: float,
    ) -> None:
        self._loop = loop
        self._sockets = list(sockets)
        self._factory = factory
        self._stats = stats
        self._beyond = beyond
        self._tls = tls
        self._handshake_s = handshake_s if tls is not None else None
        self._opening: set[asyncio.Task[None]] = set()
        self._starved = False
        for sock in self._sockets:
            sock.listen(_BACKLOG)
            loop.add_reader(sock, self._accept, sock)

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The listening sockets; none once it is closed."""
        return self._sockets

    def close(self, *, opening: bool = False) -> None:
        """Accept no more, and drop the connections whose handshake is not over, unless `opening` keeps them."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        if not opening:
            for task in self._opening:
                task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._back_off(listening, error)
                return
            self._starved = False
            connection = self._factory()
            if not connection.admit(sock.fileno() < self._beyond):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(sock, connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, sock, ssl=self._tls, ssl_handshake_timeout=self._handshake_s
            )
        except OSError as error:  # TLS errors and timeouts are some
            log.debug("a connection could not be opened: %s", error)
            self._stats.failed_handshakes += 1
            connection.forget()
            sock.close()
        except BaseException:
            connection.forget()
            sock.close()
            raise

    def _back_off(self, listening: socket.socket, error: OSError) -> None:
        """Let the backlog wait: the process or the machine has no descriptor or no memory left."""
        if not self._starved:
            self._starved = True
            log.error("connections cannot be accepted: %s", error.strerror)
        self._loop.remove_reader(listening)
        self._loop.call_later(_BACK_OFF_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)
