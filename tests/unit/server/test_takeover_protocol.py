"""A take-over that breaks at every step there is, from either side: one server serves, and nothing counts twice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from clover.server.takeover import protocol
from clover.server.takeover.channel import TakeOverError, expect
from clover.server.takeover.messages import (
    VERSION,
    HandedState,
    Message,
    SocketOffer,
    TakeOverFinished,
    TakeOverRefused,
    TakeOverRequest,
)

REQUEST = TakeOverRequest(version=VERSION, pid=2, clover="2.0", listen={"port": "8080"})
OFFER = SocketOffer(pid=1, clover="1.0", tcp=1, control=False, grpc_port=None, memory_bytes=1)


class Killed(BaseException):
    """The process was ended."""


@dataclass
class Fault:
    """What goes wrong at operation `at` of one side: its process ends before or after it, or the other's answer never
    comes (seen as the time limit)."""

    at: int
    how: str


@dataclass
class Wire:
    """One direction."""

    queue: asyncio.Queue[tuple[Message, list[int]] | None] = field(default_factory=asyncio.Queue)
    closed: bool = False


class FakeChannel:
    """One end, on queues; its process ends at `fault`."""

    def __init__(self, out: Wire, back: Wire, fault: Fault | None) -> None:
        self.out, self.back, self.fault = out, back, fault
        self.operations = 0
        self.peer: FakeChannel | None = None
        self.dead = False

    def _step(self, after: bool) -> None:
        if self.fault == Fault(self.operations, "killed after" if after else "killed before"):
            self.dead = True
            self.close()
            raise Killed
        if after:
            self.operations += 1

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        self._step(False)
        if self.back.closed:
            raise TakeOverError("the other server is gone")
        self.out.queue.put_nowait((message, list(descriptors)))
        self._step(True)

    async def receive(self, within_s: float | None) -> tuple[Message, list[int]]:
        self._step(False)
        if within_s is not None and self.fault == Fault(self.operations, "too late"):
            raise TakeOverError(f"the other server did not answer within {within_s:g} s")
        found = await self.back.queue.get()
        if found is None:
            self.back.queue.put_nowait(None)
            raise TakeOverError("the other server is gone")
        self._step(True)
        return found

    async def ended(self, within_s: float) -> bool:
        assert self.peer is not None
        return self.peer.dead

    def close(self) -> None:
        if not self.out.closed:
            self.out.closed = True
            self.out.queue.put_nowait(None)


class Running:
    """The running server: whether it accepts, and from when on it counts energy (a clock of steps)."""

    def __init__(self, refuses: str = "", breaks: str = "") -> None:
        self.refuses, self.breaks = refuses, breaks
        self.accepts = self.counts = True
        self.log: list[str] = []

    def refusal(self, request: TakeOverRequest) -> str:
        return self.refuses

    async def offer(self) -> tuple[SocketOffer, Sequence[int]]:
        return OFFER, ()

    async def checkpoint(self) -> HandedState:
        self.counts = False
        if self.breaks == "checkpoint":
            raise TakeOverError("the disk is full")
        return HandedState(at_ns=1)

    def revert(self) -> None:
        self.counts = True
        self.log.append("revert")

    def commit(self) -> None:
        self.accepts = False
        self.log.append("commit")


class Next:
    """The successor."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks = breaks
        self.accepts = self.counts = False

    async def adopt(self, handed: HandedState | None) -> None:
        self.counts = True
        if self.breaks == "adopt":
            raise TakeOverError("the budgets do not fit")

    async def open(self) -> None:
        self.accepts = True
        if self.breaks == "open":
            raise TakeOverError("the port for gRPC is taken")

    async def withdraw(self) -> None:
        self.accepts = self.counts = False


@dataclass
class Outcome:
    running: Running
    successor: Next
    old: FakeChannel
    new: FakeChannel
    handed: bool | None
    taken: bool | None
    said: str


