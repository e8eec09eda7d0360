"""The router under bursts: cheaper workers that stand by take what the plan's workers cannot serve in time."""

from __future__ import annotations

from typing import Any

import pytest

from clover.runtime.router.relief import MEASURED_NS, StandbyWorkers
from tests.support.router_fixture import MS, SECOND, FakeWorker, House, dealt

SMALL, LARGE = 0, 2


class Relieved(House):
    """A worker of the large variant, and a small one that stands by: 100 rows/s, relief beyond 20 ms (two rows)."""

    def __init__(self, **config: Any) -> None:
        super().__init__(slots=64, **config)
        self.plan, self.standby = self.entry(LARGE), self.entry(SMALL)
        self.large: FakeWorker = self.plan[0]
        self.small: FakeWorker = self.standby[0]
        self.router.route([self.plan], dealt(0.0, 0.0, 1.0), self.stands_by())

    def stands_by(self, *entries: Any) -> StandbyWorkers:
        return StandbyWorkers(
            lane=SMALL, entries=entries or (self.standby,), longest_wait_ns=20 * MS, rates=(0.0, 0.0, 100.0)
        )

    def burst(self, rows: int = 4) -> None:
        """Two batches are with the large worker; from then on rows wait."""
        for _ in range(rows):
            self.ask()

    def serve(self) -> None:
        """Every worker finishes what it holds, again and again."""
        while self.large.ring.batches or self.small.ring.batches:
            for worker in (self.large, self.small):
                while worker.ring.batches:
                    self.complete(worker)

    @property
    def relief(self) -> bool:
        return bool(self.router.observe()["relief"])


def sent(worker: FakeWorker) -> list[int]:
    return [len(slots) for _, slots in worker.ring.batches]


def test_who_stands_by_gets_nothing_in_calm() -> None:
    house = Relieved()
    house.burst(2)
    assert (sent(house.large), sent(house.small)) == ([1, 1], [])
    assert not house.relief
    assert house.router.traffic.reliefs == 0


def test_rows_that_would_wait_too_long_and_all_that_come_go_to_relief() -> None:
    house = Relieved()
    house.burst(3)  # three rows at 100 a second: 30 ms
    assert house.relief
    assert (sent(house.large), sent(house.small)) == ([1, 1], [1])
    house.burst(2)
    assert sent(house.small) == [1, 1], "and one waits, for it has two credits"
    house.serve()
    assert [ticket.variants for ticket in house.done].count([SMALL]) == 3
    assert house.router.traffic.relieved_rows == 3
    assert house.router.traffic.reliefs == 1
    house.check_slots()


def test_the_burst_over_all_is_as_before() -> None:
    house = Relieved()
    house.burst(3)
    house.serve()
    house.loop.advance(MEASURED_NS)
    house.ask()  # the turn that sees it was still dealt as in a burst
    assert not house.relief
    house.serve()
    house.ask()
    assert (sent(house.large), sent(house.small)) == ([1], [])
    house.serve()
    house.check_slots()


