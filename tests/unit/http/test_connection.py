"""One connection: order, bursts, back pressure, deadlines, interim answers, endings."""

from __future__ import annotations

import errno
import logging
import re
from typing import NoReturn

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.config import LimitsConfig
from clover.errors import BadRequest, DeadlineMissed, ModelFailed, Overloaded, Unavailable
from clover.http.server_state import SCRATCH_BYTES
from tests.support.examples import examples
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, parse_answers, request

INFER = "/v2/models/echo/infer"


def held(**limits: float) -> tuple[Driver, FakeModel]:
    model = FakeModel(echo_family(), held=True)
    return Driver(FakeView(model), limits=LimitsConfig(**limits)), model  # type: ignore[arg-type]


def infer(name: str, *fields: str, version: str = "1.1") -> bytes:
    return request("POST", INFER, orjson.dumps(echo_body(id=name)), fields, version)


def test_answers_keep_the_order_of_their_requests() -> None:
    d, model = held()
    assert d.send(infer("a") + infer("b") + request("GET", "/v2")) == []
    model.run(1)
    d.loop.settle()
    assert d.take() == []
    model.run(0)
    d.loop.settle()
    answers = d.take()
    assert [answer.json().get("id", "get") for answer in answers] == ["a", "b", "get"]
    assert model.open_tickets == 0


def test_a_valid_requests_answer_is_not_replaced_by_the_next_ones_error() -> None:
    d, model = held()
    assert d.send(infer("a") + b"BROKEN\r\n\r\n" + infer("c")) == []
    model.run()
    d.loop.settle()
    answers = d.take()
    assert [answer.status for answer in answers] == [200, 400]
    assert "connection" not in answers[0].fields
    assert answers[1].fields["connection"] == "close"
    assert d.transport.eof
    assert not d.transport.closed  # lingers: the client may still be sending
    d.feed(b"more of what nobody reads")
    for _ in range(6):
        d.sweep(0.5)
    assert d.transport.closed


def test_a_full_queue_is_told_before_a_body_is_read() -> None:
    d, model = held()
    model.wait_s = 1.2
    first, second = d.send(infer("a") + request("POST", INFER, b"{broken"))
    for answer in (first, second):
        assert answer.status == 429
        assert answer.fields["retry-after"] == "2"
        assert answer.json() == {"error": "too many rows wait for this model"}
    assert model.open_tickets == 0
    model.wait_s = 0.0
    assert d.send(infer("b")) == []
    model.run()
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200]
    assert d.stats.requests == {429: 2, 200: 1}


def test_one_write_per_connection_and_turn() -> None:
    d, model = held()
    d.feed(infer("a") + infer("b") + infer("c"))
    for _ in range(3):
        model.run()
    assert d.transport.writes == []
    d.loop.turn()
    assert len(d.transport.writes) == 1
    assert len(parse_answers(d.transport.sent)) == 3


def test_head_and_body_leave_in_one_write() -> None:
    d, model = held()
    d.feed(infer("a"))
    model.run()
    d.loop.settle()
    assert len(d.transport.writes) == 1


def test_pipelining_is_bounded() -> None:
    d, model = held(pipelined=4)
    d.send(b"".join(infer(str(number)) for number in range(10)))
    assert len(model.waiting) == 4
    assert not d.transport.reading
    seen = []
    while model.waiting:
        model.run()
        d.loop.settle()
        assert len(model.waiting) <= 4
        seen += [answer.json()["id"] for answer in d.take()]
    assert seen == [str(number) for number in range(10)]
    assert d.transport.reading


def test_a_client_that_never_reads_is_bounded_and_cut() -> None:
    d, _ = held(pipelined=8, write_s=3.0)
    d.transport.blocked = True
    one = request("GET", "/openapi.json")
    sent = 0
    for _ in range(200):
        if not d.transport.reading:
            break
        d.feed(one * 10)
        sent += 10
        d.loop.settle()
    assert sent < 200
    assert d.transport.pending < 8 * 1_000_000
    for _ in range(6):
        d.sweep(0.5)
        assert not d.transport.aborted
    d.sweep(0.5)
    assert d.transport.aborted
    assert d.stats.deadlines_missed == 1


