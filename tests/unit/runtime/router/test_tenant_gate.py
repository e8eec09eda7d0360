"""Tenants before the router: their rates, their share of what can be served, and what is counted of them."""

from __future__ import annotations

from typing import Any

import pytest

from clover.config import TenantConfig
from clover.errors import BadRequest, Overloaded, RequestError, TooLarge
from clover.runtime.router.tickets import RouterTicket
from clover.tenants import Tenant, Tenants
from tests.support.overload import Load
from tests.support.router_fixture import SECOND, House, dealt


def tenants(**changes: dict[str, Any]) -> list[Tenant]:
    """Return tenants by name, each with these settings."""
    found = Tenants([TenantConfig(name=name, token=name, **own) for name, own in changes.items()])
    return list(found.all())


def refused(house: House, tenant: Tenant, rows: int = 1, connection: int = 0) -> RequestError:
    with pytest.raises(RequestError) as error:
        house.router.open(rows, connection, 0, tenant)
    return error.value


def asked(house: House, tenant: Tenant | None, rows: int = 1, connection: int = 1) -> RouterTicket:
    ticket = house.router.open(rows, connection, 0, tenant)
    house.router.submit(ticket, house.done.append)
    house.loop.turn()
    return ticket


# --- rates ------------------------------------------------------------------------------------------------------------


def test_over_its_rate_a_tenant_is_refused_and_learns_when_to_come_back() -> None:
    house = House()
    house.route(0)
    (acme,) = tenants(acme={"rate": 4.0, "burst": 2})
    asked(house, acme, rows=2)
    error = refused(house, acme, connection=7)
    assert isinstance(error, Overloaded)
    assert error.message == "tenant acme is over its limit of 4 rows a second; try again after Retry-After"
    assert error.retry_after_s == 1.0
    assert house.router.traffic.overload == {}, "the server has room"
    assert house.router.observe()["arrival_rate"] == 2.0, "nothing is planned for what is not let in"
    house.loop.advance(SECOND)
    asked(house, acme, connection=7)
    totals = house.router.traffic.by_tenant()
    assert (totals["acme"].requests, totals["acme"].limited) == ({429: 1}, 1)
    assert totals[""].requests == {}


def test_one_that_comes_back_too_early_is_refused_unread() -> None:
    house = House()
    house.route(0)
    (acme,) = tenants(acme={"rate": 1.0})
    asked(house, acme)
    assert house.router.retry_in_s(5, 0, acme) == 0.0
    refused(house, acme, connection=5)
    with pytest.raises(Overloaded, match="over its limit"):
        house.router.retry_in_s(5, 0, acme)
    assert house.router.retry_in_s(6, 0, acme) == 0.0, "another connection of it is read"
    assert house.router.traffic.by_tenant()["acme"].requests == {429: 2}


def test_more_rows_than_the_burst_can_never_pass() -> None:
    house = House()
    house.route(0)
    (acme,) = tenants(acme={"rate": 4.0, "burst": 2})
    error = refused(house, acme, rows=3)
    assert isinstance(error, TooLarge)
    assert error.message == "a request of tenant acme has at most 2 rows (burst), and this one has 3"
    assert house.router.traffic.codes == {413: 1}


def test_rows_that_are_refused_for_another_reason_are_given_back() -> None:
    house = House()
    house.route(0)
    (acme,) = tenants(acme={"rate": 1.0, "burst": 2})
    house.router.closed_reason = "the model is unloaded"
    assert refused(house, acme, rows=2).status == 503
    house.router.closed_reason = ""
    ticket = house.router.open(2, 1, 0, acme)
    with pytest.raises(BadRequest, match="accuracy"):
        house.router.submit(ticket, house.done.append, min_accuracy=99.0)
    house.router.close(ticket)
    asked(house, acme, rows=2)
    assert house.router.traffic.by_tenant()["acme"].requests == {503: 1, 400: 1}


def test_slots_are_not_lent_to_a_tenant_over_its_rate() -> None:
    house = House(slots=64)
    house.route(0)
    (acme,) = tenants(acme={"rate": 1.0, "burst": 3})
    found = house.router.lend(2, 0, 9, 0, acme)
    assert found is not None
    house.router.admit_lent(found[0])
    assert (found[0].tenant, found[0].connection) == (acme, 9)
    assert house.router.lend(2, 0, 9, 0, acme) is None
    late = house.router.lend(1, 0, 9, 0, acme)
    assert late is not None
    asked(house, acme)  # it takes the last row of the rate meanwhile
    with pytest.raises(Overloaded, match="over its limit"):
        house.router.admit_lent(late[0])


# --- counts -----------------------------------------------------------------------------------------------------------


