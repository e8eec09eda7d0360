"""A front end on the core of its worker, or with more to read than it can: refusing must not be all that it does."""

from __future__ import annotations

import os

import pytest

from clover.config import TenantConfig
from clover.errors import DeadlineMissed
from clover.interfaces import LATE_ROOM
from clover.runtime.router.lane_pace import ProfiledPace
from clover.tenants import Tenant
from tests.support.one_core import US, OneCore
from tests.support.router_fixture import MS, SECOND, House, family


def house(row_us: float, **config: float) -> House:
    """A router that is to answer within 2 x 5 ms, of a worker that needs `row_us` for each row of a batch of 32."""
    made = House(family(max_batch=32), slots=4096, **config)
    made.router.aim(5.0, 0.0)
    made.router.expect_pace({0: ProfiledPace(1e6 / row_us, 32e-6 * row_us, 32)})
    return made


@pytest.mark.parametrize("times", [1.5, 3.0])
def test_a_front_end_that_has_more_to_read_than_it_can_serves_what_it_can(
    monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    """Its turns are long then.  A worker that got two batches at the end of each had nothing to do for most of the
    time, looked slow, and so nearly all requests were refused; their clients came back at once, and turns stayed long:
    a tenth of the capacity was served."""
    core = OneCore(monkeypatch, house(6.25), 200 * US)
    capacity = core.run(0.1, connections=64)
    assert core.refused == 0
    assert core.run(0.3, 1024, times * capacity) >= 0.9 * capacity
    core.house.check_slots()


def busy(**config: float) -> House:
    """A house whose worker has two batches, and in whose queue rows of as many clients wait as find room."""
    made = house(100.0, **config)
    made.route(0, max_batch=32)
    for client in range(1, 65):
        made.ask(client=client, turn=client % 32 == 0)
    client = 100
    while made.router.retry_in_s(client) == 0.0:
        made.ask(client=client)
        client += 1
    made.loop.now_ns += MS
    return made


def test_before_rows_are_refused_that_would_wait_too_long_workers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made = busy()
    (worker,) = made.workers
    monkeypatch.setattr(os, "sched_yield", lambda: None)
    assert made.router.retry_in_s(7) > 0.0
    monkeypatch.setattr(os, "sched_yield", lambda: worker.finish(made.loop.now_ns))
    assert made.router.retry_in_s(7) > 0.0, "it was looked at a moment ago"
    made.loop.now_ns += MS
    assert made.router.retry_in_s(7) == 0.0
    assert len(worker.ring.batches) == 2
    assert set(made.router.traffic.overload) == {"slo"}
    assert made.done == [], "nobody is answered in the middle of what somebody else is told"


def test_before_rows_that_were_read_are_refused_workers_make_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = busy()
    (worker,) = made.workers
    monkeypatch.setattr(os, "sched_yield", lambda: worker.finish(made.loop.now_ns))
    ticket = made.ask(client=7, turn=False)
    assert len(worker.ring.batches) == 2
    assert made.done == []
    made.loop.turn()
    assert len(made.done) == 32
    made.check_slots()
    assert ticket.status == 0


@pytest.mark.parametrize(
    ("config", "why", "most"), [({}, "slo", 0.5), ({"queue_rows": 256, "max_wait_slo": 0.0}, "queue", 1.0)]
)
def test_a_loop_that_refuses_by_time_keeps_half_of_the_core(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, float], why: str, most: float
) -> None:
    """Who gets the core may keep it for milliseconds, and what waits to be read meanwhile has to be refused as well.  A
    queue that is full says nothing of time."""
    made = busy(**config)
    loop = made.loop
    yielded_ns = 0

    def take_the_core() -> None:
        nonlocal yielded_ns
        loop.now_ns += 3 * MS
        yielded_ns += 3 * MS

    monkeypatch.setattr(os, "sched_yield", take_the_core)
    begin_ns = loop.now_ns
    while loop.now_ns - begin_ns < SECOND // 10:
        loop.now_ns += 50 * US
        assert made.router.retry_in_s(7) > 0.0
    assert set(made.router.traffic.overload) == {why}
    assert 0.8 * most <= yielded_ns / (loop.now_ns - begin_ns) <= most + 0.02, "it begins with the core yielded"


def test_whether_a_request_would_be_refused_is_said_without_refusing_it() -> None:
    made = busy()
    router, acme = made.router, Tenant(TenantConfig(name="acme", token="acme"), 1)
    codes = dict(router.traffic.codes)
    assert router.room(7) == router.room(7, 0, acme) == LATE_ROOM
    router.take_late(True)
    assert router.retry_in_s(7) == 0.0
    assert router.room(7) == LATE_ROOM
    assert router.traffic.codes == codes
    router.take_late(False)
    assert router.retry_in_s(7) > 0.0
    router.count_expired(acme)
    assert router.traffic.codes == codes | {429: codes.get(429, 0) + 1, 504: 1}
    assert router.traffic.by_tenant()["acme"].requests == {504: 1}


def test_the_time_that_a_request_waited_unread_counts_for_its_deadline_and_latency() -> None:
    made = house(100.0, timeout_ms=1000.0)
    made.route(0, max_batch=32)
    for waited_ns, timeout_ns in ((1000 * MS, 0), (2 * MS, MS)):
        ticket = made.router.open(1)
        ticket.waited_ns = waited_ns
        with pytest.raises(DeadlineMissed):
            made.router.submit(ticket, made.done.append, timeout_ns)
        made.router.close(ticket)
    ticket = made.router.open(1)
    ticket.waited_ns = 400 * MS
    ticket.arrival_ns -= ticket.waited_ns
    made.router.submit(ticket, made.done.append)
    assert ticket.deadline_ns == made.loop.now_ns + 600 * MS
