"""What a running server does for its successor: offers its sockets, and ends once the other one accepts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from clover._version import __version__
from clover.ancestry import descends_from
from clover.cache import replace_file
from clover.config import ServerConfig
from clover.energy.marks import ClosedMeters
from clover.errors import ConfigError
from clover.server.front_ends import FrontEnds
from clover.server.parts import Parts
from clover.server.takeover.channel import (
    VERSION,
    Channel,
    SocketOffer,
    SuccessorAccepting,
    SuccessorReady,
    TakeOverAllowed,
    TakeOverError,
    TakeOverRefused,
    TakeOverRequest,
)
from clover.server.takeover.socket_file import ListeningFile, meters_file, place
from clover.server.takeover.succession import STEP_S, Succession, listening

log = logging.getLogger("clover.server")

DOOR, CALL = "take-over socket", "take-over"
"""How a take-over is named in the audit log."""
_INITS = ("docker-init", "tini", "dumb-init", "catatonit")
"""What containers have as process 1 with `--init` (Docker, Podman), or in their image."""
_ACCEPT_AGAIN_S = 1.0
READY_S = 600.0
"""How long a successor may take until it is ready: it may have to load, and to measure a changed family."""
_PAUSE = "pause"
"""Process 1 of a pod of Kubernetes whose containers share their processes."""


class TakeOvers:
    """Lets a successor take over from a server of `config`, which may itself have been one (`succession`)."""

    def __init__(self, config: ServerConfig, succession: Succession | None = None) -> None:
        self.succession = succession
        self._config = config
        self._parts: Parts | None = None
        self._listening: asyncio.Task[None] | None = None
        self._heir: Channel | None = None
        """The connection to a successor that has the sockets."""
        self._offered: tuple[object, ...] = ()
        """What that one has read at its start."""

    def start(self, parts: Parts, front: FrontEnds | None, end: Callable[[], None]) -> None:
        """Listen for a successor, once this server's own take-over is over; `end` begins the end of this server when
        one accepts.  If listening is impossible, the log says why, and the server is as good otherwise."""
        self._parts = parts
        self._listening = parts.loop.create_task(self._listen(parts, front, end), name="clover-take-overs")

    async def _listen(self, parts: Parts, front: FrontEnds | None, end: Callable[[], None]) -> None:
        """Serve one successor after another, until one accepts; one that comes meanwhile waits."""
        if self.succession is not None:
            await self.succession.settle()
        path = place(self._config)
        if path is None:
            return
        try:
            file = ListeningFile(path)
        except (ConfigError, OSError) as error:
            why = error.strerror if isinstance(error, FileExistsError) else error
            log.warning("no server can take over from this one: %s", why)
            return
        with contextlib.closing(file):
            while not await self._serve(parts, front, await _accept(parts.loop, file.socket)):
                pass
        log.info("another server has taken over: this one answers what it received, then ends")
        parts.life.handing = asyncio.Event()
        end()
        assert self._heir is not None
        parts.operators.audit.record(f"process {self._heir.pid}", DOOR, CALL)

    async def _serve(self, parts: Parts, front: FrontEnds | None, sock: socket.socket) -> bool:
        """Hand over to the other end of `sock`; return whether that accepts connections now.  Whatever fails, this
        server serves on, and another one may ask."""
        channel = None
        try:
            channel = Channel(sock)
            if _is_own(channel.pid):
                # A model in a worker is the same user, and must not see what clients send to the server.
                log.error("process %d, which this server has started, asked for its sockets: refused", channel.pid)
                why = "this server has started it"
                parts.operators.audit.record(f"process {channel.pid}", DOOR, CALL, status=403, error=why)
                return False
            await self._hand_over(parts, front, channel)
            return True
        except TakeOverError as error:
            log.warning("no take-over, this server serves on: %s", error)
            self._refuse(channel, str(error))
            return False
        except Exception:
            log.exception("no take-over, this server serves on: it failed in an unforeseen way")
            self._refuse(channel, "it failed in an unforeseen way: the log of the running server says how")
            return False
        finally:
            if channel is not None and channel is not self._heir:
                channel.close()

    def _refuse(self, channel: Channel | None, reason: str) -> None:
        self._heir = None
        if channel is not None:
            with contextlib.suppress(TakeOverError):
                channel.send(TakeOverRefused(reason=reason))

    async def _hand_over(self, parts: Parts, front: FrontEnds | None, channel: Channel) -> None:
        """Return once the successor accepts connections; TakeOverError if it does not come to that."""
        request = await channel.expect(TakeOverRequest, STEP_S)
        if reason := refusal(parts, front, request):
            raise TakeOverError(reason)
        log.info(
            "process %d, Clover %s, takes over once ready; this server serves until then", channel.pid, request.clover
        )
        await parts.controller.learner.finish(parts.controller.context.families.values())  # it reads what was learned
        held = await asyncio.to_thread(held_bytes, [meter.pid for meter in parts.account.workers()])
        assert front is not None
        self._offered, sockets = _read_at_start(parts), front.http.sockets()
        every = [sock.fileno() for sock in (*sockets.tcp, sockets.control) if sock is not None]
        offer = SocketOffer(
            clover=__version__,
            grpc_port=front.grpc_port,
            memory_bytes=held,
            box=self.succession.box if self.succession is not None else "",
        )
        channel.send(offer, every)
        self._heir = channel
        await channel.expect(SuccessorReady, READY_S)
        if reason := hindrance(parts) or self._stale(parts):
            raise TakeOverError(reason)
        channel.send(TakeOverAllowed())
        await channel.expect(SuccessorAccepting, None)

    def _stale(self, parts: Parts) -> str:
        """Return why the successor must not serve with what it has read at its start; empty if it may."""
        if _read_at_start(parts) == self._offered:
            return ""
        return (
            "the configuration was read again, or a model was replaced by another version, since the take-over began: "
            "start it again"
        )

    async def close(self) -> None:
        """Listen no more.  A successor that has the sockets serves once it is ready."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        heir, parts = self._heir, self._parts
        if heir is None or parts is None or parts.life.handing is not None:
            return
        reason = self._stale(parts)
        with contextlib.suppress(TakeOverError):
            heir.send(TakeOverRefused(reason=reason) if reason else TakeOverAllowed())
        if not reason:
            log.info("the server that was to take over serves alone once it is ready")
            parts.life.handing = asyncio.Event()
            parts.life.handing.set()

    def finish(self) -> None:
        """Leave to the successor, if there is one, where the meters of this server stand, which has stopped."""
        path, parts = place(self._config), self._parts
        if self._heir is None or path is None or parts is None:
            return
        closed = ClosedMeters(at_ns=parts.footprint.charged_ns, meters=parts.machine.marks())
        try:
            replace_file(meters_file(path), msgspec.json.encode(closed))
        except OSError as error:
            log.warning("the meters' readings could not be left for the next server: %s", error.strerror)
        self._heir.close()


