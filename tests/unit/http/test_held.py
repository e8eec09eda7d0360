"""Requests that wait unread because refusing them would take the time that answers need."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from clover.config import LimitsConfig
from clover.config_families import TenantConfig
from clover.errors import Overloaded
from clover.http.held import HeldRequests, RefusalBudget, core_wait_ns
from clover.tenants import Tenant
from tests.support.http_fakes import (
    Answer,
    Driver,
    FakeModel,
    FakeView,
    MockTransport,
    echo_body,
    echo_family,
    request,
)

INFER = "/v2/models/echo/infer"
MS = 1_000_000


def infer(name: str) -> bytes:
    return request("POST", INFER, orjson.dumps(echo_body(id=name)))


class Crowd:
    """Clients of one server, each with a connection, on a clock that is moved by hand."""

    def __init__(self, clients: int, cores: int = 2, **limits: Any) -> None:
        self.now_ns = 0
        self.model = FakeModel(echo_family(), held=True)
        self.driver = Driver(FakeView(self.model), limits=LimitsConfig(**limits))
        self.core_wait_ns = 0
        self.driver.state.refusals = RefusalBudget(cores, lambda: self.now_ns, lambda: self.core_wait_ns)
        self.clients: list[tuple[Any, MockTransport]] = []
        for _ in range(clients):
            self.driver.connect()
            self.clients.append((self.driver.connection, self.driver.transport))

    def send(self, client: int, data: bytes) -> list[Answer]:
        """Send bytes, and return what the client got since the last call."""
        self.driver.connection, self.driver.transport = self.clients[client]
        return self.driver.send(data)

    def take(self, client: int) -> list[Answer]:
        return self.send(client, b"")

    def overload(self) -> None:
        """Refuse requests of the first client until refusals take too much."""
        self.model.wait_s = 1.0
        while answers := self.send(0, infer("more")):
            assert [answer.status for answer in answers] == [429]
        assert self.driver.stats.held_requests == 1

    def answer(self, room: bool = True) -> None:
        """Answer the oldest request; then the queue has room for one more, if it is to have."""
        self.model.wait_s = 0.0 if room else 1.0
        self.model.run()
        self.driver.loop.settle()


def test_a_few_refusals_are_made_at_once_and_many_leave_requests_unread() -> None:
    crowd = Crowd(2)
    crowd.model.wait_s = 1.0
    assert [answer.status for answer in crowd.send(0, infer("a"))] == [429]
    for _ in range(5000):
        crowd.now_ns += 10 * MS  # a hundred refusals a second
        assert [answer.status for answer in crowd.send(0, infer("b"))] == [429]
    assert crowd.driver.stats.held_requests == 0
    answers = [status for _ in range(1000) for status in crowd.send(0, infer("c"))]
    assert 40 < len(answers) < 100, "without time for it, as many as a fiftieth of a tenth of a second has room for"
    assert crowd.driver.stats.held_requests == 1
    assert not crowd.clients[0][1].reading


def test_the_time_in_which_others_have_the_core_is_none_of_the_loops() -> None:
    counts = []
    for part in (0.0, 0.8):
        crowd = Crowd(1)
        crowd.model.wait_s = 1.0
        while crowd.send(0, infer("more")):
            crowd.now_ns += MS
            crowd.core_wait_ns = int(part * crowd.now_ns)
        counts.append(crowd.driver.stats.requests[429])
    assert counts[0] > 100
    assert counts[1] < 100


def test_the_kernel_counts_how_long_this_thread_waited_for_a_core() -> None:
    before = core_wait_ns()
    assert before >= 0
    assert core_wait_ns() >= before


def test_a_front_end_with_a_core_of_its_own_refuses_more() -> None:
    counts = []
    for cores in (2, 3):
        crowd = Crowd(1, cores)
        crowd.model.wait_s = 1.0
        counts.append(len([status for _ in range(4000) for status in crowd.send(0, infer("c"))]))
    assert counts[1] == pytest.approx(25 * counts[0], rel=0.05)


def test_a_long_body_makes_a_refusal_dearer() -> None:
    def refused(size: int) -> int:
        budget = RefusalBudget(2, lambda: 0, lambda: 0)
        return next(count for count in range(1000) if budget.spend(size))

    assert refused(0) == 66
    assert refused(600_000) < 15


def test_what_waits_unread_is_read_in_turn_as_answers_make_room() -> None:
    crowd = Crowd(3)
    assert crowd.send(1, infer("first")) == []
    crowd.overload()
    assert [crowd.clients[client][0].unanswered for client in (0, 1, 2)] == [1, 1, 0], "a drain counts both"
    assert crowd.send(2, infer("third")) == []
    crowd.now_ns += 100 * MS
    crowd.answer(room=False)
    assert [answer.status for answer in crowd.take(1)] == [200]
    assert len(crowd.model.waiting) == 0, "there was no room"
    crowd.model.wait_s = 0.0
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    assert [ticket.waited_ns for ticket in crowd.model.waiting] == [100 * MS, 100 * MS]
    crowd.answer(), crowd.answer()
    assert [answer.json()["id"] for answer in crowd.take(0)] == ["more"]
    assert [answer.json()["id"] for answer in crowd.take(2)] == ["third"]
    assert all(transport.reading for _, transport in crowd.clients)
    assert crowd.send(0, infer("later")) == []
    assert crowd.driver.stats.held_requests == 2, "there is room: nothing waits any more"


def test_a_request_that_finds_no_room_holds_up_no_other_tenant() -> None:
    crowd = Crowd(1)
    held = HeldRequests(crowd.model, crowd.driver.state, lambda: crowd.now_ns)  # type: ignore[arg-type]
    tenants = [Tenant(TenantConfig(name=name, token="0123456789abcdef"), number) for number, name in enumerate("ab")]
    full: set[Any] = {*tenants, None}
    crowd.model.full = full
    gone: list[int] = []

    class Held:
        def __init__(self, number: int) -> None:
            self.number = number

        def let_go(self, waited_ns: int, late: bool) -> bool:
            gone.append(self.number)
            return False

    order = [tenants[0], tenants[0], None, tenants[1], tenants[1], None]
    for number, tenant in enumerate(order):
        assert held.hold(Held(number), number, 0, tenant)
    full.discard(tenants[1])
    held.wake(), crowd.driver.loop.settle()
    assert gone == [3, 4]
    full.clear()
    assert held.hold(Held(6), 6, 0, tenants[0]), "others of its tenant wait before it"
    assert not held.hold(Held(7), 7, 0, tenants[1])
    held.wake(), crowd.driver.loop.settle()
    assert gone == [3, 4, 0, 2, 1, 5, 6], "of each tenant the oldest first, and one in turn"
    assert held.is_settled()


def test_while_refusals_take_too_much_nobody_is_refused_for_the_slo() -> None:
    crowd = Crowd(2)
    crowd.model.wait_s, crowd.model.slow = 1.0, True
    while crowd.send(0, infer("slow")):
        pass
    assert crowd.model.takes_late
    assert crowd.driver.stats.held_requests == 0, "the queue has room"
    assert crowd.send(1, infer("late")) == []
    assert len(crowd.model.waiting) == 2
    crowd.model.run(), crowd.model.run()
    assert [answer.status for answer in crowd.take(0) + crowd.take(1)] == [200, 200]
    crowd.model.wait_s = 0.0
    assert crowd.send(1, infer("in time")) == []
    crowd.driver.sweep(0.5)
    assert not crowd.model.takes_late


def test_other_requests_are_answered_meanwhile() -> None:
    crowd = Crowd(2)
    crowd.overload()
    assert [answer.status for answer in crowd.send(1, request("GET", "/v2/health/ready"))] == [200]
    assert [answer.status for answer in crowd.send(1, request("GET", "/metrics"))] == [200]


def test_who_waited_too_long_is_answered_504_unread() -> None:
    crowd = Crowd(2)
    crowd.overload()
    crowd.now_ns += 700 * MS
    assert crowd.send(1, infer("young")) == []
    crowd.driver.sweep(0.5)
    assert crowd.take(0) == []
    crowd.now_ns += 101 * MS
    crowd.driver.sweep(0.5)
    (answer,) = crowd.take(0)
    assert answer.status == 504
    assert "deadline" in answer.json()["error"]
    assert "connection" not in answer.fields, "its body was there: the connection goes on"
    assert crowd.model.late == 1
    assert crowd.take(1) == []
    crowd.model.wait_s = 0.0
    assert crowd.send(0, infer("again")) == [], "there is room now, but one waits before it"
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    crowd.model.run(), crowd.model.run()
    assert [answer.status for answer in crowd.take(1)] == [200]
    assert [answer.json()["id"] for answer in crowd.take(0)] == ["again"]


def test_a_long_body_that_waited_too_long_ends_its_connection() -> None:
    crowd = Crowd(2)
    crowd.overload()
    assert crowd.send(1, infer("cut")[:-5]) == []
    crowd.now_ns += 900 * MS
    crowd.driver.sweep(0.5)
    (answer,) = crowd.take(1)
    assert (answer.status, answer.fields["connection"]) == (504, "close")
    assert crowd.clients[1][1].eof


def test_bodies_that_still_come_are_let_go_a_few_at_a_time_while_there_is_no_room_in_time() -> None:
    crowd = Crowd(24)
    most = 2 * crowd.model.spec.max_batch
    crowd.overload()
    data = infer("long")
    for client in range(1, 24):
        assert crowd.send(client, data[:-5]) == []
    crowd.model.slow = True  # there is room, but not in time
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    reading = [client for client in range(1, 24) if crowd.clients[client][1].reading]
    assert len(reading) == min(most, 23), "those whose bodies come take no room in the queue yet"
    crowd.model.wait_s = 0.0
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    assert all(transport.reading for _, transport in crowd.clients[1:]), "slow bodies hold nobody up"
    crowd.clients[reading[1]][0].connection_lost(None)
    for client in range(1, 24):
        if client != reading[1]:
            assert crowd.send(client, data[-5:]) == []
    while crowd.model.waiting:
        crowd.answer()
    got = [answer.status for client in range(24) if client != reading[1] for answer in crowd.take(client)]
    assert got == [200] * 23


def test_a_client_that_goes_while_it_waits_leaves_nothing_behind() -> None:
    crowd = Crowd(3)
    crowd.overload()
    for client in (1, 2):
        assert crowd.send(client, infer("gone")) == []
    crowd.clients[1][0].connection_lost(None)
    crowd.model.wait_s = 0.0
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    assert len(crowd.model.waiting) == 2
    crowd.answer(), crowd.answer()
    assert crowd.model.open_tickets == 0


def test_a_model_that_is_taken_away_lets_all_go() -> None:
    crowd = Crowd(2)
    crowd.overload()
    crowd.model.closed_reason = "it is gone"
    crowd.driver.sweep(0.5)
    crowd.driver.loop.settle()
    assert crowd.clients[0][1].reading


def test_refusals_of_requests_that_were_read_count_too() -> None:
    crowd = Crowd(1)
    crowd.model.refusal = Overloaded("the queue is full", retry_after_s=1.0)
    crowd.model.wait_s, crowd.model.slow, crowd.model.takes_late = 1.0, True, True
    for _ in range(1000):
        crowd.send(0, infer("more"))
    crowd.model.slow = False
    assert crowd.send(0, infer("held")) == []
    assert crowd.driver.stats.held_requests == 1


def test_refusals_of_a_model_that_has_room_are_no_overload() -> None:
    crowd = Crowd(1)
    crowd.model.refusal = Overloaded("tenant acme is over its limit", retry_after_s=1.0)
    for _ in range(1000):
        assert [answer.status for answer in crowd.send(0, infer("more"))] == [429]
    assert not crowd.model.takes_late


def test_a_model_whose_endpoint_is_looked_up_anew_is_refused_for_the_slo_again() -> None:
    crowd = Crowd(2)
    crowd.model.wait_s, crowd.model.slow = 1.0, True
    while crowd.send(0, infer("slow")):
        pass
    assert crowd.model.takes_late
    crowd.driver.routes.forget()
    crowd.driver.state.heads.memo.clear()
    crowd.now_ns += 10_000 * MS
    assert [answer.status for answer in crowd.send(1, infer("after"))] == [429]
    assert not crowd.model.takes_late
