"""Twin of `clover._native.batcher`: one list of waiting rows, searched and sorted again for every question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class Row:
    lane: int
    slot: int
    key: int
    deadline_ns: int
    since_ns: float  # minus infinity for a row that has waited before
    order: int

    @property
    def rank(self) -> tuple[int, int]:
        return self.deadline_ns, self.order


@dataclass
class Lane:
    delay_ns: int
    max_batch: int = 0
    turn: int = 0


@dataclass(eq=False)
class Worker:
    lane: int | None = None
    max_batch: int = 0
    credits: int = 0
    outstanding: int = 0


class Batcher:
    def __init__(self, lanes: int, workers: int, capacity: int, max_queue_delay_ns: int = 0, slots: int = 0) -> None:
        if lanes < 1 or workers < 1 or capacity < 1 or slots < 0 or max_queue_delay_ns < 0:
            raise ValueError("sizes")
        self.capacity = capacity
        self.max_queue_delay_ns = max_queue_delay_ns
        self._slots = slots or capacity
        self._rows: dict[int, Row] = {}
        self._workers = [Worker() for _ in range(workers)]
        self._lanes = [Lane(max_queue_delay_ns) for _ in range(lanes)]
        self._order = 0

    # --- rows in and out ---

    def push(self, lane: int, slot: int, deadline_ns: int, now_ns: int, key: int = 0) -> bool:
        return self.push_many(lane, [slot], deadline_ns, now_ns, key)

    def push_many(self, lane: int, slots: Iterable[int], deadline_ns: int, now_ns: int, key: int = 0) -> bool:
        named = self._named(lane, slots)
        if len(self._rows) + len(named) > self.capacity:
            return False
        self._insert(lane, named, deadline_ns, now_ns, key)
        return True

    def requeue(self, lane: int, slots: Iterable[int], deadline_ns: int, now_ns: int, key: int = 0) -> None:
        self._insert(lane, self._named(lane, slots), deadline_ns, float("-inf"), key)

    def _named(self, lane: int, slots: Iterable[int]) -> list[int]:
        named = [int(slot) for slot in slots]
        self._check(lane, len(self._lanes))
        for slot in named:
            self._check(slot, self._slots)
        if len(set(named)) < len(named) or any(slot in self._rows for slot in named):
            raise ValueError("a slot is queued already")
        return named

    def _insert(self, lane: int, slots: list[int], deadline_ns: int, since_ns: float, key: int) -> None:
        for slot in slots:
            self._rows[slot] = Row(lane, slot, key, deadline_ns, since_ns, self._order)
            self._order += 1

    def cancel(self, slot: int) -> bool:
        self._check(slot, self._slots)
        return self._rows.pop(slot, None) is not None

    def expire(self, now_ns: int, out: Any) -> int:
        if len(out) == 0:
            raise ValueError("out")
        late = sorted((row for row in self._rows.values() if row.deadline_ns <= now_ns), key=lambda row: row.rank)
        return self._move(late[: len(out)], out)

    def _move(self, rows: list[Row], out: Any) -> int:
        for index, row in enumerate(rows):
            out[index] = row.slot
            del self._rows[row.slot]
        return len(rows)

    # --- workers and batches ---

    def set_lane(self, lane: int, max_batch: int, delay_ns: int) -> None:
        self._check(lane, len(self._lanes))
        if max_batch < 0 or delay_ns < 0:
            raise ValueError("negative")
        self._lanes[lane].max_batch, self._lanes[lane].delay_ns = max_batch, delay_ns

    def attach(self, worker: int, lane: int, max_batch: int, credits: int = 2) -> None:
        self._check(worker, len(self._workers))
        self._check(lane, len(self._lanes))
        if self._workers[worker].lane is not None or max_batch < 1 or credits < 1:
            raise ValueError("attached already, or not positive")
        self._workers[worker] = Worker(lane, max_batch, credits)

    def detach(self, worker: int) -> None:
        self._check(worker, len(self._workers))
        if self._workers[worker].lane is None:
            raise ValueError("not attached")
        self._workers[worker].lane = None

    def _free(self, lane: int) -> list[Worker]:
        return [w for w in self._workers if w.lane == lane and w.outstanding < w.credits]

    def _waiting(self, lane: int, key: int) -> list[Row]:
        return sorted((r for r in self._rows.values() if (r.lane, r.key) == (lane, key)), key=lambda row: row.rank)

    def _most(self, worker: Worker, lane: int) -> int:
        """Return how many rows a batch of that worker of that lane holds."""
        return min(worker.max_batch, self._lanes[lane].max_batch or worker.max_batch)

    def _ripe_ns(self, row: Row) -> float:
        """Return when rows of this row's lane and key have waited enough; minus infinity if they need not wait."""
        rows = self._waiting(row.lane, row.key)
        ends_ns = min(r.since_ns for r in rows) + self._lanes[row.lane].delay_ns
        return float("-inf") if min(r.deadline_ns for r in rows) <= ends_ns else ends_ns

    def _ripe(self, row: Row, now_ns: int) -> bool:
        """Return whether rows of this row's lane and key may leave now."""
        free = self._free(row.lane)
        if not free:
            return False
        full = min(self._most(worker, row.lane) for worker in free)
        delayed = self._lanes[row.lane].delay_ns > 0
        return not delayed or self._ripe_ns(row) <= now_ns or len(self._waiting(row.lane, row.key)) >= full

    def dispatch(self, now_ns: int, out: Any) -> tuple[int, int] | None:
        if len(out) == 0:
            raise ValueError("out")
        ripe = [row for row in self._rows.values() if self._ripe(row, now_ns)]
        if not ripe:
            return None
        first = min(ripe, key=lambda row: row.rank)
        turn, count = self._lanes[first.lane].turn, len(self._workers)
        worker = min(self._free(first.lane), key=lambda w: (w.outstanding, (self._workers.index(w) - turn) % count))
        index = self._workers.index(worker)
        n = self._move(self._waiting(first.lane, first.key)[: min(self._most(worker, first.lane), len(out))], out)
        worker.outstanding += 1
        self._lanes[first.lane].turn = (index + 1) % count
        return index, n

    def credit(self, worker: int) -> None:
        self._check(worker, len(self._workers))
        if self._workers[worker].outstanding == 0:
            raise ValueError("no batch out")
        self._workers[worker].outstanding -= 1

    def outstanding(self, worker: int) -> int:
        self._check(worker, len(self._workers))
        return self._workers[worker].outstanding

    # --- questions ---

    def next_event_ns(self, now_ns: int) -> int:
        events = [row.deadline_ns for row in self._rows.values()]
        events += [
            int(max(self._ripe_ns(row), now_ns))
            for row in self._rows.values()
            if self._lanes[row.lane].delay_ns and self._free(row.lane)
        ]
        return max(min(events), now_ns) if events else 0

    def depth(self, lane: int = -1) -> int:
        if lane == -1:
            return len(self._rows)
        self._check(lane, len(self._lanes))
        return sum(row.lane == lane for row in self._rows.values())

    def lane_has_worker(self, lane: int) -> bool:
        self._check(lane, len(self._lanes))
        return any(worker.lane == lane for worker in self._workers)

    @staticmethod
    def _check(index: int, size: int) -> None:
        if not 0 <= index < size:
            raise IndexError(index)
