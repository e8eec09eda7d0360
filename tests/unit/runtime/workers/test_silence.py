"""A worker is taken for stuck after a time in which the server itself ran, and rows wait for the one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.runtime.workers.silence import MOST_BETWEEN_NS, Silence
from clover.types import Routing
from tests.support.examples import examples
from tests.support.fleet_fixture import House, at, in_a_house
from tests.support.router_fixture import SECOND
from tests.support.router_fixture import House as RouterHouse

LIMIT_NS = 30 * SECOND


async def routed(house: House, workers: int = 1) -> Any:
    """Start workers, give the first one a batch, and return its ticket."""
    items = tuple(at(start) for start in range(workers))
    for item in items:
        await house.fleet.spawn(item)
    house.fleet.route(items, Routing(shares={"small": 1.0}))
    ticket = house.router.open(1)
    house.router.submit(ticket, lambda _: None, timeout_ns=1 << 60)
    await house.settle()
    house.fleet.watch()
    return ticket


@in_a_house
async def test_a_server_that_was_stopped_kills_no_worker(house: House) -> None:
    ticket = await routed(house)
    (worker,) = house.started
    house.now_ns += 3600 * SECOND  # with its workers: a frozen container, a machine that slept
    house.fleet.watch()
    assert not worker.killed
    worker.done.append((1, 0, 1, house.now_ns, house.now_ns, 0))
    house.watch_for(1)
    assert ticket.status == 200
    house.watch_for(60)
    assert not worker.killed
    house.router.stop()


@in_a_house
async def test_what_a_worker_completed_while_the_server_was_stopped_counts_before_it_is_judged(house: House) -> None:
    ticket = await routed(house)
    (worker,) = house.started
    house.watch_for(4)
    house.now_ns += 20 * SECOND
    worker.done.append((1, 0, 1, house.now_ns, house.now_ns, 0))
    house.fleet.watch()
    assert not worker.killed
    assert ticket.status == 200
    house.router.stop()


@in_a_house
async def test_rows_that_come_before_a_killed_worker_is_dead_wait_for_the_next_one(house: House) -> None:
    await routed(house)
    (first,) = house.started
    house.watch_for(6)
    assert first.killed
    house.fleet.route((at(0),), Routing(shares={"small": 1.0}))  # a plan that comes in between does not bring it back
    ticket = house.router.open(1)
    house.router.submit(ticket, lambda _: None)
    await house.settle()
    assert first.sent == [1]
    first.die("killed by SIGKILL")
    await house.settle()
    _, second = house.started
    assert len(second.sent) == 2, "the row that it held, alone, and the one that waited"
    for number in second.sent:
        second.done.append((number, 0, 1, house.now_ns, house.now_ns, 0))
    house.router.reap()
    assert ticket.status == 200
    assert not house.router.hold, "it serves"
    house.router.stop()


@in_a_house
async def test_a_worker_that_does_not_die_when_it_is_killed_is_killed_once(house: House) -> None:
    await routed(house)
    (worker,) = house.started
    worker.resident = {"small": 0}
    assert house.fleet.resident(at(0))
    house.watch_for(60)  # it hangs in a driver
    assert worker.killed
    assert [event["what"] for event in house.fleet.events] == ["killed"], "not one event, and line of the log, a second"
    assert not house.fleet.resident(at(0)), "nobody gets it any more"
    left = house.fleet.members.spawned[at(0)].split_off()
    assert left is not None
    assert left.dying, "also one that leaves was killed already"
    house.router.stop()


@settings(max_examples=examples(30))
@given(st.lists(st.one_of(st.floats(0.2, 2.0), st.floats(2.0, 4000.0)), min_size=1, max_size=80))
def test_a_worker_is_stuck_after_so_much_time_in_which_somebody_looked(gaps_s: list[float]) -> None:
    house = RouterHouse()
    house.route(0)
    silence = Silence(house.router, LIMIT_NS, house.loop.clock)
    house.ask(timeout_ns=1 << 60)
    seen_ns = 0
    for gap_s in gaps_s:
        gap_ns = int(gap_s * SECOND)
        house.loop.now_ns += gap_ns
        seen_ns += min(gap_ns, MOST_BETWEEN_NS)
        assert bool(silence.look()) == (seen_ns > LIMIT_NS)


@pytest.mark.parametrize(
    ("stat", "words"),
    [
        ("7 (py) thon) R 1 7", ": it computes, or waits for a core"),
        ("7 (a b) T 1 7", ": it was stopped by a signal"),
        ("7 (a b) Z 1 7", ""),
        (None, ""),
    ],
)
def test_the_reason_says_what_the_worker_was_doing(tmp_path: Path, stat: str | None, words: str) -> None:
    house = RouterHouse()
    (worker,) = house.route(0)
    worker.pid = 7
    silence = Silence(house.router, SECOND, house.loop.clock, tmp_path)
    house.ask()
    if stat is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7/stat").write_text(stat)
    for _ in range(2):
        house.loop.now_ns += SECOND
        found = silence.look()
    assert found == [(worker, f"silent for more than 1 s{words}")]
