"""What a successor does: ask the running server, start beside it, go on from its state, and accept in its place.

Instances of a real GPU belong to the server that made them, and its driver has no room for a second one; so a
take-over is refused there before anything is started.  Emulated GPUs are a file: the successor has a box of its own, in
the other one of two folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clover._version import __version__
from clover.config import ServerConfig
from clover.control.ledger_files import LedgerFiles, budgets_folder, restore
from clover.errors import CloverError
from clover.hints import named_wait
from clover.http import Inherited
from clover.low_priority import LowPriority
from clover.policies import SPENDING
from clover.runtime.memory.free import free_bytes
from clover.server.takeover import protocol, socket_file
from clover.server.takeover.channel import SocketChannel, TakeOverError, expect
from clover.server.takeover.messages import VERSION, HandedState, SocketOffer, TakeOverFinished, TakeOverRequest
from clover.settings.check import on_gpus

if TYPE_CHECKING:
    from clover.runtime.workers.pool import Pool
    from clover.server.engine import Engine  # circle: types only; the engine is given its succession

log = logging.getLogger("clover.server")

BESIDE = "beside"
"""The folder of the emulated GPUs of every other server."""
_FREE_PART = 0.92
_GIB = 1 << 30


class Succession:
    """The take-over of one server, from its offer on.  It owns `channel` and the sockets of `inherited`."""

    def __init__(self, channel: SocketChannel, offer: SocketOffer, inherited: Inherited, priority: LowPriority) -> None:
        self._channel = channel
        self._offer = offer
        self.inherited = inherited
        self._engine: Engine | None = None
        self._ending: asyncio.Task[None] | None = None
        self._priority = priority

    def give_time(self, pool: Pool) -> None:
        """Let the workers of `pool` take longer to start, until this server takes over."""
        pool.start_s *= self._priority.slowdown

    @classmethod
    async def ask(cls, config: ServerConfig, priority: LowPriority) -> Succession | None:
        """Ask the server that runs with this configuration for its sockets; None if it ends before it offers them, so
        that this one starts as any other.  Raises TakeOverError if there is none, if it refuses, or if there is no room
        for two.  `priority` is this server's until it takes over."""
        if on_gpus(config.workers.device):
            raise TakeOverError(
                f"a server on {config.workers.device} cannot be taken over: instances of a GPU belong to the server "
                "that made them, and two cannot share one; restart it, or serve from two machines or two GPUs and "
                "restart one after the other"
            )
        channel = SocketChannel(socket_file.connect(config))
        descriptors: list[int] = []
        try:
            await channel.send(
                TakeOverRequest(version=VERSION, pid=os.getpid(), clover=__version__, listen=listening(config))
            )
            try:
                with named_wait("the running server to offer its sockets", log.info):
                    offer, descriptors = await expect(channel, SocketOffer, protocol.STEP_S)
            except TakeOverError:
                if not await channel.ended(protocol.GONE_S):
                    raise
                log.warning("the server that ran here has ended before it offered its sockets: this one serves alone")
                channel.close()
                priority.restore()
                return None
            if len(descriptors) != offer.tcp + offer.control or offer.tcp < 1:
                raise TakeOverError("the running server's sockets did not come")
            free = free_bytes()
            if free and offer.memory_bytes > _FREE_PART * free:
                raise TakeOverError(
                    f"there is no room for two servers: the running one holds {offer.memory_bytes / _GIB:.2f} GiB, and "
                    f"{free / _GIB:.2f} GiB are free here; restart it instead"
                )
        except BaseException:
            for number in descriptors:
                os.close(number)
            channel.close()
            raise
        made = [socket.socket(fileno=number) for number in descriptors]
        log.info("taking over from process %d, Clover %s: it serves until this one is ready", offer.pid, offer.clover)
        priority.beside(offer.pid)
        inherited = Inherited(tuple(made[: offer.tcp]), made[-1] if offer.control else None)
        return cls(channel, offer, inherited, priority)

    @property
    def box(self) -> str:
        """The folder of this server's emulated GPUs, below the cache folder: the one that the other does not use."""
        return "" if self._offer.box == BESIDE else BESIDE

    def boxes(self, cache: Path) -> Path:
        """Return the folder of the emulated GPUs and their records."""
        return cache / self.box

    async def complete(self, engine: Engine, stack: contextlib.AsyncExitStack) -> None:
        """Take over, now that `engine` can serve; `stack` is what its stop does.  Raises TakeOverError if the running
        server serves on."""
        self._engine = engine
        await self._repeat_commands(engine)
        self._priority.restore()
        engine.pool.start_s = engine.config.workers.start_s
        gc.collect()  # what takes long, before requests come
        with named_wait("the running server to hand over", log.info):
            other_says_more = await protocol.take_over(self._channel, self)
        engine.controller.ledger_files = LedgerFiles(budgets_folder(engine.config))  # which the other has closed
        if engine.frontend is not None:
            engine.frontend.own()
        if other_says_more:
            self._ending = engine.loop.create_task(self._finish(), name="clover-take-over")
            stack.push_async_callback(self._settle)
        elif engine.ledger is not None:
            engine.ledger.start()

    async def _repeat_commands(self, engine: Engine) -> None:
        """Put in force what operators have changed of the running server; TakeOverError if that cannot be here."""
        for command in self._offer.commands:
            try:
                await engine.controller.command(command.verb, dict(command.arguments), "take-over")
            except CloverError as error:
                raise TakeOverError(
                    f"what an operator changed of the running server cannot be in force here ({command.verb} "
                    f"{command.arguments}: {error}); undo it there first"
                ) from error
        for name in engine.served.keys() & set(self._offer.unloaded):
            await engine.unload(name)

    async def adopt(self, handed: HandedState | None) -> None:
        """Go on from the state: meters, embodied carbon, the ledger's time, budgets.  None: count from now on, with the
        budgets of the files."""
        engine = self._engine
        assert engine is not None
        alone, handed = handed is None, handed or HandedState(at_ns=time.monotonic_ns())
        reading = await engine.grid.priced()
        engine.machine.take_over(handed.marks, reading)
        engine.footprint.begin(handed.at_ns)
        if engine.ledger is not None:
            engine.ledger.begin(handed.at_ns / 1e9)
        grid_s, context = engine.grid.now(), engine.controller.context
        if alone:
            files = LedgerFiles(budgets_folder(engine.config))
            for kept in context.families.values():
                files.load(kept, grid_s, spends=context.policy_of(kept) in SPENDING)
            files.release()
        for name, budget in handed.budgets.items():
            family = context.families.get(name)
            if family is None:
                continue
            try:
                why = restore(budget, family, grid_s)
            except ValueError as error:
                why = str(error)
            if why:
                log.warning("%s: what the budget spent before is not taken over: %s", name, why)

    async def open(self) -> None:
        """Accept connections, as the running server does."""
        assert self._engine is not None
        if self._engine.frontend is not None:
            await self._engine.frontend.open(self._offer.grpc_port)

    async def withdraw(self) -> None:
        """Accept no more, and answer what was accepted."""
        engine = self._engine
        assert engine is not None
        engine.machine.paused = True  # the other server counts
        if engine.frontend is not None:
            await engine.frontend.drain(engine.config.limits.drain_s)

    async def _finish(self) -> None:
        """Wait until the server that ran here has ended; add what it answered last, and open the ledger."""
        engine = self._engine
        assert engine is not None
        limits = engine.config.limits
        try:
            said = await protocol.finished(self._channel, 2.0 * limits.drain_s + protocol.STEP_S)
            if said is not None:
                self._add(engine, said)
        finally:
            self._channel.close()
            if engine.ledger is not None:
                engine.ledger.start()

    def _add(self, engine: Engine, said: TakeOverFinished) -> None:
        for name, late in said.late.items():
            family = engine.controller.context.families.get(name)
            if family is not None and family.ledger.since_s == late.since_s:
                family.ledger.add(late.rows, late.accuracy_rows)
        log.info(
            "the server that ran here has ended%s", "" if said.answered else ", and left requests without an answer"
        )

    async def _settle(self) -> None:
        """Wait for the end of the server before, whose ledger this one shares."""
        if self._ending is not None:
            await asyncio.gather(self._ending, return_exceptions=True)

    def close(self) -> None:
        """Give the sockets back, if nothing has begun to use them, and the session its priority."""
        self._priority.restore()
        self._channel.close()
        self.inherited.close()


def listening(config: ServerConfig) -> dict[str, str]:
    """Return the settings of addresses that two servers must share, as text."""
    listen = config.listen
    return {
        "host": listen.host,
        "port": str(listen.port),
        "grpc_port": "" if listen.grpc_port is None else str(listen.grpc_port),
        "control": listen.control,
    }
