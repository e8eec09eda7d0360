"""HTTP/1.1 framing: every refusal of the security rules, every limit, and the stream cut anywhere."""

from __future__ import annotations

import gzip
import logging
import zlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.config import LimitsConfig, ListenConfig
from clover.http.heads import MOST_FIELDS, MOST_LINE_BYTES, Head, Heads, MalformedError
from clover.telemetry.otel.spans import RequestNote
from clover.telemetry.otel.tracer import Tracer
from tests.support.examples import examples
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_body, echo_family, request

HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


def driver(**limits: float) -> Driver:
    return Driver(FakeView(FakeModel(echo_family())), limits=LimitsConfig(**limits))  # type: ignore[arg-type]


REFUSED = {
    "TE with CL": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "CL with TE": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
    "TE other": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "TE list": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "TE twice": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "TE identity": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "TE on 1.0": (b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "CL list": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "CL twice": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "CL plus": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc", 400),
    "CL minus": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -3\r\n\r\nabc", 400),
    "CL hex": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "CL empty": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\nabc", 400),
    "CL huge": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 18446744073709551615\r\n\r\nabc", 413),
    "CL overflow": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n\r\nabc", 400),
    "obs-fold": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400),
    "obs-fold tab": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n", 400),
    "fold first": (b"GET / HTTP/1.1\r\n " + HOST + b"\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    "bare LF inside": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\nY: b\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n", 400),
    "NUL in field": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", 400),
    "NUL in line": (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "NUL alone": (b"\0", 400),
    "control in field": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x01b\r\n\r\n", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no Host, absolute": (b"GET http://localhost/v2 HTTP/1.1\r\n\r\n", 400),
    "two Hosts on 1.0": (b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n", 400),
    "empty Host on 1.0": (b"GET / HTTP/1.0\r\nHost: \r\n\r\n", 400),
    "foreign Host on 1.0": (b"GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n", 403),
    "Origin without a Host": (b"GET / HTTP/1.0\r\nOrigin: http://localhost\r\n\r\n", 403),
    "Origin of nothing without a Host": (b"POST / HTTP/1.0\r\nOrigin: http://\r\n\r\n", 403),
    "absolute elsewhere": (b"GET http://evil.example/v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    "absolute elsewhere, our Host": (b"GET http://evil.example/v2 HTTP/1.1\r\n" + HOST + b"\r\n", 421),
    "absolute elsewhere on 1.0": (b"GET http://evil.example/v2 HTTP/1.0\r\n\r\n", 421),
    "absolute elsewhere, TLS": (b"GET https://evil.example:443/ HTTP/1.1\r\n" + HOST + b"\r\n", 421),
    "absolute, invalid Host": (b"GET http://localhost/v2 HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "absolute, userinfo": (b"GET http://localhost@evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute, no host": (b"GET http:///v2 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "empty Host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
    "Host list": (b"GET / HTTP/1.1\r\nHost: localhost, b\r\n\r\n", 400),
    "Host userinfo": (b"GET / HTTP/1.1\r\nHost: a@localhost\r\n\r\n", 400),
    "Host path": (b"GET / HTTP/1.1\r\nHost: localhost/a\r\n\r\n", 400),
    "Host port": (b"GET / HTTP/1.1\r\nHost: localhost:99999\r\n\r\n", 400),
    "foreign Host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/0.9 named": (b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "lower version": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "trailing space": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "tab": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "bad method": (b"GE(T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "relative target": (b"GET v2 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "8-bit target": (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", 400),
    "no name": (b"GET / HTTP/1.1\r\n" + HOST + b": a\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\n" + HOST + b"abc\r\n\r\n", 400),
    "expectation": (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: tea\r\nContent-Length: 1\r\n\r\n", 417),
    "coding": (b"POST /v2 HTTP/1.1\r\n" + HOST + b"Content-Encoding: br\r\nContent-Length: 9\r\n\r\n", 415),
    "two codings": (
        b"POST /v2 HTTP/1.1\r\n" + HOST + b"Content-Encoding: gzip, gzip\r\nContent-Length: 9\r\n\r\n",
        415,
    ),
    "JSON length": (
        b"POST /v2 HTTP/1.1\r\n" + HOST + b"Inference-Header-Content-Length: x\r\nContent-Length: 9\r\n\r\n",
        400,
    ),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "chunk size": (CHUNKED + b"x\r\n", 400),
    "chunk size empty": (CHUNKED + b"\r\n", 400),
    "chunk size sign": (CHUNKED + b"+1\r\na\r\n", 400),
    "chunk size prefix": (CHUNKED + b"0x1\r\na\r\n", 400),
    "chunk size space": (CHUNKED + b" 1\r\na\r\n", 400),
    "chunk size long": (CHUNKED + b"00000000000000001\r\na\r\n", 400),
    "chunk size huge": (CHUNKED + b"ffffffffffffffff\r\n", 413),
    "chunk bare LF": (CHUNKED + b"1\na\r\n", 400),
    "chunk data LF": (CHUNKED + b"1\r\na\n0\r\n\r\n", 400),
    "chunk too long": (CHUNKED + b"1\r\nab\r\n0\r\n\r\n", 400),
    "chunk no CRLF": (CHUNKED + b"1\r\naXX0\r\n\r\n", 400),
    "extension NUL": (CHUNKED + b"1;a=\0\r\n", 400),
    "extension CR": (CHUNKED + b"1;a=\rb\r\n", 400),
    "trailer": (CHUNKED + b"0\r\nnot a field\r\n\r\n", 400),
    "trailer folded": (CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, status = REFUSED[case]
    d = driver()
    answers = d.send(data)
    assert [answer.status for answer in answers] == [status]
    assert set(answers[0].json()) == {"error"}
    assert answers[0].fields["content-type"] == "application/json"
    # Whatever follows on a connection out of step is not read as a request.
    if answers[0].fields.get("connection") == "close":
        assert d.send(request("GET", "/v2")) == []


def test_refused_at_every_cut() -> None:
    for data, status in REFUSED.values():
        d = driver()
        for byte in data:
            d.feed(bytes([byte]))
        d.loop.settle()
        assert [answer.status for answer in d.take()] == [status]


ACCEPTED = {
    "absolute": b"GET http://localhost:8080/v2?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute, its authority counts": b"GET http://localhost/v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "absolute on 1.0, no Host": b"GET http://localhost/v2 HTTP/1.0\r\n\r\n",
    "no Host on 1.0": b"GET /v2 HTTP/1.0\r\n\r\n",
    "no Host on 1.0, kept alive": b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "empty line first": b"\r\nGET /v2 HTTP/1.1\r\n" + HOST + b"\r\n",
    "percent": b"GET /%76%32 HTTP/1.1\r\n" + HOST + b"\r\n",
    "IPv6": b"GET /v2 HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "8-bit value": b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: \xe9\r\n\r\n",
    "upgrade declined": b"GET /v2 HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "field case": b"GET /v2 HTTP/1.1\r\nhOST: LOCALHOST\r\n\r\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    answers = driver().send(ACCEPTED[case])
    assert [(answer.status, answer.json()["name"]) for answer in answers] == [(200, "clover")]


OURS = st.sampled_from(["localhost", "LocalHost", "127.0.0.1", "[::1]", "localhost:8080", "127.0.0.1:1"])
THEIRS = st.sampled_from(["evil.example", "localhost.evil.example", "192.0.2.7", "[2001:db8::1]:80", "127.0.0.1.x"])


@given(
    target=st.none() | OURS | THEIRS,
    host=st.none() | OURS | THEIRS,
    origin=st.sampled_from([None, "null", "http://localhost", "http://evil.example"]),
    minor=st.integers(0, 1),
    change=st.booleans(),
)
def test_nothing_is_answered_under_a_name_that_is_not_ours(
    target: str | None, host: str | None, origin: str | None, minor: int, change: bool
) -> None:
    """The name that counts is the target's, else the Host's; only HTTP/1.0 may have none, and then no Origin either."""
    ours = {"localhost", "127.0.0.1", "[::1]"}
    method, path = ("POST", "/v2/clover/pin") if change else ("GET", "/v2")
    lines = [f"{method} {f'http://{target}' if target else ''}{path} HTTP/1.{minor}"]
    lines += [f"Host: {host}"] if host else []
    lines += [f"Origin: {origin}"] if origin else []
    d = driver()
    (answer,) = d.send(("\r\n".join(lines) + "\r\n\r\n").encode())
    name = target or host
    bare = "" if name is None else name.lower() if name.endswith("]") else name.lower().rsplit(":", 1)[0]
    if minor == 1 and host is None:
        expected = 400
    elif name is None:
        expected = 200 if origin is None else 403
    elif bare not in ours:
        expected = 421 if target else 403
    else:
        foreign = change and origin is not None and origin != f"http://{name.lower()}"
        expected = 403 if foreign else 200
    assert answer.status == expected
    assert bool(d.view.controller.commands) == (change and expected == 200)


def test_without_a_host_the_other_rules_hold() -> None:
    """HTTP/1.0 needs no Host; it needs the token and a loopback peer as anybody does, and its connection ends."""
    bare = b"POST /v2/clover/pin HTTP/1.0\r\nContent-Length: 0\r\n"
    view = FakeView(FakeModel(echo_family()))
    assert Driver(view, peer=("192.0.2.1", 1)).send(bare + b"\r\n")[0].status == 403
    assert Driver(view, listen=ListenConfig(token="t")).send(bare + b"\r\n")[0].status == 401
    everywhere = ListenConfig(host="0.0.0.0", token="t")
    assert Driver(view, listen=everywhere).send(b"GET /v2 HTTP/1.0\r\n\r\n")[0].status == 401
    d = Driver(view)
    (answer,) = d.send(bare + b"\r\n" + b"GET /v2 HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    assert d.transport.closed
    d = Driver(view)
    for _ in range(2):
        (answer,) = d.send(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (answer.status, answer.fields["connection"]) == (200, "keep-alive")
    assert not d.transport.closed


def test_encoded_slash_makes_no_segment() -> None:
    assert driver().get("/v2%2Fhealth%2Flive").status == 404


@pytest.mark.parametrize(
    ("limits", "data", "status"),
    [
        ({}, b"GET /" + b"a" * MOST_LINE_BYTES + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        ({}, b"GET /" + b"a" * MOST_LINE_BYTES, 414),
        ({"head_bytes": 128}, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 128 + b"\r\n\r\n", 431),
        ({"head_bytes": 128}, b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 128, 431),
        ({}, b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * MOST_FIELDS + b"\r\n", 431),
        ({"body_bytes": 10}, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 11\r\n\r\n", 413),
        ({"body_bytes": 10}, CHUNKED + b"6\r\naaaaaa\r\n5\r\naaaaa\r\n", 413),
    ],
)
def test_limits(limits: dict[str, int], data: bytes, status: int) -> None:
    answers = driver(**limits).send(data)
    assert [answer.status for answer in answers] == [status]


def test_limits_are_inclusive() -> None:
    assert driver().send(b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: a\r\n" * (MOST_FIELDS - 1) + b"\r\n")[0].status == 200
    body = orjson.dumps({"ready": True})
    assert driver(body_bytes=len(body)).post("/v2/repository/index", body).status == 200


@pytest.mark.slow
def test_chunk_bounds() -> None:
    assert driver().send(CHUNKED + b"1\r\n \r\n" * 65_537)[0].status == 413
    assert driver().send(CHUNKED + b"1\r\n \r\n" * 65_530 + b"2\r\n{}\r\n0\r\n\r\n")[0].status == 200
    assert driver().send(CHUNKED + b"1;" + b"a" * 20_000)[0].status == 413
    assert driver().send(CHUNKED + (b"1;" + b"a" * 1000 + b"\r\n \r\n") * 17)[0].status == 413
    assert driver().send(CHUNKED + b"2;a=b\r\n{}\r\n0;c\r\n\r\n")[0].status == 200
    assert driver().send(CHUNKED + b"2\r\n{}\r\n0\r\nA: b\r\nC: d\r\n\r\n")[0].status == 200
    assert driver().send(CHUNKED + b"0\r\nA: " + b"b" * 9000)[0].status == 413
    assert driver().send(CHUNKED + b"0\r\n" + b"A: b\r\n" * 1500)[0].status == 413


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate"])
def test_coded_bodies(coding: str) -> None:
    pack = zlib.compress if coding == "deflate" else gzip.compress
    body = orjson.dumps(echo_body(id="a"))
    d = driver(body_bytes=1 << 20)
    path, field = "/v2/models/echo/infer", f"Content-Encoding: {coding}"
    assert d.post(path, pack(body), field).json()["id"] == "a"
    assert d.post(path, pack(body)[:-3], field).status == 400
    assert d.post(path, pack(body) + b"x", field).status == 400
    assert d.post(path, b"not that", field).status == 400
    assert d.post(path, pack(b" " * ((1 << 20) + 1)), field).status == 413
    assert d.post(path, body, "Content-Encoding: identity").status == 200


def test_raw_deflate_is_not_deflate() -> None:
    packer = zlib.compressobj(wbits=-15)
    raw = packer.compress(b"{}") + packer.flush()
    assert driver().post("/v2/repository/index", raw, "Content-Encoding: deflate").status == 400


# --- any cut of the stream --------------------------------------------------------------------------------------------


def conversation() -> bytes:
    body = orjson.dumps(echo_body(id="one"))
    large = orjson.dumps(echo_body(*([0.5] * 400), id="large"))
    chunked = b"%x;ext=1\r\n%b\r\n0\r\nT: x\r\n\r\n" % (len(body), body)
    return b"".join(
        [
            request("POST", "/v2/models/echo/infer", body, ["X-Request-Id: a"]),
            request("GET", "/v2", fields=["X-Request-Id: b"]),
            b"\r\nPOST /v2/models/echo/infer HTTP/1.1\r\n"
            + HOST
            + b"X-Request-Id: c\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunked,
            request("GET", "/nothing", fields=["X-Request-Id: d"]),
            request("POST", "/v2/models/echo/infer", large, ["X-Request-Id: e"]),
            request("HEAD", "/v2/none", b"", ["X-Request-Id: f"])[:0],
            request("DELETE", "/v2", b"abc", ["X-Request-Id: g"]),
            b"GET /v2 HTTP/1.1\r\nX-Request-Id: bad\r\n\r\n",
        ]
    )


CONVERSATION = conversation()
WHOLE = [(a.status, a.body, a.fields["x-request-id"]) for a in driver().send(CONVERSATION)[:-1]]


def test_the_conversation_is_what_it_seems() -> None:
    assert [(status, name) for status, _, name in WHOLE] == [
        (200, "a"), (200, "b"), (200, "c"), (404, "d"), (200, "e"), (405, "g"),
    ]  # fmt: skip


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(150))
@given(st.lists(st.integers(1, len(CONVERSATION) - 1), max_size=40), st.booleans())
def test_any_cut_gives_the_same_answers(cuts: list[int], settle: bool) -> None:
    d = driver()
    at = 0
    for cut in [*sorted(set(cuts)), len(CONVERSATION)]:
        d.feed(CONVERSATION[at:cut])
        if settle:
            d.loop.settle()
        at = cut
    d.loop.settle()
    answers = d.take()
    assert [(a.status, a.body, a.fields["x-request-id"]) for a in answers[:-1]] == WHOLE
    assert answers[-1].status == 400


FRAGMENTS = [
    *(b"GET ", b"POST ", b"/v2", b"/", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b": "),
    *(b"Host: localhost\r\n", b"Content-Length: 4\r\n", b"Content-Length: 0\r\n", b"Connection: close\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"4\r\nabcd\r\n", b";x"),
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://localhost/v2 HTTP/1.0\r\n\r\n",
    b"GET http://other/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\n",
]


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(300))
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=12)), max_size=30))
def test_random_bytes_end_in_an_answer_or_a_close(pieces: list[bytes]) -> None:
    d = driver()
    for piece in pieces:
        d.feed(piece)
        d.loop.settle()
    for answer in d.take():  # parses: nothing but whole answers was written
        assert answer.status in (100, 200, 400, 403, 404, 405, 413, 414, 415, 417, 421, 431, 501, 505)
    for _ in range(200):
        d.sweep(0.5)
        d.loop.settle()
    assert d.transport.closed
    for answer in d.take():
        assert answer.status in (400, 408)
    d.connection.connection_lost(None)
    assert not d.connections
    assert d.stats.open_connections == 0


def test_heads_that_will_not_come_again_are_not_kept() -> None:
    heads = Heads(LimitsConfig(), lambda head: None)
    plain = b"POST / HTTP/1.1\r\n" + HOST + b"\r\n"
    traced = b"POST / HTTP/1.1\r\n" + HOST + b"Traceparent: 00-a-b-01\r\nTracestate: x=1\r\ntracestate: y=2\r\n\r\n"
    assert heads.parse(plain).traceparent == b""
    head = heads.parse(traced)
    assert (head.traceparent, head.tracestate) == (b"00-a-b-01", b"x=1, y=2")
    assert list(heads.memo) == [plain]


FIELDS = sorted(name for name in dir(Head()) if not name.startswith("_") and name != "too_large")
VARYING = {"length", "json_length", "request_id", "traceparent", "tracestate"}


def shown(head: Head) -> dict[str, object]:
    return {name: getattr(head, name) for name in FIELDS}


NAMED = st.sampled_from(
    [
        *("Content-Length", "content-length", "CONTENT-LENGTH", "Inference-Header-Content-Length"),
        *("X-Request-Id", "x-request-id", "X-REQUEST-ID", "Expect", "Traceparent", "traceparent", "TRACEPARENT"),
        *("tracestate", "Tracestate", "baggage", "Baggage", "Connection", "Origin", "Authorization", "Cache-Control"),
        *("Accept-Encoding", "Content-Encoding", "Sec-Fetch-Site"),
    ]
)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALUES = st.sampled_from(
    [
        *("0", "7", "12", "00012", "1" * 18, "1" * 19, "", " 3", "3 ", "3\t", "+3", "a-b", "100-continue", "i" * 128),
        *("i" * 129, PARENT, PARENT + "-more", PARENT[:-1], "a=1, b=2", "\ta=1;p", "a\tb", "a\x01", "a\x7f", "\xe4"),
        *("Bearer a", "no-store", "gzip", "cross-site"),
    ]
)


@settings(deadline=None, max_examples=examples(200))
@given(
    st.lists(st.lists(st.tuples(NAMED, VALUES), max_size=4), min_size=2, max_size=8),
    st.booleans(),
    st.sampled_from(["POST /v2?a=b HTTP/1.1", "GET http://other:1/ HTTP/1.1", "POST / HTTP/1.0"]),
)
def test_a_head_like_one_before_reads_as_if_it_were_the_first(
    heads_of: list[list[tuple[str, str]]], small: bool, line: str
) -> None:
    limits = LimitsConfig(head_bytes=128 if small else 32768)
    cached = Heads(limits, lambda head: None)
    for fields in heads_of:
        text = line + "\r\n" + HOST.decode() + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
        found: list[object] = []
        for heads in (cached, cached, Heads(limits, lambda head: None)):
            try:
                found.append(shown(heads.parse(text.encode("latin-1"))))
            except MalformedError as error:
                found.append((error.status, error.text))
        assert found[0] == found[1] == found[2]


TEXTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
MESH = ("content-length", "inference-header-content-length", "x-request-id", "traceparent", "tracestate", "baggage")
REST = (b"user-agent: a/1", b"accept-encoding: gzip", b"cache-control: no-store", b"authorization: Bearer t")


@settings(deadline=None, max_examples=examples(200))
@given(st.permutations([*MESH, *REST]), st.integers(0, len(MESH) - 1), st.data())
def test_a_head_filled_in_reads_as_if_it_were_parsed_alone(
    order: list[str | bytes], absent: int, data: st.DataObject
) -> None:
    judged: list[Head] = []
    cached = Heads(LimitsConfig(), judged.append)
    order = [line for line in order if line not in MESH[:absent]]
    for _ in range(3):
        lines = [b"POST /v2/models/a/infer HTTP/1.1", b"Host: localhost"]
        for line in order:
            if isinstance(line, str):
                value = str(data.draw(st.integers(1, 999))) if line.endswith("length") else data.draw(TEXTS)
                line = f"{line}: {value}".encode()
            lines.append(line)
        raw = b"\r\n".join(lines) + b"\r\n\r\n"
        assert shown(cached.parse(raw)) == shown(Heads(LimitsConfig(), lambda head: None).parse(raw))
    assert len(judged) == 1


def test_what_is_filled_in_has_every_attribute_of_the_head_before() -> None:
    def judge(head: Head) -> None:
        for name in set(FIELDS) - VARYING - {"refusal", "expect"}:  # with these a head stands for no other
            value = getattr(head, name)
            others = {bool: not value, int: 1 << 20, str: "other", bytes: b"other", tuple: ("other", "")}
            setattr(head, name, b"other" if name == "origin" else others.get(type(value), object()))

    heads = Heads(LimitsConfig(), judge)
    raw = b"POST / HTTP/1.1\r\n" + HOST + b"X-Request-Id: %d\r\n\r\n"
    first, second = heads.parse(raw % 1), heads.parse(raw % 2)
    assert (first.request_id, second.request_id) == (b"1", b"2")
    assert second is not first
    assert shown(second) == {**shown(first), "request_id": b"2"}


def test_heads_with_a_trace_context_are_parsed_and_judged_once() -> None:
    judged: list[Head] = []
    heads = Heads(LimitsConfig(), judged.append)
    for number in range(1, 3000):
        context = f"traceparent: 00-{number:032x}-{number:016x}-01\r\ntracestate: a={number}, b=1\r\n"
        fields = f"Content-Length: {number}\r\nx-request-id: {number}\r\n{context}baggage: n={number};p, m=1\r\n\r\n"
        head = heads.parse(b"POST / HTTP/1.1\r\n" + HOST + fields.encode())
        assert (head.length, head.request_id) == (number, b"%d" % number)
        assert head.traceparent == b"00-%032x-%016x-01" % (number, number)
        assert head.tracestate == b"a=%d, b=1" % number
    assert len(judged) == 1
    assert len(heads.memo) == 1


def test_heads_that_differ_in_lengths_and_ids_are_parsed_and_judged_once() -> None:
    judged: list[Head] = []
    heads = Heads(LimitsConfig(), judged.append)
    for number in range(1, 3000):
        fields = f"Content-Length: {number}\r\nX-Request-Id: id-{number}\r\nInference-Header-Content-Length: 1\r\n\r\n"
        head = heads.parse(b"POST / HTTP/1.1\r\n" + HOST + fields.encode())
        assert (head.length, head.request_id, head.json_length) == (number, b"id-%d" % number, 1)
    assert len(judged) == 1
    assert len(heads.memo) == 1  # what all have in common; none of them will come again


@pytest.mark.parametrize("traced", [False, True])
def test_each_request_has_its_own_trace_in_answer_error_and_log(traced: bool, caplog: pytest.LogCaptureFixture) -> None:
    noted: list[RequestNote] = []
    d = Driver(FakeView(FakeModel(echo_family())), access=True)
    d.state.tracer = Tracer(noted.append, 1.0) if traced else None
    with caplog.at_level(logging.INFO, "clover.access"):
        for number in range(1, 5):
            trace = f"{number:032x}"
            body = echo_body() if number % 2 else b"{}"
            fields = f"traceparent: 00-{trace}-{number:016x}-01", "tracestate: a=1"
            answer = d.post("/v2/models/echo/infer", body, *fields)
            assert answer.status == (200 if number % 2 else 400)
            assert answer.fields.get("traceparent", "").split("-")[1:2] == ([trace] if traced else [])
    if traced:
        assert [note.trace_id for note in noted] == [b"%032x" % number for number in range(1, 5)]
        assert [note.parent_id for note in noted] == [b"%016x" % number for number in range(1, 5)]
        assert [record.trace_id for record in caplog.records] == [f"{number:032x}" for number in range(1, 5)]  # type: ignore[attr-defined]


def test_a_body_is_expected_also_after_a_head_that_has_none() -> None:
    heads = Heads(LimitsConfig(), lambda head: None)
    for length in (0, 5, 0, 7):
        fields = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length
        head = heads.parse(b"POST / HTTP/1.1\r\n" + HOST + fields)
        assert (head.length, head.expect) == (length, length > 0)


def test_a_body_that_is_too_large_is_refused_also_after_one_that_is_not() -> None:
    d = driver(json_bytes=1000)
    assert d.post("/v2/models/echo/infer", b"x" * 900).status == 400
    assert d.post("/v2/models/echo/infer", b"x" * 1001).status == 413


def test_bytes_of_a_client_are_not_taken_for_what_heads_have_in_common() -> None:
    heads = Heads(LimitsConfig(), lambda head: None)
    assert heads.parse(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n").length == 3
    with pytest.raises(MalformedError, match="not valid HTTP"):
        heads.parse(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n")