async def _accept(loop: asyncio.AbstractEventLoop, listening: socket.socket) -> socket.socket:
    """Return the next connection; one that cannot be accepted now, as without a free descriptor, waits."""
    while True:
        try:
            return (await loop.sock_accept(listening))[0]
        except OSError as error:
            log.warning("a successor waits, because its connection could not be accepted: %s", error.strerror)
            await asyncio.sleep(_ACCEPT_AGAIN_S)


def refusal(parts: Parts, front: FrontEnds | None, request: TakeOverRequest) -> str:
    """Return why a successor cannot take over now; empty if it can."""
    if request.version != VERSION:
        return f"Clover {__version__} and {request.clover} do not take over from each other: restart the server"
    if container_ends():
        return "the container of the running server ends with it: replace the container"
    if reason := hindrance(parts):
        return reason
    if front is None:
        return "the running server has no front end"
    here = listening(parts.config)
    others = [name for name in here if request.listen.get(name) != here[name]]
    if others:
        theirs, own = (", ".join(f"{key} {of.get(key, '')!r}" for key in others) for of in (request.listen, here))
        return f"it is configured with {theirs}, and the running server with {own}: addresses change at a restart"
    return ""


def hindrance(parts: Parts) -> str:
    """Return what the server does now that no other can go on with; empty for nothing."""
    if parts.life.draining:
        return "the running server is shutting down"
    if trials := parts.rollouts.trials():
        return f"a roll-out is under way ({', '.join(sorted(trials))}): promote it or roll it back first"
    if cluster := parts.cluster.name:
        return (
            f"the running server is a node of the cluster {cluster}, whose agent would start it again: "
            "`clover cluster release FILE NODE`, and then with --off, has the agent start a new one"
        )
    return ""


def _read_at_start(parts: Parts) -> tuple[object, ...]:
    """Return what tells whether a successor that started before would find something else now."""
    return parts.life.reloads, *(served.spec.digest for served in parts.families.served.values())


def _is_own(pid: int) -> bool:
    """Return whether a process is one that this one has started, or one of these has, or has ended meanwhile."""
    here = os.getpid()
    return pid != here and (not os.path.exists(f"/proc/{pid}") or descends_from(pid, here))


def container_ends(proc: Path = Path("/proc")) -> bool:
    """Return whether a container ends with this process: it is the first one, or the only child of an init, or in a
    pod that shares its processes."""
    if os.getpid() == 1:
        return True
    with contextlib.suppress(OSError):
        first = (proc / "1/comm").read_text(encoding="utf-8").strip()
        return os.getppid() == (0 if first == _PAUSE else 1) and first in (_PAUSE, *_INITS)
    return False


def held_bytes(workers: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Return the bytes that this process and `workers` hold: resident memory, of workers without what they share."""
    pages = 0
    for pid, shared in ((os.getpid(), 0), *((pid, 1) for pid in set(workers))):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (proc / str(pid) / "statm").read_text(encoding="ascii").split()
            pages += int(fields[1]) - shared * int(fields[2])
    return pages * os.sysconf("SC_PAGE_SIZE")