def test_what_becomes_of_requests_is_counted_by_tenant_and_the_rest_is_nobodys() -> None:
    house = House()
    (worker,) = house.route(0)
    a, b = tenants(a={}, b={})
    house.router.close(asked(house, a))  # its client went away
    asked(house, b, rows=3)
    asked(house, None)
    for _ in range(3):
        house.complete(worker)
    found = house.router.traffic.by_tenant()
    assert [dict(found[name].requests) for name in ("a", "b", "")] == [{499: 1}, {200: 1}, {200: 1}]
    assert [found[name].rows["small"] for name in ("a", "b", "")] == [1, 3, 1], "rows in vain are rows"
    assert found["b"].rows["large"] == 0


def test_rows_of_a_cascade_are_counted_where_they_end() -> None:
    house = House()
    workers = house.route(0, 2)
    house.router.route(house.router.state.lanes.entries(), dealt(1.0, chain=("small", "large"), thresholds=(0.5,)))
    (acme,) = tenants(acme={})
    ticket = asked(house, acme, rows=2)
    house.slab.score[ticket.slots] = (0.9, 0.1)
    house.complete(workers[0])
    house.complete(workers[1])
    assert house.router.traffic.by_tenant()["acme"].rows == {"small": 1, "medium": 0, "large": 1}


# --- shares -----------------------------------------------------------------------------------------------------------


class TenantLoad(Load):
    """A load of which each request is a tenant's, by one of its many connections."""

    def send(self, tenant: Tenant | None, connection: int, timeout_ns: int = 0) -> None:
        router = self.house.router
        ticket = None
        try:
            ticket = router.open(1, connection, 0, tenant)
            router.submit(ticket, self._done, timeout_ns=timeout_ns)
        except RequestError as error:
            self.statuses[error.status] += 1
            if ticket is not None:
                router.close(ticket)


def rows_of(load: TenantLoad) -> dict[str, int]:
    return {name: totals.rows["small"] for name, totals in load.house.router.traffic.by_tenant().items()}


def test_two_tenants_share_by_priority_however_many_connections_they_open() -> None:
    house = House(slots=512)
    load = TenantLoad(house, house.route(0))
    low, high = tenants(low={}, high={"priority": 3})

    def send(number: int) -> None:
        if number % 10 < 9:
            load.send(low, 1 + number % 200, SECOND)  # nine tenths of the requests, by 200 connections
        else:
            load.send(high, 1000, SECOND)

    # The one with little to send gets all of it; at three quarters of the capacity it would begin to be refused.
    load.run(20.0, 5.0 * load.capacity, send)
    rows, requests = rows_of(load), house.router.traffic.by_tenant()["high"].requests
    assert set(requests) == {200}, requests
    assert rows["low"] == pytest.approx(0.5 * 20 * load.capacity, rel=0.1)


@pytest.mark.parametrize("priority", [1, 3])
def test_under_overload_the_lower_priority_is_refused_first(priority: int) -> None:
    house = House(slots=512)
    load = TenantLoad(house, house.route(0))
    low, high = tenants(low={}, high={"priority": priority})
    load.run(30.0, 4.0 * load.capacity, lambda number: load.send((low, high)[number % 2], 1 + number % 64, SECOND))
    rows = rows_of(load)
    assert rows["high"] / rows["low"] == pytest.approx(priority, rel=0.1)
    assert sum(rows.values()) >= 0.95 * 30 * load.capacity


def test_connections_without_a_tenant_are_clients_of_priority_one() -> None:
    house = House(slots=512)
    load = TenantLoad(house, house.route(0))
    (acme,) = tenants(acme={"priority": 2})
    load.run(30.0, 6.0 * load.capacity, lambda number: load.send((None, None, acme)[number % 3], number % 3, SECOND))
    rows = rows_of(load)
    assert rows["acme"] == pytest.approx(rows[""], rel=0.1)


# --- the guard --------------------------------------------------------------------------------------------------------


def test_the_queue_sees_the_tenant_and_the_guard_the_tenant_and_its_connections() -> None:
    house = House()
    house.route(0)
    (acme,) = tenants(acme={"priority": 5})
    ticket = house.router.open(1, 12, 34, acme)
    assert (ticket.flow, ticket.connection, ticket.request) == (acme.flow, 12, 34)
    assert house.router.open(1, 12, 0, acme).request == -12, "without an id it is known by its connection"
    clients = house.router.guard.clients
    groups = [
        clients.record_row(acme.client, 12),
        clients.record_row(acme.client, 13),
        clients.record_row("10.0.0.1", 14),
    ]
    assert groups[0] != groups[2]
    assert clients.sender(acme.client, 12).name in ("tenant acme", "tenant acme, connection 12")
