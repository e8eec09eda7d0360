"""Why workers end: a SIGKILL by the kernel for want of memory is told from those of others by its counts, the first
launch failure of CUDA in a minute is held against no row, and a worker is taken for stuck after a time in which the
server itself ran, and rows wait for the one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import says_launch_failed
from clover.runtime.workers.deaths import FORGIVEN_NS, MOST_BETWEEN_NS, LaunchFailures, OomKills, Silence
from clover.types import Routing
from tests.support.examples import examples
from tests.support.fleet_fixture import House, at, in_a_house
from tests.support.router_fixture import SECOND
from tests.support.router_fixture import House as RouterHouse

REASON = "the GPU failed, and this worker with it: CUDA error 719: unspecified launch failure"

LIMIT_NS = 30 * SECOND


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_the_count_of_the_own_control_group_is_watched(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/pod/server\n")
    write(tmp_path, "sys/fs/cgroup/pod/server/memory.events", "low 0\nhigh 3\noom 1\noom_kill 2\n")
    write(tmp_path, "proc/vmstat", "nr_free_pages 7\noom_kill 9\n")
    kills = OomKills(tmp_path)
    assert not kills.risen()
    write(tmp_path, "proc/vmstat", "oom_kill 10\n")  # another group's
    assert not kills.risen()
    write(tmp_path, "sys/fs/cgroup/pod/server/memory.events", "oom_kill 3\n")
    assert kills.risen()
    assert not kills.risen()


@pytest.mark.parametrize("groups", [None, "0::/\n", "4:memory:/pod\n"])
def test_without_a_count_of_its_own_the_machine_s_is_watched(tmp_path: Path, groups: str | None) -> None:
    if groups is not None:
        write(tmp_path, "proc/self/cgroup", groups)
    assert not OomKills(tmp_path).risen()  # there is no count at all
    write(tmp_path, "proc/vmstat", "oom_kill 4\n")
    kills = OomKills(tmp_path)
    write(tmp_path, "proc/vmstat", "oom_kill 5\n")
    assert kills.risen()


def test_only_launch_failures_are_forgiven_and_only_the_first() -> None:
    assert says_launch_failed(REASON)
    failures = LaunchFailures()
    assert not failures.forgives("CUDA error 700: an illegal memory access was encountered", 0)
    assert failures.forgives(REASON, 0)
    assert not failures.forgives(REASON, FORGIVEN_NS - 1)  # and the minute begins anew
    assert not failures.forgives(REASON, FORGIVEN_NS + 1)
    assert failures.forgives(REASON, 3 * FORGIVEN_NS)


@pytest.mark.parametrize(("reason", "deaths"), [(REASON, 1), ("CUDA error 700: illegal address", 2)])
def test_a_row_that_met_two_slices_of_a_failing_gpu_is_served_by_a_third(reason: str, deaths: int) -> None:
    @in_a_house
    async def test(house: House) -> None:
        fleet, router = house.fleet, house.router
        everywhere = (at(0), at(1), at(2))
        for item in everywhere:
            await fleet.spawn(item)
        fleet.route(everywhere, Routing(shares={"small": 1.0}))
        ticket = router.open(1)
        router.submit(ticket, lambda ticket: None)
        await house.settle()
        house.may_start.clear()
        for _ in range(2):
            next(worker for worker in house.started if worker.state == "ready" and worker.sent).die(reason)
            await house.settle()
        assert ticket.deaths == deaths
        assert (ticket.status == 503) == (deaths == 2)
        if deaths == 1:
            worker = next(worker for worker in house.started if worker.state == "ready" and worker.sent)
            worker.done.append((worker.sent[-1], 0, 1, house.now_ns, house.now_ns, 0))
            router.reap()
            assert ticket.status == 200
        house.may_start.set()
        await fleet.stop()

    test()


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
        assert bool(silence.poll()) == (seen_ns > LIMIT_NS)


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
        found = silence.poll()
    assert found == [(worker, f"silent for more than 1 s{words}")]