def test_it_stays_while_as_much_comes() -> None:
    house = Relieved()
    house.burst(3)
    for _ in range(10):
        house.loop.advance(MEASURED_NS // 30)  # 120 rows a second
        house.ask()
        house.serve()
    for _ in range(20):
        house.loop.advance(MEASURED_NS // 30)
        house.ask()
        house.serve()
    assert house.relief


def test_rows_for_which_it_is_not_good_enough_wait_for_the_plan() -> None:
    house = Relieved()
    house.burst(2)
    picky = house.ask(min_accuracy=90.0)
    assert house.relief
    assert sent(house.small) == []
    assert picky.variants == [LARGE]
    house.complete(house.large)
    assert sent(house.large) == [1, 1]


def test_a_request_of_many_rows_moves_as_well() -> None:
    house = Relieved()
    house.burst(2)
    ticket = house.ask(8)
    assert house.relief
    assert ticket.variants == [SMALL] * 8
    assert sent(house.small) == [4, 4]
    house.serve()
    assert ticket.status == 200
    house.check_slots()


def test_death_of_the_last_that_stands_by_ends_relief_and_loses_nothing() -> None:
    house = Relieved()
    house.burst(5)
    assert house.relief
    house.router.died(house.small, "killed")
    assert "relief" not in house.router.observe()
    for _ in range(10):
        house.serve()
    assert len(house.done) == 5
    assert {ticket.status for ticket in house.done} == {200}
    assert {tuple(ticket.variants) for ticket in house.done} == {(LARGE,)}
    house.burst(4)
    assert sent(house.large) == [1, 1], "the dead are not called"
    house.check_slots()


def test_one_that_leaves_while_it_stands_by_is_not_called() -> None:
    house = Relieved()
    left: list[bool] = []
    house.router.leave(house.small, lambda: left.append(True))
    assert left == [True]
    house.burst(5)
    assert sent(house.small) == []


def test_a_new_route_in_a_burst_keeps_relief_on() -> None:
    house = Relieved()
    house.burst(3)
    other = house.entry(LARGE)
    house.router.route([other], dealt(0.0, 0.0, 1.0), house.stands_by())
    assert house.relief
    house.ask()
    assert sent(house.small) == [1, 1]
    assert sent(other[0]) == []
    house.serve()
    assert len(house.done) == 4


def test_others_that_stand_by_take_over_in_a_burst() -> None:
    house = Relieved()
    house.burst(3)
    second = house.entry(SMALL)
    house.router.set_standby(house.stands_by(house.standby, second))
    house.ask()
    house.ask()
    assert sum(map(len, (house.small.ring.batches, second[0].ring.batches))) == 3
    house.router.set_standby(None)
    assert "relief" not in house.router.observe()
    for worker in (house.small, second[0]):
        while worker.ring.batches:
            house.complete(worker)
    house.serve()
    assert len(house.done) == 5
    house.check_slots()


def test_a_respawned_worker_joins_without_those_that_stand_by() -> None:
    house = Relieved()
    house.burst(3)
    house.router.join(house.entry(LARGE))
    assert house.relief
    house.serve()
    house.loop.advance(SECOND)
    house.ask()
    assert not house.relief
    assert [link.worker.pid for link in house.router.state.lanes.links if link.attached] == [1, 3]


@pytest.mark.parametrize("rate", [50.0, 400.0])
def test_what_the_plan_serves_decides(rate: float) -> None:
    house = Relieved()
    standby = StandbyWorkers(lane=SMALL, entries=(house.standby,), longest_wait_ns=20 * MS, rates=(0.0, 0.0, rate))
    house.router.set_standby(standby)
    house.burst(4)
    assert house.relief == (rate == 50.0)


def test_a_lane_of_the_plan_in_the_same_process_relieves() -> None:
    """No new link: the shares alone change, and change back."""
    house = Relieved()
    small, large = house.shared(SMALL, LARGE)
    stands_by = StandbyWorkers(lane=SMALL, entries=(), longest_wait_ns=20 * MS, rates=(500.0, 0.0, 100.0))
    house.router.route([small, large], dealt(0.0, 0.0, 1.0), stands_by)
    lanes = house.router.state.lanes
    links = len(lanes.links)
    house.burst(3)
    assert house.relief
    assert len(lanes.links) == links
    assert house.ask().variants == [SMALL]
    worker = small[0]
    while worker.ring.batches:
        house.complete(worker)
    house.loop.advance(MEASURED_NS)
    house.ask()
    assert not house.relief
    assert house.ask().variants == [LARGE]
    house.router.route([house.plan], dealt(0.0, 0.0, 1.0), stands_by)
    assert "relief" not in house.router.observe(), "no process has both"


def test_lanes_of_other_workers_do_not_add_to_a_wait() -> None:
    """Three rows of 5 ms for each lane: 15 ms for one worker each, 30 ms for one with both."""
    for plan, relief in (((SMALL, 1), (LARGE,)), False), (((SMALL, LARGE), (1,)), True):
        house = House(slots=64)
        entries = [entry for lanes in plan for entry in house.shared(*lanes)]
        rates = (200.0, 200.0, 200.0)
        standby = StandbyWorkers(lane=1, entries=(house.entry(1),), longest_wait_ns=16 * MS, rates=rates)
        house.router.route(entries, dealt(1.0, 0.0, 1.0), standby)
        for _ in range(6):
            house.ask()
        assert bool(house.router.observe()["relief"]) == relief


def test_who_answers_audits_besides_does_so_again_after_relief() -> None:
    house = Relieved()
    house.router.set_background([house.standby])
    lanes = house.router.state.lanes
    (link,) = (link for link in lanes.links if link.lane == SMALL)
    most = house.router.state.batcher.most
    assert (lanes.live, lanes.asked, most(link.index)) == (0b100, 0b101, 1)
    house.burst(3)
    assert house.relief
    assert (lanes.live, most(link.index)) == (0b101, 4)
    house.router.route([house.plan], dealt(0.0, 0.0, 1.0), house.stands_by())
    assert (lanes.live, most(link.index)) == (0b101, 4)
    house.router.set_standby(None)
    assert (lanes.live, lanes.asked, most(link.index)) == (0b100, 0b101, 1)
    house.router.set_background([])
    assert lanes.asked == 0b100
    house.serve()
    house.check_slots()
