"""Who can never be served is not asked to come back: a client that does as it is told ends, with a final answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.config import TenantConfig
from clover.errors import RequestError
from clover.runtime.memory.slab import NO_MEMORY
from clover.runtime.router.lane_pace import ProfiledPace
from clover.runtime.router.retry_book import WAITS_S
from clover.runtime.router.tickets import RouterTicket
from clover.tenants import Tenant, Tenants
from tests.support.overload import Load
from tests.support.router_fixture import MS, SECOND, FakeWorker, House


@dataclass
class Obeying:
    """A client that asks for `rows` rows again and again, each time when it was told to."""

    house: House
    rows: int
    timeout_ns: int = 0
    request: int = 4711
    tenant: Tenant | None = None
    statuses: list[int] = field(default_factory=list)
    error: str = ""
    due_ns: int | None = 0

    def ask(self, connection: int) -> None:
        """Ask, if it is time."""
        if self.due_ns is None or self.house.loop.now_ns < self.due_ns:
            return
        router, ticket, self.due_ns = self.house.router, None, None
        try:
            ticket = router.open(self.rows, connection, self.request, self.tenant)
            router.submit(ticket, self.done, timeout_ns=self.timeout_ns)
        except RequestError as error:
            if ticket is not None:
                router.close(ticket)
            self.told(error.status, error.message, error.retry_after_s)

    def done(self, ticket: RouterTicket) -> None:
        """Take an answer."""
        self.told(ticket.status, ticket.error, ticket.retry_after_s)
        self.house.router.close(ticket)

    def told(self, status: int, error: str, retry_after_s: float | None) -> None:
        self.statuses.append(status)
        self.error = error
        if retry_after_s is not None:
            self.due_ns = self.house.loop.now_ns + round(retry_after_s * SECOND)


def loaded(slots: int = 8192, **config: float) -> Load:
    house = House(slots=slots, **config)
    return Load(house, house.route(0), 40.0)  # 100 rows/s


# --- more rows than can be served in time -----------------------------------------------------------------------------


def test_a_request_whose_rows_alone_take_longer_than_its_timeout_is_too_large() -> None:
    load = loaded()
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    client = Obeying(load.house, rows=400, timeout_ns=SECOND)
    client.ask(1)
    assert client.statuses == [413]
    assert client.error.startswith("400 rows take 4.1 s though no other row waits, and the timeout is 1 s: send fewer")
    Obeying(load.house, rows=400, timeout_ns=6 * SECOND).ask(2)
    load.run(6.0, 0.0, print)
    assert load.house.router.traffic.codes == {200: 1, 413: 1}


@pytest.mark.parametrize(("timeout_ms", "status"), [(4000, 413), (4200, 200)])
def test_a_request_that_a_server_without_other_rows_answers_in_time_is_taken(timeout_ms: int, status: int) -> None:
    load = loaded()
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    client = Obeying(load.house, rows=400, timeout_ns=timeout_ms * MS)
    client.ask(1)
    load.run(5.0, 0.0, print)
    assert client.statuses == [status]


def test_what_the_devices_would_serve_under_another_plan_is_asked_to_come_back() -> None:
    load = loaded()
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    load.house.router.limit(1000.0)
    client = Obeying(load.house, rows=400, timeout_ns=SECOND)
    client.ask(1)
    assert client.statuses == [429]
    load.house.router.limit(300.0)
    client.due_ns = 0
    client.ask(1)
    assert client.statuses == [429, 413]


def test_rows_before_it_are_no_reason_to_refuse_a_request_for_good() -> None:
    load = loaded()
    load.house.router.expect_pace({0: ProfiledPace(load.capacity, 0.04, 4)})
    load.ask(1, 60 * SECOND, rows=300)
    client = Obeying(load.house, rows=40, timeout_ns=SECOND)
    client.ask(1)
    assert client.statuses == [429]
    for _ in range(40):
        load.run(0.1, 0.0, print)
        client.ask(1)
    load.run(1.0, 0.0, print)
    assert client.statuses[-1] == 200


@pytest.mark.parametrize(("timeout_ms", "final"), [(60, 504), (2000, 200)])
def test_a_timeout_that_a_busy_worker_never_meets_ends(timeout_ms: int, final: int) -> None:
    """A batch takes 40 ms, after the one that its worker runs."""
    load = loaded()
    client = Obeying(load.house, rows=1, timeout_ns=timeout_ms * MS)

    def ask(number: int) -> None:
        load.ask(1 + number % 64, SECOND)
        if number > 1000:
            client.ask(1000)

    load.run(12.0, 3.0 * load.capacity, ask)
    assert client.statuses == ([429] * 3 + [504] if final == 504 else [200])
    if final == 504:
        assert client.error.endswith("each time that this request came back: set a longer timeout")


@pytest.mark.parametrize("tenant", [False, True])
def test_other_requests_of_one_connection_do_not_share_their_refusals(tenant: bool) -> None:
    """A proxy's connection carries those of many clients, and without an id nothing tells them apart."""
    load = loaded()
    acme = next(iter(Tenants([TenantConfig(name="acme", token="acme")]).all())) if tenant else None
    clients = [Obeying(load.house, rows=1, timeout_ns=60 * MS, request=0, tenant=acme) for _ in range(4)]

    def ask(number: int) -> None:
        load.ask(1 + number % 64, SECOND)
        asking = next((client for client in clients if len(client.statuses) < 2), None)
        if number > 1000 and asking is not None:
            asking.ask(1000)

    load.run(12.0, 3.0 * load.capacity, ask)
    assert [client.statuses for client in clients] == [[429, 429]] * 4