def test_a_slow_reader_resumes() -> None:
    d, _ = held(pipelined=2)
    d.transport.limit = 10
    d.transport.blocked = True
    d.feed(request("GET", "/v2") * 6)
    d.loop.settle()
    first = len(d.take())
    assert first == 2
    d.transport.unblock()
    d.loop.settle()
    assert len(d.take()) == 4
    assert d.transport.reading


def test_progress_resets_the_write_deadline() -> None:
    d, _ = held(write_s=2.0)
    d.transport.blocked = True
    for _ in range(300):
        d.feed(request("GET", "/v2"))
        d.loop.settle()
    d.transport.pending = 500_000
    d.connection._sent = 500_000
    for _ in range(7):
        d.transport.pending -= 70_000
        d.sweep(1.0)
        assert not d.transport.aborted


def test_large_bodies_bypass_the_scratch_buffer() -> None:
    d, model = held()
    body = orjson.dumps(echo_body(*([0.25] * 40_000), id="large"))
    assert len(body) > 2 * SCRATCH_BYTES
    data = request("POST", INFER, body)
    d.feed(data[:1000])
    assert len(d.connection.get_buffer(-1)) == len(data) - 1000
    d.feed(data[1000:] + infer("next"))
    model.run()
    model.run()
    d.loop.settle()
    assert [answer.json()["id"] for answer in d.take()] == ["large", "next"]
    for _ in range(3):  # the buffer is used again, and nothing kept a view of it
        d.feed(data)
        model.run()
        d.loop.settle()
        assert d.take()[0].json()["outputs"][0]["data"] == [0.25] * 40_000


# --- deadlines --------------------------------------------------------------------------------------------------------


def sweep(d: Driver, seconds: float) -> None:
    for _ in range(int(seconds * 2)):
        d.sweep(0.5)
        d.loop.settle()


def test_head_deadline_counts_the_whole_head() -> None:
    d, _ = held(head_s=3.0)
    for byte in b"GET /":  # a byte every half second keeps nobody alive
        d.feed(bytes([byte]))
        sweep(d, 0.5)
    assert d.take() == []
    sweep(d, 1.0)
    answers = d.take()
    assert [answer.status for answer in answers] == [408]
    assert answers[0].fields["connection"] == "close"
    sweep(d, 5)
    assert d.transport.closed


def test_body_deadline() -> None:
    d, model = held(body_s=2.0)
    d.feed(infer("a")[:-5])
    sweep(d, 2.0)
    assert d.take() == []
    sweep(d, 0.5)
    assert [answer.status for answer in d.take()] == [408]
    assert model.tickets == []


def test_chunked_body_deadline() -> None:
    d, _ = held(body_s=2.0)
    d.feed(b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    sweep(d, 2.5)
    assert [answer.status for answer in d.take()] == [408]


def test_idle_deadline_closes_silently_but_not_while_an_answer_is_due() -> None:
    d, model = held(idle_s=5.0)
    d.feed(infer("a"))
    sweep(d, 20)
    assert not d.transport.closed
    model.run()
    d.loop.settle()
    assert len(d.take()) == 1
    sweep(d, 5.0)
    assert not d.transport.closed
    sweep(d, 0.5)
    assert d.transport.closed
    assert d.transport.writes == []


def test_a_connection_with_an_answer_that_is_not_written_yet_is_not_idle() -> None:
    d, _ = held(idle_s=1.0)
    d.feed(request("GET", "/v2"))
    d.connection.sweep(2.0)  # the loop stood still, and looks before the turn in which it answered ends
    assert not d.transport.closed
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200]


def test_a_head_behind_a_full_pipeline_has_no_deadline() -> None:
    d, model = held(pipelined=1, head_s=2.0)
    d.feed(infer("a") + infer("b")[:20])
    sweep(d, 10)
    assert d.take() == []
    model.run()
    d.loop.settle()
    d.feed(infer("b")[20:])
    model.run()
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200, 200]


# --- keep-alive, HTTP/1.0, HEAD, Expect -------------------------------------------------------------------------------


def test_keep_alive_and_close() -> None:
    d, _ = held()
    assert "connection" not in d.get("/v2").fields
    assert not d.transport.closed
    answer = d.get("/v2", "Connection: close")
    assert answer.fields["connection"] == "close"
    assert d.transport.closed


def test_http_1_0() -> None:
    d, _ = held()
    answer = d.send(request("GET", "/v2", fields=["Connection: keep-alive"], version="1.0"))[0]
    assert answer.fields["connection"] == "keep-alive"
    assert d.send(request("GET", "/v2", version="1.0"))[0].fields["connection"] == "close"
    assert d.transport.closed


