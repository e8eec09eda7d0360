"""The ring of `csrc/ring.h` and the slots behind it, in memory whose stores become visible late and out of order.

A checker (`tests.reference.explorer`) looks at every interleaving of a server and a worker, and at every order in which
their stores may reach memory: partial store order, which is weaker than x86-64's.  Each side has its stores in a buffer
of its own.  One may reach memory before an earlier one unless they are of the same cell, or the later one is a release,
which waits for all before it; a full fence and an exchange wait for all.  A side sees its own stores at once.  Loads
happen in the order of the program: each of them that could harm by coming early is behind an acquire or a full fence.

Cells: submission head and tail, completion head, the sleeping flag, one word of each frame, one word of each slot.  The
server writes a row into a slot, a frame that names it, and the head; looks at the flag; and rings.  The worker takes
frames, answers in the slot, and reports; if there is nothing, it announces sleep, looks again, and waits for the bell.

What must be true: what a side reads of a frame or a slot is what the other side meant (else a violation), and in the
end all batches are answered and nobody sleeps on a bell that never came.

`mutation` removes one of the orders, which the checker has to notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

Mutation = Literal[
    "", "no fence at the server", "no fence at the worker", "the head is no release", "the completion is no release",
    "the flag is looked at first", "sleeps without looking again", "the tail runs ahead",
]  # fmt: skip
Store = tuple[int, int, bool]
"""Cell, value, whether it is a release."""

HEAD, TAIL, DONE, FLAG, FRAME = range(5)
ANSWER = 100
"""Added to a row by the worker."""

# Where the server is.
ROOM, ROW, PUT, RELEASE, FENCE, LOOK, RING, REAP, CHECK, OVER = range(10)
# Where the worker is.
TAKE, READ, WORK, REPLY, REPORT, GIVE, ANNOUNCE, BARRIER, AGAIN, WITHDRAW, ASLEEP, AWAKE, ENDED = range(13)


class RingState(NamedTuple):
    """Memory; of each side its place, its own index, and its stores that are not in memory yet; bells that rang."""

    memory: tuple[int, ...]
    server: int
    sent: int
    reaped: int
    server_stores: tuple[Store, ...]
    worker: int
    taken: int
    read: int
    worker_stores: tuple[Store, ...]
    bells: int
    wrong: str


class RingModel:
    """Model `batches` through a ring of `frames`, each of one row in one of `slots`."""

    accidents: frozenset[str] = frozenset()

    def __init__(self, batches: int = 3, frames: int = 2, slots: int = 2, mutation: Mutation = "") -> None:
        self.batches, self.frames, self.slots, self.mutation = batches, frames, slots, mutation

    def frame(self, index: int) -> int:
        return FRAME + index % self.frames

    def slot(self, index: int) -> int:
        return FRAME + self.frames + index % self.slots

    def initial(self) -> RingState:
        memory = (0,) * (FRAME + self.frames + self.slots)
        return RingState(memory, ROOM, 0, 0, (), TAKE, 0, 0, (), 0, "")

    def successors(self, state: RingState) -> Iterator[tuple[str, RingState]]:
        if state.wrong:
            return
        for index, (cell, value, _) in enumerate(state.server_stores):
            if self._may_land(state.server_stores, index):
                left = state.server_stores[:index] + state.server_stores[index + 1 :]
                yield (
                    f"the server's {cell}={value} lands",
                    self._landed(state, cell, value)._replace(server_stores=left),
                )
        for index, (cell, value, _) in enumerate(state.worker_stores):
            if self._may_land(state.worker_stores, index):
                left = state.worker_stores[:index] + state.worker_stores[index + 1 :]
                yield (
                    f"the worker's {cell}={value} lands",
                    self._landed(state, cell, value)._replace(worker_stores=left),
                )
        for label, after in (*self._server(state), *self._worker(state)):
            if after != state:
                yield label, after

    def _may_land(self, stores: tuple[Store, ...], index: int) -> bool:
        cell, _, release = stores[index]
        return not any(release or earlier == cell for earlier, _, _ in stores[:index])

    def _landed(self, state: RingState, cell: int, value: int) -> RingState:
        return state._replace(memory=(*state.memory[:cell], value, *state.memory[cell + 1 :]))

    def _seen(self, state: RingState, stores: tuple[Store, ...], cell: int) -> int:
        return next((value for at, value, _ in reversed(stores) if at == cell), state.memory[cell])

    # --- the server

    def _server(self, state: RingState) -> Iterator[tuple[str, RingState]]:
        def load(cell: int) -> int:
            return self._seen(state, state.server_stores, cell)

        def store(cell: int, value: int, release: bool, then: int) -> RingState:
            return state._replace(server_stores=(*state.server_stores, (cell, value, release)), server=then)

        at, number = state.server, state.sent
        if at == ROOM:
            has_slot = number - state.reaped < self.slots
            has_frame = number - load(TAIL) < self.frames
            if number < self.batches and has_slot and has_frame:
                yield "server: room", state._replace(server=ROW)
            else:
                yield "server: none", state._replace(server=REAP)
        elif at == ROW:
            yield "server: row", store(self.slot(number), number + 1, False, PUT)
        elif at == PUT:
            first = LOOK if self.mutation == "the flag is looked at first" else RELEASE
            yield "server: frame", store(self.frame(number), number + 1, False, first)
        elif at == RELEASE:
            release = self.mutation != "the head is no release"
            then = {"no fence at the server": LOOK, "the flag is looked at first": ROOM}.get(self.mutation, FENCE)
            yield "server: head", store(HEAD, number + 1, release, then)._replace(sent=number + 1)
        elif at == FENCE:
            if not state.server_stores:
                yield "server: fence", state._replace(server=LOOK)
        elif at == LOOK:
            after = RELEASE if self.mutation == "the flag is looked at first" else ROOM
            yield "server: looks", state._replace(server=RING if load(FLAG) else after)
        elif at == RING:
            after = RELEASE if self.mutation == "the flag is looked at first" else ROOM
            if self.mutation == "no fence at the server" or not state.server_stores:
                was = state.memory[FLAG]
                yield "server: rings", self._landed(state, FLAG, 0)._replace(server=after, bells=state.bells + was)
        elif at == REAP:
            if load(DONE) > state.reaped:
                yield "server: reaps", state._replace(server=CHECK)
            elif state.reaped == self.batches:
                yield "server: over", state._replace(server=OVER)
            elif number < self.batches:
                yield "server: goes on", state._replace(server=ROOM)
        elif at == CHECK:
            found, meant = load(self.slot(state.reaped)), state.reaped + 1 + ANSWER
            wrong = "" if found == meant else f"the server reads {found} of a slot that has {meant}"
            yield "server: checks", state._replace(server=ROOM, reaped=state.reaped + 1, wrong=wrong)

    # --- the worker

    def _worker(self, state: RingState) -> Iterator[tuple[str, RingState]]:
        def load(cell: int) -> int:
            return self._seen(state, state.worker_stores, cell)

        def store(cell: int, value: int, release: bool, then: int) -> RingState:
            return state._replace(worker_stores=(*state.worker_stores, (cell, value, release)), worker=then)

        at, number = state.worker, state.taken
        if at == TAKE:
            ahead = self.mutation == "the tail runs ahead"
            something = GIVE if ahead else READ
            if number == self.batches:
                yield "worker: over", state._replace(worker=ENDED)
            else:
                yield "worker: takes", state._replace(worker=something if load(HEAD) != number else ANNOUNCE)
        elif at == READ:
            found = load(self.frame(number))
            wrong = "" if found == number + 1 else f"the worker reads {found} of a frame that has {number + 1}"
            then = WORK if self.mutation == "the tail runs ahead" else GIVE
            yield "worker: frame", state._replace(worker=then, read=found, wrong=wrong)
        elif at == GIVE:
            then = READ if self.mutation == "the tail runs ahead" else WORK
            yield "worker: tail", store(TAIL, number + 1, True, then)
        elif at == WORK:
            found = load(self.slot(number))
            wrong = "" if found == number + 1 else f"the worker reads {found} of a slot that has {number + 1}"
            yield "worker: row", state._replace(worker=REPLY, read=found, wrong=wrong)
        elif at == REPLY:
            yield "worker: answer", store(self.slot(number), state.read + ANSWER, False, REPORT)
        elif at == REPORT:
            release = self.mutation != "the completion is no release"
            yield "worker: reports", store(DONE, number + 1, release, TAKE)._replace(taken=number + 1)
        elif at == ANNOUNCE:
            if self.mutation == "no fence at the worker":  # a store alone, which is what an exchange is not
                yield "worker: announces", store(FLAG, 1, True, AGAIN)
            elif not state.worker_stores:
                then = ASLEEP if self.mutation == "sleeps without looking again" else BARRIER
                yield "worker: announces", self._landed(state, FLAG, 1)._replace(worker=then)
        elif at == BARRIER:
            if not state.worker_stores:
                yield "worker: fence", state._replace(worker=AGAIN)
        elif at == AGAIN:
            yield "worker: looks again", state._replace(worker=WITHDRAW if load(HEAD) != number else ASLEEP)
        elif at in (WITHDRAW, AWAKE):
            if not state.worker_stores:
                yield "worker: is awake", self._landed(state, FLAG, 0)._replace(worker=TAKE)
        elif at == ASLEEP and state.bells:
            yield "worker: hears the bell", state._replace(worker=AWAKE, bells=state.bells - 1)

    # --- what must be true

    def violation(self, state: RingState) -> str:
        return state.wrong

    def wrong_end(self, state: RingState) -> str:
        if state.worker == ASLEEP:
            return "the worker sleeps, and its bell never comes"
        return "" if (state.server, state.worker) == (OVER, ENDED) else "nothing happens any more"

    def end(self, state: RingState) -> str:
        return f"{state.reaped} answered"
