"""A router against workers, a loop and a clock that the tests drive by hand."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from typing import Any

from clover.accounting import Account, WorkerMeter
from clover.config import FamilyConfig
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import CLOSED, FLYING, FREE, HELD, QUEUED, RouterTicket
from clover.types import FamilySpec, PublishedAccuracy, Routing, TensorSpec, VariantSpec

MS = 1_000_000
SECOND = 1000 * MS


def family(**changes: Any) -> FamilySpec:
    base: dict[str, Any] = {
        "name": "toy",
        "inputs": (TensorSpec(name="x", datatype="FP32", shape=(2,)),),
        "outputs": (TensorSpec(name="y", datatype="FP32", shape=(2,)),),
        "variants": tuple(
            VariantSpec(
                name=name, loader="m:f", accuracy=PublishedAccuracy(value=value, metric="top1", source="a paper")
            )
            for name, value in (("small", 80.0), ("medium", 85.0), ("large", 90.0))
        ),
        "max_batch": 4,
    }
    return FamilySpec(**{**base, **changes})


def dealt(*shares: float, **knobs: Any) -> Routing:
    """The routing that gives small, medium and large these shares."""
    return Routing(shares=dict(zip(("small", "medium", "large"), shares, strict=False)), **knobs)


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Time, soon-calls and timers, all moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 1000 * SECOND
        self.soon: list[Callable[[], None]] = []
        self.timers: list[tuple[int, int, Timer, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> int:
        return self.now_ns

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self._count += 1
        heapq.heappush(self.timers, (self.now_ns + round(delay_s * SECOND), self._count, timer, callback))
        return timer

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def advance(self, duration_ns: int) -> None:
        end_ns = self.now_ns + duration_ns
        self.turn()
        while self.timers and self.timers[0][0] <= end_ns:
            at_ns, _, timer, callback = heapq.heappop(self.timers)
            self.now_ns = max(self.now_ns, at_ns)
            if not timer.cancelled:
                callback()
            self.turn()
        self.now_ns = end_ns


class FakeRing:
    def __init__(self) -> None:
        self.batches: list[tuple[int, list[int]]] = []
        self.lanes: dict[int, int] = {}
        """The ring's lane of each batch."""
        self.completions: list[tuple[int, int, int, int, int, int]] = []
        self.answer = 1
        self.waiting = 0

    def submit(self, batch_id: int, slots: Any, n: int, lane: int = 0) -> int:
        self.lanes[batch_id] = lane
        self.batches.append((batch_id, [int(slot) for slot in slots[:n]]))
        return self.answer

    def untaken(self) -> int:
        return self.waiting

    def reap(self) -> tuple[int, int, int, int, int, int] | None:
        return self.completions.pop(0) if self.completions else None


class FakeWorker:
    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.ring = FakeRing()
        self.resident: dict[str, int] = {}
        self.bells = 0

    def bell(self) -> None:
        self.bells += 1

    def finish(self, now_ns: int, status: int = 0, busy_ns: int = MS) -> list[int]:
        number, slots = self.ring.batches.pop(0)
        self.ring.completions.append((number, status, len(slots), now_ns - busy_ns, now_ns, busy_ns))
        return slots


class House:
    """A router with what it needs around it."""

    def __init__(self, spec: FamilySpec | None = None, slots: int = 16, **config: Any) -> None:
        self.spec = spec or family()
        self.loop = Loop()
        self.account = Account(pue=1.5)
        self.slab = Slab.create(Layout(self.spec, slots))
        os.close(self.slab.fd)  # no other process maps it, and properties make hundreds
        self.slab.fd = -1
        self.router = Router(
            self.spec,
            self.slab,
            slots,
            FamilyConfig(family="toy", **config),
            None,
            self.account,
            loop=self.loop,  # type: ignore[arg-type]
            clock=self.loop.clock,
        )
        self.done: list[RouterTicket] = []
        self.inputs = 0
        self.workers: list[FakeWorker] = []

    def entry(self, lane: int, max_batch: int = 4) -> Any:
        worker = FakeWorker(len(self.workers) + 1)
        self.workers.append(worker)
        name = self.spec.variants[lane].name
        meter = WorkerMeter(family="toy", variant=name, device="cpu0", placement=f"p{worker.pid}", slices=1)
        return worker, lane, max_batch, meter

    def shared(self, *lanes: int, max_batch: int = 4) -> list[Any]:
        """Entries of one worker that holds all variants, the last one in lane 0 of its ring, for some lanes."""
        entries = [self.entry(lane, max_batch) for lane in lanes]
        worker = entries[0][0]
        del self.workers[-len(lanes) + 1 or len(self.workers) :]
        worker.resident = {variant.name: at for at, variant in enumerate(reversed(self.spec.variants))}
        return [(worker, *entry[1:]) for entry in entries]

    def route(self, *lanes: int, shares: tuple[float, ...] = (1.0, 0.0, 0.0), max_batch: int = 4) -> list[FakeWorker]:
        entries = [self.entry(lane, max_batch) for lane in lanes]
        self.router.route(entries, dealt(*shares))
        return [entry[0] for entry in entries]

    def ask(
        self, rows: int = 1, turn: bool = True, again: float | None = None, client: int = 0, **how: Any
    ) -> RouterTicket:
        """Submit rows with inputs that never came before, or all with the input `again`."""
        ticket = self.router.open(rows, client)
        for slot in ticket.slots:
            self.inputs += 1
            self.slab.input(0)[slot] = (self.inputs, 0.0) if again is None else (again, 1.0)
        self.router.submit(ticket, self.done.append, **how)
        if turn:
            self.loop.turn()
        return ticket

    def complete(self, worker: FakeWorker, status: int = 0) -> None:
        worker.finish(self.loop.now_ns, status)
        self.router.reap()

    def check_slots(self) -> None:
        router = self.router
        table = router.state.table
        states = list(table.state)
        assert table.free.free == states.count(FREE)
        assert router.state.batcher.depth() == states.count(QUEUED)
        flying = [s for link in router.state.lanes.links for batch in link.batches.values() for s in batch.slots]
        assert sorted(flying) == [slot for slot, state in enumerate(states) if state == FLYING]
        assert router.state.company.here == sum(ticket.audit is None for ticket in table.pending())
        for slot, state in enumerate(states):
            owner = table.owner[slot]
            assert (owner is None) == (state == FREE)
            if owner is not None:
                assert slot in owner.slots
                if state in (HELD, QUEUED):
                    assert owner.phase != CLOSED
