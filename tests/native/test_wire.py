"""Sending and copying: the twin, then the kernel."""

from __future__ import annotations

import os
import socket
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