def test_nothing_after_close_is_read() -> None:
    d, _ = held()
    answers = d.send(request("GET", "/v2", fields=["Connection: close"]) + request("GET", "/v2"))
    assert len(answers) == 1


def test_head_is_get_without_a_body() -> None:
    d, _ = held()
    for path in ("/v2", "/metrics", "/v2/models/echo/config", "/v2/models/nope", INFER):
        full = d.get(path)
        d.feed(request("HEAD", path) + request("GET", "/v2/health/live"))
        d.loop.settle()
        sent = d.transport.sent
        d.transport.writes.clear()
        head, _, rest = sent.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % full.status)
        assert b"Content-Length: %d" % len(full.body) in head
        assert parse_answers(rest)[0].json() == {"live": True}


def test_expect_continue() -> None:
    d, model = held()
    data = infer("a", "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    assert [answer.status for answer in d.send(head + b"\r\n\r\n")] == [100]
    d.send(body)
    model.run()
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200]
    d.feed(data)  # the body came along: nobody waits
    model.run()
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200]


def test_expect_continue_waits_its_turn() -> None:
    d, model = held()
    head = infer("b", "Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert d.send(infer("a") + head) == []
    model.run()
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200, 100]


def test_expectation_of_a_refused_body_gets_the_refusal() -> None:
    d, _ = held(body_bytes=100)
    answers = d.send(b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 101\r\n\r\n")
    assert [answer.status for answer in answers] == [413]
    assert answers[0].fields["connection"] == "close"


# --- endings ----------------------------------------------------------------------------------------------------------


def test_a_lost_client_gives_its_slots_back() -> None:
    d, model = held()
    d.feed(infer("a") + infer("b"))
    d.connection.connection_lost(ConnectionResetError())
    assert model.open_tickets == 0
    model.run()  # the rows still come back
    model.run()
    d.loop.settle()
    assert d.transport.writes == []


def test_half_close_still_gets_its_answers() -> None:
    d, model = held()
    d.feed(infer("a") + infer("b")[:-4])
    assert d.connection.eof_received() is True
    model.run()
    d.loop.settle()
    assert [answer.json()["id"] for answer in d.take()] == ["a"]
    assert d.transport.closed


def test_half_close_with_nothing_due_closes() -> None:
    d, _ = held()
    assert d.connection.eof_received() is False
    d.connect()
    d.feed(b"GET / HT")
    assert d.connection.eof_received() is False


def test_a_closing_transport_is_not_written_to() -> None:
    d, model = held()
    d.feed(infer("a"))
    d.transport.closed = True
    model.run()
    d.loop.settle()
    assert model.open_tickets == 0


def test_connection_limit() -> None:
    d, _ = held(connections=1)
    first = d.connection
    d.connect()
    assert d.transport.aborted
    assert d.stats.refused_connections == 1
    d.connection.connection_lost(None)
    first.connection_lost(None)
    d.connect()
    assert not d.transport.aborted
    assert d.stats.open_connections == 1


def test_draining_answers_what_was_received() -> None:
    d, model = held()
    d.feed(infer("a") + infer("b"))
    d.state.draining = True
    d.connection.drain()
    assert not d.transport.closed
    model.run()
    model.run()
    d.loop.settle()
    answers = d.take()
    assert [answer.json()["id"] for answer in answers] == ["a", "b"]
    assert [answer.fields.get("connection") for answer in answers] == [None, "close"]
    assert d.transport.closed


def test_draining_closes_idle_connections() -> None:
    d, _ = held()
    d.state.draining = True
    d.connection.drain()
    assert d.transport.closed


# --- outcomes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "text", "retry"),
    [
        (BadRequest("a text"), 400, "a text", None),
        (Overloaded("the queue is full", retry_after_s=0.2), 429, "the queue is full", "1"),
        (Overloaded("the queue is full", retry_after_s=2.1), 429, "the queue is full", "3"),
        (Unavailable("no capacity"), 503, "no capacity", None),
        (Unavailable("draining", retry_after_s=5), 503, "draining", "5"),
        (DeadlineMissed("too late"), 504, "too late", None),
        (ModelFailed("Traceback /secret/path"), 500, "the model failed on this request", None),
    ],
)
def test_refusals_of_the_data_plane(error: BadRequest, status: int, text: str, retry: str | None) -> None:
    d, model = held()
    model.refusal = error
    answer = d.post(INFER, echo_body())
    assert (answer.status, answer.json(), answer.fields.get("retry-after")) == (status, {"error": text}, retry)
    model.refusal, model.submit_refusal = None, error
    assert d.post(INFER, echo_body()).status == status
    model.submit_refusal = None
    d.feed(infer("a"))
    model.run(0, error.status, error.message, error.retry_after_s)
    d.loop.settle()
    answer = d.take()[0]
    assert (answer.status, answer.json(), answer.fields.get("retry-after")) == (status, {"error": text}, retry)
    assert model.open_tickets == 0


