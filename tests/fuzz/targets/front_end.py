"""The front end as a whole: bytes in pieces, into a connection on a transport that records.

The first byte chooses circumstances (bits: the client does not read, answers are held back, the loop turns between
pieces, a token is set, the client half-closes at the end), the second how the rest is cut.

No case raises; nothing but whole answers is written; no request is answered before it is complete, but for an error
that ends the connection, and none twice; slots and memory come back; the next connection is served as if nothing had
been.
"""

from __future__ import annotations

from random import Random

import orjson

from clover.config import LimitsConfig, ListenConfig
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, request
from tests.support.http_streams import parse, requests_in

INSTRUMENTED = ("clover.http",)
INFER = "/v2/models/echo/infer"
BODY = orjson.dumps(echo_body(id="a"))
ROWS = orjson.dumps({"inputs": [{"name": "IN", "shape": [1, 4], "datatype": "FP32",
                                 "parameters": {"binary_data_size": 16}}]})  # fmt: skip
HOST = b"Host: localhost\r\n"
LIMITS = LimitsConfig(head_bytes=2048, body_bytes=1 << 16, json_bytes=4096, pipelined=4)
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 421, 422, 429, 431, 501, 503, 505}

DICTIONARY = (
    *(b"GET ", b"POST ", b"HEAD ", b"OPTIONS * ", b"CONNECT a:1 ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n",
      b"\r\n\r\n"),
    *(HOST, b"Content-Length: ", b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n",
      b"Expect: 100-continue\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Content-Encoding: gzip\r\n",
      b"Authorization: Bearer t\r\n"),
    *(b"Inference-Header-Content-Length: ", b"X-Request-Id: a\r\n", b"Origin: null\r\n", b"Upgrade: h2c\r\n",
      b"0\r\n\r\n"),
    *(b"4\r\nabcd\r\n", b";a=b", b"/v2", b"/v2/models/echo", INFER.encode(), b"/metrics", b"/v2/clover/pin", b"%2F",
      b"?a=b"),
    *(b"http://localhost", b"http://evil.example/", b"\n", b"\r", b"\0", b"\t", b",", b":", b'{"inputs":', b'"data":'),
    b"Accept-Encoding: gzip\r\n", b"Cache-Control: no-store\r\n", b"Sec-Fetch-Site: cross-site\r\n",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return conversations, each whole and in pieces."""
    chunked = b"POST " + INFER.encode() + b" HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    said = [
        request("POST", INFER, BODY),
        request("POST", INFER, BODY) * 3,
        request("POST", INFER, ROWS + bytes(16), [f"Inference-Header-Content-Length: {len(ROWS)}"]),
        request("POST", INFER, BODY, ["Expect: 100-continue"]),
        chunked + b"%x;e\r\n%b\r\n0\r\nT: x\r\n\r\n" % (len(BODY), BODY),
        chunked + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n" + request("GET", "/v2"),
        request("GET", "/v2") + request("HEAD", "/v2/health/ready") + request("GET", "/nothing"),
        request("GET", "/v2/models/echo") + request("POST", "/v2/repository/index", b"{}"),
        request("POST", "/v2/clover/pin", b'{"variants":["a"]}', ["Authorization: Bearer t"]),
        request("GET", "/metrics", fields=["Accept-Encoding: gzip"]) + request("OPTIONS", "*"),
        request("GET", "http://localhost/v2", version="1.0", fields=["Connection: keep-alive"]) * 2,
        b"GET /v2 HTTP/1.0\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n",
        b"\r\n\r\n" + request("DELETE", "/v2", b"abc") + b"GE T / HTTP/1.1\r\n\r\n",
    ]
    return [bytes([how, cut]) + data for data in said for how, cut in ((0, 0), (4, 1), (7, 2), (18, 3), (12, 200))]


def check(data: bytes) -> str:
    """Play one conversation."""
    how, cut = (*data[:2], 0, 0)[:2]
    stream = data[2:]
    model = FakeModel(echo_family(), held=bool(how & 2))
    model.roomy = bool(how & 32)
    d = Driver(FakeView(model), limits=LIMITS, listen=ListenConfig(token="t" if how & 8 else ""))
    first = d.transport
    first.blocked = bool(how & 1)
    _feed(d, stream, cut, turns=bool(how & 4))
    if how & 16 and not first.closed and not d.connection.eof_received():
        first.close()
    d.loop.settle()
    held = d.connection.held()
    assert held <= LIMITS.body_bytes + 4 * len(stream) + (1 << 20), f"{held} bytes are held for {len(stream)}"
    while model.waiting:
        model.run()
        d.loop.settle()
    while first.pending and not first.closed:
        first.unblock()
        d.loop.settle()
        while model.waiting:
            model.run()
            d.loop.settle()
    answers = parse(first.sent)
    final = [answer for answer in answers if answer.status != 100]
    assert {answer.status for answer in final} <= STATUSES, [answer.status for answer in final]
    complete = requests_in(stream)
    for answer in final[complete:]:
        assert answer.status >= 400, f"{complete} requests were complete, and one more was answered {answer.status}"
        assert answer.fields.get("connection") == "close", "a request was answered twice, or before it was complete"
    assert len(final) <= complete + 1, f"{len(final)} answers to {complete} requests"
    for _ in range(200):
        if first.closed:
            break
        d.sweep(0.5)
        d.loop.settle()
    assert first.closed, "the connection is never closed"
    d.connection.connection_lost(None)
    d.loop.settle()
    assert model.open_tickets == 0, "slots are lost"
    assert not d.connections
    assert d.stats.open_connections == 0
    model.held = False
    d.connect()
    good = d.send(request("POST", INFER, BODY, ["Authorization: Bearer t"]))
    assert [answer.status for answer in good] == [200], "the next client is not served"
    return repr([(answer.status, answer.body) for answer in answers])


def _feed(d: Driver, stream: bytes, cut: int, *, turns: bool) -> None:
    chance = Random(cut)
    longest = (len(stream) + 1, 1, 7, 64, 600)[cut % 5]
    at = 0
    while at < len(stream):
        size = chance.randint(1, longest) if longest <= len(stream) else len(stream)
        _deliver(d, stream[at : at + size])
        at += size
        if turns:
            d.loop.turn()


def _deliver(d: Driver, piece: bytes) -> None:
    """Deliver a piece as sockets do: what comes while reading is paused waits until it goes on."""
    while piece and not d.transport.closed:
        if not d.transport.reading:
            d.loop.settle()
            if not d.transport.reading:
                return  # it waits for its answers to be read or made
            continue
        buffer = d.connection.get_buffer(-1)
        taken = min(len(buffer), len(piece))
        buffer[:taken] = piece[:taken]
        d.connection.buffer_updated(taken)
        piece = piece[taken:]
