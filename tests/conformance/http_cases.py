"""Malformed and ambiguous HTTP/1.1 exchanges, as data: what is sent, which answers are right, and who says so.

Tables of bytes that a grammar excludes (or just includes),
each put into an otherwise good request.  `GOOD` is a request
that follows where a connection must go on, so that a message that was read too short or too long shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

HOST = b"Host: localhost\r\n"
GOOD = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
INDEX = b"POST /v2/repository/index HTTP/1.1\r\n" + HOST
CHUNKED = INDEX + b"Transfer-Encoding: chunked\r\n\r\n"
LATIN = "latin-1"
DELIMITERS = b'"(),/:;<=>?@[\\]{}'
"""Visible characters that are no part of a token (RFC 9110 5.6.2), but for the space."""
TOKEN_MARKS = b"!#$%&'*+-.^_`|~"
CONTROLS = bytes([*range(1, 9), 11, 12, *range(14, 32), 127])
"""But NUL, HTAB, LF and CR."""


class HttpCase(NamedTuple):
    """One connection: what a client sends before it half-closes, and the statuses of the answers.

    Each place of `statuses` has those that are right there, 0 for none; more answers are wrong.  `source` is the
    section that says so ("limits" are Clover's own, in docs/configuration.md).
    """

    name: str
    sent: bytes
    statuses: tuple[tuple[int, ...], ...]
    source: str


BAD = ((400,),)
ONE = ((200,),)
THEN_GOOD = ((200,), (200,))


def get(field: bytes = b"", line: bytes = b"GET /v2 HTTP/1.1", host: bytes = HOST) -> bytes:
    """Return a request without a body."""
    return line + b"\r\n" + host + field + b"\r\n"


def cases() -> list[HttpCase]:
    """Return all cases; their names are different."""
    groups = (
        _methods, _versions, _targets, _line_spaces, _line_ends, _field_names, _field_values, _hosts, _lengths,
        _codings,
        _chunks, _trailers, _bodies, _expectations, _content_codings, _limits, _connections, _smuggled, _absolute, _cut,
        _origins, _wrong_methods, _pipelines,
    )  # fmt: skip
    return [case for group in groups for case in group()]


def _named(kind: str, listed: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    for value in listed:
        yield f"{kind} {value!r:.60}", value


def _methods() -> Iterator[HttpCase]:
    for mark in DELIMITERS:
        method = b"G%cT" % mark
        yield HttpCase(f"method {method!r}", get(line=method + b" /v2 HTTP/1.1") + GOOD, BAD, "RFC 9110 5.6.2, 9.1")
    for mark in (*CONTROLS[:4], 9, 127, 128, 255):
        method = b"G%cT" % mark
        yield HttpCase(f"method {method!r}", get(line=method + b" /v2 HTTP/1.1") + GOOD, BAD, "RFC 9110 5.6.2, 9.1")
    for mark in TOKEN_MARKS:
        method = b"G%cT" % mark
        yield HttpCase(
            f"method {method!r}", get(line=method + b" /v2 HTTP/1.1") + GOOD, ((405, 501), (200,)), "RFC 9110 9.1"
        )
    for name, method in _named("method", (b"get", b"Get", b"FOO", b"X" * 32)):
        yield HttpCase(name, get(line=method + b" /v2 HTTP/1.1") + GOOD, ((405, 501), (200,)), "RFC 9110 9.1")
    yield HttpCase("method of 4,000 letters", get(line=b"G" * 4000 + b" /v2 HTTP/1.1"), ((400, 501),), "RFC 9112 3")
    yield HttpCase("no method", get(line=b" /v2 HTTP/1.1"), BAD, "RFC 9112 3")


def _versions() -> Iterator[HttpCase]:
    for version in (b"0.9", b"1.2", b"1.9", b"2.0", b"3.0", b"9.9", b"0.0"):
        yield HttpCase(f"version {version!r}", get(line=b"GET /v2 HTTP/" + version), ((505,),), "RFC 9110 15.6.6")
    wrong = (
        b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/11", b"HTTP/1.1.1", b"http/1.1",
        b"Http/1.1",
        b"HTP/1.1", b"HTTPS/1.1", b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/-1.1", b"HTTP/1.x", b"HTTP/\xb9.1", b"HTTP1.1",
        b"HTTP\\1.1",
        b"ICY/1.1", b"RTSP/1.0", b"HTTP/1.1\x00", b"HTTP/1.1\x0b", b"HTTP/1.1,",
    )  # fmt: skip
    for name, version in _named("version", wrong):
        yield HttpCase(name, get(line=b"GET /v2 " + version), BAD, "RFC 9112 2.3")
    yield HttpCase("no version", b"GET /v2\r\n\r\n", BAD, "RFC 9112 3")
    yield HttpCase("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ((505,),), "RFC 9113 3.4")


def _targets() -> Iterator[HttpCase]:
    for byte in (0, *CONTROLS, 128, 160, 195, 255):
        yield HttpCase(
            f"target with {byte:#04x}", get(line=b"GET /v2%c HTTP/1.1" % byte), BAD, "RFC 3986 2; RFC 9112 3.2"
        )
    for mark in b'"<>\\^`{|}#':
        line = b"GET /v2%c HTTP/1.1" % mark
        yield HttpCase(
            f"target with {chr(mark)!r}", get(line=line) + GOOD, ((400, 404), (200,)), "RFC 3986 2; RFC 9112 3.2"
        )
    for name, target in _named(
        "target", (b"v2", b"*", b"", b"localhost", b"ftp://localhost/v2", b"file:///etc/passwd", b"a:b")
    ):
        yield HttpCase(name, get(line=b"GET " + target + b" HTTP/1.1"), BAD, "RFC 9112 3.2")
    nowhere = (
        b"/v2/%", b"/v2/%2", b"/v2/%zz", b"/v2/%00", b"/v2%2fhealth%2flive", b"/v2/../v2", b"/v2/./health/live",
        b"//v2",
        b"/v2//health/live", b"/../../etc/passwd", b"/v2/models/..%2f..%2fetc", b"/v2/%2e%2e/v2", b"/V2",
        b"/v2/health/LIVE",
        b"/v2;a=b", b"/v2/models/", b"/v2/models//infer", b"/v2/models/none", b"/v2/models/none/infer", b"/v3",
        b"/index.php",
        b"/v2/models/identity_fp32/versions/99", b"/v2/models/identity_fp32/versions//ready", b"/v2/health",
        b"/v2/health/live/",
        b"/v2/models/identity_fp32/nothing", b"/v2/repository", b"/v2/repository/models/a", b"/v2/logging",
        b"/v2/trace/setting",
        b"/v2/systemsharedmemory/status", b"/v2/cudasharedmemory/status",
    )  # fmt: skip
    for name, target in _named("target", nowhere):
        line = b"GET " + target + b" HTTP/1.1"
        yield HttpCase(name, get(line=line) + GOOD, ((404, 405), (200,)), "RFC 9110 15.5.5; OIP: unknown path")
    for name, target in _named("target", (b"/v2?", b"/v2?a=%zz&b", b"/v2/?x", b"/%76%32", b"/v2?" + b"q" * 4000)):
        yield HttpCase(
            name, get(line=b"GET " + target + b" HTTP/1.1") + GOOD, THEN_GOOD, "RFC 3986 3.4; OIP: queries are ignored"
        )
    yield HttpCase("CONNECT", get(line=b"CONNECT localhost:80 HTTP/1.1"), ((400, 404, 405, 501),), "RFC 9110 9.3.6")


def _line_spaces() -> Iterator[HttpCase]:
    wrong = (
        b"GET  /v2 HTTP/1.1", b"GET /v2  HTTP/1.1", b"GET /v2 HTTP/1.1 ", b" GET /v2 HTTP/1.1", b"GET\t/v2 HTTP/1.1",
        b"GET /v2\tHTTP/1.1", b"GET /v2 HTTP/1.1\t", b"GET\x0b/v2 HTTP/1.1", b"GET\x0c/v2 HTTP/1.1",
        b"GET\xa0/v2 HTTP/1.1",
        b"GET /v2 a HTTP/1.1", b"GET /v2 HTTP /1.1", b"GET/v2 HTTP/1.1", b"GET", b"GET ",
        b"\xef\xbb\xbfGET /v2 HTTP/1.1",
        b"GET /v2 HTTP/1.1 GET /v2 HTTP/1.1",
    )  # fmt: skip
    for name, line in _named("request line", wrong):
        yield HttpCase(name, get(line=line), BAD, "RFC 9112 3")


def _line_ends() -> Iterator[HttpCase]:
    whole = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: a\r\n\r\n"
    lines = ((0, "the request line"), (1, "Host"), (2, "a field"), (3, "the head"))
    ends = [at for at in range(len(whole)) if whole.startswith(b"\r\n", at)]
    for number, where in lines:
        at = ends[number]
        for end, name in ((b"\n", "LF"), (b"\r", "CR"), (b"\n\r", "LF CR"), (b"\r\r\n", "CR CR LF"), (b"\x85", "NEL")):
            if number > 1 and end == b"\x85":
                continue  # a byte of a field's value as any other, or the head has no end
            sent = whole[:at] + end + whole[at + 2 :] + b"\r\n\r\n"
            yield HttpCase(f"{name} ends {where}", sent, BAD, "RFC 9112 2.2")
    for count, statuses in ((1, ONE), (2, ONE), (50, BAD)):
        yield HttpCase(f"{count} empty lines first", b"\r\n" * count + get(), statuses, "RFC 9112 2.2")
    for name, first in _named(
        "first bytes", (b"\n", b"\r", b"\r\r\n", b" \r\n", b"\0", b"\x16\x03\x01\x00\x05\x01", b"\x00\x00\x00")
    ):
        yield HttpCase(name, first + get(), BAD, "RFC 9112 2.2")


def _field_names() -> Iterator[HttpCase]:
    for byte in (*(mark for mark in DELIMITERS if mark != 0x3A), 0, *CONTROLS[::3], 32, 9, 127, 128, 255):
        odd = b"X%cY" % byte
        yield HttpCase(f"field name {odd!r}", get(odd + b": a\r\n") + GOOD, BAD, "RFC 9112 5; RFC 9110 5.1")
    for name, field in _named(
        "field",
        (
            b": a",
            b"X : a",
            b"X\t: a",
            b" X: a",
            b"\tX: a",
            b"X",
            b"X\x00: a",
            b"Host : localhost",
            b"Content-Length : 0",
        ),
    ):
        yield HttpCase(name, get(field + b"\r\n") + GOOD, BAD, "RFC 9112 5.1")
    for mark in TOKEN_MARKS:
        yield HttpCase(f"field name with {chr(mark)!r}", get(b"X%c: a\r\n" % mark) + GOOD, THEN_GOOD, "RFC 9110 5.6.2")
    for name, field in _named(
        "folded", (b"X: a\r\n b", b"X: a\r\n\tb", b"X: a\r\n \r\n b", b"X:\r\n a", b"Host: a\r\n localhost")
    ):
        yield HttpCase(name, get(field + b"\r\n") + GOOD, BAD, "RFC 9112 5.2")
    yield HttpCase("first field folded", b"GET /v2 HTTP/1.1\r\n " + HOST + b"\r\n", BAD, "RFC 9112 2.2")


def _field_values() -> Iterator[HttpCase]:
    for byte in (0, *CONTROLS):
        yield HttpCase(f"field value with {byte:#04x}", get(b"X: a%cb\r\n" % byte) + GOOD, BAD, "RFC 9110 5.5")
    for name, value in _named(
        "field value", (b"", b" ", b"\t", b" a ", b"\ta\t", b"\x80\xff", b'"\\"', b"a" * 8000, b": a")
    ):
        yield HttpCase(name, get(b"X:" + value + b"\r\n") + GOOD, THEN_GOOD, "RFC 9110 5.5")


def _hosts() -> Iterator[HttpCase]:
    wrong = (
        b"", b" ", b"a b", b"localhost:x", b"localhost:99999", b"localhost:-1", b"localhost:+80", b"localhost:80:80",
        b"[::1", b"::1]",
        b"[::1]x", b"[]", b"a@localhost", b"localhost/", b"localhost?", b"localhost#", b"localhost, b",
        b"localhost,localhost",
        b"local\\host", b"local<host", b'"localhost"', b"http://localhost", b"localhost\x00", b"localhost\x80",
        b":80", b":",
    )  # fmt: skip
    for name, value in _named("Host", wrong):
        yield HttpCase(name, get(host=b"Host: " + value + b"\r\n") + GOOD, BAD, "RFC 9112 3.2; RFC 9110 7.2")
    foreign = (
        b"evil.example",
        b"localhost.evil.example",
        b"192.0.2.1",
        b"[2001:db8::1]",
        b"127.0.0.1.nip.io",
        b"localhost.",
    )
    for name, value in _named("Host", foreign):
        yield HttpCase(name, get(host=b"Host: " + value + b"\r\n") + GOOD, ((403, 421), (200,)), "RFC 9110 7.4")
    for name, value in _named(
        "Host", (b"localhost", b"LOCALHOST", b"127.0.0.1", b"localhost:8080", b"[::1]", b"[::1]:1", b"localhost:")
    ):
        yield HttpCase(name, get(host=b"Host: " + value + b"\r\n") + GOOD, THEN_GOOD, "RFC 9110 7.2")
    for minor in b"01":
        line = b"GET /v2 HTTP/1.%c" % minor
        yield HttpCase(f"two Hosts on 1.{chr(minor)}", get(line=line, host=HOST + HOST), BAD, "RFC 9112 3.2")
        yield HttpCase(
            f"two different Hosts on 1.{chr(minor)}", get(line=line, host=HOST + b"host: b\r\n"), BAD, "RFC 9112 3.2"
        )
        statuses = BAD if minor == 49 else ONE
        yield HttpCase(f"no Host on 1.{chr(minor)}", get(line=line, host=b""), statuses, "RFC 9112 3.2")


def _lengths() -> Iterator[HttpCase]:
    wrong = (
        b"", b"+2", b"-2", b"-0", b"0x2", b"2 2", b"2,2", b"2, 2", b"2;", b"2.0", b"2e0", b"a", b"2a", b"\xb2",
        b"\xd9\xa2", b"'2'",
        b'"2"', b"2\x00", b"2\x0b", b"0b10", b"1_0", b"NaN", b"inf",
    )  # fmt: skip
    for name, value in _named("Content-Length", wrong):
        yield HttpCase(
            name, INDEX + b"Content-Length: " + value + b"\r\n\r\n{}" + GOOD, BAD, "RFC 9112 6.3; RFC 9110 8.6"
        )
    for name, value in _named("Content-Length", (b"2", b"02", b"002", b" 2", b"2 ", b"\t2\t")):
        yield HttpCase(name, INDEX + b"Content-Length:" + value + b"\r\n\r\n{}" + GOOD, THEN_GOOD, "RFC 9110 8.6")
    for size in (2**31, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, 10**30):
        sent = INDEX + b"Content-Length: %d\r\n\r\n{}" % size
        yield HttpCase(f"Content-Length {size}", sent, ((400, 413),), "RFC 9110 8.6, 15.5.14")
    for one, two in ((b"2", b"2"), (b"2", b"3"), (b"0", b"2"), (b"2", b"")):
        sent = INDEX + b"Content-Length: %b\r\nContent-Length: %b\r\n\r\n{}" % (one, two)
        yield HttpCase(f"Content-Length twice: {one!r}, {two!r}", sent + GOOD, BAD, "RFC 9112 6.3")
    sent = INDEX + b"content-LENGTH: 2\r\n\r\n{}" + GOOD
    yield HttpCase("Content-Length in another case", sent, THEN_GOOD, "RFC 9110 5.1")


def _codings() -> Iterator[HttpCase]:
    end = b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    wrong = (
        b"", b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"chunked,", b",chunked",
        b"chunked, identity",
        b"xchunked", b"chunkedx", b"chunked;q=1", b'"chunked"', b"chunk ed", b"chunked\x00", b"\x0bchunked",
        b"chunked\x0b", b"x", b"deflate",
        b"trailers", b"chunked, ", b"\x01chunked", b"c\thunked",
    )  # fmt: skip
    for name, value in _named("Transfer-Encoding", wrong):
        yield HttpCase(name, INDEX + b"Transfer-Encoding: " + value + end + GOOD, ((400, 501),), "RFC 9112 6.1, 6.3")
    for name, value in _named("Transfer-Encoding", (b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked")):
        yield HttpCase(name, INDEX + b"Transfer-Encoding:" + value + end + GOOD, THEN_GOOD, "RFC 9112 7")
    twice = b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"
    yield HttpCase("Transfer-Encoding twice", INDEX + twice + end + GOOD, BAD, "RFC 9112 6.1")
    sent = b"POST /v2/repository/index HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked" + end
    yield HttpCase("Transfer-Encoding on 1.0", sent, BAD, "RFC 9112 6.1")


def _chunks() -> Iterator[HttpCase]:
    end = b"\r\n0\r\n\r\n" + GOOD
    wrong = (
        b"", b"-2", b"+2", b"0x2", b"g", b" 2", b"\t2", b"2_", b"2.0", b"2,", b"'2'", b"\xb2", b"2\x00", b"2\x0b",
        b"2:", b"h2", b"2h", b"--", b"2 2",
        b"00000000000000002", b"fffffffffffffffff", b"2;a\x00", b"2;a\rb", b";a", b"2 a",
    )  # fmt: skip
    for name, size in _named("chunk size", wrong):
        yield HttpCase(name, CHUNKED + size + b"\r\n{}" + end, BAD, "RFC 9112 7.1")
    for name, size in _named(
        "chunk size",
        (b"2", b"02", b"0000000000000002", b"2;a", b"2;a=b", b'2;a="b c"', b"2 ;a=b", b"2\t;a", b"2;", b"2; a"),
    ):
        yield HttpCase(name, CHUNKED + size + b"\r\n{}" + end, THEN_GOOD, "RFC 9112 7.1.1")
    for size in (b"7fffffff", b"ffffffff", b"7fffffffffffffff", b"ffffffffffffffff"):
        yield HttpCase(f"chunk of {size!r}", CHUNKED + size + b"\r\n{}", ((400, 413),), "RFC 9112 7.1; limits")
    framing = {
        "LF after the size": b"2\n{}\r\n0\r\n\r\n", "LF after the data": b"2\r\n{}\n0\r\n\r\n",
        "CR after the data": b"2\r\n{}\r0\r\n\r\n",
        "CR after the size": b"2\r{}\r\n0\r\n\r\n", "no CRLF after the data": b"2\r\n{}0\r\n\r\n",
        "longer than it says": b"1\r\n{}\r\n0\r\n\r\n",
        "shorter than it says": b"3\r\n{}\r\n0\r\n\r\n", "LF after the last chunk": b"2\r\n{}\r\n0\n\r\n",
        "LF at the end": b"2\r\n{}\r\n0\r\n\n",
        "CR CR LF after the size": b"2\r\r\n{}\r\n0\r\n\r\n",
        "spaces between chunks": b"1\r\n{\r\n 1\r\n}\r\n0\r\n\r\n",
    }  # fmt: skip
    for name, body in framing.items():
        yield HttpCase(name, CHUNKED + body, BAD, "RFC 9112 7.1")
    for name, zero in _named("last chunk", (b"0", b"00", b"0000000000000000", b"0;a=b", b"0 ;a")):
        yield HttpCase(name, CHUNKED + b"2\r\n{}\r\n" + zero + b"\r\n\r\n" + GOOD, THEN_GOOD, "RFC 9112 7.1")


def _trailers() -> Iterator[HttpCase]:
    before = CHUNKED + b"2\r\n{}\r\n0\r\n"
    for name, field in _named(
        "trailer",
        (b"no colon", b": a", b"A : b", b" A: b", b"A: b\x00", b"A: b\r\n c", b"A\x80: b", b"A: \x01", b"\x00: a"),
    ):
        yield HttpCase(name, before + field + b"\r\n\r\n" + GOOD, BAD, "RFC 9112 7.1.2, 5")
    for name, field in _named(
        "trailer",
        (b"A: b", b"A:", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: evil.example", b"A: b\r\nA: c"),
    ):
        yield HttpCase(
            name,
            before + field + b"\r\n\r\n" + GOOD,
            THEN_GOOD,
            "RFC 9110 6.5.1: framing fields in trailers are ignored",
        )


def _bodies() -> Iterator[HttpCase]:
    for method in (b"GET", b"DELETE", b"OPTIONS", b"PUT", b"HEAD"):
        line = method + b" /v2 HTTP/1.1\r\n" + HOST
        statuses = ((200,) if method in (b"GET", b"HEAD") else (405,), (200,))
        if method != b"HEAD":  # its answer has no body, which a stream alone does not say
            yield HttpCase(
                f"{method.decode()} with a body",
                line + b"Content-Length: 3\r\n\r\nabc" + GOOD,
                statuses,
                "RFC 9110 9.3.1",
            )
            sent = line + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + GOOD
            yield HttpCase(f"{method.decode()} with a chunked body", sent, statuses, "RFC 9110 9.3.1")
    yield HttpCase("POST without a length", INDEX + b"\r\n" + GOOD, THEN_GOOD, "RFC 9112 6.3: no body then")
    yield HttpCase(
        "a request for a body", INDEX + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD, BAD, "RFC 9112 6.3"
    )
    hidden = INDEX + b"Content-Length: 2\r\n\r\n{}GET /v2"
    yield HttpCase("half a request behind a body", hidden, ((200,),), "RFC 9112 8")


def _expectations() -> Iterator[HttpCase]:
    length = b"Content-Length: 2\r\n\r\n{}" + GOOD
    for name, value in _named("Expect", (b"100-continue", b"100-Continue", b"100-CONTINUE")):
        yield HttpCase(name, INDEX + b"Expect: " + value + b"\r\n" + length, THEN_GOOD, "RFC 9110 10.1.1")
    for name, value in _named(
        "Expect", (b"tea", b"200-ok", b"100-continue, tea", b"", b"100", b"continue", b"100-continue;q=1")
    ):
        yield HttpCase(name, INDEX + b"Expect: " + value + b"\r\n" + length, ((417,), (200,)), "RFC 9110 10.1.1")
    sent = b"POST /v2/repository/index HTTP/1.0\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
    yield HttpCase("Expect on 1.0", sent, ONE, "RFC 9110 10.1.1: it is ignored on 1.0")


def _content_codings() -> Iterator[HttpCase]:
    body = b"Content-Length: 2\r\n\r\n{}" + GOOD
    for name, value in _named(
        "Content-Encoding", (b"br", b"zstd", b"compress", b"gzip, gzip", b"gzip, deflate", b"x", b"gzip;q=1", b"*")
    ):
        yield HttpCase(
            name, INDEX + b"Content-Encoding: " + value + b"\r\n" + body, ((415,), (200,)), "RFC 9110 8.4, 15.5.16"
        )
    for name, value in _named("Content-Encoding of what is not coded", (b"gzip", b"x-gzip", b"deflate", b"GZIP")):
        yield HttpCase(name, INDEX + b"Content-Encoding: " + value + b"\r\n" + body, ((400,), (200,)), "RFC 9110 8.4.1")
    for name, value in _named("Content-Encoding", (b"identity", b"")):
        yield HttpCase(name, INDEX + b"Content-Encoding: " + value + b"\r\n" + body, THEN_GOOD, "RFC 9110 8.4.1")


def _limits() -> Iterator[HttpCase]:
    yield HttpCase(
        "a target of 17 KB", get(line=b"GET /" + b"a" * 17_000 + b" HTTP/1.1"), ((414,),), "RFC 9110 15.5.15; limits"
    )
    yield HttpCase("an endless target", b"GET /" + b"a" * 40_000, ((414, 431),), "RFC 9110 15.5.15; limits")
    yield HttpCase("a field of 40 KB", get(b"X: " + b"a" * 40_000 + b"\r\n"), ((431,),), "RFC 6585 5; limits")
    yield HttpCase(
        "an endless field", b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000, ((431,),), "RFC 6585 5; limits"
    )
    yield HttpCase("101 fields", get(b"X: a\r\n" * 100), ((431,),), "RFC 6585 5; limits")
    yield HttpCase("100 fields", get(b"X: a\r\n" * 99) + GOOD, THEN_GOOD, "limits")
    yield HttpCase(
        "an endless chunk extension", CHUNKED + b"2;" + b"a" * 20_000, ((400, 413),), "RFC 9112 7.1.1; limits"
    )
    yield HttpCase(
        "an endless trailer",
        CHUNKED + b"2\r\n{}\r\n0\r\nA: " + b"a" * 9_000,
        ((400, 413, 431),),
        "RFC 9112 7.1.2; limits",
    )
    yield HttpCase(
        "many trailers",
        CHUNKED + b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 2_000,
        ((400, 413, 431),),
        "RFC 9112 7.1.2; limits",
    )
    large = INDEX + b"Content-Length: 70000\r\n\r\n" + b" " * 70_000
    yield HttpCase("a document of 70 KB", large, ((413,),), "RFC 9110 15.5.14; limits")


def _connections() -> Iterator[HttpCase]:
    for name, value in _named(
        "Connection", (b"close", b"Close", b"close, keep-alive", b"keep-alive, close", b"x, close", b"close,")
    ):
        yield HttpCase(name, get(b"Connection: " + value + b"\r\n") + GOOD, ONE, "RFC 9112 9.3, 9.6")
    for name, value in _named(
        "Connection", (b"keep-alive", b"", b",", b"Host", b"x", b"closed", b"te, trailers", b'"close"')
    ):
        yield HttpCase(name, get(b"Connection: " + value + b"\r\n") + GOOD, THEN_GOOD, "RFC 9112 9.3")
    offers = (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
              b"Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n",
              b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\n")  # fmt: skip
    for name, fields in _named("offer", offers):
        yield HttpCase(name, get(fields) + GOOD, THEN_GOOD, "RFC 9110 7.8: an upgrade may be ignored")
    one = b"GET /v2 HTTP/1.0"
    yield HttpCase("1.0 ends", get(line=one) + GOOD, ONE, "RFC 9112 9.3")
    yield HttpCase("1.0 kept alive", get(b"Connection: keep-alive\r\n", line=one) + GOOD, THEN_GOOD, "RFC 9112 C.2.2")


def _smuggled() -> Iterator[HttpCase]:
    hidden = b"GET /v2/models/identity_fp32 HTTP/1.1\r\n" + HOST + b"\r\n"
    both = (
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "length and coding"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", "coding and length"),
        (b"Content-Length: 2\r\ntransfer-encoding: CHUNKED\r\n", "length and coding in another case"),
        (b"Content-Length: 0\r\nTransfer-Encoding: identity\r\n", "length and identity"),
        (b"Content-Length: 2\r\nTransfer-Encoding: xchunked\r\n", "length and another coding"),
        (b"Content-Length: 2\r\nTransfer-Encoding:\x0bchunked\r\n", "length and a hidden coding"),
        (b"Content-Length: 2\r\n Transfer-Encoding: chunked\r\n", "length and a folded coding"),
        (b"Content-Length: 2\r\nTransfer-Encoding : chunked\r\n", "length and a spaced coding"),
        (b"Content-Length: 2\r\nX: a\nTransfer-Encoding: chunked\r\n", "length and a coding behind LF"),
        (b"Content-Length: 2\r\nX: a\rTransfer-Encoding: chunked\r\n", "length and a coding behind CR"),
        (b"Content-Length: 2\r\nTransfer-Encoding\x00: chunked\r\n", "length and a coding with NUL"),
        (
            b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "length and two codings",
        ),
        (b"Content-Length: 2, 40\r\n", "two lengths in a list"),
        (b"Content-Length: 2\r\nContent-Length: 40\r\n", "two lengths"),
        (b"Content-Length: 2\r\nContent-Length : 40\r\n", "a length and a spaced one"),
    )
    for fields, name in both:
        for body, form in ((b"{}", "as length"), (b"0\r\n\r\n", "as chunks")):
            yield HttpCase(f"{name}, {form}", INDEX + fields + b"\r\n" + body + hidden, BAD, "RFC 9112 6.1, 6.3, 11.2")
    for name, field in _named(
        "length and", (b"Transfer_Encoding: chunked", b"X-Transfer-Encoding: chunked", b"TE: chunked")
    ):
        sent = INDEX + field + b"\r\nContent-Length: 2\r\n\r\n{}" + GOOD
        yield HttpCase(name, sent, THEN_GOOD, "RFC 9110 5.1: these are other fields")


def _absolute() -> Iterator[HttpCase]:
    for name, target in _named(
        "target", (b"http://localhost/v2", b"HTTP://LOCALHOST/v2", b"http://localhost:80/v2?x", b"http://[::1]/v2")
    ):
        yield HttpCase(name, get(line=b"GET " + target + b" HTTP/1.1") + GOOD, THEN_GOOD, "RFC 9112 3.2.2")
    for name, target in _named(
        "target", (b"http://evil.example/v2", b"https://evil.example:443/", b"http://localhost.evil.example/")
    ):
        yield HttpCase(
            name, get(line=b"GET " + target + b" HTTP/1.1") + GOOD, ((421,), (200,)), "RFC 9110 7.4, 15.5.20"
        )
    wrong = (
        b"http:///v2",
        b"http://",
        b"http://localhost@evil.example/",
        b"http://a b/",
        b"http://localhost:x/",
        b"http:localhost/v2",
        b"http:/v2",
    )
    for name, target in _named("target", wrong):
        yield HttpCase(name, get(line=b"GET " + target + b" HTTP/1.1") + GOOD, BAD, "RFC 9112 3.2.2; RFC 9110 4.2")


def _cut() -> Iterator[HttpCase]:
    """Yield messages that end too early: their client half-closes, and gets no answer, or an error."""
    whole = INDEX + b"Content-Length: 20\r\n\r\n" + b"{}" + b" " * 18
    for at in (1, 4, 20, 30, 38, 50, len(INDEX), len(INDEX) + 10, len(whole) - 20, len(whole) - 10, len(whole) - 1):
        yield HttpCase(f"cut after {at} bytes", whole[:at], ((0, 400, 408),), "RFC 9112 8")
    chunked = CHUNKED + b"14\r\n" + b"{}" + b" " * 18 + b"\r\n0\r\nA: b\r\n\r\n"
    for at in (
        len(CHUNKED),
        len(CHUNKED) + 1,
        len(CHUNKED) + 3,
        len(CHUNKED) + 10,
        len(chunked) - 12,
        len(chunked) - 6,
        len(chunked) - 1,
    ):
        yield HttpCase(f"chunks cut after {at} bytes", chunked[:at], ((0, 400, 408),), "RFC 9112 8")


def _origins() -> Iterator[HttpCase]:
    pin = b"POST /v2/clover/pin HTTP/1.1\r\n" + HOST
    for name, value in _named(
        "Origin",
        (b"http://evil.example", b"null", b"http://localhost.evil.example", b"", b"https://localhost:1", b"file://"),
    ):
        sent = pin + b"Origin: " + value + b"\r\nContent-Length: 0\r\n\r\n" + GOOD
        yield HttpCase(
            f"a change, {name}", sent, ((403,), (200,)), "RFC 6454 7.2; SECURITY.md: changes from another origin"
        )
    for name, field in _named("twice", (b"Origin: http://localhost", b"Authorization: Bearer a",
    b"Expect: 100-continue",
                                        b"Inference-Header-Content-Length: 1")):  # fmt: skip
        yield HttpCase(name, get(field + b"\r\n" + field + b"\r\n") + GOOD, BAD, "RFC 9110 5.3: a single field")


def _wrong_methods() -> Iterator[HttpCase]:
    reading = (b"/v2", b"/v2/health/live", b"/v2/health/ready", b"/v2/models/identity_fp32",
    b"/v2/models/identity_fp32/ready",
               b"/v2/models/identity_fp32/config", b"/v2/models/stats", b"/metrics", b"/openapi.json",
               b"/v2/clover/state")  # fmt: skip
    for path in reading:
        for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE"):
            sent = method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n" + GOOD
            yield HttpCase(f"{method.decode()} {path.decode()}", sent, ((405,), (200,)), "RFC 9110 15.5.6")
    for path in (
        b"/v2/models/identity_fp32/infer",
        b"/v2/repository/index",
        b"/v2/repository/models/identity_fp32/load",
    ):
        for method in (b"GET", b"PUT", b"DELETE", b"TRACE"):
            sent = method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" + GOOD
            yield HttpCase(f"{method.decode()} {path.decode()}", sent, ((405,), (200,)), "RFC 9110 15.5.6")


def _pipelines() -> Iterator[HttpCase]:
    bad = b"GET /v2 HTTP/1.1\r\n\r\n"
    none = get(line=b"GET /none HTTP/1.1")
    body = INDEX + b"Content-Length: 2\r\n\r\n{}"
    listed = (
        ("two good", GOOD * 2, THEN_GOOD), ("twenty good", GOOD * 20, ((200,),) * 20), ("good, bad, good",
        GOOD + bad + GOOD, ((200,), (400,))),
        ("bad, good", bad + GOOD, BAD), ("good, unknown, good", GOOD + none + GOOD, ((200,), (404,), (200,))),
        ("body, chunked, good", body + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n" + GOOD, ((200,),) * 3),
        ("good, garbage", GOOD + b"\xff" * 50 + b"\r\n\r\n", ((200,), (400,))), ("body, garbage",
        body + b"garbage\r\n\r\n", ((200,), (400,))),
        ("good, empty lines, good", GOOD + b"\r\n\r\n" + GOOD, THEN_GOOD),
        ("good, chunked wrong, good", GOOD + CHUNKED + b"x\r\n" + GOOD, ((200,), (400,))),
    )  # fmt: skip
    for name, sent, statuses in listed:
        yield HttpCase(f"pipeline: {name}", sent, statuses, "RFC 9112 9.3.2")
