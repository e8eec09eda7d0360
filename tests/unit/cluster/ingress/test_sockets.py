"""What the ingress keeps of HAProxy's listening sockets, and what it makes of answers that it does not know."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.ingress.sockets import HeldSockets, split

OPTIONS = struct.pack("i", 5)
NAMES = st.binary(max_size=255).map(lambda name: bytes([len(name)]) + name)
SAID = st.builds(lambda space, face, options: space + face + options, NAMES, NAMES, st.binary(min_size=4, max_size=4))


@given(st.lists(SAID, max_size=5))
def test_what_is_said_of_each_socket_is_told_apart(said: list[bytes]) -> None:
    assert split(b"".join(said)) == said


@given(st.binary(max_size=40))
def test_what_is_not_whole_is_nothing(words: bytes) -> None:
    assert b"".join(split(words)) in (words, b"")


class Asked:
    """A HAProxy that is asked for its sockets: `count` and `said` are its answer, `given` the sockets."""

    def __init__(self, path: Path, count: bytes, said: Sequence[bytes], given: Sequence[socket.socket]) -> None:
        self._answer = count, said, given
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        count, said, given = self._answer
        with self._listener, self._listener.accept()[0] as asking:
            assert asking.recv(100) == b"_getsocks\n"
            asking.sendall(count)
            for words, own in zip(said, given, strict=True):
                socket.send_fds(asking, [words], [own.fileno()])
                asking.recv(4)

    def close(self) -> None:
        self._thread.join(10.0)
        assert not self._thread.is_alive()


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_sockets_outlive_the_one_that_gave_them_and_are_given_to_the_next(short_path: Path) -> None:
    tcp, file = listening(), socket.socket(socket.AF_UNIX)
    port = tcp.getsockname()[1]
    asked = Asked(short_path / "s", struct.pack("i", 2), [b"\0\0" + OPTIONS, b"\0\1e" + OPTIONS], [file, tcp])
    held = HeldSockets()
    held.hold(str(short_path / "s"))
    asked.close()
    tcp.close()
    file.close()
    assert held
    assert not any(os.get_inheritable(number) for _, number in held._held), "no program that is started has them"
    before = descriptors()
    waiting = socket.create_connection(("127.0.0.1", port), timeout=5.0)

    async def offer() -> None:
        async with held.offered(short_path / "held"):
            next_one = HeldSockets()
            await asyncio.to_thread(next_one.hold, str(short_path / "held"))
            assert next_one
            next_one.close()
        async with held.offered(short_path / "held"):
            pass  # nobody asks

    asyncio.run(offer())
    waiting.close()
    assert descriptors() == before
    held.close()
    assert not held
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5.0)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (b"Unknown command\n", []),
        (struct.pack("i", 0), []),
        (b"", []),
        (struct.pack("i", 2), [b"\0\0" + OPTIONS]),
        (struct.pack("i", 1), [b"\0\0" + OPTIONS + b"\0\0"]),
    ],
)
def test_of_an_answer_that_is_not_known_nothing_is_held(short_path: Path, count: bytes, said: list[bytes]) -> None:
    before = descriptors()
    given_sockets = [listening() for _ in said]
    asked = Asked(short_path / "s", count, said, given_sockets)
    held = HeldSockets()
    held.hold(str(short_path / "s"))
    asked.close()
    for own in given_sockets:
        own.close()
    assert not held
    assert descriptors() == before


def test_without_a_haproxy_nothing_is_held(short_path: Path) -> None:
    held = HeldSockets()
    held.hold(str(short_path / "nobody"))
    assert not held
