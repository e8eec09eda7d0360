"""A cascade row by row: the server's router before simulated workers, without a fleet or a controller.

While `clover.research.simulate.minutes` plays the whole server, this plays one given configuration: rows that arrive,
the production router with its batcher and its escalation, and workers that only take time.  So a model of waiting times
can be checked against what the router does, many thousand rows for each of many configurations.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from clover.accounting import Account, WorkerMeter
from clover.config import FamilyConfig
from clover.planning.model.queueing import Service
from clover.research.simulate.workers import SimulatedWorker, Slice
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.lanes import Entry
from clover.runtime.router.router import Router
from clover.runtime.router.tickets import RouterTicket
from clover.types import FamilySpec, PublishedAccuracy, Routing, TensorSpec, VariantSpec

Floats = NDArray[np.float64]

_SECOND_NS = 1_000_000_000
_SLOTS = 1 << 14
_TIMEOUT_MS = 3.6e6  # no deadline passes here: waiting times are what is measured
_THRESHOLD = 0.5
_UNSURE, _SURE = 0.0, 1.0


class _Timer:
    """The handle that `call_later` returns."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Time:
    """As much of an event loop as the router and its workers need, in virtual nanoseconds: far less work a row than an
    asyncio loop, which matters for millions of rows."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._soon: list[Callable[[], None]] = []
        self._timers: list[tuple[int, int, _Timer, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> int:
        """Return nanoseconds since the beginning."""
        return self.now_ns

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` at the end of this turn."""
        self._soon.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> _Timer:
        """Call `callback` `delay_s` seconds from now."""
        timer = _Timer()
        self._count += 1
        heapq.heappush(self._timers, (self.now_ns + round(delay_s * _SECOND_NS), self._count, timer, callback))
        return timer

    def turn(self) -> None:
        """Call what is due in this turn."""
        while self._soon:
            soon, self._soon = self._soon, []
            for callback in soon:
                callback()

    def until(self, at_ns: int) -> None:
        """Let time pass up to `at_ns`, calling everything that falls due before it."""
        timers = self._timers
        while timers and timers[0][0] < at_ns:
            self.now_ns, _, timer, callback = heapq.heappop(timers)
            if not timer.cancelled:
                callback()
                self.turn()
        self.now_ns = at_ns


@dataclass(frozen=True)
class RowLatencies:
    """What became of the rows after the warm-up: `latency_ms` in order of arrival, and the part of them that reached
    each stage."""

    latency_ms: Floats
    reach: tuple[float, ...]


def play(
    stages: Sequence[Sequence[Service]],
    rate: float,
    reach: Sequence[float],
    *,
    rows: int,
    warm_up: int,
    seed: int = 0,
    wait_ms: float = 0.0,
) -> RowLatencies:
    """Play Poisson arrivals of single rows at `rate` a second, `warm_up` and then `rows` of them.  `stages`: the
    workers of each variant of the chain; `reach`: the part of the rows that each stage is asked for, drawn row by row;
    `wait_ms`: how long rows may wait at the first stage.  RuntimeError if a row was not answered: every stage must be
    stable."""
    time, rng = Time(), random.Random(seed)
    names = tuple(f"stage{at}" for at in range(len(stages)))
    largest = max(service.max_batch for workers in stages for service in workers)
    spec = _family(names, largest)
    slab = Slab.create(Layout(spec, _SLOTS))
    try:
        config = FamilyConfig(family=spec.name, timeout_ms=_TIMEOUT_MS)
        loop = cast("Any", time)  # it has what the router calls
        router = Router(spec, slab, _SLOTS, config, None, Account(pue=1.0), loop=loop, clock=time.clock)
        entries: list[Entry] = []
        for at, workers in enumerate(stages):
            part = reach[at + 1] / max(reach[at], 1e-12) if at + 1 < len(stages) else 0.0
            score = partial(_score, slab, rng, part)
            for service in workers:
                worker = SimulatedWorker(
                    len(entries) + 1,
                    service,
                    Slice(),
                    clock=time.clock,
                    later=time.call_later,
                    reap=router.reap,
                    rng=rng,
                    score=score,
                )
                place = f"place{worker.pid}"
                meter = WorkerMeter(family=spec.name, variant=names[at], device="none", placement=place, slices=1)
                entries.append((worker, at, service.max_batch, meter))
        chain = names if len(names) > 1 else ()
        routing = Routing(
            shares={names[0]: 1.0},
            wait_ms={names[0]: wait_ms},
            chain=chain,
            thresholds=(_THRESHOLD,) * (len(names) - 1),
        )
        router.route(entries, routing)
        return _offered(time, router, rate, rows, warm_up, seed + 1, len(stages))
    finally:
        slab.close()


def _offered(time: Time, router: Router, rate: float, rows: int, warm_up: int, seed: int, stages: int) -> RowLatencies:
    due_ns = np.cumsum(np.random.default_rng(seed).exponential(_SECOND_NS / rate, rows + warm_up)).astype(np.int64)
    latency_ms = np.full(rows + warm_up, np.nan)
    asked = np.zeros(stages, np.int64)

    def done(ticket: RouterTicket) -> None:
        number: int = ticket.context
        if ticket.status == 200:
            latency_ms[number] = (ticket.done_ns - ticket.arrival_ns) / 1e6
            if number >= warm_up:
                asked[: 1 + len(ticket.paths.get(0, ()))] += 1
        router.close(ticket)

    on_done = cast("Any", done)
    for number, at_ns in enumerate(due_ns.tolist()):
        time.until(at_ns)
        router.submit(router.open(1), on_done, context=number)
        time.turn()
    while not router.idle:
        time.until(time.now_ns + _SECOND_NS)
    router.stop()
    if np.isnan(latency_ms).any():
        raise RuntimeError("a row was not answered")
    return RowLatencies(latency_ms[warm_up:], tuple((asked / rows).tolist()))


def _score(slab: Slab, rng: random.Random, part: float, slots: NDArray[np.uint32]) -> None:
    """Write scores that send a row on with probability `part`."""
    slab.score[slots] = [_UNSURE if rng.random() < part else _SURE for _ in slots]


def _family(names: Sequence[str], largest: int) -> FamilySpec:
    number = TensorSpec(name="x", datatype="FP32", shape=(1,))
    return FamilySpec(
        name="rows",
        inputs=(number,),
        outputs=(number,),
        variants=tuple(
            VariantSpec(
                name=name,
                loader="none:none",
                accuracy=PublishedAccuracy(value=50.0 + at, metric="none", source="made up"),
            )
            for at, name in enumerate(names)
        ),
        max_batch=largest,
    )
