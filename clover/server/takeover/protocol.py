"""The order of a take-over, and what each side does if it breaks off.

    successor                                          running server
    TakeOverRequest (its process and addresses)    ->
                                                   <-  SocketOffer, with the listening sockets, or TakeOverRefused
    loads, plans, starts and warms workers             serves as before
    SuccessorReady                                 ->
                                                       counts its energy until now, then stands still there
                                                   <-  HandedState (meters, budgets)
    counts energy from there; accepts
    SuccessorAccepting                             ->  *commit point*: accepts no more, counts what is its own
                                                   <-  TakeOverCommitted
    serves                                             answers what it received, closes its ledger
                                                   <-  TakeOverFinished (rows answered meanwhile); exits 0
    adds these rows, opens the ledger

Before the commit point the running server goes back to how it was, whatever happens: the successor ends, hangs, or the
connection breaks.  Both share the listening sockets, so while the successor begins to accept no connection is refused:
one of them accepts it.

The successor cannot know whether a SuccessorAccepting without an answer was received.  So it accepts until it learns
more.  If the running server says TakeOverRefused, or closes the connection and is still there, it did not commit: the
successor closes its sockets, answers what it accepted, and ends.  If its process has ended, the successor is the only
one, and serves.  A running server that has committed says so before it closes, and ends.

If the process of the running server has ended before it handed the state over, the successor, which has its sockets,
opens them and counts from then on.

No side waits for the other without a limit but here: the successor for TakeOverCommitted, since either answer could be
wrong while the running server stands still.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Protocol

from clover.server.takeover.channel import TakeOverChannel, TakeOverError, expect
from clover.server.takeover.messages import (
    HandedState,
    SocketOffer,
    SuccessorAccepting,
    SuccessorReady,
    TakeOverCommitted,
    TakeOverFinished,
    TakeOverRefused,
    TakeOverRequest,
)

log = logging.getLogger("clover.server")

STEP_S = 20.0
"""Longest wait for an answer that needs no loading."""
GONE_S = 2.0
"""How long a process may take to end after its sockets were closed."""


class RunningServer(Protocol):
    """What is asked of the server that serves now."""

    def refusal(self, request: TakeOverRequest) -> str:
        """Return why this successor cannot take over now; empty if it can."""

    async def offer(self) -> tuple[SocketOffer, Sequence[int]]:
        """Return what is offered, with the descriptors of the listening sockets; they stay this server's."""

    async def checkpoint(self) -> HandedState:
        """Count until now, stand still, and return the state."""

    def revert(self) -> None:
        """Go on as before `checkpoint`, without a gap."""

    def commit(self) -> None:
        """Accept no more connections, and begin to end.  Never raises."""


class Successor(Protocol):
    """What is asked of the server that is to serve."""

    async def adopt(self, handed: HandedState | None) -> None:
        """Go on from the state; None: from what the running server, which has ended, left on the disk."""

    async def open(self) -> None:
        """Accept connections."""

    async def withdraw(self) -> None:
        """Accept no more, and answer what was accepted."""


async def hand_over(channel: TakeOverChannel, server: RunningServer, ready_s: float) -> bool:
    """Let a successor take over, which may take `ready_s` seconds until it is ready; return whether it did.

    If not, the server is as it was, and the log says why.
    """
    try:
        request, _ = await expect(channel, TakeOverRequest, STEP_S)
        if reason := server.refusal(request):
            log.warning("process %d may not take over: %s", request.pid, reason)
            await channel.send(TakeOverRefused(reason=reason))
            return False
        log.info(
            "process %d, Clover %s, is to take over: this server serves until it is ready", request.pid, request.clover
        )
        offer, descriptors = await server.offer()
        await channel.send(offer, descriptors)
        await expect(channel, SuccessorReady, ready_s)
    except TakeOverError as error:
        log.warning("no take-over, this server serves on: %s", error)
        await _refuse(channel, error)
        return False
    committed = False
    try:
        await channel.send(await server.checkpoint())
        await expect(channel, SuccessorAccepting, STEP_S)
        committed = True
    except TakeOverError as error:
        log.warning("no take-over, this server serves on: %s", error)
        await _refuse(channel, error)
        return False
    finally:
        if not committed:
            server.revert()
    server.commit()
    try:
        await channel.send(TakeOverCommitted())
    except TakeOverError as error:
        log.error("the successor ended after it had taken over: %s", error)
    return True


async def _refuse(channel: TakeOverChannel, error: TakeOverError) -> None:
    """Say that this server stays, as far as the other one listens."""
    with contextlib.suppress(TakeOverError):
        await channel.send(TakeOverRefused(reason=f"the running server serves on: {error}"))


async def take_over(channel: TakeOverChannel, successor: Successor) -> bool:
    """Take over from the running server; return whether that is still there, to say TakeOverFinished.

    Raises TakeOverError if it serves on; the successor accepts nothing then.
    """
    try:
        await channel.send(SuccessorReady())
        handed, _ = await expect(channel, HandedState, STEP_S)
    except TakeOverError:
        if not await channel.ended(GONE_S):
            raise
        log.warning("the server that ran here has ended before it handed anything over: this one serves alone")
        await successor.adopt(None)
        await successor.open()
        return False
    try:
        await successor.adopt(handed)
        await successor.open()
    except BaseException:
        channel.close()  # so that the running server goes on at once
        await successor.withdraw()
        raise
    try:
        await channel.send(SuccessorAccepting())
        await expect(channel, TakeOverCommitted, None)
    except TakeOverError as error:
        if await channel.ended(GONE_S):
            log.warning("the server that ran here has ended before all was handed over: this one serves alone")
            return False
        await successor.withdraw()
        raise TakeOverError(f"the running server serves on: {error}") from error
    except BaseException:
        await successor.withdraw()
        raise
    return True


async def finished(channel: TakeOverChannel, within_s: float) -> TakeOverFinished | None:
    """Return what the server that ended here says last; None if it says nothing within `within_s` seconds."""
    try:
        return (await expect(channel, TakeOverFinished, within_s))[0]
    except TakeOverError as error:
        log.warning("the server that ran here did not say how it ended: %s", error)
        return None
