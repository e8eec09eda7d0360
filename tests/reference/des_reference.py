"""A plain discrete-event simulation of one family: Poisson rows, quota dealing, lanes, credits, batches, turns.

Written apart from `clover.planning.model.queueing` and in the most literal way (one event list, objects, one row at a
time), so that agreement means something.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class SimulatedWorker:
    """`seconds(b)` is the mean service of b rows."""

    seconds: Callable[[float], float]
    max_batch: int
    cv: float = 0.0
    running: list[float] = field(default_factory=list)
    staged: list[float] = field(default_factory=list)

    @property
    def outstanding(self) -> int:
        return bool(self.running) + bool(self.staged)


@dataclass
class Lane:
    share: float
    workers: list[SimulatedWorker]
    queue: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    owed: float = 0.0
    turn: int = 0


def simulate(lanes: list[Lane], rate: float, rows: int, seed: int, warm_up: int = 500) -> list[float]:
    """Return all latencies (seconds) of `rows` rows; each lane keeps its own and the sizes of its batches."""
    rng = random.Random(seed)
    events: list[tuple[float, int, Lane | None, SimulatedWorker | None]] = []
    ticket = itertools.count()
    everything: list[float] = []
    heapq.heappush(events, (rng.expovariate(rate), next(ticket), None, None))
    arrived = finished = 0

    def begin(lane: Lane, worker: SimulatedWorker, batch: list[float], now: float) -> None:
        worker.running = batch
        lane.batches.append(len(batch))
        factor = max(0.2, rng.gauss(1.0, worker.cv)) if worker.cv else 1.0
        heapq.heappush(events, (now + worker.seconds(len(batch)) * factor, next(ticket), lane, worker))

    def dispatch(lane: Lane, now: float) -> None:
        while lane.queue:
            free = [worker for worker in lane.workers if worker.outstanding < 2]
            if not free:
                return
            size = len(lane.workers)
            worker = min(free, key=lambda w: (w.outstanding, (lane.workers.index(w) - lane.turn) % size))
            lane.turn = lane.workers.index(worker) + 1
            batch, lane.queue = lane.queue[: worker.max_batch], lane.queue[worker.max_batch :]
            if worker.running:
                worker.staged = batch
            else:
                begin(lane, worker, batch, now)

    while events:
        now, _, lane, worker = heapq.heappop(events)
        if lane is None or worker is None:
            arrived += 1
            for candidate in lanes:
                candidate.owed += candidate.share
            chosen = max(lanes, key=lambda candidate: candidate.owed)
            chosen.owed -= 1.0
            chosen.queue.append(now)
            dispatch(chosen, now)
            if arrived < rows + warm_up:
                heapq.heappush(events, (now + rng.expovariate(rate), next(ticket), None, None))
            continue
        for arrival in worker.running:
            finished += 1
            if finished > warm_up:
                lane.latencies.append(now - arrival)
                everything.append(now - arrival)
        worker.running = []
        if worker.staged:
            batch, worker.staged = worker.staged, []
            begin(lane, worker, batch, now)
        dispatch(lane, now)
    return everything


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