# --- rows that need a queue that is nearly empty ----------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "final"), [(60, 413), (12, 200), (1, 200)])
def test_a_long_request_that_comes_back_in_vain_ends(rows: int, final: int) -> None:
    """The queue holds 64 rows, and is nearly full at any time."""
    load = loaded(slots=128, queue_rows=64)
    client = Obeying(load.house, rows)

    def ask(number: int) -> None:
        load.ask(1 + number % 64)
        if number > 200:
            client.ask(1000)

    load.run(20.0, 3.0 * load.capacity, ask)
    assert client.statuses[-1] == final
    assert len(client.statuses) <= 4
    if final == 413:
        assert client.statuses == [429] * 3 + [413]
        assert f"send fewer than {rows} rows at once" in client.error
    load.run(1.0, 0.0, print)
    load.house.check_slots()


# --- want of memory ---------------------------------------------------------------------------------------------------


def without_memory(house: House, worker: FakeWorker) -> None:
    """Let every batch that the worker has, and those that come of it, fail for want of memory."""
    house.loop.turn()
    while worker.ring.batches:
        house.complete(worker, status=NO_MEMORY)


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_rows_that_never_fit_are_refused_for_good(rows: int) -> None:
    house = House()
    (worker,) = house.route(0)
    client = Obeying(house, rows, request=0)
    for connection in range(1, 30):  # a new one each time, and no id
        client.ask(connection)
        without_memory(house, worker)
        house.loop.advance(SECOND)
    assert client.statuses == [503, 503, 413]
    assert "had no memory" in client.error
    house.check_slots()


def test_equal_rows_that_came_together_do_not_condemn_each_other() -> None:
    house = House()
    (worker,) = house.route(0)
    clients = [Obeying(house, 1, request=number) for number in range(1, 9)]
    for client in clients:
        client.ask(client.request)
    without_memory(house, worker)
    assert [client.statuses for client in clients] == [[503]] * 8
    house.loop.advance(SECOND // 2)
    early = Obeying(house, 1, request=99)
    early.ask(99)
    without_memory(house, worker)
    assert early.statuses == [503], "it was not asked to come yet"
    house.loop.advance(round(WAITS_S[0] * SECOND))
    for client in clients:
        client.ask(client.request)
    house.loop.turn()
    while worker.ring.batches:
        house.complete(worker)  # there is memory again
    assert [client.statuses[-1] for client in clients] == [200] * 8


def test_what_is_remembered_is_forgotten() -> None:
    house = House()
    (worker,) = house.route(0)
    client = Obeying(house, 1)
    for _ in range(3):
        client.ask(1)
        without_memory(house, worker)
        house.loop.advance(40 * SECOND)
        client.due_ns = 0
    assert client.statuses == [503, 503, 413]
    house.loop.advance(30 * SECOND)
    client.ask(1)
    without_memory(house, worker)
    assert client.statuses[-1] == 503


def test_wants_of_memory_that_pass_do_not_add_up() -> None:
    """Memory is short for a moment every two minutes, and the same row, a test image, meets it each time."""
    house = House()
    (worker,) = house.route(0)
    client = Obeying(house, 1)
    for _ in range(5):
        client.due_ns = 0
        client.ask(1)
        without_memory(house, worker)
        house.loop.advance(120 * SECOND)
    assert client.statuses == [503] * 5


@given(waits=st.lists(st.integers(0, 8000), max_size=12))
def test_however_a_client_keeps_to_what_it_is_told_it_gets_a_final_answer_after_two_obeyed_ones(
    waits: list[int],
) -> None:
    house = House()
    (worker,) = house.route(0)
    client = Obeying(house, 1)
    obeyed, last_ns = 0, 0
    for wait_ms in waits:
        now_ns = house.loop.now_ns
        if client.statuses and obeyed < len(WAITS_S) and now_ns >= last_ns + WAITS_S[obeyed] * SECOND:
            obeyed, last_ns = obeyed + 1, now_ns
        elif not client.statuses:
            last_ns = now_ns
        client.due_ns = 0
        client.ask(1)
        without_memory(house, worker)
        assert client.statuses[-1] == (413 if obeyed == len(WAITS_S) else 503)
        house.loop.advance(wait_ms * MS)
    house.check_slots()
