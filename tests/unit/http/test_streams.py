"""Answers that stay open: what a page gets, what a slow or lost one costs, how many there may be, and how they end."""

from __future__ import annotations

from typing import Any

import pytest

from clover.config import ListenConfig, ServerConfig, TenantConfig
from clover.http.frontend import Frontend, Mounted
from clover.http.streams import UNREAD_BYTES, EventStreams, event
from clover.tenants import Tenants
from tests.support.http_fakes import Driver, FakeLoop, FakeView, MockTransport, request


class Page:
    """One browser: a connection of `house` that asked for the stream."""

    def __init__(self, house: House, head: bytes = b"", *, blocked: bool = False) -> None:
        driver = house.driver
        driver.connect()
        self.transport: MockTransport = driver.transport
        self.transport.blocked = blocked
        self.connection = driver.connection
        self.transport.writes.clear()
        driver.feed(head or request("GET", "/dashboard/stream"))
        driver.loop.settle()

    def take(self) -> bytes:
        sent = self.transport.sent
        self.transport.writes.clear()
        return sent


class House:
    """A front end whose only further path is a stream."""

    def __init__(self, most: int = 3, greeting: bytes = event("hello", b"{}", "e.0"), **more: Any) -> None:
        self.streams = EventStreams(lambda: greeting, most)
        stream = {"GET": lambda exchange, body, name: self.streams.accept(exchange)}
        self.driver = Driver(FakeView(), mounted={"/dashboard/stream": stream}, **more)
        self.driver.loop.settle()


@pytest.fixture
def house() -> House:
    return House()


def test_a_stream_begins_with_its_head_and_a_greeting_and_gets_each_message(house: House) -> None:
    page = Page(house)
    head, _, body = page.take().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    assert b"Cache-Control: no-store" in head
    assert b"Content-Length" not in head
    assert body == b"event: hello\nid: e.0\ndata: {}\n\n"
    house.streams.publish(event("tick", b"[1]"))
    assert page.take() == b"event: tick\ndata: [1]\n\n"
    assert house.streams.open == 1
    assert house.driver.stats.requests == {200: 1}


def test_one_message_is_the_same_bytes_for_all(house: House) -> None:
    pages = [Page(house) for _ in range(3)]
    for page in pages:
        page.take()
    house.streams.publish(b"data: x\n\n")
    assert [page.take() for page in pages] == [b"data: x\n\n"] * 3


def test_beyond_the_most_a_page_is_refused_until_another_one_goes(house: House) -> None:
    pages = [Page(house) for _ in range(3)]
    refused = Page(house).take()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 30" in refused
    assert b"3 streams are open, which is the most" in refused
    pages[0].connection.connection_lost(None)
    assert Page(house).take().startswith(b"HTTP/1.1 200 ")


def test_a_page_that_does_not_read_is_dropped_and_nothing_is_kept_for_it(house: House) -> None:
    slow, quick = Page(house), Page(house)
    slow.take()
    quick.take()
    slow.transport.blocked = True
    large = b"data: %b\n\n" % bytes(UNREAD_BYTES + 100)
    house.streams.publish(large)
    house.streams.publish(b"data: 2\n\n")
    assert slow.transport.aborted
    assert slow.take() == large
    assert quick.take() == large + b"data: 2\n\n"
    assert house.streams.open == 1


def test_a_client_has_eight_streams_and_leaves_the_others_to_others() -> None:
    house = House(most=64)
    pages = [Page(house) for _ in range(8)]
    refused = Page(house).take()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"8 streams of this client are open, which is the most: close a page" in refused
    assert b"Retry-After: 30\r\n" in refused
    assert house.streams.open == 8
    house.driver.peer = ("192.0.2.9", 50000)
    assert Page(house).take().startswith(b"HTTP/1.1 200 "), "another client's"
    house.driver.peer = ("127.0.0.1", 50000)
    pages[0].connection.connection_lost(None)
    assert Page(house).take().startswith(b"HTTP/1.1 200 "), "a page was closed"


def test_a_page_that_still_reads_its_greeting_gets_the_messages_behind_it() -> None:
    hello = bytes(3 * UNREAD_BYTES)
    house = House(greeting=hello)
    page = Page(house, blocked=True)
    for _ in range(3):
        house.streams.publish(b"data: 1\n\n")
    assert not page.transport.closed
    page.transport.unblock()
    assert page.take().endswith(hello + b"data: 1\n\n" * 3)
    assert house.streams.open == 1


