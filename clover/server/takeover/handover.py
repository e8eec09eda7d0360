"""What a running server does for its successor: offers its sockets, hands over its state, and ends in order.

`TakeOvers` listens for a successor while the server runs; `Handover` does one take-over's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clover._version import __version__
from clover.ancestry import descends_from
from clover.config import ServerConfig
from clover.control.ledger_files import LedgerFiles, saved
from clover.control.standing import StandingCommand, standing_commands
from clover.errors import ConfigError
from clover.server.takeover import protocol, socket_file
from clover.server.takeover.channel import SocketChannel, TakeOverError
from clover.server.takeover.messages import (
    VERSION,
    HandedState,
    LateRows,
    SocketOffer,
    TakeOverFinished,
    TakeOverRequest,
)
from clover.server.takeover.socket_file import ListeningFile
from clover.server.takeover.succession import Succession, listening

if TYPE_CHECKING:
    from clover.server.engine import Engine  # circle: types only; the engine is given its succession

log = logging.getLogger("clover.server")

DOOR, CALL = "take-over socket", "take-over"
"""How a take-over is named in the audit log."""
_INITS = ("docker-init", "tini", "dumb-init", "catatonit")
"""What containers have as process 1 with `--init` (Docker, Podman), or in their image."""
_PAUSE = "pause"
"""Process 1 of a pod of Kubernetes whose containers share their processes."""


@dataclass(frozen=True)
class OfferedState:
    """What a successor knows from its start on: what operators changed, the models that are not loaded, the versions
    that are served (digests), and how often the configuration was read again, with its tokens and certificates."""

    commands: tuple[StandingCommand, ...] = ()
    unloaded: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    reloads: int = 0


def changes_since(before: OfferedState, now: OfferedState) -> str:
    """Return in words what changed; empty for nothing."""
    if now.reloads != before.reloads:
        return "its configuration was read again (SIGHUP)"
    if now.commands != before.commands:
        return "an operator has changed something"
    if now != before:
        return "a model was loaded, unloaded or replaced by another version"
    return ""


class Handover:
    """The running server as the protocol sees it.  `end` begins its end once another server accepts; `box` is the
    folder of its emulated GPUs."""

    def __init__(self, engine: Engine, end: Callable[[], None], box: str) -> None:
        self._engine = engine
        self._end = end
        self._box = box
        self._handed: HandedState | None = None
        self._files = engine.controller.ledger_files
        self._offered = OfferedState()

    def refusal(self, request: TakeOverRequest) -> str:
        """Return why this successor cannot take over now; empty if it can."""
        engine = self._engine
        if request.version != VERSION:
            return f"Clover {__version__} and {request.clover} do not take over from each other: restart the server"
        if container_ends():
            return "the container of the running server ends with it: replace the container"
        if reason := self._hindrance():
            return reason
        if engine.frontend is None:
            return "the running server has no front end"
        here = listening(engine.config)
        others = [name for name in here if request.listen.get(name) != here[name]]
        if others:
            theirs, own = (", ".join(f"{key} {of.get(key, '')!r}" for key in others) for of in (request.listen, here))
            return f"it is configured with {theirs}, and the running server with {own}: addresses change at a restart"
        return ""

    def _hindrance(self) -> str:
        """Return what the server does now that no other can go on with; empty for nothing."""
        engine = self._engine
        if engine.draining:
            return "the running server is shutting down"
        if trials := engine.rollouts.trials():
            return f"a roll-out is under way ({', '.join(sorted(trials))}): promote it or roll it back first"
        if cluster := engine.cluster.name:
            return (
                f"the running server is a node of the cluster {cluster}, whose agent would start it again: "
                "`clover cluster release FILE NODE`, and then with --off, has the agent start a new one"
            )
        return ""

    def _offerable(self) -> OfferedState:
        """Return what a successor has read or is told at its start, as it is now."""
        engine = self._engine
        return OfferedState(
            commands=standing_commands(engine.controller.context),
            unloaded=tuple(name for name, one in engine.served.items() if one.state == "UNAVAILABLE"),
            versions=tuple(one.spec.digest for one in engine.served.values()),
            reloads=engine.reloads,
        )

    async def offer(self) -> tuple[SocketOffer, Sequence[int]]:
        """Return what is offered, with the descriptors of the listening sockets."""
        engine = self._engine
        assert engine.frontend is not None
        # The successor reads it at its start.
        await engine.controller.learner.finish(engine.controller.context.families.values())
        offered = self._offered = self._offerable()
        sockets = engine.frontend.http.sockets()
        offer = SocketOffer(
            pid=os.getpid(),
            clover=__version__,
            tcp=len(sockets.tcp),
            control=sockets.control is not None,
            grpc_port=engine.frontend.grpc_port,
            memory_bytes=await asyncio.to_thread(held_bytes, _workers_of(engine)),
            box=self._box,
            commands=offered.commands,
            unloaded=offered.unloaded,
        )
        control = [sockets.control.fileno()] if sockets.control is not None else []
        return offer, [*(sock.fileno() for sock in sockets.tcp), *control]

    async def checkpoint(self) -> HandedState:
        """Count the energy until now, stand still, and return the state."""
        engine, controller = self._engine, self._engine.controller
        await engine.count()
        await controller.ledger_files.settle()  # or it might come after what the new server writes
        if reason := self._hindrance():
            raise TakeOverError(reason)
        if what := changes_since(self._offered, self._offerable()):
            raise TakeOverError(f"{what} since the take-over began: start it again")
        engine.machine.paused = True
        self._files, controller.ledger_files = controller.ledger_files, LedgerFiles()
        grid_s = engine.grid.now()
        budgets = {name: saved(family, grid_s) for name, family in controller.context.families.items()}
        self._handed = HandedState(
            at_ns=engine.footprint.charged_ns,
            marks=engine.machine.marks(),
            budgets={name: budget for name, budget in budgets.items() if budget is not None},
        )
        return self._handed

    def revert(self) -> None:
        """Go on as before: the next window is as much longer."""
        self._engine.machine.paused = False
        self._engine.controller.ledger_files = self._files
        self._handed = None

    def commit(self) -> None:
        """Accept no more, and begin to end."""
        engine, handed = self._engine, self._handed
        assert handed is not None
        engine.machine.hand_over()
        self._files.release()
        engine.footprint.handed_ns = handed.at_ns
        if engine.ledger is not None:
            engine.ledger.hand_over(handed.at_ns / 1e9)
        engine.handing = asyncio.Event()
        self._end()

    def finished(self, answered: bool) -> TakeOverFinished:
        """Return what was answered since the state was handed over."""
        assert self._handed is not None
        grid_s, late = self._engine.grid.now(), {}
        for name, budget in self._handed.budgets.items():
            family = self._engine.controller.context.families.get(name)
            if family is None:
                continue
            ledger, horizon_s = family.ledger, family.config.budget_horizon_s
            ledger.look(grid_s, family.fleet.observe(), horizon_s)
            if ledger.since_s == budget.ledger.since_s:
                late[name] = LateRows(
                    rows=max(ledger.rows - budget.ledger.rows, 0.0),
                    accuracy_rows=max(ledger.accuracy_rows - budget.ledger.accuracy_rows, 0.0),
                    since_s=ledger.since_s,
                )
        return TakeOverFinished(answered=answered, late=late)


class TakeOvers:
    """Lets a successor take over from a server of `config`, which may itself have been one (`succession`)."""

    def __init__(self, config: ServerConfig, succession: Succession | None = None) -> None:
        self.succession = succession
        self._config = config
        self._file: ListeningFile | None = None
        self._listening: asyncio.Task[None] | None = None
        self._handover: Handover | None = None
        self._channel: SocketChannel | None = None

    def start(self, engine: Engine, end: Callable[[], None]) -> None:
        """Listen for a successor; `end` begins the end of this server once one accepts.  If that is impossible, the
        log says why, and the server is as good otherwise."""
        try:
            path = socket_file.place(self._config)
            if path is None:
                return
            self._file = ListeningFile(path)
        except FileExistsError as error:
            log.warning("no server can take over from this one: %s", error.strerror)
            return
        except (ConfigError, OSError) as error:
            log.warning("no server can take over from this one: %s", error)
            return
        box = self.succession.box if self.succession is not None else ""
        self._listening = engine.loop.create_task(self._listen(engine, end, box), name="clover-take-overs")

    async def _listen(self, engine: Engine, end: Callable[[], None], box: str) -> None:
        """Serve one successor after another, until one has taken over; one that comes meanwhile waits."""
        assert self._file is not None
        loop, audit = asyncio.get_running_loop(), engine.operators.audit
        while True:
            sock, _ = await loop.sock_accept(self._file.socket)
            channel = None
            try:
                channel = SocketChannel(sock)
                if _is_own(channel.pid):
                    # A model in a worker is the same user, and must not see what clients send to the server.
                    log.error("process %d, which this server has started, asked for its sockets: refused", channel.pid)
                    audit.note(f"process {channel.pid}", DOOR, CALL, status=403, error="this server has started it")
                    continue
                handover = Handover(engine, self._left(end), box)
                if await protocol.hand_over(channel, handover, self._config.limits.take_over_s):
                    audit.note(f"process {channel.pid}", DOOR, CALL)
                    self._handover, self._channel, channel = handover, channel, None
                    return
            except TakeOverError as error:
                log.warning("no take-over: %s", error)
            except Exception:
                log.exception("no take-over: it failed in an unforeseen way; this server serves on")
            finally:
                if channel is not None:
                    channel.close()

    def _left(self, end: Callable[[], None]) -> Callable[[], None]:
        """Return `end` after the socket's file is gone, so that the successor can have one of the same name."""

        def ending() -> None:
            if self._file is not None:
                self._file.close()
            log.info("another server has taken over: this one answers what it received, then ends")
            end()

        return ending

    async def close(self) -> None:
        """Listen no more; a take-over that is under way breaks off, unless it is committed."""
        if self._listening is not None and self._handover is None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        if self._file is not None:
            self._file.close()

    async def finish(self, answered: bool) -> None:
        """Tell the successor, if there is one, that this server has ended."""
        if self._channel is None or self._handover is None:
            return
        with contextlib.suppress(TakeOverError):
            await self._channel.send(self._handover.finished(answered))
        self._channel.close()


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


def _workers_of(engine: Engine) -> list[int]:
    return [meter.pid for meter in engine.account.workers()]


def held_bytes(workers: Iterable[int], proc: Path = Path("/proc")) -> int:
    """Return the bytes that this process and `workers` hold: resident memory, of workers without what they share."""
    pages = 0
    for pid, shared in ((os.getpid(), 0), *((pid, 1) for pid in set(workers))):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (proc / str(pid) / "statm").read_text(encoding="ascii").split()
            pages += int(fields[1]) - shared * int(fields[2])
    return pages * os.sysconf("SC_PAGE_SIZE")
