"""Sending and copying: the twin, then the kernel."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from types import SimpleNamespace

import pytest


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


@pytest.mark.parametrize("text", ["", "r1-xx", " ~ []{}:,/<&>", "x" * 5000])
def test_a_text_that_is_json_as_it_stands(kernels: SimpleNamespace, text: str) -> None:
    assert kernels.wire.quoted(text) == json.dumps(text).encode()


@pytest.mark.parametrize("odd", ['"', "\\", "\n", "\0", "\x1f", "\x7f", "\x80", "é", "€", "\U0001f40c", "\ud800"])
def test_a_text_that_json_has_to_write_otherwise(kernels: SimpleNamespace, odd: str) -> None:
    for text in (odd, "abc" + odd, odd + "abc"):
        assert kernels.wire.quoted(text) is None


@pytest.mark.parametrize("number", [0, 9, 10, 15, 16, 255, 256, 0xABCDEF, 2**32, 2**64 - 1])
def test_a_number_after_a_prefix(kernels: SimpleNamespace, number: int) -> None:
    for prefix in (b"", b"a-", b"\0\xff"):
        assert kernels.wire.numbered(prefix, number) == prefix + f"{number:x}".encode()


def test_numbers_that_are_none(kernels: SimpleNamespace) -> None:
    for wrong in (None, "a", bytearray(b"a")):
        with pytest.raises(TypeError):
            kernels.wire.numbered(wrong, 1)
    for wrong in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            kernels.wire.numbered(b"", wrong)


def test_the_clock_is_the_one_of_python(kernels: SimpleNamespace) -> None:
    before = time.monotonic_ns()
    assert before <= kernels.wire.monotonic_ns() <= time.monotonic_ns()
