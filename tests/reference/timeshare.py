"""Twin of `clover._native.timeshare`: the same events, an object a process, a list a queue."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.reference.random import Random
from tests.reference.route import Quota

CREDITS = 2


@dataclass
class Outcome:
    latency_s: Any
    rows: Any
    batches: Any
    energy_j: Any


@dataclass(eq=False)
class Process:
    services: dict[int, int]
    """By lane."""
    held: list[tuple[int, list[int]]] = field(default_factory=list)
    """Lane and rows of its batches, the running one first."""
    end_s: float = math.inf


def play(
    service_s: Any,
    lanes: Any,
    kinds: Any,
    counts: Any,
    times_s: Any,
    *,
    cv: Any,
    energy_j: Any,
    largest: Any,
    shares: Any = None,
    last: Any = None,
    wait_s: Any = None,
    warm_up: int = 0,
    seed: int = 0,
) -> Outcome:
    check(service_s, lanes, kinds, counts, times_s, cv, energy_j, largest)
    width, rows = max(lanes) + 1, len(times_s)
    if (shares is None) == (last is None) or not 0 <= warm_up < rows:
        raise ValueError("shares, last or warm_up")
    if last is not None and (len(last) != rows or min(last) < 0 or max(last) >= width):
        raise ValueError("last")
    waits = [0.0] * width if wait_s is None else [float(own) for own in wait_s]
    if len(waits) != width or not all(0 <= own < math.inf for own in waits):
        raise ValueError("wait_s")
    quota = Quota(width)
    if shares is not None:
        quota.set_shares(shares)
    own = [
        {lane: at for at, (lane, of) in enumerate(zip(lanes, kinds, strict=True)) if of == kind}
        for kind in range(len(counts))
    ]
    processes = [Process(own[kind]) for kind, count in enumerate(counts) for _ in range(count)]
    queues: list[list[int]] = [[] for _ in range(width)]
    cursors = [0] * width
    serving = Random(seed, 1)
    since, latency_s = [0.0] * rows, np.zeros(rows)
    served, batches = np.zeros(len(lanes), np.int64), np.zeros(len(lanes), np.int64)
    spent_j = np.zeros(len(lanes))

    def enter(lane: int, row: int, now: float) -> None:
        since[row] = now
        queues[lane].append(row)

    def begin(process: Process, now: float) -> None:
        lane, batch = process.held[0]
        service = process.services[lane]
        factor = max(1.0 + cv[service] * serving.normal(), 0.2) if cv[service] > 0 else 1.0
        process.end_s = now + service_s[service][len(batch) - 1] * factor
        measured = sum(row >= warm_up for row in batch)
        served[service] += measured
        batches[service] += measured > 0
        spent_j[service] += energy_j[service][len(batch) - 1] * measured / len(batch)

    def finish(process: Process) -> None:
        now = process.end_s
        lane, batch = process.held.pop(0)
        for row in batch:
            if last is not None and lane < last[row]:
                enter(lane + 1, row, now)
            else:
                latency_s[row] = now - times_s[row]
        process.end_s = math.inf
        if process.held:
            begin(process, now)

    def able(lane: int) -> list[int]:
        return [at for at, own in enumerate(processes) if lane in own.services and len(own.held) < CREDITS]

    def ripe(lane: int, now: float) -> bool:
        if waits[lane] == 0 or since[queues[lane][0]] + waits[lane] <= now:
            return True
        full: int = min(largest[processes[at].services[lane]] for at in able(lane))
        return len(queues[lane]) >= full

    def hand_out(now: float) -> None:
        while True:
            ready = [lane for lane in range(width) if queues[lane] and able(lane) and ripe(lane, now)]
            if not ready:
                return
            lane = min(ready, key=lambda lane: since[queues[lane][0]])
            at = min(
                able(lane), key=lambda at: (len(processes[at].held), (at - cursors[lane]) % len(processes))
            )
            cursors[lane] = (at + 1) % len(processes)
            most = largest[processes[at].services[lane]]
            batch, queues[lane] = queues[lane][:most], queues[lane][most:]
            processes[at].held.append((lane, batch))
            if len(processes[at].held) == 1:
                begin(processes[at], now)

    row = 0
    while True:
        ending = min(processes, key=lambda own: own.end_s)
        comes = times_s[row] if row < rows else math.inf
        due = [since[queues[at][0]] + waits[at] for at in range(width) if waits[at] > 0 and queues[at] and able(at)]
        soonest = min(due, default=math.inf)
        if soonest < ending.end_s and soonest < comes:
            hand_out(soonest)
        elif comes < ending.end_s:
            enter(0 if last is not None or width == 1 else quota.choose(2**width - 1), row, comes)
            row += 1
            hand_out(comes)
        elif ending.end_s < math.inf:
            now = ending.end_s
            finish(ending)
            hand_out(now)
        else:
            return Outcome(latency_s[warm_up:], served, batches, spent_j)


def check(
    service_s: Any, lanes: Any, kinds: Any, counts: Any, times_s: Any, cv: Any, energy_j: Any, largest: Any
) -> None:
    columns = len(service_s[0]) if len(service_s) else 0
    if not columns or any(len(row) != columns for row in [*service_s, *energy_j]):
        raise ValueError("tables")
    if any(len(values) != len(service_s) for values in (lanes, kinds, cv, energy_j, largest)):
        raise ValueError("one number for each service")
    if not all(0 < value < math.inf for row in service_s for value in row):
        raise ValueError("service_s")
    if not all(math.isfinite(value) for row in energy_j for value in row):
        raise ValueError("energy_j")
    if not all(0 <= value < math.inf for value in cv) or not all(1 <= value <= columns for value in largest):
        raise ValueError("cv or largest")
    if not len(counts) or min(counts) < 1:
        raise ValueError("counts")
    if not all(0 <= lane < 64 for lane in lanes) or not all(0 <= kind < len(counts) for kind in kinds):
        raise ValueError("lanes or kinds")
    if len({*zip(kinds, lanes, strict=True)}) != len(lanes) or len({*lanes}) != max(lanes) + 1:
        raise ValueError("lanes and kinds")
    times = list(times_s)
    if not times or not all(0 <= time < math.inf for time in times) or times != sorted(times):
        raise ValueError("times_s")