def test_an_unexpected_fault_is_a_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    def broken(inputs: list[object]) -> list[object]:
        raise RuntimeError("/secret/path")

    d = Driver(FakeView(FakeModel(echo_family(), broken)))
    answer = d.post(INFER, echo_body())
    assert (answer.status, answer.json()) == (500, {"error": "the server failed on this request"})
    assert "/secret/path" in caplog.text
    assert d.post(INFER, echo_body()).status == 500


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_shortage_of_the_machine_is_a_503_to_try_again(error: Exception) -> None:
    def short(*_: object) -> NoReturn:
        raise error

    d = Driver(FakeView(FakeModel(echo_family(), short)))
    found = [d.post(INFER, echo_body())]
    d, model = held()
    d.view.state_of = short  # type: ignore[method-assign]
    found.append(d.post("/v2/repository/index", b"{}"))
    d.feed(infer("a"))
    model.read = short  # type: ignore[method-assign]
    model.run(0)
    d.loop.settle()
    found += d.take()
    for answer in found:
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "the server is short of memory or descriptors"}
    assert len(found) == 3
    assert model.open_tickets == 0


def test_request_ids() -> None:
    d, _ = held()
    assert d.get("/v2", "X-Request-Id: abc-1").fields["x-request-id"] == "abc-1"
    made = {d.get("/v2").fields["x-request-id"] for _ in range(10)}
    assert len(made) == 10
    assert all(re.fullmatch("[0-9a-f]{12}-[0-9a-f]+-[0-9a-f]{16}", one) for one in made)
    for bad in ("a b", "x" * 129, "\xe9"):
        assert d.get("/v2", f"X-Request-Id: {bad}").fields["x-request-id"] != bad


def test_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clover.access")
    d = Driver(FakeView(FakeModel(echo_family())), access=True)
    d.get("/v2?token=secret", "X-Request-Id: abc")
    d.get("/%0a%1b[31m")
    assert "GET /v2 200" in caplog.text
    assert "abc" in caplog.text
    assert "secret" not in caplog.text
    assert "\x1b" not in caplog.text


def test_stats() -> None:
    d, _ = held()
    d.get("/v2")
    d.get("/nope")
    assert d.stats.requests == {200: 1, 404: 1}
    assert d.stats.received_bytes > 0
    assert d.stats.sent_bytes > 0
    assert d.stats.accepted_connections == d.stats.open_connections == 1


@settings(deadline=None, max_examples=examples(100))
@given(st.lists(st.tuples(st.sampled_from(["infer", "get", "finish", "flush"]), st.integers(0, 5)), max_size=60))
def test_order_holds_whatever_finishes_first(steps: list[tuple[str, int]]) -> None:
    d, model = held(pipelined=3)
    backlog = bytearray()
    due, got = [], []
    for number, (step, which) in enumerate(steps):
        if step == "infer":
            due.append(str(number))
            backlog += infer(str(number), f"X-Request-Id: {number}")
        elif step == "get":
            due.append(str(number))
            backlog += request("GET", "/v2", fields=[f"X-Request-Id: {number}"])
        elif step == "finish" and model.waiting:
            model.run(which % len(model.waiting))
        else:
            d.loop.turn()
        if d.transport.reading:
            d.feed(bytes(backlog))
            backlog.clear()
    for _ in range(200):
        if d.transport.reading and backlog:
            d.feed(bytes(backlog))
            backlog.clear()
        while model.waiting:
            model.run(len(model.waiting) - 1)
        d.loop.settle()
    got = [answer.fields["x-request-id"] for answer in d.take()]
    assert got == due
    assert model.open_tickets == 0