async def play(
    running: Running, successor: Next, old_fault: Fault | None = None, new_fault: Fault | None = None
) -> Outcome:
    """Run both sides to their ends; a process that is killed serves no more."""
    there, back = Wire(), Wire()
    old, new = FakeChannel(there, back, old_fault), FakeChannel(back, there, new_fault)
    old.peer, new.peer = new, old
    said: list[str] = []

    async def first() -> bool | None:
        try:
            found = await protocol.hand_over(old, running, 600.0)
        except Killed:
            running.accepts = running.counts = False
            return None
        if found:
            await _quietly(old.send(TakeOverFinished(answered=True)))
        old.close()
        return found

    async def second() -> bool | None:
        try:
            await new.send(REQUEST)
            offer, _ = await expect(new, SocketOffer, 1.0)
            assert offer == OFFER
            found = await protocol.take_over(new, successor)
            if found:
                await protocol.finished(new, 1.0)
        except Killed:
            successor.accepts = successor.counts = False
            return None
        except TakeOverError as error:
            said.append(str(error))
            found = False
        new.close()
        return found

    async with asyncio.timeout(5.0):
        handed, taken = await asyncio.gather(first(), second())
    return Outcome(running, successor, old, new, handed, taken, "".join(said))


async def _quietly(sending: object) -> None:
    try:
        await sending  # type: ignore[misc]
    except TakeOverError:
        pass
    except Killed:
        pass


def check(found: Outcome) -> None:
    """One serves if one lives; never do two count; a rolled back one is as it was."""
    old_lives, new_lives = not found.old.dead, not found.new.dead
    counting = [found.running.counts and found.running.log[-1:] != ["commit"], found.successor.counts]
    assert sum(counting) <= 1, "energy is counted twice"
    if "commit" in found.running.log:
        assert not found.running.accepts
        assert found.successor.accepts == new_lives
    elif old_lives:
        assert found.running.accepts
        assert found.running.counts
        assert not found.successor.accepts or not new_lives
    else:
        assert not found.running.accepts
    if old_lives and new_lives:
        assert sum([found.running.accepts, found.successor.accepts]) == 1
        assert sum(counting) == 1


def test_it_takes_over() -> None:
    found = asyncio.run(play(Running(), Next()))
    check(found)
    assert (found.handed, found.taken) == (True, True)
    assert found.running.log == ["commit"]
    assert found.successor.accepts
    assert found.successor.counts


STEPS = range(7)
HOWS = ("killed before", "killed after", "too late")


@pytest.mark.parametrize("side", ["running server", "successor"])
def test_any_single_fault_leaves_one_that_serves(side: str) -> None:
    outcomes = set()
    for at, how in itertools.product(STEPS, HOWS):
        fault = Fault(at, how)
        old_fault, new_fault = (fault, None) if side == "running server" else (None, fault)
        found = asyncio.run(play(Running(), Next(), old_fault, new_fault))
        check(found)
        if how == "too late" or (side == "successor" and "commit" not in found.running.log):
            assert found.running.accepts or found.successor.accepts, (at, how)
        elif side == "running server" and found.old.operations >= 2:  # the sockets were offered
            assert found.successor.accepts, (at, how)
        outcomes.add(found.successor.accepts)
    assert outcomes == {True, False}, "faults before and after the commit point"


def test_two_faults_never_leave_two_that_count_or_accept() -> None:
    faults = [None, *(Fault(at, how) for at, how in itertools.product(STEPS, HOWS))]
    for old_fault, new_fault in itertools.product(faults, faults):
        check(asyncio.run(play(Running(), Next(), old_fault, new_fault)))


@pytest.mark.parametrize("breaks", ["adopt", "open"])
def test_a_successor_that_cannot_go_on_leaves_the_running_one_as_it_was(breaks: str) -> None:
    found = asyncio.run(play(Running(), Next(breaks)))
    check(found)
    assert found.running.log == ["revert"]
    assert (found.running.accepts, found.running.counts, found.handed) == (True, True, False)
    assert not found.successor.accepts


def test_a_state_that_cannot_be_taken_is_reverted() -> None:
    found = asyncio.run(play(Running(breaks="checkpoint"), Next()))
    check(found)
    assert found.running.log == ["revert"]
    assert "the disk is full" in found.said


def test_a_refusal_says_why() -> None:
    found = asyncio.run(play(Running(refuses="a roll-out is under way"), Next()))
    check(found)
    assert found.said == "a roll-out is under way"
    assert found.running.log == []


def test_what_is_not_expected_is_refused() -> None:
    async def main() -> None:
        there, back = Wire(), Wire()
        channel = FakeChannel(there, back, None)
        back.queue.put_nowait((TakeOverRefused(reason="busy"), []))
        back.queue.put_nowait((OFFER, []))
        with pytest.raises(TakeOverError, match="busy"):
            await expect(channel, SocketOffer, 1.0)
        with pytest.raises(TakeOverError, match="said SocketOffer instead of TakeOverFinished"):
            await expect(channel, TakeOverFinished, 1.0)

    asyncio.run(main())
