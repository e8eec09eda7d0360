"""Clients that want to stop the server: work is counted by turns of the loop, and memory by what is allocated."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from clover.config import LimitsConfig
from clover.errors import BadRequest, TooLarge
from clover.http.content_encoding import PIECE_IN_BYTES, PIECE_OUT_BYTES, Inflation
from clover.http.oip.request import decode
from clover.http.oip.signature import JSON_BYTES, Signature
from clover.http.server_state import TURN_BYTES
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, family, request, tensor

INFER = "/v2/models/echo/infer"
GZIP = "Content-Encoding: gzip"
MB = 1 << 20
NUMBERS = b'{"inputs":[{"name":"IN","shape":[1,4],"datatype":"FP32","data":['


def driver(model: FakeModel | None = None, **limits: Any) -> Driver:
    return Driver(FakeView(model or FakeModel(echo_family())), limits=LimitsConfig(**limits))


def peak_bytes(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Made when they are asked for: they come to 230 MB.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "deep": lambda: b"[" * (20 * MB),
    "deep in a key": lambda: b'{"x":' + b"[" * (20 * MB),
    "lists": lambda: b"[" + b"[]," * (7 * MB) + b"[]]",
    "objects": lambda: b"[" + b'{"a":0},' * (3 * MB) + b"0]",
    "parameters": lambda: b'{"parameters":{' + b'"a":0,' * (4 * MB) + b'"b":0}}',
    "numbers": lambda: NUMBERS + b"0," * (10 * MB) + b"0]}]}",
    "nested": lambda: NUMBERS + b"[0]," * (5 * MB) + b"[0]]}]}",
    "strings": lambda: b"[" + b'"a",' * (5 * MB) + b'""]',
    "one string": lambda: b'{"id":"' + b"a" * (20 * MB) + b'"}',
    "quotes": lambda: b'["' + b'\\"[' * (7 * MB) + b'"]',
    "blanks": lambda: b" " * (20 * MB) + b"{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bomb_of_json_is_stopped_at_the_limit(name: str) -> None:
    packed = gzip.compress(HOSTILE[name](), 1)
    assert len(packed) < 200_000
    d = driver()
    d.feed(request("POST", INFER, packed, [GZIP]))
    peak = peak_bytes(d.loop.settle)
    (answer,) = d.take()
    assert answer.status == 413
    assert "limits.json_bytes" in answer.json()["error"]
    assert "binary data" in answer.json()["error"]
    assert peak < 4 * JSON_BYTES


@pytest.mark.parametrize("name", HOSTILE)
def test_what_json_comes_to_is_known_before_it_is_made(name: str) -> None:
    """Of a text within the limit; on its own, the parser makes 23 bytes and more of each byte of some of these."""
    text = HOSTILE[name]()[:JSON_BYTES]
    d = driver()
    peak = peak_bytes(lambda: d.feed(request("POST", INFER, text)))
    d.loop.settle()
    (answer,) = d.take()
    assert answer.status in (400, 413)
    assert peak < 16 * MB


def test_a_text_weighs_what_its_objects_do() -> None:
    signature = Signature(echo_family(), 1 << 20)
    for unit in (b"[],", b"{},", b'{"a":0},', b'"a",', b"1e9,", b"[0],", b'[{"abcdef":[]}],'):
        refused = decoded = 0
        for count in (10_000, 40_000, 80_000, 160_000, 320_000):
            text = b'{"x":[%b0]}' % (unit * count)
            if len(text) > JSON_BYTES:
                break

            def call(text: bytes = text) -> None:
                nonlocal refused, decoded
                try:
                    decode(signature, text)
                except Exception as error:
                    refused += "too many values" in str(error)
                    decoded += "inputs is missing" in str(error)

            assert peak_bytes(call) < 32 * MB, (unit, count)
        assert decoded
        assert refused


def test_a_tensor_of_a_usual_size_is_taken_as_json() -> None:
    image = np.random.default_rng(0).random((3, 224, 224), np.float32)
    for datatype, data in (("FP32", [image.tolist()]), ("INT64", (image * 255).astype(int).reshape(-1).tolist())):
        model = FakeModel(family("echo", [tensor("IN", datatype, 3, 224, 224)], [tensor("OUT", datatype, 1)]))
        item = {"name": "IN", "shape": [1, 3, 224, 224], "datatype": datatype, "data": data}
        d = driver(model, json_bytes=8 * MB)
        d.feed(request("POST", INFER, orjson.dumps({"inputs": [item], "outputs": []})))
        d.loop.settle()
        assert [answer.status for answer in d.take()] == [200]
        assert model.tickets[0].inputs[0].shape == (1, 3, 224, 224)


def test_json_that_is_too_long_is_refused_by_its_head() -> None:
    d = driver(json_bytes=2000)
    head = request("POST", INFER, fields=["Content-Length: 2001"])
    error = (
        "the JSON of an infer request has at most 2000 bytes (limits.json_bytes): send its tensors as binary data, "
        "with Inference-Header-Content-Length"
    )
    (answer,) = d.send(head)
    assert (answer.status, answer.json()) == (413, {"error": error})
    d = driver(json_bytes=2000)
    chunked = request("POST", INFER, fields=["Transfer-Encoding: chunked"])
    assert [answer.json() for answer in d.send(chunked + b"7d1\r\n")] == [{"error": error}]
    d = driver(json_bytes=2000)
    long = orjson.dumps(echo_body(x="a" * 2000))
    fields = [f"Inference-Header-Content-Length: {len(long)}"]
    assert [answer.json() for answer in d.send(request("POST", INFER, long, fields))] == [{"error": error}]


def test_tensors_in_binary_do_not_count_as_json() -> None:
    rows = np.zeros((1000, 4), "<f4")
    item = {"name": "IN", "shape": [1000, 4], "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    text = orjson.dumps({"inputs": [item]})
    fields = [f"Inference-Header-Content-Length: {len(text)}"]
    for body, more in ((text + rows.tobytes(), []), (gzip.compress(text + rows.tobytes()), [GZIP])):
        d = driver(json_bytes=2000)
        assert d.post(INFER, body, *fields, *more).status == 200


@pytest.mark.parametrize(
    "path", ["/v2/clover/pin", "/v2/clover/set", "/v2/repository/index", "/v2/models/echo/feedback"]
)
def test_no_other_body_is_received_beyond_its_bound(path: str) -> None:
    most = 262144 if path.endswith("feedback") else 65536
    d = driver()
    chunked = request("POST", path, fields=["Transfer-Encoding: chunked"])
    (answer,) = d.send(chunked + b"%x\r\n" % (most + 1))
    assert answer.status == 413
    assert answer.json() == {"error": f"a body that is no inference has at most {most} bytes"}


def test_the_id_of_a_request_is_bounded() -> None:
    d = driver()
    for long, status in (("a" * 1024, 200), ("a" * 1025, 400), ("é" * 1025, 400)):
        assert d.post(INFER, echo_body(id=long)).status == status
        assert d.post(INFER, echo_body(id=long, parameters={"timeout": 0})).status == status


# --- pieces -----------------------------------------------------------------------------------------------------------


def finish(inflation: Inflation) -> bytes:
    while not inflation.step():
        pass
    return bytes(inflation.plain)


def test_a_body_is_decompressed_in_pieces() -> None:
    plain = np.random.default_rng(1).integers(0, 60, 3 * MB, np.uint8).tobytes()
    for body in (gzip.compress(plain, 1), gzip.compress(b"0" * len(plain), 9)):
        inflation = Inflation("gzip", body, 4 * MB, "too much")
        before = steps = 0
        while not inflation.step():
            assert len(inflation.plain) - before <= PIECE_OUT_BYTES
            before = len(inflation.plain)
            steps += 1
        assert steps >= len(plain) // PIECE_OUT_BYTES - 1
        assert len(inflation.plain) == len(plain)
    nothing = b"\x78\x9c" + b"\x00\x00\x00\xff\xff" * 100_000  # blocks without an end, which come to nothing
    inflation = Inflation("deflate", nothing, 4 * MB, "too much")
    for _ in range(len(nothing) // PIECE_IN_BYTES):
        assert not inflation.step()
    with pytest.raises(BadRequest, match="not valid"):
        finish(inflation)


@pytest.mark.parametrize("size", [PIECE_OUT_BYTES - 1, PIECE_OUT_BYTES, PIECE_OUT_BYTES + 1, 3 * PIECE_OUT_BYTES])
def test_bodies_of_whole_pieces(size: int) -> None:
    for plain in (b"\0" * size, np.random.default_rng(2).bytes(size)):
        packed = zlib.compress(plain)
        assert finish(Inflation("deflate", packed, size, "too much")) == plain
        with pytest.raises(BadRequest, match="not valid"):
            finish(Inflation("deflate", packed[:-1], size, "too much"))
        with pytest.raises(TooLarge, match="too much; this one has more once decompressed"):
            finish(Inflation("deflate", packed, size - 1, "too much"))


def binary_bomb(rows: int) -> tuple[bytes, list[str]]:
    item = {"name": "IN", "shape": [rows, 4], "datatype": "FP32", "parameters": {"binary_data_size": rows * 16}}
    text = orjson.dumps({"inputs": [item], "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]})
    return gzip.compress(text + bytes(rows * 16)), [GZIP, f"Inference-Header-Content-Length: {len(text)}"]


def test_one_body_at_a_time_is_decompressed() -> None:
    """Twenty clients send four kilobytes each, which come to four megabytes each."""

    def first_row(inputs: list[Any]) -> list[Any]:
        model.tickets.clear()  # the fake's own record of what it was given
        return [inputs[0][:1]]

    model = FakeModel(echo_family(), first_row, most_rows=1 << 20)
    d = driver(model)
    body, fields = binary_bomb(1 << 18)
    everyone = []
    for _ in range(20):
        d.connect()
        everyone.append(d.transport)
        d.feed(request("POST", INFER, body, fields))
    peak = peak_bytes(d.loop.settle)
    assert [one.sent[9:12] for one in everyone] == [b"200"] * 20
    assert peak < 20 * MB + 20 * PIECE_OUT_BYTES


def test_a_client_that_leaves_makes_room_for_the_next() -> None:
    model = FakeModel(echo_family(), lambda inputs: [inputs[0][:1]], most_rows=1 << 20)
    d = driver(model)
    body, fields = binary_bomb(1 << 18)
    everyone = []
    for _ in range(3):
        d.connect()
        everyone.append((d.connection, d.transport))
        d.feed(request("POST", INFER, body, fields))
    d.loop.turn()
    for connection, _ in everyone[:2]:
        connection.connection_lost(None)
    d.loop.settle()
    assert [bool(transport.sent) for _, transport in everyone] == [False, False, True]
    assert model.open_tickets == 0


def test_a_turn_of_the_loop_reads_a_bounded_part_of_what_has_come() -> None:
    """Fifty clients complete bodies of 60 kB in one turn."""
    model = FakeModel(echo_family(), held=True)
    d = driver(model)
    body = orjson.dumps(echo_body(x="a" * 60_000))
    everyone = []
    for _ in range(50):
        d.connect()
        everyone.append(d.transport)
        d.feed(request("POST", INFER, body))
    before = len(model.waiting)
    assert before <= TURN_BYTES // 60_000 + 1
    turns = 0
    while len(model.waiting) < 50:
        d.loop.turn()
        turns += 1
        assert 0 < len(model.waiting) - before <= TURN_BYTES // 60_000 + 1
        before = len(model.waiting)
    assert turns > 8
    while model.waiting:
        model.run()
    d.loop.settle()
    assert [one.sent[9:12] for one in everyone] == [b"200"] * 50


def test_a_client_that_leaves_before_its_body_is_read_gets_no_slots() -> None:
    model = FakeModel(echo_family(), held=True)
    d = driver(model)
    body = orjson.dumps(echo_body(x="a" * 500_000))
    for _ in range(2):
        d.connect()
        d.feed(request("POST", INFER, body))
    d.connection.connection_lost(None)
    d.loop.settle()
    assert len(model.waiting) == len(model.tickets) == 1


def test_a_body_that_waits_for_its_turn_counts_as_held() -> None:
    model = FakeModel(echo_family(), held=True)
    d = driver(model)
    body = orjson.dumps(echo_body(x="a" * 500_000))
    everyone = []
    for _ in range(3):
        d.connect()
        everyone.append(d.connection)
        d.feed(request("POST", INFER, body))
    assert [connection.held() for connection in everyone] == [len(body)] * 3
    d.loop.settle()
    assert [connection.held() for connection in everyone] == [0, 0, 0]  # now they are rows


def test_an_answer_that_waits_for_an_earlier_one_counts_as_held() -> None:
    model = FakeModel(echo_family(), held=True)
    d = driver(model)
    for _ in range(2):
        d.feed(request("POST", INFER, orjson.dumps(echo_body())))
    assert d.connection.held() == 0
    model.finish(model.waiting.pop())
    d.loop.settle()
    assert 100 < d.connection.held() < 1000


def test_requests_behind_a_long_body_are_answered_in_order() -> None:
    d = driver()
    long = request("POST", INFER, orjson.dumps(echo_body(id="long", x="a" * 500_000)))
    short = request("POST", INFER, orjson.dumps(echo_body(id="short")))
    data = (long + request("GET", "/v2") + short) * 3
    while data:
        taken = min(len(d.connection.get_buffer(-1)), len(data))
        d.feed(data[:taken])
        data = data[taken:]
        while not d.transport.reading:
            d.loop.turn()
    d.loop.settle()
    assert [answer.json().get("id", "get") for answer in d.take()] == ["long", "get", "short"] * 3


# --- answers ----------------------------------------------------------------------------------------------------------


class LargeView(FakeView):
    """Its documents are large, and counted as they are made."""

    def __init__(self) -> None:
        super().__init__(FakeModel(echo_family(), held=True))
        self.made = 0
        self.controller.decisions_json = self.decisions_json  # type: ignore[method-assign]

    def decisions_json(self, limit: int) -> bytes:
        self.made += 1
        return orjson.dumps(["x" * 1600] * limit)

    def metrics(self) -> bytes:
        self.made += 1
        return b"x" * 100_000


LARGE = request("GET", "/v2/clover/decisions?limit=1000")


@pytest.mark.parametrize("one", [LARGE, request("GET", "/metrics")], ids=["decisions", "metrics"])
def test_of_large_documents_one_is_left_unread(one: bytes) -> None:
    view = LargeView()
    d = Driver(view)
    d.transport.blocked = True
    d.feed(one * 500)
    d.loop.settle()
    assert view.made == 1
    assert not d.transport.reading
    d.transport.unblock()
    d.loop.settle()
    assert view.made == 500
    assert d.transport.reading


def test_of_large_documents_one_is_made_in_a_turn() -> None:
    view = LargeView()
    d = Driver(view)
    everyone = []
    for _ in range(30):
        d.connect()
        everyone.append(d.transport)
        d.feed(LARGE * 3)
    assert view.made == 0
    turns = 0
    while d.loop.ready:
        before = view.made
        d.loop.turn()
        turns += 1
        assert view.made <= before + 1
    assert view.made == 90
    for one in everyone:
        assert one.sent.count(b"HTTP/1.1 200 OK") == 3


def test_large_documents_wait_behind_a_slow_answer() -> None:
    view = LargeView()
    model = view.by_name["echo"]
    d = Driver(view)
    d.feed(request("POST", INFER, orjson.dumps(echo_body())) + LARGE * 20)
    d.loop.settle()
    assert view.made == 1
    model.run()
    d.loop.settle()
    assert view.made == 20
    assert len(d.take()) == 21


def test_a_document_is_not_made_for_a_client_that_left() -> None:
    view = LargeView()
    d = Driver(view)
    d.feed(LARGE)
    d.connection.connection_lost(None)
    d.loop.settle()
    assert view.made == 0


def test_answers_to_inference_are_left_unread_up_to_a_bound() -> None:
    model = FakeModel(echo_family(), lambda inputs: [np.zeros((10_000, 4), np.float32)])
    d = driver(model)
    d.transport.blocked = True
    d.feed(request("POST", INFER, orjson.dumps(echo_body())) * 32)
    d.loop.settle()
    assert d.transport.pending < 400_000
    assert not d.transport.reading
    d.transport.unblock()
    d.loop.settle()
    assert d.transport.sent.count(b"HTTP/1.1 200 OK") == 32


class Started:
    """A task that somebody else runs."""

    def add_done_callback(self, callback: Any) -> None:
        pass


def test_commands_of_a_connection_run_one_after_the_other() -> None:
    d = driver()
    changes: list[Any] = []

    def create_task(change: Any) -> Started:
        changes.append(change)
        return Started()

    d.loop.create_task = create_task  # type: ignore[method-assign]
    d.feed(request("POST", "/v2/clover/base", b"") * 3)
    for count in (1, 2, 3):
        assert len(changes) == count
        asyncio.run(changes[-1])
        d.loop.settle()
    assert [answer.status for answer in d.take()] == [200] * 3


# --- endings while something waits its turn ---------------------------------------------------------------------------

WAITING = {
    "a long body": request("POST", INFER, orjson.dumps(echo_body(x="a" * 500_000))),
    "a compressed body": request("POST", INFER, gzip.compress(orjson.dumps(echo_body(x="a" * 3_000_000))), [GZIP]),
    "a document": request("GET", "/v2/clover/state"),
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_its_turn_is_answered_however_the_connection_ends(what: str) -> None:
    d = driver()
    d.feed(WAITING[what])
    assert d.transport.sent == b""
    assert d.connection.eof_received()  # half-closed: the answer is still due
    d.loop.settle()
    assert [answer.status for answer in d.take()] == [200]
    assert d.transport.closed
    d = driver()
    d.feed(WAITING[what])
    d.state.draining = True
    d.connection.drain()
    assert not d.transport.closed
    d.loop.settle()
    assert [(answer.status, answer.fields["connection"]) for answer in d.take()] == [(200, "close")]
    assert d.transport.closed
    d = driver()
    d.feed(WAITING[what])
    d.connection.connection_lost(None)
    d.loop.settle()
    assert d.transport.sent == b""
    assert d.view.by_name["echo"].open_tickets == 0


def test_nothing_is_asked_for_that_would_be_refused() -> None:
    d = driver(json_bytes=2000)
    expecting = ["Expect: 100-continue", "Content-Length: 2001"]
    assert [answer.status for answer in d.send(request("POST", INFER, fields=expecting))] == [413]
    d = driver()
    body = orjson.dumps(echo_body(x="a" * 500_000))
    expecting = ["Expect: 100-continue", f"Content-Length: {len(body)}"]
    assert [answer.status for answer in d.send(request("POST", INFER, fields=expecting))] == [100]
    assert [answer.status for answer in d.send(body)] == [200]
