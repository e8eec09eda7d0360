"""A request whose variant loses its last worker while the request is being taken in: its rows go where those that were
queued just before go."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from clover.errors import Overloaded
from clover.runtime.router.lane_pace import ProfiledPace
from tests.support.router_fixture import MS, FakeWorker, House

SMALL, MEDIUM, LARGE = range(3)


class LostInSubmission:
    """Two variants with a worker each and rows that wait for both.  Half of each request's rows are for either; looking
    whether the first half is answered in time finds that the second variant's worker broke its ring.  As the fleet
    does, that worker is let go at once, and its end is heard of only when it is dead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lanes: int) -> None:
        self.house = house = House(slots=64)
        self.first, self.large = house.route(*lanes, shares=(0.5, 0.5, 0.5))
        house.router.expect_pace({lane: ProfiledPace(100.0, 0.04, 4) for lane in range(3)})
        house.router.lost = self.lose  # type: ignore[assignment]
        self.killed: list[FakeWorker] = []
        self.before = [house.ask(8, timeout_ns=500 * MS) for _ in range(3)]
        assert house.router.state.batcher.depth() == 8
        self.meanwhile: Callable[[], None] = lambda: None
        monkeypatch.setattr(os, "sched_yield", self.work)
        house.loop.now_ns += MS

    def work(self) -> None:
        """Let the first worker complete a batch, and the second one write nonsense into its ring."""
        self.meanwhile()
        if not self.killed:
            self.first.finish(self.house.loop.now_ns)
            self.large.ring.completions.append((999, 0, 1, 0, 0, 0))

    def lose(self, worker: FakeWorker, reason: str) -> None:
        self.killed.append(worker)
        self.house.router.leave(worker, lambda: None)

    def serve(self, *workers: FakeWorker) -> None:
        self.house.loop.turn()
        while any(worker.ring.batches for worker in workers):
            for worker in workers:
                if worker.ring.batches:
                    self.house.complete(worker)
            self.house.loop.turn()


@pytest.mark.parametrize(("stays", "accuracy"), [(SMALL, 0.0), (MEDIUM, 82.0)])
def test_a_request_that_loses_a_lane_while_it_is_submitted_is_served_by_another(
    monkeypatch: pytest.MonkeyPatch, stays: int, accuracy: float
) -> None:
    lost = LostInSubmission(monkeypatch, stays, LARGE)
    house = lost.house
    ticket = house.ask(4, turn=False, timeout_ns=130 * MS, min_accuracy=accuracy)
    assert lost.killed == [lost.large], "the rows for both had been chosen by then"
    lost.serve(lost.first)
    assert ticket.status == 200, "and not only once the other worker is dead"
    assert set(ticket.variants) == {stays}
    house.router.died(lost.large, "killed by SIGKILL")  # type: ignore[arg-type]
    lost.serve(lost.first)
    assert [old.status for old in lost.before] == [200] * 3
    house.check_slots()


def test_one_that_loses_all_its_lanes_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = LostInSubmission(monkeypatch, MEDIUM, LARGE)
    house = lost.house
    lost.meanwhile = lambda: lost.first.ring.completions.append((998, 0, 1, 0, 0, 0))
    ticket = house.router.open(4)
    with pytest.raises(Overloaded):
        house.router.submit(ticket, print, timeout_ns=130 * MS)
    assert lost.killed == [lost.first, lost.large]
    house.router.close(ticket)
    house.check_slots()


def test_rows_that_wait_for_a_worker_to_come_are_not_looked_through_for_each_request() -> None:
    house = House(slots=64)
    house.router.expect_workers([SMALL])
    tickets = [house.ask(2, turn=False) for _ in range(3)]
    assert not house.router.state.stranded, "no lane was lost: none was there"
    (worker,) = house.route(SMALL)
    house.loop.turn()
    while worker.ring.batches:
        house.complete(worker)
        house.loop.turn()
    assert [ticket.status for ticket in tickets] == [200] * 3
    house.check_slots()
