"""Twin of `clover._native.batcher`: one list of waiting rows, searched and sorted again for every question."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.reference import worker_groups
from tests.reference.pairing_heap import Row, in_order
from tests.reference.worker_groups import Group, Worker


@dataclass
class Lane:
    delay_ns: int
    max_batch: int = 0
    turn: int = 0
    clock: int = 0
    expected_ns: int = 0
    passed: int = 0


UNIT = 1 << 16
HEAVY = 36
PATIENCE = 8


def weight(client: int) -> int:
    """Return how many rows a round a client is served."""
    return max(client >> 40, 1)


class Batcher:
    def __init__(self, lanes: int, workers: int, capacity: int, max_queue_delay_ns: int = 0, slots: int = 0) -> None:
        if lanes < 1 or workers < 1 or capacity < 1 or slots < 0 or max_queue_delay_ns < 0:
            raise ValueError("sizes")
        self.capacity = capacity
        self.max_queue_delay_ns = max_queue_delay_ns
        self._slots = slots or capacity
        self._rows: dict[int, Row] = {}
        self._last: dict[int, tuple[int, float]] = {}  # the lane and rank that a slot had last
        self._ranks: dict[tuple[int, int], int] = {}  # of the next row of a flow, unless the clock is later
        self._weights: dict[int, int] = {}  # by slot: as how many rows one counts
        self._dropped: list[int] = []
        self._workers = [Worker(index) for index in range(workers)]
        self._groups = [Group() for _ in range(workers)]
        self._lanes = [Lane(max_queue_delay_ns) for _ in range(lanes)]
        self.patient = True
        self._order = 0

    # --- rows in and out ---

    def weigh(self, slot: int, weight: int) -> None:
        self._named(0, [slot])
        self._weights[slot] = min(max(weight, 1), 1024)

    def _step(self, slot: int, weight: int) -> int:
        return UNIT * self._weights.get(slot, 1) // weight

    def push(self, lane: int, slot: int, deadline_ns: int, now_ns: int, key: int = 0, client: int = 0) -> bool:
        return self.push_many(lane, [slot], deadline_ns, now_ns, key, client)

    def push_many(
        self, lane: int, slots: Iterable[int], deadline_ns: int, now_ns: int, key: int = 0, client: int = 0
    ) -> bool:
        named = self._named(lane, slots)
        if len(self._rows) + len(named) > self.capacity:
            return False
        for slot in named:
            self._insert(lane, slot, deadline_ns, now_ns, key, client)
        return True

    def requeue(
        self, lane: int, slots: Iterable[int], deadline_ns: int, now_ns: int, key: int = 0, client: int = 0
    ) -> None:
        for slot in self._named(lane, slots):
            self._insert(lane, slot, deadline_ns, float("-inf"), key, client)

    def _named(self, lane: int, slots: Iterable[int]) -> list[int]:
        named = [int(slot) for slot in slots]
        self._check(lane, len(self._lanes))
        for slot in named:
            self._check(slot, self._slots)
        if len(set(named)) < len(named) or any(slot in self._rows or slot in self._dropped for slot in named):
            raise ValueError("a slot is queued already")
        return named

    def _insert(self, lane: int, slot: int, deadline_ns: int, since_ns: float, key: int, client: int) -> None:
        rank = self._rank(lane, slot, client, again=since_ns < 0)
        self._rows[slot] = Row(lane, slot, key, client, rank, deadline_ns, since_ns, self._order)
        self._last[slot] = lane, rank
        self._order += 1

    def _rank(self, lane: int, slot: int, client: int, *, again: bool) -> float:
        if client < 0:
            return math.inf
        last_lane, last_rank = self._last.get(slot, (-1, math.inf))
        if again and last_lane == lane and last_rank < math.inf:
            self._ranks.setdefault((lane, client), self._lanes[lane].clock)
            return last_rank
        rank = max(self._lanes[lane].clock, self._ranks.get((lane, client), 0))
        self._ranks[lane, client] = int(rank) + self._step(slot, weight(client))
        return rank

    def _flows(self, lane: int) -> set[int]:
        """Return the clients that have rows waiting in `lane`."""
        return {row.client for row in self._rows.values() if row.lane == lane and row.client >= 0}

    def _remove(self, row: Row, *, served: bool) -> None:
        lane, client = row.lane, row.client
        if served and client >= 0:
            clock = self._lanes[lane].clock + self._step(row.slot, sum(map(weight, self._flows(lane))))
            self._lanes[lane].clock = max(clock, int(row.rank))
        del self._rows[row.slot]
        if client >= 0 and client not in self._flows(lane):
            del self._ranks[lane, client]
        elif client >= 0 and not served:
            self._ranks[lane, client] -= self._step(row.slot, weight(client))

    def cancel(self, slot: int) -> bool:
        self._check(slot, self._slots)
        row = self._rows.get(slot)
        if row is not None:
            self._remove(row, served=False)
        return row is not None

    @property
    def dropped(self) -> int:
        return len(self._dropped)

    def take_dropped(self) -> list[int]:
        dropped, self._dropped = self._dropped[::-1], []
        return dropped

    # --- workers and batches ---

    def set_lane(self, lane: int, max_batch: int, delay_ns: int) -> None:
        self._check(lane, len(self._lanes))
        if max_batch < 0 or delay_ns < 0:
            raise ValueError("negative")
        self._lanes[lane].max_batch, self._lanes[lane].delay_ns = max_batch, delay_ns

    def attach(self, worker: int, lane: int, max_batch: int, credits: int = 2, group: int = -1) -> None:
        self._check(worker, len(self._workers))
        self._check(lane, len(self._lanes))
        if self._workers[worker].lane is not None or max_batch < 1 or not 1 <= credits < 1 << 15:
            raise ValueError("attached already, or not positive, or too many")
        into = group if group != -1 else worker
        self._check(into, len(self._workers))
        worker_groups.join_group(self._groups, self._workers, worker, lane, into, credits, alone=group == -1)
        self._workers[worker].lane, self._workers[worker].max_batch = lane, max_batch

    def detach(self, worker: int) -> None:
        self._check(worker, len(self._workers))
        lane = self._workers[worker].lane
        if lane is None:
            raise ValueError("not attached")
        self._lanes[lane].passed = 0
        self._workers[worker].lane = None

    def _members(self, group: int) -> list[Worker]:
        return worker_groups.members(self._workers, group)

    def _out(self, group: int) -> int:
        return worker_groups.out(self._workers, group)

    def expect(self, lane: int, expected_ns: int) -> None:
        self._check(lane, len(self._lanes))
        self._lanes[lane].expected_ns = max(expected_ns, 0)

    def _free(self, lane: int) -> list[Worker]:
        serving = [worker for worker in self._workers if worker.lane == lane]
        return [worker for worker in serving if worker_groups.has_credit(self._groups, self._workers, worker)]

    def _waiting(self, lane: int, key: int) -> list[Row]:
        return in_order(row for row in self._rows.values() if (row.lane, row.key) == (lane, key))

    def _most(self, worker: Worker, lane: int) -> int:
        """Return how many rows a batch of that worker of that lane holds."""
        return min(worker.max_batch, self._lanes[lane].max_batch or worker.max_batch)

    def _ripe_ns(self, row: Row) -> float:
        """Return when rows of this row's lane and key have waited enough; minus infinity if they need not wait."""
        rows = self._waiting(row.lane, row.key)
        ends_ns = min(r.since_ns for r in rows) + self._lanes[row.lane].delay_ns
        done_ns = ends_ns + self._lanes[row.lane].expected_ns
        return float("-inf") if min(r.deadline_ns for r in rows) <= done_ns else ends_ns

    def _ripe(self, row: Row, now_ns: int) -> bool:
        """Return whether rows of this row's lane and key may leave now."""
        free = self._free(row.lane)
        if not free or self._stays(row):
            return False
        full = min(self._most(worker, row.lane) for worker in free)
        delayed = self.patient and self._lanes[row.lane].delay_ns > 0
        return not delayed or self._ripe_ns(row) <= now_ns or len(self._waiting(row.lane, row.key)) >= full

    def _stays(self, row: Row) -> bool:
        """Return whether rows of the background alone are in this row's lane and key, and its workers all have
        batches out."""
        if any(other.rank < math.inf for other in self._waiting(row.lane, row.key)):
            return False
        return all(self._out(worker.group) for worker in self._free(row.lane))

    def _first_in_group(self, row: Row) -> tuple[bool, bool, float, int]:
        """Return a key by which the next rows of the lanes of a group are sorted."""
        return row.rank == math.inf, self._lanes[row.lane].passed < PATIENCE, row.since_ns, row.order

    def _next(self, ripe: list[Row]) -> tuple[Row, Worker]:
        """Return the row that goes first, and the worker that takes it."""
        lane, count = min(row.lane for row in ripe), len(self._workers)
        while True:
            turn = self._lanes[lane].turn
            free = self._free(lane)
            worker = min(free, key=lambda w: (self._out(w.group), (self._workers.index(w) - turn) % count))
            lanes = {member.lane for member in self._members(worker.group)}
            heads = [min((r for r in ripe if r.lane == own), key=lambda r: r.place, default=None) for own in lanes]
            first = min((row for row in heads if row is not None), key=self._first_in_group)
            if first.lane == lane:
                return first, worker
            lane = first.lane

    def _pass_over(self, worker: Worker, now_ns: int) -> None:
        """Count a batch of `worker` at the lanes of its group that have ripe rows of clients too."""
        for member in self._members(worker.group):
            passed = any(
                row.lane == member.lane and row.rank < math.inf and self._ripe(row, now_ns)
                for row in self._rows.values()
            )
            assert member.lane is not None
            if len(self._members(worker.group)) > 1:
                self._lanes[member.lane].passed = self._lanes[member.lane].passed + 1 if passed else 0

    def _done_ns(self, worker: Worker, lane: int, now_ns: int) -> int:
        """Return when a batch that `worker` is given now is done at the earliest."""
        group, out = self._groups[worker.group], self._out(worker.group)
        if not out:
            return now_ns
        begins_ns = now_ns
        if len(self._members(worker.group)) > 1 and out == 1 and group.since_ns:
            begins_ns = max(now_ns, group.since_ns + self._lanes[group.lane].expected_ns)
        return begins_ns + self._lanes[lane].expected_ns

    def dispatch(self, now_ns: int, out: Any) -> tuple[int, int] | None:
        if len(out) == 0:
            raise ValueError("out")
        while ripe := [row for row in self._rows.values() if self._ripe(row, now_ns)]:
            first, worker = self._next(ripe)
            index, group = self._workers.index(worker), self._groups[worker.group]
            most = min(self._most(worker, first.lane), len(out))
            too_early_ns = self._done_ns(worker, first.lane, now_ns)
            n = beyond = 0
            for row in self._waiting(first.lane, first.key):
                late = row.deadline_ns <= too_early_ns
                beyond += 0 if late else self._weights.get(row.slot, 1) - 1
                if n == most or (n and beyond > HEAVY):
                    break
                self._remove(row, served=not late)
                if late:
                    self._dropped.append(row.slot)
                else:
                    out[n] = row.slot
                    n += 1
            if n:
                if not self._out(worker.group):
                    group.since_ns = now_ns
                group.lane = first.lane
                self._pass_over(worker, now_ns)
                self._lanes[first.lane].passed = 0
                worker.outstanding += 1
                self._lanes[first.lane].turn = (index + 1) % len(self._workers)
                return index, n
        return None

    def claim(self, worker: int, now_ns: int) -> bool:
        self._check(worker, len(self._workers))
        found = self._workers[worker]
        if found.lane is None or self._out(found.group):
            return False
        found.outstanding += 1
        self._groups[found.group].lane, self._groups[found.group].since_ns = found.lane, now_ns
        return True

    def credit(self, worker: int, now_ns: int = 0) -> None:
        self._check(worker, len(self._workers))
        if self._workers[worker].outstanding == 0:
            raise ValueError("no batch out")
        self._workers[worker].outstanding -= 1
        self._groups[self._workers[worker].group].since_ns = now_ns

    def outstanding(self, worker: int) -> int:
        self._check(worker, len(self._workers))
        return self._workers[worker].outstanding

    # --- questions ---

    def next_event_ns(self, now_ns: int) -> int:
        events = []
        for row in self._rows.values():
            free = self._free(row.lane)
            if self._lanes[row.lane].delay_ns and free and not self._stays(row):
                full = min(self._most(worker, row.lane) for worker in free)
                waiting = len(self._waiting(row.lane, row.key))
                ripe = waiting >= full or not self.patient
                events.append(now_ns if ripe else int(max(self._ripe_ns(row), now_ns)))
        return max(min(events), now_ns) if events else 0

    def saturated(self, lane: int) -> bool:
        return self.depth(lane) > 0 and self.lane_has_worker(lane) and not self._free(lane)

    def most(self, worker: int) -> int:
        self._check(worker, len(self._workers))
        found = self._workers[worker]
        assert found.lane is not None
        return self._most(found, found.lane)

    def rows_ahead(self, lane: int, client: int, rows: int) -> int:
        self._check(lane, len(self._lanes))
        own = rows + sum(row.lane == lane and row.client == client >= 0 for row in self._rows.values())
        others = self.depth(lane) + rows - own
        if own > 1:
            others = 2 * others + own
        rest = sum(map(weight, self._flows(lane) - {client}))
        return own + min(others, math.ceil(own * rest / weight(client)))

    def waiting_of(self, client: int) -> int:
        return sum(row.client == client >= 0 for row in self._rows.values())

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
