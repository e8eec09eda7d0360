"""Sending and copying: the twin, then the kernel."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clover._native import wire
from tests.reference import wire as reference


def test_what_fits_is_sent_whole(kernels: SimpleNamespace) -> None:
    here, there = socket.socketpair()
    with here, there:
        assert kernels.wire.send(here.fileno(), b"") == 0
        assert kernels.wire.send(here.fileno(), b"hello \0 world") == 13
        assert there.recv(64) == b"hello \0 world"


def test_a_full_socket_takes_a_part_and_then_nothing_and_nobody_waits(kernels: SimpleNamespace) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        here.setblocking(True)  # sending does not wait, whatever the socket would
        data = os.urandom(8 << 20)
        sent = 0
        while part := kernels.wire.send(here.fileno(), data[sent:]):
            sent += part
        assert 0 < sent < len(data)
        got = bytearray()
        while len(got) < sent:
            got += there.recv(1 << 20)
        assert got == data[:sent]
        assert kernels.wire.send(here.fileno(), data[sent : sent + 5]) == 5


def test_a_peer_that_is_gone_takes_nothing_and_raises_no_signal(kernels: SimpleNamespace) -> None:
    here, there = socket.socketpair()
    with here:
        there.close()
        assert kernels.wire.send(here.fileno(), b"hello") == 0
        number = here.fileno()
    assert kernels.wire.send(number, b"hello") == 0, "nor does a descriptor that is closed"
    read, write = os.pipe()
    try:
        assert kernels.wire.send(write, b"hello") == 0, "nor one that is no socket"
    finally:
        os.close(read)
        os.close(write)


def test_a_copy_of_a_page(kernels: SimpleNamespace) -> None:
    page = bytearray(b"0123456789")
    found = kernels.wire.cut(page, 4)
    page[0] = 65
    assert found == b"0123"
    assert type(found) is bytes
    assert kernels.wire.cut(page, 0) == b""
    assert kernels.wire.cut(page, 10) == b"A123456789"
    for size in (-1, 11):
        with pytest.raises(IndexError):
            kernels.wire.cut(page, size)


def test_a_part(kernels: SimpleNamespace) -> None:
    part = kernels.wire.part
    assert [part(b"0123", *ends) for ends in ((0, 4), (1, 3), (2, 2), (4, 4))] == [b"0123", b"12", b"", b""]
    for start, stop in ((-1, 2), (3, 2), (0, 5), (5, 5)):
        with pytest.raises(IndexError):
            part(b"0123", start, stop)


def test_where_a_head_ends(kernels: SimpleNamespace) -> None:
    head_end = kernels.wire.head_end
    pieces = (b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"a", b"\0")
    luck = random.Random(5)
    for _ in range(3000):
        data = b"".join(luck.choices(pieces, k=luck.randrange(12)))
        start = luck.randrange(len(data) + 1)
        found = data.find(b"\r\n\r\n", start)
        assert head_end(data, start) == (found + 4 if found >= 0 else -1)
    for start in (-1, 5):
        with pytest.raises(IndexError):
            head_end(b"\r\n\r\n", start)


LINES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Inference-Header-Content-Length"),
                *(b"x-request-id", b"X-Request-Id", b"traceparent", b"Traceparent", b"tracestate", b"baggage"),
                *(b"Host", b"Content-Lengthy", b"trace", b"", b" traceparent", b"traceparent ", b"\xf4raceparent"),
            ]
        ),
        st.sampled_from([b":", b": ", b":\t ", b" :", b""]),
        st.one_of(
            st.sampled_from([b"", b"0", b"007", b"1" * 18, b"1" * 19, b"+1", b"i" * 128, b"i" * 129, b"a b", b"a\tb"]),
            st.binary(max_size=6),
        ),
        st.sampled_from([b"\r\n", b" \r\n", b"\t \r\n", b"\n", b"\r", b"\r\r\n", b""]),
    ).map(b"".join),
    max_size=9,
)


@given(LINES, st.sampled_from([b"GET / HTTP/1.1\r\n", b"", b"\n"]), st.sampled_from([b"\r\n", b""]))
def test_the_values_of_a_head_that_vary_are_those_of_the_twin(lines: list[bytes], first: bytes, last: bytes) -> None:
    raw = first + b"".join(lines) + last
    assert wire.varying(raw) == reference.varying(raw)


def test_a_head_without_its_values(kernels: SimpleNamespace) -> None:
    varying = kernels.wire.varying
    lines = [b"POST /traceparent:1 HTTP/1.1", b"Host: a", b"tracestate: a=1, b=2 ", b"X-REQUEST-ID:7"]
    lines += [b"x-request-id: 8", b"Content-Length: 012", b"Traceparent:\t00-ab", b"baggage: c", b"", b""]
    rest = b"POST /traceparent:1 HTTP/1.1\r\nHost: a\r\ntracestate:  \r\nX-REQUEST-ID:\r\nx-request-id: 8\r\n"
    rest += b"Content-Length: \r\nTraceparent:\t\r\nbaggage: \r\n\r\n"
    assert varying(b"\r\n".join(lines)) == (rest, 12, -1, b"7", b"00-ab", b"a=1, b=2", b"c")
    plain = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert varying(plain) == (plain, 0, -1, b"", b"", b"", b"")
    for odd in (b"traceparent:", b"baggage: \xe4", b"x-request-id: a b", b"Content-Length: 0x1", b"content-length: 00"):
        assert varying(b"GET / HTTP/1.1\r\n" + odd + b"\r\n\r\n") is None
    with pytest.raises(TypeError):
        varying(None)


def test_what_is_joined(kernels: SimpleNamespace) -> None:
    joined = kernels.wire.joined
    assert joined([], []) == b""
    assert joined([b"a", b"", b"bc"], [b"\0d" * 1000]) == b"abc" + b"\0d" * 1000
    assert joined([], [b"x"]) == b"x"
    for odd in (None, "x", bytearray(b"x"), memoryview(b"x"), 1):
        with pytest.raises(TypeError):
            joined([b"x", odd], [])
        with pytest.raises(TypeError):
            joined([], [odd])


JOULES = st.one_of(
    st.floats(),
    st.floats(0.0, 1e7),
    st.integers(0, 2**54).map(lambda halves: halves / 2),
    st.integers(0, 2**40).map(lambda parts: parts / 2000),  # half thousandths, and next to them
    st.integers(0, 2**40).map(lambda parts: math.nextafter(parts / 2000, math.inf)),
    st.tuples(st.integers(0, 2**53), st.integers(-80, 0)).map(lambda parts: math.ldexp(*parts)),  # exact halves too
)


@given(JOULES, JOULES)
@example(0.0, -0.0)
@example(-1e-12, 5e-324)
@example(0.0005, 0.0015)
@example(0.0625, 0.1875)
@example(0.5e-9, 1.5e-9)
@example(2.0**52, math.nextafter(2.0**52, 0.0))
@example(1.7e308, 1.0)
@example(math.nan, 1.0)
@example(1.0, math.inf)
def test_the_amounts_of_a_receipt_are_written_as_python_writes_them(energy_j: float, carbon_mg: float) -> None:
    parts = (b"start: ", b"; end", energy_j, carbon_mg)
    try:
        expected = reference.receipt_line(*parts)
    except (ValueError, OverflowError) as error:  # of what is no number, or infinite
        with pytest.raises(type(error)):
            wire.receipt_line(*parts)
    else:
        assert wire.receipt_line(*parts) == expected


def test_a_receipt_with_amounts(kernels: SimpleNamespace) -> None:
    line = kernels.wire.receipt_line(b"a, ", b", b", 0.0037216324, 0.00063934)
    assert line == b'a, energy-j="0.003721632", carbon-mg="0.000639340", b'
    line = kernels.wire.receipt_line(b"", b"", 12345678.9, 0.0)
    assert line == b'energy-j="12345678.900000000", carbon-mg="0.000000000"'
    for odd in ((None, b""), (b"", ""), (b"", bytearray())):
        with pytest.raises(TypeError):
            kernels.wire.receipt_line(*odd, 1.0, 1.0)


@pytest.mark.parametrize("text", ["", "r1-xx", " ~ []{}:,/<&>", "x" * 5000])
def test_a_text_that_is_json_as_it_stands(kernels: SimpleNamespace, text: str) -> None:
    assert kernels.wire.quoted(text) == json.dumps(text).encode()


@pytest.mark.parametrize("odd", ['"', "\\", "\n", "\0", "\x1f", "\x7f", "\x80", "é", "€", "\U0001f40c", "\ud800"])
def test_a_text_that_json_has_to_write_otherwise(kernels: SimpleNamespace, odd: str) -> None:
    for text in (odd, "abc" + odd, odd + "abc"):
        assert kernels.wire.quoted(text) is None


KEY = bytes(range(16))
LOW, HIGH = int.from_bytes(KEY[:8], "little"), int.from_bytes(KEY[8:], "little")
WORDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("size", "digest"),
    # Of the bytes 0, 1, 2 ...: the reference implementation's `vectors_sip64`, and (15 bytes) the paper's appendix A.
    [
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (7, "37d1018bf50002ab"),
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),
    ],
)
def test_the_twin_is_siphash_2_4(size: int, digest: str) -> None:
    assert reference.siphash_of(KEY, bytes(range(size))).to_bytes(8, "little").hex() == digest


def test_the_published_vector_of_eight_bytes(kernels: SimpleNamespace) -> None:
    number = int.from_bytes(range(8), "little")
    assert kernels.wire.siphash(LOW, HIGH, number).to_bytes(8, "little").hex() == "6224939a79f5f593"


@given(low=WORDS, high=WORDS, number=WORDS)
def test_both_hash_alike(low: int, high: int, number: int) -> None:
    assert wire.siphash(low, high, number) == reference.siphash(low, high, number)
    text = wire.sealed(b"a-", number, low, high)
    assert text == reference.sealed(b"a-", number, low, high)
    assert wire.unsealed(b"a-", text, low, high) == number


@pytest.mark.parametrize("number", [0, 9, 10, 15, 16, 255, 256, 0xABCDEF, 2**32, 2**64 - 1])
def test_a_number_after_a_prefix_and_before_its_tag(kernels: SimpleNamespace, number: int) -> None:
    for prefix in (b"", b"a-", b"\0\xff"):
        text = kernels.wire.sealed(prefix, number, LOW, HIGH)
        assert text == prefix + f"{number:x}-{kernels.wire.siphash(LOW, HIGH, number):016x}".encode()
        assert kernels.wire.unsealed(prefix, text, LOW, HIGH) == number


def test_a_seal_that_is_none(kernels: SimpleNamespace) -> None:
    unsealed = kernels.wire.unsealed
    text = kernels.wire.sealed(b"a-", 0x1F, LOW, HIGH)
    assert unsealed(b"a-", text, LOW, HIGH) == 0x1F
    assert unsealed(b"a-", text, LOW ^ 1, HIGH) is None
    assert unsealed(b"a-", text, LOW, HIGH ^ 1) is None
    assert unsealed(b"b-", text, LOW, HIGH) is None
    tag = text[-16:]
    others = [b"", b"a-", b"a-1f", b"a-1f-", text[1:], text[:-1], text + b"0", b" " + text, text.upper()]
    others += [b"a-01f-" + tag, b"a--" + tag, b"a-1e-" + tag, b"a-1g-" + tag, b"a-+1f-" + tag, b"a-1f_" + tag]
    others += [b"a-" + b"0" * 15 + b"1f-" + tag, b"a-1f-" + tag[:-1] + b"g", b"a-1f-\0" + tag[1:]]
    for other in others:
        assert unsealed(b"a-", other, LOW, HIGH) is None, other
    for at in range(len(text)):
        for bit in range(8):
            changed = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            assert unsealed(b"a-", changed, LOW, HIGH) is None, changed


@given(text=st.binary(max_size=40) | st.text("0123456789abcdef-", max_size=40).map(str.encode))
def test_both_refuse_alike(text: bytes) -> None:
    for prefix in (b"", b"a-"):
        given_ = prefix + text
        assert wire.unsealed(prefix, given_, LOW, HIGH) == reference.unsealed(prefix, given_, LOW, HIGH)


def test_numbers_that_are_none(kernels: SimpleNamespace) -> None:
    for wrong in (None, "a", bytearray(b"a")):
        with pytest.raises(TypeError):
            kernels.wire.sealed(wrong, 1, 0, 0)
        with pytest.raises(TypeError):
            kernels.wire.unsealed(wrong, b"", 0, 0)
        with pytest.raises(TypeError):
            kernels.wire.unsealed(b"", wrong, 0, 0)
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            kernels.wire.sealed(b"", number, 0, 0)


def test_the_clock_is_the_one_of_python(kernels: SimpleNamespace) -> None:
    before = time.monotonic_ns()
    assert before <= kernels.wire.monotonic_ns() <= time.monotonic_ns()
