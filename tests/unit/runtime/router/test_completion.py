"""What a worker says of a batch is believed only as far as it can be true."""

from __future__ import annotations

from tests.support.router_fixture import MS, House


def test_batches_that_a_worker_holds_at_once_are_not_busy_at_once() -> None:
    house = House()
    (worker,) = house.route(0)
    for _ in range(2):
        house.ask(4)
    assert len(worker.ring.batches) == 2
    house.loop.now_ns += 10 * MS
    for _ in range(2):  # each of them all of the time, and more CPU time than there was
        number, slots = worker.ring.batches.pop(0)
        worker.ring.completions.append((number, 0, len(slots), 0, 1 << 62, 1 << 62))
    house.router.reap()
    assert sum(ticket.compute_ns for ticket in house.done) == 10 * MS
    assert sum(ticket.energy_j for ticket in house.done) <= 8.0 * 0.031