def test_a_page_that_never_reads_its_greeting_is_dropped_in_time() -> None:
    house = House(greeting=bytes(1 << 16))
    page = Page(house, blocked=True)
    for _ in range(80):
        house.driver.sweep(0.5)
    assert page.transport.aborted


def test_a_page_that_closed_is_forgotten_with_the_next_message(house: House) -> None:
    page = Page(house)
    page.connection.connection_lost(None)
    house.streams.publish(b"data: 1\n\n")
    assert house.streams.open == 0


def test_a_page_that_half_closes_is_gone(house: House) -> None:
    page = Page(house)
    page.connection.eof_received()
    house.streams.publish(b"data: 1\n\n")
    assert page.transport.closed
    assert house.streams.open == 0


def test_no_time_limit_of_requests_ends_a_stream(house: House) -> None:
    page = Page(house)
    for _ in range(400):
        house.driver.sweep(0.5)
    assert not page.transport.closed


def test_closing_ends_the_streams_at_once_and_a_drain_has_nothing_to_wait_for(house: House) -> None:
    page = Page(house)
    house.streams.close()
    assert page.transport.closed
    assert house.streams.open == 0
    refused = Page(house).take()
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"shutting down" in refused


def test_a_tenant_whose_token_is_taken_away_loses_its_stream_and_others_come_back() -> None:
    admin = TenantConfig(name="admin", token="admin-1", may_control=True)
    tenants = Tenants([admin])
    house = House(listen=ListenConfig(token="operator-1"), tenants=tenants)

    def open_page(token: str) -> Page:
        return Page(house, request("GET", "/dashboard/stream", fields=[f"Authorization: Bearer {token}"]))

    pages = [open_page("admin-1"), open_page("operator-1")]
    frontend = Frontend(
        FakeView(), ServerConfig(), FakeLoop(), mounted=Mounted({}, house.streams)  # type: ignore[arg-type]
    )  # fmt: skip
    tenants.use([TenantConfig(name="acme", token="acme-1")])
    house.driver.state.heads.memo.clear()
    frontend.forget_heads()
    assert all(page.transport.closed for page in pages)
    assert house.streams.open == 0
    assert open_page("admin-1").take().startswith(b"HTTP/1.1 401 ")
    assert open_page("operator-1").take().startswith(b"HTTP/1.1 200 ")


def test_a_stream_behind_an_answer_that_is_due_is_refused(house: House) -> None:
    pipelined = request("GET", "/v2/clover/state") + request("GET", "/dashboard/stream")
    page = Page(house, pipelined)
    sent = page.take()
    assert sent.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/json")
    assert b"text/event-stream" in sent, "the answer before was written first"
    assert sent.index(b"application/json") < sent.index(b"text/event-stream")


def test_nothing_is_answered_to_what_comes_after_a_stream(house: House) -> None:
    page = Page(house, request("GET", "/dashboard/stream") + request("GET", "/v2"))
    assert page.take().count(b"HTTP/1.1 ") == 1


def test_head_of_a_stream_ends(house: House) -> None:
    sent = Page(house, request("HEAD", "/dashboard/stream")).take()
    assert sent.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0")
    assert house.streams.open == 0


def test_another_method_is_refused(house: House) -> None:
    assert Page(house, request("POST", "/dashboard/stream", b"")).take().startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dashboard", 404),
        ("/dashboard/try", 404),
        ("/dashboard/assets/x/app.js", 404),
        ("/dashboard/stream", 401),
        ("/dashboard/report", 401),
        ("/dashboardx", 401),
        ("/v2/clover/state", 401),
    ],
)
def test_on_an_open_address_only_the_files_of_the_page_are_read_without_the_token(path: str, status: int) -> None:
    house = House(listen=ListenConfig(host="0.0.0.0", token="t" * 16))
    assert house.driver.get(path).status == status, "404: it was let in, and this house has no such file"


def test_with_the_token_the_stream_opens_on_an_open_address() -> None:
    house = House(listen=ListenConfig(host="0.0.0.0", token="t" * 16))
    page = Page(house, request("GET", "/dashboard/stream", fields=[f"Authorization: Bearer {'t' * 16}"]))
    assert page.take().startswith(b"HTTP/1.1 200 ")


def test_a_greeting_that_fails_is_answered_so_that_nothing_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.streams._greeting = lambda: 1 / 0  # type: ignore[assignment, return-value]
    page = Page(house)
    assert page.take().startswith(b"HTTP/1.1 503 ")
    assert not page.connection.exchanges
    assert "a stream could not be begun" in caplog.text
